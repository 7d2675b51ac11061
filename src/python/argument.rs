//! Arguments that are no arrays. An exception must name what it refuses, so each has a function of
//! its own for `from_py_with`.

use super::errors::kind_error;
use crate::epilogue::Activation;
use crate::error::Error;
use crate::renorm::Renorm;
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

/// The argument `group_size`.
pub(super) fn group_size(any: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    if any.is_none() {
        return Ok(None);
    }
    let expected = "None or a whole number from 1 on";
    let size: isize = any.extract().map_err(|_| kind_error("group_size", expected, any))?;
    match usize::try_from(size) {
        Ok(size) if size > 0 => Ok(Some(size)),
        _ => {
            let got = size.to_string();
            Err(Error::Range { argument: "group_size", expected, got }.into())
        }
    }
}

/// How far renormalisation may go.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// By what factor.
    pub(super) r_max: f64,
    /// By how many standard deviations.
    pub(super) d_max: f64,
}

/// The argument `renorm`.
pub(super) fn renorm(any: &Bound<'_, PyAny>) -> PyResult<Option<Bounds>> {
    if any.is_none() {
        return Ok(None);
    }
    let kind = |_| kind_error("renorm", "None or two real numbers (r_max, d_max)", any);
    let (r_max, d_max) = any.extract().map_err(kind)?;
    Renorm::check_bounds(r_max, d_max)?;
    Ok(Some(Bounds { r_max, d_max }))
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

/// The argument `activation`: None, a name, or a name and its parameter.
pub(super) fn activation(any: Option<&Bound<'_, PyAny>>) -> PyResult<Activation> {
    let Some(any) = any else {
        return Ok(Activation::Identity);
    };
    let kind = || kind_error("activation", "None, a name, or (\"leaky_relu\", slope)", any);
    if let Ok((name, slope)) = any.extract::<(String, Bound<'_, PyAny>)>() {
        let slope: f64 = slope.extract().map_err(|_| kind())?;
        return match name.as_str() {
            "leaky_relu" if slope.is_finite() => Ok(Activation::LeakyRelu(slope)),
            _ => Err(unknown(any)),
        };
    }
    let name: String = any.extract().map_err(|_| kind())?;
    Ok(match name.as_str() {
        "relu" => Activation::Relu,
        "relu6" => Activation::Relu6,
        "leaky_relu" => Activation::LeakyRelu(0.01),
        "silu" => Activation::Silu,
        "hardswish" => Activation::Hardswish,
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        _ => return Err(unknown(any)),
    })
}

fn unknown(any: &Bound<'_, PyAny>) -> PyErr {
    let expected = "None, \"relu\", \"relu6\", \"leaky_relu\", (\"leaky_relu\", finite slope), \"silu\", \
                    \"hardswish\", \"sigmoid\" or \"tanh\"";
    let got = any.repr().map_or_else(|_| String::from("something else"), |repr| repr.to_string());
    Error::Range { argument: "activation", expected, got }.into()
}
