//! Two float64 sums of each channel in one sweep.
//!
//! How a sum is built up is part of the result, so every number below is a constant:
//!
//! 1. A run is cut into tiles of [`TILE`] elements. Element `i` of a tile goes to lane `i % 16`; the lanes of a tile start at
//!    zero and are added to those of the channel. Chains of additions stay short, and with them the rounding.
//! 2. A sheet is cut into tiles of [`TILE_ROWS`] rows. Each column is summed down a tile starting at zero, and the tile is
//!    added to the column's sum.
//!
//! A tail is a partial load: its missing lanes are zero in every input and in the centre, and contribute zero.

use super::Fetch;
use crate::element;
use crate::simd::{LANES, Simd, Vector, fold};

/// Elements of a run that are summed before they are added to the channel's lanes.
pub(crate) const TILE: usize = 4096;

/// Rows of a sheet that are summed before they are added to the columns' sums.
pub(crate) const TILE_ROWS: usize = 16;

/// Two sums, a lane of each for every lane of a vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Lanes(pub(crate) [[f64; LANES]; 2]);

impl Lanes {
    /// Nothing summed yet.
    pub(crate) const ZERO: Lanes = Lanes([[0.0; LANES]; 2]);
}

/// What is summed: two terms of each element.
pub(crate) trait Terms: Copy + Sync {
    /// The terms of the `n` elements at offset `at`, given the centre of their channel. Lanes from `n` on are zero if those of
    /// `center` are.
    ///
    /// # Safety
    /// The inputs hold `n <= LANES` elements at `at`.
    unsafe fn terms<S: Simd>(self, simd: S, at: usize, n: usize, center: S::F64) -> [S::F64; 2];
}

/// Adds the terms of the run of `len <= TILE` elements at `at` to the lanes of its channel.
///
/// # Safety
/// The inputs hold the run.
#[inline(always)]
pub(crate) unsafe fn run<S: Simd, T: Terms>(
    simd: S,
    terms: T,
    at: usize,
    len: usize,
    center: f64,
    lanes: &mut Lanes,
) {
    // SAFETY: the offsets are within the run, which the caller vouches for; `simd` is the token for its vectors; `lanes` and
    // `centers` are arrays of LANES.
    unsafe {
        let [mut first, mut second] = [S::F64::splat(0.0); 2];
        let full = S::F64::splat(center);
        let whole = len - len % LANES;
        let mut i = 0;
        while i < whole {
            let [a, b] = terms.terms(simd, at + i, LANES, full);
            first = first + a;
            second = second + b;
            i += LANES;
        }
        if i < len {
            let centers = [center; LANES];
            let partial = S::F64::load_partial(centers.as_ptr(), len - i);
            let [a, b] = terms.terms(simd, at + i, len - i, partial);
            first = first + a;
            second = second + b;
        }
        let [firsts, seconds] = &mut lanes.0;
        (S::F64::load(firsts.as_ptr()) + first).store(firsts.as_mut_ptr());
        (S::F64::load(seconds.as_ptr()) + second).store(seconds.as_mut_ptr());
    }
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

/// Adds the terms of each column of a sheet to its two sums.
///
/// # Safety
/// The inputs hold the sheet; `centers` and both `sums` hold a value for each column.
#[inline(always)]
pub(crate) unsafe fn sheet<S: Simd, T: Terms>(
    simd: S,
    terms: T,
    sheet: Sheet,
    centers: *const f64,
    sums: [*mut f64; 2],
) {
    let mut row = 0;
    while row < sheet.rows {
        let rows = TILE_ROWS.min(sheet.rows - row);
        let at = sheet.at + row * sheet.stride;
        let mut col = 0;
        // SAFETY: rows and columns are within the sheet, which the caller vouches for.
        unsafe {
            while col + LANES <= sheet.cols {
                column(
                    simd,
                    terms,
                    at + col,
                    sheet.stride,
                    rows,
                    LANES,
                    centers.add(col),
                    sums.map(|s| s.add(col)),
                );
                col += LANES;
            }
            if col < sheet.cols {
                let n = sheet.cols - col;
                column(
                    simd,
                    terms,
                    at + col,
                    sheet.stride,
                    rows,
                    n,
                    centers.add(col),
                    sums.map(|s| s.add(col)),
                );
            }
        }
        row += rows;
    }
}

/// One tile of `n` columns.
///
/// # Safety
/// The inputs hold `n` elements in each row; `centers` and both `sums` hold `n` values.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn column<S: Simd, T: Terms>(
    simd: S,
    terms: T,
    at: usize,
    stride: usize,
    rows: usize,
    n: usize,
    centers: *const f64,
    sums: [*mut f64; 2],
) {
    // SAFETY: handed on to the caller; `simd` is the token for its vectors.
    unsafe {
        let center = Fetch::Columns(n).vector::<S::F64>(centers);
        let [mut first, mut second] = [S::F64::splat(0.0); 2];
        for row in 0..rows {
            let [a, b] = terms.terms(simd, at + row * stride, n, center);
            first = first + a;
            second = second + b;
        }
        for (sum, tile) in sums.into_iter().zip([first, second]) {
            element::store(sum, n, element::load::<S::F64>(sum, n) + tile);
        }
    }
}

/// The sum of a run of sums: elements to lanes as in [`run`], then the lanes.
#[inline(always)]
pub(crate) fn fold_run<S: Simd>(_: S, run: &[f64]) -> f64 {
    if let [alone] = run {
        return *alone;
    }
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
