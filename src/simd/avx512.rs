//! AVX-512: sixteen `f32` or eight `f64` a register, and masks for the tails.

use super::pair::Pair;
use super::{Double, EXPONENT, Kernel, Simd, Vector};
use core::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512(());

/// Runs `kernel` compiled for AVX-512.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL. That of the kernel's `run` beside.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: handed on to the caller.
    unsafe { kernel.run(Avx512(())) }
}

impl Simd for Avx512 {
    type F32 = F32x16;
    type F64 = Pair<F64x8>;

    #[inline(always)]
    fn fence(self) {
        // SAFETY: `sfence` is part of SSE, which every x86-64 processor has.
        unsafe { _mm_sfence() }
    }

    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        // SAFETY: a prefetch of SSE touches nothing that a program can see, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}

/// Sixteen `f32`.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);

/// Eight `f64`.
#[derive(Clone, Copy)]
pub struct F64x8(__m512d);

operators!(F32x16, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps);
operators!(F64x8, _mm512_add_pd, _mm512_sub_pd, _mm512_mul_pd, _mm512_div_pd);

/// The mask of the first `n` lanes.
#[inline(always)]
fn first(n: usize) -> u32 {
    (1_u32 << n) - 1
}

// SAFETY (all of the impl): the caller vouches for AVX-512 and for the elements touched; masked
// instructions touch, and fault on, no lane whose mask is zero.
impl Vector for F32x16 {
    type Scalar = f32;
    type Wide = Pair<F64x8>;
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the impl.
        F32x16(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        F32x16(unsafe { _mm512_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        // SAFETY: see the impl.
        F32x16(unsafe { _mm512_maskz_loadu_ps(first(n) as __mmask16, p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        // SAFETY: see the impl.
        unsafe { _mm512_mask_storeu_ps(p, first(n) as __mmask16, self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut f32) {
        // SAFETY: see the impl; the caller vouches for the alignment.
        unsafe { _mm512_stream_ps(p, self.0) }
    }

    #[inline(always)]
    fn widen(self) -> Self::Wide {
        // SAFETY: `self` exists, so the processor has AVX-512 F and DQ.
        unsafe {
            Pair(
                F64x8(_mm512_cvtps_pd(_mm512_castps512_ps256(self.0))),
                F64x8(_mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(self.0))),
            )
        }
    }

    #[inline(always)]
    fn narrow(wide: Self::Wide) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F32x16(unsafe {
            let low = _mm512_castps256_ps512(_mm512_cvtpd_ps(wide.0.0));
            _mm512_insertf32x8::<1>(low, _mm512_cvtpd_ps(wide.1.0))
        })
    }

    #[inline(always)]
    fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F32x16(unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a.0, b.0);
            _mm512_mask_blend_ps(less, otherwise.0, then.0)
        })
    }

    #[inline(always)]
    fn add_exact_product(self, a: Self, b: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instruction.
        F32x16(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }
}

// SAFETY (all of the impl): as for `F32x16`.
impl Vector for F64x8 {
    type Scalar = f64;
    type Wide = Self;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f64) -> Self {
        // SAFETY: see the impl.
        F64x8(unsafe { _mm512_set1_pd(value) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f64) -> Self {
        // SAFETY: see the impl.
        F64x8(unsafe { _mm512_loadu_pd(p) })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const f64, n: usize) -> Self {
        // SAFETY: see the impl.
        F64x8(unsafe { _mm512_maskz_loadu_pd(first(n) as __mmask8, p) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f64) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_pd(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f64, n: usize) {
        // SAFETY: see the impl.
        unsafe { _mm512_mask_storeu_pd(p, first(n) as __mmask8, self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut f64) {
        // SAFETY: see the impl; the caller vouches for the alignment.
        unsafe { _mm512_stream_pd(p, self.0) }
    }

    #[inline(always)]
    fn widen(self) -> Self {
        self
    }

    #[inline(always)]
    fn narrow(wide: Self) -> Self {
        wide
    }

    #[inline(always)]
    fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F64x8(unsafe {
            let less = _mm512_cmp_pd_mask::<_CMP_LT_OQ>(a.0, b.0);
            _mm512_mask_blend_pd(less, otherwise.0, then.0)
        })
    }

    #[inline(always)]
    fn add_exact_product(self, a: Self, b: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instruction.
        F64x8(unsafe { _mm512_fmadd_pd(a.0, b.0, self.0) })
    }
}

impl Double for F64x8 {
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F64x8(unsafe {
            let sum = _mm512_add_pd(self.0, _mm512_set1_pd(EXPONENT));
            _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(sum)))
        })
    }
}

#[cfg(test)]
mod tests {
    conforms!(super::super::Level::Avx512);
}
