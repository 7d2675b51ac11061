//! `Σ dy` and `Σ dy · (x - c)`, with `c` the mean of the channel, or zero if that is near.

use super::reduce::Terms;
use crate::element::Element;
use crate::moments::Moments;
use crate::simd::{Simd, Vector};
use crate::view::View;
use std::ops::Range;

/// Variances that the square of a mean near zero is: `dy · x` is then not much larger than `dy · (x -
/// mean)`, and its sum loses little more.
const NEAR: f64 = 1.0;

/// The terms of gradient sums.
#[derive(Clone, Copy)]
pub(crate) struct GradTerms<'a, E> {
    /// Gradient with respect to the output.
    pub(crate) dy: *const E,
    /// Input of the forward pass.
    pub(crate) x: *const E,
    /// The statistics that the forward pass normalised with.
    pub(crate) moments: &'a Moments,
}

// SAFETY: the pointers are only read through `factors`, whose caller vouches for the memory.
unsafe impl<E: Sync> Sync for GradTerms<'_, E> {}

impl<E: Element> Terms for GradTerms<'_, E> {
    const EXACT: bool = E::EXACT_PRODUCTS;

    #[inline(always)]
    unsafe fn centers<S: Simd>(self, _: S, _: &View, channels: Range<usize>, centers: &mut [f64]) {
        let count = self.moments.count() as f64;
        let (mean, m2) = (&self.moments.mean()[channels.clone()], &self.moments.m2()[channels]);
        for ((center, &mean), &m2) in centers.iter_mut().zip(mean).zip(m2) {
            let near = Self::EXACT && mean * mean * count <= NEAR * m2;
            *center = if near { 0.0 } else { mean };
        }
    }

    /// A sum about zero does not move to the mean if `dy` is infinite somewhere.
    fn recenter(self, channels: Range<usize>, values: &[f64], centers: &mut [f64]) -> bool {
        let mut moved = false;
        for ((center, &mean), sum_dy) in
            centers.iter_mut().zip(&self.moments.mean()[channels]).zip(values)
        {
            if !sum_dy.is_finite() && center.to_bits() != mean.to_bits() {
                (*center, moved) = (mean, true);
            }
        }
        moved
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        simd.prefetch(self.dy.wrapping_add(at));
        simd.prefetch(self.x.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn factors<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        center: Option<S::F64>,
    ) -> [S::F64; 2] {
        // SAFETY: the caller vouches for `n` elements of both at `at`.
        let (dy, x) =
            unsafe { (E::load(simd, self.dy.add(at), n), E::load(simd, self.x.add(at), n)) };
        let x = x.widen();
        let deviation = match center {
            Some(center) => x - center,
            None => x,
        };
        [dy.widen(), deviation]
    }
}
