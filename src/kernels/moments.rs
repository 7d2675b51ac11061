//! `Σ (x - p)` and `Σ (x - p)²` about a pivot `p`.

use super::reduce::Terms;
use crate::element::Element;
use crate::moments::{CANDIDATES, pivots};
use crate::simd::{LANES, Simd, Vector};
use crate::view::View;
use std::ops::Range;

/// The terms of batch statistics; the centre is the pivot.
#[derive(Clone, Copy)]
pub(crate) struct MomentTerms<E>(pub(crate) *const E);

// SAFETY: the pointer is only read through `terms`, whose caller vouches for the memory.
unsafe impl<E: Sync> Sync for MomentTerms<E> {}

impl<E: Element> Terms for MomentTerms<E> {
    const EXACT: bool = E::EXACT_PRODUCTS;

    /// A pivot for each channel, out of members of it from the first to the last, or zero.
    #[inline(always)]
    unsafe fn centers<S: Simd>(
        self,
        simd: S,
        view: &View,
        channels: Range<usize>,
        centers: &mut [f64],
    ) {
        let last = view.count() - 1;
        let members: [*const E; CANDIDATES] = std::array::from_fn(|i| {
            // Whole steps first: the product of a count and a number could overflow.
            let at = last / (CANDIDATES - 1) * i + last % (CANDIDATES - 1) * i / (CANDIDATES - 1);
            let offset = view.offset(at / view.inner, channels.start, at % view.inner);
            self.0.wrapping_add(offset)
        });
        for (group, centers) in centers.chunks_mut(LANES).enumerate() {
            let (first, n) = (group * LANES * view.inner, centers.len());
            let mut values = [[0.0; LANES]; CANDIDATES];
            for (values, member) in values.iter_mut().zip(members) {
                // SAFETY: the same element of each channel, which the caller vouches for; the token
                // is held.
                unsafe {
                    if view.inner == 1 {
                        E::load(simd, member.add(first), n).widen().store(values.as_mut_ptr());
                        continue;
                    }
                    for (i, value) in values[..n].iter_mut().enumerate() {
                        *value = (*member.add(first + i * view.inner)).widen();
                    }
                }
            }
            centers.copy_from_slice(&pivots(&values, Self::EXACT)[..n]);
        }
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        simd.prefetch(self.0.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn factors<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        center: Option<S::F64>,
    ) -> [S::F64; 2] {
        // SAFETY: the caller vouches for `n` elements at `at`.
        let x = unsafe { E::load(simd, self.0.add(at), n) }.widen();
        let deviation = match center {
            Some(center) => x - center,
            None => x,
        };
        [deviation, deviation]
    }
}
