//! What arrays are made of. A storage type enters a kernel as a widening load and leaves it as a
//! narrowing store; between the two everything is done in its [`Element::Real`], and sums in `f64`.
//!
//! A new dtype is one `impl Element`.

use crate::simd::{self, Bits16, LANES, STREAM_ALIGNMENT, Simd, Vector};
use half::{bf16, f16};

/// A vector of the arithmetic type of `E`.
pub type RealVector<S, E> = <<E as Element>::Real as Real>::Vector<S>;

/// The types that elementwise arithmetic is done in: `f32` and `f64`.
pub trait Real: Element<Real = Self> + private::Sealed {
    /// Sixteen lanes of this type.
    #[doc(hidden)]
    type Vector<S: Simd>: Vector<Scalar = Self, Wide = S::F64>;

    /// The largest finite value.
    const MAX: Self;

    /// The least positive value.
    const LEAST: Self;

    /// Rounds to this type.
    fn from_f64(value: f64) -> Self;

    /// This value, exactly.
    fn to_f64(self) -> f64;

    /// The greatest value below this one.
    #[must_use]
    fn next_below(self) -> Self;
}

/// A storage type.
pub trait Element: Copy + Send + Sync + private::Sealed + 'static {
    /// The type its arithmetic is done in.
    type Real: Real;

    /// Whether the product of two values is exact in `f64`.
    #[doc(hidden)]
    const EXACT_PRODUCTS: bool;

    /// This value, exactly.
    fn widen(self) -> f64;

    /// The nearest value of this type; of two as near, the one whose last digit is even.
    fn narrow(value: f64) -> Self;

    /// `n <= 16` elements from `p`, zero in the lanes beyond.
    ///
    /// # Safety
    /// `p` is readable for `n` elements.
    #[doc(hidden)]
    unsafe fn load<S: Simd>(simd: S, p: *const Self, n: usize) -> RealVector<S, Self>;

    /// Writes the first `n <= 16` lanes to `p`.
    ///
    /// # Safety
    /// `p` is writable for `n` elements.
    #[doc(hidden)]
    unsafe fn store<S: Simd>(simd: S, p: *mut Self, n: usize, value: RealVector<S, Self>);

    /// Writes sixteen lanes to `p` past the cache.
    ///
    /// # Safety
    /// `p` is writable for sixteen elements and aligned to a cache line, or to so many bytes if that
    /// is less.
    #[doc(hidden)]
    unsafe fn stream<S: Simd>(simd: S, p: *mut Self, value: RealVector<S, Self>);
}

mod private {
    /// Keeps [`super::Element`] and [`super::Real`] to the types of this crate.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// The first `n` values from `p` as a vector: a plain load where `n` fills it.
///
/// # Safety
/// `p` is readable for `n <= LANES` elements; a `Simd` token for `V` is held.
#[inline(always)]
pub(crate) unsafe fn load<V: Vector>(p: *const V::Scalar, n: usize) -> V {
    // SAFETY: handed on to the caller.
    unsafe { if n == LANES { V::load(p) } else { V::load_partial(p, n) } }
}

/// Writes the first `n` lanes of `value` to `p`: a plain store where `n` fills it.
///
/// # Safety
/// `p` is writable for `n <= LANES` elements.
#[inline(always)]
pub(crate) unsafe fn store<V: Vector>(p: *mut V::Scalar, n: usize, value: V) {
    // SAFETY: handed on to the caller.
    unsafe { if n == LANES { value.store(p) } else { value.store_partial(p, n) } }
}

/// Asks for as many cache lines as a vector fills, from that of `p` on, which need not be readable. A vector of `f64` fills
/// two: sums that asked for the first alone took 1.5 to 2 times as long.
#[inline(always)]
pub(crate) fn prefetch<S: Simd, E: Element>(simd: S, p: *const E) {
    let mut bytes = 0;
    while bytes < LANES * size_of::<E>() {
        simd.prefetch(p.wrapping_byte_add(bytes));
        bytes += STREAM_ALIGNMENT;
    }
}

macro_rules! real {
    ($real:ty, $vector:ident) => {
        impl Real for $real {
            type Vector<S: Simd> = S::$vector;

            const MAX: Self = <$real>::MAX;
            const LEAST: Self = <$real>::from_bits(1);

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $real
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn next_below(self) -> Self {
                self.next_down()
            }
        }

        // SAFETY (all of the impl): a token is held, and the caller's contract is that of the
        // vector's method.
        impl Element for $real {
            type Real = $real;

            // Twice the digits and twice the exponents of the type fit into f64.
            const EXACT_PRODUCTS: bool = 2 * <$real>::MANTISSA_DIGITS <= f64::MANTISSA_DIGITS;

            #[inline(always)]
            fn widen(self) -> f64 {
                self.into()
            }

            #[inline(always)]
            fn narrow(value: f64) -> Self {
                value as $real
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(_: S, p: *const Self, n: usize) -> RealVector<S, Self> {
                // SAFETY: see the impl.
                unsafe { load(p, n) }
            }

            #[inline(always)]
            unsafe fn store<S: Simd>(_: S, p: *mut Self, n: usize, value: RealVector<S, Self>) {
                // SAFETY: see the impl.
                unsafe { store(p, n, value) }
            }

            #[inline(always)]
            unsafe fn stream<S: Simd>(_: S, p: *mut Self, value: RealVector<S, Self>) {
                // SAFETY: see the impl.
                unsafe { value.stream(p) }
            }
        }
    };
}
real!(f32, F32);
real!(f64, F64);

macro_rules! half {
    ($half:ty, $widen:ident, $narrow:ident) => {
        // SAFETY (all of the impl): a token is held; the caller's contract is that of the methods of
        // `Bits16`; the type is 16 bits without a meaning of their own to memory.
        impl Element for $half {
            type Real = f32;

            const EXACT_PRODUCTS: bool = f32::EXACT_PRODUCTS;

            #[inline(always)]
            fn widen(self) -> f64 {
                simd::$widen(self.to_bits()).into()
            }

            #[inline(always)]
            fn narrow(value: f64) -> Self {
                <$half>::from_bits(simd::$narrow(simd::round_to_odd(value)))
            }

            #[inline(always)]
            unsafe fn load<S: Simd>(_: S, p: *const Self, n: usize) -> RealVector<S, Self> {
                let p = p.cast();
                // SAFETY: see the impl.
                let bits = unsafe {
                    if n == LANES { S::U16::load(p) } else { S::U16::load_partial(p, n) }
                };
                bits.$widen()
            }

            #[inline(always)]
            unsafe fn store<S: Simd>(_: S, p: *mut Self, n: usize, value: RealVector<S, Self>) {
                let (p, bits) = (p.cast(), S::U16::$narrow(value));
                // SAFETY: see the impl.
                unsafe { if n == LANES { bits.store(p) } else { bits.store_partial(p, n) } }
            }

            #[inline(always)]
            unsafe fn stream<S: Simd>(_: S, p: *mut Self, value: RealVector<S, Self>) {
                // SAFETY: see the impl.
                unsafe { S::U16::$narrow(value).stream(p.cast()) }
            }
        }
    };
}
half!(f16, widen_f16, narrow_f16);
half!(bf16, widen_bf16, narrow_bf16);
