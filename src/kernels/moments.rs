//! `Σ (x - p)` and `Σ (x - p)²` about a pivot `p`.

use super::reduce::Terms;
use crate::element::Element;
use crate::simd::{Simd, Vector};

/// The terms of batch statistics; the centre is the pivot.
#[derive(Clone, Copy)]
pub(crate) struct MomentTerms<E>(pub(crate) *const E);

// SAFETY: the pointer is only read through `terms`, whose caller vouches for the memory.
unsafe impl<E: Sync> Sync for MomentTerms<E> {}

impl<E: Element> MomentTerms<E> {
    /// The element at offset `at`.
    ///
    /// # Safety
    /// The input holds it.
    pub(crate) unsafe fn element(self, at: usize) -> f64 {
        // SAFETY: the caller vouches for it.
        unsafe { *self.0.add(at) }.widen()
    }
}

impl<E: Element> Terms for MomentTerms<E> {
    #[inline(always)]
    unsafe fn terms<S: Simd>(self, simd: S, at: usize, n: usize, center: S::F64) -> [S::F64; 2] {
        // SAFETY: the caller vouches for `n` elements at `at`.
        let x = unsafe { E::load(simd, self.0.add(at), n) };
        let deviation = x.widen() - center;
        [deviation, deviation * deviation]
    }
}
