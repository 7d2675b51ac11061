//! Lanes of 16 bits, which is how [`f16`](half::f16) and [`bf16`](half::bf16) are in memory.
//!
//! Nothing is computed in them: they become `f32`, exactly, and come back rounded to the nearest, ties
//! to even. The two formats:
//!
//! | | sign | exponent | fraction | largest | smallest |
//! |---|---|---|---|---|---|
//! | `f16`, IEEE 754 binary16 | 1 | 5, bias 15 | 10 | 65504 | 2⁻²⁴ |
//! | `bf16`, the upper half of an `f32` | 1 | 8, bias 127 | 7 | 3.39e38 | 2⁻¹³³ |
//!
//! On every instruction set subnormals are kept, what rounds to beyond the largest number becomes
//! infinite, and a NaN stays one: quiet, with its sign and the upper bits of its payload.
//!
//! The functions at the end are the portable code, and what the others are tested against.

use super::Vector;

/// Some lanes of 16 bits. As with [`Vector`], a value exists only where the processor has its
/// instructions.
pub trait Bits16: Copy {
    /// As many lanes of `f32`.
    type Float: Vector<Scalar = f32>;

    /// `LANES` elements from `p`, at any alignment.
    ///
    /// # Safety
    /// The processor has the instruction set; `p` is readable for the elements.
    unsafe fn load(p: *const u16) -> Self;

    /// The first `n <= LANES` elements from `p`, zero in the other lanes.
    ///
    /// # Safety
    /// The processor has the instruction set; `p` is readable for `n` elements (no more is read).
    unsafe fn load_partial(p: *const u16, n: usize) -> Self;

    /// Writes all lanes to `p`, at any alignment.
    ///
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store(self, p: *mut u16);

    /// Writes the first `n <= LANES` lanes to `p`.
    ///
    /// # Safety
    /// `p` is writable for `n` elements (no more is written).
    unsafe fn store_partial(self, p: *mut u16, n: usize);

    /// Writes all lanes past the cache, as [`Vector::stream`] does.
    ///
    /// # Safety
    /// As [`Bits16::store`], and `p` is aligned to the size of the lanes.
    #[inline(always)]
    unsafe fn stream(self, p: *mut u16) {
        // SAFETY: this contract contains that of `store`.
        unsafe { self.store(p) };
    }

    /// The value of each lane, read as an `f16`.
    fn widen_f16(self) -> Self::Float;

    /// The value of each lane, read as a `bf16`.
    fn widen_bf16(self) -> Self::Float;

    /// Each lane rounded to an `f16`.
    fn narrow_f16(float: Self::Float) -> Self;

    /// Each lane rounded to a `bf16`.
    fn narrow_bf16(float: Self::Float) -> Self;
}

/// `n < 8` elements from `p`, zeros after them, in the order of a little-endian register.
///
/// # Safety
/// `p` is readable for `n` elements.
#[inline(always)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) unsafe fn gather(p: *const u16, n: usize) -> [u64; 2] {
    // SAFETY: each part is counted by a bit of `n`; the parts lie one after the other.
    unsafe {
        let (mut rest, mut at) = (0, p.add(n & 4));
        if n & 2 != 0 {
            rest = u64::from(at.cast::<u32>().read_unaligned());
            at = at.add(2);
        }
        if n & 1 != 0 {
            rest |= u64::from(at.read_unaligned()) << (16 * (n & 2));
        }
        if n & 4 != 0 { [p.cast::<u64>().read_unaligned(), rest] } else { [rest, 0] }
    }
}

/// Writes the first `n < 8` elements of what [`gather`] gives.
///
/// # Safety
/// `p` is writable for `n` elements.
#[inline(always)]
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) unsafe fn scatter([low, high]: [u64; 2], p: *mut u16, n: usize) {
    // SAFETY: as in `gather`.
    unsafe {
        let (mut rest, mut at) = (low, p);
        if n & 4 != 0 {
            at.cast::<u64>().write_unaligned(rest);
            (rest, at) = (high, at.add(4));
        }
        if n & 2 != 0 {
            at.cast::<u32>().write_unaligned(rest as u32);
            (rest, at) = (rest >> 32, at.add(2));
        }
        if n & 1 != 0 {
            at.write_unaligned(rest as u16);
        }
    }
}

/// Bits of an infinite `f32`.
const INFINITE: u32 = 0x7f80_0000;

/// The bit of an `f32` that makes a NaN quiet.
const QUIET: u32 = 0x0040_0000;

/// The bits of the `f32` that is 2 to the power of `exponent`.
const fn power(exponent: i32) -> u32 {
    ((127 + exponent) as u32) << 23
}

/// The value of an `f16`.
#[inline(always)]
pub(crate) fn widen_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    // Exponent and fraction where an `f32` has them, the exponent with its own bias still.
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let widened = if magnitude >= 0x7c00 << 13 {
        let quiet = if magnitude > 0x7c00 << 13 { QUIET } else { 0 };
        magnitude | INFINITE | quiet
    } else if magnitude >= 0x0400 << 13 {
        magnitude + (power(112) - power(0))
    } else {
        // A subnormal is its fraction times 2⁻²⁴, so 2⁻¹⁴ with that fraction is 2⁻¹⁴ too much.
        (f32::from_bits(magnitude + power(-14)) - f32::from_bits(power(-14))).to_bits()
    };
    f32::from_bits(sign | widened)
}

/// The `f16` nearest to `value`, of two as near the even one.
#[inline(always)]
pub(crate) fn narrow_f16(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let narrowed = if magnitude > INFINITE {
        (0x7e00 | (magnitude >> 13) & 0x03ff) as u16
    } else if magnitude >= power(16) {
        0x7c00
    } else if magnitude < power(-14) {
        // The last digit of 1/2 is 2⁻²⁴, that of a subnormal: the sum rounds to it.
        let sum = f32::from_bits(magnitude) + f32::from_bits(power(-1));
        (sum.to_bits() - power(-1)) as u16
    } else {
        // Carries go into the exponent, and from the largest number to infinity.
        let even = (magnitude >> 13) & 1;
        ((magnitude - (power(112) - power(0)) + 0x0fff + even) >> 13) as u16
    };
    sign | narrowed
}

/// The value of a `bf16`.
#[inline(always)]
pub(crate) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The `bf16` nearest to `value`, of two as near the even one.
#[inline(always)]
pub(crate) fn narrow_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Rounding could carry the payload into the sign.
        return ((bits | QUIET) >> 16) as u16;
    }
    let even = (bits >> 16) & 1;
    ((bits + 0x7fff + even) >> 16) as u16
}

/// `value` as an `f32` that narrows to what `value` itself would: cut off, and made odd where that
/// changed it, so that it is on the right side of every tie ("round to odd": Boldo & Melquiond 2008,
/// "Emulation of FMA and correctly rounded sums").
pub(crate) fn round_to_odd(value: f64) -> f32 {
    let near = value as f32;
    let bits = near.to_bits();
    // An infinite one is beyond all ties already, and NaN has none.
    if f64::from(near) == value || !near.is_finite() {
        return near;
    }
    let cut = if f64::from(near).abs() > value.abs() { bits - 1 } else { bits };
    f32::from_bits(cut | 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    /// All values of a format from 0 to infinity, in order; the numbers as `f64`.
    fn values(widen: impl Fn(u16) -> f64, infinity: u16) -> Vec<(u16, f64)> {
        (0..=infinity).map(|bits| (bits, widen(bits))).collect()
    }

    /// Whether narrowing is right at, between and around all neighbours.
    fn check(narrow: impl Fn(f64) -> u16, widen: impl Fn(u16) -> f64, infinity: u16) {
        let values = values(widen, infinity);
        for pair in values.windows(2) {
            let [(low, a), (high, b)] = [pair[0], pair[1]];
            // Beyond the largest number the next one would be as far off as the one before.
            let b = if b.is_finite() { b } else { a + (a - values[usize::from(low) - 1].1) };
            let tie = a + (b - a) / 2.0;
            let even = if low % 2 == 0 { low } else { high };
            for (value, expected) in [
                (a, low),
                (tie.next_down(), low),
                (tie, even),
                (tie.next_up(), high),
                (b.next_down(), high),
            ] {
                assert_eq!(narrow(value), expected, "{value:e}");
                assert_eq!(narrow(-value), expected | 0x8000, "-{value:e}");
            }
        }
        assert_eq!(narrow(f64::INFINITY), infinity);
        assert_eq!(narrow(f64::MAX), infinity);
        assert_eq!(narrow(5e-324), 0);
    }

    #[test]
    fn float64_is_rounded_once() {
        check(|x| narrow_f16(round_to_odd(x)), |bits| f16::from_bits(bits).into(), 0x7c00);
        check(|x| narrow_bf16(round_to_odd(x)), |bits| bf16::from_bits(bits).into(), 0x7f80);
        assert!(round_to_odd(f64::NAN).is_nan());
    }

    #[test]
    fn widening_is_that_of_the_crate_half() {
        for bits in 0..=u16::MAX {
            let pairs = [
                (widen_f16(bits), f16::from_bits(bits).to_f32()),
                (widen_bf16(bits), bf16::from_bits(bits).to_f32()),
            ];
            for (ours, theirs) in pairs {
                assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan());
            }
        }
    }
}
