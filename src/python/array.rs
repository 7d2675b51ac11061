//! The border: NumPy arrays in, views and pointers out.
//!
//! dtype, strides, flags and data pointer are read from the untyped array. The borrow guards of
//! rust-numpy are not used: they take a process-wide lock, and they know nothing of memory shared
//! with other libraries. Instead strong references are held while the engine runs, and overlap
//! between what is written and what is read is ruled out here by NumPy's own rule. To make an array of an object runs
//! that object's code, which may give any other array a new shape or type: so all arguments of a call are made arrays
//! before the layout of one is looked at. A caller who
//! writes to an array from another thread while the engine reads it gets what such a caller gets
//! from NumPy.

use super::errors::kind_error;
use super::memory::recycled;
use super::run::Raw;
use crate::element::Element;
use crate::error::Error;
use crate::simd::FloatMode;
use crate::view::View;
use numpy::npyffi::flags::{NPY_ARRAY_ALIGNED, NPY_ARRAY_WRITEABLE};
use numpy::npyffi::{NPY_ORDER, NPY_TYPES, PY_ARRAY_API};
use numpy::prelude::*;
use numpy::{PyArray1, PyArrayDescr, PyUntypedArray};
use pyo3::PyTypeInfo;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::cell::OnceCell;
use std::fmt::Write as _;
use std::ops::Range;

/// The element types of arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DType {
    /// float16.
    F16,
    /// bfloat16, which is not NumPy's but that of `ml_dtypes`.
    BF16,
    /// float32.
    F32,
    /// float64.
    F64,
}

/// Runs `$body` with `$element` standing for the Rust type of a [`DType`].
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::python::array::DType::F16 => {
                type $element = half::f16;
                $body
            }
            $crate::python::array::DType::BF16 => {
                type $element = half::bf16;
                $body
            }
            $crate::python::array::DType::F32 => {
                type $element = f32;
                $body
            }
            $crate::python::array::DType::F64 => {
                type $element = f64;
                $body
            }
        }
    };
}
pub(super) use with_element;

const FLOATS: &str = "float16, bfloat16, float32 or float64";

impl DType {
    fn of(array: &Bound<'_, PyUntypedArray>) -> Option<DType> {
        let num = element_type(array).num();
        if num == NPY_TYPES::NPY_FLOAT as i32 {
            Some(DType::F32)
        } else if num == NPY_TYPES::NPY_DOUBLE as i32 {
            Some(DType::F64)
        } else if num == NPY_TYPES::NPY_HALF as i32 {
            Some(DType::F16)
        } else if num >= NPY_TYPES::NPY_USERDEF as i32 && bfloat16(array.py())?.num() == num {
            Some(DType::BF16)
        } else {
            None
        }
    }

    fn descriptor(self, py: Python<'_>) -> Bound<'_, PyArrayDescr> {
        let num = match self {
            DType::F16 => NPY_TYPES::NPY_HALF,
            DType::BF16 => return bfloat16(py).expect("an array has it").clone(),
            DType::F32 => NPY_TYPES::NPY_FLOAT,
            DType::F64 => NPY_TYPES::NPY_DOUBLE,
        };
        // SAFETY: the call gives a new reference to the descriptor of one of NumPy's own types.
        unsafe {
            let descriptor = PY_ARRAY_API.PyArray_DescrFromType(py, num as i32);
            Bound::from_owned_ptr(py, descriptor.cast()).cast_into_unchecked()
        }
    }

    fn name(self) -> &'static str {
        match self {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            DType::F32 => "float32",
            DType::F64 => "float64",
        }
    }

    /// Bytes of an element.
    pub(super) fn itemsize(self) -> usize {
        with_element!(self, E => size_of::<E>())
    }
}

/// The descriptor of bfloat16, whose number is another in every process: `None` as long as nobody has
/// loaded `ml_dtypes`, for then there is no array of it.
fn bfloat16(py: Python<'_>) -> Option<&Bound<'_, PyArrayDescr>> {
    static DESCRIPTOR: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
    let look_up = || {
        let modules = py.import("sys")?.getattr("modules")?;
        let scalar = modules.get_item("ml_dtypes")?.getattr("bfloat16")?;
        Ok::<_, PyErr>(PyArrayDescr::new(py, scalar)?.unbind())
    };
    // What cannot be found is looked up again the next time.
    DESCRIPTOR.get_or_try_init(py, look_up).ok().map(|descriptor| descriptor.bind(py))
}

/// Looks up NumPy's C interface.
pub(super) fn prepare(py: Python<'_>) {
    for dtype in [DType::F32, DType::F64] {
        dtype.descriptor(py);
    }
    array_type(py);
}

/// A shape as Python prints it.
pub(super) fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => {
            let mut text = String::from("(");
            for (i, n) in shape.iter().enumerate() {
                let _ = write!(text, "{}{n}", if i > 0 { ", " } else { "" });
            }
            text + ")"
        }
    }
}

fn dtype_error(argument: &'static str, expected: &str, array: &Bound<'_, PyUntypedArray>) -> Error {
    Error::DType { argument, expected: expected.to_owned(), got: array.dtype().to_string() }
}

/// The type of plain arrays, without asking NumPy's tables for it each time.
fn array_type(py: Python<'_>) -> &Bound<'_, PyType> {
    static TYPE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    TYPE.get_or_init(py, || PyUntypedArray::type_object(py).unbind()).bind(py)
}

/// `any` as an array: itself, or what `numpy.asarray` makes of an object with `__array__`.
///
/// A masked array is refused: its mask says which values do not count, and would be ignored.
#[inline]
pub(super) fn as_array<'py>(
    any: &Bound<'py, PyAny>,
    argument: &'static str,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    match plain(any) {
        Some(array) => Ok(array.clone()),
        None => made_array(any, argument),
    }
}

/// `any` as an array that can be updated in place: not one that is made anew whenever it is asked for.
pub(super) fn as_array_in_place<'py>(
    any: &Bound<'py, PyAny>,
    argument: &'static str,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = as_array(any, argument)?;
    if !any.is(&array) && data(&as_array(any, argument)?) != data(&array) && !array.is_empty() {
        return Err(kind_error(argument, "an array that can be updated in place", any));
    }
    Ok(array)
}

/// Whether `any` is an array of no other class, which runs nobody else's code.
#[inline]
pub(super) fn is_array(any: &Bound<'_, PyAny>) -> bool {
    plain(any).is_some()
}

/// `any`, if it is an array of no other class.
#[inline]
fn plain<'a, 'py>(any: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, PyUntypedArray>> {
    let exactly = any.get_type_ptr() == array_type(any.py()).as_type_ptr();
    // SAFETY: it is an array, by its type.
    exactly.then(|| unsafe { any.cast_unchecked() })
}

/// [`as_array`] of what is no array, or one of a class of its own.
#[cold]
fn made_array<'py>(
    any: &Bound<'py, PyAny>,
    argument: &'static str,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let expected = "a NumPy array";
    if let Ok(array) = any.cast::<PyUntypedArray>() {
        if any.is_instance(&any.py().import("numpy.ma")?.getattr("MaskedArray")?)? {
            return Err(kind_error(argument, "a NumPy array without a mask", any));
        }
        return Ok(array.clone());
    }
    if any.is_instance_of::<PyType>() || !any.hasattr("__array__")? {
        return Err(kind_error(argument, expected, any));
    }
    match any.py().import("numpy")?.call_method1("asarray", (any,)) {
        Ok(array) => array.cast_into().map_err(|_| kind_error(argument, expected, any)),
        Err(cause) if !cause.is_instance_of::<PyException>(any.py()) => Err(cause),
        Err(cause) => {
            // Its reason is mostly what to do: "use tensor.detach()", for one.
            let class =
                any.get_type().name().map_or_else(|_| String::from("?"), |name| name.to_string());
            let expected = "an object that becomes a NumPy array";
            let got = format!("{class}: {}", cause.value(any.py()));
            let error = PyErr::from(Error::Kind { argument, expected, got });
            error.set_cause(any.py(), Some(cause));
            Err(error)
        }
    }
}

fn flags(array: &Bound<'_, PyUntypedArray>) -> i32 {
    // SAFETY: the object is alive, and its fields are read with the interpreter held.
    unsafe { (*array.as_array_ptr()).fields.flags }
}

pub(super) fn data(array: &Bound<'_, PyUntypedArray>) -> *mut u8 {
    // SAFETY: as above.
    unsafe { (*array.as_array_ptr()).fields.data.cast() }
}

/// The type of an array's elements, without a reference of its own.
fn element_type<'a, 'py>(array: &'a Bound<'py, PyUntypedArray>) -> Borrowed<'a, 'py, PyArrayDescr> {
    // SAFETY: as above. The array holds a reference to its type; it could only be given another by
    // Python code, which does not run before those who asked have looked at the type.
    unsafe {
        let descriptor = (*array.as_array_ptr()).fields.descr;
        Borrowed::from_ptr(array.py(), descriptor.cast()).cast_unchecked()
    }
}

/// Bytes of an element, which for the usual types are known.
fn itemsize(array: &Bound<'_, PyUntypedArray>) -> usize {
    DType::of(array).map_or_else(|| element_type(array).itemsize(), DType::itemsize)
}

/// Whether elements can be read where they are: aligned, in the machine's byte order.
fn is_plain(array: &Bound<'_, PyUntypedArray>) -> bool {
    flags(array) & NPY_ARRAY_ALIGNED != 0 && is_native(array)
}

fn is_native(array: &Bound<'_, PyUntypedArray>) -> bool {
    element_type(array).is_native_byteorder().unwrap_or(false)
}

fn is_writeable(array: &Bound<'_, PyUntypedArray>) -> bool {
    flags(array) & NPY_ARRAY_WRITEABLE != 0
}

/// A new array of `prototype`'s shape, dense, its axes in the order of the prototype's memory;
/// large ones in recycled memory.
fn new_like<'py>(
    prototype: &Bound<'py, PyUntypedArray>,
    dtype: DType,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = prototype.py();
    // SAFETY: the prototype is an array; the call takes over a reference to the descriptor and
    // returns a new reference or sets an exception; subok = 0 gives a plain array.
    recycled(py, prototype.len().saturating_mul(dtype.itemsize()), || unsafe {
        let array = PY_ARRAY_API.PyArray_NewLikeArray(
            py,
            prototype.as_array_ptr(),
            NPY_ORDER::NPY_KEEPORDER,
            dtype.descriptor(py).into_dtype_ptr(),
            0,
        );
        Ok(Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked())
    })
}

/// Copies all elements, whatever the two memories look like.
pub(super) fn copy(
    into: &Bound<'_, PyUntypedArray>,
    from: &Bound<'_, PyUntypedArray>,
) -> PyResult<()> {
    let py = into.py();
    // SAFETY: both are arrays; NumPy checks shapes and types and sets an exception where they do
    // not fit.
    match unsafe { PY_ARRAY_API.PyArray_CopyInto(py, into.as_array_ptr(), from.as_array_ptr()) } {
        0 => Ok(()),
        _ => Err(PyErr::fetch(py)),
    }
}

/// Whether two arrays of one shape order their elements alike in memory.
fn same_order(a: &Bound<'_, PyUntypedArray>, b: &Bound<'_, PyUntypedArray>) -> bool {
    let strides = a.strides().iter().zip(b.strides());
    a.shape().iter().zip(strides).all(|(&n, (a, b))| n == 1 || a == b) || a.is_empty()
}

/// Whether a dense array still is what it was checked to be, where somebody else's code has run since: that may give any
/// array a new shape, other strides or another type.
fn unchanged(
    array: &Bound<'_, PyUntypedArray>,
    argument: &'static str,
    dtype: DType,
    (view, axis): (View, usize),
) -> Result<(), Error> {
    let itemsize = dtype.itemsize();
    if DType::of(array) == Some(dtype)
        && is_plain(array)
        && axis < array.ndim()
        && View::from_strides(array.shape(), array.strides(), itemsize, axis) == Some(view)
    {
        return Ok(());
    }
    let expected = "left as it is until the call returns";
    let got = format!("an array of {} and shape {}", array.dtype(), tuple(array.shape()));
    Err(Error::Range { argument, expected, got })
}

/// An input as the engine reads it.
pub(super) struct Input<'py> {
    /// The argument's name.
    argument: &'static str,
    /// The array that was given.
    pub(super) given: Bound<'py, PyUntypedArray>,
    /// The same elements in dense, aligned, native memory: the array itself wherever it is that.
    dense: Bound<'py, PyUntypedArray>,
    /// Its type.
    pub(super) dtype: DType,
    /// How channels lie in `dense`.
    pub(super) view: View,
    /// The channel axis.
    pub(super) axis: usize,
}

impl<'py> Input<'py> {
    /// The argument `x`, whose channels are along `axis`.
    pub(super) fn x(any: &Bound<'py, PyAny>, axis: isize) -> PyResult<Input<'py>> {
        let given = as_array(any, "x")?;
        let dtype = DType::of(&given).ok_or_else(|| dtype_error("x", FLOATS, &given))?;
        let ndim = given.ndim();
        if ndim < 2 {
            let expected = "2 or more dimensions";
            return Err(Error::Rank { argument: "x", expected, got: ndim }.into());
        }
        let from_start = if axis < 0 { axis + ndim as isize } else { axis };
        let index = usize::try_from(from_start).ok().filter(|&i| i < ndim);
        let axis = index.ok_or(Error::Axis { axis, ndim })?;
        let view_of = |array: &Bound<'_, PyUntypedArray>| {
            View::from_strides(array.shape(), array.strides(), dtype.itemsize(), axis)
        };
        if is_plain(&given)
            && let Some(view) = view_of(&given)
        {
            return Ok(Input { argument: "x", dense: given.clone(), given, dtype, view, axis });
        }
        let dense = new_like(&given, dtype)?;
        copy(&dense, &given)?;
        let view = view_of(&dense).expect("a new array is dense");
        Ok(Input { argument: "x", given, dense, dtype, view, axis })
    }

    /// The argument called `argument`, dy or a residual, which must be like `x`.
    pub(super) fn like(
        any: &Bound<'py, PyAny>,
        argument: &'static str,
        x: &Input<'py>,
    ) -> PyResult<Input<'py>> {
        let given = as_array(any, argument)?;
        check_like(&given, argument, x)?;
        let dense = if is_plain(&given) && same_order(&given, &x.dense) {
            given.clone()
        } else {
            let dense = new_like(&x.dense, x.dtype)?;
            copy(&dense, &given)?;
            dense
        };
        Ok(Input { argument, given, dense, ..*x })
    }

    /// Its shape.
    pub(super) fn shape(&self) -> &[usize] {
        self.dense.shape()
    }

    /// The strides of the memory that the engine reads.
    pub(super) fn strides(&self) -> &[isize] {
        self.dense.strides()
    }

    /// Bytes of its elements.
    pub(super) fn bytes(&self) -> usize {
        self.view.len() * self.dtype.itemsize()
    }

    /// Its elements, for the engine.
    pub(super) fn elements<E: Element>(&self) -> Raw<E> {
        debug_assert_eq!(size_of::<E>(), self.dtype.itemsize());
        Raw(data(&self.dense).cast())
    }

    /// Refuses an array that somebody else's code has changed since.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        unchanged(&self.dense, self.argument, self.dtype, (self.view, self.axis))
    }
}

/// Refuses an array that is not of x's shape and dtype.
fn check_like(
    array: &Bound<'_, PyUntypedArray>,
    argument: &'static str,
    x: &Input<'_>,
) -> Result<(), Error> {
    if DType::of(array) != Some(x.dtype) {
        return Err(dtype_error(argument, x.dtype.name(), array));
    }
    if array.shape() != x.given.shape() {
        let (expected, got) = (tuple(x.given.shape()), tuple(array.shape()));
        return Err(Error::Shape { argument, expected, got });
    }
    Ok(())
}

/// Where a call writes its elements.
pub(super) struct Output<'py> {
    /// The array that the caller gets.
    array: Bound<'py, PyUntypedArray>,
    /// The array that the engine writes, ordered like x: the same one wherever it is that.
    dense: Bound<'py, PyUntypedArray>,
}

/// An array that is part of a call, by the name of its argument.
pub(super) struct Named<'a, 'py> {
    name: &'static str,
    array: &'a Bound<'py, PyUntypedArray>,
    may_be_output: bool,
}

impl<'a, 'py> Named<'a, 'py> {
    /// An array that the output shares no memory with.
    pub(super) fn apart(name: &'static str, array: &'a Bound<'py, PyUntypedArray>) -> Self {
        Named { name, array, may_be_output: false }
    }

    /// An array that the output may be, though not a part of.
    pub(super) fn or_itself(name: &'static str, array: &'a Bound<'py, PyUntypedArray>) -> Self {
        Named { name, array, may_be_output: true }
    }
}

impl<'py> Output<'py> {
    /// The argument `out`, or a new array, for outputs like `x`.
    pub(super) fn like(
        out: Option<&Bound<'py, PyAny>>,
        x: &Input<'py>,
        others: &[Option<Named<'_, 'py>>],
    ) -> PyResult<Output<'py>> {
        let Some(any) = out else {
            return Output::new(x);
        };
        let array = plain(any).map_or_else(|| any.cast::<PyUntypedArray>(), Ok);
        let array = array.map_err(|_| kind_error("out", "a NumPy array", any))?.clone();
        check_like(&array, "out", x)?;
        if !is_writeable(&array) {
            return Err(Error::ReadOnly { argument: "out" }.into());
        }
        let ordered_like_x = same_order(&array, &x.dense);
        if !ordered_like_x {
            check_distinct(&array, "out")?;
        }
        let bytes = extent(&array);
        for &Named { name, array: other, may_be_output } in others.iter().flatten() {
            if may_be_output && is_same_memory(&array, other) {
                continue;
            }
            if overlap(&bytes, &extent(other)) && shares_memory(&array, other)? {
                let or_itself =
                    if may_be_output { format!("be {name} itself or ") } else { String::new() };
                let expected = format!("{or_itself}share no memory with {name}");
                return Err(Error::Overlap { argument: "out", expected, got: name }.into());
            }
        }
        let direct = is_plain(&array) && ordered_like_x;
        let dense = if direct { array.clone() } else { new_like(&x.dense, x.dtype)? };
        Ok(Output { array, dense })
    }

    /// A new array like `x`.
    pub(super) fn new(x: &Input<'py>) -> PyResult<Output<'py>> {
        let array = new_like(&x.dense, x.dtype)?;
        Ok(Output { dense: array.clone(), array })
    }

    /// A new array like `x`, with its elements.
    pub(super) fn copy_of(x: &Input<'py>) -> PyResult<Output<'py>> {
        let output = Output::new(x)?;
        copy(&output.dense, &x.dense)?;
        Ok(output)
    }

    /// The same elements as an input.
    pub(super) fn as_input(&self, x: &Input<'py>) -> Input<'py> {
        Input { argument: "out", given: self.dense.clone(), dense: self.dense.clone(), ..*x }
    }

    /// Its elements, for the engine.
    pub(super) fn elements<E: Element>(&self) -> Raw<E> {
        Raw(data(&self.dense).cast())
    }

    /// Refuses an array that somebody else's code has changed since it was checked for outputs like `x`.
    pub(super) fn check_unchanged(&self, x: &Input<'py>) -> Result<(), Error> {
        unchanged(&self.dense, "out", x.dtype, (x.view, x.axis))
    }

    /// The array that is written, ordered like x. [`Output::finish`] brings it to the caller's.
    pub(super) fn dense(&self) -> &Bound<'py, PyUntypedArray> {
        &self.dense
    }

    /// The array for the caller, once the engine has written.
    pub(super) fn finish(&self) -> PyResult<Bound<'py, PyAny>> {
        if !self.array.is(&self.dense) {
            copy(&self.array, &self.dense)?;
        }
        Ok(self.array.clone().into_any())
    }
}

/// Refuses an array to be written two of whose elements share a byte.
fn check_distinct(array: &Bound<'_, PyUntypedArray>, argument: &'static str) -> Result<(), Error> {
    let itemsize = itemsize(array);
    let axes = array.shape().iter().zip(array.strides());
    let axes = axes.map(|(&n, stride)| (n, stride.unsigned_abs())).filter(|&(n, _)| n != 1);
    if array.is_empty() || nested(axes.clone().rev(), itemsize) || apart(axes.collect(), itemsize) {
        return Ok(());
    }
    let expected = String::from("have a place for each element");
    Err(Error::Overlap { argument, expected, got: "itself" })
}

/// Whether each axis, of which length and stride are given, steps over all elements within those before it.
fn nested(axes: impl IntoIterator<Item = (usize, usize)>, itemsize: usize) -> bool {
    let mut within = itemsize;
    axes.into_iter().all(|(n, stride)| {
        let over = stride >= within;
        within = within.saturating_add(stride.saturating_mul(n - 1));
        over
    })
}

/// Whether no two elements share a byte, given length and stride of each axis in any order.
fn apart(mut axes: Vec<(usize, usize)>, itemsize: usize) -> bool {
    axes.sort_unstable_by_key(|&(_, stride)| stride);
    let axes_are_nested = nested(axes.iter().copied(), itemsize);
    if axes_are_nested || axes.first().is_some_and(|&(_, stride)| stride < itemsize) {
        return axes_are_nested;
    }
    let elements = axes.iter().fold(itemsize, |bytes, &(n, _)| bytes.saturating_mul(n));
    let extent = axes
        .iter()
        .fold(itemsize, |bytes, &(n, stride)| bytes.saturating_add(stride.saturating_mul(n - 1)));
    if elements > extent {
        return false;
    }
    // What is left are arrays that somebody made by hand: all places, one by one.
    let mut places = vec![0];
    for (n, stride) in axes {
        places = (0..n).flat_map(|i| places.iter().map(move |place| place + i * stride)).collect();
    }
    places.sort_unstable();
    places.windows(2).all(|pair| pair[1] - pair[0] >= itemsize)
}

/// Whether two arrays are the same elements at the same places.
fn is_same_memory(a: &Bound<'_, PyUntypedArray>, b: &Bound<'_, PyUntypedArray>) -> bool {
    data(a) == data(b)
        && a.shape() == b.shape()
        && same_order(a, b)
        && a.dtype().is_equiv_to(&b.dtype())
}

/// Whether two arrays, whose extents overlap, have a byte in common: NumPy's exact answer. It is asked of plain arrays, as
/// it asks arrays of other classes.
fn shares_memory(a: &Bound<'_, PyUntypedArray>, b: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
    let numpy = a.py().import("numpy")?;
    numpy.call_method1("shares_memory", (view(a)?, view(b)?))?.extract()
}

/// Whether two extents have a byte in common.
fn overlap(a: &Option<Range<isize>>, b: &Option<Range<isize>>) -> bool {
    a.as_ref().zip(b.as_ref()).is_some_and(|(a, b)| a.start < b.end && b.start < a.end)
}

/// The addresses from an array's first byte to its last, or `None` for an empty array.
fn extent(array: &Bound<'_, PyUntypedArray>) -> Option<Range<isize>> {
    let start = data(array).addr() as isize;
    let mut range = start..start + itemsize(array) as isize;
    for (&n, &stride) in array.shape().iter().zip(array.strides()) {
        if n == 0 {
            return None;
        }
        let reach = (n as isize - 1) * stride;
        range.start += reach.min(0);
        range.end += reach.max(0);
    }
    Some(range)
}

/// A vector of one value a channel.
pub(super) struct Vector<'py> {
    /// The array that was given.
    pub(super) array: Bound<'py, PyUntypedArray>,
    dtype: DType,
    /// Its values, once they were asked for.
    values: OnceCell<Vec<f64>>,
}

impl<'py> Vector<'py> {
    /// The argument called `argument`: 1-D, of `channels` values, or of any number.
    pub(super) fn new(
        any: &Bound<'py, PyAny>,
        argument: &'static str,
        channels: Option<usize>,
    ) -> PyResult<Vector<'py>> {
        let array = as_array(any, argument)?;
        let dtype = DType::of(&array).ok_or_else(|| dtype_error(argument, FLOATS, &array))?;
        match (array.shape(), channels) {
            ([_], None) => {}
            ([n], Some(expected)) if *n == expected => {}
            (shape, Some(expected)) => {
                return Err(Error::Length { argument, expected, got: tuple(shape) }.into());
            }
            (shape, None) => {
                return Err(
                    Error::Rank { argument, expected: "1 dimension", got: shape.len() }.into()
                );
            }
        }
        Ok(Vector { array, dtype, values: OnceCell::new() })
    }

    /// The same of an argument that may be None.
    pub(super) fn optional(
        any: Option<&Bound<'py, PyAny>>,
        argument: &'static str,
        channels: usize,
    ) -> PyResult<Option<Vector<'py>>> {
        any.map(|any| Vector::new(any, argument, Some(channels))).transpose()
    }

    /// Its values when they were first asked for.
    pub(super) fn values(&self) -> &[f64] {
        self.values.get_or_init(|| read(&self.array, self.dtype))
    }

    /// The same, to keep.
    pub(super) fn into_values(self) -> Vec<f64> {
        self.values();
        self.values.into_inner().expect("asked for above")
    }

    /// The same, to change.
    pub(super) fn values_mut(&mut self) -> &mut [f64] {
        self.values();
        self.values.get_mut().expect("asked for above")
    }

    /// Its elements where they are, if they are native `f32` as in a slice.
    pub(super) fn as_f32(&self) -> Option<&[f32]> {
        let first = (self.dtype == DType::F32).then(|| Places::<f32>::of(&self.array))?;
        // SAFETY: the elements of the array, which no Python code can free or write while the
        // interpreter is held; of others what is said in `read` goes here as well.
        first.consecutive().map(|first| unsafe {
            std::slice::from_raw_parts(first.cast_const(), self.array.shape()[0])
        })
    }

    /// Refuses an array that cannot be written.
    pub(super) fn check_writeable(&self, argument: &'static str) -> Result<(), Error> {
        if !is_writeable(&self.array) {
            return Err(Error::ReadOnly { argument });
        }
        check_distinct(&self.array, argument)
    }

    /// Refuses an array that somebody else's code has changed since its values were read.
    pub(super) fn check_unchanged(&self, argument: &'static str) -> Result<(), Error> {
        if self.is_unchanged() {
            return Ok(());
        }
        let (expected, got) = (self.values().len(), tuple(self.array.shape()));
        Err(Error::Length { argument, expected, got })
    }

    /// Whether the array is of the shape and type that it had when its values were read.
    fn is_unchanged(&self) -> bool {
        self.array.shape() == [self.values().len()] && DType::of(&self.array) == Some(self.dtype)
    }

    /// Refuses memory that `self`, which will be written, shares with another array.
    pub(super) fn check_apart(
        &self,
        argument: &'static str,
        name: &'static str,
        other: &Bound<'py, PyUntypedArray>,
    ) -> PyResult<()> {
        if overlap(&extent(&self.array), &extent(other)) && shares_memory(&self.array, other)? {
            let expected = format!("share no memory with {name}");
            return Err(Error::Overlap { argument, expected, got: name }.into());
        }
        Ok(())
    }

    /// Writes its values, which have changed, into the array, rounded to its type.
    pub(super) fn write(&self) {
        let _mode = FloatMode::standard();
        // While the interpreter was released somebody may have changed it by force: then its elements are no place for them.
        if !self.is_unchanged() {
            return;
        }
        let values = self.values();
        with_element!(self.dtype, E => {
            let places = Places::<E>::of(&self.array);
            // SAFETY: the elements of the array, which was checked to be writeable.
            unsafe {
                if let Some(first) = places.consecutive() {
                    for (i, &value) in values.iter().enumerate() {
                        first.add(i).write(E::narrow(value));
                    }
                } else {
                    for (i, &value) in values.iter().enumerate() {
                        let value = in_byte_order(E::narrow(value), places.swapped);
                        places.at(i).write_unaligned(value);
                    }
                }
            }
        });
    }
}

/// Where the elements of a 1-D array are.
struct Places<E> {
    first: *mut E,
    /// Bytes from one to the next.
    stride: isize,
    /// Whether they have the other byte order.
    swapped: bool,
}

impl<E> Places<E> {
    fn of(array: &Bound<'_, PyUntypedArray>) -> Places<E> {
        let (first, stride) = (data(array).cast(), array.strides()[0]);
        Places { first, stride, swapped: !is_native(array) }
    }

    fn at(&self, i: usize) -> *mut E {
        self.first.wrapping_byte_offset(self.stride * i as isize)
    }

    /// The first, if they are as in a slice.
    fn consecutive(&self) -> Option<*mut E> {
        let consecutive = self.stride == size_of::<E>() as isize && self.first.is_aligned();
        (consecutive && !self.swapped).then_some(self.first)
    }
}

/// The values of a 1-D array.
fn read(array: &Bound<'_, PyUntypedArray>, dtype: DType) -> Vec<f64> {
    let _mode = FloatMode::standard();
    with_element!(dtype, E => {
        let places = Places::<E>::of(array);
        // SAFETY: the elements of the array, which is alive while the interpreter is held. As
        // everywhere, whoever writes to it from another thread gets what such a caller gets from
        // NumPy: old or new values.
        unsafe {
            if let Some(first) = places.consecutive() {
                (0..array.len()).map(|i| first.add(i).read().widen()).collect()
            } else {
                let value = |i| in_byte_order(places.at(i).read_unaligned(), places.swapped);
                (0..array.len()).map(|i| value(i).widen()).collect()
            }
        }
    })
}

/// An element as the machine has it, from what may have the other byte order, or the way back.
fn in_byte_order<E: Element>(mut element: E, swapped: bool) -> E {
    if swapped {
        let bytes = (&raw mut element).cast::<u8>();
        // SAFETY: the bytes of a number, of which every pattern is one.
        unsafe { std::slice::from_raw_parts_mut(bytes, size_of::<E>()) }.reverse();
    }
    element
}

/// The same memory under an array object of its own: what is done to the shape of the other does
/// not reach it.
pub(super) fn view<'py>(
    array: &Bound<'py, PyUntypedArray>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = array.py();
    // SAFETY: the argument is an array; null stands for its own dtype and for the plain array type;
    // the call returns a new reference or sets an exception.
    unsafe {
        let class = PyUntypedArray::type_object_raw(py);
        let view = PY_ARRAY_API.PyArray_View(py, array.as_array_ptr(), std::ptr::null_mut(), class);
        Ok(Bound::from_owned_ptr_or_err(py, view)?.cast_into_unchecked())
    }
}

/// A new read-only float64 array.
pub(super) fn read_only<'py>(py: Python<'py>, values: &[f64]) -> Bound<'py, PyArray1<f64>> {
    let array = PyArray1::from_slice(py, values);
    // SAFETY: the array is new; nobody else has seen it.
    unsafe { (*array.as_array_ptr()).fields.flags &= !NPY_ARRAY_WRITEABLE };
    array
}

/// A new array of one value a channel, float64 for float64 inputs and float32 for all others.
pub(super) fn parameter<'py>(
    py: Python<'py>,
    dtype: DType,
    values: impl Iterator<Item = f64>,
) -> Bound<'py, PyAny> {
    let _mode = FloatMode::standard();
    if dtype == DType::F64 {
        return PyArray1::from_slice(py, &values.collect::<Vec<_>>()).into_any();
    }
    PyArray1::from_slice(py, &values.map(|value| value as f32).collect::<Vec<_>>()).into_any()
}
