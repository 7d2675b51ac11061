//! Sends kernels over memory: a plan's blocks of channels and chunks, on its threads.
//!
//! [`reduce`] and [`map`] are single sweeps. [`fused`] is both, block by block where the plan says so: the second sweep of a
//! block takes its chunks in reverse, beginning with what the first one left in the cache. Whichever it is, the same sums are made of the same
//! chunks and added by the same tree, so the results are the same bits.

use crate::element::{Element, Real};
use crate::kernels::map::{self as map_kernel, Map, Stores};
use crate::kernels::reduce::{self as reduce_kernel, Lanes, Sheet, TILE, Terms};
use crate::pool;
use crate::schedule::{Arrangement, BLOCK, Chunk, Plan};
use crate::simd::{Kernel, LANES, Level, Simd, fold};
use std::cell::UnsafeCell;
use std::ops::Range;

/// Two sums of each channel, and what they are about.
pub(crate) struct Sums {
    /// What was subtracted.
    pub(crate) centers: Vec<f64>,
    /// The sums of the first term.
    pub(crate) first: Vec<f64>,
    /// The sums of the second term.
    pub(crate) second: Vec<f64>,
}

/// The sums of `terms` about the centre that `center` gives each channel.
///
/// # Safety
/// The inputs of `terms` hold `plan.view`.
pub(crate) unsafe fn reduce<T: Terms>(
    plan: &Plan,
    level: Level,
    terms: T,
    center: impl Fn(usize) -> f64,
) -> Sums {
    let state = State::new(plan);
    // SAFETY: this thread is alone with `state` before and after the loop over items, each of which is a block and a chunk of
    // its own; the caller vouches for the inputs.
    unsafe {
        (0..plan.blocks()).for_each(|block| state.prepare(block, &center));
        pool::for_each(plan.workers, plan.blocks() * plan.chunks, |i| {
            state.reduce(level, terms, i % plan.blocks(), i / plan.blocks());
        });
        (0..plan.blocks()).for_each(|block| state.total(block));
    }
    state.into_sums()
}

/// The outputs of all elements, with the coefficients of the channels in `table`: all of the first coefficient, then all of
/// the second, and so on.
///
/// # Safety
/// Inputs and output of `map` hold `plan.view`; the output is one of the inputs or shares no memory with them.
pub(crate) unsafe fn map<M: Map>(
    plan: &Plan,
    level: Level,
    map: M,
    table: &[<M::Element as Element>::Real],
) {
    assert_eq!(table.len(), M::COEFFICIENTS * plan.view.channels, "coefficients of each channel");
    let table = Shared::new(table.to_vec());
    pool::for_each(plan.workers, plan.blocks() * plan.chunks, |i| {
        // SAFETY: each item is a block and a chunk of its own, and the caller vouches for inputs and output.
        unsafe { map_item(plan, level, map, &table, i % plan.blocks(), i / plan.blocks()) };
    });
}

/// Both sweeps: the sums of a channel, its coefficients by `finish(channel, centre, sums)`, its outputs.
///
/// # Safety
/// As for [`reduce`] and [`map`]. The output may be an input of both: a channel's sums are complete before the first of its
/// outputs is written.
pub(crate) unsafe fn fused<T: Terms, M: Map, const N: usize>(
    plan: &Plan,
    level: Level,
    terms: T,
    map: M,
    center: impl Fn(usize) -> f64 + Sync,
    finish: impl Fn(usize, f64, [f64; 2]) -> [<M::Element as Element>::Real; N] + Sync,
) -> Sums {
    const { assert!(N == M::COEFFICIENTS, "as many coefficients as the map reads") };
    let state = State::new(plan);
    let zero = <M::Element as Element>::Real::from_f64(0.0);
    let table = Shared::new(vec![zero; N * plan.view.channels]);
    // SAFETY (of its calls): one thread at a time handles a block, and what is touched belongs to the block's channels.
    let finish = |block: usize| unsafe {
        state.total(block);
        for c in plan.channels(block) {
            let [center, first, second] = [&state.centers, &state.first, &state.second]
                .map(|values| values.slice(c..c + 1)[0]);
            for (k, value) in finish(c, center, [first, second]).into_iter().enumerate() {
                let at = k * plan.view.channels + c;
                table.slice(at..at + 1)[0] = value;
            }
        }
    };
    let blocks = plan.blocks();
    // SAFETY: in the first branch an item is a block of its own with all its chunks; in the second a block and a chunk of its
    // own, and this thread is alone between the loops. The caller vouches for inputs and output.
    unsafe {
        if plan.fused {
            pool::for_each(plan.workers, blocks, |block| {
                state.prepare(block, &center);
                (0..plan.chunks).for_each(|chunk| state.reduce(level, terms, block, chunk));
                finish(block);
                (0..plan.chunks)
                    .rev()
                    .for_each(|chunk| map_item(plan, level, map, &table, block, chunk));
            });
        } else {
            let items = blocks * plan.chunks;
            (0..blocks).for_each(|block| state.prepare(block, &center));
            pool::for_each(plan.workers, items, |i| {
                state.reduce(level, terms, i % blocks, i / blocks)
            });
            (0..blocks).for_each(finish);
            pool::for_each(plan.workers, items, |i| {
                let i = items - 1 - i;
                map_item(plan, level, map, &table, i % blocks, i / blocks);
            });
        }
    }
    state.into_sums()
}

/// Values that threads share, each its own part of them.
struct Shared<T>(Box<[UnsafeCell<T>]>);

// SAFETY: all access goes through `slice` and `pointer`, whose callers vouch for no two threads touching the same part.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn new(values: Vec<T>) -> Self {
        Shared(values.into_iter().map(UnsafeCell::new).collect())
    }

    fn pointer(&self) -> *mut T {
        UnsafeCell::raw_get(self.0.as_ptr())
    }

    /// A part of the values.
    ///
    /// # Safety
    /// While the slice is alive nobody else touches this part.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.0.len());
        // SAFETY: within bounds, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().add(range.start), range.len()) }
    }

    fn into_vec(self) -> Vec<T> {
        self.0.into_iter().map(UnsafeCell::into_inner).collect()
    }
}

/// What a sweep of sums fills in.
struct State<'a> {
    plan: &'a Plan,
    centers: Shared<f64>,
    first: Shared<f64>,
    second: Shared<f64>,
    /// The sums of each chunk but the first, which `first` and `second` begin as: chunk by chunk, first and second sum, channel.
    partial: Shared<f64>,
}

impl<'a> State<'a> {
    fn new(plan: &'a Plan) -> Self {
        let channels = plan.view.channels;
        let zeros = |n| Shared::new(vec![0.0; n]);
        let partial = zeros(2 * channels * plan.chunks.saturating_sub(1));
        State {
            plan,
            centers: zeros(channels),
            first: zeros(channels),
            second: zeros(channels),
            partial,
        }
    }

    /// The two sums of a block in a chunk.
    ///
    /// # Safety
    /// While the slices are alive nobody else touches the sums of this block in this chunk.
    #[allow(clippy::mut_from_ref)]
    unsafe fn sums(&self, block: usize, chunk: usize) -> [&mut [f64]; 2] {
        let channels = self.plan.channels(block);
        // SAFETY: handed on to the caller.
        unsafe {
            if chunk == 0 {
                return [self.first.slice(channels.clone()), self.second.slice(channels)];
            }
            [0, 1].map(|term| {
                let base = (2 * (chunk - 1) + term) * self.plan.view.channels;
                self.partial.slice(base + channels.start..base + channels.end)
            })
        }
    }

    /// Sets the centres of a block.
    ///
    /// # Safety
    /// Nobody else touches this block.
    unsafe fn prepare(&self, block: usize, center: impl Fn(usize) -> f64) {
        let channels = self.plan.channels(block);
        // SAFETY: handed on to the caller.
        let centers = unsafe { self.centers.slice(channels.clone()) };
        centers.iter_mut().zip(channels).for_each(|(value, c)| *value = center(c));
    }

    /// Makes the sums of a block in a chunk.
    ///
    /// # Safety
    /// Nobody else touches the sums of this block in this chunk, nobody writes its centres, and the inputs of `terms` hold the
    /// plan's view.
    unsafe fn reduce<T: Terms>(&self, level: Level, terms: T, block: usize, chunk: usize) {
        let channels = self.plan.channels(block);
        // SAFETY: handed on to the caller; centres are only read here.
        let (centers, sums) = unsafe {
            let centers = self.centers.pointer().add(channels.start).cast_const();
            (std::slice::from_raw_parts(centers, channels.len()), self.sums(block, chunk))
        };
        level.run(ReduceItem {
            plan: self.plan,
            terms,
            channels,
            chunk: self.plan.chunk(chunk),
            centers,
            sums,
        });
    }

    /// Adds up the chunks of a block: neighbours first, then pairs of neighbours, and so on.
    ///
    /// # Safety
    /// Nobody else touches the sums of this block.
    unsafe fn total(&self, block: usize) {
        let mut step = 1;
        while step < self.plan.chunks {
            for chunk in (0..self.plan.chunks - step).step_by(2 * step) {
                // SAFETY: handed on to the caller; the two chunks are different ones.
                let (into, from) =
                    unsafe { (self.sums(block, chunk), self.sums(block, chunk + step)) };
                for (into, from) in into.into_iter().zip(from) {
                    into.iter_mut().zip(from).for_each(|(into, from)| *into += *from);
                }
            }
            step *= 2;
        }
    }

    fn into_sums(self) -> Sums {
        Sums {
            centers: self.centers.into_vec(),
            first: self.first.into_vec(),
            second: self.second.into_vec(),
        }
    }
}

/// How the columns of a block of a sheet belong to its channels: each sample of a row holds a run of every channel.
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

    /// Appends the value of each column, which is that of its channel.
    fn expand<T: Copy>(&self, of_channel: impl Fn(usize) -> T, into: &mut Vec<T>) {
        for _ in 0..self.samples {
            for c in 0..self.channels {
                into.resize(into.len() + self.inner, of_channel(c));
            }
        }
    }

    /// The full rows of a part of a sheet, and the row of fewer samples that may follow.
    fn sheets(&self, plan: &Plan, first_channel: usize, outer: Range<usize>) -> [Sheet; 2] {
        let stride = plan.view.offset(self.samples, 0, 0);
        let rows = outer.len() / self.samples;
        let rest = outer.len() % self.samples;
        let at = |outer| plan.view.offset(outer, first_channel, 0);
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

/// The sums of a block in a chunk.
struct ReduceItem<'a, T> {
    plan: &'a Plan,
    terms: T,
    channels: Range<usize>,
    chunk: Chunk,
    centers: &'a [f64],
    sums: [&'a mut [f64]; 2],
}

impl<T: Terms> Kernel for ReduceItem<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: `State::reduce` makes these items, and its caller vouches for the inputs.
        unsafe {
            match self.plan.arrangement {
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
        let view = &self.plan.view;
        let mut lanes = [Lanes::ZERO; BLOCK];
        for outer in self.chunk.outer {
            for (i, c) in self.channels.clone().enumerate() {
                for start in self.chunk.inner.clone().step_by(TILE) {
                    let at = view.offset(outer, c, start);
                    let len = TILE.min(self.chunk.inner.end - start);
                    // SAFETY: a part of a run of the view, which the caller vouches for.
                    unsafe {
                        reduce_kernel::run(
                            simd,
                            self.terms,
                            at,
                            len,
                            self.centers[i],
                            &mut lanes[i],
                        )
                    };
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
        let [first, second] = self.sums;
        let columns =
            Columns { samples, channels: self.channels.len(), inner: self.plan.view.inner };
        let sheets = columns.sheets(self.plan, self.channels.start, self.chunk.outer);
        let [mut centers, mut sums] = [const { Vec::new() }; 2];
        let centers = if columns.are_channels() {
            self.centers
        } else {
            columns.expand(|c| self.centers[c], &mut centers);
            &centers
        };
        // The sums of all columns, and those of the tile at hand.
        sums.resize(4 * columns.len(), 0.0);
        let (sums, tile) = sums.split_at_mut(2 * columns.len());
        let pair = |values: &mut [f64]| {
            let (a, b) = values.split_at_mut(columns.len());
            [a.as_mut_ptr(), b.as_mut_ptr()]
        };
        for sheet in sheets {
            // SAFETY: rows of the view, which the caller vouches for; a centre, two sums and two of a tile for each column.
            unsafe {
                reduce_kernel::sheet(
                    simd,
                    self.terms,
                    sheet,
                    centers.as_ptr(),
                    pair(sums),
                    pair(tile),
                );
            }
        }
        let (firsts, seconds) = sums.split_at(columns.len());
        for (totals, columns_of) in [(first, firsts), (second, seconds)] {
            totals.fill(0.0);
            for sample in columns_of.chunks_exact(columns.channels * columns.inner) {
                for (total, run) in totals.iter_mut().zip(sample.chunks_exact(columns.inner)) {
                    *total += reduce_kernel::fold_run(simd, run);
                }
            }
        }
    }
}

/// Writes the outputs of a block in a chunk.
///
/// # Safety
/// Nobody else touches the outputs of this block in this chunk; nobody writes the coefficients of its channels; inputs and
/// output of `map` hold the plan's view, and the output is one of the inputs or shares no memory with them.
unsafe fn map_item<M: Map>(
    plan: &Plan,
    level: Level,
    map: M,
    table: &Shared<<M::Element as Element>::Real>,
    block: usize,
    chunk: usize,
) {
    let (channels, chunk) = (plan.channels(block), plan.chunk(chunk));
    level.run(MapItem { plan, map, channels, chunk, table: table.pointer() });
}

/// The outputs of a block in a chunk.
struct MapItem<'a, M: Map> {
    plan: &'a Plan,
    map: M,
    channels: Range<usize>,
    chunk: Chunk,
    /// All of the first coefficient, then all of the second, and so on.
    table: *const <M::Element as Element>::Real,
}

impl<M: Map> Kernel for MapItem<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let stores = self.plan.stores;
        // SAFETY: `map_item` makes these items, and its caller vouches for inputs, output and coefficients.
        unsafe {
            match self.plan.arrangement {
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
    /// # Safety
    /// As [`map_item`].
    #[inline(always)]
    unsafe fn planes<S: Simd>(self, simd: S) {
        let view = &self.plan.view;
        for outer in self.chunk.outer {
            for c in self.channels.clone() {
                let at = view.offset(outer, c, self.chunk.inner.start);
                let len = self.chunk.inner.len();
                // SAFETY: a part of a run of the view, and the coefficients of its channel.
                unsafe {
                    let table = self.table.add(c);
                    map_kernel::run(
                        simd,
                        self.map,
                        at,
                        len,
                        table,
                        view.channels,
                        self.plan.stores,
                        self.plan.ahead,
                    );
                }
            }
        }
    }

    /// # Safety
    /// As [`map_item`].
    #[inline(always)]
    unsafe fn sheet<S: Simd>(self, simd: S, samples: usize) {
        let view = &self.plan.view;
        let columns = Columns { samples, channels: self.channels.len(), inner: view.inner };
        let sheets = columns.sheets(self.plan, self.channels.start, self.chunk.outer.clone());
        // SAFETY: `table` holds every coefficient of every channel.
        let coefficient =
            |k, c| unsafe { *self.table.add(k * view.channels + self.channels.start + c) };
        let streamed = self.plan.stores == Stores::Streamed && columns.len() == sheets[0].stride;
        // Rows that are streamed without a gap need the first columns again after the last.
        let pitch =
            if streamed { columns.len() + LANES } else { columns.len() }.next_multiple_of(LANES);
        let mut table = Vec::with_capacity(M::COEFFICIENTS * pitch);
        for k in 0..M::COEFFICIENTS {
            let start = table.len();
            columns.expand(|c| coefficient(k, c), &mut table);
            for i in columns.len()..pitch {
                table.push(table[start + i % columns.len()]);
            }
        }
        for sheet in sheets {
            // SAFETY: rows of the view, and the coefficients of each column; if streamed, rows without a gap.
            unsafe {
                if streamed {
                    let len = sheet.rows * sheet.cols;
                    map_kernel::stream(
                        simd,
                        self.map,
                        sheet.at,
                        len,
                        columns.len(),
                        table.as_ptr(),
                        pitch,
                    );
                } else {
                    map_kernel::sheet(
                        simd,
                        self.map,
                        sheet,
                        table.as_ptr(),
                        pitch,
                        self.plan.ahead,
                    );
                }
            }
        }
    }
}
