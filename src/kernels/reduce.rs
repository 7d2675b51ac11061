//! Two float64 sums of each channel in one sweep.
//!
//! How a sum is built up is part of the result, so every number below is a constant:
//!
//! 1. A run is cut into tiles of [`TILE`] elements. Element `i` of a tile goes to lane `i % 16`;
//!    four vectors are added to each other before they are added to the tile's lanes, which start
//!    at zero and are added to those of the channel.
//! 2. A sheet is cut into tiles of [`TILE_ROWS`] rows. Four rows of a column are added to each
//!    other before they are added to the tile's sum, which starts at zero and is added to that of
//!    the column.
//!
//! Chains of additions are short because rounding is not always fair: squares of numbers on a grid,
//! which is what `f32` data is, leave remainders that round down more often than up, and the error
//! of a chain grows with its length instead of the root of it.
//!
//! A tail is a partial load: its missing lanes are zero in every input and in the centre, and
//! contribute zero. So does an element that does not count (see [`crate::mask`]), in its place: sixteen
//! of them in a row are not even read.
//!
//! # Centres of zero
//! The arithmetic of these sums fits into the time that memory takes, but into none that a cache
//! takes: on registers of four `f64` sixteen elements cost four conversions, four subtractions, four
//! multiplications and eight additions, all but the multiplications on the same two units. About a
//! centre of zero there is nothing to subtract, and the product of two `f32` is exact in `f64`, so
//! multiplication and addition may be one instruction without a change of a bit: 4.8 cycles of Zen 3
//! for 64 bytes instead of 8.6, 10 being what memory takes. So channels whose mean is not far from
//! zero have a centre of zero; see [`Terms::centers`].

use super::pitch;
use crate::aligned::Aligned;
use crate::element;
use crate::mask::{Counted, Rows, Share};
use crate::simd::{LANES, Simd, Vector, fold};
use crate::view::View;
use std::ops::Range;

/// Elements of a run that are summed before they are added to the channel's lanes.
pub(crate) const TILE: usize = 1024;

/// Rows of a sheet that are summed before they are added to the columns' sums.
pub(crate) const TILE_ROWS: usize = 64;

/// Rows of a sheet that are met side by side: those that are added to each other.
const ROWS: usize = 4;

/// Elements that inputs are asked for ahead, or the rows of a sheet that hold as many. The arithmetic
/// of a sum takes most of the time that memory takes, and left alone the processor overlaps the two
/// only in part: statistics of planes of 112 x 112 took 0.62 of a copy without this and 0.47 with.
/// From 512 to 4096 there is no difference.
pub(crate) const AHEAD: usize = 1024;

/// Two sums, a lane of each for every lane of a vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Lanes(pub(crate) [[f64; LANES]; 2]);

impl Lanes {
    /// Nothing summed yet.
    pub(crate) const ZERO: Lanes = Lanes([[0.0; LANES]; 2]);
}

/// What is summed: two terms of each element, a value and its product with a factor.
pub(crate) trait Terms: Copy + Sync {
    /// Whether value times factor is exact in `f64` where the centre is zero.
    const EXACT: bool;

    /// Writes what is to be subtracted in some channels: zero where sums about zero are as good.
    ///
    /// # Safety
    /// The inputs hold `view`, which is not empty.
    unsafe fn centers<S: Simd>(
        self,
        simd: S,
        view: &View,
        channels: Range<usize>,
        centers: &mut [f64],
    );

    /// Whether the sums of some channels say that all must be made again: then of what, and about what
    /// `centers`, which this has written.
    fn again(self, channels: Range<usize>, sums: [&[f64]; 2], centers: &mut [f64]) -> Option<Self> {
        let _ = (channels, sums, centers);
        None
    }

    /// Asks for the inputs at offset `at`, which may lie beyond their end.
    fn prefetch<S: Simd>(self, simd: S, at: usize);

    /// Value and factor of the `n` elements at offset `at`, given the centre of their channel, or
    /// `None` for zero. Lanes from `n` on are zero if those of `center` are. The bits say which elements
    /// count, `None` that all do; the others add nothing.
    ///
    /// # Safety
    /// The inputs hold `n <= LANES` elements at `at`.
    unsafe fn factors<S: Simd>(
        self,
        simd: S,
        at: usize,
        n: usize,
        center: Option<S::F64>,
        counted: Option<u16>,
    ) -> [S::F64; 2];

    /// Whether the terms of the `n` elements at offset `at`, of which none counts, are known to be zero.
    ///
    /// # Safety
    /// As [`Terms::factors`].
    unsafe fn adds_nothing<S: Simd>(self, simd: S, at: usize, n: usize) -> bool;
}

/// Whether there is something to subtract in any of the channels with these `centers`.
#[inline(always)]
pub(crate) fn off_center<T: Terms>(centers: &[f64]) -> bool {
    // NaN is a centre, too. All are looked at, which is done in vectors.
    #[allow(clippy::float_cmp)]
    let zero = centers.iter().fold(true, |zero, &center| zero & (center == 0.0));
    !(T::EXACT && zero)
}

/// Adds the terms of the run of `len <= TILE` elements at `at` to the lanes of its channel; the run
/// at `next`, which comes soon, is asked for meanwhile.
///
/// # Safety
/// The inputs hold the run.
#[inline(always)]
pub(crate) unsafe fn run<S: Simd, T: Terms, C: Counted>(
    simd: S,
    terms: T,
    [at, next]: [usize; 2],
    len: usize,
    counted: C,
    center: f64,
    lanes: &mut Lanes,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        if T::EXACT && !off_center::<T>(&[center]) {
            run_about(simd, terms, [at, next], len, counted, None, lanes);
        } else {
            run_about(simd, terms, [at, next], len, counted, Some(center), lanes);
        }
    }
}

/// [`run`], compiled for a centre and for none.
///
/// # Safety
/// As [`run`].
#[inline(always)]
#[allow(clippy::manual_map)] // a closure is not compiled for the instruction set
unsafe fn run_about<S: Simd, T: Terms, C: Counted>(
    simd: S,
    terms: T,
    [at, next]: [usize; 2],
    len: usize,
    counted: C,
    center: Option<f64>,
    lanes: &mut Lanes,
) {
    // SAFETY: the offsets are within the run, which the caller vouches for; `simd` is the token for
    // its vectors; `lanes` and `centers` are arrays of LANES.
    unsafe {
        let mut sums = [S::F64::splat(0.0); 2];
        let full = match center {
            Some(center) => Some(S::F64::splat(center)),
            None => None,
        };
        let mut i = 0;
        while i + 4 * LANES <= len {
            let four = [0, 1, 2, 3].map(|k| at + i + k * LANES);
            let bits = counted.word(i);
            if bits == 0 && nothing::<S, T, C>(simd, terms, four) {
                i += 4 * LANES;
                continue;
            }
            if bits != 0 {
                let soon = i + AHEAD.min(len);
                let soon = if soon < len { at + soon } else { next + (soon - len) };
                for k in 0..4 {
                    terms.prefetch(simd, soon + k * LANES);
                }
            }
            sums = add(sums, shares_of_four::<S, T, C>(simd, terms, four, LANES, full, bits));
            i += 4 * LANES;
        }
        while i + LANES <= len {
            let bits = counted.bits(i);
            sums = share::<S, T, C>(simd, terms, at + i, LANES, full, bits, sums);
            i += LANES;
        }
        if i < len {
            let partial = match center {
                Some(center) => Some(S::F64::load_partial([center; LANES].as_ptr(), len - i)),
                None => None,
            };
            let bits = counted.bits(i);
            sums = share::<S, T, C>(simd, terms, at + i, len - i, partial, bits, sums);
        }
        for (lanes, sum) in lanes.0.iter_mut().zip(sums) {
            (S::F64::load(lanes.as_ptr()) + sum).store(lanes.as_mut_ptr());
        }
    }
}

/// Both sums of two pairs.
#[inline(always)]
fn add<V: Vector>([a, b]: [V; 2], [c, d]: [V; 2]) -> [V; 2] {
    [a + c, b + d]
}

/// The terms of a vector of `n` elements.
///
/// # Safety
/// As [`Terms::factors`].
#[inline(always)]
unsafe fn one<S: Simd, T: Terms>(
    simd: S,
    terms: T,
    at: usize,
    n: usize,
    center: Option<S::F64>,
) -> [S::F64; 2] {
    // SAFETY: handed on to the caller.
    let [value, factor] = unsafe { terms.factors(simd, at, n, center, None) };
    [value, value * factor]
}

/// The terms of four vectors of `n` elements each, added up one after the other.
///
/// # Safety
/// As [`Terms::factors`], at each of the offsets.
#[inline(always)]
unsafe fn four<S: Simd, T: Terms>(
    simd: S,
    terms: T,
    [a, b, c, d]: [usize; 4],
    n: usize,
    center: Option<S::F64>,
) -> [S::F64; 2] {
    // SAFETY: handed on to the caller.
    unsafe {
        let sums = one(simd, terms, a, n, center);
        let sums = another(simd, terms, b, n, center, None, sums);
        let sums = another(simd, terms, c, n, center, None, sums);
        another(simd, terms, d, n, center, None, sums)
    }
}

/// [`four`] of elements of which those count whose bit is set.
///
/// # Safety
/// As [`four`].
#[inline(always)]
unsafe fn shares_of_four<S: Simd, T: Terms, C: Counted>(
    simd: S,
    terms: T,
    at: [usize; 4],
    n: usize,
    center: Option<S::F64>,
    bits: u64,
) -> [S::F64; 2] {
    // SAFETY: handed on to the caller; `simd` is the token for its vectors.
    unsafe {
        if C::ALL || bits == u64::MAX {
            return four(simd, terms, at, n, center);
        }
        let mut sums = [S::F64::splat(0.0); 2];
        // Each vector is known to count, or not to, as a whole if its first bit stands for all.
        let whole = bits == (bits & 0x0001_0001_0001_0001) * 0xffff;
        for (k, at) in at.into_iter().enumerate() {
            let bits = (bits >> (k * LANES)) as u16;
            sums = if whole {
                share::<S, T, C>(simd, terms, at, n, center, bits, sums)
            } else {
                // Branches would be taken at random.
                another(simd, terms, at, n, center, Some(bits), sums)
            };
        }
        sums
    }
}

/// Whether the terms of four vectors of elements of which none counts are known to be zero.
///
/// # Safety
/// As [`Terms::factors`], at each of the offsets.
#[inline(always)]
unsafe fn nothing<S: Simd, T: Terms, C: Counted>(
    simd: S,
    terms: T,
    [a, b, c, d]: [usize; 4],
) -> bool {
    // SAFETY: handed on to the caller.
    unsafe {
        !C::ALL
            && terms.adds_nothing(simd, a, LANES)
            && terms.adds_nothing(simd, b, LANES)
            && terms.adds_nothing(simd, c, LANES)
            && terms.adds_nothing(simd, d, LANES)
    }
}

/// `sums` and the terms of those of one more vector of `n` elements that count.
///
/// # Safety
/// As [`Terms::factors`].
#[inline(always)]
unsafe fn share<S: Simd, T: Terms, C: Counted>(
    simd: S,
    terms: T,
    at: usize,
    n: usize,
    center: Option<S::F64>,
    bits: u16,
    sums: [S::F64; 2],
) -> [S::F64; 2] {
    // SAFETY: handed on to the caller.
    unsafe {
        if C::ALL {
            return another(simd, terms, at, n, center, None, sums);
        }
        match Share::of(bits, n) {
            Share::All => another(simd, terms, at, n, center, None, sums),
            Share::None if terms.adds_nothing(simd, at, n) => sums,
            Share::None => another(simd, terms, at, n, center, Some(0), sums),
            Share::Some(bits) => another(simd, terms, at, n, center, Some(bits), sums),
        }
    }
}

/// `sums` and the terms of one more vector of `n` elements.
///
/// # Safety
/// As [`Terms::factors`].
#[inline(always)]
unsafe fn another<S: Simd, T: Terms>(
    simd: S,
    terms: T,
    at: usize,
    n: usize,
    center: Option<S::F64>,
    counted: Option<u16>,
    [values, products]: [S::F64; 2],
) -> [S::F64; 2] {
    // SAFETY: handed on to the caller.
    let [value, factor] = unsafe { terms.factors(simd, at, n, center, counted) };
    let products = match center {
        // Exact, so that to fuse the two operations changes nothing.
        None => products.add_exact_product(value, factor),
        Some(_) => products + value * factor,
    };
    [values + value, products]
}

/// Rows of equal length, `stride` elements apart, the first at offset `at`.
#[derive(Clone, Copy)]
pub(crate) struct Sheet {
    /// Offset of the first element.
    pub(crate) at: usize,
    /// Elements from a row to the next.
    pub(crate) stride: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Elements of a row that belong to the sheet.
    pub(crate) cols: usize,
}

/// Centres of columns; none at all where all are zero.
#[derive(Default)]
pub(crate) struct ColumnCenters<'a> {
    values: &'a [f64],
    /// For each vector of columns, whether there is something to subtract.
    off: Vec<bool>,
}

impl<'a> ColumnCenters<'a> {
    /// With the centre of each column.
    pub(crate) fn new<T: Terms>(values: &'a [f64]) -> Self {
        let off = values.chunks(LANES).map(|centers| off_center::<T>(centers)).collect();
        ColumnCenters { values, off }
    }
}

/// Sums of columns: both sums of each, and room for those of a tile.
pub(crate) struct ColumnSums {
    values: Aligned<f64>,
    columns: usize,
    /// Whether a first tile was summed. It needs no room of its own.
    begun: bool,
}

impl ColumnSums {
    /// Nothing summed yet of two sheets of so many rows, of which neither has more columns.
    pub(crate) fn new(columns: usize, [rows, more_rows]: [usize; 2]) -> ColumnSums {
        let tiles = rows.div_ceil(TILE_ROWS) + more_rows.div_ceil(TILE_ROWS);
        let values = Aligned::filled(0.0, if tiles > 1 { 4 } else { 2 } * pitch(columns));
        ColumnSums { values, columns, begun: false }
    }

    /// Both sums of each column.
    pub(crate) fn sums(&self) -> [&[f64]; 2] {
        let (first, second) = self.values.split_at(pitch(self.columns));
        [first, second].map(|sums| &sums[..self.columns])
    }

    /// Where a tile is summed: both sums of each column, zero.
    fn tile(&mut self) -> [&mut [f64]; 2] {
        let pitch = pitch(self.columns);
        let start = if self.begun { 2 * pitch } else { 0 };
        let (first, second) = self.values[start..start + 2 * pitch].split_at_mut(pitch);
        [first, second]
    }

    /// Adds a tile.
    fn add_tile(&mut self) {
        if self.begun {
            let (sums, tile) = self.values.split_at_mut(2 * pitch(self.columns));
            for (sum, tile) in sums.iter_mut().zip(tile) {
                *sum += *tile;
                *tile = 0.0;
            }
        }
        self.begun = true;
    }
}

/// Adds the terms of each column of a sheet to its two sums. Memory is met [`ROWS`] rows side by
/// side; with `fetch` it is asked for ahead of time.
///
/// # Safety
/// The inputs hold the sheet.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn sheet<S: Simd, T: Terms, R: Rows>(
    simd: S,
    terms: T,
    sheet: Sheet,
    counted: R,
    centers: &ColumnCenters<'_>,
    sums: &mut ColumnSums,
    fetch: bool,
) {
    assert!(
        sheet.cols <= sums.columns
            && (centers.values.is_empty() || sheet.cols <= centers.values.len()),
        "sums and a centre of each column"
    );
    let mut tile = Sheet { rows: 0, ..sheet };
    for start in (0..sheet.rows).step_by(TILE_ROWS) {
        tile.at = sheet.at + start * sheet.stride;
        tile.rows = TILE_ROWS.min(sheet.rows - start);
        let into = sums.tile().map(<[f64]>::as_mut_ptr);
        // SAFETY: handed on to the caller; there are a centre and two sums of each column.
        unsafe { sheet_tile(simd, terms, tile, start, counted, centers, into, fetch) };
        sums.add_tile();
    }
}

/// Adds the terms of each column of a tile of a sheet, whose first row is `start`, to its two sums.
///
/// # Safety
/// The inputs hold the sheet; `centers` and both `sums` hold a value for each column.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn sheet_tile<S: Simd, T: Terms, R: Rows>(
    simd: S,
    terms: T,
    sheet: Sheet,
    start: usize,
    counted: R,
    centers: &ColumnCenters<'_>,
    sums: [*mut f64; 2],
    fetch: bool,
) {
    let ahead = (AHEAD / sheet.stride).next_multiple_of(ROWS).max(ROWS) * sheet.stride;
    // Whole rows are asked for in the order of memory: rows of 256 columns, side by side, took 0.9 of a
    // copy, and 0.65 like this.
    let (pace, step) = if sheet.cols == sheet.stride { (ROWS, LANES) } else { (1, sheet.stride) };
    let mut row = 0;
    while row < sheet.rows {
        let rows = if row + ROWS <= sheet.rows { ROWS } else { 1 };
        let at = sheet.at + row * sheet.stride;
        let mut of_rows = [counted.row(start + row); ROWS];
        for (k, of_row) in of_rows.iter_mut().enumerate().take(rows).skip(1) {
            *of_row = counted.row(start + row + k);
        }
        let alike = of_rows.iter().all(|of_row| of_row.alike());
        let of_first = bits_of(of_rows, 0);
        // SAFETY: rows and columns are within the sheet, which the caller vouches for.
        unsafe {
            let mut col = 0;
            // The common case is a loop of little else than its arithmetic: what is decided for each
            // vector took as long again.
            while rows == ROWS && col + LANES <= sheet.cols {
                let bits = if alike { of_first } else { bits_of(of_rows, col) };
                let four = [0, 1, 2, 3].map(|k| at + col + k * sheet.stride);
                if bits == 0 && nothing::<S, T, R::Row>(simd, terms, four) {
                    col += LANES;
                    continue;
                }
                if fetch && bits != 0 {
                    for k in 0..ROWS {
                        terms.prefetch(simd, at + ahead + pace * col + k * step);
                    }
                }
                let (at, sums) = ([at + col, sheet.stride], [sums[0].add(col), sums[1].add(col)]);
                if T::EXACT && (centers.off.is_empty() || !centers.off[col / LANES]) {
                    columns::<S, T, R::Row>(simd, terms, at, ROWS, LANES, bits, None, sums);
                } else {
                    let center = Some(S::F64::load(centers.values.as_ptr().add(col)));
                    columns::<S, T, R::Row>(simd, terms, at, ROWS, LANES, bits, center, sums);
                }
                col += LANES;
            }
            // What is left of rows, or rows that are left.
            while col < sheet.cols {
                let n = LANES.min(sheet.cols - col);
                let center = match centers.values {
                    [] => S::F64::splat(0.0),
                    values => element::load(values.as_ptr().add(col), n),
                };
                let bits = bits_of(of_rows, col);
                let (at, sums) = ([at + col, sheet.stride], [sums[0].add(col), sums[1].add(col)]);
                columns::<S, T, R::Row>(simd, terms, at, rows, n, bits, Some(center), sums);
                col += n;
            }
        }
        row += rows;
    }
}

/// The bits of sixteen columns of each of four rows.
#[inline(always)]
fn bits_of<C: Counted>(of_rows: [C; ROWS], col: usize) -> u64 {
    let [a, b, c, d] = of_rows;
    u64::from(a.bits(col))
        | u64::from(b.bits(col)) << LANES
        | u64::from(c.bits(col)) << (2 * LANES)
        | u64::from(d.bits(col)) << (3 * LANES)
}

/// Adds the terms of [`ROWS`] rows, or of one, of `n` columns to their sums; the bits say which of them
/// count.
///
/// # Safety
/// The inputs hold `n` elements in each row; both `sums` hold `n` values.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn columns<S: Simd, T: Terms, C: Counted>(
    simd: S,
    terms: T,
    [at, stride]: [usize; 2],
    rows: usize,
    n: usize,
    bits: u64,
    center: Option<S::F64>,
    sums: [*mut f64; 2],
) {
    // SAFETY: handed on to the caller; `simd` is the token for its vectors.
    unsafe {
        let terms = if rows == ROWS {
            let rows = [at, at + stride, at + 2 * stride, at + 3 * stride];
            shares_of_four::<S, T, C>(simd, terms, rows, n, center, bits)
        } else {
            let nothing = [S::F64::splat(0.0); 2];
            share::<S, T, C>(simd, terms, at, n, center, bits as u16, nothing)
        };
        let so_far = [element::load::<S::F64>(sums[0], n), element::load::<S::F64>(sums[1], n)];
        let total = add(so_far, terms);
        element::store(sums[0], n, total[0]);
        element::store(sums[1], n, total[1]);
    }
}

/// The sum of a run of sums: elements to lanes as in [`run`], then the lanes.
#[inline(always)]
pub(crate) fn fold_run<S: Simd>(_: S, run: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    // SAFETY: each load is within `run`; the token is held.
    unsafe {
        let mut sum = S::F64::splat(0.0);
        for part in run.chunks(LANES) {
            sum = sum + element::load::<S::F64>(part.as_ptr(), part.len());
        }
        sum.store(lanes.as_mut_ptr());
    }
    fold(lanes)
}
