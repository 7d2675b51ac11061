//! The forward verbs: [`moments`], [`apply`], and both in one pass, [`batch_norm`].

use crate::affine::Affine;
use crate::element::{Element, Real};
use crate::epilogue::{Epilogue, RawEpilogue, with_stage, with_training_stage};
use crate::error::Error;
use crate::execution::Execution;
use crate::items::{Finish, group};
use crate::kernels::GROUP;
use crate::kernels::apply::{self, Apply};
use crate::kernels::moments::MomentTerms;
use crate::moments::{self, Moments};
use crate::schedule::Plan;
use crate::sweep;
use crate::view::View;

/// Statistics of each channel of `x`.
///
/// # Errors
/// [`Error::Shape`] if `x` is not exactly the elements of `view`.
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
pub fn moments<E: Element>(view: View, x: &[E], execution: Execution) -> Result<Moments, Error> {
    view.check("x", x)?;
    // SAFETY: `x` is exactly the elements of `view`.
    Ok(unsafe { moments_raw(view, x.as_ptr(), execution) })
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

/// Normalises `x` with its own statistics and writes the result to `y`: the training forward pass
/// (Ioffe & Szegedy 2015, Algorithm 1), walking blocks of channels while they are in the cache.
/// Returns the statistics; the result is, bit for bit, that of [`moments`],
/// [`Affine::from_moments`] and [`apply`].
///
/// # Errors
/// [`Error::Shape`] if `x`, `y` or the residual is not exactly the elements of `view`;
/// [`Error::Length`] if `weight` or `bias` is not one value a channel; [`Error::Range`] for an
/// activation of inference.
#[allow(clippy::too_many_arguments)]
pub fn batch_norm<E: Element>(
    view: View,
    x: &[E],
    weight: Option<&[f64]>,
    bias: Option<&[f64]>,
    eps: f64,
    epilogue: Epilogue<'_, E>,
    y: &mut [E],
    execution: Execution,
) -> Result<Moments, Error> {
    view.check("x", x)?;
    view.check("y", y)?;
    weight.map_or(Ok(()), |weight| view.check_vector("weight", weight))?;
    bias.map_or(Ok(()), |bias| view.check_vector("bias", bias))?;
    epilogue.residual.map_or(Ok(()), |residual| view.check("residual", residual))?;
    epilogue.activation.check_training()?;
    let (epilogue, y) = (epilogue.raw(), y.as_mut_ptr());
    // SAFETY: all are exactly the elements of `view`, a `&mut` shares memory with nothing, and
    // vectors and activation were checked.
    Ok(unsafe { batch_norm_raw(view, x.as_ptr(), weight, bias, eps, epilogue, y, execution) })
}

/// [`moments`] of the elements at `x`.
///
/// # Safety
/// `x` is readable for `view`.
pub(crate) unsafe fn moments_raw<E: Element>(
    view: View,
    x: *const E,
    execution: Execution,
) -> Moments {
    if view.is_empty() {
        return Moments::none(view);
    }
    let plan = Plan::new(view, size_of::<E>(), 1, execution);
    // SAFETY: the caller vouches for `x`; the view is not empty.
    let sums = unsafe { sweep::reduce(&plan, execution.level, MomentTerms(x)) };
    Moments::from_sums(view.count() as u64, &sums.centers, &sums.first, &sums.second)
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
    if view.is_empty() {
        return;
    }
    let plan = Plan::elementwise(view, size_of::<E>(), 1 + epilogue.inputs(), execution)
        .writing(x, y)
        .writing(epilogue.residual, y);
    let table = apply::table(affine, execution.level);
    with_stage!(epilogue, stage => {
        // SAFETY: handed on to the caller.
        unsafe { sweep::map(&plan, execution.level, Apply { x, y, stage }, &table) };
    });
}

/// [`apply`] of [`Affine::from_running`] from `x` to `y`, without the nouns in between.
///
/// # Safety
/// As [`apply_raw`]; all vectors have the channels of `view`.
#[cfg(feature = "python")]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn infer_raw<E: Element>(
    view: View,
    x: *const E,
    running_mean: &[f64],
    running_var: &[f64],
    weight: Option<&[f64]>,
    bias: Option<&[f64]>,
    eps: f64,
    epilogue: RawEpilogue<E>,
    y: *mut E,
    execution: Execution,
) {
    if view.is_empty() {
        return;
    }
    let plan = Plan::elementwise(view, size_of::<E>(), 1 + epilogue.inputs(), execution)
        .writing(x, y)
        .writing(epilogue.residual, y);
    let finish = Infer { weight, bias, eps };
    let table = sweep::finished(execution.level, finish, running_mean, [running_var, running_var]);
    with_stage!(epilogue, stage => {
        // SAFETY: handed on to the caller.
        unsafe { sweep::map(&plan, execution.level, Apply { x, y, stage }, &table) };
    });
}

/// [`batch_norm`] from `x` to `y`.
///
/// # Safety
/// `x` and a residual are readable and `y` writable for `view`; `y` is one of them or shares no
/// memory with them; `weight` and `bias` have the channels of `view`; the activation is a gate.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn batch_norm_raw<E: Element>(
    view: View,
    x: *const E,
    weight: Option<&[f64]>,
    bias: Option<&[f64]>,
    eps: f64,
    epilogue: RawEpilogue<E>,
    y: *mut E,
    execution: Execution,
) -> Moments {
    if view.is_empty() {
        return Moments::none(view);
    }
    // A residual is read by the second sweep alone and need not stay in the cache.
    let plan =
        Plan::new(view, size_of::<E>(), 1, execution).writing(x, y).writing(epilogue.residual, y);
    let count = view.count() as u64;
    let finish = Normalise { count, weight, bias, eps };
    let sums = with_training_stage!(epilogue, stage => {
        let map = Apply { x, y, stage };
        // SAFETY: the caller vouches for `x`, `y` and the residual; the view is not empty.
        unsafe { sweep::fused(&plan, execution.level, |_, _| {}, MomentTerms(x), map, finish) }
    });
    Moments::from_sums(count, &sums.centers, &sums.first, &sums.second)
}

/// From running statistics to the coefficients of the normalisation.
#[cfg(feature = "python")]
#[derive(Clone, Copy)]
struct Infer<'a> {
    weight: Option<&'a [f64]>,
    bias: Option<&'a [f64]>,
    eps: f64,
}

#[cfg(feature = "python")]
impl<R: Real> Finish<R, 4> for Infer<'_> {
    #[inline(always)]
    fn coefficients(
        self,
        channel: usize,
        mean: [f64; GROUP],
        [var, _]: [[f64; GROUP]; 2],
    ) -> [[R; GROUP]; 4] {
        let invstd = var.map(|var| moments::invstd(var, self.eps));
        of_channels(channel, mean, invstd, self.weight, self.bias)
    }
}

/// The coefficients of [`GROUP`] channels from `channel` on.
#[inline(always)]
fn of_channels<R: Real>(
    channel: usize,
    mean: [f64; GROUP],
    invstd: [f64; GROUP],
    weight: Option<&[f64]>,
    bias: Option<&[f64]>,
) -> [[R; GROUP]; 4] {
    let weight = weight.map_or([1.0; GROUP], |weight| group(weight, channel));
    let bias = bias.map_or([0.0; GROUP], |bias| group(bias, channel));
    let mut coefficients = [[R::from_f64(0.0); GROUP]; 4];
    for i in 0..GROUP {
        let of_channel = apply::coefficients::<R>(mean[i], invstd[i] * weight[i], bias[i]);
        for k in 0..4 {
            coefficients[k][i] = of_channel[k];
        }
    }
    coefficients
}

/// From sums about pivots to the coefficients of the normalisation.
#[derive(Clone, Copy)]
struct Normalise<'a> {
    count: u64,
    weight: Option<&'a [f64]>,
    bias: Option<&'a [f64]>,
    eps: f64,
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
        let mut invstd = [0.0; GROUP];
        for i in 0..GROUP {
            let (of_channel, m2) =
                moments::mean_and_m2(self.count, centers[i], [first[i], second[i]]);
            mean[i] = of_channel;
            invstd[i] = moments::invstd(moments::biased_var(self.count, m2), self.eps);
        }
        of_channels(channel, mean, invstd, self.weight, self.bias)
    }
}
