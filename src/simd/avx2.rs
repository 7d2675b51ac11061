//! AVX2: eight `f32` or four `f64` a register.

use super::pair::Pair;
use super::{Bits16, Double, EXPONENT, Kernel, Simd, Vector, bits16};
use core::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

/// Runs `kernel` compiled for AVX2.
///
/// # Safety
/// The processor has AVX2, FMA and F16C. That of the kernel's `run` beside.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: handed on to the caller.
    unsafe { kernel.run(Avx2(())) }
}

impl Simd for Avx2 {
    type F32 = Pair<F32x8>;
    type F64 = Pair<Pair<F64x4>>;
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

/// `MASK[8 - n..]` begins with `n` lanes of ones.
static MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// Eight `f32`.
#[derive(Clone, Copy)]
pub struct F32x8(__m256);

/// Four `f64`.
#[derive(Clone, Copy)]
pub struct F64x4(__m256d);

/// Sixteen numbers of 16 bits, the first eight first.
#[derive(Clone, Copy)]
pub struct U16x16(__m128i, __m128i);

operators!(F32x8, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps);
operators!(F64x4, _mm256_add_pd, _mm256_sub_pd, _mm256_mul_pd, _mm256_div_pd);

// SAFETY (all of the impl): the caller vouches for AVX2 and for the elements touched; masked
// instructions touch, and fault on, no lane whose mask is zero.
impl Vector for F32x8 {
    type Scalar = f32;
    type Wide = Pair<F64x4>;
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the impl.
        F32x8(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        F32x8(unsafe { _mm256_loadu_ps(p) })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const f32, n: usize) -> Self {
        // SAFETY: see the impl; `n <= 8`, so the mask is read within the table.
        F32x8(unsafe {
            let mask = _mm256_loadu_si256(MASK.as_ptr().add(8 - n).cast());
            _mm256_maskload_ps(p, mask)
        })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize) {
        // SAFETY: see the impl; each part is counted by a bit of `n`.
        unsafe {
            if n >= 8 {
                return self.store(p);
            }
            let mut rest = _mm256_castps256_ps128(self.0);
            let mut p = p;
            if n & 4 != 0 {
                _mm_storeu_ps(p, rest);
                rest = _mm256_extractf128_ps::<1>(self.0);
                p = p.add(4);
            }
            if n & 2 != 0 {
                _mm_storel_pd(p.cast(), _mm_castps_pd(rest));
                rest = _mm_movehl_ps(rest, rest);
                p = p.add(2);
            }
            if n & 1 != 0 {
                _mm_store_ss(p, rest);
            }
        }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut f32) {
        // SAFETY: see the impl; the caller vouches for the alignment.
        unsafe { _mm256_stream_ps(p, self.0) }
    }

    #[inline(always)]
    fn widen(self) -> Self::Wide {
        // SAFETY: `self` exists, so the processor has AVX2.
        unsafe {
            Pair(
                F64x4(_mm256_cvtps_pd(_mm256_castps256_ps128(self.0))),
                F64x4(_mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self.0))),
            )
        }
    }

    #[inline(always)]
    fn narrow(wide: Self::Wide) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F32x8(unsafe { _mm256_set_m128(_mm256_cvtpd_ps(wide.1.0), _mm256_cvtpd_ps(wide.0.0)) })
    }

    #[inline(always)]
    fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F32x8(unsafe {
            _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0))
        })
    }

    #[inline(always)]
    fn select(bits: u16, first: usize, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F32x8(unsafe {
            // The bit of each lane becomes its sign, which is all that a blend looks at.
            let last = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
            let left = _mm256_sub_epi32(last, _mm256_set1_epi32(first as i32));
            let signs = _mm256_sllv_epi32(_mm256_set1_epi32(bits.into()), left);
            _mm256_blendv_ps(otherwise.0, then.0, _mm256_castsi256_ps(signs))
        })
    }

    #[inline(always)]
    fn is_zero(self) -> bool {
        // SAFETY: values of this type exist only where the processor has the instructions.
        unsafe {
            let zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, _mm256_setzero_ps());
            _mm256_movemask_ps(zero) == 0xff
        }
    }

    #[inline(always)]
    fn add_exact_product(self, a: Self, b: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instruction.
        F32x8(unsafe { _mm256_fmadd_ps(a.0, b.0, self.0) })
    }
}

// SAFETY (all of the impl): as for `F32x8`.
impl Vector for F64x4 {
    type Scalar = f64;
    type Wide = Self;
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f64) -> Self {
        // SAFETY: see the impl.
        F64x4(unsafe { _mm256_set1_pd(value) })
    }

    #[inline(always)]
    unsafe fn load(p: *const f64) -> Self {
        // SAFETY: see the impl.
        F64x4(unsafe { _mm256_loadu_pd(p) })
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const f64, n: usize) -> Self {
        // SAFETY: see the impl; `n <= 4`, and a lane of 64 bits takes two entries of the table.
        F64x4(unsafe {
            let mask = _mm256_loadu_si256(MASK.as_ptr().add(8 - 2 * n).cast());
            _mm256_maskload_pd(p, mask)
        })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f64) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_pd(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f64, n: usize) {
        // SAFETY: see the impl; `n <= 4`.
        unsafe {
            let mask = _mm256_loadu_si256(MASK.as_ptr().add(8 - 2 * n).cast());
            _mm256_maskstore_pd(p, mask, self.0);
        }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut f64) {
        // SAFETY: see the impl; the caller vouches for the alignment.
        unsafe { _mm256_stream_pd(p, self.0) }
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
        F64x4(unsafe {
            _mm256_blendv_pd(otherwise.0, then.0, _mm256_cmp_pd::<_CMP_LT_OQ>(a.0, b.0))
        })
    }

    #[inline(always)]
    fn select(bits: u16, first: usize, then: Self, otherwise: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F64x4(unsafe {
            // The bit of each lane becomes its sign, which is all that a blend looks at.
            let last = _mm256_setr_epi64x(63, 62, 61, 60);
            let left = _mm256_sub_epi64(last, _mm256_set1_epi64x(first as i64));
            let signs = _mm256_sllv_epi64(_mm256_set1_epi64x(bits.into()), left);
            _mm256_blendv_pd(otherwise.0, then.0, _mm256_castsi256_pd(signs))
        })
    }

    #[inline(always)]
    fn is_zero(self) -> bool {
        // SAFETY: values of this type exist only where the processor has the instructions.
        unsafe {
            let zero = _mm256_cmp_pd::<_CMP_EQ_OQ>(self.0, _mm256_setzero_pd());
            _mm256_movemask_pd(zero) == 0xf
        }
    }

    #[inline(always)]
    fn add_exact_product(self, a: Self, b: Self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instruction.
        F64x4(unsafe { _mm256_fmadd_pd(a.0, b.0, self.0) })
    }
}

impl Double for F64x4 {
    #[inline(always)]
    fn power_of_two(self) -> Self {
        // SAFETY: values of this type exist only where the processor has the instructions.
        F64x4(unsafe {
            let sum = _mm256_add_pd(self.0, _mm256_set1_pd(EXPONENT));
            _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(sum)))
        })
    }
}

// SAFETY (all of the impl): the caller vouches for AVX2 and F16C and for the elements touched.
impl Bits16 for U16x16 {
    type Float = Pair<F32x8>;

    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe { U16x16(_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast())) }
    }

    #[inline(always)]
    unsafe fn load_partial(p: *const u16, n: usize) -> Self {
        // SAFETY: see the impl; `p + low` is at most one past the `n` readable elements.
        unsafe {
            let low = n.min(8);
            U16x16(load_eight(p, low), load_eight(p.add(low), n - low))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_si256(p.cast(), _mm256_set_m128i(self.1, self.0)) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut u16, n: usize) {
        // SAFETY: see the impl; `p + low` is at most one past the `n` writable elements.
        unsafe {
            let low = n.min(8);
            store_eight(self.0, p, low);
            store_eight(self.1, p.add(low), n - low);
        }
    }

    #[inline(always)]
    unsafe fn stream(self, p: *mut u16) {
        // SAFETY: see the impl; the caller vouches for the alignment.
        unsafe { _mm256_stream_si256(p.cast(), _mm256_set_m128i(self.1, self.0)) }
    }

    #[inline(always)]
    fn widen_f16(self) -> Pair<F32x8> {
        // SAFETY: `self` exists, so the processor has F16C.
        unsafe { Pair(F32x8(_mm256_cvtph_ps(self.0)), F32x8(_mm256_cvtph_ps(self.1))) }
    }

    // To load eight into both halves of a register costs nothing more, and then one instruction puts
    // each where it belongs; to extend and to shift take three. Statistics feel it.
    #[inline(always)]
    fn widen_bf16(self) -> Pair<F32x8> {
        // SAFETY: `self` exists, so the processor has AVX2.
        unsafe {
            let spread = _mm256_loadu_si256(SPREAD.as_ptr().cast());
            let low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(self.0), spread);
            let high = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(self.1), spread);
            Pair(F32x8(_mm256_castsi256_ps(low)), F32x8(_mm256_castsi256_ps(high)))
        }
    }

    #[inline(always)]
    fn narrow_f16(Pair(low, high): Pair<F32x8>) -> Self {
        // SAFETY: a value of its type exists, so the processor has AVX2 and F16C.
        unsafe {
            U16x16(
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(low.0),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(high.0),
            )
        }
    }

    // Sixteen at a time: upper and lower halves are put together first and rounded in 16 bits. With
    // eight at a time, in 32 bits, the narrowing took longer than memory.
    #[inline(always)]
    fn narrow_bf16(Pair(low, high): Pair<F32x8>) -> Self {
        // SAFETY: a value of its type exists, so the processor has AVX2.
        unsafe {
            let (a, b) = (_mm256_castps_si256(low.0), _mm256_castps_si256(high.0));
            let upper = _mm256_packus_epi32(_mm256_srli_epi32::<16>(a), _mm256_srli_epi32::<16>(b));
            let zero = _mm256_setzero_si256();
            let lower = _mm256_packus_epi32(
                _mm256_blend_epi16::<0b1010_1010>(a, zero),
                _mm256_blend_epi16::<0b1010_1010>(b, zero),
            );
            // Up, where the lower half is more than 0x8000, or is that and the upper half odd: then
            // the last bit of the lower half, which no other comparison feels, makes it more.
            let odd = _mm256_and_si256(upper, _mm256_set1_epi16(1));
            let above = _mm256_subs_epu16(_mm256_or_si256(lower, odd), _mm256_set1_epi16(1));
            let mut rounded = _mm256_add_epi16(upper, _mm256_srli_epi16::<15>(above));
            // NaN is rare: one question for sixteen, and a path of its own.
            if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(low.0, high.0)) != 0 {
                let nan = _mm256_packs_epi32(
                    _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(low.0, low.0)),
                    _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(high.0, high.0)),
                );
                let quiet = _mm256_or_si256(upper, _mm256_set1_epi16(0x0040));
                rounded = _mm256_blendv_epi8(rounded, quiet, nan);
            }
            // To pack is to pack each half of a register by itself.
            let rounded = _mm256_permute4x64_epi64::<0b11_01_10_00>(rounded);
            U16x16(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded))
        }
    }
}

/// Where the bytes of `f32` come from, the lower two being zero: the first half of a register gets the
/// first four numbers, the second half the next four.
#[rustfmt::skip]
static SPREAD: [i8; 32] = [
    -1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,
    -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15,
];

/// `n <= 8` numbers, zeros after them.
///
/// # Safety
/// The processor has AVX2; `p` is readable for `n` elements.
#[inline(always)]
unsafe fn load_eight(p: *const u16, n: usize) -> __m128i {
    // SAFETY: handed on to the caller.
    unsafe {
        if n == 8 {
            return _mm_loadu_si128(p.cast());
        }
        let [low, high] = bits16::gather(p, n);
        _mm_set_epi64x(high as i64, low as i64)
    }
}

/// Writes the first `n <= 8` numbers.
///
/// # Safety
/// The processor has AVX2; `p` is writable for `n` elements.
#[inline(always)]
unsafe fn store_eight(eight: __m128i, p: *mut u16, n: usize) {
    // SAFETY: handed on to the caller.
    unsafe {
        if n == 8 {
            return _mm_storeu_si128(p.cast(), eight);
        }
        let (low, high) = (_mm_cvtsi128_si64(eight), _mm_extract_epi64::<1>(eight));
        bits16::scatter([low as u64, high as u64], p, n);
    }
}

#[cfg(test)]
mod tests {
    conforms!(super::super::Level::Avx2);
}
