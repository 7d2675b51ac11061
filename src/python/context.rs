//! `Context`, what backward needs of a forward pass, and `Gradients`.

use super::argument;
use super::array::{self, DType, Input, Named, Output, parameter, with_element};
use super::errors::kind_error;
use super::functions;
use super::functions::ghost::samples;
use super::nouns;
use super::run::{execution, released};
use crate::backward::{Differentiate, Gating, Upstream};
use crate::epilogue::Activation;
use crate::error::Error;
use crate::grad_sums::GradSums;
use crate::mask::{Batch, Mask};
use crate::simd::FloatMode;
use crate::{affine, backward, moments, renorm};
use numpy::PyUntypedArray;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyType};
use std::borrow::Cow;
use std::ops::Range;

/// What `batch_norm_backward` needs of a forward pass.
///
/// Holds views of x and of the residual, not copies, and the values that the per-channel vectors had at the time of
/// the forward pass; serves any number of backwards.
#[pyclass(frozen, module = "rustbn._rustbn")]
pub(super) struct Context {
    pub(super) x: Py<PyUntypedArray>,
    pub(super) axis: usize,
    pub(super) eps: f64,
    pub(super) statistics: Statistics,
    pub(super) weight: Option<Vec<f64>>,
    pub(super) bias: Option<Vec<f64>>,
    pub(super) residual: Option<Py<PyUntypedArray>>,
    pub(super) mask: Option<Mask>,
    pub(super) activation: Activation,
    /// The corrections r and d of batch renormalization.
    pub(super) renorm: Option<[Vec<f64>; 2]>,
    /// The parts that were normalised apart, if they were.
    pub(super) groups: Option<Groups>,
}

/// Parts of a batch that were normalised each with its own statistics.
pub(super) struct Groups {
    /// The axis of samples.
    pub(super) axis: usize,
    /// The samples of each part.
    pub(super) ranges: Vec<Range<usize>>,
    /// What backward needs of each.
    pub(super) contexts: Vec<Context>,
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
    /// The weight and bias that normalised values were scaled and shifted by.
    fn parameters(&self) -> [Option<Cow<'_, [f64]>>; 2] {
        let (weight, bias) = (self.weight.as_deref(), self.bias.as_deref());
        let Some([r, d]) = &self.renorm else {
            return [weight.map(Cow::Borrowed), bias.map(Cow::Borrowed)];
        };
        renorm::of_all([r, d], weight, bias).map(|values| Some(Cow::Owned(values)))
    }

    fn transformation(&self) -> PyResult<affine::Affine> {
        let [weight, bias] = self.parameters();
        let (weight, bias) = (weight.as_deref(), bias.as_deref());
        Ok(affine::Affine::from_moments(self.statistics.moments(), weight, bias, self.eps)?)
    }

    fn residual<'py>(&self, py: Python<'py>, x: &Input<'py>) -> PyResult<Option<Input<'py>>> {
        let like = |residual: &Py<PyUntypedArray>| Input::like(residual.bind(py), "residual", x);
        self.residual.as_ref().map(like).transpose()
    }

    /// The gradient with respect to the weight.
    fn dweight(&self, sums: &GradSums) -> Vec<f64> {
        let _mode = FloatMode::standard();
        let mut dweight = self.statistics.moments().invstd(self.eps);
        for (value, sum) in dweight.iter_mut().zip(sums.sum_dy_xmu()) {
            *value *= sum;
        }
        if let Some([r, d]) = &self.renorm {
            for (c, value) in dweight.iter_mut().enumerate() {
                *value = r[c] * *value + d[c] * sums.sum_dy()[c];
            }
        }
        dweight
    }

    /// From dy to dx where the statistics were constants.
    fn derivative(&self) -> PyResult<affine::Affine> {
        let zeros = vec![0.0; self.statistics.moments().mean().len()];
        let scale = self.transformation()?.scale().to_vec();
        Ok(affine::Affine::new(zeros.clone(), scale, zeros)?)
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

    /// The transformation from x to y; None where groups of samples had each their own.
    #[getter]
    fn affine(&self) -> PyResult<Option<nouns::Affine>> {
        if self.groups.is_some() {
            return Ok(None);
        }
        Ok(Some(self.transformation()?.into()))
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
    residual: bool,
}

impl Default for Needs {
    fn default() -> Self {
        Needs { x: true, weight: true, bias: true, residual: true }
    }
}

impl<'py> FromPyObject<'_, 'py> for Needs {
    type Error = PyErr;

    fn extract(any: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let mut needs = Needs { x: false, weight: false, bias: false, residual: false };
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
                Ok("residual") => needs.residual = true,
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
             dresidual : array or None\n    With respect to the residual; always a new array.\n",
        )?;
        Ok::<_, PyErr>(class.unbind())
    })?;
    Ok(class.bind(py))
}

/// The gradients of one forward pass. Where x was a part of a batch, `add` is called with its sums,
/// and returns those of the batch.
pub(super) fn gradients<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    context: &Context,
    out: Option<&Bound<'py, PyAny>>,
    needs: Needs,
    add: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let gradients = match &context.groups {
        None => differentiate(py, dy, context, out, needs, add)?,
        Some(groups) => differentiate_groups(py, dy, context, groups, out, needs)?,
    };
    let dtype = gradients.dtype;
    let vector = |values: Option<Vec<f64>>| values.map(|v| parameter(py, dtype, v.into_iter()));
    let dx = gradients.dx.as_ref().map(Output::finish).transpose()?;
    let dresidual = gradients.dresidual.as_ref().map(Output::finish).transpose()?;
    let (dweight, dbias) = (vector(gradients.dweight), vector(gradients.dbias));
    gradients_type(py)?.call1((dx, dweight, dbias, dresidual))
}

/// Gradients that are not yet arrays of the caller's.
struct Differentiated<'py> {
    dtype: DType,
    dx: Option<Output<'py>>,
    dweight: Option<Vec<f64>>,
    dbias: Option<Vec<f64>>,
    dresidual: Option<Output<'py>>,
}

/// [`gradients`] of a batch whose samples were normalised in groups.
fn differentiate_groups<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    context: &Context,
    Groups { axis, ranges, contexts }: &Groups,
    out: Option<&Bound<'py, PyAny>>,
    needs: Needs,
) -> PyResult<Differentiated<'py>> {
    let x = Input::x(context.x.bind(py), context.axis as isize)?;
    let residual = context.residual(py, &x)?;
    let dy = Input::like(dy, "dy", &x)?;
    let dx = dx(out, needs, &x, &dy, residual.as_ref())?;
    let dresidual = match residual {
        Some(_) if needs.residual => Some(Output::new(&x)?),
        _ => None,
    };
    let mut all = Differentiated { dtype: x.dtype, dx, dweight: None, dbias: None, dresidual };
    for (range, context) in ranges.iter().zip(contexts) {
        let part = |array: &Bound<'py, PyUntypedArray>| samples(array.as_any(), *axis, range);
        let dy = part(&dy.given)?;
        let out = all.dx.as_ref().map(|dx| part(dx.dense())).transpose()?;
        let of_part = differentiate(py, &dy, context, out.as_ref(), needs, None)?;
        if let Some(dx) = of_part.dx {
            dx.finish()?;
        }
        if let (Some(whole), Some(of_part)) = (&all.dresidual, of_part.dresidual) {
            let into = part(whole.dense())?.cast_into::<PyUntypedArray>()?;
            array::copy(&into, of_part.finish()?.cast::<PyUntypedArray>()?)?;
        }
        for (total, of_part) in
            [(&mut all.dweight, of_part.dweight), (&mut all.dbias, of_part.dbias)]
        {
            match (total.as_mut(), of_part) {
                (Some(total), Some(of_part)) => {
                    let _mode = FloatMode::standard();
                    total.iter_mut().zip(of_part).for_each(|(total, value)| *total += value);
                }
                (_, of_part) => *total = of_part,
            }
        }
    }
    Ok(all)
}

/// Where dx goes, if it is needed.
fn dx<'py>(
    out: Option<&Bound<'py, PyAny>>,
    needs: Needs,
    x: &Input<'py>,
    dy: &Input<'py>,
    residual: Option<&Input<'py>>,
) -> PyResult<Option<Output<'py>>> {
    if !needs.x {
        if out.is_none() {
            return Ok(None);
        }
        let expected = "None where needs leaves out \"x\"";
        return Err(Error::Range { argument: "out", expected, got: "an array".into() }.into());
    }
    let others = [
        Some(Named::or_itself("dy", &dy.given)),
        Some(Named::apart("x", &x.given)),
        residual.map(|residual| Named::apart("residual", &residual.given)),
    ];
    Output::like(out, x, &others).map(Some)
}

/// [`gradients`] of a batch that was normalised as a whole.
fn differentiate<'py>(
    py: Python<'py>,
    dy: &Bound<'py, PyAny>,
    context: &Context,
    out: Option<&Bound<'py, PyAny>>,
    needs: Needs,
    add: Option<&Bound<'py, PyAny>>,
) -> PyResult<Differentiated<'py>> {
    let x = Input::x(context.x.bind(py), context.axis as isize)?;
    x.view.check_vector("x", context.statistics.moments().mean())?;
    context.mask.as_ref().map_or(Ok(()), |mask| x.view.masked(mask).map(|_| ()))?;
    let given_dy = Input::like(dy, "dy", &x)?;
    let residual = context.residual(py, &x)?;
    let out = dx(out, needs, &x, &given_dy, residual.as_ref())?;
    let wants_weight = needs.weight && context.weight.is_some();
    let wants_bias = needs.bias && context.bias.is_some();
    let wants_sums = wants_weight || wants_bias;

    // The gradient behind the activation is that of the residual. Where nobody wants it, it is
    // written to where dx will be.
    let gated = context.activation != Activation::Identity;
    let dresidual = match &residual {
        Some(_) if !needs.residual => None,
        None => None,
        Some(_) if gated => Some(Output::new(&x)?),
        Some(_) => Some(Output::copy_of(&given_dy)?),
    };
    let scratch = match (&dresidual, &out) {
        (None, None) if gated && wants_sums => Some(Output::new(&x)?),
        _ => None,
    };
    let dz = dresidual.as_ref().or(out.as_ref()).or(scratch.as_ref()).filter(|_| gated);
    let gating = dz.map(|dz| Behind { residual: residual.as_ref(), dz });

    let sums = match (&out, &context.statistics) {
        (Some(out), Statistics::Batch(moments)) if add.is_none() => {
            Some(fused(py, &given_dy, gating, &x, moments, context, out)?)
        }
        (out, _) => {
            let behind;
            let dz = match gating {
                Some(gating) => {
                    gate(py, &given_dy, &gating, &x, context)?;
                    behind = gating.dz.as_input(&x);
                    &behind
                }
                None => &given_dy,
            };
            // Sums come first, since the output may be dy itself.
            let sums = if wants_sums || add.is_some() {
                Some(reduce(py, dz, &x, context.mask.as_ref(), context.statistics.moments())?)
            } else {
                None
            };
            match (out, &context.statistics, add, &sums) {
                (Some(out), Statistics::Batch(moments), Some(add), Some(sums)) => {
                    let whole = add.call1((nouns::GradSums(sums.clone()),))?;
                    let whole = nouns::grad_sums_argument(&whole)?;
                    let whole = &whole.get().0;
                    dz.check_unchanged()?;
                    out.check_unchanged(&x)?;
                    x.view.check_vector("grad_sums", whole.sum_dy())?;
                    let [weight, _] = context.parameters();
                    let finish =
                        Differentiate { moments, weight: weight.as_deref(), eps: context.eps };
                    apply(py, dz, &x, context.mask.as_ref(), whole, finish, out)?;
                }
                (Some(out), ..) => {
                    let derivative = context.derivative()?.into();
                    nouns::apply(dz, &derivative, None, Activation::Identity, out)?;
                }
                (None, ..) => {}
            }
            sums
        }
    };

    let dweight = sums.as_ref().filter(|_| wants_weight).map(|sums| context.dweight(sums));
    let dbias = sums.as_ref().filter(|_| wants_bias).map(|sums| sums.sum_dy().to_vec());
    Ok(Differentiated { dtype: x.dtype, dx: out, dweight, dbias, dresidual })
}

/// An activation to go back through.
#[derive(Clone, Copy)]
struct Behind<'a, 'py> {
    residual: Option<&'a Input<'py>>,
    /// Where the gradient behind it goes.
    dz: &'a Output<'py>,
}

/// The gradient behind the activation.
fn gate(
    py: Python<'_>,
    dy: &Input<'_>,
    behind: &Behind<'_, '_>,
    x: &Input<'_>,
    context: &Context,
) -> PyResult<()> {
    let bytes = 2 * x.bytes();
    let execution = execution(py, bytes)?;
    let (view, affine) = (x.view, context.transformation()?);
    with_element!(x.dtype, E => {
        let [dy, x, dz] = [dy.elements::<E>(), x.elements(), behind.dz.elements()];
        let epilogue = functions::epilogue::<E>(behind.residual, context.activation);
        let affine = &affine;
        // SAFETY: all are dense arrays of `view`, alive for the length of this call; dz is a new
        // array, or the output, which is dy or apart from all; the affine is that of the context,
        // whose channels were checked, and so was the activation in the forward pass.
        released(py, bytes, move || unsafe {
            let gating = Gating { epilogue, affine, dz: dz.get() };
            backward::gate_raw(view, dy.get(), x.get(), gating, execution);
        });
    });
    Ok(())
}

/// dx and the sums in one pass.
fn fused(
    py: Python<'_>,
    dy: &Input<'_>,
    behind: Option<Behind<'_, '_>>,
    x: &Input<'_>,
    moments: &moments::Moments,
    context: &Context,
    out: &Output<'_>,
) -> PyResult<GradSums> {
    let bytes = 2 * x.bytes();
    let execution = execution(py, bytes)?;
    let [weight, _] = context.parameters();
    let finish = Differentiate { moments, weight: weight.as_deref(), eps: context.eps };
    let batch = Batch { view: x.view, mask: context.mask.as_ref() };
    let affine = behind.map(|_| context.transformation()).transpose()?;
    Ok(with_element!(x.dtype, E => {
        let [dy, x, dx] = [dy.elements::<E>(), x.elements(), out.elements()];
        let residual = behind.and_then(|behind| behind.residual);
        let epilogue = functions::epilogue::<E>(residual, context.activation);
        let dz = behind.map(|behind| behind.dz.elements::<E>());
        let affine = affine.as_ref();
        // SAFETY: all are dense arrays of the view, alive for the length of this call; `Output::like`
        // ruled out that dx overlaps x or the residual, or dy otherwise than by being it; dz is dx or
        // a new array; the context's mask and vectors have the positions and channels of `view`, and
        // the activation was checked in the forward pass.
        released(py, bytes, move || unsafe {
            let gate = dz.zip(affine).map(|(dz, affine)| Gating { epilogue, affine, dz: dz.get() });
            let upstream = Upstream { dy: dy.get(), gate };
            backward::batch_norm_backward_raw(batch, upstream, x.get(), finish, dx.get(), execution)
        })
    }))
}

/// The sums alone.
pub(super) fn reduce(
    py: Python<'_>,
    dy: &Input<'_>,
    x: &Input<'_>,
    mask: Option<&Mask>,
    moments: &moments::Moments,
) -> PyResult<GradSums> {
    let bytes = 2 * x.bytes();
    let execution = execution(py, bytes)?;
    let batch = Batch { view: x.view, mask };
    Ok(with_element!(x.dtype, E => {
        let [dy, x] = [dy.elements::<E>(), x.elements()];
        // SAFETY: both are dense arrays of the view, alive for the length of this call; the
        // caller checked the positions of the mask and the channels of `moments`.
        released(py, bytes, move || unsafe {
            backward::backward_reduce_raw(batch, dy.get(), x.get(), moments, execution)
        })
    }))
}

/// dx from statistics and sums of a whole batch.
pub(super) fn apply(
    py: Python<'_>,
    dy: &Input<'_>,
    x: &Input<'_>,
    mask: Option<&Mask>,
    sums: &GradSums,
    finish: Differentiate<'_>,
    out: &Output<'_>,
) -> PyResult<()> {
    let bytes = 2 * x.bytes();
    let execution = execution(py, bytes)?;
    let batch = Batch { view: x.view, mask };
    with_element!(x.dtype, E => {
        let [dy, x, dx] = [dy.elements::<E>(), x.elements(), out.elements()];
        // SAFETY: all three are dense arrays of the view, alive for the length of this call;
        // `Output::like` ruled out that dx overlaps x, or dy otherwise than by being it; the caller
        // checked the positions of the mask and the channels of the vectors.
        released(py, bytes, move || unsafe {
            let (dy, x) = (dy.get(), x.get());
            backward::backward_apply_raw(batch, dy, x, sums, finish, dx.get(), execution);
        });
    });
    Ok(())
}
