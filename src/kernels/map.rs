//! An output of each element, from inputs at the same place and per-channel coefficients.
//!
//! Streamed stores go past the cache, which saves reading every line of the output before it is
//! written. They want whole aligned lines, so what is written is peeled to the first line boundary
//! of the output.

use super::reduce::Sheet;
use super::{Fetch, pitch};
use crate::element::{Element, RealVector};
use crate::mask::{All, Counted, Share};
use crate::simd::{LANES, STREAM_ALIGNMENT, Simd, Vector};
use std::ops::Range;

/// Rows of a sheet that share a fetch of the coefficients where that pays: see [`side_by_side`].
const ROWS: usize = 4;

/// Elements of a row that is narrow: so many rows are in the first-level cache, one after the other.
const NARROW: usize = 128;

/// Bytes from which whole rows do not share where one input is read. With channels last, in memory, rows of 256 to 960 `f32`
/// side by side took 0.8 to 0.95 of what they take one by one, rows of 1024 as long, of 2048 1.1; in the cache 0.7 to 0.9.
/// Rows of 256 to 768 `f16` took 0.7 in memory.
const WIDE: usize = 4 << 10;

/// Rows of exactly so many bytes do not share past the cache, though shorter and longer ones do: side by side they took 2 to
/// 3 copies where x and y lay alike, for some pairs of arrays, and 0.8 one by one. Rows of 128, 256, 384, 640 and 768 `f32`
/// took at most one, wherever they were.
const CLASHING: usize = 2 << 10;

/// Elements up to which whole rows share where more than one input is read, through the cache and past it. Rows of 192
/// and 256 took 0.85 to 0.95 in the cache and 1.05 in memory, of 512 0.9 to 1.1 and 1.05.
const WIDEST_OF_MORE: [usize; 2] = [256, NARROW];

/// Bytes of a sheet that is walked strip by strip: all of it stays in the first-level cache.
const AT_HAND: usize = 8 << 10;

/// The expression of an output.
pub(crate) trait Map: Copy + Sync {
    /// What inputs and outputs are made of.
    type Element: Element;
    /// The coefficients of a channel as vectors.
    type Coefficients<S: Simd>: Copy;
    /// How many coefficients a channel has.
    const COEFFICIENTS: usize;
    /// Whether the code of the expression is so long that one copy of it has to do for all loops.
    const LONG: bool = false;
    /// Whether elements that do not count have outputs of their own.
    const MASKED: bool = false;

    /// Arrays that are read.
    fn inputs(self) -> usize;

    /// Whether the output is one of them.
    fn in_place(self) -> bool;

    /// The output's memory.
    fn output(self) -> *mut Self::Element;

    /// Asks for the inputs at offset `at`, which may lie beyond their end.
    fn prefetch<S: Simd>(self, simd: S, at: usize);

    /// The coefficients at the beginning of `table`.
    ///
    /// # Safety
    /// `table` holds what `fetch` reads of each coefficient.
    unsafe fn coefficients<S: Simd>(
        simd: S,
        table: TableOf<Self>,
        fetch: Fetch,
    ) -> Self::Coefficients<S>;

    /// The output of the `n` elements at offset `at`.
    ///
    /// # Safety
    /// The inputs hold `n <= LANES` elements at `at`.
    unsafe fn value<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        coefficients: &Self::Coefficients<S>,
    ) -> RealVector<S, Self::Element>;

    /// The output of `n` elements that do not count.
    ///
    /// # Safety
    /// As [`Map::value`].
    #[inline(always)]
    unsafe fn uncounted<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        coefficients: &Self::Coefficients<S>,
    ) -> RealVector<S, Self::Element> {
        // SAFETY: handed on to the caller.
        unsafe { self.value(simd, at, n, coefficients) }
    }
}

/// The output of the `n` elements at offset `at`, the `i`th and following ones of `counted`.
///
/// # Safety
/// As [`Map::value`].
#[inline(always)]
unsafe fn value<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    at: usize,
    n: usize,
    coefficients: &M::Coefficients<S>,
    (counted, i): (C, usize),
) -> RealVector<S, M::Element> {
    // SAFETY: handed on to the caller.
    unsafe {
        if C::ALL {
            return map.value(simd, at, n, coefficients);
        }
        value_where(simd, map, at, n, coefficients, counted.bits(i))
    }
}

/// The output of the `n` elements at offset `at`, of which those count whose bit is set.
///
/// # Safety
/// As [`Map::value`].
#[inline(always)]
unsafe fn value_where<S: Simd, M: Map>(
    simd: S,
    map: M,
    at: usize,
    n: usize,
    coefficients: &M::Coefficients<S>,
    bits: u16,
) -> RealVector<S, M::Element> {
    // SAFETY: handed on to the caller.
    unsafe {
        match Share::of(bits, n) {
            Share::All => map.value(simd, at, n, coefficients),
            Share::None => map.uncounted(simd, at, n, coefficients),
            Share::Some(bits) => RealVector::<S, M::Element>::select(
                bits,
                0,
                map.value(simd, at, n, coefficients),
                map.uncounted(simd, at, n, coefficients),
            ),
        }
    }
}

/// Coefficients in memory: all of the first one, then all of the second, and so on, [`pitch`] apart.
#[derive(Clone, Copy)]
pub(crate) struct Table<R> {
    /// The first coefficient of the first channel or column.
    pub(crate) first: *const R,
    /// From a coefficient to the next of the same channel or column.
    pub(crate) pitch: usize,
}

/// A table for a map.
pub(crate) type TableOf<M> = Table<<<M as Map>::Element as Element>::Real>;

// SAFETY: the pointer is only read by kernels, whose callers vouch for the memory and for nobody
// writing what they read.
unsafe impl<R: Sync> Sync for Table<R> {}

impl<R> Table<R> {
    /// The table at `first` of so many channels or columns.
    pub(crate) fn new(first: *const R, columns: usize) -> Self {
        Table { first, pitch: pitch(columns) }
    }

    /// The table from channel or column `i` on.
    #[inline(always)]
    pub(crate) fn from(self, i: usize) -> Self {
        Table { first: self.first.wrapping_add(i), ..self }
    }
}

/// How outputs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    /// Through the cache.
    Ordinary,
    /// Past it.
    Streamed,
}

/// Writes the outputs of the `len` elements at `at`, vector by vector, through the cache. One loop for
/// expressions of which there should be one copy.
///
/// # Safety
/// Inputs and output hold the elements; the output is one of the inputs or shares no memory with
/// them; `table` holds the coefficients of the run's channel, or else of `len` columns.
#[inline(always)]
pub(crate) unsafe fn plain<S: Simd, M: Map>(
    simd: S,
    map: M,
    at: usize,
    len: usize,
    table: TableOf<M>,
    of_run: bool,
) {
    for i in (0..len).step_by(LANES) {
        let n = LANES.min(len - i);
        // SAFETY: the offsets are within the elements, which the caller vouches for.
        unsafe {
            let coefficients = if of_run {
                M::coefficients(simd, table, Fetch::Run)
            } else {
                M::coefficients(simd, table.from(i), Fetch::Columns(n))
            };
            let value = map.value(simd, at + i, n, &coefficients);
            M::Element::store(simd, map.output().add(at + i), n, value);
        }
    }
}

/// Writes the outputs of the run of `len` elements at `at`, given which of them count, through the cache.
///
/// # Safety
/// Inputs and output hold the run; the output is one of the inputs or shares no memory with them;
/// `table` holds the coefficients of the run's channel.
#[inline(always)]
pub(crate) unsafe fn run<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    at: usize,
    len: usize,
    counted: C,
    table: TableOf<M>,
    ahead: usize,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        let coefficients = M::coefficients(simd, table, Fetch::Run);
        if len > LANES {
            return through::<S, M, C>(simd, map, at, len, counted, &coefficients, ahead);
        }
        let value = value(simd, map, at, len, &coefficients, (counted, 0));
        M::Element::store(simd, map.output().add(at), len, value);
    }
}

/// Writes the outputs of runs of `len >= LANES` elements each that lie one behind the other from `at` on, given
/// which elements of each count, streamed or not, line by line of the output. The vector that holds the end of a run and the
/// beginning of the next is made of both. Streamed each by itself they would share a line, which would go through the
/// cache, and what is streamed behind it would wait for it to be read. Through the cache, one by one and each with vectors of
/// its own, planes of 7 x 7 and 9 x 9 took 1.1 to 1.4 of their time, of 6 x 6 1.0 (AVX-512) and 1.2 (AVX2), of 14 x 14 1.05
/// (Emerald Rapids).
///
/// # Safety
/// Inputs and output hold the runs; the output is one of the inputs or shares no memory with them;
/// `table` holds the coefficients of the channel of each run; `len` is no less than `LANES`, and `head` is [`head`] of these
/// outputs.
#[inline(always)]
pub(crate) unsafe fn joined_runs<S: Simd, M: Map, C: Counted, const STREAMED: bool>(
    simd: S,
    map: M,
    mut at: usize,
    [head, runs, len]: [usize; 3],
    counted: C,
    table: TableOf<M>,
    ahead: usize,
) {
    // SAFETY: the offsets are within the runs, which the caller vouches for; a streamed store begins at a
    // boundary.
    unsafe {
        let mut coefficients = M::coefficients(simd, table, Fetch::Run);
        if head > 0 {
            let value = value(simd, map, at, head, &coefficients, (counted, 0));
            M::Element::store(simd, map.output().add(at), head, value);
        }
        // What is left of the run.
        let mut rest = len - head;
        at += head;
        for following in 1..=runs {
            let whole = rest / LANES * LANES;
            let (from, i) = (at + rest - len, len - rest);
            let of_run = (counted, &coefficients);
            vectors_of_run::<S, M, C, STREAMED>(simd, map, from, i..i + whole, of_run, ahead);
            (at, rest) = (at + whole, rest - whole);
            if following == runs {
                break;
            }
            let next = M::coefficients(simd, table.from(following), Fetch::Run);
            if rest > 0 {
                let first = value(simd, map, at, LANES, &coefficients, (counted, len - rest));
                let second = if C::ALL {
                    map.value(simd, at, LANES, &next)
                } else {
                    value_where(simd, map, at, LANES, &next, counted.bits(0) << rest)
                };
                let both = RealVector::<S, M::Element>::select((1 << rest) - 1, 0, first, second);
                store::<S, M, STREAMED>(simd, map, at, both);
                if ahead > 0 {
                    map.prefetch(simd, at + ahead);
                }
                (at, rest) = (at + LANES, rest + len - LANES);
            } else {
                rest = len;
            }
            coefficients = next;
        }
        if rest > 0 {
            let value = value(simd, map, at, rest, &coefficients, (counted, len - rest));
            M::Element::store(simd, map.output().add(at), rest, value);
        }
    }
}

/// [`run`] of more than a vector. The last vector begins where it is whole: its first elements
/// are written twice, which takes a fraction of a part of a vector's time.
///
/// # Safety
/// As [`run`], of `len > LANES` elements.
#[inline(always)]
unsafe fn through<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    at: usize,
    len: usize,
    counted: C,
    coefficients: &M::Coefficients<S>,
    ahead: usize,
) {
    let [before, last] = [(len - 1) / LANES * LANES - LANES, len - LANES];
    // SAFETY: handed on to the caller. Where the output is an input, the last two vectors are both read before one
    // of them is written.
    unsafe {
        let of_run = (counted, coefficients);
        vectors_of_run::<S, M, C, false>(simd, map, at, 0..before, of_run, ahead);
        let one = value(simd, map, at + before, LANES, coefficients, (counted, before));
        let other = value(simd, map, at + last, LANES, coefficients, (counted, last));
        M::Element::store(simd, map.output().add(at + before), LANES, one);
        M::Element::store(simd, map.output().add(at + last), LANES, other);
    }
}

/// The vectors of a run from one of its elements to another, streamed or not: two in a round, which by
/// itself takes half as many instructions as a vector.
///
/// # Safety
/// As [`run`]; what is streamed begins at a [`boundary`].
#[inline(always)]
unsafe fn vectors_of_run<S: Simd, M: Map, C: Counted, const STREAMED: bool>(
    simd: S,
    map: M,
    at: usize,
    Range { start: mut i, end }: Range<usize>,
    of_run: (C, &M::Coefficients<S>),
    ahead: usize,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        while i + LANES < end {
            for i in [i, i + LANES] {
                vector_of_run::<S, M, C, STREAMED>(simd, map, [at, i], of_run, ahead);
            }
            i += 2 * LANES;
        }
        if i < end {
            vector_of_run::<S, M, C, STREAMED>(simd, map, [at, i], of_run, ahead);
        }
    }
}

/// The vector of the run at `at` that begins with element `i`.
///
/// # Safety
/// As [`vectors_of_run`].
#[inline(always)]
unsafe fn vector_of_run<S: Simd, M: Map, C: Counted, const STREAMED: bool>(
    simd: S,
    map: M,
    [at, i]: [usize; 2],
    (counted, coefficients): (C, &M::Coefficients<S>),
    ahead: usize,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        let value = value(simd, map, at + i, LANES, coefficients, (counted, i));
        store::<S, M, STREAMED>(simd, map, at + i, value);
        if ahead > 0 {
            map.prefetch(simd, at + i + ahead);
        }
    }
}

/// Writes the vector of outputs at offset `at`, streamed or not.
///
/// # Safety
/// The output holds it; what is streamed begins at a [`boundary`].
#[inline(always)]
unsafe fn store<S: Simd, M: Map, const STREAMED: bool>(
    simd: S,
    map: M,
    at: usize,
    value: RealVector<S, M::Element>,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        let output = map.output().add(at);
        if STREAMED {
            M::Element::stream(simd, output, value);
        } else {
            M::Element::store(simd, output, LANES, value);
        }
    }
}

/// Bytes of a line, or of a vector if those are fewer. A vector that begins at a multiple of them is in no more lines than it
/// has to be, and none is further than a vector away.
const fn boundary<E>() -> usize {
    let bytes = LANES * size_of::<E>();
    if bytes < STREAM_ALIGNMENT { bytes } else { STREAM_ALIGNMENT }
}

/// Elements of an output before the first [`boundary`]; `None` where there is none.
#[inline(always)]
pub(crate) fn head<E>(output: *mut E, len: usize) -> Option<usize> {
    let bytes = output.addr().wrapping_neg() % boundary::<E>();
    let head = bytes / size_of::<E>();
    (bytes.is_multiple_of(size_of::<E>()) && head < len).then_some(head)
}

/// How many rows of a sheet are met side by side through the cache, where there are as many: one, where a [`boundary`] is not
/// at the same columns of all rows. On Emerald Rapids vectors that are each in two lines take two to three times as long where
/// they are written in turns with other rows, and no longer than others one behind the other: rows of 330 and 1000 `f32`
/// took 0.55 and 0.75 of their time side by side, planes of 5 x 5 half of their time in pairs.
#[inline(always)]
pub(crate) fn side_by_side<M: Map>(map: M, sheet: &Sheet) -> usize {
    let whole = sheet.cols == sheet.stride;
    let in_step = (sheet.stride * size_of::<M::Element>()).is_multiple_of(boundary::<M::Element>());
    let share = share_fetches(map, sheet.stride, Stores::Ordinary);
    if in_step && share && (whole || sheet.stride <= NARROW) {
        ROWS
    } else if in_step && !whole {
        2
    } else {
        1
    }
}

/// Whether [`ROWS`] rows, `stride` elements apart, share fetches of the coefficients.
#[inline(always)]
fn share_fetches<M: Map>(map: M, stride: usize, stores: Stores) -> bool {
    let [through, past] = WIDEST_OF_MORE;
    match (size_of::<M::Element>(), map.inputs()) {
        // A few vectors of `f64` fill all registers there are: rows of 128 in memory took 1.6 and, with two inputs,
        // twice as long.
        (8, _) => false,
        (size, 1) => {
            stride * size < WIDE && (stores, stride * size) != (Stores::Streamed, CLASHING)
        }
        _ => stride <= if stores == Stores::Ordinary { through } else { past },
    }
}

/// Writes the outputs of a sheet through the cache, given which elements of each of its rows count. Rows that share a
/// fetch of the coefficients, parts of rows in pairs, are all read before one is written, as a load waits for an earlier
/// store whose address agrees in its low bits. Whole rows that do not share go one by one: then memory is met in its order,
/// unless all of it is at hand.
///
/// # Safety
/// Inputs and output hold the sheet; the output is one of the inputs or shares no memory with them;
/// `table` holds the coefficients of each column. `ahead` is how far ahead inputs are asked for.
#[inline(always)]
pub(crate) unsafe fn sheet<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    sheet: Sheet,
    counted: C,
    table: TableOf<M>,
    ahead: usize,
) {
    if sheet.rows >= ROWS && sheet.rows * sheet.stride * size_of::<M::Element>() <= AT_HAND {
        // SAFETY: handed on to the caller.
        return unsafe { strips(simd, map, sheet, counted, table) };
    }
    let most = side_by_side(map, &sheet);
    let first = head(map.output().wrapping_add(sheet.at), sheet.cols).unwrap_or(0);
    let mut row = 0;
    while row < sheet.rows {
        let at = sheet.at + row * sheet.stride;
        let rows = if row + most <= sheet.rows { most } else { 1 };
        // Rows that are met side by side begin with what stands before a line of the output: written to addresses that
        // are not multiples of a line, as NumPy's arrays are not, rows of 64 to 320 took twice as long.
        let first = if rows > 1 { first } else { 0 };
        let end = first + (sheet.cols - first) / LANES * LANES;
        let (range, stride) = (first..end, sheet.stride);
        let ahead = (sheet.cols == stride, ahead);
        // SAFETY: rows and columns are within the sheet, which the caller vouches for.
        unsafe {
            if first > 0 {
                columns(simd, map, [at, stride, rows, first], (counted, 0), table);
            }
            match rows {
                ROWS => vectors(simd, map, [at, stride, ROWS], range, counted, table, ahead),
                2 => vectors(simd, map, [at, stride, 2], range, counted, table, ahead),
                _ => vectors(simd, map, [at, stride, 1], range, counted, table, ahead),
            }
            if end < sheet.cols {
                let part = [at + end, stride, rows, sheet.cols - end];
                columns(simd, map, part, (counted, end), table.from(end));
            }
        }
        row += rows;
    }
}

/// A small [`sheet`]: down each strip of columns, whose coefficients stay in registers.
///
/// # Safety
/// As [`sheet`].
#[inline(always)]
unsafe fn strips<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    sheet: Sheet,
    counted: C,
    table: TableOf<M>,
) {
    let whole = sheet.cols / LANES * LANES;
    // SAFETY: handed on to the caller.
    unsafe {
        for col in (0..whole).step_by(LANES) {
            strip(simd, map, sheet, [col, LANES], counted, table);
        }
        if whole < sheet.cols {
            strip(simd, map, sheet, [whole, sheet.cols - whole], counted, table);
        }
    }
}

/// All rows of the `n` columns from `col` on.
///
/// # Safety
/// As [`sheet`]; `n` is no more than `LANES`.
#[inline(always)]
unsafe fn strip<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    sheet: Sheet,
    [col, n]: [usize; 2],
    counted: C,
    table: TableOf<M>,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        let coefficients = M::coefficients(simd, table.from(col), Fetch::Columns(n));
        let mut at = sheet.at + col;
        for _ in 0..sheet.rows {
            let value = value(simd, map, at, n, &coefficients, (counted, col));
            M::Element::store(simd, map.output().add(at), n, value);
            at += sheet.stride;
        }
    }
}

/// Some columns, a multiple of `LANES`, of some rows: a loop for each number of rows, which
/// is a constant.
///
/// # Safety
/// As [`sheet`], of these elements.
#[inline(always)]
unsafe fn vectors<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    [at, stride, rows]: [usize; 3],
    Range { start, end }: Range<usize>,
    counted: C,
    table: TableOf<M>,
    (whole, ahead): (bool, usize),
) {
    // Whole rows are asked for in the order of memory.
    let (pace, step) = if whole { (rows, LANES) } else { (1, stride) };
    let mut col = start;
    while col < end {
        // SAFETY: handed on to the caller.
        unsafe {
            let part = [at + col, stride, rows, LANES];
            columns(simd, map, part, (counted, col), table.from(col));
        }
        if ahead > 0 {
            for row in 0..rows {
                map.prefetch(simd, at + ahead + pace * col + row * step);
            }
        }
        col += LANES;
    }
}

/// `n` columns of up to [`ROWS`] rows.
///
/// # Safety
/// As [`sheet`], of these elements.
#[inline(always)]
unsafe fn columns<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    [at, stride, rows, n]: [usize; 4],
    counted: (C, usize),
    table: TableOf<M>,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        let output = map.output();
        let coefficients = M::coefficients(simd, table, Fetch::Columns(n));
        let first = value(simd, map, at, n, &coefficients, counted);
        let mut values = [first; ROWS];
        for (row, of_row) in values.iter_mut().enumerate().take(rows).skip(1) {
            *of_row = value(simd, map, at + row * stride, n, &coefficients, counted);
        }
        for (row, value) in values.into_iter().enumerate().take(rows) {
            M::Element::store(simd, output.add(at + row * stride), n, value);
        }
    }
}

/// How many unused elements stand before the coefficients of rows that are streamed from offset `at` on, so that those of
/// the first vector behind the output's head begin a line.
pub(crate) fn lead<M: Map>(map: M, at: usize) -> usize {
    let head = head(map.output().wrapping_add(at), usize::MAX).unwrap_or(0);
    (LANES - head) % LANES
}

/// Writes the outputs of `len` elements at `at`, rows of `cols` columns without a gap, past the
/// cache, several rows at a time where lines and rows are in step. `table` is as for [`stream`].
///
/// # Safety
/// As [`stream`].
#[inline(always)]
pub(crate) unsafe fn stream_rows<S: Simd, M: Map>(
    simd: S,
    map: M,
    mut at: usize,
    mut len: usize,
    cols: usize,
    mut table: TableOf<M>,
) {
    // SAFETY: the offsets are within the elements, which the caller vouches for. Columns are counted
    // from the first line boundary, so the table is read up to `head < LANES` columns beyond the
    // first `cols`; without a head it is not read beyond them.
    unsafe {
        let head = head(map.output().add(at), len);
        let share = share_fetches(map, cols, Stores::Streamed);
        if let Some(head) = head.filter(|_| share && cols.is_multiple_of(LANES)) {
            if head > 0 {
                let coefficients = M::coefficients(simd, table, Fetch::Columns(head));
                let value = map.value(simd, at, head, &coefficients);
                M::Element::store(simd, map.output().add(at), head, value);
                (at, len, table) = (at + head, len - head, table.from(head));
            }
            while len >= ROWS * cols {
                for col in (0..cols).step_by(LANES) {
                    let coefficients =
                        M::coefficients(simd, table.from(col), Fetch::Columns(LANES));
                    let first = map.value(simd, at + col, LANES, &coefficients);
                    let mut values = [first; ROWS];
                    for (row, value) in values.iter_mut().enumerate().skip(1) {
                        *value = map.value(simd, at + row * cols + col, LANES, &coefficients);
                    }
                    for (row, value) in values.into_iter().enumerate() {
                        // The next rows, in the order of memory.
                        map.prefetch(simd, at + ROWS * (cols + col) + row * LANES);
                        M::Element::stream(simd, map.output().add(at + row * cols + col), value);
                    }
                }
                (at, len) = (at + ROWS * cols, len - ROWS * cols);
            }
        }
        stream(simd, map, at, len, All, cols, table, 0);
    }
}

/// Writes the outputs of `len` elements at `at`, of which those of `counted` count, rows of `cols`
/// columns without a gap, past the cache. Vectors go on over the ends of rows, so if there is more than one row `table` begins anew
/// after its last column: it holds `cols + LANES` columns.
///
/// # Safety
/// Inputs and output hold the elements; the output is one of the inputs or shares no memory with
/// them; `table` holds the coefficients of each column and, if `len` is more than `cols`, of the
/// next `LANES`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn stream<S: Simd, M: Map, C: Counted>(
    simd: S,
    map: M,
    at: usize,
    len: usize,
    counted: C,
    cols: usize,
    table: TableOf<M>,
    ahead: usize,
) {
    // SAFETY: the offsets are within the elements, and `col` within the columns, which the caller
    // vouches for.
    unsafe {
        let output = map.output().add(at);
        let head = head(output, len);
        let (mut i, mut col) = (0, 0);
        if let Some(n) = head.filter(|&head| head > 0) {
            let coefficients = M::coefficients(simd, table, Fetch::Columns(n));
            let value = value(simd, map, at, n, &coefficients, (counted, 0));
            M::Element::store(simd, output, n, value);
            (i, col) = (n, n % cols);
        }
        while i + LANES <= len {
            // Vectors as far as the last column, or element.
            let end = i + (cols - col).div_ceil(LANES).min((len - i) / LANES) * LANES;
            while i < end {
                let coefficients = M::coefficients(simd, table.from(col), Fetch::Columns(LANES));
                let value = value(simd, map, at + i, LANES, &coefficients, (counted, i));
                if ahead > 0 {
                    map.prefetch(simd, at + i + ahead);
                }
                if head.is_some() {
                    M::Element::stream(simd, output.add(i), value);
                } else {
                    M::Element::store(simd, output.add(i), LANES, value);
                }
                (i, col) = (i + LANES, col + LANES);
            }
            if col >= cols {
                col %= cols;
            }
        }
        if i < len {
            let n = len - i;
            let coefficients = M::coefficients(simd, table.from(col), Fetch::Columns(n));
            let value = value(simd, map, at + i, n, &coefficients, (counted, i));
            M::Element::store(simd, output.add(i), n, value);
        }
    }
}
