//! Memory for what kernels read again and again: coefficients, centres and sums of channels.

use crate::simd::STREAM_ALIGNMENT;
use std::ops::{Deref, DerefMut};

/// Values that begin at a boundary of cache lines, so that no vector of them lies in more lines than it fills. Allocators
/// know nothing of lines; where rows of 192 to 512 channels were in the cache, coefficients that began within one cost the
/// second sweep of forward a quarter, that of backward a fifth, sums a tenth.
pub(crate) struct Aligned<T> {
    values: Vec<T>,
    start: usize,
}

impl<T: Copy> Aligned<T> {
    /// `value` so many times. `vec!` asks for memory that is zero, which allocators look for past the short blocks
    /// that the thread has just freed.
    pub(crate) fn filled(value: T, len: usize) -> Self {
        const { assert!(STREAM_ALIGNMENT.is_multiple_of(size_of::<T>()), "lines of whole values") };
        let mut values = Vec::<T>::with_capacity(len + STREAM_ALIGNMENT / size_of::<T>() - 1);
        let start = values.as_ptr().align_offset(STREAM_ALIGNMENT).min(values.capacity() - len);
        values.resize(start + len, value);
        Aligned { values, start }
    }
}

impl<T> Aligned<T> {
    /// What `change` makes of each value, of a type of the same size: in the same memory, as the standard library does.
    pub(crate) fn map<U>(self, change: impl FnMut(T) -> U) -> Aligned<U> {
        const { assert!(size_of::<T>() == size_of::<U>(), "as many values to a line") };
        Aligned { values: self.values.into_iter().map(change).collect(), start: self.start }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.values[self.start..]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_begin_at_a_line(len in 0_usize..200) {
            let (singles, doubles) = (Aligned::filled(1.0_f32, len), Aligned::filled(2.0_f64, len));
            prop_assert!(singles.as_ptr().addr().is_multiple_of(STREAM_ALIGNMENT));
            prop_assert!(doubles.as_ptr().addr().is_multiple_of(STREAM_ALIGNMENT));
            prop_assert!(singles.len() == len && singles.iter().all(|&value| value == 1.0));
            let at = doubles.as_ptr().addr();
            let bits = doubles.map(f64::to_bits);
            prop_assert!(bits.as_ptr().addr() == at && bits.iter().all(|&bits| bits == 2.0_f64.to_bits()));
        }
    }
}
