//! `dx = scale * (dy - mean_dy - (x - mean) * slope)`, with `mean_dy = Σdy / n` and `slope =
//! invstd² · Σ dy (x - mean) / n` (Ioffe & Szegedy 2015, the gradients of section 3, collected).
//!
//! Elements that do not count are constants to the statistics: `dx = scale * dy`.
//!
//! Both means are subtracted as a high and a low part, since what remains of `dy` can be much smaller
//! than its mean; the low parts are small enough to go together, as `rest = slope * low - dy_low`.

use super::Fetch;
use super::map::{Map, Table};
use crate::affine;
use crate::element::{self, Element, Real, RealVector};
use crate::simd::Simd;

/// The expression of the backward pass through batch statistics.
#[derive(Clone, Copy)]
pub(crate) struct BackwardApply<E> {
    /// Gradient with respect to the output.
    pub(crate) dy: *const E,
    /// Input of the forward pass.
    pub(crate) x: *const E,
    /// Gradient with respect to the input.
    pub(crate) dx: *mut E,
}

// SAFETY: the pointers are only used by the loops of `map`, whose callers vouch for the memory and
// for no two threads sharing a part of the output.
unsafe impl<E: Sync> Sync for BackwardApply<E> {}

/// What the expression needs of each channel.
#[inline(always)]
pub(crate) fn coefficients<R: Real>(mean: f64, mean_dy: f64, slope: f64, scale: f64) -> [R; 5] {
    let [high, low] = affine::split::<R>(mean);
    let [dy_high, dy_low] = affine::split::<R>(mean_dy);
    let slope = affine::factor::<R>(slope);
    let rest = slope.to_f64() * low.to_f64() - dy_low.to_f64();
    // What an infinite slope makes of a difference does not depend on so little.
    let rest = if rest.is_finite() { rest } else { 0.0 };
    [high, dy_high, affine::factor(rest), slope, affine::factor(scale)]
}

impl<E: Element> Map for BackwardApply<E> {
    type Element = E;
    type Coefficients<S: Simd> = [RealVector<S, E>; 5];
    const COEFFICIENTS: usize = 5;
    const MASKED: bool = true;

    #[inline(always)]
    fn inputs(self) -> usize {
        2
    }

    #[inline(always)]
    fn in_place(self) -> bool {
        let dx = self.dx.cast_const();
        self.dy == dx || self.x == dx
    }

    #[inline(always)]
    fn output(self) -> *mut E {
        self.dx
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        element::prefetch(simd, self.dy.wrapping_add(at));
        element::prefetch(simd, self.x.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn coefficients<S: Simd>(
        _: S,
        table: Table<E::Real>,
        fetch: Fetch,
    ) -> Self::Coefficients<S> {
        // SAFETY: the caller vouches for five coefficients.
        unsafe { fetch.vectors(table.first, table.pitch) }
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        &[high, dy_high, rest, slope, scale]: &Self::Coefficients<S>,
    ) -> RealVector<S, E> {
        // SAFETY: the caller vouches for `n` elements of both at `at`.
        let (dy, x) =
            unsafe { (E::load(simd, self.dy.add(at), n), E::load(simd, self.x.add(at), n)) };
        (dy - dy_high + rest - (x - high) * slope) * scale
    }

    /// The statistics do not depend on it.
    #[inline(always)]
    unsafe fn uncounted<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        &[.., scale]: &Self::Coefficients<S>,
    ) -> RealVector<S, E> {
        // SAFETY: the caller vouches for `n` elements at `at`.
        unsafe { E::load(simd, self.dy.add(at), n) * scale }
    }
}
