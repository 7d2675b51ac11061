//! Sends kernels over memory: a plan's blocks of channels and chunks, on its threads.
//!
//! [`reduce`] and [`map`] are single sweeps. [`fused`] is both: block by block where the plan says
//! so, else one after the other over all of memory. The second sweep goes backwards, chunk by chunk,
//! beginning with what the first one left in the cache. Whichever it is, the same sums are made of
//! the same chunks and added by the same tree, so the results are the same bits.

use crate::aligned::Aligned;
use crate::element::{Element, Real};
use crate::execution::Execution;
use crate::items::{CenterItem, Finish, FinishItem, MapItem, ReduceItem};
use crate::kernels::map::{Map, Table, TableOf};
use crate::kernels::pitch;
use crate::kernels::reduce::Terms;
use crate::mask::{Batch, Mask};
use crate::pool;
use crate::schedule::Plan;
use crate::simd::Level;
use std::cell::UnsafeCell;
use std::ops::Range;

/// Two sums of each channel, and what they are about.
pub(crate) struct Sums {
    centers: Aligned<f64>,
    /// All first and then all second sums, and behind them what they were added up from.
    sums: Aligned<f64>,
}

impl Sums {
    /// What was subtracted in each channel.
    pub(crate) fn centers(&self) -> &[f64] {
        &self.centers
    }

    /// The sums of the first term.
    pub(crate) fn first(&self) -> &[f64] {
        &self.sums[..self.centers.len()]
    }

    /// The sums of the second term.
    pub(crate) fn second(&self) -> &[f64] {
        &self.sums[self.centers.len()..][..self.centers.len()]
    }
}

/// The sums of `terms` of each channel, of the positions that count.
///
/// # Safety
/// The inputs of `terms` hold the plan's view, whose positions are those of the mask.
pub(crate) unsafe fn reduce<T: Terms>(plan: &Plan, mask: Option<&Mask>, terms: T) -> Sums {
    let state = State::new(plan, mask);
    // SAFETY: this thread is alone with `state` before and after the loop over items, each of which
    // is a block and a chunk of its own; the caller vouches for the inputs.
    unsafe {
        (0..plan.blocks()).for_each(|block| state.prepare(terms, block));
        pool::for_each(plan.workers, plan.items(), |i| {
            let (chunk, block) = plan.item(i);
            state.reduce(terms, block, chunk);
        });
        (0..plan.blocks()).for_each(|block| state.total(terms, block));
    }
    state.into_sums()
}

/// The outputs of all elements of a batch that is not empty, with the coefficients of the channels in `table`: all of the
/// first coefficient, then all of the second, and so on, [`pitch`] apart.
///
/// # Safety
/// Inputs and output of `map` hold the batch; the output is one of the inputs or shares no memory
/// with them.
pub(crate) unsafe fn map<M: Map>(
    batch: Batch<'_>,
    execution: Execution,
    map: M,
    table: &[<M::Element as Element>::Real],
) {
    let Batch { view, mask } = batch;
    let expected = M::COEFFICIENTS * pitch(view.channels);
    assert_eq!(table.len(), expected, "coefficients of each channel");
    let plan =
        Plan::elementwise(view, size_of::<M::Element>(), map.inputs(), execution).writing(map);
    let (plan, table) = (&plan, Table::new(table.as_ptr(), view.channels));
    pool::for_each(plan.workers, plan.items(), |i| {
        let (chunk, block) = plan.item(i);
        // SAFETY: each item is a block and a chunk of its own, and the caller vouches for inputs
        // and output.
        unsafe { map_item(plan, mask, map, table, [block, chunk]) };
    });
}

/// The coefficients that `finish` makes of the sums of all channels, or of what stands for them, as a
/// table for [`map`].
pub(crate) fn finished<V: Element, R: Real, F: Finish<R, N>, const N: usize>(
    level: Level,
    finish: F,
    centers: &[V],
    sums: [&[V]; 2],
) -> Aligned<R> {
    let channels = centers.len();
    let mut table = Aligned::filled(R::from_f64(0.0), N * pitch(channels));
    let mut rest = &mut *table;
    let into: [_; N] = std::array::from_fn(|_| {
        let (of_channels, after) = std::mem::take(&mut rest).split_at_mut(pitch(channels));
        rest = after;
        &mut of_channels[..channels]
    });
    // SAFETY: this kind of item is safe to run.
    unsafe { level.run(FinishItem { finish, first_channel: 0, centers, sums, into }) };
    table
}

/// Both sweeps: the sums of a channel, its coefficients by `finish`, its outputs. `before` is called
/// for each block and chunk of the plan that it is given before their sums are made, by whoever makes them: it may
/// write what `terms` reads there.
///
/// # Safety
/// As for [`reduce`] and [`map`]. The output may be an input of both: a channel's sums are complete
/// before the first of its outputs is written.
pub(crate) unsafe fn fused<T: Terms, M: Map, F, const N: usize>(
    plan: &Plan,
    mask: Option<&Mask>,
    before: impl Fn(&Plan, [usize; 2]) + Sync,
    (terms, map): (T, M),
    finish: F,
) -> Sums
where
    F: Finish<<M::Element as Element>::Real, N>,
{
    const { assert!(N == M::COEFFICIENTS, "as many coefficients as the map reads") };
    let plan = &plan.writing(map);
    let state = State::new(plan, mask);
    let zero = <M::Element as Element>::Real::from_f64(0.0);
    let coefficients = Shared::filled(zero, N * pitch(plan.partition.view.channels));
    let table = Table::new(coefficients.pointer(), plan.partition.view.channels);
    let finish = |block: usize| {
        let channels = plan.channels(block);
        // SAFETY: one thread at a time handles a block, and what is touched here belongs to the
        // block's channels.
        unsafe {
            state.total(terms, block);
            let centers = state.centers.slice(channels.clone());
            let into: [_; N] = std::array::from_fn(|k| {
                let base = k * table.pitch;
                coefficients.slice(base + channels.start..base + channels.end)
            });
            let [first, second] = state.sums(block, 0);
            let sums = [&*first, &*second];
            plan.level.run(FinishItem {
                finish,
                first_channel: channels.start,
                centers,
                sums,
                into,
            });
        }
    };
    let blocks = plan.blocks();
    // SAFETY: in the first branch an item is a block of its own with all its chunks; in the second
    // a block and a chunk of its own, and this thread is alone between the loops. The caller
    // vouches for inputs and output.
    unsafe {
        if plan.fused {
            pool::for_each(plan.workers, blocks, |block| {
                state.prepare(terms, block);
                (0..plan.partition.chunks).for_each(|chunk| {
                    before(plan, [block, chunk]);
                    state.reduce(terms, block, chunk);
                });
                finish(block);
                (0..plan.partition.chunks)
                    .rev()
                    .for_each(|chunk| map_item(plan, mask, map, table, [block, chunk]));
            });
        } else {
            let (items, after) = (plan.items(), plan.after());
            (0..blocks).for_each(|block| state.prepare(terms, block));
            pool::for_each(plan.workers, items, |i| {
                let (chunk, block) = plan.item(i);
                before(plan, [block, chunk]);
                state.reduce(terms, block, chunk);
            });
            (0..blocks).for_each(finish);
            let items = after.items();
            pool::for_each(plan.workers, items, |i| {
                let (chunk, block) = after.item(items - 1 - i);
                map_item(&after, mask, map, table, [block, chunk]);
            });
        }
    }
    state.into_sums()
}

/// Values that threads share, each its own part of them.
struct Shared<T>(Aligned<UnsafeCell<T>>);

// SAFETY: all access goes through `slice` and `pointer`, whose callers vouch for no two threads
// touching the same part.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn filled(value: T, len: usize) -> Self {
        Shared(Aligned::filled(value, len).map(UnsafeCell::new))
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

    fn into_inner(self) -> Aligned<T> {
        self.0.map(UnsafeCell::into_inner)
    }
}

/// What a sweep of sums fills in.
struct State<'a> {
    plan: &'a Plan,
    mask: Option<&'a Mask>,
    centers: Shared<f64>,
    /// Chunk by chunk all first and then all second sums. Those of the first chunk become those of all.
    sums: Shared<f64>,
}

impl<'a> State<'a> {
    fn new(plan: &'a Plan, mask: Option<&'a Mask>) -> Self {
        let channels = plan.partition.view.channels;
        let zeros = |vectors| Shared::filled(0.0, vectors * channels);
        State { plan, mask, centers: zeros(1), sums: zeros(2 * plan.partition.chunks) }
    }

    /// The two sums of a block in a chunk.
    ///
    /// # Safety
    /// While the slices are alive nobody else touches the sums of this block in this chunk.
    #[allow(clippy::mut_from_ref)]
    unsafe fn sums(&self, block: usize, chunk: usize) -> [&mut [f64]; 2] {
        let channels = self.plan.channels(block);
        [0, 1].map(|term| {
            let base = (2 * chunk + term) * self.plan.partition.view.channels;
            // SAFETY: handed on to the caller.
            unsafe { self.sums.slice(base + channels.start..base + channels.end) }
        })
    }

    /// Sets the centres of a block.
    ///
    /// # Safety
    /// Nobody else touches this block, and the inputs of `terms` hold the plan's view.
    unsafe fn prepare<T: Terms>(&self, terms: T, block: usize) {
        let channels = self.plan.channels(block);
        // SAFETY: handed on to the caller.
        unsafe {
            let centers = self.centers.slice(channels.clone());
            self.plan.level.run(CenterItem {
                view: &self.plan.partition.view,
                terms,
                channels,
                centers,
            });
        }
    }

    /// Makes the sums of a block in a chunk.
    ///
    /// # Safety
    /// Nobody else touches the sums of this block in this chunk, nobody writes its centres, and the
    /// inputs of `terms` hold the plan's view.
    unsafe fn reduce<T: Terms>(&self, terms: T, block: usize, chunk: usize) {
        let channels = self.plan.channels(block);
        let chunk_of = self.plan.partition.chunk(chunk);
        // SAFETY: handed on to the caller; centres are only read here.
        unsafe {
            let centers = self.centers.pointer().add(channels.start).cast_const();
            self.plan.level.run(ReduceItem {
                plan: self.plan,
                terms,
                mask: self.mask,
                centers: std::slice::from_raw_parts(centers, channels.len()),
                sums: self.sums(block, chunk),
                channels,
                chunk: chunk_of,
            });
        }
    }

    /// Adds up the chunks of a block, which are made again where `terms` says so.
    ///
    /// # Safety
    /// Nobody else touches this block, and the inputs of `terms` hold the plan's view.
    unsafe fn total<T: Terms>(&self, terms: T, block: usize) {
        let channels = self.plan.channels(block);
        // SAFETY: handed on to the caller.
        unsafe {
            self.add_up(block);
            let [values, products] = self.sums(block, 0);
            let centers = self.centers.slice(channels.clone());
            if let Some(terms) = terms.again(channels, [values, products], centers) {
                for chunk in 0..self.plan.partition.chunks {
                    self.reduce(terms, block, chunk);
                }
                self.add_up(block);
            }
        }
    }

    /// Adds up the chunks of a block: neighbours first, then pairs of neighbours, and so on.
    ///
    /// # Safety
    /// Nobody else touches the sums of this block.
    unsafe fn add_up(&self, block: usize) {
        let mut step = 1;
        while step < self.plan.partition.chunks {
            for chunk in (0..self.plan.partition.chunks - step).step_by(2 * step) {
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
        Sums { centers: self.centers.into_inner(), sums: self.sums.into_inner() }
    }
}

/// Writes the outputs of a block in a chunk, with the coefficients in `table`.
///
/// # Safety
/// Nobody else touches the outputs of this block in this chunk; nobody writes the coefficients of
/// its channels; inputs and output of `map` hold the plan's view, and the output is one of the
/// inputs or shares no memory with them.
pub(crate) unsafe fn map_item<M: Map>(
    plan: &Plan,
    mask: Option<&Mask>,
    map: M,
    table: TableOf<M>,
    [block, chunk]: [usize; 2],
) {
    let (channels, chunk) = (plan.channels(block), plan.partition.chunk(chunk));
    // SAFETY: handed on to the caller.
    unsafe { plan.level.run(MapItem { plan, mask, map, channels, chunk, table }) };
}
