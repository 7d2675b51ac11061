//! NEON: four `f32` or two `f64` a register. It has no masked loads, so a tail goes through a small
//! array.

use super::pair::Pair;
use super::{Double, EXPONENT, Kernel, Simd, Vector};
use core::arch::aarch64::*;

/// Proof that the processor has NEON.
#[derive(Clone, Copy)]
pub struct Neon(());

/// Runs `kernel` compiled for NEON.
///
/// # Safety
/// The processor has NEON. That of the kernel's `run` beside.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: handed on to the caller.
    unsafe { kernel.run(Neon(())) }
}

impl Simd for Neon {
    type F32 = Pair<Pair<F32x4>>;
    type F64 = Pair<Pair<Pair<F64x2>>>;

    #[inline(always)]
    fn fence(self) {}

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}
}

/// Four `f32`.
#[derive(Clone, Copy)]
pub struct F32x4(float32x4_t);

/// Two `f64`.
#[derive(Clone, Copy)]
pub struct F64x2(float64x2_t);

operators!(F32x4, vaddq_f32, vsubq_f32, vmulq_f32, vdivq_f32);
operators!(F64x2, vaddq_f64, vsubq_f64, vmulq_f64, vdivq_f64);

macro_rules! vector {
    ($vector:ident, $scalar:ty, $wide:ty, $lanes:literal, $dup:ident, $load:ident, $store:ident, $widen:expr, $fma:ident, $narrow:expr, $less:ident, $select:ident) => {
        // SAFETY (all of the impl): the caller vouches for NEON and for the elements touched; a
        // tail of `n <= LANES` elements is copied to or from an array of `LANES`.
        impl Vector for $vector {
            type Scalar = $scalar;
            type Wide = $wide;
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(value: $scalar) -> Self {
                // SAFETY: see the impl.
                $vector(unsafe { $dup(value) })
            }

            #[inline(always)]
            unsafe fn load(p: *const $scalar) -> Self {
                // SAFETY: see the impl.
                $vector(unsafe { $load(p) })
            }

            #[inline(always)]
            unsafe fn load_partial(p: *const $scalar, n: usize) -> Self {
                let mut lanes = [0.0; $lanes];
                // SAFETY: see the impl.
                unsafe {
                    p.copy_to_nonoverlapping(lanes.as_mut_ptr(), n);
                    Self::load(lanes.as_ptr())
                }
            }

            #[inline(always)]
            unsafe fn store(self, p: *mut $scalar) {
                // SAFETY: see the impl.
                unsafe { $store(p, self.0) }
            }

            #[inline(always)]
            unsafe fn store_partial(self, p: *mut $scalar, n: usize) {
                let mut lanes = [0.0; $lanes];
                // SAFETY: see the impl.
                unsafe {
                    self.store(lanes.as_mut_ptr());
                    p.copy_from_nonoverlapping(lanes.as_ptr(), n);
                }
            }

            #[inline(always)]
            unsafe fn stream(self, p: *mut $scalar) {
                // SAFETY: the caller's contract contains that of `store`.
                unsafe { self.store(p) }
            }

            #[inline(always)]
            fn widen(self) -> $wide {
                // SAFETY: `self` exists, so the processor has NEON.
                unsafe { $widen(self.0) }
            }

            #[inline(always)]
            fn narrow(wide: Self::Wide) -> Self {
                // SAFETY: a value of a NEON type exists, so the processor has NEON.
                unsafe { $narrow(wide) }
            }

            #[inline(always)]
            fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
                // SAFETY: `a` exists, so the processor has NEON.
                $vector(unsafe { $select($less(a.0, b.0), then.0, otherwise.0) })
            }

            #[inline(always)]
            fn add_exact_product(self, a: Self, b: Self) -> Self {
                // SAFETY: `self` exists, so the processor has NEON.
                $vector(unsafe { $fma(self.0, a.0, b.0) })
            }
        }
    };
}
vector!(
    F32x4,
    f32,
    Pair<F64x2>,
    4,
    vdupq_n_f32,
    vld1q_f32,
    vst1q_f32,
    widen,
    vfmaq_f32,
    narrow,
    vcltq_f32,
    vbslq_f32
);
vector!(
    F64x2,
    f64,
    F64x2,
    2,
    vdupq_n_f64,
    vld1q_f64,
    vst1q_f64,
    same,
    vfmaq_f64,
    identity,
    vcltq_f64,
    vbslq_f64
);

/// Two `f64` as they are.
///
/// # Safety
/// None to speak of; it stands where [`widen`] does.
#[inline(always)]
unsafe fn same(v: float64x2_t) -> F64x2 {
    F64x2(v)
}

/// Both halves of four `f32` in `f64`.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn widen(v: float32x4_t) -> Pair<F64x2> {
    // SAFETY: the caller vouches for NEON.
    unsafe { Pair(F64x2(vcvt_f64_f32(vget_low_f32(v))), F64x2(vcvt_high_f64_f32(v))) }
}

/// Two `f64` as they are.
///
/// # Safety
/// None to speak of; it stands where [`narrow`] does.
#[inline(always)]
unsafe fn identity(v: F64x2) -> F64x2 {
    v
}

/// Four `f64`, rounded.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn narrow(wide: Pair<F64x2>) -> F32x4 {
    // SAFETY: the caller vouches for NEON.
    F32x4(unsafe { vcvt_high_f32_f64(vcvt_f32_f64(wide.0.0), wide.1.0) })
}

impl Double for F64x2 {
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F64x2(unsafe {
            let sum = vaddq_f64(self.0, vdupq_n_f64(EXPONENT));
            vreinterpretq_f64_s64(vshlq_n_s64::<52>(vreinterpretq_s64_f64(sum)))
        })
    }
}

#[cfg(test)]
mod tests {
    conforms!(super::super::Level::Neon);
}
