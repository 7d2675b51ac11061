//! `y = stage((x - mean) * scale + bias)`, the mean subtracted as a high and a low part.
//!
//! `x - high` is exact where the two are close, which is where the difference is small; the low
//! part then brings the digits of the mean that one `f32` does not hold.

use super::Fetch;
use super::map::{Map, Table};
use crate::affine;
use crate::element::{self, Element, Real, RealVector};
use crate::epilogue::Stage;
use crate::simd::Simd;

/// The expression of the forward pass.
#[derive(Clone, Copy)]
pub(crate) struct Apply<E, P> {
    /// Input.
    pub(crate) x: *const E,
    /// Output.
    pub(crate) y: *mut E,
    /// What comes after.
    pub(crate) stage: P,
}

// SAFETY: the pointers are only used by the loops of `map`, whose callers vouch for the memory and
// for no two threads sharing a part of the output.
unsafe impl<E: Sync, P: Sync> Sync for Apply<E, P> {}

/// What the expression needs of each channel.
#[inline(always)]
pub(crate) fn coefficients<R: Real>(mean: f64, scale: f64, bias: f64) -> [R; 4] {
    let [high, low] = affine::split(mean);
    [high, low, affine::factor(scale), R::from_f64(bias)]
}

impl<E: Element, P: Stage<E>> Map for Apply<E, P> {
    type Element = E;
    type Coefficients<S: Simd> = [RealVector<S, E>; 4];
    const COEFFICIENTS: usize = 4;
    const LONG: bool = P::LONG;

    #[inline(always)]
    fn inputs(self) -> usize {
        1 + self.stage.inputs()
    }

    #[inline(always)]
    fn in_place(self) -> bool {
        let y = self.y.cast_const();
        self.x == y || self.stage.residual() == y
    }

    #[inline(always)]
    fn output(self) -> *mut E {
        self.y
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        element::prefetch(simd, self.x.wrapping_add(at));
        self.stage.prefetch(simd, at);
    }

    #[inline(always)]
    unsafe fn coefficients<S: Simd>(
        _: S,
        table: Table<E::Real>,
        fetch: Fetch,
    ) -> Self::Coefficients<S> {
        // SAFETY: the caller vouches for four coefficients.
        unsafe { fetch.vectors(table.first, table.pitch) }
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        &[high, low, scale, bias]: &Self::Coefficients<S>,
    ) -> RealVector<S, E> {
        // SAFETY: the caller vouches for `n` elements of the inputs at `at`.
        unsafe {
            let x = E::load(simd, self.x.add(at), n);
            self.stage.forward(simd, at, n, (x - high - low) * scale + bias)
        }
    }
}
