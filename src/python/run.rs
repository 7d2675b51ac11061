//! How a call from Python runs: its threads, and when the interpreter is released.

use super::argument;
use crate::caches::Caches;
use crate::error::Error;
use crate::execution::Execution;
use crate::pool;
use crate::simd::Level;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

/// Bytes below which a call does not look for more threads or release the interpreter: either would
/// cost more than it gives.
const SMALL: usize = 256 << 10;

/// The context variable that `rustbn.threads` sets: a number of threads, or None.
pub(super) fn context_threads(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static VARIABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let variable = VARIABLE.get_or_try_init(py, || {
        let keywords = pyo3::types::PyDict::new(py);
        keywords.set_item("default", py.None())?;
        let class = py.import("contextvars")?.getattr("ContextVar")?;
        Ok::<_, PyErr>(class.call(("rustbn.threads",), Some(&keywords))?.unbind())
    })?;
    Ok(variable.bind(py))
}

/// The threads of a call made here and now.
fn threads(py: Python<'_>) -> PyResult<usize> {
    let of_context: Option<usize> = context_threads(py)?.call_method0("get")?.extract()?;
    Ok(of_context.map_or_else(pool::threads, Ok)?)
}

/// How a call runs that touches `bytes`. Comes before the first write, since it can fail.
pub(super) fn execution(py: Python<'_>, bytes: usize) -> PyResult<Execution> {
    let (level, caches) = (Level::current()?, Caches::current()?);
    if bytes < SMALL {
        return Ok(Execution { level, threads: 1, caches });
    }
    // With the interpreter held nobody forks. What a process makes once is made here, so that no
    // child finds it half made.
    let threads = threads(py)?;
    pool::prepare(threads);
    Ok(Execution { level, threads, caches })
}

/// Does `work`, which touches `bytes` and no Python object, with the interpreter released if that
/// pays.
pub(super) fn released<R: Send>(
    py: Python<'_>,
    bytes: usize,
    work: impl FnOnce() -> R + Send,
) -> R {
    if bytes < SMALL { work() } else { py.detach(work) }
}

/// A pointer that may go where the interpreter is released.
#[derive(Clone, Copy)]
pub(super) struct Raw<T>(pub(super) *mut T);

// SAFETY: the pointer is into an array to which the caller of `released` holds a reference until
// the work is done.
unsafe impl<T> Send for Raw<T> {}

impl<T> Raw<T> {
    /// The pointer. (A method, so that closures capture the whole of `Raw`.)
    pub(super) fn get(self) -> *mut T {
        self.0
    }
}

/// Number of threads that a call made here and now may use.
///
/// Returns
/// -------
/// int
///     What the innermost ``with rustbn.threads(n)`` of this context says, else `set_num_threads`,
///     else the environment variable ``RUSTBN_NUM_THREADS``, else the processors this process may
///     run on.
///
/// Raises
/// ------
/// ValueError
///     If ``RUSTBN_NUM_THREADS`` decides and is not a positive whole number.
#[pyfunction]
pub(super) fn get_num_threads(py: Python<'_>) -> PyResult<usize> {
    threads(py)
}

/// Set the number of threads of this process.
///
/// Results do not depend on it, not by a bit. Small arrays are handled by the calling thread alone.
///
/// Parameters
/// ----------
/// n : int
///     At least 1; may exceed the number of processors.
///
/// Raises
/// ------
/// ValueError
///     If `n` is not positive.
#[pyfunction]
pub(super) fn set_num_threads(#[pyo3(from_py_with = argument::n)] n: isize) -> PyResult<()> {
    Ok(pool::set_threads(thread_count(n)?)?)
}

/// Check a number of threads.
///
/// Parameters
/// ----------
/// n : int
///     At least 1.
///
/// Returns
/// -------
/// int
///     `n`.
///
/// Raises
/// ------
/// ValueError
///     If `n` is not positive.
#[pyfunction]
pub(super) fn thread_count(#[pyo3(from_py_with = argument::n)] n: isize) -> PyResult<usize> {
    let positive = usize::try_from(n).ok().filter(|&n| n > 0);
    let expected = "a positive whole number";
    Ok(positive.ok_or(Error::Range { argument: "n", expected, got: n.to_string() })?)
}

/// Name of the instruction set in use.
///
/// Returns
/// -------
/// str
///     What the environment variable ``RUSTBN_SIMD`` said at the first use, else the best of
///     `simd_levels`.
///
/// Raises
/// ------
/// ValueError
///     If ``RUSTBN_SIMD`` names an instruction set that this machine does not have.
#[pyfunction]
pub(super) fn simd_level() -> PyResult<&'static str> {
    Ok(Level::current()?.name())
}

/// Names of the instruction sets that this machine has.
///
/// Returns
/// -------
/// list of str
///     ``"scalar"`` first, the best one last.
#[pyfunction]
pub(super) fn simd_levels() -> Vec<&'static str> {
    Level::supported().into_iter().map(Level::name).collect()
}

/// Bytes of the second-level and of the last-level cache that calls are planned for.
///
/// Returns
/// -------
/// (int, int)
///
/// Raises
/// ------
/// ValueError
///     If ``RUSTBN_CPU_CACHES`` is not two positive whole numbers.
#[pyfunction]
pub(super) fn cpu_caches() -> PyResult<(usize, usize)> {
    let Caches { l2, last, .. } = Caches::current()?;
    Ok((l2, last))
}
