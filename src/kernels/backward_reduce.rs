//! `Σ dy` and `Σ dy · (x - c)`, with `c` the mean of the channel, or zero if that is near.

use super::reduce::Terms;
use crate::element::{self, Element, Real, RealVector};
use crate::moments::Moments;
use crate::simd::{Simd, Vector};
use crate::view::View;
use std::ops::Range;

/// Variances that the square of a mean near zero is at most, which makes two standard deviations: `dy · x` is
/// then about three times as large as `dy · (x - mean)`, and its sum loses about as much as the rounding of a mean
/// twice as far away costs. (Sums of squares lose more; see [`crate::moments`].)
const NEAR: f64 = 4.0;

/// The terms of gradient sums.
#[derive(Clone, Copy)]
pub(crate) struct GradTerms<'a, E> {
    /// Gradient with respect to the output.
    pub(crate) dy: *const E,
    /// Input of the forward pass.
    pub(crate) x: *const E,
    /// The statistics that the forward pass normalised with.
    pub(crate) moments: &'a Moments,
    /// Whether some positions do not count.
    masked: bool,
    /// Whether `x` may be anything where it does not count and `dy` is zero. A number there adds zero by
    /// itself, so sums are first made without looking.
    anything: bool,
}

impl<'a, E> GradTerms<'a, E> {
    /// Of these arrays.
    pub(crate) fn new(dy: *const E, x: *const E, moments: &'a Moments, masked: bool) -> Self {
        GradTerms { dy, x, moments, masked, anything: false }
    }
}

// SAFETY: the pointers are only read by the methods of `Terms`, whose callers vouch for the memory.
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

    /// A sum about zero does not move to the mean if `dy` is infinite somewhere; and what is no number,
    /// or infinite, may have come from where it does not count.
    fn again(
        mut self,
        channels: Range<usize>,
        [values, products]: [&[f64]; 2],
        centers: &mut [f64],
    ) -> Option<Self> {
        let mut again = false;
        let sums = values.iter().zip(products);
        for ((center, &mean), (sum_dy, sum_dy_xc)) in
            centers.iter_mut().zip(&self.moments.mean()[channels]).zip(sums)
        {
            if !sum_dy.is_finite() && center.to_bits() != mean.to_bits() {
                (*center, again) = (mean, true);
            }
            again |= self.masked && !sum_dy_xc.is_finite();
        }
        self.anything = self.masked;
        again.then_some(self)
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        element::prefetch(simd, self.dy.wrapping_add(at));
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
        // SAFETY: the caller vouches for `n` elements of both at `at`.
        let (dy, x) =
            unsafe { (E::load(simd, self.dy.add(at), n), E::load(simd, self.x.add(at), n)) };
        let x = match counted.filter(|_| self.anything) {
            // Where dy is zero, zero times a number is as good as another.
            Some(bits) => {
                // SAFETY: the token is held.
                let zero = unsafe { RealVector::<S, E>::splat(E::Real::from_f64(0.0)) };
                let negative = RealVector::<S, E>::select_less(dy, zero, x, zero);
                let x_but_0 = RealVector::<S, E>::select_less(zero, dy, x, negative);
                RealVector::<S, E>::select(bits, 0, x, x_but_0)
            }
            None => x,
        };
        let x = x.widen();
        let deviation = match center {
            Some(center) => x - center,
            None => x,
        };
        [dy.widen(), deviation]
    }

    #[inline(always)]
    unsafe fn adds_nothing<S: Simd>(self, simd: S, at: usize, n: usize) -> bool {
        // SAFETY: the caller vouches for `n` elements at `at`.
        unsafe { E::load(simd, self.dy.add(at), n) }.is_zero()
    }
}
