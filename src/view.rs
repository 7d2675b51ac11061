//! How the channels of an array lie in memory.
//!
//! Whatever its rank and whatever the order of its axes, an array whose memory is dense is `outer`
//! blocks of `channels` runs of `inner` consecutive elements: all axes that vary slower than the
//! channel axis make up `outer`, all that vary faster `inner`. That is read from the *strides*,
//! never from the name of a layout:
//!
//! | memory order | outer | inner |
//! |---|---|---|
//! | N C H W | N | H W |
//! | N H W C, also when seen as N C H W | N H W | 1 |
//! | N C | N | 1 |
//! | C N | 1 | N |

use crate::error::Error;

/// A dense array as `outer` x `channels` x `inner` elements; element `(o, c, i)` is at `(o *
/// channels + c) * inner + i`.
///
/// ```
/// use rustbn::View;
/// // N C H W in this order in memory, and the same array with channels last.
/// let planar = View::contiguous(&[2, 3, 4, 5], 1)?;
/// assert_eq!(planar, View { outer: 2, channels: 3, inner: 20 });
/// let interleaved = View::contiguous(&[2, 4, 5, 3], 3)?;
/// assert_eq!(interleaved, View { outer: 40, channels: 3, inner: 1 });
///
/// // As N C H W again, by its strides in bytes of `f32`.
/// let seen = View::from_strides(&[2, 3, 4, 5], &[240, 4, 60, 12], 4, 1);
/// assert_eq!(seen, Some(interleaved));
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Blocks that each hold all channels.
    pub outer: usize,
    /// Channels.
    pub channels: usize,
    /// Consecutive elements of one channel.
    pub inner: usize,
}

impl View {
    /// The view of an array in C order whose channel axis is `axis`.
    ///
    /// # Errors
    /// [`Error::Axis`] if there is no such axis.
    pub fn contiguous(shape: &[usize], axis: usize) -> Result<View, Error> {
        if axis >= shape.len() {
            return Err(Error::Axis { axis: axis as isize, ndim: shape.len() });
        }
        Ok(View {
            outer: product(&shape[..axis]),
            channels: shape[axis],
            inner: product(&shape[axis + 1..]),
        })
    }

    /// The view of an array with `strides` in bytes, or `None` where its memory is not dense under
    /// any order of its axes (gaps, negative strides, broadcast axes), or no memory holds so many elements.
    ///
    /// Axes of length 1 and the strides of empty arrays say nothing and are not looked at.
    ///
    /// # Panics
    /// If `shape` and `strides` differ in length or `axis` is not one of theirs.
    pub fn from_strides(
        shape: &[usize],
        strides: &[isize],
        itemsize: usize,
        axis: usize,
    ) -> Option<View> {
        assert_eq!(shape.len(), strides.len(), "one stride for each axis");
        let channels = shape[axis];
        if shape.contains(&0) {
            let others = product(&shape[..axis]).saturating_mul(product(&shape[axis + 1..]));
            return Some(View { outer: others, channels, inner: 1 });
        }
        // Walk from the fastest axis to the slowest: each must step over exactly what lies within
        // it. Ranks are small, so the next axis is searched for rather than sorted for; mostly it is
        // the last one that is left.
        let (mut inner, mut outer) = (1, 1);
        let mut within = 1;
        let mut seen_channels = false;
        let total = product(shape);
        if total == usize::MAX {
            return None;
        }
        while within < total {
            let expected = isize::try_from(within.checked_mul(itemsize)?).ok()?;
            let next = (0..shape.len()).rev().find(|&i| shape[i] > 1 && strides[i] == expected)?;
            if next == axis {
                seen_channels = true;
            } else if seen_channels {
                outer *= shape[next];
            } else {
                inner *= shape[next];
            }
            within *= shape[next];
        }
        // One channel has no place among the axes, so all of it is one run.
        Some(View { outer, channels, inner })
    }

    /// All elements; `usize::MAX` if they are more, which no memory holds.
    pub fn len(&self) -> usize {
        product(&[self.outer, self.channels, self.inner])
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of each channel; `usize::MAX` if they are more.
    pub fn count(&self) -> usize {
        product(&[self.outer, self.inner])
    }

    /// Where element `(outer, channel, inner)` is.
    #[inline(always)]
    pub(crate) fn offset(&self, outer: usize, channel: usize, inner: usize) -> usize {
        (outer * self.channels + channel) * self.inner + inner
    }

    /// Refuses a slice that is not exactly this view's elements.
    pub(crate) fn check<T>(&self, argument: &'static str, slice: &[T]) -> Result<(), Error> {
        if slice.len() == self.len() {
            return Ok(());
        }
        Err(Error::Shape {
            argument,
            expected: format!("({}, {}, {})", self.outer, self.channels, self.inner),
            got: format!("({},)", slice.len()),
        })
    }

    /// Refuses a vector that is not one value a channel.
    pub(crate) fn check_vector<T>(
        &self,
        argument: &'static str,
        vector: &[T],
    ) -> Result<(), Error> {
        Error::check_length(argument, self.channels, vector.len())
    }
}

/// The product of some lengths, or the largest number if that is less: a product that wrapped around could be the length
/// of a slice that does not hold the elements.
#[inline]
fn product(lengths: &[usize]) -> usize {
    lengths.iter().fold(1, |product: usize, &length| product.saturating_mul(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dense_strides(shape: &[usize], slowest_first: &[usize], itemsize: usize) -> Vec<isize> {
        let mut strides = vec![0; shape.len()];
        let mut step = itemsize as isize;
        for &axis in slowest_first.iter().rev() {
            strides[axis] = step;
            step *= shape[axis] as isize;
        }
        strides
    }

    #[test]
    fn layouts_by_name() {
        let shape = [2, 3, 4, 5];
        let view =
            |order: &[usize]| View::from_strides(&shape, &dense_strides(&shape, order, 4), 4, 1);
        assert_eq!(view(&[0, 1, 2, 3]), Some(View { outer: 2, channels: 3, inner: 20 }));
        assert_eq!(view(&[0, 2, 3, 1]), Some(View { outer: 40, channels: 3, inner: 1 }));
        assert_eq!(view(&[1, 0, 2, 3]), Some(View { outer: 1, channels: 3, inner: 40 }));
        assert_eq!(view(&[3, 2, 1, 0]), Some(View { outer: 20, channels: 3, inner: 2 }));
    }

    #[test]
    fn sparse_memory_has_no_view() {
        assert_eq!(View::from_strides(&[4, 3], &[24, 4], 4, 1), None, "gapped");
        assert_eq!(View::from_strides(&[4, 3], &[-12, 4], 4, 1), None, "negative");
        assert_eq!(View::from_strides(&[4, 3], &[0, 4], 4, 1), None, "broadcast");
        assert_eq!(View::from_strides(&[4, 3], &[12, 4], 8, 1), None, "another itemsize");
    }

    #[test]
    fn axes_of_length_one_say_nothing() {
        let expected = Some(View { outer: 4, channels: 3, inner: 1 });
        assert_eq!(View::from_strides(&[4, 3, 1, 1], &[12, 4, 999, -7], 4, 1), expected);
        assert_eq!(View::from_strides(&[1, 4, 3], &[0, 12, 4], 4, 2), expected);
        let one_channel = Some(View { outer: 1, channels: 1, inner: 12 });
        assert_eq!(View::from_strides(&[4, 1, 3], &[12, 5, 4], 4, 1), one_channel);
    }

    #[test]
    fn empty_arrays_are_dense() {
        assert_eq!(
            View::from_strides(&[0, 3, 5], &[1, 2, 3], 4, 1),
            Some(View { outer: 0, channels: 3, inner: 1 })
        );
        assert_eq!(
            View::from_strides(&[4, 0], &[0, 0], 4, 1),
            Some(View { outer: 4, channels: 0, inner: 1 })
        );
    }

    #[test]
    fn more_than_two_to_the_31_elements() {
        let shape = [70_000, 64, 300, 300];
        let view =
            View::from_strides(&shape, &dense_strides(&shape, &[0, 1, 2, 3], 4), 4, 1).unwrap();
        assert_eq!(view, View { outer: 70_000, channels: 64, inner: 90_000 });
        assert_eq!(view.len(), 403_200_000_000);
        assert_eq!(view.offset(69_999, 63, 89_999), view.len() - 1);
    }

    #[test]
    fn lengths_that_overflow_fit_no_slice() {
        let half = 1 << (usize::BITS - 1);
        // Wrapped around, this would be two elements.
        let view = View { outer: half + 1, channels: 2, inner: 1 };
        assert_eq!(view.len(), usize::MAX);
        assert!(view.check("x", &[0.0_f32; 2]).is_err());
        let view = View { outer: 2, channels: 0, inner: half };
        assert_eq!((view.len(), view.count()), (0, usize::MAX));
        let view = View::contiguous(&[half, 4, 3], 2).unwrap();
        assert_eq!(view, View { outer: usize::MAX, channels: 3, inner: 1 });
        assert_eq!(View::contiguous(&[half, 4, 0, 3], 3).unwrap().outer, 0);
        assert_eq!(View::from_strides(&[half, 4, 8], &[32, 4, 16], 4, 1), None);
    }

    proptest! {
        /// An element's address by the view is its address by the strides, up to the order within
        /// `outer` and `inner`: the channel of every address is right, and each address is met
        /// once.
        #[test]
        fn every_address_belongs_to_its_channel(
            shape in prop::collection::vec(1_usize..5, 1..6),
            seed in any::<u64>(),
        ) {
            let rank = shape.len();
            let axis = (seed % rank as u64) as usize;
            let mut order: Vec<usize> = (0..rank).collect();
            let mut state = seed;
            for i in (1..rank).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                order.swap(i, ((state >> 33) % (i as u64 + 1)) as usize);
            }
            let strides = dense_strides(&shape, &order, 4);
            let view = View::from_strides(&shape, &strides, 4, axis).unwrap();
            prop_assert_eq!(view.len(), shape.iter().product::<usize>());
            let mut channel_at = vec![usize::MAX; view.len()];
            for flat in 0..view.len() {
                let (mut rest, mut address, mut channel) = (flat, 0, 0);
                for i in (0..rank).rev() {
                    let index = rest % shape[i];
                    rest /= shape[i];
                    address += index as isize * strides[i];
                    if i == axis { channel = index; }
                }
                channel_at[address as usize / 4] = channel;
            }
            for o in 0..view.outer {
                for c in 0..view.channels {
                    for i in 0..view.inner {
                        prop_assert_eq!(channel_at[view.offset(o, c, i)], c);
                    }
                }
            }
        }
    }
}
