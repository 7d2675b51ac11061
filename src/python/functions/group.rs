//! Batch normalization of one part of a batch, the other parts being those of other processes.
//!
//! Each pass stops once, between what it measures and what it writes, and calls back for the sums of
//! the whole batch. Arguments have been checked and outputs exist by then, so that what is wrong
//! with them is known before the processes wait for each other, and nothing is left to fail after.

use super::{Arguments, Bounds, argument, measure};
use crate::affine::Affine;
use crate::error::Error;
use crate::python::context::{self, Context, Needs, Statistics};
use crate::python::nouns;
use pyo3::prelude::*;

/// Batch normalization of a part of a batch, and what its backward needs.
///
/// `batch_norm_forward` in training, except that `x` is a part of the batch.
///
/// Parameters
/// ----------
/// merge : callable
///     Called once, with the Moments of `x`; returns those of the batch, or raises, and then nothing
///     has changed. Of itself this function raises before it calls.
/// x, running_mean, running_var, weight, bias, momentum, eps, axis, activation, residual
///     As for `batch_norm_forward`.
/// mask, lengths, renorm, out
///     As for `batch_norm_forward`.
///
/// Returns
/// -------
/// y : array
///     Of x's shape, dtype and memory order; `out` if given.
/// ctx : Context
///     For `part_backward`.
#[pyfunction]
#[pyo3(signature = (merge, x, running_mean, running_var, weight, bias, momentum, eps, axis,
                    activation, residual, mask, lengths, renorm, out, /))]
#[allow(clippy::too_many_arguments)]
pub(in crate::python) fn part_forward<'py>(
    merge: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
    running_mean: Option<&Bound<'py, PyAny>>,
    running_var: Option<&Bound<'py, PyAny>>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::momentum)] momentum: f64,
    #[pyo3(from_py_with = argument::eps)] eps: f64,
    #[pyo3(from_py_with = argument::axis)] axis: isize,
    activation: Option<&Bound<'py, PyAny>>,
    residual: Option<&Bound<'py, PyAny>>,
    mask: Option<&Bound<'py, PyAny>>,
    lengths: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::renorm)] renorm: Option<Bounds>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Context)> {
    let arguments = Arguments {
        x,
        running_mean,
        running_var,
        weight,
        bias,
        training: true,
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
    let mut forward = arguments.check()?;
    let of_part = measure(&forward.x, forward.mask.as_ref())?;
    let whole = merge.call1((nouns::Moments(of_part),))?;
    let moments = nouns::moments_argument(&whole)?.get().0.clone();
    forward.check_unchanged()?;
    forward.x.view.check_vector("moments", moments.mean())?;
    if moments.count() == 1 {
        let (argument, purpose) = ("moments", "batch statistics in training");
        return Err(Error::TooFewValues { argument, purpose, got: 1 }.into());
    }
    let [weight, bias] = forward.parameters();
    let affine = match forward.renorm() {
        None => Affine::from_moments(&moments, weight, bias, eps)?,
        Some(renorm) => {
            let [weight, bias] = renorm.parameters(&moments, weight, bias, eps)?;
            Affine::from_moments(&moments, Some(&weight), Some(&bias), eps)?
        }
    };
    let residual = forward.residual.as_ref();
    nouns::apply(&forward.x, &affine.into(), residual, forward.activation, &forward.out)?;
    forward.finish_with_context(Statistics::Batch(moments))
}

/// Gradients of a part of a batch, through the statistics of all of it.
///
/// Parameters
/// ----------
/// add : callable
///     Called once, with the GradSums of this part; returns those of the batch, or raises. Of itself
///     this function raises before it calls.
/// dy, ctx, out
///     As for `batch_norm_backward`; `ctx` is that of `part_forward`. Where an exception comes from
///     `add`, `out` may have been written to.
///
/// Returns
/// -------
/// Gradients
///     dx is the batch's; dweight and dbias are the parts that this part contributes.
#[pyfunction]
#[pyo3(signature = (add, dy, ctx, *, out))]
pub(in crate::python) fn part_backward<'py>(
    py: Python<'py>,
    add: &Bound<'py, PyAny>,
    dy: &Bound<'py, PyAny>,
    #[pyo3(from_py_with = context::ctx)] ctx: Bound<'py, Context>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    context::gradients(py, dy, ctx.get(), out, Needs::default(), Some(add))
}
