//! `dz = activation'(z) dy`, with `z = (x - mean) * scale + bias + residual` as in forward: the
//! gradient with respect to what the activation was applied to.

use super::Fetch;
use super::map::{Map, Table};
use crate::element::{self, Element, RealVector};
use crate::epilogue::{Gate, Stage, Then};
use crate::simd::Simd;

/// The expression of the gradient through an activation.
#[derive(Clone, Copy)]
pub(crate) struct GateMap<E> {
    /// Gradient with respect to the output.
    pub(crate) dy: *const E,
    /// Input of the forward pass.
    pub(crate) x: *const E,
    /// What came after normalisation.
    pub(crate) then: Then<E, Gate>,
    /// Gradient with respect to `z`.
    pub(crate) dz: *mut E,
}

// SAFETY: the pointers are only used by the loops of `map`, whose callers vouch for the memory and
// for no two threads sharing a part of the output.
unsafe impl<E: Sync> Sync for GateMap<E> {}

impl<E: Element> Map for GateMap<E> {
    type Element = E;
    type Coefficients<S: Simd> = [RealVector<S, E>; 4];
    const COEFFICIENTS: usize = 4;

    #[inline(always)]
    fn inputs(self) -> usize {
        2 + Stage::<E>::inputs(self.then)
    }

    #[inline(always)]
    fn in_place(self) -> bool {
        let dz = self.dz.cast_const();
        self.dy == dz || self.x == dz || self.then.residual == dz
    }

    #[inline(always)]
    fn output(self) -> *mut E {
        self.dz
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        element::prefetch(simd, self.dy.wrapping_add(at));
        element::prefetch(simd, self.x.wrapping_add(at));
        Stage::<E>::prefetch(self.then, simd, at);
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
            let (dy, x) = (E::load(simd, self.dy.add(at), n), E::load(simd, self.x.add(at), n));
            let z = self.then.sum(simd, at, n, (x - high - low) * scale + bias);
            self.then.function.backward(z, dy)
        }
    }
}
