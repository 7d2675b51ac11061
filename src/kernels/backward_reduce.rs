//! `Σ dy` and `Σ dy · (x - mean)`.

use super::reduce::Terms;
use crate::element::Element;
use crate::simd::{Simd, Vector};
use crate::view::View;
use std::ops::Range;

/// The terms of gradient sums; the centre is the mean.
#[derive(Clone, Copy)]
pub(crate) struct GradTerms<'a, E> {
    /// Gradient with respect to the output.
    pub(crate) dy: *const E,
    /// Input of the forward pass.
    pub(crate) x: *const E,
    /// Mean of each channel that was subtracted in the forward pass.
    pub(crate) mean: &'a [f64],
}

// SAFETY: the pointers are only read through `terms`, whose caller vouches for the memory.
unsafe impl<E: Sync> Sync for GradTerms<'_, E> {}

impl<E: Element> Terms for GradTerms<'_, E> {
    #[inline(always)]
    unsafe fn centers(self, _: &View, channels: Range<usize>, centers: &mut [f64]) {
        centers.copy_from_slice(&self.mean[channels]);
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        simd.prefetch(self.dy.wrapping_add(at));
        simd.prefetch(self.x.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn terms<S: Simd>(self, simd: S, at: usize, n: usize, center: S::F64) -> [S::F64; 2] {
        // SAFETY: the caller vouches for `n` elements of both at `at`.
        let (dy, x) =
            unsafe { (E::load(simd, self.dy.add(at), n), E::load(simd, self.x.add(at), n)) };
        let dy = dy.widen();
        [dy, dy * (x.widen() - center)]
    }
}
