//! Batch normalization next to loops that do little else than it must: `RUSTBN_NUM_THREADS=1 cargo bench --bench floors`.
//!
//! Statistics must be complete before the first output is written, so x is met twice, and dy as well in backward. The
//! loops here do that and as little else as they can. *Bare* sweeps read, then copy or add; those with *arithmetic* convert,
//! add and multiply as batch normalization does, but with one pair of float64 sums in registers whatever the channel, and
//! with planes that share their coefficients. Each is written in every [`Way`]: block by block of channels (where they lie
//! together) or one sweep after the other over all of memory, asking ahead or not, with outputs through the cache or past
//! it; what is shown is the fastest. What is fastest of many is a little less than it would be again, so a verb can be
//! faster by a few hundredths. A copy, an addition, all ways and the verbs take turns; times are medians, divided by that of
//! the copy, of the addition or, for a step, of both.
//!
//! After `--`, the names of the shapes to measure: `resnet50` (also without a name) or `small_topologies`.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("The loops are written for x86-64.");
}

#[cfg(target_arch = "x86_64")]
fn main() -> Result<(), rustbn::Error> {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        println!("The loops are written for AVX2 with FMA.");
        return Ok(());
    }
    floors::main()
}

#[cfg(target_arch = "x86_64")]
mod common;

#[cfg(target_arch = "x86_64")]
mod floors {
    use std::arch::x86_64::{
        __m256, __m256d, _MM_HINT_T0, _mm_loadu_ps, _mm_prefetch, _mm_sfence, _mm256_add_pd,
        _mm256_add_ps, _mm256_cvtps_pd, _mm256_fmadd_pd, _mm256_loadu_ps, _mm256_mul_ps,
        _mm256_setzero_pd, _mm256_setzero_ps, _mm256_storeu_ps, _mm256_stream_ps, _mm256_sub_ps,
    };
    use std::hint::black_box;
    use std::ops::Range;
    use std::time::{Duration, Instant};

    use super::common::{activations, outputs};
    use rustbn::{
        Caches, Epilogue, Error, Execution, View, batch_norm, batch_norm_backward, moments,
    };

    /// How many such layers there are, their samples, channels and elements of a plane.
    type Layer = (usize, usize, usize, usize);

    const RESNET50: [Layer; 9] = [
        (1, 32, 64, 112 * 112),
        (4, 32, 256, 56 * 56),
        (6, 32, 64, 56 * 56),
        (5, 32, 512, 28 * 28),
        (8, 32, 128, 28 * 28),
        (7, 32, 1024, 14 * 14),
        (12, 32, 256, 14 * 14),
        (4, 32, 2048, 7 * 7),
        (6, 32, 512, 7 * 7),
    ];

    const SMALL_TOPOLOGIES: [Layer; 12] = [
        (1, 16, 64, 112 * 112),
        (1, 16, 256, 56 * 56),
        (1, 16, 128, 28 * 28),
        (1, 16, 1024, 14 * 14),
        (1, 16, 512, 7 * 7),
        (1, 16, 224, 14 * 14),
        (1, 16, 320, 7 * 7),
        (1, 16, 64, 147 * 147),
        (1, 16, 80, 73 * 73),
        (1, 16, 96, 35 * 35),
        (1, 16, 160, 17 * 17),
        (1, 16, 384, 8 * 8),
    ];

    /// Rounds of turns, and bytes that are read in a turn, about.
    const ROUNDS: usize = 9;
    const BYTES: usize = 32 << 20;

    const EPS: f64 = 1e-5;

    /// Elements that are dealt with together, a line of memory.
    const LANES: usize = 16;

    /// Elements of a piece of memory that is walked as a whole, about.
    const PIECE: usize = 1 << 16;

    /// Elements ahead of which inputs are asked for.
    const AHEAD: [usize; 3] = [0, 256, 1024];

    /// Times of the limits, and of each pass the fastest bare sweeps, the fastest with arithmetic, and the verb.
    struct Times {
        copy: f64,
        addition: f64,
        forward: [f64; 3],
        backward: [f64; 3],
    }

    impl Times {
        /// Over their limits: forward, backward and both.
        fn ratios(&self) -> [[f64; 3]; 3] {
            let step = [0, 1, 2].map(|i| self.forward[i] + self.backward[i]);
            [
                self.forward.map(|time| time / self.copy),
                self.backward.map(|time| time / self.addition),
                step.map(|time| time / (self.copy + self.addition)),
            ]
        }

        fn plus(&self, count: f64, other: &Times) -> Times {
            let plus = |a: [f64; 3], b: [f64; 3]| [0, 1, 2].map(|i| a[i] + count * b[i]);
            Times {
                copy: self.copy + count * other.copy,
                addition: self.addition + count * other.addition,
                forward: plus(self.forward, other.forward),
                backward: plus(self.backward, other.backward),
            }
        }
    }

    pub fn main() -> Result<(), Error> {
        let small = std::env::args().any(|argument| argument == "small_topologies");
        let layers = if small { &SMALL_TOPOLOGIES[..] } else { &RESNET50[..] };
        let of_pass = |pass| format!("{pass}: bare | arithmetic | rustbn");
        let heading = ["forward", "backward", "step"].map(of_pass).join(" | ");
        println!("| layer | {heading} |");
        println!("| --- |{}", " ---: |".repeat(9));
        let execution = Execution::current()?;
        let l2 = Caches::current()?.l2;
        for layout in ["nchw", "nhwc"] {
            let mut all = Times { copy: 0.0, addition: 0.0, forward: [0.0; 3], backward: [0.0; 3] };
            let mut logarithms = [[0.0; 3]; 3];
            for &(count, batch, channels, plane) in layers {
                let view = match layout {
                    "nchw" => View { outer: batch, channels, inner: plane },
                    _ => View { outer: batch * plane, channels, inner: 1 },
                };
                let times = measure(view, l2, execution)?;
                row(&format!("{layout} {batch} x {channels} x {plane}"), times.ratios());
                all = all.plus(count as f64, &times);
                for (sums, ratios) in logarithms.iter_mut().zip(times.ratios()) {
                    sums.iter_mut().zip(ratios).for_each(|(sum, ratio)| *sum += ratio.ln());
                }
            }
            row(&format!("{layout}, all layers"), all.ratios());
            let mean = |sums: [f64; 3]| sums.map(|sum| (sum / layers.len() as f64).exp());
            row(&format!("{layout}, geometric mean"), logarithms.map(mean));
        }
        Ok(())
    }

    fn row(name: &str, ratios: [[f64; 3]; 3]) {
        print!("| {name} |");
        ratios.iter().flatten().for_each(|ratio| print!(" {ratio:.2} |"));
        println!();
    }

    /// One way to write the two sweeps.
    #[derive(Clone, Copy)]
    struct Way {
        /// Whether the second sweep of some channels follows their first.
        by_block: bool,
        ahead: usize,
        streamed: bool,
    }

    fn measure(view: View, l2: usize, execution: Execution) -> Result<Times, Error> {
        let (x, dy) = (activations(view.len(), 1), activations(view.len(), 2));
        let mut out = outputs(view.len());
        let ones = vec![1.0; view.channels];
        let weight = Some(&ones[..]);
        let statistics = moments(view, &x, execution)?;
        let table = Table::new(view);
        let mut ways = Vec::new();
        for by_block in [false, true] {
            for streamed in [false, true] {
                ways.extend(AHEAD.map(|ahead| Way { by_block, ahead, streamed }));
            }
        }
        // With channels last a channel does not lie together.
        ways.retain(|way| view.inner > 1 || !way.by_block);
        let mut limits = [const { Vec::new() }; 2];
        let mut verbs = [const { Vec::new() }; 2];
        let mut sweeps_of = [const { [const { Vec::new() }; 2] }; 2].map(|of_pass| {
            of_pass.map(|_: Vec<Duration>| vec![Vec::<Duration>::new(); ways.len()])
        });
        let calls = (BYTES / size_of_val(&x[..])).max(1);
        for _ in 0..ROUNDS {
            let mut turn = |times: &mut Vec<Duration>, body: &mut dyn FnMut(&mut [f32])| {
                let start = Instant::now();
                (0..calls).for_each(|_| body(black_box(&mut out)));
                times.push(start.elapsed() / calls as u32);
            };
            let (x, dy) = (black_box(&x[..]), black_box(&dy[..]));
            turn(&mut limits[0], &mut |y| y.copy_from_slice(x));
            turn(&mut limits[1], &mut |dx| {
                dx.iter_mut().zip(x.iter().zip(dy)).for_each(|(dx, (x, dy))| *dx = x + dy);
            });
            turn(&mut verbs[0], &mut |y| {
                let epilogue = Epilogue::default();
                batch_norm(view, x, weight, None, EPS, epilogue, y, execution).map(drop).unwrap();
            });
            turn(&mut verbs[1], &mut |dx| {
                batch_norm_backward(view, dy, x, &statistics, weight, EPS, dx, execution)
                    .map(drop)
                    .unwrap();
            });
            for (i, &way) in ways.iter().enumerate() {
                let [forward, backward] = &mut sweeps_of;
                turn(&mut forward[0][i], &mut |y| {
                    sweeps::<true, false>(view, l2, way, [x, x], y, &table)
                });
                turn(&mut forward[1][i], &mut |y| {
                    sweeps::<true, true>(view, l2, way, [x, x], y, &table)
                });
                turn(&mut backward[0][i], &mut |dx| {
                    sweeps::<false, false>(view, l2, way, [x, dy], dx, &table)
                });
                turn(&mut backward[1][i], &mut |dx| {
                    sweeps::<false, true>(view, l2, way, [x, dy], dx, &table)
                });
            }
        }
        let [copy, addition] = limits.map(median);
        let [forward, backward] = verbs.map(median);
        let [of_forward, of_backward] = sweeps_of.map(|of_pass| of_pass.map(fastest));
        Ok(Times {
            copy,
            addition,
            forward: [of_forward[0], of_forward[1], forward],
            backward: [of_backward[0], of_backward[1], backward],
        })
    }

    fn median(mut times: Vec<Duration>) -> f64 {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    }

    fn fastest(times: Vec<Vec<Duration>>) -> f64 {
        times.into_iter().map(median).fold(f64::INFINITY, f64::min)
    }

    /// Both sweeps over two inputs, or `ONE`.
    fn sweeps<const ONE: bool, const ARITHMETIC: bool>(
        view: View,
        l2: usize,
        Way { by_block, ahead, streamed }: Way,
        [a, b]: [&[f32]; 2],
        out: &mut [f32],
        table: &Table,
    ) {
        let read_of = |piece: Range<usize>| {
            // SAFETY: the processor was asked.
            unsafe { read::<ONE, ARITHMETIC>([&a[piece.clone()], &b[piece]], ahead) };
        };
        let mut write_of = |piece: Range<usize>| {
            let inputs = [&a[piece.clone()], &b[piece.clone()]];
            write::<ONE, ARITHMETIC>(inputs, &mut out[piece], table, ahead, streamed);
        };
        if by_block {
            let channel = view.count() * size_of::<f32>() * if ONE { 1 } else { 2 };
            let block = (l2 / 2 / channel).clamp(1, view.channels);
            for first in (0..view.channels).step_by(block) {
                let len = block.min(view.channels - first) * view.inner;
                let pieces = (0..view.outer).map(|outer| {
                    let start = (outer * view.channels + first) * view.inner;
                    start..start + len
                });
                pieces.clone().for_each(read_of);
                pieces.rev().for_each(&mut write_of);
            }
        } else {
            // Whole rows, so that pieces begin with the first column.
            let len = (PIECE / table.columns).max(1) * table.columns;
            let pieces =
                (0..view.len()).step_by(len).map(|start| start..(start + len).min(view.len()));
            pieces.clone().for_each(read_of);
            pieces.rev().for_each(write_of);
        }
    }

    /// Coefficients of columns of rows, and again of the first ones: a row of memory with channels last, else one vector.
    struct Table {
        columns: usize,
        values: [Vec<f32>; 5],
    }

    impl Table {
        fn new(view: View) -> Table {
            let columns = if view.inner == 1 { view.channels } else { LANES };
            let values = [0.25, 1e-9, 0.5, 0.75, 1.25].map(|value| vec![value; columns + LANES]);
            Table { columns, values }
        }
    }

    /// Asks for what lies `ahead` of element `i`, which may be beyond the end.
    #[inline(always)]
    fn ask<const ONE: bool>([a, b]: [&[f32]; 2], i: usize, ahead: usize) {
        if ahead > 0 {
            // SAFETY: what is asked for may lie anywhere, and the level has the instruction.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(a.as_ptr().wrapping_add(i + ahead).cast());
                if !ONE {
                    _mm_prefetch::<_MM_HINT_T0>(b.as_ptr().wrapping_add(i + ahead).cast());
                }
            }
        }
    }

    /// Reads both inputs, or `ONE`: with `ARITHMETIC` it adds up in float64 the first and its products with the second,
    /// else all it does is additions.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn read<const ONE: bool, const ARITHMETIC: bool>([a, b]: [&[f32]; 2], ahead: usize) {
        let (mut sums, mut products) = ([_mm256_setzero_pd(); 4], [_mm256_setzero_pd(); 4]);
        let mut bare = [_mm256_setzero_ps(); 4];
        for i in (0..a.len() / LANES * LANES).step_by(LANES) {
            ask::<ONE>([a, b], i, ahead);
            // SAFETY: sixteen elements from `i` on.
            let (a, b) = unsafe { (a.as_ptr().add(i), b.as_ptr().add(i)) };
            if ARITHMETIC {
                for k in 0..4 {
                    // SAFETY: four of the sixteen.
                    let [x, y]: [__m256d; 2] = unsafe {
                        let x = _mm256_cvtps_pd(_mm_loadu_ps(a.add(4 * k)));
                        [x, if ONE { x } else { _mm256_cvtps_pd(_mm_loadu_ps(b.add(4 * k))) }]
                    };
                    sums[k] = _mm256_add_pd(sums[k], x);
                    products[k] = _mm256_fmadd_pd(x, y, products[k]);
                }
            } else {
                for k in 0..2 {
                    // SAFETY: eight of the sixteen.
                    unsafe {
                        bare[k] = _mm256_add_ps(bare[k], _mm256_loadu_ps(a.add(8 * k)));
                        if !ONE {
                            bare[2 + k] = _mm256_add_ps(bare[2 + k], _mm256_loadu_ps(b.add(8 * k)));
                        }
                    }
                }
            }
        }
        black_box((sums, products, bare));
    }

    /// Writes what is made of both inputs, or of `ONE`: with `ARITHMETIC` y of x or dx of both, else a copy or the sum.
    fn write<const ONE: bool, const ARITHMETIC: bool>(
        [a, b]: [&[f32]; 2],
        out: &mut [f32],
        table: &Table,
        ahead: usize,
        streamed: bool,
    ) {
        let head = out.as_ptr().align_offset(64).min(out.len());
        let lines = head..head + (out.len() - head) / LANES * LANES;
        let inputs = [&a[lines.clone()], &b[lines.clone()]];
        let into = &mut out[lines.clone()];
        // SAFETY: the processor was asked; `lines` is made of whole aligned lines, and its first element is that of
        // column `head`, which is less than a line.
        unsafe {
            if streamed {
                lines_of::<ONE, ARITHMETIC, true>(inputs, into, table, head, ahead);
            } else {
                lines_of::<ONE, ARITHMETIC, false>(inputs, into, table, head, ahead);
            }
        }
        // Less than two lines, which are only copied.
        for rest in [0..lines.start, lines.end..out.len()] {
            out[rest.clone()].copy_from_slice(&a[rest]);
        }
    }

    /// [`write`] of whole lines. The first element is in column `column < LANES` of the table.
    ///
    /// # Safety
    /// The processor has AVX2 and FMA; the arrays are of one length, which is a multiple of `LANES`, and `out` is aligned to
    /// 64 bytes; the table holds `LANES` more values of each coefficient than columns, which are a multiple of `LANES`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn lines_of<const ONE: bool, const ARITHMETIC: bool, const STREAMED: bool>(
        [a, b]: [&[f32]; 2],
        out: &mut [f32],
        table: &Table,
        column: usize,
        ahead: usize,
    ) {
        let values = table.values.each_ref().map(|values| values.as_ptr());
        let mut of_line = [[_mm256_setzero_ps(); 5]; 2];
        let mut at = column;
        for i in (0..out.len()).step_by(LANES) {
            ask::<ONE>([a, b], i, ahead);
            if ARITHMETIC && (i == 0 || table.columns > LANES) {
                for (half, of_half) in of_line.iter_mut().enumerate() {
                    // SAFETY: `at` is less than the columns, behind which the table holds sixteen values.
                    *of_half =
                        values.map(|values| unsafe { _mm256_loadu_ps(values.add(at + 8 * half)) });
                }
            }
            for (half, of_half) in of_line.iter().enumerate() {
                let i = i + 8 * half;
                // SAFETY: eight elements of arrays that are multiples of sixteen, and aligned where they are written.
                unsafe {
                    let x = _mm256_loadu_ps(a.as_ptr().add(i));
                    let y = if ONE { x } else { _mm256_loadu_ps(b.as_ptr().add(i)) };
                    let value = value::<ONE, ARITHMETIC>(x, y, of_half);
                    let into = out.as_mut_ptr().add(i);
                    if STREAMED {
                        _mm256_stream_ps(into, value);
                    } else {
                        _mm256_storeu_ps(into, value);
                    }
                }
            }
            at += LANES;
            at -= if at >= table.columns { table.columns } else { 0 };
        }
        _mm_sfence();
    }

    /// What is written of eight elements.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn value<const ONE: bool, const ARITHMETIC: bool>(
        x: __m256,
        dy: __m256,
        &[c0, c1, c2, c3, c4]: &[__m256; 5],
    ) -> __m256 {
        match (ARITHMETIC, ONE) {
            (false, true) => x,
            (false, false) => _mm256_add_ps(x, dy),
            (true, true) => {
                let deviation = _mm256_sub_ps(_mm256_sub_ps(x, c0), c1);
                _mm256_add_ps(_mm256_mul_ps(deviation, c2), c3)
            }
            (true, false) => {
                let rest = _mm256_add_ps(_mm256_sub_ps(dy, c1), c2);
                let slope = _mm256_mul_ps(_mm256_sub_ps(x, c0), c3);
                _mm256_mul_ps(_mm256_sub_ps(rest, slope), c4)
            }
        }
    }
}
