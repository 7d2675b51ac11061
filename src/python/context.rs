//! `Context`, what backward needs of a forward pass, and `Gradients`.

use super::argument;
use super::array::{Input, Named, Output, parameter, with_element};
use super::errors::kind_error;
use super::nouns;
use super::run::{Raw, execution, released};
use crate::error::Error;
use crate::grad_sums::GradSums;
use crate::{affine, backward, moments};
use numpy::PyUntypedArray;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyType};

/// What `batch_norm_backward` needs of a forward pass.
///
/// Holds a view of x, not a copy, and the values that the per-channel vectors had at the time of
/// the forward pass; serves any number of backwards.
#[pyclass(frozen, module = "rustbn._rustbn")]
pub(super) struct Context {
    pub(super) x: Py<PyUntypedArray>,
    pub(super) axis: usize,
    pub(super) eps: f64,
    pub(super) statistics: Statistics,
    pub(super) weight: Option<Vec<f64>>,
    pub(super) bias: Option<Vec<f64>>,
}

/// What normalised.
pub(super) enum Statistics {
    /// The batch.
    Batch(moments::Moments),
    /// Running statistics, which are constants: as the moments of one value.
    Running(moments::Moments),
}

impl Statistics {
    fn moments(&self) -> &moments::Moments {
        let (Statistics::Batch(moments) | Statistics::Running(moments)) = self;
        moments
    }
}

impl Context {
    fn transformation(&self) -> PyResult<affine::Affine> {
        let (weight, bias) = (self.weight.as_deref(), self.bias.as_deref());
        Ok(affine::Affine::from_moments(self.statistics.moments(), weight, bias, self.eps)?)
    }

    /// From dy to dx where the statistics were constants.
    fn derivative(&self) -> PyResult<affine::Affine> {
        let zeros = vec![0.0; self.statistics.moments().mean().len()];
        let scale = self.transformation()?.scale().to_vec();
        Ok(affine::Affine::new(zeros.clone(), scale, zeros)?)
    }

    fn invstd(&self, channel: usize) -> f64 {
        let moments = self.statistics.moments();
        let var = moments::biased_var(moments.count(), moments.m2()[channel]);
        moments::invstd(var, self.eps)
    }
}

#[pymethods]
impl Context {
    /// Statistics of the batch; None where running statistics normalised.
    #[getter]
    fn moments(&self) -> Option<nouns::Moments> {
        match &self.statistics {
            Statistics::Batch(moments) => Some(nouns::Moments(moments.clone())),
            Statistics::Running(_) => None,
        }
    }

    /// The transformation from x to y.
    #[getter]
    fn affine(&self) -> PyResult<nouns::Affine> {
        Ok(nouns::Affine(self.transformation()?))
    }
}

/// The argument `ctx`.
pub(super) fn ctx<'py>(any: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Context>> {
    argument::object(any, "ctx", "a Context")
}

/// Which gradients are asked for.
#[derive(Clone, Copy)]
pub(super) struct Needs {
    x: bool,
    weight: bool,
    bias: bool,
}

impl Default for Needs {
    fn default() -> Self {
        Needs { x: true, weight: true, bias: true }
    }
}

impl<'py> FromPyObject<'_, 'py> for Needs {
    type Error = PyErr;

    fn extract(any: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let mut needs = Needs { x: false, weight: false, bias: false };
        let kind = || kind_error("needs", "names of gradients", &any);
        if any.is_instance_of::<PyString>() {
            return Err(kind());
        }
        for name in any.try_iter().map_err(|_| kind())? {
            let name = name?;
            match name.extract::<&str>() {
                Ok("x") => needs.x = true,
                Ok("weight") => needs.weight = true,
                Ok("bias") => needs.bias = true,
                // Where there is no residual there is nothing to be had, as with weight and bias.
                Ok("residual") => {}
                _ => {
                    return Err(Error::Range {
                        argument: "needs",
                        expected: "made of \"x\", \"weight\", \"bias\", \"residual\"",
                        got: name.repr()?.to_string(),
                    }
                    .into());
                }
            }
        }
        Ok(needs)
    }
}

/// The named tuple that backward returns.
pub(super) fn gradients_type(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let class = CLASS.get_or_try_init(py, || {
        let keywords = pyo3::types::PyDict::new(py);
        keywords.set_item("module", "rustbn._rustbn")?;
        let fields = ("dx", "dweight", "dbias", "dresidual");
        let namedtuple = py.import("collections")?.getattr("namedtuple")?;
        let class = namedtuple.call(("Gradients", fields), Some(&keywords))?.cast_into::<PyType>()?;
        class.setattr(
            "__doc__",
            "Gradients of a batch normalization; None where absent or not needed.\n\n\
             Attributes\n\
             ----------\n\
             dx : array or None\n    With respect to x, of its shape, dtype and memory order.\n\
             dweight, dbias : array or None\n    With respect to weight and bias, shape (C,), float32 \
             (float64 for float64 x).\n\
             dresidual : None\n    With respect to the residual.\n",
        )?;
        Ok::<_, PyErr>(class.unbind())
    })?;
    Ok(class.bind(py))
}

/// The gradients of one forward pass.
pub(super) fn gradients<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    context: &Context,
    out: Option<&Bound<'py, PyAny>>,
    needs: Needs,
) -> PyResult<Bound<'py, PyAny>> {
    let x = Input::x(context.x.bind(py), context.axis as isize)?;
    x.view.check_vector("x", context.statistics.moments().mean())?;
    let dy = Input::dy(dy, &x)?;
    if out.is_some() && !needs.x {
        let expected = "None where needs leaves out \"x\"";
        return Err(Error::Range { argument: "out", expected, got: "an array".into() }.into());
    }
    let others = [Named::or_itself("dy", &dy.given), Named::apart("x", &x.given)];
    let out = if needs.x { Some(Output::like(out, &x, others)?) } else { None };
    let wants_weight = needs.weight && context.weight.is_some();
    let wants_bias = needs.bias && context.bias.is_some();

    let sums = match (&out, &context.statistics) {
        (Some(out), Statistics::Batch(moments)) => Some(fused(py, &dy, &x, moments, context, out)?),
        (out, _) => {
            // Sums come first, since the output may be dy itself.
            let sums = if wants_weight || wants_bias {
                Some(reduce(py, &dy, &x, context.statistics.moments())?)
            } else {
                None
            };
            if let Some(out) = out {
                nouns::apply(&dy, &context.derivative()?, out)?;
            }
            sums
        }
    };

    let vector = |wanted: bool, values: &dyn Fn(&GradSums, usize) -> f64| {
        let sums = sums.as_ref().filter(|_| wanted)?;
        let channels = 0..sums.sum_dy().len();
        Some(parameter(py, x.dtype, channels.map(|c| values(sums, c))))
    };
    let dweight = vector(wants_weight, &|sums, c| sums.sum_dy_xmu()[c] * context.invstd(c));
    let dbias = vector(wants_bias, &|sums, c| sums.sum_dy()[c]);
    let dx = out.map(Output::finish).transpose()?;
    gradients_type(py)?.call1((dx, dweight, dbias, py.None()))
}

/// dx and the sums in one pass.
fn fused(
    py: Python<'_>,
    dy: &Input<'_>,
    x: &Input<'_>,
    moments: &moments::Moments,
    context: &Context,
    out: &Output<'_>,
) -> PyResult<GradSums> {
    let bytes = 2 * x.bytes();
    let execution = execution(py, bytes)?;
    let (view, eps, weight) = (x.view, context.eps, context.weight.as_deref());
    Ok(with_element!(x.dtype, E => {
        let [dy, x, dx] = [dy.pointer(), x.pointer(), out.pointer()].map(|p| Raw(p.cast::<E>()));
        // SAFETY: all three are dense arrays of `view`, alive for the length of this call;
        // `Output::like` ruled out that dx overlaps x, or dy otherwise than by being it; the
        // context's vectors have the channels of `view`.
        released(py, bytes, move || unsafe {
            backward::batch_norm_backward_raw(view, dy.get(), x.get(), moments, weight, eps, dx.get(), execution)
        })
    }))
}

/// The sums alone.
pub(super) fn reduce(
    py: Python<'_>,
    dy: &Input<'_>,
    x: &Input<'_>,
    moments: &moments::Moments,
) -> PyResult<GradSums> {
    let bytes = 2 * x.bytes();
    let execution = execution(py, bytes)?;
    let view = x.view;
    Ok(with_element!(x.dtype, E => {
        let [dy, x] = [dy.pointer(), x.pointer()].map(|p| Raw(p.cast::<E>()));
        // SAFETY: both are dense arrays of `view`, alive for the length of this call; the
        // caller checked the channels of `moments`.
        released(py, bytes, move || unsafe {
            backward::backward_reduce_raw(view, dy.get(), x.get(), moments, execution)
        })
    }))
}

/// dx from statistics and sums of a whole batch.
#[allow(clippy::too_many_arguments)]
pub(super) fn apply(
    py: Python<'_>,
    dy: &Input<'_>,
    x: &Input<'_>,
    moments: &moments::Moments,
    sums: &GradSums,
    weight: Option<&[f64]>,
    eps: f64,
    out: &Output<'_>,
) -> PyResult<()> {
    let bytes = 2 * x.bytes();
    let execution = execution(py, bytes)?;
    let view = x.view;
    with_element!(x.dtype, E => {
        let [dy, x, dx] = [dy.pointer(), x.pointer(), out.pointer()].map(|p| Raw(p.cast::<E>()));
        // SAFETY: all three are dense arrays of `view`, alive for the length of this call;
        // `Output::like` ruled out that dx overlaps x, or dy otherwise than by being it; the caller
        // checked the channels of the vectors.
        released(py, bytes, move || unsafe {
            backward::backward_apply_raw(view, dy.get(), x.get(), moments, sums, weight, eps, dx.get(), execution);
        });
    });
    Ok(())
}
