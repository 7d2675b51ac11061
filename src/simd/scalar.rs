//! The portable level: arrays of sixteen, left to the compiler. Also the oracle of the others.

use super::{Bits16, Double, EXPONENT, Kernel, LANES, Simd, Vector, bits16};
use std::ops::{Add, Div, Mul, Sub};

/// The token of portable code, which every processor runs.
#[derive(Clone, Copy)]
pub struct Scalar;

impl Simd for Scalar {
    type F32 = Lanes<f32>;
    type F64 = Lanes<f64>;
    type U16 = Bits;
    const STREAMS: bool = false;

    #[inline(never)]
    unsafe fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: handed on to the caller.
        unsafe { kernel.run(self) }
    }
}

/// Sixteen lanes as an array.
#[derive(Clone, Copy)]
pub struct Lanes<T>([T; LANES]);

macro_rules! operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl<T: Copy + $trait<Output = T>> $trait for Lanes<T> {
            type Output = Self;
            #[inline(always)]
            fn $method(mut self, other: Self) -> Self {
                for (a, b) in self.0.iter_mut().zip(other.0) {
                    *a = *a $op b;
                }
                self
            }
        }
    };
}
operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

/// What `f` makes of each lane. It is a loop because the compiler now and then leaves the inside of
/// `array::map` as calls, one a lane.
#[inline(always)]
fn each<T: Copy, U: Copy + Default>(lanes: [T; LANES], f: impl Fn(T) -> U) -> [U; LANES] {
    let mut results = [U::default(); LANES];
    for i in 0..LANES {
        results[i] = f(lanes[i]);
    }
    results
}

/// Rounding from `f64`.
trait Narrow {
    fn narrow(wide: f64) -> Self;
}

impl Narrow for f32 {
    #[inline(always)]
    fn narrow(wide: f64) -> f32 {
        wide as f32
    }
}

impl Narrow for f64 {
    #[inline(always)]
    fn narrow(wide: f64) -> f64 {
        wide
    }
}

impl Double for Lanes<f64> {
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Lanes(each(self.0, |x| f64::from_bits((x + EXPONENT).to_bits() << 52)))
    }
}

// SAFETY (all of the impl): no instruction set is asked for, and no more than the elements that the
// caller vouched for are touched.
impl<T> Vector for Lanes<T>
where
    T: Copy + Default + Into<f64> + Narrow + PartialOrd,
    T: Add<Output = T> + Sub<Output = T> + Mul<Output = T> + Div<Output = T>,
{
    type Scalar = T;
    type Wide = Lanes<f64>;
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        Lanes([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(p: *const T) -> Self {
        // SAFETY: see the impl; an array of `T` at any alignment of its bytes.
        Lanes(unsafe { p.cast::<[T; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const T, n: usize) -> Self {
        let mut lanes = [T::default(); LANES];
        // SAFETY: see the impl; `n <= LANES`.
        unsafe { p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n) };
        Lanes(lanes)
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut T) {
        // SAFETY: see the impl.
        unsafe { p.cast::<[T; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut T, n: usize) {
        // SAFETY: see the impl; `n <= LANES`.
        unsafe { p.copy_from_nonoverlapping(self.0.as_ptr(), n) };
    }

    #[inline(always)]
    fn widen(self) -> Lanes<f64> {
        Lanes(each(self.0, Into::into))
    }

    #[inline(always)]
    fn narrow(wide: Lanes<f64>) -> Self {
        Lanes(each(wide.0, T::narrow))
    }

    #[inline(always)]
    fn select_less(a: Self, b: Self, then: Self, mut otherwise: Self) -> Self {
        for i in 0..LANES {
            if a.0[i] < b.0[i] {
                otherwise.0[i] = then.0[i];
            }
        }
        otherwise
    }

    #[inline(always)]
    fn select(bits: u16, first: usize, then: Self, mut otherwise: Self) -> Self {
        for i in 0..LANES {
            if bits >> (first + i) & 1 == 1 {
                otherwise.0[i] = then.0[i];
            }
        }
        otherwise
    }

    #[inline(always)]
    fn is_zero(self) -> bool {
        let mut zeros = 0;
        for i in 0..LANES {
            zeros += usize::from(self.0[i] == T::default());
        }
        zeros == LANES
    }

    #[inline(always)]
    fn add_exact_product(self, a: Self, b: Self) -> Self {
        self + a * b
    }
}

/// Sixteen numbers of 16 bits as an array.
#[derive(Clone, Copy)]
pub struct Bits([u16; LANES]);

// SAFETY (all of the impl): as for `Lanes`.
impl Bits16 for Bits {
    type Float = Lanes<f32>;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        // SAFETY: see the impl.
        Bits(unsafe { p.cast::<[u16; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const u16, n: usize) -> Self {
        let mut lanes = [0; LANES];
        // SAFETY: see the impl; `n <= LANES`.
        unsafe { p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n) };
        Bits(lanes)
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut u16, n: usize) {
        // SAFETY: see the impl; `n <= LANES`.
        unsafe { p.copy_from_nonoverlapping(self.0.as_ptr(), n) };
    }

    #[inline(never)]
    fn widen_f16(self) -> Lanes<f32> {
        Lanes(each(self.0, bits16::widen_f16))
    }

    #[inline(never)]
    fn widen_bf16(self) -> Lanes<f32> {
        Lanes(each(self.0, bits16::widen_bf16))
    }

    #[inline(never)]
    fn narrow_f16(float: Lanes<f32>) -> Self {
        Bits(each(float.0, bits16::narrow_f16))
    }

    #[inline(never)]
    fn narrow_bf16(float: Lanes<f32>) -> Self {
        Bits(each(float.0, bits16::narrow_bf16))
    }
}

#[cfg(test)]
mod tests {
    conforms!(super::super::Level::Scalar);
}
