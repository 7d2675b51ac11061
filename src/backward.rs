//! The backward verbs: [`backward_reduce`], [`backward_apply`], and both in one pass,
//! [`batch_norm_backward`].
//!
//! With `n` values a channel, `μ` and `invstd` of the batch, and `scale = weight * invstd` (Ioffe &
//! Szegedy 2015, section 3, the chain rule through the statistics):
//!
//! ```text
//! dbias   = Σ dy
//! dweight = Σ dy (x - μ) · invstd
//! dx      = scale · (dy - Σdy / n - (x - μ) · invstd² · Σ dy (x - μ) / n)
//! ```
//!
//! Behind an activation the same holds of `dz`, the gradient with respect to what it was applied to,
//! which is also that with respect to a residual. It is written first ([`Upstream`]): to where the
//! residual's gradient goes, or else to where `dx` will be.
//!
//! Running statistics are constants: then `dx = dy · scale`, an [`Affine`](crate::Affine) without
//! mean and bias, and the sums are about the running mean.

use crate::affine::Affine;
use crate::element::{Element, Real};
use crate::epilogue::{Epilogue, Gate, RawEpilogue, Then};
use crate::error::Error;
use crate::execution::Execution;
use crate::forward;
use crate::grad_sums::{GradSums, about_mean};
use crate::items::{Finish, group};
use crate::kernels::GROUP;
use crate::kernels::backward_apply::{self, BackwardApply};
use crate::kernels::backward_reduce::GradTerms;
use crate::kernels::gate::GateMap;
use crate::kernels::map::{Stores, Table};
use crate::mask::Batch;
use crate::moments::{self, Moments};
use crate::schedule::Plan;
use crate::simd::FloatMode;
use crate::sweep;
use crate::view::View;

/// The two sums that the gradients are made of, about the mean of `moments`: the statistics that
/// the forward pass normalised with. Running statistics do as well, as those of one value. All
/// positions are summed; what does not count adds nothing where `dy` is zero, whatever `x` is there.
///
/// # Errors
/// [`Error::Shape`] if `dy` or `x` is not exactly the elements of the batch; [`Error::Length`] if
/// `moments` has other channels.
pub fn backward_reduce<'a, E: Element>(
    batch: impl Into<Batch<'a>>,
    dy: &[E],
    x: &[E],
    moments: &Moments,
    execution: Execution,
) -> Result<GradSums, Error> {
    let batch = batch.into();
    batch.view.check("x", x)?;
    batch.view.check("dy", dy)?;
    batch.view.check_vector("moments", moments.mean())?;
    // SAFETY: both are exactly the elements of the batch, and the channels of `moments` were checked.
    Ok(unsafe { backward_reduce_raw(batch, dy.as_ptr(), x.as_ptr(), moments, execution) })
}

/// Writes the gradient with respect to `x` to `dx`, from statistics and sums of the whole batch, of
/// which `x` may be a part. At positions that do not count it is `dy * scale`.
///
/// # Errors
/// [`Error::Shape`] if `dy`, `x` or `dx` is not exactly the elements of the batch; [`Error::Length`]
/// if `moments`, `sums` or `weight` has other channels.
#[allow(clippy::too_many_arguments)]
pub fn backward_apply<'a, E: Element>(
    batch: impl Into<Batch<'a>>,
    dy: &[E],
    x: &[E],
    moments: &Moments,
    sums: &GradSums,
    weight: Option<&[f64]>,
    eps: f64,
    dx: &mut [E],
    execution: Execution,
) -> Result<(), Error> {
    let batch = batch.into();
    check(&batch.view, dy, x, moments, weight, dx)?;
    batch.view.check_vector("grad_sums", sums.sum_dy())?;
    // SAFETY: all are exactly the elements of the batch, a `&mut` shares memory with nothing, and the
    // vectors were checked.
    unsafe {
        backward_apply_raw(
            batch,
            dy.as_ptr(),
            x.as_ptr(),
            sums,
            Differentiate { moments, weight, eps },
            dx.as_mut_ptr(),
            execution,
        );
    }
    Ok(())
}

/// The training backward pass: writes the gradient with respect to `x` to `dx` and returns the sums
/// that those of weight and bias are made of. The result is, bit for bit, that of
/// [`backward_reduce`] and [`backward_apply`].
///
/// # Errors
/// As [`backward_apply`].
#[allow(clippy::too_many_arguments)]
pub fn batch_norm_backward<'a, E: Element>(
    batch: impl Into<Batch<'a>>,
    dy: &[E],
    x: &[E],
    moments: &Moments,
    weight: Option<&[f64]>,
    eps: f64,
    dx: &mut [E],
    execution: Execution,
) -> Result<GradSums, Error> {
    let batch = batch.into();
    check(&batch.view, dy, x, moments, weight, dx)?;
    // SAFETY: all are exactly the elements of the batch, a `&mut` shares memory with nothing, and the
    // vectors were checked.
    Ok(unsafe {
        batch_norm_backward_raw(
            batch,
            Upstream { dy: dy.as_ptr(), gate: None },
            x.as_ptr(),
            Differentiate { moments, weight, eps },
            dx.as_mut_ptr(),
            execution,
        )
    })
}

/// Writes to `dz` the gradient with respect to what the activation was applied to, and so to a
/// residual, of the gradient `dy` with respect to its output. Normalisation goes on from there with
/// [`batch_norm_backward`]. `affine` is what normalised `x` in the forward pass.
///
/// # Errors
/// [`Error::Shape`] if `dy`, `x`, `dz` or the residual is not exactly the elements of `view`;
/// [`Error::Length`] if `affine` has other channels; [`Error::Range`] for an activation of inference.
pub fn epilogue_backward<E: Element>(
    view: View,
    dy: &[E],
    x: &[E],
    affine: &Affine,
    epilogue: Epilogue<'_, E>,
    dz: &mut [E],
    execution: Execution,
) -> Result<(), Error> {
    view.check("x", x)?;
    view.check("dy", dy)?;
    view.check("dz", dz)?;
    view.check_vector("mean", affine.mean())?;
    epilogue.residual.map_or(Ok(()), |residual| view.check("residual", residual))?;
    epilogue.activation.check_training()?;
    let gate = Gating { epilogue: epilogue.raw(), affine, dz: dz.as_mut_ptr() };
    // SAFETY: all are exactly the elements of `view`, a `&mut` shares memory with nothing, and
    // affine and activation were checked.
    unsafe { gate_raw(view, dy.as_ptr(), x.as_ptr(), gate, execution) };
    Ok(())
}

fn check<E>(
    view: &View,
    dy: &[E],
    x: &[E],
    moments: &Moments,
    weight: Option<&[f64]>,
    dx: &[E],
) -> Result<(), Error> {
    view.check("x", x)?;
    view.check("dy", dy)?;
    view.check("dx", dx)?;
    view.check_vector("moments", moments.mean())?;
    weight.map_or(Ok(()), |weight| view.check_vector("weight", weight))
}

/// [`backward_reduce`] of the elements at `dy` and `x`.
///
/// # Safety
/// `dy` and `x` are readable for the batch; `moments` has its channels.
pub(crate) unsafe fn backward_reduce_raw<E: Element>(
    batch: Batch<'_>,
    dy: *const E,
    x: *const E,
    moments: &Moments,
    execution: Execution,
) -> GradSums {
    let Batch { view, mask } = batch;
    if view.is_empty() {
        return GradSums::zero(view.channels);
    }
    let _mode = FloatMode::standard();
    let plan = Plan::new(view, size_of::<E>(), 2, execution).alone();
    // SAFETY: handed on to the caller.
    let sums =
        unsafe { sweep::reduce(&plan, mask, GradTerms::new(dy, x, moments, mask.is_some())) };
    GradSums::from_sums(&sums, moments)
}

/// From gradient sums to the coefficients of `dx`.
#[derive(Clone, Copy)]
pub(crate) struct Differentiate<'a> {
    /// The statistics that normalised.
    pub(crate) moments: &'a Moments,
    /// Scale of each channel, if it is not 1.
    pub(crate) weight: Option<&'a [f64]>,
    /// Added to the variance.
    pub(crate) eps: f64,
}

impl<R: Real> Finish<R, 5> for Differentiate<'_> {
    #[inline(always)]
    fn coefficients(
        self,
        channel: usize,
        centers: [f64; GROUP],
        [sum_dy, sum_dy_xc]: [[f64; GROUP]; 2],
    ) -> [[R; GROUP]; 5] {
        let count = self.moments.count();
        let n = count as f64;
        let mean = group(self.moments.mean(), channel);
        let m2 = group(self.moments.m2(), channel);
        let weight = self.weight.map_or([1.0; GROUP], |weight| group(weight, channel));
        let mut coefficients = [[R::from_f64(0.0); GROUP]; 5];
        for i in 0..GROUP {
            let invstd = moments::invstd(moments::biased_var(count, m2[i]), self.eps);
            let sum_dy_xmu = about_mean(sum_dy_xc[i], sum_dy[i], centers[i], mean[i]);
            let slope = invstd * invstd * (sum_dy_xmu / n);
            let scale = invstd * weight[i];
            let of_channel =
                backward_apply::coefficients::<R>(mean[i], sum_dy[i] / n, slope, scale);
            for (of_channels, value) in coefficients.iter_mut().zip(of_channel) {
                of_channels[i] = value;
            }
        }
        coefficients
    }
}

/// [`backward_apply`] from `dy` and `x` to `dx`.
///
/// # Safety
/// `dy` and `x` are readable and `dx` writable for the batch; `dx` is `dy`, is `x`, or shares no memory
/// with them; `sums` and `finish` have its channels.
pub(crate) unsafe fn backward_apply_raw<E: Element>(
    batch: Batch<'_>,
    dy: *const E,
    x: *const E,
    sums: &GradSums,
    finish: Differentiate<'_>,
    dx: *mut E,
    execution: Execution,
) {
    if batch.view.is_empty() {
        return;
    }
    let (mean, sums) = (finish.moments.mean(), [sums.sum_dy(), sums.sum_dy_xmu()]);
    let table = sweep::finished(execution.level, finish, mean, sums);
    // SAFETY: handed on to the caller.
    unsafe { sweep::map(batch, execution, BackwardApply { dy, x, dx }, &table) };
}

/// What comes from above: `dy`, or what an activation behind the normalisation makes of it.
#[derive(Clone, Copy)]
pub(crate) struct Upstream<'a, E> {
    /// Gradient with respect to the output.
    pub(crate) dy: *const E,
    /// How `dz` is made of it; none where it is `dy`.
    pub(crate) gate: Option<Gating<'a, E>>,
}

/// An activation to go back through.
#[derive(Clone, Copy)]
pub(crate) struct Gating<'a, E> {
    /// What the forward pass did after normalisation.
    pub(crate) epilogue: RawEpilogue<E>,
    /// The normalisation of the forward pass.
    pub(crate) affine: &'a Affine,
    /// Where `dz` goes.
    pub(crate) dz: *mut E,
}

/// Writes `dz`, all of it.
///
/// # Safety
/// `dy`, `x` and a residual are readable and `dz` writable for `view`; `dz` is `dy` or shares no
/// memory with them; the affine has the channels of `view`; the activation is a gate.
pub(crate) unsafe fn gate_raw<E: Element>(
    view: View,
    dy: *const E,
    x: *const E,
    Gating { epilogue, affine, dz }: Gating<'_, E>,
    execution: Execution,
) {
    if view.is_empty() {
        return;
    }
    let table = forward::table(affine, execution.level);
    let map = GateMap { dy, x, then: then(epilogue), dz };
    // SAFETY: handed on to the caller.
    unsafe { sweep::map(view.into(), execution, map, &table) };
}

/// An epilogue of training as kernels see it.
fn then<E>(RawEpilogue { residual, activation }: RawEpilogue<E>) -> Then<E, Gate> {
    let function = Gate::of(activation).expect("activations of training were checked");
    Then { residual, function }
}

/// [`batch_norm_backward`] from `upstream` and `x` to `dx`.
///
/// # Safety
/// `dy`, `x` and a residual are readable and `dx` and `dz` writable for the batch; `dx` is `dy` or
/// shares no memory with them; `dz` is `dx` or `dy` or shares no memory with any; `finish` and the affine have the channels
/// of the batch; the activation is a gate.
pub(crate) unsafe fn batch_norm_backward_raw<E: Element>(
    batch: Batch<'_>,
    upstream: Upstream<'_, E>,
    x: *const E,
    finish: Differentiate<'_>,
    dx: *mut E,
    execution: Execution,
) -> GradSums {
    let (Batch { view, mask }, moments) = (batch, finish.moments);
    if view.is_empty() {
        return GradSums::zero(view.channels);
    }
    let _mode = FloatMode::standard();
    let Upstream { dy, gate } = upstream;
    let inputs = 2 + gate.map_or(0, |gate| 1 + gate.epilogue.inputs());
    let of_normalised = gate.map_or(dy, |gate| gate.dz.cast_const());
    let terms = GradTerms::new(of_normalised, x, moments, mask.is_some());
    let sweeps = (terms, BackwardApply { dy: of_normalised, x, dx });
    let plan = Plan::new(view, size_of::<E>(), inputs, execution);
    let Some(Gating { epilogue, affine, dz }) = gate else {
        // SAFETY: handed on to the caller; a block's sums are complete before the first of its
        // outputs is written.
        let sums = unsafe { sweep::fused(&plan, mask, |_, _| {}, sweeps, finish) };
        return GradSums::from_sums(&sums, moments);
    };
    let coefficients = forward::table::<E::Real>(affine, plan.level);
    let table = Table::new(coefficients.as_ptr(), view.channels);
    let gate = GateMap { dy, x, then: then(epilogue), dz };
    let before = |plan: &Plan, item| {
        // What is written here is read soon.
        let first = Plan { stores: Stores::Ordinary, ahead: 0, ..*plan };
        // SAFETY: `fused` calls this for each block and chunk once, before it reads `dz` there; the table
        // outlives it; the rest is handed on to the caller.
        unsafe { sweep::map_item(&first, None, gate, table, item) }
    };
    // SAFETY: handed on to the caller.
    let sums = unsafe { sweep::fused(&plan, mask, before, sweeps, finish) };
    GradSums::from_sums(&sums, moments)
}
