//! What happens to a value after it is normalised and before it is stored.
//!
//! The kernels know no more of it than this trait. A new activation is one more implementation.

use crate::simd::{Simd, Vector};

/// A function of the normalised value.
pub(crate) trait Epilogue: Copy + Sync {
    /// The output of the layer, of the normalised value.
    fn forward<S: Simd, V: Vector>(self, simd: S, normalised: V) -> V;
}

/// No activation.
#[derive(Clone, Copy)]
pub(crate) struct Identity;

impl Epilogue for Identity {
    #[inline(always)]
    fn forward<S: Simd, V: Vector>(self, _: S, normalised: V) -> V {
        normalised
    }
}
