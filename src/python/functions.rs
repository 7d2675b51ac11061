//! The functions, in the order of the contract.

pub(super) mod ghost;
pub(super) mod group;
pub(super) mod module;

use super::argument::{self, Bounds, check_eps, check_momentum};
use super::array::{self, Input, Named, Output, Vector, with_element};
use super::context::{self, Context, Needs, Statistics};
use super::mask;
use super::nouns::{self, Running};
use super::run::{execution, released};
use crate::aligned::Aligned;
use crate::backward::Differentiate;
use crate::element::{Element, Real};
use crate::epilogue::{Activation, RawEpilogue};
use crate::error::Error;
use crate::forward::Normalise;
use crate::mask::{Batch, Mask};
use crate::renorm::Renorm;
use crate::simd::Level;
use crate::{forward, moments as core};
use pyo3::prelude::*;

/// The arguments that all forward functions share, as they come.
#[derive(Clone, Copy)]
struct Arguments<'a, 'py> {
    x: &'a Bound<'py, PyAny>,
    running_mean: Option<&'a Bound<'py, PyAny>>,
    running_var: Option<&'a Bound<'py, PyAny>>,
    weight: Option<&'a Bound<'py, PyAny>>,
    bias: Option<&'a Bound<'py, PyAny>>,
    training: bool,
    momentum: f64,
    eps: f64,
    axis: isize,
    activation: Option<&'a Bound<'py, PyAny>>,
    residual: Option<&'a Bound<'py, PyAny>>,
    mask: Option<&'a Bound<'py, PyAny>>,
    lengths: Option<&'a Bound<'py, PyAny>>,
    renorm: Option<Bounds>,
    out: Option<&'a Bound<'py, PyAny>>,
    /// Whether the output may be x or the residual itself: no backward will read them.
    in_place: bool,
}

/// The same, checked.
struct Forward<'py> {
    x: Input<'py>,
    out: Output<'py>,
    running: Option<Running<'py>>,
    weight: Option<Vector<'py>>,
    bias: Option<Vector<'py>>,
    residual: Option<Input<'py>>,
    mask: Option<Mask>,
    /// The argument that says how many values count.
    counted_by: &'static str,
    activation: Activation,
    renorm: Option<Bounds>,
    training: bool,
    momentum: f64,
    eps: f64,
}

impl<'py> Arguments<'_, 'py> {
    fn check(&self) -> PyResult<Forward<'py>> {
        let activation = argument::activation(self.activation)?;
        let arrays = [
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.residual,
            self.mask,
            self.lengths,
        ];
        if array::is_array(self.x) && arrays.into_iter().flatten().all(array::is_array) {
            return self.check_arrays(activation);
        }
        let x = array::as_array(self.x, "x")?.into_any();
        let made = |any: Option<&Bound<'py, PyAny>>, argument, in_place: bool| {
            let make = if in_place { array::as_array_in_place } else { array::as_array };
            any.map(|any| Ok::<_, PyErr>(make(any, argument)?.into_any())).transpose()
        };
        let running_mean = made(self.running_mean, "running_mean", self.training)?;
        let running_var = made(self.running_var, "running_var", self.training)?;
        let weight = made(self.weight, "weight", false)?;
        let bias = made(self.bias, "bias", false)?;
        let residual = made(self.residual, "residual", false)?;
        let [mask, lengths] = mask::arrays(self.mask, self.lengths)?;
        let arguments = Arguments {
            x: &x,
            running_mean: running_mean.as_ref(),
            running_var: running_var.as_ref(),
            weight: weight.as_ref(),
            bias: bias.as_ref(),
            residual: residual.as_ref(),
            mask: mask.as_ref(),
            lengths: lengths.as_ref(),
            ..*self
        };
        arguments.check_arrays(activation)
    }

    /// Checks arguments that are arrays, so that no code but this runs meanwhile.
    fn check_arrays(&self, activation: Activation) -> PyResult<Forward<'py>> {
        let x = Input::x(self.x, self.axis)?;
        let channels = x.view.channels;
        let running = match (self.running_mean, self.running_var) {
            (Some(mean), Some(var)) => Some(Running::new(mean, var, channels)?),
            (None, None) if self.training && self.renorm.is_none() => None,
            (mean, var) => {
                let argument = if mean.is_none() { "running_mean" } else { "running_var" };
                let when = match (self.training, mean.or(var)) {
                    (false, _) => "in evaluation",
                    (true, Some(_)) => "with the other running statistic",
                    (true, None) => "with renorm",
                };
                return Err(Error::Missing { argument, when }.into());
            }
        };
        let weight = Vector::optional(self.weight, "weight", channels)?;
        let bias = Vector::optional(self.bias, "bias", channels)?;
        if self.training || !self.in_place {
            // Others may change them before all are used.
            let running = running.iter().flat_map(|running| [&running.mean, &running.var]);
            for vector in running.chain(&weight).chain(&bias) {
                vector.values();
            }
        }
        let residual = self.residual.map(|any| Input::like(any, "residual", &x)).transpose()?;
        let mask = mask::optional(self.mask, self.lengths, &x)?;
        check_eps(self.eps, self.training)?;
        check_momentum(self.momentum)?;
        if self.training || !self.in_place {
            activation.check_training()?;
        }
        if self.training
            && let Some(running) = &running
        {
            running.check_writeable()?;
            running.mean.check_apart("running_mean", "x", &x.given)?;
            running.var.check_apart("running_var", "x", &x.given)?;
        }
        let input = if self.in_place { Named::or_itself } else { Named::apart };
        let others = [
            running.as_ref().map(|running| Named::apart("running_mean", &running.mean.array)),
            running.as_ref().map(|running| Named::apart("running_var", &running.var.array)),
            weight.as_ref().map(|weight| Named::apart("weight", &weight.array)),
            bias.as_ref().map(|bias| Named::apart("bias", &bias.array)),
            Some(input("x", &x.given)),
            residual.as_ref().map(|residual| input("residual", &residual.given)),
        ];
        let out = Output::like(self.out, &x, &others)?;
        Ok(Forward {
            running,
            weight,
            bias,
            residual,
            mask,
            counted_by: match (self.mask, self.lengths) {
                (Some(_), _) => "mask",
                (None, Some(_)) => "lengths",
                (None, None) => "x",
            },
            activation,
            renorm: self.renorm,
            training: self.training,
            momentum: self.momentum,
            eps: self.eps,
            x,
            out,
        })
    }

    /// What [`batch_norm`] returns.
    fn output(&self, group_size: Option<usize>) -> PyResult<Bound<'py, PyAny>> {
        let mut forward = self.check()?;
        if let Some(size) = forward.group_size(group_size) {
            return Ok(ghost::forward(self, forward, size)?.0);
        }
        if forward.training {
            let moments = forward.train()?;
            return forward.finish(Some(&moments));
        }
        forward.infer()?;
        forward.finish(None)
    }

    /// What [`batch_norm_forward`] returns.
    fn forward(&self, group_size: Option<usize>) -> PyResult<(Bound<'py, PyAny>, Context)> {
        let mut forward = self.check()?;
        if let Some(size) = forward.group_size(group_size) {
            return ghost::forward(self, forward, size);
        }
        let statistics = if forward.training {
            Statistics::Batch(forward.train()?)
        } else {
            forward.infer()?;
            let running = forward.running.as_ref().expect("checked in evaluation");
            let (mean, var) = (running.mean.values().to_vec(), running.var.values().to_vec());
            Statistics::Running(core::Moments::new(1, mean, var)?)
        };
        forward.finish_with_context(statistics)
    }
}

impl<'py> Forward<'py> {
    /// The values of weight and bias.
    fn parameters(&self) -> [Option<&[f64]>; 2] {
        [&self.weight, &self.bias].map(|vector| vector.as_ref().map(Vector::values))
    }

    /// Refuses arrays that somebody else's code has changed since they were checked.
    fn check_unchanged(&self) -> Result<(), Error> {
        self.x.check_unchanged()?;
        self.out.check_unchanged(&self.x)?;
        self.residual.as_ref().map_or(Ok(()), Input::check_unchanged)?;
        self.running.as_ref().map_or(Ok(()), Running::check_unchanged)
    }

    /// What comes after the normalisation.
    fn epilogue<E: Element>(&self) -> RawEpilogue<E> {
        epilogue(self.residual.as_ref(), self.activation)
    }

    /// Normalises with the running statistics.
    fn infer(&self) -> PyResult<()> {
        let (py, bytes) = (self.x.given.py(), self.x.bytes());
        let execution = execution(py, bytes)?;
        let view = self.x.view;
        with_element!(self.x.dtype, E => {
            let [x, y] = [self.x.elements::<E>(), self.out.elements()];
            let epilogue = self.epilogue::<E>();
            let table = self.table::<<E as Element>::Real>(execution.level);
            // SAFETY: x, residual and out are dense arrays of `view`, alive for the length of this
            // call; `Output::like` ruled out that out overlaps them otherwise than by being one;
            // the table has the channels of `view`.
            released(py, bytes, move || unsafe {
                forward::apply_table_raw(view, x.get(), &table, epilogue, y.get(), execution);
            });
        });
        Ok(())
    }

    /// The coefficients of the normalisation with the running statistics. Vectors of float32, the usual
    /// ones, are read where they are.
    fn table<R: Real>(&self, level: Level) -> Aligned<R> {
        let Running { mean, var, .. } = self.running.as_ref().expect("checked in evaluation");
        let f32s = [Some(mean), Some(var), self.weight.as_ref(), self.bias.as_ref()]
            .map(|vector| vector.and_then(Vector::as_f32));
        if let [Some(mean), Some(var), weight, bias] = f32s
            && weight.is_some() == self.weight.is_some()
            && bias.is_some() == self.bias.is_some()
        {
            return forward::running_table(level, [mean, var], [weight, bias], self.eps);
        }
        let statistics = [mean.values(), var.values()];
        forward::running_table(level, statistics, self.parameters(), self.eps)
    }

    /// Normalises with the statistics of the batch.
    fn train(&self) -> PyResult<core::Moments> {
        self.check_enough("batch statistics in training")?;
        let (py, bytes) = (self.x.given.py(), self.x.bytes());
        let execution = execution(py, bytes)?;
        let (batch, [weight, bias]) = (self.batch(), self.parameters());
        let (count, eps, renorm) = (batch.count(), self.eps, self.renorm());
        let finish = Normalise { count, weight, bias, eps, renorm };
        Ok(with_element!(self.x.dtype, E => {
            let [x, y] = [self.x.elements::<E>(), self.out.elements()];
            let epilogue = self.epilogue::<E>();
            // SAFETY: x, residual and out are dense arrays of the batch, alive for the length of this
            // call; `Output::like` ruled out that out overlaps them otherwise than by being one;
            // enough counts, the vectors have the batch's channels, and the activation was checked.
            released(py, bytes, move || unsafe {
                forward::batch_norm_raw(batch, x.get(), finish, epilogue, y.get(), execution)
            })
        }))
    }

    /// Refuses to make statistics, for `purpose`, of fewer than two values.
    fn check_enough(&self, purpose: &'static str) -> Result<(), Error> {
        let got = self.batch().count();
        if got >= 2 || self.x.view.count() == 0 {
            return Ok(());
        }
        Err(Error::TooFewValues { argument: self.counted_by, purpose, got })
    }

    /// Where to renormalise toward, and how far.
    fn renorm(&self) -> Option<Renorm<'_>> {
        let (Bounds { r_max, d_max }, running) = (self.renorm?, self.running.as_ref()?);
        let (mean, var) = (running.mean.values(), running.var.values());
        Some(Renorm::new(mean, var, r_max, d_max).expect("vectors and bounds were checked"))
    }

    /// x as the engine knows it, and what counts of it.
    fn batch(&self) -> Batch<'_> {
        Batch { view: self.x.view, mask: self.mask.as_ref() }
    }

    /// Moves the running statistics toward those of a batch: the last thing to happen.
    fn update(&mut self, moments: &core::Moments) -> PyResult<()> {
        self.running.as_mut().map_or(Ok(()), |running| running.update(moments, self.momentum))
    }

    /// The output for the caller, and the running statistics moved on.
    fn finish(&mut self, moments: Option<&core::Moments>) -> PyResult<Bound<'py, PyAny>> {
        let y = self.out.finish()?;
        moments.map_or(Ok(()), |moments| self.update(moments))?;
        Ok(y)
    }

    /// What backward needs.
    fn context(&mut self, statistics: Statistics) -> PyResult<Context> {
        let renorm = match (&statistics, self.renorm()) {
            (Statistics::Batch(moments), Some(renorm)) => {
                Some(renorm.corrections(moments, self.eps)?)
            }
            _ => None,
        };
        Ok(Context {
            x: array::view(&self.x.given)?.unbind(),
            axis: self.x.axis,
            eps: self.eps,
            statistics,
            weight: self.weight.take().map(Vector::into_values),
            bias: self.bias.take().map(Vector::into_values),
            residual: match &self.residual {
                Some(residual) => Some(array::view(&residual.given)?.unbind()),
                None => None,
            },
            mask: self.mask.take(),
            activation: self.activation,
            renorm,
            groups: None,
        })
    }

    /// The output for the caller, what backward needs, and the running statistics moved on.
    fn finish_with_context(
        &mut self,
        statistics: Statistics,
    ) -> PyResult<(Bound<'py, PyAny>, Context)> {
        let context = self.context(statistics)?;
        let y = self.finish(match &context.statistics {
            Statistics::Batch(moments) => Some(moments),
            Statistics::Running(_) => None,
        })?;
        Ok((y, context))
    }
}

/// What comes after the normalisation, for the engine.
pub(super) fn epilogue<E: Element>(
    residual: Option<&Input<'_>>,
    activation: Activation,
) -> RawEpilogue<E> {
    let residual =
        residual.map_or(std::ptr::null(), |residual| residual.elements::<E>().get().cast_const());
    RawEpilogue { residual, activation }
}

/// Batch normalization.
///
/// In training, each channel is normalised with its mean and biased variance over the batch, then
/// scaled by `weight` and shifted by `bias` (Ioffe & Szegedy 2015, Algorithm 1); in evaluation,
/// with the running statistics. Positional order and meaning are those of
/// ``torch.nn.functional.batch_norm``.
///
/// Parameters
/// ----------
/// x : array, float16, bfloat16, float32 or float64, 2 or more dimensions
///     Input, any strides. Memory that is dense under any order of its axes is never copied.
/// running_mean, running_var : array, shape (C,), optional
///     Running statistics, of any of these dtypes, any strides. Needed in evaluation; updated in place
///     in training.
/// weight, bias : array, shape (C,), optional
///     Scale and shift; 1 and 0 where absent.
/// training : bool, default False
///     Whether the statistics of the batch normalise.
/// momentum : float, default 0.1
///     ``running = (1 - momentum) * running + momentum * batch``, the running variance from the
///     unbiased variance.
/// eps : float, default 1e-5
///     Added to the variance.
/// axis : int, default 1
///     Channel axis.
/// activation : None, str or (str, float), optional
///     Applied last: ``"relu"``, ``"relu6"``, ``"leaky_relu"`` (slope 0.01) or ``("leaky_relu",
///     slope)``; in evaluation also ``"silu"``, ``"hardswish"``, ``"sigmoid"`` or ``"tanh"``.
/// residual : array, optional
///     Of x's shape and dtype; added before the activation, in the same pass over memory.
/// mask : array of bool, optional
///     Which positions count: of x's shape with 1 along the channel axis, or without that axis; other
///     axes may be 1. Only these enter statistics, whatever stands elsewhere; all are normalised.
/// lengths : whole numbers, shape (N,), optional
///     Instead of a mask: how many positions of each sample count, along the last axis that is not
///     that of channels. N is the length of the first such axis.
/// group_size : int, optional
///     Ghost batches (Hoffer, Hubara & Soudry 2017, "Train longer, generalize better", algorithm 1): in
///     training so many samples at a time are normalised with their own statistics; the last group may
///     be smaller. The running statistics are moved by those of all of them.
/// renorm : (float, float), optional
///     Batch renormalization (Ioffe 2017, algorithm 1), with ``(r_max, d_max)``: in training, normalised
///     values are moved on to where the running statistics would have put them, scaled by no more than
///     a factor of ``r_max`` and shifted by no more than ``d_max``; gradients take both as constants.
/// out : array, optional
///     Where to write; of x's shape and dtype, and x or the residual itself if you like.
///
/// Returns
/// -------
/// y : array
///     ``activation(normalised + residual)``, of x's shape, dtype and memory order; `out` if given.
///
/// Raises
/// ------
/// ValueError
///     If a shape, eps or momentum does not fit; if fewer than two values per channel count in training; if
///     running statistics are missing in evaluation, or one of the pair is; if the activation is
///     unknown, or for evaluation only, in training; if `out` is read-only or overlaps an input
///     otherwise than by being x or the residual.
/// TypeError
///     If a dtype does not fit, or running statistics could not be updated in place.
/// numpy.exceptions.AxisError
///     If there is no such axis.
///
/// Examples
/// --------
/// >>> import numpy as np, rustbn
/// >>> x = np.array([[1.0, 5.0], [3.0, 5.0]], dtype=np.float32)
/// >>> rustbn.batch_norm(x, training=True)
/// array([[-0.999995,  0.      ],
///        [ 0.999995,  0.      ]], dtype=float32)
#[pyfunction]
#[pyo3(signature = (x, running_mean=None, running_var=None, weight=None, bias=None, training=false,
                    momentum=0.1, eps=1e-5, *, axis=1, activation=None, residual=None, mask=None,
                    lengths=None, group_size=None, renorm=None, out=None))]
#[allow(clippy::too_many_arguments)]
pub(super) fn batch_norm<'py>(
    x: &Bound<'py, PyAny>,
    running_mean: Option<&Bound<'py, PyAny>>,
    running_var: Option<&Bound<'py, PyAny>>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::training)] training: bool,
    #[pyo3(from_py_with = argument::momentum)] momentum: f64,
    #[pyo3(from_py_with = argument::eps)] eps: f64,
    #[pyo3(from_py_with = argument::axis)] axis: isize,
    activation: Option<&Bound<'py, PyAny>>,
    residual: Option<&Bound<'py, PyAny>>,
    mask: Option<&Bound<'py, PyAny>>,
    lengths: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::group_size)] group_size: Option<usize>,
    #[pyo3(from_py_with = argument::renorm)] renorm: Option<Bounds>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let arguments = Arguments {
        x,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        axis,
        activation,
        residual,
        mask,
        lengths,
        renorm,
        out,
        in_place: true,
    };
    arguments.output(group_size)
}

/// Batch normalization, and what its backward needs.
///
/// As `batch_norm`, but `training` is True unless said otherwise, and `out` may be neither x nor the
/// residual, which backward reads.
///
/// Parameters
/// ----------
/// x, running_mean, running_var, weight, bias, training, momentum, eps, axis, activation, residual
///     As for `batch_norm`.
/// mask, lengths, group_size, renorm, out
///     As for `batch_norm`.
///
/// Returns
/// -------
/// y : array
///     Of x's shape, dtype and memory order; `out` if given.
/// ctx : Context
///     For `batch_norm_backward`; holds views of x and of the residual, not copies.
///
/// Raises
/// ------
/// ValueError, TypeError, numpy.exceptions.AxisError
///     As `batch_norm`.
#[pyfunction]
#[pyo3(signature = (x, running_mean=None, running_var=None, weight=None, bias=None, training=true,
                    momentum=0.1, eps=1e-5, *, axis=1, activation=None, residual=None, mask=None,
                    lengths=None, group_size=None, renorm=None, out=None))]
#[allow(clippy::too_many_arguments)]
pub(super) fn batch_norm_forward<'py>(
    x: &Bound<'py, PyAny>,
    running_mean: Option<&Bound<'py, PyAny>>,
    running_var: Option<&Bound<'py, PyAny>>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::training)] training: bool,
    #[pyo3(from_py_with = argument::momentum)] momentum: f64,
    #[pyo3(from_py_with = argument::eps)] eps: f64,
    #[pyo3(from_py_with = argument::axis)] axis: isize,
    activation: Option<&Bound<'py, PyAny>>,
    residual: Option<&Bound<'py, PyAny>>,
    mask: Option<&Bound<'py, PyAny>>,
    lengths: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::group_size)] group_size: Option<usize>,
    #[pyo3(from_py_with = argument::renorm)] renorm: Option<Bounds>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Context)> {
    let arguments = Arguments {
        x,
        running_mean,
        running_var,
        weight,
        bias,
        training,
        momentum,
        eps,
        axis,
        activation,
        residual,
        mask,
        lengths,
        renorm,
        out,
        in_place: false,
    };
    arguments.forward(group_size)
}

/// Gradients of a batch normalization.
///
/// Through batch statistics the gradient with respect to x is ``scale * (dy - sum(dy) / n - (x -
/// mean) * invstd**2 * sum(dy * (x - mean)) / n)`` with ``scale = weight * invstd``
/// (Ioffe & Szegedy 2015, section 3, collected); running statistics are constants, and it is ``dy *
/// scale``. Behind an activation dy is replaced by its product with the activation's derivative,
/// which is also the gradient with respect to the residual. With a mask n is how many positions count,
/// sums are over all of them, and where a position does not count the gradient is ``dy * scale``; if
/// dy is zero there it adds nothing, whatever x is.
///
/// Parameters
/// ----------
/// dy : array
///     Gradient with respect to the output, of x's shape and dtype.
/// ctx : Context
///     Of `batch_norm_forward`; serves any number of backwards.
/// out : array, optional
///     Where to write dx; of x's shape and dtype, and dy itself if you like.
/// needs : iterable of str, default ("x", "weight", "bias", "residual")
///     Which gradients to compute. Those of what the forward did not have are None all the same.
///
/// Returns
/// -------
/// Gradients
///     Named tuple ``(dx, dweight, dbias, dresidual)``; None where absent or not needed.
///
/// Raises
/// ------
/// ValueError
///     If dy or `out` has another shape; if `out` is read-only, overlaps x, or overlaps dy
///     otherwise than by being it; if `needs` holds anything else, or leaves out "x" while `out` is
///     given.
/// TypeError
///     If dy or `out` has another dtype.
#[pyfunction]
#[pyo3(signature = (dy, ctx, *, out=None, needs=Needs::default()),
       text_signature = "(dy, ctx, *, out=None, needs=('x', 'weight', 'bias', 'residual'))")]
pub(super) fn batch_norm_backward<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = context::ctx)] ctx: Bound<'py, Context>,
    out: Option<&Bound<'py, PyAny>>,
    needs: Needs,
) -> PyResult<Bound<'py, PyAny>> {
    context::gradients(py, dy, ctx.get(), out, needs, None)
}

/// Count, mean and sum of squared deviations of each channel.
///
/// float64 sums about a pivot in one sweep: exact to a few float64 ULP however large the mean is
/// next to the standard deviation, and exactly 0 deviation for a channel of one constant value.
///
/// Parameters
/// ----------
/// x : array, float16, bfloat16, float32 or float64, 2 or more dimensions
///     Input, any strides.
/// axis : int, default 1
///     Channel axis.
/// mask, lengths : optional
///     Which positions count; see `batch_norm`.
///
/// Returns
/// -------
/// Moments
///     Of the elements of each channel that count; of count 0 for an empty array.
///
/// Raises
/// ------
/// ValueError
///     If x has fewer than 2 dimensions; if `mask` or `lengths` does not fit.
/// TypeError
///     If x, `mask` or `lengths` has the wrong dtype.
/// numpy.exceptions.AxisError
///     If there is no such axis.
#[pyfunction]
#[pyo3(signature = (x, *, axis=1, mask=None, lengths=None))]
pub(super) fn moments(
    x: &Bound<'_, PyAny>,
    #[pyo3(from_py_with = argument::axis)] axis: isize,
    mask: Option<&Bound<'_, PyAny>>,
    lengths: Option<&Bound<'_, PyAny>>,
) -> PyResult<nouns::Moments> {
    let x = array::as_array(x, "x")?;
    let [mask, lengths] = mask::arrays(mask, lengths)?;
    let x = Input::x(&x, axis)?;
    let mask = mask::optional(mask.as_ref(), lengths.as_ref(), &x)?;
    Ok(nouns::Moments(measure(&x, mask.as_ref())?))
}

/// The statistics of `x`, of the positions that count.
fn measure(x: &Input<'_>, mask: Option<&Mask>) -> PyResult<core::Moments> {
    let (py, bytes) = (x.given.py(), x.bytes());
    let execution = execution(py, bytes)?;
    let batch = Batch { view: x.view, mask };
    Ok(with_element!(x.dtype, E => {
        let x = x.elements::<E>();
        // SAFETY: `x` is a dense array of the view, alive for the length of this call; whoever made the mask
        // checked its positions.
        released(py, bytes, move || unsafe { forward::moments_raw(batch, x.get(), execution) })
    }))
}

/// The sums that gradients are made of: the first half of backward.
///
/// Parameters
/// ----------
/// dy : array
///     Gradient with respect to the output, of x's shape and dtype.
/// x : array, float16, bfloat16, float32 or float64, 2 or more dimensions
///     Input of the forward pass.
/// moments : Moments
///     Statistics that normalised x: those of x, or of a batch that x is a part of.
/// axis : int, default 1
///     Channel axis.
/// mask, lengths : optional
///     As in the forward pass. All positions are summed; one that does not count and whose dy is zero
///     adds nothing, whatever x is.
///
/// Returns
/// -------
/// GradSums
///     Of x's part of the batch; those of the parts add up to those of the batch.
///
/// Raises
/// ------
/// ValueError
///     If dy or `moments` does not fit x.
/// TypeError
///     If dy has another dtype.
#[pyfunction]
#[pyo3(signature = (dy, x, moments, *, axis=1, mask=None, lengths=None))]
pub(super) fn backward_reduce(
    py: Python<'_>,
    dy: &Bound<'_, PyAny>,
    x: &Bound<'_, PyAny>,
    #[pyo3(from_py_with = nouns::moments_argument)] moments: Bound<'_, nouns::Moments>,
    #[pyo3(from_py_with = argument::axis)] axis: isize,
    mask: Option<&Bound<'_, PyAny>>,
    lengths: Option<&Bound<'_, PyAny>>,
) -> PyResult<nouns::GradSums> {
    let [x, dy] = [array::as_array(x, "x")?, array::as_array(dy, "dy")?];
    let [mask, lengths] = mask::arrays(mask, lengths)?;
    let x = Input::x(&x, axis)?;
    let dy = Input::like(&dy, "dy", &x)?;
    let mask = mask::optional(mask.as_ref(), lengths.as_ref(), &x)?;
    let moments = &moments.get().0;
    x.view.check_vector("moments", moments.mean())?;
    Ok(nouns::GradSums(context::reduce(py, &dy, &x, mask.as_ref(), moments)?))
}

/// Gradient with respect to x from statistics and sums: the second half of backward.
///
/// Parameters
/// ----------
/// dy : array
///     Gradient with respect to the output, of x's shape and dtype.
/// x : array, float16, bfloat16, float32 or float64, 2 or more dimensions
///     Input of the forward pass: the batch, or a part of it.
/// moments : Moments
///     Statistics of the batch.
/// grad_sums : GradSums
///     Sums of the batch.
/// weight : array, shape (C,), optional
///     Scale of the forward pass; 1 where absent.
/// eps : float, default 1e-5
///     eps of the forward pass.
/// axis : int, default 1
///     Channel axis.
/// mask, lengths : optional
///     As in the forward pass. Where a position does not count, dx is ``dy * scale``.
/// out : array, optional
///     Where to write; of x's shape and dtype, and dy itself if you like.
///
/// Returns
/// -------
/// dx : array
///     Of x's shape, dtype and memory order; `out` if given.
///
/// Raises
/// ------
/// ValueError
///     If an argument does not fit x, or `moments` counts fewer than 2 values.
/// TypeError
///     If a dtype does not fit.
#[pyfunction]
#[pyo3(signature = (dy, x, moments, grad_sums, weight=None, eps=1e-5, *, axis=1, mask=None,
                    lengths=None, out=None))]
#[allow(clippy::too_many_arguments)]
pub(super) fn backward_apply<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = nouns::moments_argument)] moments: Bound<'_, nouns::Moments>,
    #[pyo3(from_py_with = nouns::grad_sums_argument)] grad_sums: Bound<'_, nouns::GradSums>,
    weight: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::eps)] eps: f64,
    #[pyo3(from_py_with = argument::axis)] axis: isize,
    mask: Option<&Bound<'py, PyAny>>,
    lengths: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let [x, dy] = [array::as_array(x, "x")?, array::as_array(dy, "dy")?];
    let [mask, lengths] = mask::arrays(mask, lengths)?;
    let weight = weight.map(|any| array::as_array(any, "weight")).transpose()?;
    let weight = weight.as_ref().map(|weight| weight.as_any());
    let x = Input::x(&x, axis)?;
    let dy = Input::like(&dy, "dy", &x)?;
    let mask = mask::optional(mask.as_ref(), lengths.as_ref(), &x)?;
    let moments = &moments.get().0;
    x.view.check_vector("moments", moments.mean())?;
    let grad_sums = &grad_sums.get().0;
    x.view.check_vector("grad_sums", grad_sums.sum_dy())?;
    let weight = Vector::optional(weight, "weight", x.view.channels)?;
    check_eps(eps, true)?;
    if moments.count() < 2 && !x.view.is_empty() {
        let (purpose, got) = ("gradients through batch statistics", moments.count());
        return Err(Error::TooFewValues { argument: "moments", purpose, got }.into());
    }
    let others = [
        Some(Named::or_itself("dy", &dy.given)),
        Some(Named::apart("x", &x.given)),
        weight.as_ref().map(|weight| Named::apart("weight", &weight.array)),
    ];
    let out = Output::like(out, &x, &others)?;
    let finish = Differentiate { moments, weight: weight.as_ref().map(Vector::values), eps };
    context::apply(py, &dy, &x, mask.as_ref(), grad_sums, finish, &out)?;
    out.finish()
}

/// Refuse what is no activation.
///
/// Parameters
/// ----------
/// activation : None, str or (str, float)
///     See `batch_norm`.
///
/// Raises
/// ------
/// ValueError
///     If it is unknown.
/// TypeError
///     If it is nothing of the kind.
#[pyfunction]
pub(super) fn check_activation(activation: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    argument::activation(activation).map(|_| ())
}

/// Refuse what is no pair of bounds of renormalisation.
///
/// Parameters
/// ----------
/// renorm : None or (float, float)
///     See `batch_norm`.
///
/// Raises
/// ------
/// ValueError
///     If a bound is out of its range.
/// TypeError
///     If it is nothing of the kind.
#[pyfunction]
pub(super) fn check_renorm(renorm: &Bound<'_, PyAny>) -> PyResult<()> {
    argument::renorm(renorm).map(|_| ())
}
