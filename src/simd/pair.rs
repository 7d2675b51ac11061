//! Two vectors as one of twice the lanes: the low half first in memory. Pairs of pairs make sixteen
//! lanes out of any register.

#[cfg(target_arch = "aarch64")]
use super::Bits16;
use super::{Double, Vector};
use std::ops::{Add, Div, Mul, Sub};

/// Two halves, the low lanes first.
#[derive(Clone, Copy)]
pub struct Pair<V>(pub V, pub V);

impl<V: Add<Output = V>> Add for Pair<V> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Pair(self.0 + other.0, self.1 + other.1)
    }
}

impl<V: Sub<Output = V>> Sub for Pair<V> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Pair(self.0 - other.0, self.1 - other.1)
    }
}

impl<V: Mul<Output = V>> Mul for Pair<V> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Pair(self.0 * other.0, self.1 * other.1)
    }
}

impl<V: Div<Output = V>> Div for Pair<V> {
    type Output = Self;
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Pair(self.0 / other.0, self.1 / other.1)
    }
}

impl<V: Double> Double for Pair<V> {
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Pair(self.0.power_of_two(), self.1.power_of_two())
    }
}

// SAFETY (all of the impl): each half is handed its own part of what the caller vouched for: the
// low half the first `V::LANES` elements, the high half the rest, and of `n` elements at most as
// many as each holds.
impl<V: Vector> Vector for Pair<V> {
    type Scalar = V::Scalar;
    type Wide = Pair<V::Wide>;
    const LANES: usize = 2 * V::LANES;

    #[inline(always)]
    unsafe fn splat(value: V::Scalar) -> Self {
        // SAFETY: see the impl.
        let half = unsafe { V::splat(value) };
        Pair(half, half)
    }

    #[inline(always)]
    unsafe fn load(p: *const V::Scalar) -> Self {
        // SAFETY: see the impl.
        unsafe { Pair(V::load(p), V::load(p.add(V::LANES))) }
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const V::Scalar, n: usize) -> Self {
        let low = n.min(V::LANES);
        // SAFETY: see the impl; `p + low` is at most one past the `n` readable elements.
        unsafe { Pair(V::load_partial(p, low), V::load_partial(p.add(low), n - low)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut V::Scalar) {
        // SAFETY: see the impl.
        unsafe {
            self.0.store(p);
            self.1.store(p.add(V::LANES));
        }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut V::Scalar, n: usize) {
        let low = n.min(V::LANES);
        // SAFETY: see the impl; `p + low` is at most one past the `n` writable elements.
        unsafe {
            self.0.store_partial(p, low);
            self.1.store_partial(p.add(low), n - low);
        }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut V::Scalar) {
        // SAFETY: see the impl; half a vector on from an aligned address is aligned to the size of
        // half a vector.
        unsafe {
            self.0.stream(p);
            self.1.stream(p.add(V::LANES));
        }
    }

    #[inline(always)]
    fn widen(self) -> Self::Wide {
        Pair(self.0.widen(), self.1.widen())
    }

    #[inline(always)]
    fn narrow(wide: Self::Wide) -> Self {
        Pair(V::narrow(wide.0), V::narrow(wide.1))
    }

    #[inline(always)]
    fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
        Pair(
            V::select_less(a.0, b.0, then.0, otherwise.0),
            V::select_less(a.1, b.1, then.1, otherwise.1),
        )
    }

    #[inline(always)]
    fn select(bits: u16, first: usize, then: Self, otherwise: Self) -> Self {
        Pair(
            V::select(bits, first, then.0, otherwise.0),
            V::select(bits, first + V::LANES, then.1, otherwise.1),
        )
    }

    #[inline(always)]
    fn is_zero(self) -> bool {
        self.0.is_zero() & self.1.is_zero()
    }

    #[inline(always)]
    fn add_exact_product(self, a: Self, b: Self) -> Self {
        Pair(self.0.add_exact_product(a.0, b.0), self.1.add_exact_product(a.1, b.1))
    }
}

// SAFETY (all of the impl): as for vectors.
#[cfg(target_arch = "aarch64")]
impl<V: Bits16> Bits16 for Pair<V> {
    type Float = Pair<V::Float>;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe { Pair(V::load(p), V::load(p.add(V::Float::LANES))) }
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const u16, n: usize) -> Self {
        let low = n.min(V::Float::LANES);
        // SAFETY: see the impl; `p + low` is at most one past the `n` readable elements.
        unsafe { Pair(V::load_partial(p, low), V::load_partial(p.add(low), n - low)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe {
            self.0.store(p);
            self.1.store(p.add(V::Float::LANES));
        }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut u16, n: usize) {
        let low = n.min(V::Float::LANES);
        // SAFETY: see the impl; `p + low` is at most one past the `n` writable elements.
        unsafe {
            self.0.store_partial(p, low);
            self.1.store_partial(p.add(low), n - low);
        }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut u16) {
        // SAFETY: see the impl; half the lanes on from an aligned address is aligned to the size of
        // half the lanes.
        unsafe {
            self.0.stream(p);
            self.1.stream(p.add(V::Float::LANES));
        }
    }

    #[inline(always)]
    fn widen_f16(self) -> Self::Float {
        Pair(self.0.widen_f16(), self.1.widen_f16())
    }

    #[inline(always)]
    fn widen_bf16(self) -> Self::Float {
        Pair(self.0.widen_bf16(), self.1.widen_bf16())
    }

    #[inline(always)]
    fn narrow_f16(float: Self::Float) -> Self {
        Pair(V::narrow_f16(float.0), V::narrow_f16(float.1))
    }

    #[inline(always)]
    fn narrow_bf16(float: Self::Float) -> Self {
        Pair(V::narrow_bf16(float.0), V::narrow_bf16(float.1))
    }
}
