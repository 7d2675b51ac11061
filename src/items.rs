//! The vector code of one item of work: a block of channels in a chunk.
//!
//! An item is entered through [`Level::run`](crate::simd::Level::run) and walks its part of memory,
//! as planes or as a sheet, calling a kernel on each run or on all rows. Columns of a sheet that
//! are not channels are dealt with here: what kernels want for each column is spread out before,
//! what they made for each column is gathered after.

use crate::kernels::GROUP;
use crate::kernels::map::{self, Map, Stores, Table, TableOf};
use crate::kernels::reduce::{self, ColumnCenters, ColumnSums, Lanes, Sheet, TILE, Terms};
use crate::schedule::{Arrangement, BLOCK, Chunk, Plan};
use crate::simd::{Kernel, LANES, Simd, fold};
use crate::view::View;
use std::ops::Range;

/// Columns from which a row is long: its two ends that are no whole lines do not matter.
const LONG_ROW: usize = 1024;

/// Finds the centres of some channels. To run it: the inputs of `terms` hold `view`, which is not
/// empty.
pub(crate) struct CenterItem<'a, T> {
    pub(crate) view: &'a View,
    pub(crate) terms: T,
    pub(crate) channels: Range<usize>,
    pub(crate) centers: &'a mut [f64],
}

impl<T: Terms> Kernel for CenterItem<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        // SAFETY: whoever runs the item vouches for the inputs.
        unsafe { self.terms.centers(simd, self.view, self.channels, self.centers) };
    }
}

/// From the sums of channels to the coefficients of their outputs.
pub(crate) trait Finish<R, const N: usize>: Copy + Sync {
    /// The coefficients of [`GROUP`] channels from `channel` on. The last of them may not exist;
    /// what is returned for those is not used.
    fn coefficients(
        self,
        channel: usize,
        centers: [f64; GROUP],
        sums: [[f64; GROUP]; 2],
    ) -> [[R; GROUP]; N];
}

/// [`GROUP`] values from `values[start..]`, and 1 for those that are not there.
#[inline(always)]
pub(crate) fn group(values: &[f64], start: usize) -> [f64; GROUP] {
    let rest = &values[start..];
    // A whole group is a copy of known length.
    if let Some(group) = rest.first_chunk() {
        return *group;
    }
    let mut group = [1.0; GROUP];
    group[..rest.len()].copy_from_slice(rest);
    group
}

/// Makes the coefficients of some channels. Safe to run.
pub(crate) struct FinishItem<'a, F, R, const N: usize> {
    pub(crate) finish: F,
    pub(crate) first_channel: usize,
    pub(crate) centers: &'a [f64],
    pub(crate) sums: [&'a [f64]; 2],
    pub(crate) into: [&'a mut [R]; N],
}

impl<F: Finish<R, N>, R: Copy, const N: usize> Kernel for FinishItem<'_, F, R, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, _: S) {
        let [first, second] = self.sums;
        let mut into = self.into;
        for start in (0..self.centers.len()).step_by(GROUP) {
            let sums = [group(first, start), group(second, start)];
            let channel = self.first_channel + start;
            let coefficients = self.finish.coefficients(channel, group(self.centers, start), sums);
            for (into, values) in into.iter_mut().zip(&coefficients) {
                let rest = &mut into[start..];
                match rest.first_chunk_mut() {
                    Some(group) => *group = *values,
                    None => rest.copy_from_slice(&values[..rest.len()]),
                }
            }
        }
    }
}

/// How the columns of a block of a sheet belong to its channels: each sample of a row holds a run
/// of every channel.
#[derive(Clone, Copy)]
struct Columns {
    samples: usize,
    channels: usize,
    inner: usize,
}

impl Columns {
    fn len(&self) -> usize {
        self.samples * self.channels * self.inner
    }

    /// Whether column and channel are the same thing.
    fn are_channels(&self) -> bool {
        self.samples * self.inner == 1
    }

    /// Appends the value of each column, given that of each channel.
    fn expand<T: Copy>(&self, of_channels: &[T], into: &mut Vec<T>) {
        for _ in 0..self.samples {
            if self.inner == 1 {
                into.extend_from_slice(of_channels);
                continue;
            }
            for &value in of_channels {
                into.resize(into.len() + self.inner, value);
            }
        }
    }

    /// The full rows of a part of a sheet, and the row of fewer samples that may follow.
    fn sheets(&self, plan: &Plan, first_channel: usize, outer: Range<usize>) -> [Sheet; 2] {
        let stride = plan.partition.view.offset(self.samples, 0, 0);
        let rows = outer.len() / self.samples;
        let rest = outer.len() % self.samples;
        let at = |outer| plan.partition.view.offset(outer, first_channel, 0);
        [
            Sheet { at: at(outer.start), stride, rows, cols: self.len() },
            Sheet {
                at: at(outer.end - rest),
                stride,
                rows: usize::from(rest > 0),
                cols: self.len() / self.samples * rest,
            },
        ]
    }
}

/// The sums of a block in a chunk. To run it: the inputs of `terms` hold the plan's view.
pub(crate) struct ReduceItem<'a, T> {
    pub(crate) plan: &'a Plan,
    pub(crate) terms: T,
    pub(crate) channels: Range<usize>,
    pub(crate) chunk: Chunk,
    /// Of these channels.
    pub(crate) centers: &'a [f64],
    /// Of these channels, in this chunk.
    pub(crate) sums: [&'a mut [f64]; 2],
}

impl<T: Terms> Kernel for ReduceItem<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        // SAFETY: whoever runs the item vouches for the inputs.
        unsafe {
            match self.plan.partition.arrangement {
                Arrangement::Planes => self.planes(simd),
                Arrangement::Sheet { samples } => self.sheet(simd, samples),
            }
        }
    }
}

impl<T: Terms> ReduceItem<'_, T> {
    /// # Safety
    /// The inputs hold the plan's view.
    #[inline(always)]
    unsafe fn planes<S: Simd>(self, simd: S) {
        let view = &self.plan.partition.view;
        let mut lanes = [Lanes::ZERO; BLOCK];
        let (first, runs) = (self.channels.start, self.channels.len());
        for outer in self.chunk.outer {
            for i in 0..runs {
                let Range { mut start, end } = self.chunk.inner;
                let after = if i + 1 < runs { (outer, first + i + 1) } else { (outer + 1, first) };
                while start < end {
                    let at = view.offset(outer, first + i, start);
                    let len = TILE.min(end - start);
                    start += len;
                    let next = if start < end {
                        at + len
                    } else {
                        view.offset(after.0, after.1, self.chunk.inner.start)
                    };
                    // SAFETY: a part of a run of the view, which the caller vouches for.
                    unsafe {
                        let (center, lanes) = (self.centers[i], &mut lanes[i]);
                        reduce::run(simd, self.terms, [at, next], len, center, lanes);
                    }
                }
            }
        }
        let [first, second] = self.sums;
        for i in 0..self.channels.len() {
            [first[i], second[i]] = lanes[i].0.map(fold);
        }
    }

    /// # Safety
    /// The inputs hold the plan's view.
    #[inline(always)]
    unsafe fn sheet<S: Simd>(self, simd: S, samples: usize) {
        let columns = Columns {
            samples,
            channels: self.channels.len(),
            inner: self.plan.partition.view.inner,
        };
        let sheets = columns.sheets(self.plan, self.channels.start, self.chunk.outer);
        let mut centers = Vec::new();
        let centers = if !reduce::off_center::<T>(self.centers) {
            ColumnCenters::default()
        } else if columns.are_channels() {
            ColumnCenters::new::<T>(self.centers)
        } else {
            columns.expand(self.centers, &mut centers);
            ColumnCenters::new::<T>(&centers)
        };
        let mut sums = ColumnSums::new(columns.len(), &sheets);
        for sheet in sheets {
            // SAFETY: rows of the view, which the caller vouches for.
            unsafe { reduce::sheet(simd, self.terms, sheet, &centers, &mut sums) };
        }
        for (totals, columns_of) in self.sums.into_iter().zip(sums.sums()) {
            totals.fill(0.0);
            for sample in columns_of.chunks_exact(columns.channels * columns.inner) {
                for (total, run) in totals.iter_mut().zip(sample.chunks_exact(columns.inner)) {
                    *total += reduce::fold_run(simd, run);
                }
            }
        }
    }
}

/// The outputs of a block in a chunk. To run it: inputs and output of `map` hold the plan's view;
/// the output is one of the inputs or shares no memory with them; nobody else touches this item's
/// part of it; `table` holds the coefficients of the block's channels, and nobody writes them.
pub(crate) struct MapItem<'a, M: Map> {
    pub(crate) plan: &'a Plan,
    pub(crate) map: M,
    pub(crate) channels: Range<usize>,
    pub(crate) chunk: Chunk,
    /// Of all channels.
    pub(crate) table: TableOf<M>,
}

impl<M: Map> Kernel for MapItem<'_, M> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        let stores = self.plan.stores;
        // SAFETY: whoever runs the item vouches for inputs, output and coefficients.
        unsafe {
            if M::LONG {
                return self.runs(simd);
            }
            match self.plan.partition.arrangement {
                Arrangement::Planes => self.planes(simd),
                Arrangement::Sheet { samples } => self.sheet(simd, samples),
            }
        }
        if stores == Stores::Streamed {
            simd.fence();
        }
    }
}

impl<M: Map> MapItem<'_, M> {
    /// Memory in its order, run by run or row by row: the one loop of long expressions.
    ///
    /// # Safety
    /// As said of the item.
    #[inline(always)]
    unsafe fn runs<S: Simd>(self, simd: S) {
        let view = &self.plan.partition.view;
        let of_run = view.inner > 1;
        let (first, channels) = (self.channels.start, self.channels.len());
        let runs = if of_run { channels } else { 1 };
        for outer in self.chunk.outer {
            for c in 0..runs {
                let at = view.offset(outer, first + c, self.chunk.inner.start);
                let len = if of_run { self.chunk.inner.len() } else { channels };
                let table = self.table.from(first + c);
                // SAFETY: a part of a run of the view, or the block's columns of a row, and their
                // coefficients.
                unsafe { map::plain(simd, self.map, at, len, table, of_run) };
            }
        }
    }

    /// # Safety
    /// As said of the item.
    #[inline(always)]
    unsafe fn planes<S: Simd>(self, simd: S) {
        let view = &self.plan.partition.view;
        for outer in self.chunk.outer {
            for c in self.channels.clone() {
                let at = view.offset(outer, c, self.chunk.inner.start);
                let len = self.chunk.inner.len();
                let table = self.table.from(c);
                // SAFETY: a part of a run of the view, and the coefficients of its channel.
                unsafe {
                    map::run(simd, self.map, at, len, table, self.plan.stores, self.plan.ahead);
                }
            }
        }
    }

    /// # Safety
    /// As said of the item.
    #[inline(always)]
    unsafe fn sheet<S: Simd>(self, simd: S, samples: usize) {
        let view = &self.plan.partition.view;
        let columns = Columns { samples, channels: self.channels.len(), inner: view.inner };
        let sheets = columns.sheets(self.plan, self.channels.start, self.chunk.outer.clone());
        let streamed = self.plan.stores == Stores::Streamed;
        // Short rows are streamed as one run of memory, long ones, or parts of them, each by
        // itself.
        let joined = streamed && columns.len() == sheets[0].stride && columns.len() < LONG_ROW;
        let apart = streamed && columns.len() >= LONG_ROW;
        let of_block = self.table.from(self.channels.start);
        let mut expanded = Vec::new();
        let table = if columns.are_channels() && !joined {
            of_block
        } else {
            // Rows that are joined need the first columns again after the last.
            let pitch = if joined { columns.len() + LANES } else { columns.len() };
            expanded.reserve_exact(M::COEFFICIENTS * pitch);
            for k in 0..M::COEFFICIENTS {
                // SAFETY: every coefficient of the block's channels is there, and nobody writes
                // them.
                let of_channels = unsafe {
                    let first = of_block.first.add(k * of_block.pitch);
                    std::slice::from_raw_parts(first, self.channels.len())
                };
                let start = expanded.len();
                columns.expand(of_channels, &mut expanded);
                for i in columns.len()..pitch {
                    expanded.push(expanded[start + i % columns.len()]);
                }
            }
            Table { first: expanded.as_ptr(), pitch }
        };
        for sheet in sheets {
            // SAFETY: rows of the view, and the coefficients of each column; if joined, rows
            // without a gap.
            unsafe {
                if joined {
                    let len = sheet.rows * sheet.cols;
                    map::stream_rows(simd, self.map, sheet.at, len, columns.len(), table);
                } else if apart {
                    for row in 0..sheet.rows {
                        let at = sheet.at + row * sheet.stride;
                        map::stream(
                            simd,
                            self.map,
                            at,
                            sheet.cols,
                            columns.len(),
                            table,
                            sheet.stride,
                        );
                    }
                } else {
                    map::sheet(simd, self.map, sheet, table, self.plan.ahead);
                }
            }
        }
    }
}
