//! NEON: four `f32` or two `f64` a register. It has no masked loads, so a tail goes through a small
//! array.

use super::pair::Pair;
use super::{Bits16, Double, EXPONENT, Kernel, Simd, Vector, bits16};
use core::arch::aarch64::*;
use core::arch::asm;

/// Proof that the processor has NEON.
#[derive(Clone, Copy)]
pub struct Neon(());

/// Runs `kernel` compiled for NEON.
///
/// # Safety
/// The processor has NEON. That of the kernel's `run` beside.
#[target_feature(enable = "neon")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: handed on to the caller.
    unsafe { kernel.run(Neon(())) }
}

impl Simd for Neon {
    type F32 = Pair<Pair<F32x4>>;
    type F64 = Pair<Pair<Pair<F64x2>>>;
    type U16 = Pair<Pair<U16x4>>;
    const STREAMS: bool = false;

    #[inline(never)]
    unsafe fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the processor has what the token stands for; the rest is handed on to the caller.
        unsafe { run(kernel) }
    }
}

/// Four `f32`.
#[derive(Clone, Copy)]
pub struct F32x4(float32x4_t);

/// Two `f64`.
#[derive(Clone, Copy)]
pub struct F64x2(float64x2_t);

/// Four numbers of 16 bits.
#[derive(Clone, Copy)]
pub struct U16x4(uint16x4_t);

operators!(F32x4, vaddq_f32, vsubq_f32, vmulq_f32, vdivq_f32);
operators!(F64x2, vaddq_f64, vsubq_f64, vmulq_f64, vdivq_f64);

macro_rules! vector {
    ($vector:ident, $scalar:ty, $wide:ty, $lanes:literal, $dup:ident, $load:ident, $store:ident, $widen:expr, $fma:ident, $narrow:expr, $less:ident, $select:ident, $set:ident, $zero:ident) => {
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
            fn select(bits: u16, first: usize, then: Self, otherwise: Self) -> Self {
                // SAFETY: `then` exists, so the processor has NEON.
                $vector(unsafe { $select($set(bits >> first), then.0, otherwise.0) })
            }

            #[inline(always)]
            fn is_zero(self) -> bool {
                // SAFETY: `self` exists, so the processor has NEON.
                unsafe { $zero(self.0) }
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
    vbslq_f32,
    set_of_four,
    zero_f32
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
    vbslq_f64,
    set_of_two,
    zero_f64
);

/// All ones in each of four lanes whose bit is set.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn set_of_four(bits: u16) -> uint32x4_t {
    // SAFETY: the caller vouches for NEON; the array is as long as the vector.
    unsafe { vtstq_u32(vdupq_n_u32(bits.into()), vld1q_u32([1, 2, 4, 8].as_ptr())) }
}

/// All ones in each of two lanes whose bit is set.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn set_of_two(bits: u16) -> uint64x2_t {
    // SAFETY: the caller vouches for NEON; the array is as long as the vector.
    unsafe { vtstq_u64(vdupq_n_u64(bits.into()), vld1q_u64([1, 2].as_ptr())) }
}

/// Whether four lanes are zero.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn zero_f32(v: float32x4_t) -> bool {
    // SAFETY: the caller vouches for NEON.
    unsafe { vminvq_u32(vceqzq_f32(v)) == u32::MAX }
}

/// Whether two lanes are zero.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
unsafe fn zero_f64(v: float64x2_t) -> bool {
    // SAFETY: the caller vouches for NEON.
    unsafe { vminvq_u32(vreinterpretq_u32_u64(vceqzq_f64(v))) == u32::MAX }
}

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

// SAFETY (all of the impl): the caller vouches for NEON and for the elements touched.
impl Bits16 for U16x4 {
    type Float = F32x4;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        // SAFETY: see the impl.
        U16x4(unsafe { vld1_u16(p) })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const u16, n: usize) -> Self {
        // SAFETY: see the impl; of `n <= 4` elements all are in the first part.
        U16x4(unsafe { vcreate_u16(bits16::gather(p, n)[0]) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe { vst1_u16(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut u16, n: usize) {
        // SAFETY: see the impl; of `n <= 4` elements all are in the first part.
        unsafe {
            let bits = vget_lane_u64::<0>(vreinterpret_u64_u16(self.0));
            bits16::scatter([bits, 0], p, n);
        }
    }

    // The conversions of binary16 are part of every NEON; their intrinsics in Rust are not stable in
    // all versions that this crate builds with.

    #[inline(always)]
    fn widen_f16(self) -> F32x4 {
        let wide: float32x4_t;
        // SAFETY: `self` exists, so the processor has the instruction, which does nothing else.
        unsafe {
            asm!(
                "fcvtl {wide:v}.4s, {narrow:v}.4h",
                wide = lateout(vreg) wide,
                narrow = in(vreg) self.0,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        F32x4(wide)
    }

    #[inline(always)]
    fn widen_bf16(self) -> F32x4 {
        // SAFETY: `self` exists, so the processor has NEON.
        F32x4(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(self.0)) })
    }

    #[inline(always)]
    fn narrow_f16(float: F32x4) -> Self {
        let narrow: uint16x4_t;
        // SAFETY: a value of its type exists, so the processor has the instruction, which does
        // nothing else.
        unsafe {
            asm!(
                "fcvtn {narrow:v}.4h, {wide:v}.4s",
                narrow = lateout(vreg) narrow,
                wide = in(vreg) float.0,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        U16x4(narrow)
    }

    #[inline(always)]
    fn narrow_bf16(float: F32x4) -> Self {
        // SAFETY: a value of its type exists, so the processor has NEON.
        unsafe {
            let bits = vreinterpretq_u32_f32(float.0);
            let even = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let round = vaddq_u32(even, vdupq_n_u32(0x7fff));
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
            let number = vceqq_f32(float.0, float.0);
            let chosen = vbslq_u32(number, vaddq_u32(bits, round), quiet);
            U16x4(vshrn_n_u32::<16>(chosen))
        }
    }
}

#[cfg(test)]
mod tests {
    conforms!(super::super::Level::Neon);
}
