//! AVX-512: sixteen `f32` or eight `f64` a register, and masks for the tails.

use super::pair::Pair;
use super::{Bits16, Double, EXPONENT, Kernel, Simd, Vector};
use core::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512(());

/// Runs `kernel` compiled for AVX-512.
///
/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL. That of the kernel's `run` beside.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: handed on to the caller.
    unsafe { kernel.run(Avx512(())) }
}

impl Simd for Avx512 {
    type F32 = F32x16;
    type F64 = Pair<F64x8>;
    type U16 = U16x16;
    const STREAMS: bool = true;

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

    #[inline(never)]
    unsafe fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: the processor has what the token stands for; the rest is handed on to the caller.
        unsafe { run(kernel) }
    }
}

/// Sixteen `f32`.
#[derive(Clone, Copy)]
pub struct F32x16(__m512);

/// Eight `f64`.
#[derive(Clone, Copy)]
pub struct F64x8(__m512d);

/// Sixteen numbers of 16 bits.
#[derive(Clone, Copy)]
pub struct U16x16(__m256i);

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
    fn select(bits: u16, first: usize, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instruction.
        F32x16(unsafe { _mm512_mask_blend_ps(bits >> first, otherwise.0, then.0) })
    }

    #[inline(always)]
    fn is_zero(self) -> bool {
        // SAFETY: values of this type exist only where the processor has the instruction.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, _mm512_setzero_ps()) == u16::MAX }
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
    fn select(bits: u16, first: usize, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instruction.
        F64x8(unsafe { _mm512_mask_blend_pd((bits >> first) as u8, otherwise.0, then.0) })
    }

    #[inline(always)]
    fn is_zero(self) -> bool {
        // SAFETY: values of this type exist only where the processor has the instruction.
        unsafe { _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(self.0, _mm512_setzero_pd()) == u8::MAX }
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

// SAFETY (all of the impl): as for `F32x16`.
impl Bits16 for U16x16 {
    type Float = F32x16;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        // SAFETY: see the impl.
        U16x16(unsafe { _mm256_loadu_si256(p.cast()) })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const u16, n: usize) -> Self {
        // SAFETY: see the impl.
        U16x16(unsafe { _mm256_maskz_loadu_epi16(first(n) as __mmask16, p.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_si256(p.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut u16, n: usize) {
        // SAFETY: see the impl.
        unsafe { _mm256_mask_storeu_epi16(p.cast(), first(n) as __mmask16, self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut u16) {
        // SAFETY: see the impl; the caller vouches for the alignment.
        unsafe { _mm256_stream_si256(p.cast(), self.0) }
    }

    #[inline(always)]
    fn widen_f16(self) -> F32x16 {
        // SAFETY: `self` exists, so the processor has AVX-512 F.
        F32x16(unsafe { _mm512_cvtph_ps(self.0) })
    }

    #[inline(always)]
    fn widen_bf16(self) -> F32x16 {
        // SAFETY: `self` exists, so the processor has AVX-512 F.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(self.0);
            F32x16(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    fn narrow_f16(float: F32x16) -> Self {
        // SAFETY: a value of its type exists, so the processor has AVX-512 F.
        U16x16(unsafe { _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(float.0) })
    }

    // By integers, not by the instruction of AVX-512 BF16, which takes subnormals for zero.
    #[inline(always)]
    fn narrow_bf16(float: F32x16) -> Self {
        // SAFETY: a value of its type exists, so the processor has AVX-512 F.
        unsafe {
            let bits = _mm512_castps_si512(float.0);
            let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let round = _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_add_epi32(bits, round);
            let quiet = _mm512_set1_epi32(0x0040_0000);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(float.0, float.0);
            let chosen = _mm512_mask_or_epi32(rounded, nan, bits, quiet);
            U16x16(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen)))
        }
    }
}

#[cfg(test)]
mod tests {
    conforms!(super::super::Level::Avx512);
}
