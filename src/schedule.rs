//! A view into pieces of work.
//!
//! Two kinds of choice are made here, and only here:
//!
//! - **What is part of the result**, from the shape alone: whether memory is walked as planes or as
//!   a sheet, and the chunks whose sums are made separately and then added by one tree
//!   ([`Partition`]).
//! - **What is not**: how many channels go through the cache together, whether the second sweep
//!   follows the first channel block by channel block or after all of it, how many threads, which
//!   stores ([`Plan`]). From the shape, the processor's caches and the threads.
//!
//! # Planes and sheets
//! Long runs of one channel are walked run by run (*planes*). Where runs are short, a block of
//! memory that holds all channels becomes the row of a *sheet*, whose columns are pseudo-channels:
//! with channels last each column is a channel; with small planes each position of each plane is a
//! column; with few channels several samples stand in one row. Column `j` belongs to channel `(j /
//! inner) % channels`, and columns of one channel share their pivot, so their sums simply add.
//! What is written is no part of any sum and may be walked otherwise ([`Plan::map_arrangement`]).

use crate::caches::Caches;
use crate::execution::Execution;
use crate::kernels::map::{Map, Stores};
use crate::kernels::reduce::{TILE, TILE_ROWS};
use crate::simd::{LANES, Level, STREAM_ALIGNMENT};
use crate::view::View;
use std::ops::Range;

/// Runs shorter than this are columns of a sheet, where there are enough rows, unless they are whole vectors. A forward pass over
/// planes of 14 x 14 took 2.7 copies as a sheet and 2.2 run by run, over planes of 7 x 7 2.8 and 4.2.
const SHORT_RUN: usize = 128;

/// Runs of whole vectors are columns of a sheet where they are shorter than this: they have no part of a vector to load. Over planes of 64, 80, 96 and 112 elements
/// in the last cache forward took 0.75 to 0.85 of its time as a sheet, backward 0.6 to 0.9.
const SHORT_WHOLE_RUN: usize = 64;

/// Runs shorter than this end before the processor has found out that they are runs.
const LONG_RUN: usize = 2048;

/// Elements of a run that is worth a fetch of coefficients where outputs go through the cache. Second sweeps run by run, of
/// their time as a sheet, in the last cache:
///
/// | plane | forward | backward |
/// |---|---|---|
/// | 5 x 5 | 1.05 | 0.9 |
/// | 6 x 6, 7 x 7 | 0.9 | 0.8 |
/// | 8 x 8, 11 x 11 | 0.7 | 0.6 |
const MAP_RUN: usize = 2 * LANES;

/// The same where they go past it: that of backward took 0.85 over planes of 7 x 7 and 0.75 over 8 x 8 and 11 x 11; over 6 x
/// 6 forward and backward as a whole took 1.1.
const MAP_RUN_STREAMED: usize = 3 * LANES;

/// Rows below which a sheet does not pay: each row must share the cost of folding the columns.
const FEW_ROWS: usize = 4;

/// Elements of a chunk, more or less: small enough to share out, large enough for its sums to cost
/// nothing.
const CHUNK: usize = 1 << 16;

/// Rows of a sheet that a chunk has at least, since its sums take 16 bytes a column.
const CHUNK_ROWS: usize = 256;

/// Columns up to which several samples stand in one row, so that rows are whole vectors.
const WIDE_ROW: usize = 1024;

/// Columns that a row has at least, where samples can be put together.
const NARROW_ROW: usize = 64;

/// Bytes of a block of planes that lie together, at least: shorter pieces are met one by one, each at the
/// price of a page that is not at hand. Backward over 800 planes of 14 x 14 took 1.8 of an addition channel
/// by channel and 1.3 like this; pieces of twice the length gave nothing more.
const PIECE: usize = 3 << 10;

/// Bytes of such a piece from which it pays to walk what the last cache holds block by block. In pieces of
/// 3 to 8 KB backward over 32 x 32 x 28 x 28 took 1.2 of its two sweeps, one after the other (Zen 3); in
/// pieces of 12 to 50 KB, which a second cache of 2 MiB allows, 0.8 (Emerald Rapids).
const NEAR_PIECE: usize = 12 << 10;

/// Bytes of such a piece from which it pays to walk short runs block by block where the last cache is slow. Sweep by sweep,
/// forward over 256 and 400 planes of 14 x 14, in pieces of 3 and 2 KB, took 0.8 and 0.65 of its time, over 200 of 28 x 28,
/// in pieces of 3 KB, 0.8, and backward over 400 of 14 x 14 0.7; backward over 64 planes of 28 x 28 and 35 x 35, in pieces of
/// 6 and 5 KB, took 1.3 (Emerald Rapids).
const SLOW_PIECE: usize = 4 << 10;

/// Channels of a block of planes: their lanes live on the stack. Backward over planes of 14 x 14 took 5 to 15 % longer
/// with half as many, which lie in pieces half as long.
pub(crate) const BLOCK: usize = 32;

/// Columns of a block of a sheet: sums, centres and coefficients of a block stay in the first-level
/// cache.
const BLOCK_COLUMNS: usize = 1024;

/// Bytes of a block's part of a row of short planes, where that is more than [`BLOCK_COLUMNS`]: planes of 11 x 11 `f16` took
/// 0.85 of their time like this. With channels last, rows of 4096 `f16` took 1.25.
const BLOCK_ROW: usize = 4 << 10;

/// Columns of a row that is summed whole where nothing has to stay in the cache, so that memory is met in its order:
/// backward sums of 512 to 6272 rows of 2048 columns in two halves took 1.05 to 1.35 of that.
const WHOLE_ROW: usize = 2048;

/// Columns of a block of a sheet that is only mapped: its coefficients stay in the cache.
const TABLE_COLUMNS: usize = 2048;

/// Columns of a strip that is walked over all rows before the next: shorter pieces of rows waste
/// what memory fetches. 784 rows of 512 columns took 4.5 copies in strips of 80 and 2.7 in whole rows.
const STRIP_COLUMNS: usize = 256;

/// Bytes that are worth one more thread.
const GRAIN: usize = 256 << 10;

/// How memory is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrangement {
    /// Run by run of one channel.
    Planes,
    /// Row by row, this many samples to a row.
    Sheet {
        /// Blocks of all channels in one row.
        samples: usize,
    },
}

/// A part of the elements of every channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Which of the outer blocks.
    pub(crate) outer: Range<usize>,
    /// Which elements of each run.
    pub(crate) inner: Range<usize>,
}

/// What memory is cut into. Where sums are made it is part of the result, and made of the shape
/// alone: of memory that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// The memory.
    pub(crate) view: View,
    /// How it is walked.
    pub(crate) arrangement: Arrangement,
    /// How many outer blocks a chunk has.
    outer: usize,
    /// How many elements of a run.
    inner: usize,
    /// Chunks.
    pub(crate) chunks: usize,
}

impl Partition {
    fn new(view: View, arrangement: Arrangement, outer: usize, inner: usize) -> Partition {
        let chunks = pieces(view.outer, outer) * pieces(view.inner, inner);
        Partition { view, arrangement, outer, inner, chunks }
    }

    /// Into chunks whose sums are made separately.
    fn for_sums(view: View) -> Partition {
        let arrangement = arrangement(&view);
        let (outer, inner) = match arrangement {
            Arrangement::Planes => ((CHUNK / view.inner).max(1), view.inner.min(CHUNK)),
            Arrangement::Sheet { samples } => {
                let rows = CHUNK / (view.channels * view.inner * samples) / TILE_ROWS * TILE_ROWS;
                (rows.max(CHUNK_ROWS) * samples, view.inner)
            }
        };
        Partition::new(view, arrangement, outer, inner)
    }

    /// Channels of a block, at most, if so many threads are to have some blocks each.
    fn share(&self, workers: usize) -> usize {
        let channels = self.view.channels;
        if workers > 1 { channels.div_ceil(4 * workers) } else { channels }
    }

    /// Chunk `i`.
    pub(crate) fn chunk(&self, i: usize) -> Chunk {
        let (row, part) = divided(i, pieces(self.view.inner, self.inner));
        let (outer, inner) = (row * self.outer, part * self.inner);
        Chunk {
            outer: outer..(outer + self.outer).min(self.view.outer),
            inner: inner..(inner + self.inner).min(self.view.inner),
        }
    }
}

/// How one call goes about it, which is no part of the result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// What memory is cut into.
    pub(crate) partition: Partition,
    /// The instruction set.
    pub(crate) level: Level,
    /// Bytes of an element.
    pub(crate) itemsize: usize,
    /// Channels of a block.
    pub(crate) block: usize,
    /// How many channels fewer the first block has.
    pub(crate) short: usize,
    /// Whether the second sweep of a block follows its first.
    pub(crate) fused: bool,
    /// Threads.
    pub(crate) workers: usize,
    /// How outputs are written.
    pub(crate) stores: Stores,
    /// Whether a sweep that meets rows side by side asks for its inputs ahead of time.
    pub(crate) fetch: bool,
    /// Elements from what the second sweep of a block reads to what it asks for: about the same place in the next block,
    /// whose first sweep will read it. 0 where nothing is asked for.
    pub(crate) ahead: usize,
}

impl Plan {
    /// The plan for sweeps that read `inputs` arrays of `itemsize` bytes an element.
    pub(crate) fn new(view: View, itemsize: usize, inputs: usize, execution: Execution) -> Plan {
        let Execution { level, threads, caches } = execution;
        let partition = Partition::for_sums(view);
        let bytes = view.len() * itemsize;
        let workers = threads.min(1 + bytes * inputs / GRAIN);
        let channel_bytes = (view.count() * itemsize * inputs).max(1);
        let near = bytes < caches.last / 4;
        let fitting = caches.l2 / 2 / channel_bytes;
        let shares = partition.share(workers);
        let (block, fused) = match partition.arrangement {
            Arrangement::Planes => {
                // What is larger is gone before its second sweep, sooner in short runs, which are in more
                // pages. Backward over 1500 planes of 28 x 28 took 1.6 of an addition channel by channel,
                // 1.1 sweep by sweep.
                let slow = caches.last_is_slow() && view.inner < LONG_RUN;
                let room = match view.inner {
                    LONG_RUN.. => caches.last / 4,
                    _ if slow => caches.l2 / 2,
                    _ => caches.last / 8,
                };
                let piece = PIECE.div_ceil(view.inner * itemsize).min(room / channel_bytes);
                let most = shares.min(BLOCK);
                let least = piece.min(most);
                let block = whole_lines(fitting.min(most).max(least), &view, itemsize).max(least);
                // What the last cache holds is read twice in the order of memory, where the second cache
                // holds short pieces only.
                let short = block * view.inner * itemsize < NEAR_PIECE;
                let held = fitting.min(BLOCK);
                let slow =
                    slow && held < view.channels && held * view.inner * itemsize < SLOW_PIECE;
                let fused = block > 0 && !slow && !(near && far(bytes * inputs, caches) && short);
                (if fused { block } else { most }, fused)
            }
            Arrangement::Sheet { samples: 1 } => {
                let least = STRIP_COLUMNS.div_ceil(view.inner);
                let columns = match view.inner {
                    1 => BLOCK_COLUMNS,
                    _ => BLOCK_COLUMNS.max(BLOCK_ROW / itemsize),
                };
                let most = (columns / view.inner).max(least);
                let fits = fitting >= least;
                let strip = match view.inner {
                    _ if fits => fitting.clamp(least, most),
                    1 => WHOLE_ROW,
                    _ => most,
                };
                let strip = if fits { strip.min(shares.max(least)) } else { strip };
                (whole_lines(strip, &view, itemsize), fits)
            }
            Arrangement::Sheet { .. } => (view.channels, true),
        };
        let block = block.clamp(1, view.channels);
        let fused = fused && pieces(view.channels, block) >= workers;
        // What is in the cache need not be asked for.
        let helps = fused && !near && (caches.overlap || view.inner < LONG_RUN);
        Plan {
            partition,
            level,
            itemsize,
            block,
            short: 0,
            fused,
            workers,
            stores: stores(bytes, caches),
            fetch: far(bytes * inputs, caches),
            ahead: if helps { block * view.inner } else { 0 },
        }
    }

    /// The plan for the first sweep, where that is all: nothing has to stay in the cache. The statistics of
    /// 800 planes of 14 x 14 took 0.7 of a copy channel by channel and 0.4 like this.
    pub(crate) fn alone(self) -> Plan {
        match self.partition.arrangement {
            Arrangement::Planes => {
                Plan { block: self.partition.share(self.workers).min(BLOCK), short: 0, ..self }
            }
            Arrangement::Sheet { .. } => self,
        }
    }

    /// The plan for a sweep without sums that reads `inputs` arrays, which goes through memory in its order.
    pub(crate) fn elementwise(
        view: View,
        itemsize: usize,
        inputs: usize,
        execution: Execution,
    ) -> Plan {
        let Execution { level, threads, caches } = execution;
        let bytes = view.len() * itemsize;
        let workers = threads.min(1 + bytes * inputs / GRAIN);
        let stores = stores(bytes, caches);
        let (partition, block) = in_order(view, itemsize, stores);
        let fetch = far(bytes * inputs, caches);
        Plan {
            partition,
            level,
            itemsize,
            block,
            short: 0,
            fused: false,
            workers,
            stores,
            fetch,
            ahead: 0,
        }
    }

    /// The same plan for the outputs of `map`. What is written over an input was just read and is in the cache; to write
    /// past it there takes longer, not shorter (1.05 of a copy against 0.8).
    pub(crate) fn writing<M: Map>(self, map: M) -> Plan {
        if map.in_place() {
            Plan { stores: Stores::Ordinary, ..self }
        } else {
            self.beginning_at(map.output().addr())
        }
    }

    /// The same plan for outputs that begin at an address. Where they are streamed block by block, blocks of whole lines
    /// begin at lines, if need be after a shorter one, for a line that two blocks write goes through the cache. Written to 16
    /// bytes behind a line, forward over planes of 7 x 7 and strips of rows of 4096 took 1.25 of their time without this,
    /// backward 1.15 (Emerald Rapids).
    fn beginning_at(self, address: usize) -> Plan {
        let channel = self.partition.view.inner * self.itemsize;
        let at_line = |bytes: usize| bytes.is_multiple_of(STREAM_ALIGNMENT);
        let several = self.stores == Stores::Streamed && self.fused && self.blocks() > 1;
        let first = if several && at_line(self.block * channel) {
            (0..self.block).find(|channels| at_line(address + channels * channel))
        } else {
            None
        };
        Plan { short: first.map_or(0, |first| (self.block - first) % self.block), ..self }
    }

    /// The plan for the second sweep of a pair that is not fused, which goes through memory in its order.
    pub(crate) fn after(&self) -> Plan {
        let (partition, block) = in_order(self.partition.view, self.itemsize, self.stores);
        Plan { partition, block, short: 0, fused: false, ahead: 0, ..*self }
    }

    /// How outputs are met, which may be otherwise than sums.
    pub(crate) fn map_arrangement(&self) -> Arrangement {
        map_arrangement(self.partition.view, self.stores, self.partition.arrangement)
    }

    /// Blocks of channels.
    pub(crate) fn blocks(&self) -> usize {
        pieces(self.partition.view.channels + self.short, self.block)
    }

    /// Blocks in chunks.
    pub(crate) fn items(&self) -> usize {
        self.blocks() * self.partition.chunks
    }

    /// The chunk and the block of item `i`.
    pub(crate) fn item(&self, i: usize) -> (usize, usize) {
        divided(i, self.blocks())
    }

    /// The channels of block `i`.
    pub(crate) fn channels(&self, i: usize) -> Range<usize> {
        debug_assert!(self.short < self.block, "the first block has channels");
        let end = ((i + 1) * self.block - self.short).min(self.partition.view.channels);
        (i * self.block).saturating_sub(self.short)..end
    }
}

/// What memory is cut into where it is met in its order, and channels of a block.
fn in_order(view: View, itemsize: usize, stores: Stores) -> (Partition, usize) {
    let width = view.channels * view.inner;
    let arrangement = map_arrangement(view, stores, arrangement(&view));
    let (partition, block) = match arrangement {
        // A table of coefficients for each column stays in the cache for so many columns.
        Arrangement::Sheet { samples: 1 } if view.inner > 1 => {
            let strip = (TABLE_COLUMNS / view.inner).max(1);
            (Partition::for_sums(view), whole_lines(strip, &view, itemsize))
        }
        Arrangement::Sheet { samples } => {
            let block = view.channels.min(CHUNK);
            let rows = (CHUNK / (block * samples)).max(1);
            (Partition::new(view, arrangement, rows * samples, view.inner), block)
        }
        Arrangement::Planes => {
            let (outer, inner) = ((CHUNK / width).max(1), view.inner.min(CHUNK));
            (Partition::new(view, arrangement, outer, inner), (CHUNK / view.inner).max(1))
        }
    };
    (partition, block.clamp(1, view.channels))
}

/// How many pieces of `size` make up `len`. Small calls are one piece, and divisions take a while.
#[inline]
fn pieces(len: usize, size: usize) -> usize {
    if len <= size { usize::from(len > 0) } else { len.div_ceil(size) }
}

/// So many channels, or a few less where there are enough, so that in samples that begin at lines all blocks do: no vector is in
/// two lines, and what is streamed leaves none half written. Strips of 20 planes of 7 x 7, which are 61.25 lines, took up to a
/// quarter longer than strips of 16, forward and backward; of 16 planes of `f16`, which are 24.5, half as long again as of
/// 32.
fn whole_lines(channels: usize, view: &View, itemsize: usize) -> usize {
    let elements = STREAM_ALIGNMENT / itemsize;
    let unit = elements >> view.inner.trailing_zeros().min(elements.trailing_zeros());
    if channels > unit && channels < view.channels { channels / unit * unit } else { channels }
}

/// Quotient and remainder, without a division where the one or the other is plain to see.
#[inline]
pub(crate) fn divided(number: usize, by: usize) -> (usize, usize) {
    match (number, by) {
        (0, _) => (0, 0),
        (_, 1) => (number, 0),
        _ => (number / by, number % by),
    }
}

/// How outputs of so many bytes are written: past the cache if little of them would be found there
/// again, beside the inputs and what others keep in it. A forward pass from 6 MB to 6 MB took 1.3 to 1.8 of a
/// copy through a cache of 32 MB and 1.0 to 1.4 past it, a backward pass 2.5 to 3.0 of an addition and 1.1 to
/// 1.3; with half of that the cache was better by a quarter.
fn stores(bytes: usize, caches: Caches) -> Stores {
    if bytes >= caches.last / 8 { Stores::Streamed } else { Stores::Ordinary }
}

/// Whether inputs of so many bytes are to be asked for ahead of time. In a cache of a core's own they are
/// at hand, and asking costs a tenth of a sweep.
fn far(bytes: usize, caches: Caches) -> bool {
    bytes > caches.l2
}

/// How outputs are met where sums are met like `sums`: runs that are worth a fetch of coefficients of their own are
/// walked as such, wherever their sums come from.
fn map_arrangement(view: View, stores: Stores, sums: Arrangement) -> Arrangement {
    let least = if stores == Stores::Ordinary { MAP_RUN } else { MAP_RUN_STREAMED };
    if view.inner >= least { Arrangement::Planes } else { sums }
}

/// How `view` is walked.
fn arrangement(view: &View) -> Arrangement {
    let short = if view.inner.is_multiple_of(LANES) { SHORT_WHOLE_RUN } else { SHORT_RUN };
    if view.inner >= short || view.outer < FEW_ROWS && view.inner > 1 {
        return Arrangement::Planes;
    }
    let width = view.channels * view.inner;
    // So many samples as make whole vectors.
    let unit = LANES >> width.trailing_zeros().min(LANES.trailing_zeros());
    let samples =
        if unit * width <= WIDE_ROW { unit * (NARROW_ROW / (unit * width)).max(1) } else { 1 };
    // With a row or two there is nothing to sum down a column.
    Arrangement::Sheet { samples: if view.outer / samples < FEW_ROWS { 1 } else { samples } }
}

const _: () = assert!(LANES.is_power_of_two());
const _: () = assert!(CHUNK.is_multiple_of(TILE) && CHUNK_ROWS.is_multiple_of(TILE_ROWS));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;
    use proptest::prelude::*;

    fn on(threads: usize, caches: Caches) -> Execution {
        Execution { level: Level::Scalar, threads, caches }
    }

    const SMALL: Caches = Caches { l2: 256 << 10, last: 2 << 20, overlap: false };
    const LARGE: Caches = Caches { l2: 4 << 20, last: 32 << 20, overlap: true };

    fn view() -> impl Strategy<Value = View> {
        (
            0_usize..3000,
            1_usize..300,
            prop_oneof![Just(1_usize), 1_usize..400, 60_000_usize..200_000],
        )
            .prop_map(|(outer, channels, inner)| View { outer, channels, inner })
    }

    proptest! {
        #[test]
        fn chunks_and_blocks_cover_everything_once(
            view in view(),
            threads in 1_usize..9,
            sums in any::<bool>(),
            address in 0_usize..16,
        ) {
            let plan = if sums {
                Plan::new(view, 4, 1, on(threads, SMALL)).beginning_at(4 * address)
            } else {
                Plan::elementwise(view, 4, 1, on(threads, LARGE))
            };
            let mut met = 0;
            let mut last = None;
            for i in 0..plan.partition.chunks {
                let chunk = plan.partition.chunk(i);
                prop_assert!(!chunk.outer.is_empty() && !chunk.inner.is_empty());
                let start = (chunk.outer.start, chunk.inner.start);
                prop_assert!(last < Some(start), "chunks are in the order of memory");
                last = Some(start);
                met += chunk.outer.len() * chunk.inner.len();
            }
            prop_assert_eq!(met, view.count());
            let channels: Vec<usize> = (0..plan.blocks()).flat_map(|i| plan.channels(i)).collect();
            prop_assert!(channels.iter().copied().eq(0..view.channels));
            let pairs = (0..plan.partition.chunks)
                .flat_map(|chunk| (0..plan.blocks()).map(move |block| (chunk, block)));
            prop_assert!((0..plan.items()).map(|i| plan.item(i)).eq(pairs), "chunk by chunk");
        }

        #[test]
        fn what_is_part_of_the_result_depends_on_the_shape_alone(view in view(), threads in 1_usize..9) {
            let one = Plan::new(view, 4, 1, on(1, SMALL));
            let other = Plan::new(view, 8, 2, on(threads, LARGE));
            prop_assert_eq!(one.partition, other.partition);
        }
    }

    const MIDDLE: Caches = Caches { l2: 512 << 10, last: 32 << 20, overlap: false };

    #[test]
    fn blocks_of_planes_are_as_wide_as_pieces_ask_and_caches_allow() {
        let plan = |[outer, channels, inner]: [usize; 3], inputs| {
            Plan::new(View { outer, channels, inner }, 4, inputs, on(1, MIDDLE))
        };
        let fits = plan([32, 512, 196], 1);
        assert!(
            fits.fused && fits.block == 8,
            "whole lines of the 10 that half of the second cache holds"
        );
        let short = plan([800, 64, 196], 1);
        assert!(short.fused && short.block * 196 * 4 >= PIECE, "runs of 784 bytes, put together");
        let long = plan([200, 64, 784], 1);
        assert!(long.fused && long.block == 1, "runs of 3136 bytes lie together as they are");
        let larger = plan([1800, 64, 784], 1);
        assert!(!larger.fused && larger.block == BLOCK, "5.6 MB a channel are gone by then");
        assert!(plan([32, 64, 50_176], 1).fused, "6.4 MB in long runs are not");
        let slow = Caches { l2: 2 << 20, ..MIDDLE };
        let fused = |[outer, inner]: [usize; 2], inputs| {
            Plan::new(View { outer, channels: 64, inner }, 4, inputs, on(1, slow)).fused
        };
        assert!(fused([64, 784], 2) && !fused([100, 784], 2), "pieces of 6 and 3 KB");
        assert!(fused([200, 196], 1) && !fused([256, 196], 1), "pieces of 4.7 and 3.9 KB");
        assert!(!fused([800, 196], 1) && fused([32, 50_176], 1), "long runs may be larger");
        assert!(!plan([1000, 64, 784], 2).fused, "two inputs take twice the room");
        let alone = short.alone();
        assert!(alone.block == BLOCK && alone.partition == short.partition);
    }

    #[test]
    fn what_the_last_cache_holds_is_walked_in_blocks_of_long_pieces_only() {
        let view = View { outer: 32, channels: 128, inner: 196 };
        let plan = |inputs, l2| Plan::new(view, 4, inputs, on(1, Caches { l2, ..MIDDLE }));
        let short = plan(1, 512 << 10);
        assert!(!short.fused && short.block == BLOCK, "pieces of 8 KB");
        assert!(plan(1, 2 << 20).fused, "pieces of 12.5 KB");
        assert!(plan(1, 4 << 20).fused, "all of it in the second cache");
    }

    #[test]
    fn blocks_begin_at_lines() {
        let block = |[outer, channels, inner]: [usize; 3], itemsize, inputs| {
            let view = View { outer, channels, inner };
            Plan::new(view, itemsize, inputs, on(1, MIDDLE)).block
        };
        assert_eq!(block([32, 512, 49], 4, 1), 16, "16 planes of 49 are 49 lines");
        assert_eq!(block([32, 512, 49], 2, 1), 32, "or 32 of 16 bits");
        assert_eq!(block([32, 12, 49], 4, 1), 12, "all there are");
        assert_eq!(block([32, 512, 36], 4, 1), 28, "4 planes of 36 are 9");
        assert_eq!(block([32, 512, 121], 4, 1), 8, "16 planes of 121 would be too wide");
        assert_eq!(block([32, 1024, 196], 4, 1), 8, "4 planes of 196 are 49");
        assert_eq!(block([32, 1024, 196], 2, 1), 16, "or 8 of 16 bits");
        assert_eq!(block([800, 64, 232], 2, 1), 7, "no less than a piece, whatever it begins with");
        assert_eq!(block([3136, 2048, 1], 4, 2), WHOLE_ROW, "rows that are read twice, whole");
        assert_eq!(block([3136, 5000, 1], 4, 2), WHOLE_ROW);
        assert_eq!(block([64, 2048, 1], 4, 1), BLOCK_COLUMNS, "rows that stay in the second cache");
    }

    #[test]
    fn blocks_begin_at_lines_of_the_output_wherever_it_begins() {
        let bounds = |[outer, channels, inner]: [usize; 3], address| {
            let view = View { outer, channels, inner };
            let plan = Plan::new(view, 4, 1, on(1, MIDDLE)).beginning_at(address);
            [plan.channels(0).end, plan.channels(1).end, plan.blocks()]
        };
        let short = [32, 2048, 49];
        assert_eq!(bounds(short, 4096), [16, 32, 128]);
        assert_eq!(
            bounds(short, 4096 + 16),
            [12, 28, 129],
            "12 planes of 49 and 16 bytes are 37 lines"
        );
        assert_eq!(bounds(short, 4096 + 4), [15, 31, 129]);
        assert_eq!(bounds(short, 4096 + 2), [16, 32, 128], "no plane begins at a line");
        assert_eq!(
            bounds([32, 1024, 196], 16),
            [3, 11, 129],
            "3 planes of 196 and 16 bytes are 37"
        );
        assert_eq!(bounds([32, 512, 49], 16), [16, 32, 32], "through the cache");
        assert_eq!(bounds([100, 256, 784], 16)[0], 1, "no plane begins at a line");
    }

    #[test]
    fn short_runs_are_mapped_as_runs() {
        let plan =
            |outer, inner| Plan::new(View { outer, channels: 512, inner }, 4, 1, on(1, MIDDLE));
        let sheet = Arrangement::Sheet { samples: 1 };
        assert_eq!(plan(16, 49).partition.arrangement, sheet);
        assert_eq!(plan(16, 49).map_arrangement(), Arrangement::Planes);
        assert_eq!(plan(16, 25).map_arrangement(), sheet, "too short");
        assert_eq!(plan(64, 49).partition.arrangement, sheet);
        assert_eq!(plan(64, 49).map_arrangement(), Arrangement::Planes, "past the cache");
        assert_eq!(plan(64, 36).map_arrangement(), sheet, "too short for that");
    }

    #[test]
    fn short_runs_are_summed_as_runs_where_they_are_whole_vectors() {
        let of = |inner| arrangement(&View { outer: 16, channels: 384, inner });
        let sheet = Arrangement::Sheet { samples: 1 };
        assert_eq!([of(48), of(63), of(121)], [sheet; 3]);
        assert_eq!([of(64), of(112), of(196)], [Arrangement::Planes; 3]);
    }

    #[test]
    fn long_runs_are_asked_for_where_that_helps() {
        let plan = |inner, overlap| {
            let view = View { outer: 32, channels: 256, inner };
            Plan::new(view, 4, 1, on(1, Caches { overlap, ..MIDDLE }))
        };
        assert!(plan(784, false).ahead > 0 && plan(784, true).ahead > 0);
        assert!(plan(3136, false).ahead == 0 && plan(3136, true).ahead == 3136);
        assert!(plan(196, true).ahead == 0, "in the cache");
    }

    #[test]
    fn small_work_stays_on_its_thread() {
        let view = View { outer: 32, channels: 64, inner: 1 };
        assert_eq!(Plan::new(view, 4, 1, on(8, LARGE)).workers, 1);
    }

    #[test]
    fn one_large_channel_is_shared_out() {
        let view = View { outer: 1, channels: 1, inner: 10_000_000 };
        let plan = Plan::new(view, 4, 1, on(8, LARGE));
        assert!(!plan.fused && plan.workers == 8 && plan.partition.chunks > 100);
    }
}
