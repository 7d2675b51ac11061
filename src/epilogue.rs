//! What happens to a value after it is normalised and before it is stored: a residual is added, an
//! activation applied.
//!
//! Two kinds of activation. A *gate* is linear on either side of one or two points: its derivative
//! is one bit and a constant, so that backward needs no more than the sign of what forward computed,
//! and computes it again. A *smooth* one is for inference. Kernels know neither: they know
//! [`Stage`]. A new gate is one more arm of [`Gate`], a new smooth activation one more of [`Smooth`].
//!
//! NaN goes through every activation, and through the derivative of every gate, as in PyTorch.

use crate::element::{self, Element, Real, RealVector};
use crate::error::Error;
use crate::simd::{Double, Simd, Vector};

/// A function of each output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// None.
    #[default]
    Identity,
    /// `max(z, 0)`.
    Relu,
    /// `min(max(z, 0), 6)`.
    Relu6,
    /// `z` where it is positive, elsewhere `z` times the slope.
    LeakyRelu(f64),
    /// `z / (1 + exp(-z))`; inference only.
    Silu,
    /// `z min(max(z + 3, 0), 6) / 6`; inference only.
    Hardswish,
    /// `1 / (1 + exp(-z))`; inference only.
    Sigmoid,
    /// The hyperbolic tangent; inference only.
    Tanh,
}

impl Activation {
    /// Refuses an activation that cannot be trained through.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn check_training(self) -> Result<(), Error> {
        if Gate::of(self).is_some() {
            return Ok(());
        }
        let expected = "one whose derivative is a constant on either side of a point, in training";
        let got = format!("{self:?}").to_lowercase();
        Err(Error::Range { argument: "activation", expected, got })
    }
}

/// What comes after normalisation: `activation(normalised + residual)`.
///
/// ```
/// use rustbn::{Activation, Affine, Epilogue, Execution, View, apply};
/// let view = View::contiguous(&[2, 1], 1)?;
/// let affine = Affine::new(vec![1.0], vec![2.0], vec![0.0])?;
/// let (x, residual) = ([3.0_f32, 0.0], [0.5_f32, 0.5]);
/// let epilogue = Epilogue { residual: Some(&residual[..]), activation: Activation::Relu };
/// let mut y = [0.0; 2];
/// apply(view, &x, &affine, epilogue, &mut y, Execution::current()?)?;
/// assert_eq!(y, [4.5, 0.0]); // relu(4 + 0.5), relu(-2 + 0.5)
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, E> {
    /// What is added, exactly the elements of the view.
    pub residual: Option<&'a [E]>,
    /// What is applied last.
    pub activation: Activation,
}

impl<E> Default for Epilogue<'_, E> {
    fn default() -> Self {
        Epilogue { residual: None, activation: Activation::Identity }
    }
}

impl<E> Epilogue<'_, E> {
    pub(crate) fn raw(&self) -> RawEpilogue<E> {
        let residual = self.residual.map_or(std::ptr::null(), <[E]>::as_ptr);
        RawEpilogue { residual, activation: self.activation }
    }
}

/// An [`Epilogue`] whose residual is a pointer, null for none.
#[derive(Clone, Copy)]
pub(crate) struct RawEpilogue<E> {
    pub(crate) residual: *const E,
    pub(crate) activation: Activation,
}

// SAFETY: the residual is only read by the raw verbs, whose callers vouch for it.
unsafe impl<E: Sync> Send for RawEpilogue<E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for RawEpilogue<E> {}

impl<E> RawEpilogue<E> {
    /// Whether nothing comes after.
    pub(crate) fn is_none(&self) -> bool {
        self.residual.is_null() && self.activation == Activation::Identity
    }

    /// Arrays that are read beside x.
    pub(crate) fn inputs(&self) -> usize {
        usize::from(!self.residual.is_null())
    }
}

/// What a kernel does with a normalised value.
pub(crate) trait Stage<E: Element>: Copy + Sync {
    /// See [`Function::LONG`].
    const LONG: bool = false;

    /// What is added to normalised values; null for nothing.
    fn residual(self) -> *const E {
        std::ptr::null()
    }

    /// Arrays that are read beside x.
    fn inputs(self) -> usize {
        usize::from(!self.residual().is_null())
    }

    /// Asks for inputs at offset `at`, which may lie beyond their end.
    fn prefetch<S: Simd>(self, simd: S, at: usize);

    /// The outputs of `n` normalised values, those of the elements at offset `at`.
    ///
    /// # Safety
    /// The residual, if there is one, holds `n <= LANES` elements at `at`.
    unsafe fn forward<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        normalised: RealVector<S, E>,
    ) -> RealVector<S, E>;
}

/// The value as it is.
#[derive(Clone, Copy)]
pub(crate) struct Nothing;

impl<E: Element> Stage<E> for Nothing {
    #[inline(always)]
    fn prefetch<S: Simd>(self, _: S, _: usize) {}

    #[inline(always)]
    unsafe fn forward<S: Simd>(
        self,
        _: S,
        _: usize,
        _: usize,
        normalised: RealVector<S, E>,
    ) -> RealVector<S, E> {
        normalised
    }
}

/// Residual and activation.
#[derive(Clone, Copy)]
pub(crate) struct Then<E, F> {
    /// Null for none.
    pub(crate) residual: *const E,
    pub(crate) function: F,
}

// SAFETY: the residual is only read by kernels, whose callers vouch for it.
unsafe impl<E: Sync, F: Sync> Sync for Then<E, F> {}

impl<E: Element, F> Then<E, F> {
    /// The argument of the activation.
    ///
    /// # Safety
    /// As [`Stage::forward`].
    #[inline(always)]
    pub(crate) unsafe fn sum<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        normalised: RealVector<S, E>,
    ) -> RealVector<S, E> {
        if self.residual.is_null() {
            return normalised;
        }
        // SAFETY: handed on to the caller.
        normalised + unsafe { E::load(simd, self.residual.add(at), n) }
    }
}

impl<E: Element, F: Function> Stage<E> for Then<E, F> {
    const LONG: bool = F::LONG;

    #[inline(always)]
    fn residual(self) -> *const E {
        self.residual
    }

    #[inline(always)]
    fn prefetch<S: Simd>(self, simd: S, at: usize) {
        if !self.residual.is_null() {
            element::prefetch(simd, self.residual.wrapping_add(at));
        }
    }

    #[inline(always)]
    unsafe fn forward<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        normalised: RealVector<S, E>,
    ) -> RealVector<S, E> {
        // SAFETY: handed on to the caller.
        self.function.forward(unsafe { self.sum(simd, at, n, normalised) })
    }
}

/// An activation as kernels see it.
pub(crate) trait Function: Copy + Sync {
    /// Whether its code is so long, and takes so much longer than memory, that one copy of it has to
    /// do for all loops.
    const LONG: bool = false;

    /// Its value.
    fn forward<V: Vector<Scalar: Real>>(self, z: V) -> V;
}

/// `value` in every lane.
#[inline(always)]
fn splat<V: Vector<Scalar: Real>>(value: f64) -> V {
    // SAFETY: functions are only called by kernels, which hold the token.
    unsafe { V::splat(V::Scalar::from_f64(value)) }
}

/// An activation that can be trained through. One type for all: which one it is is asked for each
/// vector, which costs nothing next to memory, and spares a copy of every loop for each.
#[derive(Clone, Copy)]
pub(crate) enum Gate {
    /// `z`.
    Same,
    /// `max(z, 0)`.
    Positive,
    /// `min(max(z, 0), high)`.
    Clamp { high: f64 },
    /// `z` where it is positive, elsewhere `slope z`.
    Leaky { slope: f64 },
}

impl Gate {
    /// The gate that an activation is, if it is one.
    pub(crate) fn of(activation: Activation) -> Option<Gate> {
        match activation {
            Activation::Identity => Some(Gate::Same),
            Activation::Relu => Some(Gate::Positive),
            Activation::Relu6 => Some(Gate::Clamp { high: 6.0 }),
            Activation::LeakyRelu(slope) => Some(Gate::Leaky { slope }),
            Activation::Silu | Activation::Hardswish | Activation::Sigmoid | Activation::Tanh => {
                None
            }
        }
    }

    /// The gradient with respect to `z`, of that with respect to the output: `dy` times the slope at
    /// `z`, at a corner that of its left side (and of its right one at the upper end of a clamp).
    #[inline(always)]
    pub(crate) fn backward<V: Vector<Scalar: Real>>(self, z: V, dy: V) -> V {
        let zero = splat::<V>(0.0);
        // SAFETY: as for `splat`. At most zero is less than the least positive number.
        let least = unsafe { V::splat(V::Scalar::LEAST) };
        match self {
            Gate::Same => dy,
            Gate::Positive => V::select_less(z, least, zero, dy),
            Gate::Clamp { high } => {
                // SAFETY: as above. At least `high` is more than the greatest number below it.
                let below = unsafe { V::splat(V::Scalar::from_f64(high).next_below()) };
                V::select_less(below, z, zero, V::select_less(z, least, zero, dy))
            }
            Gate::Leaky { slope } => V::select_less(zero, z, dy, dy * splat(slope)),
        }
    }
}

impl Function for Gate {
    #[inline(always)]
    fn forward<V: Vector<Scalar: Real>>(self, z: V) -> V {
        let zero = splat::<V>(0.0);
        match self {
            Gate::Same => z,
            Gate::Positive => V::select_less(z, zero, zero, z),
            Gate::Clamp { high } => {
                let high = splat::<V>(high);
                V::select_less(high, z, high, V::select_less(z, zero, zero, z))
            }
            Gate::Leaky { slope } => V::select_less(zero, z, z, z * splat(slope)),
        }
    }
}

/// The activations with an exponential, and hardswish: computed in `f64`, rounded once. Within 2
/// units in the last place of the exact value for `f64`, half a unit for narrower types.
#[derive(Clone, Copy)]
pub(crate) enum Smooth {
    Silu,
    Hardswish,
    Sigmoid,
    Tanh,
}

impl Smooth {
    /// The smooth activation that an activation is, if it is one.
    pub(crate) fn of(activation: Activation) -> Option<Smooth> {
        match activation {
            Activation::Silu => Some(Smooth::Silu),
            Activation::Hardswish => Some(Smooth::Hardswish),
            Activation::Sigmoid => Some(Smooth::Sigmoid),
            Activation::Tanh => Some(Smooth::Tanh),
            _ => None,
        }
    }
}

impl Function for Smooth {
    const LONG: bool = true;

    #[inline(always)]
    fn forward<V: Vector<Scalar: Real>>(self, z: V) -> V {
        let z = z.widen();
        V::narrow(match self {
            Smooth::Silu => {
                // What is 0 beyond the least exponent stays so.
                let least = splat::<V::Wide>(LEAST_EXPONENT);
                sigmoid_times(z, V::Wide::select_less(z, least, least, z))
            }
            Smooth::Hardswish => {
                let (zero, six) = (splat::<V::Wide>(0.0), splat::<V::Wide>(6.0));
                let ramp = z + splat(3.0);
                let ramp = V::Wide::select_less(ramp, zero, zero, ramp);
                // Divided first, so that no product overflows.
                z * (V::Wide::select_less(six, ramp, six, ramp) / six)
            }
            Smooth::Sigmoid => sigmoid_times(z, splat(1.0)),
            Smooth::Tanh => tanh(z),
        })
    }
}

/// `factor / (1 + exp(-z))`, as `factor / (1 + a)` or `factor a / (1 + a)` with `a = exp(-|z|)`, which
/// does not overflow. What rounding leaves of `a` and of the denominator is kept.
#[inline(always)]
fn sigmoid_times<W: Vector<Scalar = f64> + Double>(z: W, factor: W) -> W {
    let (zero, one) = (splat::<W>(0.0), splat::<W>(1.0));
    let [power, rest] = exponential(W::select_less(z, zero, z, zero - z));
    // Powers below 2⁻¹⁰²² in two steps.
    let half = round(power * splat(0.5));
    let (scale, again) = (half.power_of_two(), (power - half).power_of_two());
    let high = one + rest;
    let low = one - high + rest;
    let a = high * scale * again;
    let denominator = one + a;
    let missing = one - denominator + a + low * scale * again;
    // With the factor before the scale, little is lost to subnormal numbers.
    let above = factor * W::select_less(z, zero, high, one);
    let left = factor * W::select_less(z, zero, low, zero);
    let quotient = above / denominator;
    let quotient = quotient + (left - quotient * missing) / denominator;
    let value = W::select_less(z, zero, quotient * scale * again, quotient);
    // Beyond 40 the denominator is 1; what is missing of an infinite factor would be no number.
    W::select_less(splat(40.0), z, factor, value)
}

/// `e / (e + 2)`, with `e = exp(2 |z|) - 1` and the sign of `z`.
#[inline(always)]
fn tanh<W: Vector<Scalar = f64> + Double>(z: W) -> W {
    let (zero, one, two) = (splat::<W>(0.0), splat::<W>(1.0), splat::<W>(2.0));
    let size = W::select_less(z, zero, zero - z, z);
    // Beyond 20 it is 1.
    let most = splat::<W>(20.0);
    let [power, rest] = exponential(W::select_less(most, size, most, size) * two);
    let scale = power.power_of_two();
    let e = scale * rest + (scale - one);
    let denominator = e + two;
    let missing = two - denominator + e;
    let value = e / denominator;
    let value = value - value * missing / denominator;
    let value = W::select_less(z, zero, zero - value, value);
    // Near zero it is z, the sign of a zero included.
    W::select_less(size, splat(2.0_f64.powi(-28)), z, value)
}

/// The nearest whole number, of numbers below 2⁵¹.
#[inline(always)]
fn round<W: Vector<Scalar = f64>>(x: W) -> W {
    let magic = splat::<W>(1.5 * 2.0_f64.powi(52));
    x + magic - magic
}

/// `k` and `exp(r) - 1` with `exp(x) = 2ᵏ exp(r)` and `|r| <= ln 2 / 2`, for `x` from -760 to 709; numbers
/// beyond are taken for the ends.
///
/// `r` is found with ln 2 as a sum of two numbers, the first of so few digits that its multiples are
/// exact (Cody & Waite 1980, "Software manual for the elementary functions"); then Taylor's
/// polynomial to the thirteenth power, whose remainder is below 2⁻⁵⁷ of `r`.
#[inline(always)]
fn exponential<W: Vector<Scalar = f64>>(x: W) -> [W; 2] {
    let (least, most) = (splat::<W>(LEAST_EXPONENT), splat::<W>(709.0));
    let x = W::select_less(x, least, least, x);
    let x = W::select_less(most, x, most, x);
    let k = round(x * splat(std::f64::consts::LOG2_E));
    let high = f64::from_bits(std::f64::consts::LN_2.to_bits() & !0x1f_ffff);
    let r = x - k * splat(high) - k * splat(LN_2_LOW);
    let mut sum = splat::<W>(INVERSE_FACTORIALS[11]);
    let mut i = 11;
    while i > 0 {
        i -= 1;
        sum = splat::<W>(INVERSE_FACTORIALS[i]) + sum * r;
    }
    [k, r + r * r * sum]
}

/// `exp` of this is 0, and so is this times it.
const LEAST_EXPONENT: f64 = -760.0;

/// ln 2 less its first 32 binary digits.
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// `1 / 2!`, `1 / 3!`, …, `1 / 13!`.
const INVERSE_FACTORIALS: [f64; 12] = {
    let mut inverse = [0.0; 12];
    let (mut i, mut factorial) = (0, 1.0);
    while i < 12 {
        factorial *= (i + 2) as f64;
        inverse[i] = 1.0 / factorial;
        i += 1;
    }
    inverse
};

/// Runs `$body` with `$stage` standing for the [`Stage`] that the epilogue `$epilogue` of training
/// is.
macro_rules! with_training_stage {
    ($epilogue:expr, $stage:ident => $body:expr) => {{
        let epilogue = $epilogue;
        if epilogue.is_none() {
            let $stage = $crate::epilogue::Nothing;
            $body
        } else {
            let function = $crate::epilogue::Gate::of(epilogue.activation);
            let function = function.expect("activations of training were checked");
            let $stage = $crate::epilogue::Then { residual: epilogue.residual, function };
            $body
        }
    }};
}
pub(crate) use with_training_stage;

/// Runs `$body` with `$stage` standing for the [`Stage`] that any epilogue `$epilogue` is.
macro_rules! with_stage {
    ($epilogue:expr, $stage:ident => $body:expr) => {{
        let epilogue = $epilogue;
        if let Some(function) = $crate::epilogue::Smooth::of(epilogue.activation) {
            let $stage = $crate::epilogue::Then { residual: epilogue.residual, function };
            $body
        } else {
            $crate::epilogue::with_training_stage!(epilogue, $stage => $body)
        }
    }};
}
pub(crate) use with_stage;
