//! Arguments that are no arrays. An exception must name what it refuses, so each has a function of
//! its own for `from_py_with`.

use super::errors::kind_error;
use crate::error::Error;
use pyo3::PyTypeInfo;
use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;

macro_rules! scalar {
    ($($name:ident: $type:ty, $expected:literal, $range:literal;)+) => {$(
        pub(super) fn $name(any: &Bound<'_, PyAny>) -> PyResult<$type> {
            any.extract().map_err(|error: PyErr| {
                if error.is_instance_of::<PyOverflowError>(any.py()) {
                    let got = any.to_string();
                    return Error::Range { argument: stringify!($name), expected: $range, got }.into();
                }
                kind_error(stringify!($name), $expected, any)
            })
        }
    )+};
}
scalar! {
    training: bool, "a bool", "";
    transposed: bool, "a bool", "";
    momentum: f64, "a real number", "finite";
    eps: f64, "a real number", "finite";
    ddof: f64, "a real number", "finite";
    axis: isize, "a whole number", "within 64 bits";
    count: u64, "a whole number", "0 or more, within 64 bits";
    groups: isize, "a whole number", "within 64 bits";
    n: isize, "a whole number", "within 64 bits";
}

/// An object of one of this module's classes.
pub(super) fn object<'py, T: PyTypeInfo>(
    any: &Bound<'py, PyAny>,
    argument: &'static str,
    expected: &'static str,
) -> PyResult<Bound<'py, T>> {
    any.cast().cloned().map_err(|_| kind_error(argument, expected, any))
}

/// Refuses an eps that could divide by zero.
pub(super) fn check_eps(eps: f64, training: bool) -> Result<(), Error> {
    let expected = match (training, eps.is_finite()) {
        (true, true) if eps > 0.0 => return Ok(()),
        (false, true) if eps >= 0.0 => return Ok(()),
        (true, _) => "positive and finite in training",
        (false, _) => "0 or more and finite",
    };
    Err(Error::Range { argument: "eps", expected, got: eps.to_string() })
}

/// Refuses a momentum that is no number.
pub(super) fn check_momentum(momentum: f64) -> Result<(), Error> {
    if momentum.is_finite() {
        return Ok(());
    }
    Err(Error::Range { argument: "momentum", expected: "finite", got: momentum.to_string() })
}
