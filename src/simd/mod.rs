//! One logical vector of sixteen lanes on every instruction set; the only place with `core::arch`.
//!
//! A kernel is written once, over [`Simd`], and compiled once for each instruction set:
//! [`Level::run`] enters a function that has the set's `target_feature`, and everything generic is
//! inlined into it. What makes results the *same bits* at every level is decided here:
//!
//! 1. Sixteen lanes everywhere, of `f32` and of `f64` alike: one register, or a
//!    [`Pair`](pair::Pair) of halves, recursively.
//! 2. Multiply and add are separate instructions, for a fused multiply-add rounds once where the
//!    portable level rounds twice. The exception is a product that is exact: then the two are the
//!    same, and [`Vector::add_exact_product`] may fuse them.
//! 3. Numbers of 16 bits are only loaded and stored ([`Bits16`]); between the two they are `f32`.
//! 4. Lanes are folded by one tree, [`fold`], in ordinary code.
//!
//! A new instruction set is one file (its registers as [`Vector`]s and a token), one [`Level`], and
//! one line of the conformance tests at the end of this file.

/// `+`, `-`, `*` and `/` of a register, each by its intrinsic.
macro_rules! operators {
    ($vector:ident, $add:ident, $sub:ident, $mul:ident, $div:ident) => {
        operators!($vector: Add, add, $add);
        operators!($vector: Sub, sub, $sub);
        operators!($vector: Mul, mul, $mul);
        operators!($vector: Div, div, $div);
    };
    ($vector:ident: $trait:ident, $method:ident, $intrinsic:ident) => {
        impl std::ops::$trait for $vector {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: a value of this type exists only where the processor has the instruction.
                $vector(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    };
}
/// The tests that every instruction set passes: its vectors do what arrays do, and whole verbs give
/// the bits of the portable level. `conforms!(level)` in a test module is all it takes.
#[cfg(test)]
macro_rules! conforms {
    ($level:expr) => {
        use crate::simd::conformance;

        #[test]
        fn vectors_do_what_arrays_do() {
            conformance::vectors($level);
        }

        #[test]
        fn sixteen_bits_are_widened_and_narrowed_as_by_portable_code() {
            conformance::bits16($level);
        }

        #[test]
        fn verbs_give_the_bits_of_the_portable_level() {
            conformance::verbs::<f32>($level);
            conformance::verbs::<f64>($level);
            conformance::verbs::<half::f16>($level);
            conformance::verbs::<half::bf16>($level);
        }
    };
}
#[cfg(test)]
mod conformance;

mod bits16;
mod float_mode;
mod pair;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::error::Error;
pub use bits16::Bits16;
pub(crate) use bits16::{narrow_bf16, narrow_f16, round_to_odd, widen_bf16, widen_f16};
pub(crate) use float_mode::FloatMode;
use std::ops::{Add, Div, Mul, Sub};
use std::sync::OnceLock;

/// Lanes of the logical vector.
pub const LANES: usize = 16;

/// Alignment in bytes that [`Vector::stream`] asks for: one cache line.
pub(crate) const STREAM_ALIGNMENT: usize = 64;

/// Some lanes of one floating-point type. A value exists only where the processor has its
/// instructions: it is made by the `unsafe` constructors here, whose callers hold the [`Simd`]
/// token.
pub trait Vector:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// The type of one lane.
    type Scalar: Copy;
    /// The same lanes in `f64`.
    type Wide: Vector<Scalar = f64> + Double;
    /// How many lanes.
    const LANES: usize;

    /// All lanes equal to `value`.
    ///
    /// # Safety
    /// The processor has the instruction set of `Self`.
    unsafe fn splat(value: Self::Scalar) -> Self;

    /// `LANES` elements from `p`, at any alignment.
    ///
    /// # Safety
    /// The processor has the instruction set; `p` is readable for `LANES` elements.
    unsafe fn load(p: *const Self::Scalar) -> Self;

    /// The first `n <= LANES` elements from `p`, zero in the other lanes.
    ///
    /// # Safety
    /// The processor has the instruction set; `p` is readable for `n` elements (no more is read).
    unsafe fn load_partial(p: *const Self::Scalar, n: usize) -> Self;

    /// Writes all lanes to `p`, at any alignment.
    ///
    /// # Safety
    /// `p` is writable for `LANES` elements.
    unsafe fn store(self, p: *mut Self::Scalar);

    /// Writes the first `n <= LANES` lanes to `p`.
    ///
    /// # Safety
    /// `p` is writable for `n` elements (no more is written).
    unsafe fn store_partial(self, p: *mut Self::Scalar, n: usize);

    /// Writes all lanes past the cache where the instruction set can, which [`Simd::STREAMS`] says; [`Simd::fence`]
    /// must follow before others read.
    ///
    /// # Safety
    /// As [`Vector::store`], and `p` is aligned to [`STREAM_ALIGNMENT`] or to the size of the
    /// vector, whichever is less.
    #[inline(always)]
    unsafe fn stream(self, p: *mut Self::Scalar) {
        // SAFETY: this contract contains that of `store`.
        unsafe { self.store(p) };
    }

    /// Each lane in `f64`, exactly.
    fn widen(self) -> Self::Wide;

    /// Each lane of `wide`, rounded to nearest.
    fn narrow(wide: Self::Wide) -> Self;

    /// In each lane, `then` if `a < b`, else `otherwise`: also where one of them is NaN.
    fn select_less(a: Self, b: Self, then: Self, otherwise: Self) -> Self;

    /// In lane `i`, `then` if bit `first + i` is set, else `otherwise`.
    fn select(bits: u16, first: usize, then: Self, otherwise: Self) -> Self;

    /// Whether every lane is zero, of either sign.
    fn is_zero(self) -> bool;

    /// `self + a * b`, where each product is exact in this type: the same bits whether the
    /// processor fuses the two operations or not. Of other products nothing is promised.
    #[must_use]
    fn add_exact_product(self, a: Self, b: Self) -> Self;
}

/// What only vectors of `f64` do.
pub trait Double {
    /// Two to the power of each lane, a whole number from -1022 to 1023.
    #[must_use]
    fn power_of_two(self) -> Self;
}

/// A whole number plus this has its biased exponent in the last bits: shifted left by 52, it is two
/// to the power of the number.
const EXPONENT: f64 = (1_u64 << 52) as f64 + 1023.0;

/// An instruction set, and the proof that this processor has it: only [`Level::run`] hands one out.
pub trait Simd: Copy {
    /// Sixteen `f32`.
    type F32: Vector<Scalar = f32, Wide = Self::F64>;
    /// Sixteen `f64`.
    type F64: Vector<Scalar = f64, Wide = Self::F64> + Double;
    /// Sixteen numbers of 16 bits.
    type U16: Bits16<Float = Self::F32>;

    /// Whether vectors can be written past the cache. Where they cannot, no loop that would do so is compiled.
    const STREAMS: bool;

    /// Orders streamed stores before whatever follows.
    #[inline(always)]
    fn fence(self) {}

    /// Asks for the line at `p` to be brought into the cache, where the instruction set can; any address will do.
    #[inline(always)]
    fn prefetch<T>(self, p: *const T) {
        let _ = p;
    }

    /// Runs a kernel as a function of its own. Loops that are inlined into one large function have few
    /// registers left: a row of 256 columns took 38 instructions for 16 elements, and 28 like this.
    /// Implementations are `#[inline(never)]` and have no target feature themselves: some compilers (1.95) drop that
    /// attribute of a function with features where it is called from one without.
    ///
    /// # Safety
    /// That of the kernel's `run`.
    unsafe fn call<K: Kernel>(self, kernel: K) -> K::Output;
}

/// Work that is compiled for every instruction set.
pub trait Kernel {
    /// What the work returns.
    type Output;

    /// Does the work with the instructions of `S`. Implementations are `#[inline(always)]`, so that
    /// they become part of a function that has the target feature.
    ///
    /// # Safety
    /// What the implementing type says of the memory it works on.
    unsafe fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Whether the processor says that AMD made it.
#[allow(unused_unsafe)] // newer compilers know that the instruction is there
pub(crate) fn made_by_amd() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every 64-bit x86 processor has this instruction.
        let maker = unsafe { core::arch::x86_64::__cpuid(0) };
        [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Sums the lanes: lane `i` with `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// An instruction set by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Portable code, sixteen-element arrays.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 64-bit ARM.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// The levels of this processor, slowest first; `Scalar` is always there.
    pub fn supported() -> Vec<Level> {
        let mut levels = vec![Level::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                levels.push(Level::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                levels.push(Level::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(Level::Neon);
        levels
    }

    /// The name that `RUSTBN_SIMD` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
        }
    }

    /// The level of this process: what `RUSTBN_SIMD` says, else the best there is. Chosen at the
    /// first call.
    ///
    /// # Errors
    /// [`Error::Simd`] if `RUSTBN_SIMD` names a level that this processor does not have.
    pub fn current() -> Result<Level, Error> {
        static CHOSEN: OnceLock<Result<Level, Error>> = OnceLock::new();
        CHOSEN.get_or_init(|| Level::choose(std::env::var("RUSTBN_SIMD").ok().as_deref())).clone()
    }

    /// The level called `name`, or the best one where no name is given.
    fn choose(name: Option<&str>) -> Result<Level, Error> {
        let levels = Level::supported();
        match name {
            None | Some("") => Ok(levels[levels.len() - 1]),
            Some(name) => {
                levels.iter().copied().find(|level| level.name() == name).ok_or_else(|| {
                    Error::Simd {
                        expected: levels
                            .iter()
                            .map(|level| level.name())
                            .collect::<Vec<_>>()
                            .join(", "),
                        got: name.to_owned(),
                    }
                })
            }
        }
    }

    /// Runs `kernel` with the instructions of this level, rounding and keeping subnormals as IEEE
    /// 754 says.
    ///
    /// # Safety
    /// That of the kernel's `run`.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        let _mode = FloatMode::standard();
        // SAFETY: the caller vouches for the kernel. The level that an `Execution` holds, which is the only one that comes
        // here, comes from `Level::current`, which asked the processor for it; NEON is part of every 64-bit ARM processor
        // that Rust knows.
        unsafe {
            match self {
                Level::Scalar => kernel.run(scalar::Scalar),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => avx2::run(kernel),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => avx512::run(kernel),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => neon::run(kernel),
            }
        }
    }
}
