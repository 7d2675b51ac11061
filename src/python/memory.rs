//! NumPy's memory for large outputs: a handler of its allocator protocol ([NEP 49]) over
//! [`blocks`](crate::blocks).
//!
//! NumPy takes the memory of a new array from the handler that is current, and remembers it in the
//! array: resizing and freeing go to the same handler whenever and wherever they happen, and the
//! array owns its data like any other. So the handler is current only while one output is made.
//! Changing it twice costs a fraction of a microsecond, which small outputs are spared; a caller
//! who has made another handler current is left his.
//!
//! [NEP 49]: https://numpy.org/neps/nep-0049.html

use crate::blocks::{self, Cache, LARGE};
use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyCapsule;
use std::ffi::{c_char, c_void};
use std::ptr::{self, NonNull};

static CACHE: Cache = Cache::new();

/// Calls `make`, which makes one array of `bytes`, with its memory coming from kept blocks if it is
/// large.
pub(super) fn recycled<'py, T>(
    py: Python<'py>,
    bytes: usize,
    make: impl FnOnce() -> PyResult<Bound<'py, T>>,
) -> PyResult<Bound<'py, T>> {
    if bytes < LARGE || blocks::limit()? == 0 {
        return make();
    }
    let numpy = Numpy::get(py)?;
    let current = numpy.current(py)?;
    if !current.is(&numpy.default) {
        return make();
    }
    numpy.set(numpy.recycling.bind(py))?;
    let made = make();
    numpy.set(&current)?;
    made
}

/// Looks up NumPy's handlers.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    Numpy::get(py).map(|_| ())
}

type SetHandler = unsafe extern "C" fn(*mut ffi::PyObject) -> *mut ffi::PyObject;
type GetHandler = unsafe extern "C" fn() -> *mut ffi::PyObject;

/// What of NumPy's C interface deals with handlers.
struct Numpy {
    set: SetHandler,
    get: GetHandler,
    /// NumPy's own handler.
    default: Py<PyAny>,
    /// Ours.
    recycling: Py<PyAny>,
}

impl Numpy {
    /// The slots of NumPy's table, of which the `numpy` crate wraps none; NumPy has had them since
    /// 1.22.
    const SET: usize = 304;
    const GET: usize = 305;
    const DEFAULT: usize = 306;

    fn get(py: Python<'_>) -> PyResult<&Numpy> {
        static NUMPY: PyOnceLock<Numpy> = PyOnceLock::new();
        NUMPY.get_or_try_init(py, || {
            // The name of NumPy 2; NumPy 1 had another, which NumPy 2 warns about.
            let module = match py.import("numpy._core._multiarray_umath") {
                Err(error) if error.is_instance_of::<PyImportError>(py) => {
                    py.import("numpy.core._multiarray_umath")
                }
                module => module,
            }?;
            let capsule = module.getattr("_ARRAY_API")?.cast_into::<PyCapsule>()?;
            let table = capsule.pointer_checked(None)?.cast::<*mut c_void>();
            // SAFETY: the capsule holds NumPy's table, which lives as long as the process; every
            // NumPy that this package accepts has the three slots, with these types. The default is
            // an object that NumPy never drops; its slot is the address of the variable that holds
            // it. The capsule of our handler has the name that NumPy asks for, and points to a
            // static.
            unsafe {
                let default =
                    table.add(Self::DEFAULT).cast::<*const *mut ffi::PyObject>().read().read();
                let handler = ptr::from_ref(&HANDLER).cast_mut().cast();
                let recycling = ffi::PyCapsule_New(handler, c"mem_handler".as_ptr(), None);
                Ok(Numpy {
                    set: table.add(Self::SET).cast::<SetHandler>().read(),
                    get: table.add(Self::GET).cast::<GetHandler>().read(),
                    default: Bound::from_borrowed_ptr_or_err(py, default)?.unbind(),
                    recycling: Bound::from_owned_ptr_or_err(py, recycling)?.unbind(),
                })
            }
        })
    }

    /// The handler that is current in this context.
    fn current<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // SAFETY: NumPy's function gives a new reference or sets an exception.
        unsafe { Bound::from_owned_ptr_or_err(py, (self.get)()) }
    }

    /// Makes a handler current.
    fn set(&self, handler: &Bound<'_, PyAny>) -> PyResult<()> {
        // SAFETY: NumPy's function checks the handler, takes a reference of its own and gives a new
        // one to the handler that was current, or sets an exception; none is set before.
        unsafe { Bound::from_owned_ptr_or_err(handler.py(), (self.set)(handler.as_ptr())) }?;
        Ok(())
    }
}

/// `PyDataMem_Handler` of NumPy's `ndarraytypes.h`, version 1.
#[repr(C)]
struct Handler {
    name: [c_char; 127],
    version: u8,
    context: *mut c_void,
    malloc: extern "C" fn(*mut c_void, usize) -> *mut c_void,
    calloc: extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    realloc: unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, *mut c_void, usize),
}

// SAFETY: the context is null, and everything else is constant.
unsafe impl Sync for Handler {}

static HANDLER: Handler = Handler {
    name: name(b"rustbn"),
    version: 1,
    context: ptr::null_mut(),
    malloc,
    calloc,
    realloc,
    free,
};

const fn name(text: &[u8]) -> [c_char; 127] {
    let mut name = [0; 127];
    let mut i = 0;
    while i < text.len() {
        name[i] = text[i] as c_char;
        i += 1;
    }
    name
}

fn pointer(data: Option<NonNull<u8>>) -> *mut c_void {
    data.map_or(ptr::null_mut(), |data| data.as_ptr().cast())
}

/// The limit; the handler was not current before it was known.
fn limit() -> usize {
    blocks::limit().unwrap_or(0)
}

// None of these needs the interpreter, or can panic.

extern "C" fn malloc(_: *mut c_void, size: usize) -> *mut c_void {
    pointer(CACHE.allocate(size))
}

extern "C" fn calloc(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let data = count.checked_mul(size).and_then(|size| {
        let data = CACHE.allocate(size)?;
        // SAFETY: the block is new and as large.
        unsafe { data.write_bytes(0, size) };
        Some(data)
    });
    pointer(data)
}

unsafe extern "C" fn realloc(_: *mut c_void, data: *mut c_void, size: usize) -> *mut c_void {
    match NonNull::new(data.cast()) {
        // SAFETY: NumPy resizes what this handler allocated, and forgets the old address if it gets
        // a new one.
        Some(data) => pointer(unsafe { CACHE.reallocate(data, size, limit()) }),
        None => pointer(CACHE.allocate(size)),
    }
}

unsafe extern "C" fn free(_: *mut c_void, data: *mut c_void, _: usize) {
    if let Some(data) = NonNull::new(data.cast()) {
        // SAFETY: NumPy frees what this handler allocated, once, when no array uses it. The size
        // that it passes is not needed, which is as well: it is that of the array as it is now.
        unsafe { CACHE.free(data, limit()) };
    }
}

/// Release the memory that is kept for later outputs.
///
/// Large arrays that rustbn returned leave their memory behind when they are freed, so that the
/// next large outputs need not wait for the system to provide theirs. The memory of arrays that are
/// alive is not touched.
///
/// See Also
/// --------
/// rustbn.show_config : Says how much is kept.
///
/// Notes
/// -----
/// The environment variable ``RUSTBN_CACHE_BYTES`` limits what is kept: by default a quarter
/// of the memory that this process may have; 0 keeps none.
///
/// Examples
/// --------
/// >>> import rustbn
/// >>> rustbn.empty_cache()
#[pyfunction]
pub(super) fn empty_cache(py: Python<'_>) {
    py.detach(|| CACHE.empty());
}

/// Memory that is kept for later outputs, in bytes.
///
/// Returns
/// -------
/// held : int
///     What is kept now.
/// limit : int
///     The most that is kept.
///
/// Raises
/// ------
/// ValueError
///     If ``RUSTBN_CACHE_BYTES`` is not a whole number of bytes.
#[pyfunction]
pub(super) fn cache_bytes() -> PyResult<(usize, usize)> {
    Ok((CACHE.held(), blocks::limit()?))
}
