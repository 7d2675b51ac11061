//! Batch normalization next to its two sweeps, bare and with arithmetic: `RUSTBN_NUM_THREADS=1 cargo bench --bench floors`.
//!
//! Statistics must be complete before the first output is written, so x is met twice, and dy as well in backward. The bare
//! sweeps here do as much and nothing else: the first reads, a block of channels at a time where half of the second-level
//! cache holds one, and the second writes past the caches what lies there. Those with arithmetic (x86-64 with AVX2; not a
//! number elsewhere) have that of batch normalization and nothing more: whatever the channel, all goes into one pair of
//! sums in registers, and planes share their coefficients. That is a comparison, no bound: verbs can be faster. A copy, the
//! sweeps and the verb take turns; times are medians, divided by that of the copy, or of the addition.

use std::hint::black_box;
use std::time::{Duration, Instant};

mod common;

use common::{activations, outputs};
use rustbn::{Caches, Epilogue, Error, Execution, View, batch_norm, batch_norm_backward, moments};

/// Layers of ResNet-50: channels and elements of a plane.
const LAYERS: [(usize, usize); 9] = [
    (64, 112 * 112),
    (256, 56 * 56),
    (64, 56 * 56),
    (512, 28 * 28),
    (128, 28 * 28),
    (1024, 14 * 14),
    (256, 14 * 14),
    (2048, 7 * 7),
    (512, 7 * 7),
];

/// Samples of a batch.
const BATCH: usize = 32;

/// Rounds of turns, and bytes that are read in one, about.
const ROUNDS: usize = 9;
const BYTES: usize = 64 << 20;

const EPS: f64 = 1e-5;

/// Elements that are dealt with together, a line of memory.
const LANES: usize = 16;

fn main() -> Result<(), Error> {
    println!("{:>18} {:>10} {:>10} {:>10} {:>10}", "", "forward", "", "", "backward");
    let columns = ["bare", "arithmetic", "rustbn"];
    print!("{:>18}", "");
    columns.iter().cycle().take(6).for_each(|column| print!(" {column:>10}"));
    println!();
    let execution = Execution::current()?;
    let l2 = Caches::current()?.l2;
    for layout in ["nchw", "nhwc"] {
        for (channels, plane) in LAYERS {
            let view = match layout {
                "nchw" => View { outer: BATCH, channels, inner: plane },
                _ => View { outer: BATCH * plane, channels, inner: 1 },
            };
            let ratios = ratios(view, l2, execution)?;
            print!("{:>18}", format!("{layout} {channels} x {plane}"));
            ratios.into_iter().for_each(|ratio| print!(" {ratio:>10.2}"));
            println!();
        }
    }
    Ok(())
}

/// Bare sweeps, sweeps with arithmetic and verb over a copy, forward, and over an addition, backward.
fn ratios(view: View, l2: usize, execution: Execution) -> Result<[f64; 6], Error> {
    let (x, dy) = (activations(view.len(), 1), activations(view.len(), 2));
    let mut out = outputs(view.len());
    let ones = vec![1.0; view.channels];
    let weight = Some(&ones[..]);
    let statistics = moments(view, &x, execution)?;
    let table = Table::new(view);
    let mut times = [const { Vec::new() }; 8];
    for _ in 0..ROUNDS {
        let mut turn = |i: usize, body: &mut dyn FnMut(&mut [f32])| {
            let calls = (BYTES / size_of_val(&x[..])).max(1);
            let start = Instant::now();
            (0..calls).for_each(|_| body(black_box(&mut out)));
            times[i].push(start.elapsed() / calls as u32);
        };
        let (x, dy) = (black_box(&x[..]), black_box(&dy[..]));
        turn(0, &mut |y| y.copy_from_slice(x));
        turn(1, &mut |y| sweeps(view, l2, [x, x], y, None));
        turn(2, &mut |y| sweeps(view, l2, [x, x], y, Some(&table)));
        turn(3, &mut |y| {
            let epilogue = Epilogue::default();
            batch_norm(view, x, weight, None, EPS, epilogue, y, execution).map(drop).unwrap();
        });
        turn(4, &mut |dx| write([x, dy], dx, Stores::Ordinary));
        turn(5, &mut |dx| sweeps(view, l2, [x, dy], dx, None));
        turn(6, &mut |dx| sweeps(view, l2, [x, dy], dx, Some(&table)));
        turn(7, &mut |dx| {
            batch_norm_backward(view, dy, x, &statistics, weight, EPS, dx, execution)
                .map(drop)
                .unwrap();
        });
    }
    let [copy, forward @ .., addition, bare, arithmetic, verb] = times.map(median);
    let with = |time: f64| if avx2() { time } else { f64::NAN };
    let [bare_forward, arithmetic_forward, verb_forward] = forward;
    Ok([
        bare_forward / copy,
        with(arithmetic_forward) / copy,
        verb_forward / copy,
        bare / addition,
        with(arithmetic) / addition,
        verb / addition,
    ])
}

/// Coefficients of columns of rows, and again of the first ones: a row of memory with channels last, else one vector.
struct Table {
    columns: usize,
    values: [Vec<f32>; 5],
}

impl Table {
    fn new(view: View) -> Table {
        let columns = if view.inner == 1 { view.channels } else { LANES };
        Table {
            columns,
            values: [0.25, 1e-9, 0.5, 0.75, 1.25].map(|value| vec![value; columns + LANES]),
        }
    }
}

/// How outputs are written: through the caches, past them, or past them with the arithmetic of batch normalization.
#[derive(Clone, Copy)]
enum Stores<'a> {
    Ordinary,
    Streamed,
    Normalised(&'a Table),
}

fn avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Both sweeps over two inputs, which may be the same one: they are read, and then their sum, or the one, is written.
fn sweeps(view: View, l2: usize, inputs: [&[f32]; 2], out: &mut [f32], table: Option<&Table>) {
    let stores = table.map_or(Stores::Streamed, Stores::Normalised);
    let arrays = if std::ptr::eq(inputs[0], inputs[1]) { 1 } else { 2 };
    let channel = view.outer * view.inner * size_of::<f32>() * arrays;
    let block = if view.inner > 1 { (l2 / 2 / channel).max(1) } else { view.channels };
    for first in (0..view.channels).step_by(block) {
        let channels = block.min(view.channels - first);
        // Where the block is all there is, it is one piece.
        let (pieces, len) = if channels == view.channels {
            (1, view.len())
        } else {
            (view.outer, channels * view.inner)
        };
        let piece = |i: usize| {
            let start = (i * view.channels + first) * view.inner;
            start..start + len
        };
        for range in (0..pieces).map(piece) {
            if table.is_some() {
                add_up(inputs.map(|input| &input[range.clone()]));
            } else {
                inputs[..arrays].iter().for_each(|input| read(&input[range.clone()]));
            }
        }
        for range in (0..pieces).rev().map(piece) {
            write(inputs.map(|input| &input[range.clone()]), &mut out[range], stores);
        }
    }
}

/// Reads: additions are all it does, in as many chains as keep them from waiting for each other.
fn read(x: &[f32]) {
    #[inline(always)]
    fn sums(x: &[f32]) -> [f32; 64] {
        let mut sums = [0.0; 64];
        for part in x.chunks_exact(64) {
            sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        sums
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn with_avx2(x: &[f32]) -> [f32; 64] {
            sums(x)
        }
        // SAFETY: the processor was asked.
        black_box(unsafe { with_avx2(x) });
        return;
    }
    black_box(sums(x));
}

/// Reads both inputs, or the one, and adds up in float64 the first and its products with the second.
fn add_up([a, b]: [&[f32]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if avx2() {
        use std::arch::x86_64::{
            _MM_HINT_T0, _mm_loadu_ps, _mm_prefetch, _mm256_add_pd, _mm256_cvtps_pd,
            _mm256_fmadd_pd, _mm256_setzero_pd,
        };
        #[target_feature(enable = "avx2,fma")]
        fn sums(a: &[f32], b: &[f32]) {
            const AHEAD: usize = 256;
            let one = std::ptr::eq(a, b);
            let (mut sums, mut products) = ([_mm256_setzero_pd(); 4], [_mm256_setzero_pd(); 4]);
            for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
                // SAFETY: four elements each of sixteen; what is asked for may lie anywhere.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(a.as_ptr().wrapping_add(AHEAD).cast());
                    if !one {
                        _mm_prefetch::<_MM_HINT_T0>(b.as_ptr().wrapping_add(AHEAD).cast());
                    }
                    for i in 0..4 {
                        let x = _mm256_cvtps_pd(_mm_loadu_ps(a.as_ptr().add(4 * i)));
                        let y = if one {
                            x
                        } else {
                            _mm256_cvtps_pd(_mm_loadu_ps(b.as_ptr().add(4 * i)))
                        };
                        sums[i] = _mm256_add_pd(sums[i], x);
                        products[i] = _mm256_fmadd_pd(x, y, products[i]);
                    }
                }
            }
            black_box((sums, products));
        }
        // SAFETY: the processor was asked.
        unsafe { sums(a, b) };
        return;
    }
    read(a);
    read(b);
}

/// Writes what is made of both inputs, or of the one: unless it is normalised their sum, or the input.
fn write([a, b]: [&[f32]; 2], out: &mut [f32], stores: Stores<'_>) {
    let one = std::ptr::eq(a, b);
    #[cfg(target_arch = "x86_64")]
    if avx2() && !matches!(stores, Stores::Ordinary) {
        let head = out.as_ptr().align_offset(64).min(out.len());
        let lines = head..head + (out.len() - head) / LANES * LANES;
        let inputs = [a, b].map(|input| &input[lines.clone()]);
        let into = &mut out[lines.clone()];
        // SAFETY: the processor was asked; `lines` is made of whole aligned lines, and its first element is that of
        // column `head`, which is less than a line.
        unsafe {
            match (stores, one) {
                (Stores::Normalised(table), true) => normalise::<true>(inputs, into, table, head),
                (Stores::Normalised(table), false) => normalise::<false>(inputs, into, table, head),
                (_, true) => stream::<true>(inputs, into),
                (_, false) => stream::<false>(inputs, into),
            }
        }
        for rest in [0..lines.start, lines.end..out.len()] {
            write([&a[rest.clone()], &b[rest.clone()]], &mut out[rest], Stores::Ordinary);
        }
        return;
    }
    if one {
        out.copy_from_slice(a);
    } else {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a + b);
    }
}

/// Copies, or adds.
///
/// # Safety
/// The arrays are of one length, which is a multiple of `LANES`, and `out` is aligned to 64 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn stream<const ONE: bool>([a, b]: [&[f32]; 2], out: &mut [f32]) {
    use std::arch::x86_64::{_mm_sfence, _mm256_add_ps, _mm256_loadu_ps, _mm256_stream_ps};
    for i in (0..out.len()).step_by(8) {
        // SAFETY: eight elements of arrays that are multiples of it, and aligned where they are written.
        unsafe {
            let mut value = _mm256_loadu_ps(a.as_ptr().add(i));
            if !ONE {
                value = _mm256_add_ps(value, _mm256_loadu_ps(b.as_ptr().add(i)));
            }
            _mm256_stream_ps(out.as_mut_ptr().add(i), value);
        }
    }
    _mm_sfence();
}

/// Normalises, or makes dx of x and dy. The first element is in column `column < LANES` of the table.
///
/// # Safety
/// As [`stream`]; the table holds `LANES` more values of each coefficient than columns, which are a multiple of `LANES`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn normalise<const ONE: bool>(
    [a, b]: [&[f32]; 2],
    out: &mut [f32],
    table: &Table,
    column: usize,
) {
    use std::arch::x86_64::{
        __m256, _mm_sfence, _mm256_add_ps, _mm256_loadu_ps, _mm256_mul_ps, _mm256_setzero_ps,
        _mm256_stream_ps, _mm256_sub_ps,
    };
    let values = table.values.each_ref().map(|values| values.as_ptr());
    let mut of_vector = [[_mm256_setzero_ps(); 5]; 2];
    let mut at = column;
    for i in (0..out.len()).step_by(LANES) {
        // SAFETY: sixteen elements of arrays that are multiples of it, and aligned where they are written; `at` is
        // less than the columns, behind which the table holds sixteen values.
        unsafe {
            if i == 0 || table.columns > LANES {
                for (half, of_half) in of_vector.iter_mut().enumerate() {
                    *of_half = values.map(|values| _mm256_loadu_ps(values.add(at + 8 * half)));
                }
            }
            for (half, &[c0, c1, c2, c3, c4]) in of_vector.iter().enumerate() {
                let i = i + 8 * half;
                let x = _mm256_loadu_ps(a.as_ptr().add(i));
                let deviation: __m256 = _mm256_sub_ps(x, c0);
                let value = if ONE {
                    _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(deviation, c1), c2), c3)
                } else {
                    let dy = _mm256_loadu_ps(b.as_ptr().add(i));
                    let rest = _mm256_add_ps(_mm256_sub_ps(dy, c1), c2);
                    _mm256_mul_ps(_mm256_sub_ps(rest, _mm256_mul_ps(deviation, c3)), c4)
                };
                _mm256_stream_ps(out.as_mut_ptr().add(i), value);
            }
        }
        at += LANES;
        at -= if at >= table.columns { table.columns } else { 0 };
    }
    _mm_sfence();
}
