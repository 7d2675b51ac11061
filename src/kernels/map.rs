//! An output of each element, from inputs at the same place and per-channel coefficients.
//!
//! Streamed stores go past the cache, which saves reading every line of the output before it is written. They want whole
//! aligned lines, so a run is peeled to the first line boundary of the output; a sheet is streamed where all its rows
//! begin at the same place of a line.

use super::Fetch;
use super::reduce::Sheet;
use crate::element::{Element, RealVector};
use crate::simd::{LANES, STREAM_ALIGNMENT, Simd};

/// Rows of a sheet that share one fetch of the coefficients.
const ROWS: usize = 4;

/// The expression of an output.
pub(crate) trait Map: Copy + Sync {
    /// What inputs and outputs are made of.
    type Element: Element;
    /// The coefficients of a channel as vectors.
    type Coefficients<S: Simd>: Copy;
    /// How many coefficients a channel has.
    const COEFFICIENTS: usize;

    /// The output's memory.
    fn output(self) -> *mut Self::Element;

    /// The coefficients at `table`, the next coefficient of the same channel being `pitch` on.
    ///
    /// # Safety
    /// `table` holds what `fetch` reads of each coefficient.
    unsafe fn coefficients<S: Simd>(
        simd: S,
        table: *const <Self::Element as Element>::Real,
        pitch: usize,
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
}

/// How outputs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stores {
    /// Through the cache.
    Ordinary,
    /// Past it.
    Streamed,
}

/// Elements from `p` to the next line boundary, or `None` where no element begins at one.
#[inline(always)]
fn to_boundary<E>(p: *mut E) -> Option<usize> {
    let bytes = p.addr().wrapping_neg() % STREAM_ALIGNMENT;
    bytes.is_multiple_of(size_of::<E>()).then_some(bytes / size_of::<E>())
}

/// Writes the outputs of the run of `len` elements at `at`.
///
/// # Safety
/// Inputs and output hold the run; the output is one of the inputs or shares no memory with them; `table` holds the
/// coefficients of the run's channel, `pitch` apart.
#[inline(always)]
pub(crate) unsafe fn run<S: Simd, M: Map>(
    simd: S,
    map: M,
    at: usize,
    len: usize,
    table: *const <M::Element as Element>::Real,
    pitch: usize,
    stores: Stores,
) {
    // SAFETY: the offsets are within the run, which the caller vouches for; a streamed store begins at a line boundary.
    unsafe {
        let coefficients = M::coefficients(simd, table, pitch, Fetch::Run);
        let output = map.output().add(at);
        let whole = |i: usize| len - (len - i) % LANES;
        let mut i = 0;
        match to_boundary(output) {
            Some(head) if stores == Stores::Streamed && head < len => {
                // A head can be longer than a vector: a line holds LANES elements or fewer, so it never is.
                if head > 0 {
                    let value = map.value(simd, at, head, &coefficients);
                    M::Element::store(simd, output, head, value);
                    i = head;
                }
                let end = whole(i);
                while i < end {
                    let value = map.value(simd, at + i, LANES, &coefficients);
                    M::Element::stream(simd, output.add(i), value);
                    i += LANES;
                }
            }
            _ => {
                let end = whole(0);
                while i < end {
                    let value = map.value(simd, at + i, LANES, &coefficients);
                    M::Element::store(simd, output.add(i), LANES, value);
                    i += LANES;
                }
            }
        }
        if i < len {
            let value = map.value(simd, at + i, len - i, &coefficients);
            M::Element::store(simd, output.add(i), len - i, value);
        }
    }
}

/// Writes the outputs of a sheet.
///
/// # Safety
/// Inputs and output hold the sheet; the output is one of the inputs or shares no memory with them; `table` holds the
/// coefficients of each column, the next coefficient `pitch` on.
#[inline(always)]
pub(crate) unsafe fn sheet<S: Simd, M: Map>(
    simd: S,
    map: M,
    sheet: Sheet,
    table: *const <M::Element as Element>::Real,
    pitch: usize,
    stores: Stores,
) {
    // SAFETY: the caller vouches for the sheet.
    let output = unsafe { map.output().add(sheet.at) };
    let aligned_rows = (sheet.stride * size_of::<M::Element>()).is_multiple_of(STREAM_ALIGNMENT);
    let head = match to_boundary(output) {
        Some(head) if stores == Stores::Streamed && aligned_rows && head < sheet.cols => Some(head),
        _ => None,
    };
    let mut row = 0;
    while row < sheet.rows {
        let rows = ROWS.min(sheet.rows - row);
        let part = Sheet { at: sheet.at + row * sheet.stride, rows, ..sheet };
        // SAFETY: `part` is within the sheet; `head` is where its lines begin, in every row.
        unsafe {
            match (head, rows == ROWS) {
                (Some(head), true) => {
                    rows_of::<S, M, true>(simd, map, part, ROWS, table, pitch, head)
                }
                (Some(head), false) => {
                    rows_of::<S, M, true>(simd, map, part, rows, table, pitch, head)
                }
                (None, true) => rows_of::<S, M, false>(simd, map, part, ROWS, table, pitch, 0),
                (None, false) => rows_of::<S, M, false>(simd, map, part, rows, table, pitch, 0),
            }
        }
        row += rows;
    }
}

/// A few rows side by side, a vector of columns at a time.
///
/// # Safety
/// As [`sheet`]; if `STREAM`, a line of the output begins at column `head` of every row.
#[inline(always)]
unsafe fn rows_of<S: Simd, M: Map, const STREAM: bool>(
    simd: S,
    map: M,
    sheet: Sheet,
    rows: usize,
    table: *const <M::Element as Element>::Real,
    pitch: usize,
    head: usize,
) {
    let mut col = 0;
    // SAFETY: rows and columns are within the sheet, which the caller vouches for; from `head` on, every vector begins a line.
    unsafe {
        if head > 0 {
            columns::<S, M, false>(simd, map, sheet, rows, col, head, table, pitch);
            col = head;
        }
        while col + LANES <= sheet.cols {
            columns::<S, M, STREAM>(simd, map, sheet, rows, col, LANES, table, pitch);
            col += LANES;
        }
        if col < sheet.cols {
            columns::<S, M, false>(simd, map, sheet, rows, col, sheet.cols - col, table, pitch);
        }
    }
}

/// `n` columns of a few rows.
///
/// # Safety
/// As [`sheet`]; if `STREAM`, `n` is `LANES` and a line of the output begins at column `col` of every row.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn columns<S: Simd, M: Map, const STREAM: bool>(
    simd: S,
    map: M,
    sheet: Sheet,
    rows: usize,
    col: usize,
    n: usize,
    table: *const <M::Element as Element>::Real,
    pitch: usize,
) {
    // SAFETY: handed on to the caller.
    unsafe {
        let coefficients = M::coefficients(simd, table.add(col), pitch, Fetch::Columns(n));
        for row in 0..rows {
            let at = sheet.at + row * sheet.stride + col;
            let value = map.value(simd, at, n, &coefficients);
            if STREAM {
                M::Element::stream(simd, map.output().add(at), value);
            } else {
                M::Element::store(simd, map.output().add(at), n, value);
            }
        }
    }
}
