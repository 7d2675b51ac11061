//! The verbs over named shapes, next to a copy and an addition of the same bytes: `cargo bench`.
//!
//! Names are `verb/shape`; throughput counts the bytes that a verb has to move, so GB/s compare with those of `copy` (which
//! `moments`, `apply` and `batch_norm` cannot beat by much) and `add` (likewise for the backward verbs). Thread count and
//! instruction set are those of the process: `RUSTBN_NUM_THREADS=1 RUSTBN_SIMD=avx2 cargo bench -- batch_norm`.

mod common;

use std::hint::black_box;

use common::{activations, outputs};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group};
use rustbn::{
    Affine, Epilogue, Error, Execution, View, apply, backward_apply, backward_reduce, batch_norm,
    batch_norm_backward, moments,
};

const EPS: f64 = 1e-5;

/// Layers of ResNet-50, planar and interleaved, from large planes to small ones; and a batch of vectors. (Names and shapes
/// as in `python/rustbn/bench/shapes.toml`, the batch halved to keep a run short.)
const SHAPES: [(&str, View); 6] = [
    ("nchw 16x64x112x112", View { outer: 16, channels: 64, inner: 112 * 112 }),
    ("nchw 16x128x28x28", View { outer: 16, channels: 128, inner: 28 * 28 }),
    ("nchw 16x512x7x7", View { outer: 16, channels: 512, inner: 7 * 7 }),
    ("nhwc 16x64x112x112", View { outer: 16 * 112 * 112, channels: 64, inner: 1 }),
    ("nhwc 16x512x7x7", View { outer: 16 * 7 * 7, channels: 512, inner: 1 }),
    ("nc 1024x1024", View { outer: 1024, channels: 1024, inner: 1 }),
];

/// Benches `body` as `name` on `shape`, which moves `arrays` arrays of the view.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    (shape, view): (&str, View),
    arrays: usize,
    mut body: impl FnMut(),
) {
    let mut group: BenchmarkGroup<WallTime> = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes((arrays * view.len() * size_of::<f32>()) as u64));
    group.bench_function(BenchmarkId::from_parameter(shape), |bencher| bencher.iter(&mut body));
    group.finish();
}

/// A verb, whose arguments are right.
fn expect<T>(result: Result<T, Error>) -> T {
    result.expect("the arguments fit")
}

fn forward(criterion: &mut Criterion) {
    let execution = expect(Execution::current());
    for (shape, view) in SHAPES {
        let x = activations(view.len(), 1);
        let mut y = outputs(view.len());
        let ones = vec![1.0; view.channels];
        let statistics = expect(moments(view, &x, execution));
        let affine = expect(Affine::from_moments(&statistics, Some(&ones), None, EPS));
        let case = (shape, view);

        bench(criterion, "copy", case, 2, || y.copy_from_slice(black_box(&x)));
        bench(criterion, "moments", case, 1, || {
            black_box(expect(moments(view, &x, execution)));
        });
        bench(criterion, "apply", case, 2, || {
            expect(apply(view, &x, &affine, Epilogue::default(), black_box(&mut y), execution));
        });
        bench(criterion, "batch_norm", case, 2, || {
            black_box(expect(batch_norm(
                view,
                &x,
                Some(&ones),
                None,
                EPS,
                Epilogue::default(),
                &mut y,
                execution,
            )));
        });
    }
}

fn backward(criterion: &mut Criterion) {
    let execution = expect(Execution::current());
    for (shape, view) in SHAPES {
        let (x, dy) = (activations(view.len(), 1), activations(view.len(), 2));
        let mut dx = outputs(view.len());
        let ones = vec![1.0; view.channels];
        let weight = Some(&ones[..]);
        let statistics = expect(moments(view, &x, execution));
        let sums = expect(backward_reduce(view, &dy, &x, &statistics, execution));
        let case = (shape, view);

        bench(criterion, "add", case, 3, || {
            let terms = black_box(&x).iter().zip(black_box(&dy));
            dx.iter_mut().zip(terms).for_each(|(dx, (x, dy))| *dx = x + dy);
        });
        bench(criterion, "backward_reduce", case, 2, || {
            black_box(expect(backward_reduce(view, &dy, &x, &statistics, execution)));
        });
        bench(criterion, "backward_apply", case, 3, || {
            let dx = black_box(&mut dx);
            expect(backward_apply(view, &dy, &x, &statistics, &sums, weight, EPS, dx, execution));
        });
        bench(criterion, "batch_norm_backward", case, 3, || {
            let dx = black_box(&mut dx);
            black_box(expect(batch_norm_backward(
                view,
                &dy,
                &x,
                &statistics,
                weight,
                EPS,
                dx,
                execution,
            )));
        });
    }
}

criterion_group! {
    name = verbs;
    config = Criterion::default().sample_size(20);
    targets = forward, backward
}
criterion::criterion_main!(verbs);
