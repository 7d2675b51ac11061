//! Which positions of a batch count: padding does not.
//!
//! A position is a place in the batch that holds one element of every channel: `(outer, inner)` of a
//! [`View`]. Only counted positions enter statistics. Every position is normalised with them, so the
//! gradient comes back from every position:
//!
//! ```text
//! n, μ, σ² : of counted positions
//! dx = scale · (dy - Σdy / n - (x - μ) · invstd² · Σ dy (x - μ) / n)     where counted
//! dx = scale · dy                                                        elsewhere
//! ```
//!
//! with both sums over *all* positions, except that an uncounted one whose `dy` is zero adds nothing,
//! whatever stands there.
//!
//! Each position is one bit, shared by all channels. To kernels a term that does not count is a zero
//! in its place: what order sums are made in, and so their bits, has nothing to do with the mask, and
//! what is known to be zero need not be read.

use crate::error::Error;
use crate::moments::CANDIDATES;
use crate::simd::LANES;
use crate::view::View;

/// Positions of a word.
const WORD: usize = u64::BITS as usize;

/// The positions that count.
///
/// ```
/// use rustbn::{Execution, Mask, View, moments};
/// let view = View { outer: 1, channels: 2, inner: 3 };
/// let mask = Mask::new(view, &[true, true, false])?;
/// let x = [1.0_f32, 3.0, f32::NAN, 10.0, 20.0, 99.0];
/// let moments = moments(view.masked(&mask)?, &x, Execution::current()?)?;
/// assert_eq!((moments.count(), moments.mean()), (2, [2.0, 15.0].as_slice()));
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    outer: usize,
    inner: usize,
    /// Bits of the positions, from the lowest on: of each run by itself, in whole words, or one after
    /// the other where runs are of one element.
    words: Vec<u64>,
    count: u64,
}

impl Mask {
    /// From whether each position counts: `view.outer` times `view.inner` of them, in the order of
    /// memory.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer.
    pub fn new(view: View, counted: &[bool]) -> Result<Mask, Error> {
        if counted.len() != view.count() {
            return Err(Error::Shape {
                argument: "counted",
                expected: format!("({}, {})", view.outer, view.inner),
                got: format!("({},)", counted.len()),
            });
        }
        let mut counted = counted.iter();
        Ok(Mask::fill(view, |row| {
            row.iter_mut().zip(&mut counted).for_each(|(into, &from)| *into = from);
        }))
    }

    /// From a function that says of some positions at a time whether they count, in the order of memory.
    pub(crate) fn fill(view: View, mut counted: impl FnMut(&mut [bool])) -> Mask {
        let View { outer, inner, .. } = view;
        let (runs, len) = if inner == 1 { (1, outer) } else { (outer, inner) };
        let mut words = Vec::with_capacity(runs * len.div_ceil(WORD));
        let mut count = 0;
        let mut row = [false; WORD];
        for _ in 0..runs {
            for start in (0..len).step_by(WORD) {
                let row = &mut row[..WORD.min(len - start)];
                counted(row);
                let bits = packed(row);
                count += u64::from(bits.count_ones());
                words.push(bits);
            }
        }
        Mask { outer, inner, words, count }
    }

    /// How many positions count.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether each position counts, in the order of memory.
    #[cfg(test)]
    pub(crate) fn to_vec(&self) -> Vec<bool> {
        let at = |outer| match self.inner {
            1 => (Words { words: &self.words, step: 1 }, outer, 1),
            _ => (self.run(outer, 0), 0, self.inner),
        };
        let run = |(words, start, len): (Words<'_>, usize, usize)| {
            (start..start + len).map(|i| words.bits(i) & 1 == 1).collect::<Vec<_>>()
        };
        (0..self.outer).flat_map(|outer| run(at(outer))).collect()
    }

    /// Whether the positions of a run of one element count.
    pub(crate) fn counts(&self, outer: usize) -> bool {
        debug_assert_eq!(self.inner, 1);
        self.words[outer / WORD] >> (outer % WORD) & 1 == 1
    }

    /// The bits of a run, from `start` on, which is a multiple of 64.
    pub(crate) fn run(&self, outer: usize, start: usize) -> Words<'_> {
        debug_assert!(self.inner > 1 || self.outer == 1);
        let per_run = self.inner.div_ceil(WORD);
        let words = &self.words[outer * per_run + start / WORD..(outer + 1) * per_run];
        Words { words, step: 1 }
    }

    /// Counted positions from the first to the last, at even distances: `(outer, inner)` of each.
    /// There is one at least.
    pub(crate) fn members(&self) -> [(usize, usize); CANDIDATES] {
        let mut ranks = spread(self.count as usize).into_iter();
        let mut rank = ranks.next();
        let mut members = [(0, 0); CANDIDATES];
        let mut found = members.iter_mut();
        let mut before = 0;
        let per_run = if self.inner == 1 { usize::MAX } else { self.inner.div_ceil(WORD) };
        for (i, &word) in self.words.iter().enumerate() {
            let here = word.count_ones() as usize;
            while let Some(wanted) = rank.filter(|&rank| rank < before + here) {
                let mut bits = word;
                for _ in before..wanted {
                    bits &= bits - 1;
                }
                let at = i % per_run * WORD + bits.trailing_zeros() as usize;
                let at = if self.inner == 1 { (at, 0) } else { (i / per_run, at) };
                *found.next().expect("as many members as ranks") = at;
                rank = ranks.next();
            }
            before += here;
        }
        members
    }
}

/// A bit for each of up to 64 values, the first the lowest.
fn packed(row: &[bool]) -> u64 {
    let mut bits = 0;
    for (i, eight) in row.chunks(8).enumerate() {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(eight).for_each(|(byte, &counted)| *byte = u8::from(counted));
        // Byte `k`, which is 0 or 1, goes to bit `56 + k`; no two products meet in one bit.
        let bits_of = u64::from_le_bytes(bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits |= bits_of << (8 * i);
    }
    bits
}

/// A view, all of whose positions count or those of a mask. Verbs that take one take a [`View`] as
/// well.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub(crate) view: View,
    /// Of the view's positions.
    pub(crate) mask: Option<&'a Mask>,
}

impl From<View> for Batch<'_> {
    fn from(view: View) -> Self {
        Batch { view, mask: None }
    }
}

impl View {
    /// The view with the positions that count.
    ///
    /// # Errors
    /// [`Error::Shape`] if the mask is of other positions than the view's.
    pub fn masked(self, mask: &Mask) -> Result<Batch<'_>, Error> {
        if (mask.outer, mask.inner) == (self.outer, self.inner) {
            return Ok(Batch { view: self, mask: Some(mask) });
        }
        Err(Error::Shape {
            argument: "mask",
            expected: format!("({}, {})", self.outer, self.inner),
            got: format!("({}, {})", mask.outer, mask.inner),
        })
    }
}

impl Batch<'_> {
    /// How many values of each channel count.
    pub(crate) fn count(&self) -> u64 {
        self.mask.map_or(self.view.count() as u64, Mask::count)
    }
}

/// The ranks of [`CANDIDATES`] out of `count > 0` members, from the first to the last, at even
/// distances.
pub(crate) fn spread(count: usize) -> [usize; CANDIDATES] {
    let last = count - 1;
    // Whole steps first: the product of a count and a number could overflow.
    std::array::from_fn(|i| {
        last / (CANDIDATES - 1) * i + last % (CANDIDATES - 1) * i / (CANDIDATES - 1)
    })
}

/// Which of the elements that a loop meets count.
pub(crate) trait Counted: Copy {
    /// Whether all do.
    const ALL: bool;

    /// Bits of the sixteen elements from `i` on; those beyond the last say nothing.
    fn bits(self, i: usize) -> u16;

    /// Bits of the 64 elements from `i` on, a multiple of 64.
    fn word(self, i: usize) -> u64;

    /// Whether all elements are known to count, or none.
    fn alike(self) -> bool;
}

/// All elements count.
#[derive(Clone, Copy)]
pub(crate) struct All;

impl Counted for All {
    const ALL: bool = true;

    #[inline(always)]
    fn bits(self, _: usize) -> u16 {
        u16::MAX
    }

    #[inline(always)]
    fn word(self, _: usize) -> u64 {
        u64::MAX
    }

    #[inline(always)]
    fn alike(self) -> bool {
        true
    }
}

/// The elements whose bit is set.
#[derive(Clone, Copy)]
pub(crate) struct Words<'a> {
    words: &'a [u64],
    /// Words from one to the next; 0 where the first stands for all.
    step: usize,
}

impl Words<'static> {
    /// Every element counts, or none does.
    pub(crate) fn of_all(counted: bool) -> Self {
        Words { words: if counted { &[u64::MAX] } else { &[0] }, step: 0 }
    }
}

impl Counted for Words<'_> {
    const ALL: bool = false;

    #[inline(always)]
    fn bits(self, i: usize) -> u16 {
        let (word, shift) = (i / WORD * self.step, i % WORD);
        let low = self.words[word] >> shift;
        if shift + LANES <= WORD {
            return low as u16;
        }
        let next = self.words.get(word + self.step).copied().unwrap_or(0);
        (low | next << (WORD - shift)) as u16
    }

    #[inline(always)]
    fn word(self, i: usize) -> u64 {
        self.words[i / WORD * self.step]
    }

    #[inline(always)]
    fn alike(self) -> bool {
        self.step == 0
    }
}

/// What the mask says of `n` elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// All count.
    All,
    /// None does.
    None,
    /// Those whose bit is set.
    Some(u16),
}

impl Share {
    /// Of the `n <= LANES` elements with these `bits`.
    #[inline(always)]
    pub(crate) fn of(bits: u16, n: usize) -> Share {
        let all = u16::MAX >> (LANES - n);
        match bits & all {
            0 => Share::None,
            bits if bits == all => Share::All,
            bits => Share::Some(bits),
        }
    }
}

/// The bits of rows of a sheet: columns of a row belong to `samples` runs of each of some channels.
pub(crate) struct RowBits<'a> {
    mask: &'a Mask,
    first: usize,
    /// Bits of the columns of each row, where columns of a row can differ.
    words: Vec<u64>,
    per_row: usize,
}

impl<'a> RowBits<'a> {
    /// Of `rows` rows of `samples` samples from `first` on, in each of which a run of every one of
    /// `channels` channels.
    pub(crate) fn new(
        mask: &'a Mask,
        first: usize,
        rows: usize,
        samples: usize,
        channels: usize,
    ) -> RowBits<'a> {
        if samples * mask.inner == 1 {
            return RowBits { mask, first, words: Vec::new(), per_row: 0 };
        }
        let per_row = (samples * channels * mask.inner).div_ceil(WORD);
        let mut words = Vec::with_capacity(rows * per_row);
        for row in 0..rows {
            let mut bits = Bits { words, last: 0, filled: 0 };
            let samples = first + row * samples..first + (row + 1) * samples;
            if mask.inner == 1 && channels <= WORD {
                let ones = u64::MAX >> (WORD - channels);
                // The sample's bit becomes the sign, and that all bits: a branch would be taken at random.
                let of_sample = |sample: usize| {
                    let word = mask.words[sample / WORD] << (WORD - 1 - sample % WORD);
                    ones & (word.cast_signed() >> (WORD - 1)).cast_unsigned()
                };
                bits.extend(samples.map(|sample| (of_sample(sample), channels)));
            } else {
                for sample in samples {
                    if mask.inner == 1 {
                        bits.repeat(mask.counts(sample).into(), 1, channels);
                    } else if mask.inner <= WORD {
                        bits.repeat(mask.run(sample, 0).words[0], mask.inner, channels);
                    } else {
                        for _ in 0..channels {
                            let starts = (0..mask.inner).step_by(WORD);
                            let lengths = starts.map(|start| WORD.min(mask.inner - start));
                            bits.extend(mask.run(sample, 0).words.iter().copied().zip(lengths));
                        }
                    }
                }
            }
            words = bits.finish();
        }
        RowBits { mask, first, words, per_row }
    }

    /// Of row `row`.
    pub(crate) fn row(&self, row: usize) -> Words<'_> {
        if self.per_row == 0 {
            return Words::of_all(self.mask.counts(self.first + row));
        }
        Words { words: &self.words[row * self.per_row..(row + 1) * self.per_row], step: 1 }
    }
}

/// Rows of a sheet, as loops meet them.
pub(crate) trait Rows: Copy {
    /// What one row is.
    type Row: Counted;

    /// Row `row`.
    fn row(self, row: usize) -> Self::Row;
}

impl Rows for All {
    type Row = All;

    #[inline(always)]
    fn row(self, _: usize) -> All {
        All
    }
}

impl<'a> Rows for &'a RowBits<'_> {
    type Row = Words<'a>;

    #[inline(always)]
    fn row(self, row: usize) -> Words<'a> {
        RowBits::row(self, row)
    }
}

/// Bits written one after the other.
struct Bits {
    words: Vec<u64>,
    /// Bits that do not fill a word yet.
    last: u64,
    /// How many.
    filled: usize,
}

impl Bits {
    /// Appends pieces: the lowest `n` of some bits of which the others are 0, with `n` from 1 to 64.
    #[inline]
    fn extend(&mut self, pieces: impl Iterator<Item = (u64, usize)>) {
        let Bits { words, last, filled } = self;
        let (mut word, mut end) = (*last, *filled);
        for (bits, n) in pieces {
            word |= bits << end;
            end += n;
            if end >= WORD {
                words.push(word);
                end -= WORD;
                // Of the last `n` bits so many begin the next word.
                word = if end > 0 { bits >> (n - end) } else { 0 };
            }
        }
        (*last, *filled) = (word, end);
    }

    /// All words; the next bit begins one.
    fn finish(mut self) -> Vec<u64> {
        if self.filled > 0 {
            self.words.push(self.last);
        }
        self.words
    }

    /// Appends the lowest `n <= 64` of `bits` so many times.
    fn repeat(&mut self, mut bits: u64, mut n: usize, mut times: usize) {
        while 2 * n <= WORD && times > 1 {
            if !times.is_multiple_of(2) {
                self.extend(std::iter::once((bits, n)));
            }
            (bits, n, times) = (bits | bits << n, 2 * n, times / 2);
        }
        self.extend(std::iter::repeat_n((bits, n), times));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(counted: impl Counted, len: usize) -> Vec<bool> {
        (0..len).map(|i| counted.bits(i) & 1 == 1).collect()
    }

    proptest! {
        #[test]
        fn bits_are_those_that_were_given(
            outer in 1_usize..40,
            inner in prop_oneof![Just(1_usize), 2_usize..200],
            seed in any::<u64>(),
        ) {
            let view = View { outer, channels: 3, inner };
            let counted: Vec<bool> = (0..view.count() as u64)
                .map(|i| (i + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 > 2)
                .collect();
            let mask = Mask::new(view, &counted).unwrap();
            prop_assert_eq!(mask.count(), counted.iter().filter(|&&counted| counted).count() as u64);
            for (o, run) in counted.chunks(inner).enumerate() {
                if inner == 1 {
                    prop_assert_eq!(mask.counts(o), run[0]);
                } else {
                    prop_assert_eq!(&read(mask.run(o, 0), inner), run);
                    for start in (64..inner).step_by(64) {
                        prop_assert_eq!(&read(mask.run(o, start), inner - start), &run[start..]);
                    }
                }
            }
            for samples in [1, 2, 5] {
                let rows = outer / samples;
                let bits = RowBits::new(&mask, 0, rows, samples, 3);
                for row in 0..rows {
                    let expected: Vec<bool> = (0..samples)
                        .flat_map(|sample| {
                            let run = row * samples + sample;
                            counted[run * inner..(run + 1) * inner].repeat(3)
                        })
                        .collect();
                    prop_assert_eq!(&read(bits.row(row), expected.len()), &expected);
                }
            }
            if mask.count() > 0 {
                let positions: Vec<usize> = (0..counted.len()).filter(|&i| counted[i]).collect();
                let expected = spread(positions.len()).map(|rank| positions[rank]);
                prop_assert_eq!(mask.members().map(|(o, i)| o * inner + i), expected);
            }
        }
    }

    #[test]
    fn a_mask_belongs_to_its_view() {
        let view = View { outer: 2, channels: 3, inner: 4 };
        let mask = Mask::new(view, &[true; 8]).unwrap();
        assert_eq!(view.masked(&mask).unwrap().count(), 8);
        assert!(View { channels: 9, ..view }.masked(&mask).is_ok());
        assert!(matches!(View { inner: 5, ..view }.masked(&mask), Err(Error::Shape { .. })));
        assert!(matches!(Mask::new(view, &[true; 7]), Err(Error::Shape { .. })));
    }
}
