//! `Σ (x - p)` and `Σ (x - p)²` about a pivot `p`.

use super::reduce::Terms;
use crate::element::{self, Element, Real, RealVector};
use crate::mask::{Batch, spread};
use crate::moments::{CANDIDATES, pivots};
use crate::simd::{LANES, Simd, Vector};
use crate::view::View;
use std::ops::Range;

/// The terms of batch statistics; the centre is the pivot.
#[derive(Clone, Copy)]
pub(crate) struct MomentTerms<E> {
    x: *const E,
    /// The positions that a pivot is found in.
    members: [(usize, usize); CANDIDATES],
}

impl<E> MomentTerms<E> {
    /// Of a batch in which a position counts.
    pub(crate) fn new(Batch { view, mask }: Batch<'_>, x: *const E) -> Self {
        let members = match mask {
            Some(mask) => mask.members(),
            None => spread(view.count()).map(|at| (at / view.inner, at % view.inner)),
        };
        MomentTerms { x, members }
    }
}

// SAFETY: the pointer is only read by the methods of `Terms`, whose callers vouch for the memory.
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
        let first = channels.start;
        let members = self
            .members
            .map(|(outer, inner)| self.x.wrapping_add(view.offset(outer, first, inner)));
        // Lanes beyond the last channel keep what was there; their pivots are not used.
        let mut values = [[0.0; LANES]; CANDIDATES];
        for (group, centers) in centers.chunks_mut(LANES).enumerate() {
            let (first, n) = (group * LANES * view.inner, centers.len());
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
        element::prefetch(simd, self.x.wrapping_add(at));
    }

    #[inline(always)]
    unsafe fn factors<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        center: Option<S::F64>,
        counted: Option<u16>,
    ) -> [S::F64; 2] {
        // SAFETY: the caller vouches for `n` elements at `at`; the token is held.
        let mut x = unsafe { E::load(simd, self.x.add(at), n) };
        if let Some(bits) = counted {
            // A pivot is an element or zero, so nothing is lost by narrowing it.
            x = RealVector::<S, E>::select(
                bits,
                0,
                x,
                match center {
                    Some(center) => RealVector::<S, E>::narrow(center),
                    // SAFETY: as above.
                    None => unsafe { RealVector::<S, E>::splat(E::Real::from_f64(0.0)) },
                },
            );
        }
        let x = x.widen();
        let deviation = match center {
            Some(center) => x - center,
            None => x,
        };
        [deviation, deviation]
    }

    #[inline(always)]
    unsafe fn adds_nothing<S: Simd>(self, _: S, _: usize, _: usize) -> bool {
        true
    }
}
