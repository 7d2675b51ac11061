//! What batch normalization would cost if arithmetic were free: `RUSTBN_NUM_THREADS=1 cargo bench --bench floors`.
//!
//! Statistics must be complete before the first output is written, so x is met twice, and dy as well in backward. The bare
//! sweeps here do as much and nothing else: the first reads, a block of channels at a time where half of the second-level
//! cache holds one, and the second writes past the caches what lies there. A copy, the bare sweeps and the verb take turns;
//! times are medians, divided by that of the copy, or of the addition.

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

fn main() -> Result<(), Error> {
    println!("{:>18} {:>8} {:>8} {:>8} {:>8}", "", "forward", "", "backward", "");
    println!("{:>18} {:>8} {:>8} {:>8} {:>8}", "", "bare", "rustbn", "bare", "rustbn");
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
            ratios.into_iter().for_each(|ratio| print!(" {ratio:>8.2}"));
            println!();
        }
    }
    Ok(())
}

/// Bare sweeps and verb over a copy, forward, and over an addition, backward.
fn ratios(view: View, l2: usize, execution: Execution) -> Result<[f64; 4], Error> {
    let (x, dy) = (activations(view.len(), 1), activations(view.len(), 2));
    let mut out = outputs(view.len());
    let ones = vec![1.0; view.channels];
    let weight = Some(&ones[..]);
    let statistics = moments(view, &x, execution)?;
    let mut times = [const { Vec::new() }; 6];
    for _ in 0..ROUNDS {
        let mut turn = |i: usize, body: &mut dyn FnMut(&mut [f32])| {
            let calls = (BYTES / size_of_val(&x[..])).max(1);
            let start = Instant::now();
            (0..calls).for_each(|_| body(black_box(&mut out)));
            times[i].push(start.elapsed() / calls as u32);
        };
        let (x, dy) = (black_box(&x[..]), black_box(&dy[..]));
        turn(0, &mut |y| y.copy_from_slice(x));
        turn(1, &mut |y| bare(view, l2, [x, x], y));
        turn(2, &mut |y| {
            let epilogue = Epilogue::default();
            batch_norm(view, x, weight, None, EPS, epilogue, y, execution).map(drop).unwrap();
        });
        turn(3, &mut |dx| write([x, dy], dx, false));
        turn(4, &mut |dx| bare(view, l2, [x, dy], dx));
        turn(5, &mut |dx| {
            batch_norm_backward(view, dy, x, &statistics, weight, EPS, dx, execution)
                .map(drop)
                .unwrap();
        });
    }
    let [copy, bare, forward, addition, bare_backward, backward] = times.map(median);
    Ok([bare / copy, forward / copy, bare_backward / addition, backward / addition])
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Both sweeps over two inputs, which may be the same one: they are read, and then their sum, or the one, is written.
fn bare(view: View, l2: usize, inputs: [&[f32]; 2], out: &mut [f32]) {
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
            inputs[..arrays].iter().for_each(|input| read(&input[range.clone()]));
        }
        for range in (0..pieces).rev().map(piece) {
            write(inputs.map(|input| &input[range.clone()]), &mut out[range], true);
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

/// Writes the first input, or the sum of both where they are two, past the caches if asked to.
fn write([a, b]: [&[f32]; 2], out: &mut [f32], past: bool) {
    let one = std::ptr::eq(a, b);
    #[cfg(target_arch = "x86_64")]
    if past && is_x86_feature_detected!("avx2") {
        use std::arch::x86_64::{_mm_sfence, _mm256_add_ps, _mm256_loadu_ps, _mm256_stream_ps};
        /// # Safety
        /// The arrays are of one length, which is a multiple of 16, and `out` is aligned to 64 bytes.
        #[target_feature(enable = "avx2")]
        unsafe fn stream(a: &[f32], b: &[f32], out: &mut [f32], one: bool) {
            for i in (0..out.len()).step_by(8) {
                // SAFETY: eight elements of arrays that are multiples of it, and aligned where they are written.
                unsafe {
                    let mut value = _mm256_loadu_ps(a.as_ptr().add(i));
                    if !one {
                        value = _mm256_add_ps(value, _mm256_loadu_ps(b.as_ptr().add(i)));
                    }
                    _mm256_stream_ps(out.as_mut_ptr().add(i), value);
                }
            }
            _mm_sfence();
        }
        let head = out.as_ptr().align_offset(64).min(out.len());
        let lines = head..head + (out.len() - head) / 16 * 16;
        // SAFETY: the processor was asked; `lines` is made of whole aligned lines.
        unsafe { stream(&a[lines.clone()], &b[lines.clone()], &mut out[lines.clone()], one) };
        for rest in [0..lines.start, lines.end..out.len()] {
            write([&a[rest.clone()], &b[rest.clone()]], &mut out[rest], false);
        }
        return;
    }
    if one {
        out.copy_from_slice(a);
    } else {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = a + b);
    }
}
