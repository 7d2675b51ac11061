//! What modules call. Their arguments come by position: to look up as many keywords takes a fifth of a
//! small call.

use super::{Arguments, Bounds, argument};
use crate::python::context::Context;
use pyo3::prelude::*;

/// `batch_norm` where no gradients follow.
///
/// Parameters
/// ----------
/// x, running_mean, running_var, weight, bias, eps, axis, activation, residual, mask, lengths, out
///     As for `batch_norm`. Without running statistics those of the batch normalise.
///
/// Returns
/// -------
/// y : array
///     Of x's shape, dtype and memory order; `out` if given.
#[pyfunction]
#[pyo3(signature = (x, running_mean, running_var, weight, bias, eps, axis, activation, residual,
                    mask, lengths, out, /))]
#[allow(clippy::too_many_arguments)]
pub(in crate::python) fn module_inference<'py>(
    x: &Bound<'py, PyAny>,
    running_mean: Option<&Bound<'py, PyAny>>,
    running_var: Option<&Bound<'py, PyAny>>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    #[pyo3(from_py_with = argument::eps)] eps: f64,
    #[pyo3(from_py_with = argument::axis)] axis: isize,
    activation: Option<&Bound<'py, PyAny>>,
    residual: Option<&Bound<'py, PyAny>>,
    mask: Option<&Bound<'py, PyAny>>,
    lengths: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let arguments = Arguments {
        x,
        running_mean,
        running_var,
        weight,
        bias,
        training: running_mean.is_none() && running_var.is_none(),
        momentum: 0.0,
        eps,
        axis,
        activation,
        residual,
        mask,
        lengths,
        renorm: None,
        out,
        in_place: true,
    };
    arguments.output(None)
}

/// `batch_norm_forward`.
///
/// Parameters
/// ----------
/// x, running_mean, running_var, weight, bias, training, momentum, eps, axis, activation, residual
///     As for `batch_norm_forward`.
/// mask, lengths, renorm, out, group_size
///     As for `batch_norm_forward`.
///
/// Returns
/// -------
/// y : array
///     Of x's shape, dtype and memory order; `out` if given.
/// ctx : Context
///     For `batch_norm_backward`.
#[pyfunction]
#[pyo3(signature = (x, running_mean, running_var, weight, bias, momentum, eps, axis, activation,
                    residual, mask, lengths, renorm, out, training, group_size, /))]
#[allow(clippy::too_many_arguments)]
pub(in crate::python) fn module_forward<'py>(
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
    training: bool,
    #[pyo3(from_py_with = argument::group_size)] group_size: Option<usize>,
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
