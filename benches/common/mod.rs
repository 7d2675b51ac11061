//! What benches share.

/// Numbers that are spread like activations and cost nothing to make.
pub fn activations(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 * 4.0 - 1.9
    };
    let mut numbers = room(len);
    numbers.extend(std::iter::repeat_with(next).take(len));
    numbers
}

/// Where `len` outputs go.
pub fn outputs(len: usize) -> Vec<f32> {
    let mut outputs = room(len);
    outputs.resize(len, 0.0);
    outputs
}

/// An empty vector with room for `len` numbers: large ones on huge pages where Linux has them, as
/// NumPy's arrays are. On small pages everything takes a tenth to a fifth longer.
fn room(len: usize) -> Vec<f32> {
    let mut room = Vec::<f32>::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        use std::ffi::{c_int, c_void};
        unsafe extern "C" {
            fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
        }
        const MADV_HUGEPAGE: c_int = 14;
        const LARGE: usize = 4 << 20;
        const PAGE: usize = 4 << 10;
        let first = room.as_mut_ptr();
        let skipped = first.align_offset(PAGE);
        let pages = (len.saturating_sub(skipped) * size_of::<f32>()) / PAGE * PAGE;
        if pages >= LARGE {
            // SAFETY: whole pages within the vector's memory. The advice changes nothing that a program
            // can see, and where it cannot be followed the call says so and does nothing.
            unsafe { madvise(first.add(skipped).cast(), pages, MADV_HUGEPAGE) };
        }
    }
    room
}
