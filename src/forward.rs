//! The forward verbs: [`moments`], [`apply`], and both in one pass, [`batch_norm`].

use crate::affine::Affine;
use crate::aligned::Aligned;
use crate::element::{Element, Real};
use crate::epilogue::{Epilogue, RawEpilogue, with_stage, with_training_stage};
use crate::error::Error;
use crate::execution::Execution;
use crate::items::{Finish, group};
use crate::kernels::GROUP;
use crate::kernels::apply::{self, Apply};
use crate::kernels::moments::MomentTerms;
use crate::mask::Batch;
use crate::moments::{self, Moments};
use crate::renorm::{self, Renorm};
use crate::schedule::Plan;
use crate::simd::{FloatMode, Level};
use crate::sweep;
use crate::view::View;

/// Statistics of each channel of `x`, over the positions that count.
///
/// # Errors
/// [`Error::Shape`] if `x` is not exactly the elements of the batch.
///
/// ```
/// use rustbn::{Execution, View, moments};
/// let view = View { outer: 2, channels: 2, inner: 2 };
/// let x = [0.0_f32, 2.0, 5.0, 5.0, 4.0, 6.0, 5.0, 5.0];
/// let moments = moments(view, &x, Execution::current()?)?;
/// assert_eq!(moments.mean(), [3.0, 5.0]);
/// assert_eq!(moments.var(0.0), [5.0, 0.0]);
/// # Ok::<(), rustbn::Error>(())
/// ```
pub fn moments<'a, E: Element>(
    batch: impl Into<Batch<'a>>,
    x: &[E],
    execution: Execution,
) -> Result<Moments, Error> {
    let batch = batch.into();
    batch.view.check("x", x)?;
    // SAFETY: `x` is exactly the elements of the batch.
    Ok(unsafe { moments_raw(batch, x.as_ptr(), execution) })
}

/// Writes `activation((x - mean) * scale + bias + residual)` to `y`: batch normalization once its
/// statistics are known, and what comes after it.
///
/// # Errors
/// [`Error::Shape`] if `x`, `y` or the residual is not exactly the elements of `view`;
/// [`Error::Length`] if `affine` has other channels.
pub fn apply<E: Element>(
    view: View,
    x: &[E],
    affine: &Affine,
    epilogue: Epilogue<'_, E>,
    y: &mut [E],
    execution: Execution,
) -> Result<(), Error> {
    view.check("x", x)?;
    view.check("y", y)?;
    view.check_vector("mean", affine.mean())?;
    epilogue.residual.map_or(Ok(()), |residual| view.check("residual", residual))?;
    // SAFETY: all are exactly the elements of `view`, and a `&mut` shares memory with nothing.
    unsafe { apply_raw(view, x.as_ptr(), affine, epilogue.raw(), y.as_mut_ptr(), execution) };
    Ok(())
}

/// [`apply`] in place.
///
/// # Errors
/// As [`apply`].
pub fn apply_in_place<E: Element>(
    view: View,
    x: &mut [E],
    affine: &Affine,
    epilogue: Epilogue<'_, E>,
    execution: Execution,
) -> Result<(), Error> {
    view.check("x", x)?;
    view.check_vector("mean", affine.mean())?;
    epilogue.residual.map_or(Ok(()), |residual| view.check("residual", residual))?;
    let x = x.as_mut_ptr();
    // SAFETY: exactly the elements of `view`, which the output may be as well.
    unsafe { apply_raw(view, x, affine, epilogue.raw(), x, execution) };
    Ok(())
}

/// Normalises `x` with its own statistics, those of the positions that count, and writes the result to `y`: the training forward pass
/// (Ioffe & Szegedy 2015, Algorithm 1), walking blocks of channels while they are in the cache.
/// Returns the statistics; the result is, bit for bit, that of [`moments`],
/// [`Affine::from_moments`] and [`apply`].
///
/// # Errors
/// [`Error::Shape`] if `x`, `y` or the residual is not exactly the elements of the batch;
/// [`Error::TooFewValues`] if no position counts; [`Error::Length`] if `weight` or `bias` is not one
/// value a channel; [`Error::Range`] for an activation of inference.
#[allow(clippy::too_many_arguments)]
pub fn batch_norm<'a, E: Element>(
    batch: impl Into<Batch<'a>>,
    x: &[E],
    weight: Option<&[f64]>,
    bias: Option<&[f64]>,
    eps: f64,
    epilogue: Epilogue<'_, E>,
    y: &mut [E],
    execution: Execution,
) -> Result<Moments, Error> {
    let batch = batch.into();
    let view = batch.view;
    view.check("x", x)?;
    view.check("y", y)?;
    weight.map_or(Ok(()), |weight| view.check_vector("weight", weight))?;
    bias.map_or(Ok(()), |bias| view.check_vector("bias", bias))?;
    epilogue.residual.map_or(Ok(()), |residual| view.check("residual", residual))?;
    epilogue.activation.check_training()?;
    if batch.count() == 0 && !view.is_empty() {
        let purpose = "batch statistics";
        return Err(Error::TooFewValues { argument: "mask", purpose, got: 0 });
    }
    let finish = Normalise { count: batch.count(), weight, bias, eps, renorm: None };
    let (x, epilogue, y) = (x.as_ptr(), epilogue.raw(), y.as_mut_ptr());
    // SAFETY: all are exactly the elements of the batch, a `&mut` shares memory with nothing, and
    // count, vectors and activation were checked.
    Ok(unsafe { batch_norm_raw(batch, x, finish, epilogue, y, execution) })
}

/// [`moments`] of the elements at `x`.
///
/// # Safety
/// `x` is readable for the batch.
pub(crate) unsafe fn moments_raw<E: Element>(
    batch: Batch<'_>,
    x: *const E,
    execution: Execution,
) -> Moments {
    let (Batch { view, mask }, count) = (batch, batch.count());
    if view.is_empty() || count == 0 {
        return Moments::none(view.channels, count);
    }
    let _mode = FloatMode::standard();
    let plan = Plan::new(view, size_of::<E>(), 1, execution).alone();
    let terms = MomentTerms::new(batch, x);
    // SAFETY: the caller vouches for `x`; it is not empty.
    let sums = unsafe { sweep::reduce(&plan, mask, terms) };
    Moments::from_sums(count, &sums)
}

/// [`apply`] from `x` to `y`.
///
/// # Safety
/// `x` and a residual are readable and `y` writable for `view`; `y` is one of them or shares no
/// memory with them; `affine` has the channels of `view`.
pub(crate) unsafe fn apply_raw<E: Element>(
    view: View,
    x: *const E,
    affine: &Affine,
    epilogue: RawEpilogue<E>,
    y: *mut E,
    execution: Execution,
) {
    let table = table(affine, execution.level);
    // SAFETY: handed on to the caller.
    unsafe { apply_table_raw(view, x, &table, epilogue, y, execution) };
}

/// [`apply`] from `x` to `y` of the transformation whose [`table`] is given.
///
/// # Safety
/// As [`apply_raw`].
pub(crate) unsafe fn apply_table_raw<E: Element>(
    view: View,
    x: *const E,
    table: &[E::Real],
    epilogue: RawEpilogue<E>,
    y: *mut E,
    execution: Execution,
) {
    if view.is_empty() {
        return;
    }
    with_stage!(epilogue, stage => {
        // SAFETY: handed on to the caller.
        unsafe { sweep::map(view.into(), execution, Apply { x, y, stage }, table) };
    });
}

/// [`batch_norm`] from `x` to `y`.
///
/// # Safety
/// `x` and a residual are readable and `y` writable for the batch; `y` is one of them or shares no
/// memory with them; a position counts, or the batch is empty; `finish` is of its count and channels; the activation is
/// a gate.
pub(crate) unsafe fn batch_norm_raw<E: Element>(
    batch: Batch<'_>,
    x: *const E,
    finish: Normalise<'_>,
    epilogue: RawEpilogue<E>,
    y: *mut E,
    execution: Execution,
) -> Moments {
    let (Batch { view, mask }, count) = (batch, finish.count);
    if view.is_empty() {
        return Moments::none(view.channels, count);
    }
    let _mode = FloatMode::standard();
    // A residual is read by the second sweep alone and need not stay in the cache.
    let plan = Plan::new(view, size_of::<E>(), 1, execution);
    let sums = with_training_stage!(epilogue, stage => {
        let sweeps = (MomentTerms::new(batch, x), Apply { x, y, stage });
        // SAFETY: the caller vouches for `x`, `y` and the residual; the batch is not empty.
        unsafe { sweep::fused(&plan, mask, |_, _| {}, sweeps, finish) }
    });
    Moments::from_sums(count, &sums)
}

/// The coefficients of a transformation, for [`sweep::map`].
pub(crate) fn table<R: Real>(affine: &Affine, level: Level) -> Aligned<R> {
    sweep::finished(level, Given, affine.mean(), [affine.scale(), affine.bias()])
}

/// The [`table`] of [`Affine::from_running`], without the nouns in between. All vectors have the same
/// channels.
#[cfg(feature = "python")]
pub(crate) fn running_table<R: Real, V: Element>(
    level: Level,
    [running_mean, running_var]: [&[V]; 2],
    [weight, bias]: [Option<&[V]>; 2],
    eps: f64,
) -> Aligned<R> {
    let finish = Infer { weight, bias, eps };
    sweep::finished(level, finish, running_mean, [running_var, running_var])
}

/// From a transformation to its coefficients.
#[derive(Clone, Copy)]
struct Given;

impl<R: Real> Finish<R, 4> for Given {
    #[inline(always)]
    fn coefficients(
        self,
        _: usize,
        mean: [f64; GROUP],
        [scale, bias]: [[f64; GROUP]; 2],
    ) -> [[R; GROUP]; 4] {
        of_channels(mean, scale, bias)
    }
}

/// From running statistics to the coefficients of the normalisation.
#[cfg(feature = "python")]
#[derive(Clone, Copy)]
struct Infer<'a, V> {
    weight: Option<&'a [V]>,
    bias: Option<&'a [V]>,
    eps: f64,
}

#[cfg(feature = "python")]
impl<R: Real, V: Element> Finish<R, 4> for Infer<'_, V> {
    #[inline(always)]
    fn coefficients(
        self,
        channel: usize,
        mean: [f64; GROUP],
        [var, _]: [[f64; GROUP]; 2],
    ) -> [[R; GROUP]; 4] {
        let [weight, bias] = parameters(channel, self.weight, self.bias);
        let scale = std::array::from_fn(|i| moments::invstd(var[i], self.eps) * weight[i]);
        of_channels(mean, scale, bias)
    }
}

/// Weight and bias of [`GROUP`] channels from `channel` on.
#[inline(always)]
fn parameters<V: Element>(
    channel: usize,
    weight: Option<&[V]>,
    bias: Option<&[V]>,
) -> [[f64; GROUP]; 2] {
    [
        weight.map_or([1.0; GROUP], |weight| group(weight, channel)),
        bias.map_or([0.0; GROUP], |bias| group(bias, channel)),
    ]
}

/// The coefficients of [`GROUP`] channels.
#[inline(always)]
fn of_channels<R: Real>(
    mean: [f64; GROUP],
    scale: [f64; GROUP],
    bias: [f64; GROUP],
) -> [[R; GROUP]; 4] {
    let mut coefficients = [[R::from_f64(0.0); GROUP]; 4];
    for i in 0..GROUP {
        let of_channel = apply::coefficients::<R>(mean[i], scale[i], bias[i]);
        for k in 0..4 {
            coefficients[k][i] = of_channel[k];
        }
    }
    coefficients
}

/// From sums about pivots to the coefficients of the normalisation.
#[derive(Clone, Copy)]
pub(crate) struct Normalise<'a> {
    /// Values of each channel.
    pub(crate) count: u64,
    /// Scale of each channel, if it is not 1.
    pub(crate) weight: Option<&'a [f64]>,
    /// Shift of each channel, if it is not 0.
    pub(crate) bias: Option<&'a [f64]>,
    /// Added to the variance.
    pub(crate) eps: f64,
    /// Statistics to normalise toward, if there are any.
    pub(crate) renorm: Option<Renorm<'a>>,
}

impl<R: Real> Finish<R, 4> for Normalise<'_> {
    #[inline(always)]
    fn coefficients(
        self,
        channel: usize,
        centers: [f64; GROUP],
        [first, second]: [[f64; GROUP]; 2],
    ) -> [[R; GROUP]; 4] {
        let mut mean = [0.0; GROUP];
        let mut var = [0.0; GROUP];
        let mut invstd = [0.0; GROUP];
        for i in 0..GROUP {
            let (of_channel, m2) =
                moments::mean_and_m2(self.count, centers[i], [first[i], second[i]]);
            mean[i] = of_channel;
            var[i] = moments::biased_var(self.count, m2);
            invstd[i] = moments::invstd(var[i], self.eps);
        }
        let [mut weight, mut bias] = parameters(channel, self.weight, self.bias);
        if let Some(renorm) = self.renorm {
            let [running_mean, running_var] = renorm.running().map(|values| group(values, channel));
            for i in 0..GROUP {
                let (batch, running) = ([mean[i], var[i]], [running_mean[i], running_var[i]]);
                let correction = renorm.correction(batch, running, self.eps);
                [weight[i], bias[i]] = renorm::parameters(correction, weight[i], bias[i]);
            }
        }
        of_channels(mean, std::array::from_fn(|i| invstd[i] * weight[i]), bias)
    }
}
