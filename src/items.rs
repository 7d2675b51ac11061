//! The vector code of one item of work: a block of channels in a chunk.
//!
//! An item is entered through [`Level::run`](crate::simd::Level::run) and walks its part of memory,
//! as planes or as a sheet, calling a kernel on each run or on all rows. Columns of a sheet that
//! are not channels are dealt with here: what kernels want for each column is spread out before,
//! what they made for each column is gathered after.

use crate::aligned::Aligned;
use crate::element::{Element, Real};
use crate::kernels::map::{self, Map, Stores, Table, TableOf};
use crate::kernels::reduce::{self, ColumnCenters, ColumnSums, Lanes, Sheet, TILE, Terms};
use crate::kernels::{GROUP, pitch};
use crate::mask::{All, Counted, Mask, RowBits, Rows};
use crate::schedule::{Arrangement, BLOCK, Chunk, Plan, divided};
use crate::simd::{Kernel, LANES, STREAM_ALIGNMENT, Simd, fold};
use crate::view::View;
use std::ops::Range;

/// Columns from which whole rows are streamed one by one, not as one run of memory, for which their coefficients have to be
/// copied. One by one, rows of 1024 to 2048 `f32` took up to 1.2 of their time as one run if outputs did not begin at lines;
/// rows of 4096 took as long as that, and 0.85 if outputs did (Emerald Rapids).
const LONG_ROW: usize = 4096;

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
pub(crate) fn group<V: Element>(values: &[V], start: usize) -> [f64; GROUP] {
    let Some(values) = values.get(start..start + GROUP) else {
        return last_group(&values[start..]);
    };
    let mut group = [0.0; GROUP];
    for i in 0..GROUP {
        group[i] = values[i].widen();
    }
    group
}

/// A function of its own, so that whole groups stay in registers.
#[cold]
#[inline(never)]
fn last_group<V: Element>(rest: &[V]) -> [f64; GROUP] {
    let mut group = [1.0; GROUP];
    group.iter_mut().zip(rest).for_each(|(value, given)| *value = given.widen());
    group
}

/// Makes the coefficients of some channels. Safe to run.
pub(crate) struct FinishItem<'a, V, F, R, const N: usize> {
    pub(crate) finish: F,
    pub(crate) first_channel: usize,
    pub(crate) centers: &'a [V],
    pub(crate) sums: [&'a [V]; 2],
    pub(crate) into: [&'a mut [R]; N],
}

impl<V: Element, F: Finish<R, N>, R: Copy, const N: usize> Kernel for FinishItem<'_, V, F, R, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(mut self, _: S) {
        let channels = self.centers.len();
        // Said once, so that it need not be asked for each group.
        assert!(self.sums.iter().all(|sums| sums.len() == channels), "sums of each channel");
        assert!(
            self.into.iter().all(|into| into.len() == channels),
            "coefficients of each channel"
        );
        // Whole groups apart, whose lengths are known: each is written by a store, not by a call.
        let whole = channels / GROUP * GROUP;
        for start in (0..whole).step_by(GROUP) {
            let coefficients = self.of_group(start);
            for (into, values) in self.into.iter_mut().zip(&coefficients) {
                into[start..start + GROUP].copy_from_slice(values);
            }
        }
        if whole < channels {
            let coefficients = self.of_group(whole);
            for (into, values) in self.into.iter_mut().zip(&coefficients) {
                let rest = &mut into[whole..];
                rest.copy_from_slice(&values[..rest.len()]);
            }
        }
    }
}

impl<V: Element, F: Finish<R, N>, R: Copy, const N: usize> FinishItem<'_, V, F, R, N> {
    /// The coefficients of the [`GROUP`] channels from the item's channel `start` on.
    #[inline(always)]
    fn of_group(&self, start: usize) -> [[R; GROUP]; N] {
        let [first, second] = self.sums;
        let sums = [group(first, start), group(second, start)];
        self.finish.coefficients(self.first_channel + start, group(self.centers, start), sums)
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

    /// Writes the value of each column, given that of each channel.
    fn expand<T: Copy>(&self, of_channels: &[T], into: &mut [T]) {
        for sample in into.chunks_exact_mut(self.channels * self.inner) {
            if self.inner == 1 {
                sample.copy_from_slice(of_channels);
                continue;
            }
            for (run, &value) in sample.chunks_exact_mut(self.inner).zip(of_channels) {
                run.fill(value);
            }
        }
    }

    /// The full rows of a block in a chunk, and the row of fewer samples that may follow.
    fn parts(&self, plan: &Plan, first_channel: usize, outer: Range<usize>) -> [Part; 2] {
        let stride = plan.partition.view.offset(self.samples, 0, 0);
        let (rows, rest) = divided(outer.len(), self.samples);
        let at = |outer| plan.partition.view.offset(outer, first_channel, 0);
        let cols = self.channels * self.inner * rest;
        [
            Part {
                sheet: Sheet { at: at(outer.start), stride, rows, cols: self.len() },
                first: outer.start,
                samples: self.samples,
            },
            Part {
                sheet: Sheet {
                    at: at(outer.end - rest),
                    stride,
                    rows: usize::from(rest > 0),
                    cols,
                },
                first: outer.end - rest,
                samples: rest,
            },
        ]
    }
}

/// Rows of a sheet, and where they begin among samples.
#[derive(Clone, Copy)]
struct Part {
    sheet: Sheet,
    /// The first sample of the first row.
    first: usize,
    /// Samples of a row.
    samples: usize,
}

/// The sums of a block in a chunk. To run it: the inputs of `terms` hold the plan's view.
pub(crate) struct ReduceItem<'a, T> {
    pub(crate) plan: &'a Plan,
    pub(crate) terms: T,
    /// Which positions count; all where there is none.
    pub(crate) mask: Option<&'a Mask>,
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
            match (self.plan.partition.arrangement, self.mask) {
                (Arrangement::Planes, None) => self.planes(simd, |_, _| All),
                (Arrangement::Planes, Some(mask)) => {
                    self.planes(simd, |outer, start| mask.run(outer, start))
                }
                (Arrangement::Sheet { samples }, _) => self.sheet(simd, samples),
            }
        }
    }
}

impl<T: Terms> ReduceItem<'_, T> {
    /// With which elements count of the run of a sample, from one of them on.
    ///
    /// # Safety
    /// The inputs hold the plan's view.
    #[inline(always)]
    unsafe fn planes<S: Simd, C: Counted>(self, simd: S, counted: impl Fn(usize, usize) -> C) {
        let view = self.plan.partition.view;
        let mut lanes = [Lanes::ZERO; BLOCK];
        let lanes = &mut lanes[..self.channels.len()];
        let (terms, first) = (self.terms, self.channels.start);
        let Range { start, end } = self.chunk.inner;
        for outer in self.chunk.outer {
            let after = view.offset(outer + 1, first, start);
            if view.inner <= TILE {
                let (at, counted) = (view.offset(outer, first, 0), counted(outer, 0));
                let (len, centers, lanes) = (view.inner, self.centers, &mut *lanes);
                let item = TilesItem { terms, at, after, len, counted, centers, lanes };
                // SAFETY: runs of the view, which the caller vouches for.
                unsafe { simd.call(item) };
                continue;
            }
            for i in 0..lanes.len() {
                let next = if i + 1 < lanes.len() {
                    view.offset(outer, first + i + 1, start)
                } else {
                    after
                };
                for from in (start..end).step_by(TILE) {
                    let (at, counted) = (view.offset(outer, first + i, from), counted(outer, from));
                    let len = TILE.min(end - from);
                    let after = if from + len < end { at + len } else { next };
                    let (centers, lanes) = (&self.centers[i..=i], &mut lanes[i..=i]);
                    let item = TilesItem { terms, at, after, len, counted, centers, lanes };
                    // SAFETY: a part of a run of the view, which the caller vouches for.
                    unsafe { simd.call(item) };
                }
            }
        }
        let [first, second] = self.sums;
        for (i, lanes) in lanes.iter().enumerate() {
            [first[i], second[i]] = lanes.0.map(fold);
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
        let parts = columns.parts(self.plan, self.channels.start, self.chunk.outer);
        let mut expanded;
        let centers = if !reduce::off_center::<T>(self.centers) {
            ColumnCenters::default()
        } else if columns.are_channels() {
            ColumnCenters::new::<T>(self.centers)
        } else {
            expanded = Aligned::filled(0.0, columns.len());
            columns.expand(self.centers, &mut expanded);
            ColumnCenters::new::<T>(&expanded)
        };
        let mut sums = ColumnSums::new(columns.len(), parts.map(|part| part.sheet.rows));
        let parts = parts.into_iter().filter(|part| part.sheet.rows > 0);
        let (terms, fetch) = (self.terms, self.plan.fetch);
        for Part { sheet, first, samples } in parts {
            // SAFETY: rows of the view, which the caller vouches for.
            unsafe {
                match self.mask {
                    None => reduce::sheet(simd, terms, sheet, All, &centers, &mut sums, fetch),
                    Some(mask) => {
                        let counted =
                            RowBits::new(mask, first, sheet.rows, samples, columns.channels);
                        reduce::sheet(simd, terms, sheet, &counted, &centers, &mut sums, fetch);
                    }
                }
            }
        }
        for (totals, columns_of) in self.sums.into_iter().zip(sums.sums()) {
            totals.fill(0.0);
            for sample in columns_of.chunks_exact(columns.channels * columns.inner) {
                if columns.inner == 1 {
                    for (total, &sum) in totals.iter_mut().zip(sample) {
                        *total += sum;
                    }
                    continue;
                }
                for (total, run) in totals.iter_mut().zip(sample.chunks_exact(columns.inner)) {
                    *total += reduce::fold_run(simd, run);
                }
            }
        }
    }
}

/// Adds the terms of tiles of `len` elements that lie one behind the other, each of the next channel, to the lanes
/// of their channels. To run it: the inputs of `terms` hold them. In a function of its own what depends on their
/// length alone is found out once: sums of planes of 14 x 14 took 28 instructions for 16 elements, and 24 like this.
struct TilesItem<'a, T, C> {
    terms: T,
    /// Where the first begins, and the first of those that come after.
    at: usize,
    after: usize,
    len: usize,
    /// Which elements count of each tile.
    counted: C,
    /// Of these channels, as `lanes`.
    centers: &'a [f64],
    lanes: &'a mut [Lanes],
}

impl<T: Terms, C: Counted> Kernel for TilesItem<'_, T, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        let TilesItem { terms, mut at, after, len, counted, centers, lanes } = self;
        let (len, tiles) = (len.min(TILE), lanes.len());
        // So many tiles ahead, first of these and then of those after.
        let ahead = (reduce::AHEAD / len.max(1)).clamp(1, tiles);
        for (i, (lanes, &center)) in lanes.iter_mut().zip(centers).enumerate() {
            let soon = if i + ahead < tiles {
                at + ahead * len
            } else {
                after + (i + ahead - tiles) * len
            };
            // SAFETY: one of the tiles, for which whoever runs the item vouches.
            unsafe { reduce::run(simd, terms, [at, soon], len, counted, center, lanes) };
            at += len;
        }
    }
}

/// The outputs of a block in a chunk. To run it: inputs and output of `map` hold the plan's view;
/// the output is one of the inputs or shares no memory with them; nobody else touches this item's
/// part of it; `table` holds the coefficients of the block's channels, and nobody writes them.
pub(crate) struct MapItem<'a, M: Map> {
    pub(crate) plan: &'a Plan,
    /// Which positions count; all where there is none.
    pub(crate) mask: Option<&'a Mask>,
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
        let streamed = self.streamed::<S>();
        // SAFETY: whoever runs the item vouches for inputs, output and coefficients.
        unsafe {
            if M::LONG {
                return self.runs(simd);
            }
            match self.plan.map_arrangement() {
                Arrangement::Planes => {
                    if M::MASKED
                        && let Some(mask) = self.mask
                    {
                        self.planes(simd, |outer, start| mask.run(outer, start));
                    } else {
                        self.planes(simd, |_, _| All);
                    }
                }
                Arrangement::Sheet { samples } => self.sheet(simd, samples),
            }
        }
        if streamed {
            simd.fence();
        }
    }
}

impl<M: Map> MapItem<'_, M> {
    /// Whether the outputs are written past the cache.
    #[inline(always)]
    fn streamed<S: Simd>(&self) -> bool {
        S::STREAMS && self.plan.stores == Stores::Streamed
    }

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

    /// Run by run, with which elements count of the run of a sample, from one of them on.
    ///
    /// # Safety
    /// As said of the item.
    #[inline(always)]
    unsafe fn planes<S: Simd, C: Counted>(self, simd: S, counted: impl Fn(usize, usize) -> C) {
        let view = self.plan.partition.view;
        let streamed = self.streamed::<S>() && self.chunk.inner.len() >= LANES;
        let (map, table, Range { start, end }) = (self.map, self.table, self.chunk.inner);
        let (first, channels, len) = (self.channels.start, self.channels.len(), end - start);
        let ahead = match self.plan.partition.arrangement {
            // Parts of rows, whose next piece the processor does not guess.
            Arrangement::Sheet { .. } if streamed => view.offset(1, 0, 0),
            _ => self.plan.ahead,
        };
        // Whole runs lie one behind the other.
        let together = if len == view.inner { channels } else { 1 };
        for outer in self.chunk.outer {
            for c in (first..first + channels).step_by(together) {
                let at = view.offset(outer, c, start);
                let (counted, table) = (counted(outer, start), table.from(c));
                let runs = RunsItem { map, at, runs: [together, len], counted, table, ahead };
                // SAFETY: runs of the view, or a part of one, and the coefficients of their channels.
                unsafe {
                    if S::STREAMS && streamed {
                        let next = at + view.offset(1, 0, 0);
                        simd.call(StreamItem { runs, next });
                    } else {
                        simd.call(runs);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As said of the item.
    #[inline(always)]
    unsafe fn sheet<S: Simd>(self, simd: S, samples: usize) {
        let view = &self.plan.partition.view;
        let mask = self.mask.filter(|_| M::MASKED);
        let columns = Columns { samples, channels: self.channels.len(), inner: view.inner };
        let parts = columns.parts(self.plan, self.channels.start, self.chunk.outer.clone());
        let streamed = self.streamed::<S>();
        // Short rows are streamed as one run of memory. Parts of rows are streamed whatever their length:
        // forward over planes of 7 x 7, in strips of 245 to 980 columns, took 1.5 of a copy through the
        // cache and 0.9 past it.
        let joined = streamed && columns.len() == parts[0].sheet.stride && columns.len() < LONG_ROW;
        let of_block = self.table.from(self.channels.start);
        let mut expanded;
        let table = if columns.are_channels() && !joined {
            of_block
        } else {
            // Rows that are joined need the first columns again after the last.
            let (len, again) = (columns.len(), if joined { LANES } else { 0 });
            // Vectors begin where lines of the output do.
            let lead = if joined { map::lead(self.map, parts[0].sheet.at) } else { 0 };
            let zero = <M::Element as Element>::Real::from_f64(0.0);
            let pitch = pitch(len + again);
            expanded = Aligned::filled(zero, lead + M::COEFFICIENTS * pitch);
            for (k, of_columns) in expanded[lead..].chunks_exact_mut(pitch).enumerate() {
                // SAFETY: every coefficient of the block's channels is there, and nobody writes
                // them.
                let of_channels = unsafe {
                    let first = of_block.first.add(k * of_block.pitch);
                    std::slice::from_raw_parts(first, self.channels.len())
                };
                columns.expand(of_channels, &mut of_columns[..len]);
                for i in len..len + again {
                    of_columns[i] = of_columns[i - len];
                }
            }
            Table { first: expanded[lead..].as_ptr(), pitch }
        };
        let streamed = streamed.then_some(if joined {
            Streamed::Joined { width: columns.len() }
        } else {
            Streamed::Apart
        });
        let map = self.map;
        for Part { sheet, first, samples } in parts.into_iter().filter(|part| part.sheet.rows > 0) {
            // With a mask rows are met one by one.
            let rows = if mask.is_none() { map::side_by_side(map, &sheet) } else { 1 };
            let whole = sheet.cols == sheet.stride;
            let mut ahead = self.plan.ahead;
            if self.plan.fetch && rows > 1 && (whole || ahead == 0) {
                // The processor does not guess what follows rows that are met side by side.
                ahead = rows * sheet.stride;
            }
            // SAFETY: rows of the view, and the coefficients of each column; if joined, rows
            // without a gap.
            unsafe {
                if M::MASKED
                    && let Some(mask) = mask
                {
                    let (rows, samples) =
                        if joined { (1, sheet.rows * samples) } else { (sheet.rows, samples) };
                    let counted = &RowBits::new(mask, first, rows, samples, columns.channels);
                    simd.call(PartItem { map, sheet, streamed, counted, table, ahead });
                } else {
                    simd.call(PartItem { map, sheet, streamed, counted: All, table, ahead });
                }
            }
        }
    }
}

/// The outputs of some runs of some length that lie one behind the other, through the cache. To run it: as said of
/// [`MapItem`], of these runs.
struct RunsItem<M: Map, C> {
    map: M,
    at: usize,
    runs: [usize; 2],
    /// Which elements of each run count.
    counted: C,
    /// Of their channels.
    table: TableOf<M>,
    ahead: usize,
}

impl<M: Map, C: Counted> Kernel for RunsItem<M, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        let RunsItem { map, at, runs: [runs, len], counted, table, ahead } = self;
        // Runs of whole vectors all lie alike in lines. Not compiled for masks, to have one copy of the loop.
        if C::ALL
            && runs > 1
            && len > LANES
            && !len.is_multiple_of(LANES)
            && let Some(head) = map::head(map.output().wrapping_add(at), len)
        {
            let runs = [head, runs, len];
            // SAFETY: whoever runs the item vouches for the runs and their coefficients.
            return unsafe {
                map::joined_runs::<S, M, C, false>(simd, map, at, runs, counted, table, ahead)
            };
        }
        for i in 0..runs {
            let (at, table) = (at + i * len, table.from(i));
            // SAFETY: one of the runs, for which whoever runs the item vouches.
            unsafe { map::run(simd, map, at, len, counted, table, ahead) };
        }
    }
}

/// The same past the cache, of runs that are no shorter than a vector.
struct StreamItem<M: Map, C> {
    runs: RunsItem<M, C>,
    /// Where the runs of the next sample begin.
    next: usize,
}

impl<M: Map, C: Counted> Kernel for StreamItem<M, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        let RunsItem { map, at, runs: [runs, len], counted, table, ahead } = self.runs;
        let Some(head) = map::head(map.output().wrapping_add(at), len) else {
            // SAFETY: handed on to whoever runs the item.
            return unsafe { self.runs.run(simd) };
        };
        // Lines that are shared with other runs go through the cache, so they are read.
        for edge in [self.next, self.next + runs * len] {
            let output = map.output().wrapping_add(edge);
            if !output.addr().is_multiple_of(STREAM_ALIGNMENT) {
                simd.prefetch(output);
            }
        }
        // SAFETY: whoever runs the item vouches for the runs and their coefficients.
        unsafe {
            map::joined_runs::<S, M, C, true>(
                simd,
                map,
                at,
                [head, runs, len],
                counted,
                table,
                ahead,
            )
        };
    }
}

/// The outputs of rows of a sheet, given which elements of each count, or of all of them together if
/// they are joined. To run it: as said of [`MapItem`], of these rows; `table` holds the coefficients of
/// each column, and of the first ones again if rows are joined, which then have no gap.
struct PartItem<M: Map, R> {
    map: M,
    sheet: Sheet,
    /// How they are written past the cache; through it where there is nothing.
    streamed: Option<Streamed>,
    counted: R,
    table: TableOf<M>,
    /// How far ahead inputs are asked for.
    ahead: usize,
}

impl<M: Map, R: Rows> Kernel for PartItem<M, R> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        let PartItem { map, sheet, streamed, counted, table, ahead } = self;
        let Sheet { at, stride, rows, cols } = sheet;
        // SAFETY: whoever runs the item vouches for the rows and their coefficients.
        unsafe {
            if S::STREAMS
                && let Some(streamed) = streamed
            {
                match streamed {
                    Streamed::Joined { width } if R::Row::ALL => {
                        map::stream_rows(simd, map, at, rows * cols, width, table);
                    }
                    Streamed::Joined { width } => {
                        let (len, of_all) = (rows * cols, counted.row(0));
                        map::stream(simd, map, at, len, of_all, width, table, stride);
                    }
                    Streamed::Apart => {
                        for row in 0..rows {
                            let (at, of_row) = (at + row * stride, counted.row(row));
                            map::stream(simd, map, at, cols, of_row, cols, table, stride);
                        }
                    }
                }
            } else if R::Row::ALL {
                map::sheet(simd, map, sheet, counted.row(0), table, ahead);
            } else {
                for row in 0..rows {
                    let (at, of_row) = (at + row * stride, counted.row(row));
                    let row = Sheet { at, stride, rows: 1, cols };
                    map::sheet(simd, map, row, of_row, table, ahead);
                }
            }
        }
    }
}

/// How rows of a sheet are written past the cache.
#[derive(Clone, Copy)]
enum Streamed {
    /// As one run of memory, whose coefficients begin anew after so many elements.
    Joined { width: usize },
    /// Each by itself.
    Apart,
}
