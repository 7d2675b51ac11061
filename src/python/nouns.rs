//! `Moments`, `GradSums` and `Affine` as Python classes: immutable, comparable, picklable.

use super::argument::{self, check_eps, check_momentum};
use super::array::{
    Input, Named, Output, Vector, as_array, as_array_in_place, read_only, with_element,
};
use super::functions;
use super::run::{execution, released};
use crate::aligned::Aligned;
use crate::element::{Element, Real};
use crate::epilogue::Activation;
use crate::error::Error;
use crate::simd::Level;
use crate::{affine, forward, grad_sums, moments};
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::OnceLock;

type Array<'py> = Bound<'py, PyArray1<f64>>;

/// Count, mean and sum of squared deviations of each channel, in float64.
///
/// Moments of the parts of a batch merge to those of the whole, whatever the split, to a few
/// float64 ULP.
///
/// Parameters
/// ----------
/// count : int
///     Values per channel.
/// mean : array, shape (C,)
///     Mean of each channel.
/// m2 : array, shape (C,)
///     Sum of squared deviations from the mean of each channel.
///
/// Notes
/// -----
/// Immutable; ``mean`` and ``m2`` are read-only copies. Equality is exact. The merge is that
/// of Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983), eq. 2.1.
///
/// Examples
/// --------
/// >>> import numpy as np, rustbn
/// >>> x = np.arange(12.0).reshape(6, 2)
/// >>> parts = rustbn.moments(x[:2]).merge(rustbn.moments(x[2:]))
/// >>> parts.count, parts.mean
/// (6, array([5., 6.]))
#[pyclass(frozen, module = "rustbn._rustbn", name = "Moments")]
pub(super) struct Moments(pub(super) moments::Moments);

#[pymethods]
impl Moments {
    #[new]
    fn new(
        #[pyo3(from_py_with = argument::count)] count: u64,
        mean: &Bound<'_, PyAny>,
        m2: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let mean = Vector::new(mean, "mean", None)?.into_values();
        let m2 = Vector::new(m2, "m2", Some(mean.len()))?.into_values();
        Ok(Moments(moments::Moments::new(count, mean, m2)?))
    }

    /// Values per channel.
    #[getter]
    fn count(&self) -> u64 {
        self.0.count()
    }

    /// Mean of each channel, shape (C,); 0 where there are no values.
    #[getter]
    fn mean<'py>(&self, py: Python<'py>) -> Array<'py> {
        read_only(py, self.0.mean())
    }

    /// Sum of squared deviations from the mean of each channel, shape (C,).
    #[getter]
    fn m2<'py>(&self, py: Python<'py>) -> Array<'py> {
        read_only(py, self.0.m2())
    }

    /// Moments of both sets of values together.
    ///
    /// Parameters
    /// ----------
    /// other : Moments
    ///     Of as many channels.
    ///
    /// Returns
    /// -------
    /// Moments
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If the channels differ in number.
    fn merge(&self, #[pyo3(from_py_with = other)] other: Bound<'_, Moments>) -> PyResult<Moments> {
        Ok(Moments(self.0.merge(&other.get().0)?))
    }

    /// Variance of each channel.
    ///
    /// Parameters
    /// ----------
    /// ddof : float, default 0
    ///     The divisor is ``count - ddof``: 0 for the biased variance, which normalises, 1 for the
    ///     unbiased one.
    ///
    /// Returns
    /// -------
    /// array of float64, shape (C,)
    ///     Infinite or NaN where there are no more than `ddof` values.
    #[pyo3(signature = (ddof=0.0), text_signature = "($self, ddof=0)")]
    fn var<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = argument::ddof)] ddof: f64,
    ) -> Array<'py> {
        PyArray1::from_slice(py, &self.0.var(ddof))
    }

    /// Reciprocal standard deviation of each channel, ``1 / sqrt(var() + eps)``.
    ///
    /// Parameters
    /// ----------
    /// eps : float, default 1e-5
    ///     Added to the biased variance.
    ///
    /// Returns
    /// -------
    /// array of float64, shape (C,)
    #[pyo3(signature = (eps=1e-5))]
    fn invstd<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = argument::eps)] eps: f64,
    ) -> PyResult<Array<'py>> {
        check_eps(eps, false)?;
        Ok(PyArray1::from_slice(py, &self.0.invstd(eps)))
    }

    /// Update running statistics in place, as a training forward does.
    ///
    /// ``running = (1 - momentum) * running + momentum * batch``, the running variance from the
    /// unbiased variance. Nothing happens where `count` is 0.
    ///
    /// Parameters
    /// ----------
    /// running_mean, running_var : array, shape (C,)
    ///     float16, bfloat16, float32 or float64, any strides.
    /// momentum : float
    ///     Weight of this batch; any real number.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If `count` is 1, which has no unbiased variance; if an array has another length, is
    ///     read-only, or is both.
    /// TypeError
    ///     If an array has another dtype or could not be updated in place.
    fn update_running(
        &self,
        running_mean: &Bound<'_, PyAny>,
        running_var: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = argument::momentum)] momentum: f64,
    ) -> PyResult<()> {
        let channels = self.0.mean().len();
        let mean = as_array_in_place(running_mean, "running_mean")?;
        let var = as_array_in_place(running_var, "running_var")?;
        let mut running = Running::new(&mean, &var, channels)?;
        running.check_writeable()?;
        check_momentum(momentum)?;
        running.update(&self.0, momentum)
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> Reduced<'py, (u64, Array<'py>, Array<'py>)> {
        (py.get_type::<Self>(), (self.count(), self.mean(py), self.m2(py)))
    }

    fn __eq__(&self, other: &Moments) -> bool {
        self.0 == other.0
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "Moments(count={}, mean={}, m2={})",
            self.count(),
            self.mean(py).repr()?,
            self.m2(py).repr()?
        ))
    }
}

/// What pickle needs of an object: its class and the arguments that make it again.
type Reduced<'py, A> = (Bound<'py, pyo3::types::PyType>, A);

/// The argument `moments`.
pub(super) fn moments_argument<'py>(any: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Moments>> {
    argument::object(any, "moments", "a Moments")
}

/// The argument `other` of `Moments.merge`.
fn other<'py>(any: &Bound<'py, PyAny>) -> PyResult<Bound<'py, Moments>> {
    argument::object(any, "other", "a Moments")
}

/// The argument `grad_sums`.
pub(super) fn grad_sums_argument<'py>(any: &Bound<'py, PyAny>) -> PyResult<Bound<'py, GradSums>> {
    argument::object(any, "grad_sums", "a GradSums")
}

/// The pair of running statistics of a call.
pub(super) struct Running<'py> {
    pub(super) mean: Vector<'py>,
    pub(super) var: Vector<'py>,
}

impl<'py> Running<'py> {
    pub(super) fn new(
        mean: &Bound<'py, PyAny>,
        var: &Bound<'py, PyAny>,
        channels: usize,
    ) -> PyResult<Self> {
        Ok(Running {
            mean: Vector::new(mean, "running_mean", Some(channels))?,
            var: Vector::new(var, "running_var", Some(channels))?,
        })
    }

    /// Refuses statistics that cannot be updated.
    pub(super) fn check_writeable(&self) -> PyResult<()> {
        self.mean.check_writeable("running_mean")?;
        self.var.check_writeable("running_var")?;
        self.var.check_apart("running_var", "running_mean", &self.mean.array)
    }

    /// Refuses arrays that somebody else's code has changed since their values were read.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        self.mean.check_unchanged("running_mean")?;
        self.var.check_unchanged("running_var")
    }

    /// Moves the statistics towards those of a batch.
    pub(super) fn update(&mut self, batch: &moments::Moments, momentum: f64) -> PyResult<()> {
        batch.update_running(self.mean.values_mut(), self.var.values_mut(), momentum)?;
        if batch.count() > 0 {
            self.mean.write();
            self.var.write();
        }
        Ok(())
    }
}

/// The two sums of each channel that all gradients of a batch are made of, in float64.
///
/// Sums of the parts of a batch add up to those of the whole.
///
/// Parameters
/// ----------
/// sum_dy : array, shape (C,)
///     ``sum(dy)``, the gradient with respect to the bias.
/// sum_dy_xmu : array, shape (C,)
///     ``sum(dy * (x - mean))``, which times ``invstd`` is the gradient with respect to the weight.
///
/// Notes
/// -----
/// Immutable; the arrays are read-only copies. Equality is exact.
#[pyclass(frozen, module = "rustbn._rustbn", name = "GradSums")]
pub(super) struct GradSums(pub(super) grad_sums::GradSums);

#[pymethods]
impl GradSums {
    #[new]
    fn new(sum_dy: &Bound<'_, PyAny>, sum_dy_xmu: &Bound<'_, PyAny>) -> PyResult<Self> {
        let sum_dy = Vector::new(sum_dy, "sum_dy", None)?.into_values();
        let sum_dy_xmu = Vector::new(sum_dy_xmu, "sum_dy_xmu", Some(sum_dy.len()))?.into_values();
        Ok(GradSums(grad_sums::GradSums::new(sum_dy, sum_dy_xmu)?))
    }

    /// ``sum(dy)`` of each channel, shape (C,).
    #[getter]
    fn sum_dy<'py>(&self, py: Python<'py>) -> Array<'py> {
        read_only(py, self.0.sum_dy())
    }

    /// ``sum(dy * (x - mean))`` of each channel, shape (C,).
    #[getter]
    fn sum_dy_xmu<'py>(&self, py: Python<'py>) -> Array<'py> {
        read_only(py, self.0.sum_dy_xmu())
    }

    fn __add__(&self, other: &GradSums) -> PyResult<GradSums> {
        Ok(GradSums(self.0.add(&other.0)?))
    }

    /// Of 0, with which `sum` begins.
    fn __radd__<'py>(slf: &Bound<'py, Self>, other: &Bound<'py, PyAny>) -> Bound<'py, PyAny> {
        match other.extract() {
            Ok(0) => slf.clone().into_any(),
            _ => slf.py().NotImplemented().into_bound(slf.py()),
        }
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> Reduced<'py, (Array<'py>, Array<'py>)> {
        (py.get_type::<Self>(), (self.sum_dy(py), self.sum_dy_xmu(py)))
    }

    fn __eq__(&self, other: &GradSums) -> bool {
        self.0 == other.0
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let [sum_dy, sum_dy_xmu] = [self.sum_dy(py).repr()?, self.sum_dy_xmu(py).repr()?];
        Ok(format!("GradSums(sum_dy={sum_dy}, sum_dy_xmu={sum_dy_xmu})"))
    }
}

/// The transformation ``y = (x - mean) * scale + bias`` of each channel.
///
/// It is what batch normalization is once its statistics are known. Called with an array it returns the
/// transformed one: ``affine(x, *, axis=1, activation=None, residual=None, out=None)``, with x of float16,
/// bfloat16, float32 or float64 and 2 or more dimensions, its channels along `axis`, and activation, residual
/// and `out` as for `batch_norm` in evaluation.
///
/// Parameters
/// ----------
/// mean, scale, bias : array, shape (C,)
///     Coefficients of each channel; kept in float64.
///
/// Notes
/// -----
/// Immutable; the arrays are read-only copies. Equality is exact. The transformation stays
/// centred: written as ``x * a + b`` it would cancel where the mean is much larger than the
/// standard deviation.
///
/// Examples
/// --------
/// >>> import numpy as np, rustbn
/// >>> x = np.array([[0.0, 5.0], [2.0, 5.0]])
/// >>> rustbn.Affine.from_moments(rustbn.moments(x), eps=0.0625)(x)
/// array([[-0.9701425,  0.       ],
///        [ 0.9701425,  0.       ]])
#[pyclass(frozen, module = "rustbn._rustbn", name = "Affine")]
pub(super) struct Affine {
    affine: affine::Affine,
    tables: Tables,
}

/// The coefficients of a transformation in both types of arithmetic, for the engine: each made when it
/// is first needed, with the interpreter held.
#[derive(Default)]
struct Tables {
    f32: OnceLock<Aligned<f32>>,
    f64: OnceLock<Aligned<f64>>,
}

/// A type of arithmetic that [`Tables`] has.
trait Tabled: Real {
    /// The table in this type.
    fn of(tables: &Tables) -> &OnceLock<Aligned<Self>>;
}

impl Tabled for f32 {
    fn of(tables: &Tables) -> &OnceLock<Aligned<f32>> {
        &tables.f32
    }
}

impl Tabled for f64 {
    fn of(tables: &Tables) -> &OnceLock<Aligned<f64>> {
        &tables.f64
    }
}

impl From<affine::Affine> for Affine {
    fn from(affine: affine::Affine) -> Affine {
        Affine { affine, tables: Tables::default() }
    }
}

impl Affine {
    /// The coefficients in one type of arithmetic, for [`forward::apply_table_raw`].
    fn table<R: Tabled>(&self, level: Level) -> &[R] {
        R::of(&self.tables).get_or_init(|| forward::table(&self.affine, level))
    }
}

#[pymethods]
impl Affine {
    #[new]
    fn new(
        mean: &Bound<'_, PyAny>,
        scale: &Bound<'_, PyAny>,
        bias: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let mean = Vector::new(mean, "mean", None)?.into_values();
        let scale = Vector::new(scale, "scale", Some(mean.len()))?.into_values();
        let bias = Vector::new(bias, "bias", Some(mean.len()))?.into_values();
        Ok(affine::Affine::new(mean, scale, bias)?.into())
    }

    /// Normalisation with batch statistics.
    ///
    /// Parameters
    /// ----------
    /// moments : Moments
    ///     Statistics of the batch; its biased variance normalises.
    /// weight, bias : array, shape (C,), optional
    ///     Scale and shift; 1 and 0 where absent.
    /// eps : float, default 1e-5
    ///     Added to the variance.
    ///
    /// Returns
    /// -------
    /// Affine
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If `weight` or `bias` has another length, or eps is negative or not finite.
    #[staticmethod]
    #[pyo3(signature = (moments, weight=None, bias=None, eps=1e-5))]
    fn from_moments(
        #[pyo3(from_py_with = moments_argument)] moments: Bound<'_, Moments>,
        weight: Option<&Bound<'_, PyAny>>,
        bias: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::eps)] eps: f64,
    ) -> PyResult<Affine> {
        let moments = &moments.get().0;
        let channels = moments.mean().len();
        let weight = Vector::optional(weight, "weight", channels)?.map(Vector::into_values);
        let bias = Vector::optional(bias, "bias", channels)?.map(Vector::into_values);
        check_eps(eps, false)?;
        let (weight, bias) = (weight.as_deref(), bias.as_deref());
        Ok(affine::Affine::from_moments(moments, weight, bias, eps)?.into())
    }

    /// Normalisation with running statistics: batch normalization at inference (Ioffe & Szegedy
    /// 2015, Algorithm 2).
    ///
    /// Parameters
    /// ----------
    /// running_mean, running_var : array, shape (C,)
    ///     Population statistics.
    /// weight, bias : array, shape (C,), optional
    ///     Scale and shift; 1 and 0 where absent.
    /// eps : float, default 1e-5
    ///     Added to the variance.
    ///
    /// Returns
    /// -------
    /// Affine
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If an array has another length than `running_mean`, or eps is negative or not finite.
    #[staticmethod]
    #[pyo3(signature = (running_mean, running_var, weight=None, bias=None, eps=1e-5))]
    fn from_running(
        running_mean: &Bound<'_, PyAny>,
        running_var: &Bound<'_, PyAny>,
        weight: Option<&Bound<'_, PyAny>>,
        bias: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = argument::eps)] eps: f64,
    ) -> PyResult<Affine> {
        let mean = Vector::new(running_mean, "running_mean", None)?.into_values();
        let var = Vector::new(running_var, "running_var", Some(mean.len()))?.into_values();
        let weight = Vector::optional(weight, "weight", mean.len())?.map(Vector::into_values);
        let bias = Vector::optional(bias, "bias", mean.len())?.map(Vector::into_values);
        check_eps(eps, false)?;
        let (weight, bias) = (weight.as_deref(), bias.as_deref());
        Ok(affine::Affine::from_running(&mean, &var, weight, bias, eps)?.into())
    }

    /// What is subtracted from each channel, shape (C,).
    #[getter]
    fn mean<'py>(&self, py: Python<'py>) -> Array<'py> {
        read_only(py, self.affine.mean())
    }

    /// What the difference is multiplied by, shape (C,).
    #[getter]
    fn scale<'py>(&self, py: Python<'py>) -> Array<'py> {
        read_only(py, self.affine.scale())
    }

    /// What is added, shape (C,).
    #[getter]
    fn bias<'py>(&self, py: Python<'py>) -> Array<'py> {
        read_only(py, self.affine.bias())
    }

    /// Apply the transformation.
    ///
    /// Parameters
    /// ----------
    /// x : array, float16, bfloat16, float32 or float64, 2 or more dimensions
    ///     Input.
    /// axis : int, default 1
    ///     Channel axis.
    /// activation : None, str or (str, float), optional
    ///     Applied last, as by `rustbn.batch_norm` in evaluation.
    /// residual : array, optional
    ///     Of x's shape and dtype; added before the activation.
    /// out : array, optional
    ///     Where to write; of x's shape and dtype, and x or the residual itself if you like.
    ///
    /// Returns
    /// -------
    /// array
    ///     Of x's shape, dtype and memory order; `out` if given.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If x has another number of channels, or `residual`, `activation` or `out` does not fit.
    /// TypeError
    ///     If x or `out` has the wrong dtype.
    #[pyo3(signature = (x, *, axis=1, activation=None, residual=None, out=None))]
    fn __call__<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = argument::axis)] axis: isize,
        activation: Option<&Bound<'py, PyAny>>,
        residual: Option<&Bound<'py, PyAny>>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let activation = argument::activation(activation)?;
        let x = as_array(x, "x")?;
        let residual = residual.map(|any| as_array(any, "residual")).transpose()?;
        let x = Input::x(&x, axis)?;
        x.view.check_vector("affine", self.affine.mean())?;
        let residual = residual.map(|any| Input::like(&any, "residual", &x)).transpose()?;
        let others = [
            Some(Named::or_itself("x", &x.given)),
            residual.as_ref().map(|residual| Named::or_itself("residual", &residual.given)),
        ];
        let out = Output::like(out, &x, &others)?;
        apply(&x, self, residual.as_ref(), activation, &out)?;
        out.finish()
    }

    /// Fold into the linear layer before: `rustbn.folding.fold_into_linear`.
    ///
    /// Parameters
    /// ----------
    /// weight : array, shape (outputs, inputs)
    ///     float64, float32, float16 or bfloat16; (inputs, outputs) with ``axis=1``.
    /// bias : array, shape (outputs,), optional
    ///     Zero where absent.
    /// axis : int, default 0
    ///     Axis of `weight` along which its outputs lie.
    ///
    /// Returns
    /// -------
    /// weight, bias : array
    ///     Of the layer that does both; new arrays of the weight's dtype.
    #[pyo3(signature = (weight, bias=None, *, axis=0))]
    fn fold_into_linear<'py>(
        slf: &Bound<'py, Self>,
        weight: &Bound<'py, PyAny>,
        bias: Option<&Bound<'py, PyAny>>,
        #[pyo3(from_py_with = argument::axis)] axis: isize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = PyDict::new(slf.py());
        options.set_item("axis", axis)?;
        fold("fold_into_linear", slf, weight, bias, &options)
    }

    /// Fold into the convolution before: `rustbn.folding.fold_into_conv`.
    ///
    /// Parameters
    /// ----------
    /// weight : array, shape (outputs, inputs / groups, ...)
    ///     float64, float32, float16 or bfloat16; (inputs, outputs / groups, ...) where transposed.
    /// bias : array, shape (outputs,), optional
    ///     Zero where absent.
    /// transposed : bool, default False
    ///     Whether it is a transposed convolution.
    /// groups : int, default 1
    ///     As given to the convolution.
    ///
    /// Returns
    /// -------
    /// weight, bias : array
    ///     Of the convolution that does both; new arrays of the weight's dtype.
    #[pyo3(signature = (weight, bias=None, *, transposed=false, groups=1))]
    fn fold_into_conv<'py>(
        slf: &Bound<'py, Self>,
        weight: &Bound<'py, PyAny>,
        bias: Option<&Bound<'py, PyAny>>,
        #[pyo3(from_py_with = argument::transposed)] transposed: bool,
        #[pyo3(from_py_with = argument::groups)] groups: isize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let options = PyDict::new(slf.py());
        options.set_item("transposed", transposed)?;
        options.set_item("groups", groups)?;
        fold("fold_into_conv", slf, weight, bias, &options)
    }

    fn __reduce__<'py>(
        &self,
        py: Python<'py>,
    ) -> Reduced<'py, (Array<'py>, Array<'py>, Array<'py>)> {
        (py.get_type::<Self>(), (self.mean(py), self.scale(py), self.bias(py)))
    }

    fn __eq__(&self, other: &Affine) -> bool {
        self.affine == other.affine
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!(
            "Affine(mean={}, scale={}, bias={})",
            self.mean(py).repr()?,
            self.scale(py).repr()?,
            self.bias(py).repr()?
        ))
    }
}

/// Calls a function of `rustbn.folding`, where the formulas are.
fn fold<'py>(
    function: &str,
    affine: &Bound<'py, Affine>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let folding = affine.py().import("rustbn.folding")?;
    folding.call_method(function, (affine, weight, bias), Some(options))
}

/// Sends `x` through `affine`, and what comes after, to `out`.
pub(super) fn apply(
    x: &Input<'_>,
    affine: &Affine,
    residual: Option<&Input<'_>>,
    activation: Activation,
    out: &Output<'_>,
) -> PyResult<()> {
    let py = x.given.py();
    let execution = execution(py, x.bytes())?;
    let view = x.view;
    with_element!(x.dtype, E => {
        let (x_, y) = (x.elements::<E>(), out.elements::<E>());
        let epilogue = functions::epilogue::<E>(residual, activation);
        let table = affine.table::<<E as Element>::Real>(execution.level);
        // SAFETY: x, residual and out are dense arrays of `view`, alive for the length of this call;
        // `Output::like` ruled out that out overlaps them otherwise than by being one; the caller
        // checked the channels of `affine`.
        released(py, x.bytes(), move || unsafe {
            forward::apply_table_raw(view, x_.get(), table, epilogue, y.get(), execution);
        });
    });
    Ok(())
}
