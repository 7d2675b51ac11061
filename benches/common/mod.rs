//! What benches share.

/// Numbers that are spread like activations and cost nothing to make.
pub fn activations(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 * 4.0 - 1.9
    };
    std::iter::repeat_with(next).take(len).collect()
}
