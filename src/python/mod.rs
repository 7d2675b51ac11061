//! The only place with Python: arrays become views and pointers, errors become exceptions, verbs
//! become functions.
//!
//! [`array`] is the border. Everything about an array is checked there, before the first write;
//! behind it there are views, pointers and vectors of `f64`. Around the one call into the engine
//! the interpreter is released, where the work is large enough for that to pay.

mod argument;
mod array;
mod context;
mod errors;
mod functions;
mod mask;
mod memory;
mod nouns;
mod run;

/// The extension module `rustbn._rustbn`.
/// It relies on the interpreter's lock: values of small vectors are read where they are, and nobody forks while a pool
/// of threads is made.
#[pyo3::pymodule(gil_used = true)]
mod _rustbn {
    #[pymodule_export]
    use super::context::Context;
    #[pymodule_export]
    use super::errors::error_kinds;
    #[pymodule_export]
    use super::functions::group::{part_backward, part_forward};
    #[pymodule_export]
    use super::functions::module::{module_forward, module_inference};
    #[pymodule_export]
    use super::functions::{
        backward_apply, backward_reduce, batch_norm, batch_norm_backward, batch_norm_forward,
        check_activation, check_renorm, moments,
    };
    #[pymodule_export]
    use super::memory::{cache_bytes, empty_cache};
    #[pymodule_export]
    use super::nouns::{Affine, GradSums, Moments};
    #[pymodule_export]
    use super::run::{
        cpu_caches, get_num_threads, set_num_threads, simd_level, simd_levels, thread_count,
    };
    use pyo3::prelude::*;

    /// Makes now what would be made once later: NumPy's tables, and what the first release of the
    /// interpreter needs. Making them can let other threads in; if one forked then, its child would
    /// wait forever for them to be made.
    fn prepare(py: Python<'_>) -> PyResult<()> {
        super::array::prepare(py);
        super::memory::prepare(py)?;
        super::errors::prepare(py)?;
        py.detach(|| ());
        Ok(())
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        prepare(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("Gradients", super::context::gradients_type(module.py())?)?;
        module.add("context_threads", super::run::context_threads(module.py())?)
    }
}
