//! The loops. Two shapes of loop, [`reduce`] (two sums of each channel) and [`map`] (an output of
//! each element), each along a *run* of one channel (planar memory) and down a *sheet* of rows
//! whose columns belong to channels (interleaved memory); and five expressions to put into them:
//! [`moments`] and [`backward_reduce`], [`apply`], [`gate`] and [`backward_apply`].
//!
//! Kernels know pointers, lengths and [`Simd`] vectors; which memory they are sent over, in what
//! order and on which thread is decided elsewhere, and cannot change a bit of the result: a sum is
//! built up in the order that is written down in `reduce`, and an elementwise result depends on
//! nothing but its element.

pub(crate) mod apply;
pub(crate) mod backward_apply;
pub(crate) mod backward_reduce;
pub(crate) mod gate;
pub(crate) mod map;
pub(crate) mod moments;
pub(crate) mod reduce;

use crate::element;
use crate::simd::{LANES, Vector};

/// Channels that are dealt with side by side where there is work for each: they go through arrays of
/// this length, which compilers make vectors of. A square root and a few divisions for each channel
/// take a while one by one.
pub(crate) const GROUP: usize = 8;

/// From a coefficient or a sum of so many channels or columns to the next one, so that all begin at a line if the first
/// does.
#[inline]
pub(crate) fn pitch(columns: usize) -> usize {
    columns.next_multiple_of(LANES)
}

/// Where a vector of per-channel values comes from.
#[derive(Clone, Copy)]
pub(crate) enum Fetch {
    /// One channel: its value in every lane.
    Run,
    /// A channel a lane: the next `n` values, zero in the lanes beyond.
    Columns(usize),
}

impl Fetch {
    /// The vector at `p`.
    ///
    /// # Safety
    /// `p` is readable for one value or for the `n` of `Columns`; a token for `V` is held.
    #[inline(always)]
    pub(crate) unsafe fn vector<V: Vector>(self, p: *const V::Scalar) -> V {
        // SAFETY: handed on to the caller.
        unsafe {
            match self {
                Fetch::Run => V::splat(*p),
                Fetch::Columns(n) => element::load(p, n),
            }
        }
    }

    /// The vectors of `N` values that are `pitch` apart.
    ///
    /// # Safety
    /// As [`Fetch::vector`], for each of them.
    #[inline(always)]
    pub(crate) unsafe fn vectors<V: Vector, const N: usize>(
        self,
        p: *const V::Scalar,
        pitch: usize,
    ) -> [V; N] {
        // SAFETY: handed on to the caller.
        unsafe {
            let mut vectors = [self.vector(p); N];
            let mut k = 1;
            while k < N {
                vectors[k] = self.vector(p.add(k * pitch));
                k += 1;
            }
            vectors
        }
    }
}
