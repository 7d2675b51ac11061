//! Errors as exceptions.

use crate::error::Error;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        Python::attach(|py| {
            let exception = match error {
                Error::DType { .. } | Error::Kind { .. } => PyTypeError::new_err(error.to_string()),
                Error::Axis { axis, ndim } => match axis_error(py) {
                    Ok(class) => PyErr::from_type(class.clone(), (axis, ndim, "x")),
                    Err(import) => import,
                },
                _ => PyValueError::new_err(error.to_string()),
            };
            // An exception object takes any attribute; if one ever does not, the exception itself
            // matters more.
            let _ = exception.value(py).setattr("kind", error.kind());
            exception
        })
    }
}

/// The error of an argument that is not the kind of object it should be.
pub(super) fn kind_error(
    argument: &'static str,
    expected: &'static str,
    any: &Bound<'_, PyAny>,
) -> PyErr {
    let got = any.get_type().name().map_or_else(|_| String::from("?"), |name| name.to_string());
    Error::Kind { argument, expected, got }.into()
}

/// Looks up NumPy's exception.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    axis_error(py).map(|_| ())
}

fn axis_error(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CLASS.import(py, "numpy.exceptions", "AxisError")
}

/// Names of all kinds of error.
///
/// Every exception of this module carries one of them as its attribute ``kind``.
///
/// Returns
/// -------
/// list of str
#[pyfunction]
pub(super) fn error_kinds() -> Vec<&'static str> {
    Error::KINDS.to_vec()
}
