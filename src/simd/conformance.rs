//! What [`conforms!`](super::conforms) asks of an instruction set.

use super::{Double, Kernel, LANES, Level, Simd, Vector};
use crate::backward::{Gating, Upstream, batch_norm_backward_raw};
use crate::element::{Element, Real};
use crate::{
    Activation, Affine, Caches, Epilogue, Execution, View, apply, apply_in_place, backward_apply,
    backward_reduce, batch_norm, batch_norm_backward, epilogue_backward, moments,
};

/// Whether the machine has `level`. A run that was asked for a level by `RUSTBN_SIMD` must have it:
/// that is how emulators prove what they ran.
fn available(level: Level) -> bool {
    let has = Level::supported().contains(&level);
    let asked = std::env::var("RUSTBN_SIMD").is_ok_and(|name| name == level.name());
    assert!(
        has || !asked,
        "RUSTBN_SIMD={} on a machine that has only {:?}",
        level.name(),
        Level::supported()
    );
    has
}

/// A generator of bits (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
/// generators").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1, with a few values that are hard: zeros of both signs, subnormals, large
    /// ones.
    fn value(&mut self) -> f64 {
        match self.next() % 64 {
            0 => 0.0,
            1 => -0.0,
            2 => 1e-40,
            3 => -3e-39,
            4 => 1e5,
            _ => (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0,
        }
    }
}

/// Loads, stores and arithmetic of both vectors against arrays.
pub(super) fn vectors(level: Level) {
    if available(level) {
        // SAFETY: this kernel works on arrays of its own.
        unsafe { level.run(Vectors) };
    }
}

struct Vectors;

impl Kernel for Vectors {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        let mut random = Random(1);
        for n in 0..=LANES {
            let a: [f64; LANES] = std::array::from_fn(|_| random.value());
            let b: [f64; LANES] = std::array::from_fn(|_| random.value());
            check::<S::F64>(a, b, n);
            check::<S::F32>(a.map(|x| x as f32), b.map(|x| x as f32), n);
        }
        simd.fence();
    }
}

/// One vector type. What lies beyond the `n` elements of a partial access is a guard that must not
/// change.
#[inline(always)]
fn check<V: Vector>(a: [V::Scalar; LANES], b: [V::Scalar; LANES], n: usize)
where
    V::Scalar: Real + PartialEq + std::fmt::Debug,
{
    #[repr(align(128))]
    struct Aligned<T>([T; LANES]);

    let bits =
        |values: &[V::Scalar]| values.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
    let zero = V::Scalar::from_f64(0.0);
    let guard = V::Scalar::from_f64(77.0);
    assert_eq!(V::LANES, LANES);
    // SAFETY: every access is to an array of LANES, or to `n <= LANES` of its elements;
    // `Level::run` vouches for the set.
    unsafe {
        let (va, vb) = (V::load(a.as_ptr()), V::load(b.as_ptr()));
        let stored = |v: V| {
            let mut out = [guard; LANES];
            v.store(out.as_mut_ptr());
            bits(&out)
        };
        let expected = |f: fn(f64, f64) -> f64| -> Vec<u64> {
            // One operation in f64 rounded to f32 is the operation in f32: f64 has more than twice
            // its digits.
            bits(&std::array::from_fn::<_, LANES, _>(|i| {
                V::Scalar::from_f64(f(a[i].to_f64(), b[i].to_f64()))
            }))
        };
        assert_eq!(stored(va), bits(&a));
        assert_eq!(stored(va + vb), expected(|x, y| x + y));
        assert_eq!(stored(va - vb), expected(|x, y| x - y));
        assert_eq!(stored(va * vb), expected(|x, y| x * y));
        assert_eq!(stored(va / vb), expected(|x, y| x / y));
        let selected = std::array::from_fn::<_, LANES, _>(|i| {
            if a[i].to_f64() < b[i].to_f64() { a[i] } else { zero }
        });
        assert_eq!(stored(V::select_less(va, vb, va, V::splat(zero))), bits(&selected));
        let nan = V::splat(V::Scalar::from_f64(f64::NAN));
        assert_eq!(stored(V::select_less(nan, vb, va, vb)), bits(&b));
        assert_eq!(stored(V::select_less(va, nan, va, vb)), bits(&b));
        let thirds: [f64; LANES] = std::array::from_fn(|i| a[i].to_f64() / 3.0);
        let narrow = V::narrow(V::Wide::load(thirds.as_ptr()));
        assert_eq!(stored(narrow), bits(&thirds.map(V::Scalar::from_f64)));
        let powers: [f64; LANES] = std::array::from_fn(|i| (i * 2045 / 15) as f64 - 1022.0);
        let mut two_to_the = [0.0; LANES];
        V::Wide::load(powers.as_ptr()).power_of_two().store(two_to_the.as_mut_ptr());
        assert_eq!(two_to_the, powers.map(f64::exp2));
        assert_eq!(stored(V::splat(a[3])), bits(&[a[3]; LANES]));
        // Numbers of a few bits, whose products are exact in either type.
        let few = |values: [V::Scalar; LANES]| {
            values.map(|x| V::Scalar::from_f64((x.to_f64() * 64.0).round() / 64.0))
        };
        let (fa, fb) = (few(a), few(b));
        let sums = std::array::from_fn::<_, LANES, _>(|i| {
            let exact = fa[i].to_f64() * fb[i].to_f64();
            V::Scalar::from_f64(a[i].to_f64() + exact)
        });
        let fused = va.add_exact_product(V::load(fa.as_ptr()), V::load(fb.as_ptr()));
        assert_eq!(stored(fused), bits(&sums));

        let mut first = [zero; LANES];
        first[..n].copy_from_slice(&a[..n]);
        assert_eq!(
            stored(V::load_partial(a.as_ptr(), n)),
            bits(&first),
            "the first {n} lanes, then zeros"
        );

        let mut out = [guard; LANES];
        va.store_partial(out.as_mut_ptr(), n);
        let mut first = [guard; LANES];
        first[..n].copy_from_slice(&a[..n]);
        assert_eq!(bits(&out), bits(&first), "{n} elements written and no more");

        let mut aligned = Aligned([guard; LANES]);
        va.stream(aligned.0.as_mut_ptr());
        assert_eq!(bits(&aligned.0), bits(&a));

        let mut wide = [0.0; LANES];
        va.widen().store(wide.as_mut_ptr());
        assert_eq!(wide.map(f64::to_bits).to_vec(), bits(&a));
    }
}

const ACTIVATIONS: [Activation; 8] = [
    Activation::Identity,
    Activation::Relu,
    Activation::Relu6,
    Activation::LeakyRelu(0.3),
    Activation::Silu,
    Activation::Hardswish,
    Activation::Sigmoid,
    Activation::Tanh,
];

/// Every verb over shapes that reach every loop, on one thread and on three, against the portable
/// level on one.
pub(super) fn verbs<E: Element<Real = E> + Real>(level: Level) {
    if !available(level) {
        return;
    }
    let shapes = [
        (3, 5, 1),
        (1, 7, 1),
        (40, 3, 1),
        (70, 16, 1),
        (300, 37, 1),
        (600, 1030, 1),
        (2, 3, 20),
        (9, 5, 7),
        (33, 20, 49),
        (4, 2, 255),
        (5, 3, 256),
        (3, 2, 4097),
        (2, 1, 70_000),
        (1, 3, 140_001),
        (1000, 3, 17),
    ];
    for (seed, (outer, channels, inner)) in shapes.into_iter().enumerate() {
        let view = View { outer, channels, inner };
        let mut random = Random(seed as u64);
        let mut values =
            |n: usize| -> Vec<E> { (0..n).map(|_| E::from_f64(random.value())).collect() };
        let (mut x, dy) = (values(view.len()), values(view.len()));
        // Every third shape is far from zero in every channel, every third in some channels.
        for (i, x) in x.iter_mut().enumerate() {
            if seed % 3 == 1 || seed % 3 == 2 && (i / inner) % 2 == 1 {
                *x = E::from_f64(x.to_f64() + 100.0);
            }
        }
        let parameters: Vec<f64> = (0..channels).map(|c| 0.5 + c as f64).collect();
        let caches = Caches::current().unwrap();
        let expected = outputs(
            view,
            &x,
            &dy,
            &parameters,
            Execution { level: Level::Scalar, threads: 1, caches },
        );
        for threads in [1, 3] {
            let got = outputs(view, &x, &dy, &parameters, Execution { level, threads, caches });
            assert_eq!(got, expected, "{view:?} on {threads} threads");
        }
    }
}

/// The bits of everything that the verbs compute, the fused ones and their halves agreeing.
fn outputs<E: Element<Real = E> + Real>(
    view: View,
    x: &[E],
    dy: &[E],
    weight: &[f64],
    execution: Execution,
) -> Vec<u64> {
    let eps = 1e-5;
    let none = Epilogue::default();
    let bits = |values: &[E]| values.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
    let bits64 = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let empty = || vec![E::from_f64(0.0); view.len()];

    let (mut y, mut dx) = (empty(), empty());
    let statistics =
        batch_norm(view, x, Some(weight), Some(weight), eps, none, &mut y, execution).unwrap();
    let sums = batch_norm_backward(view, dy, x, &statistics, Some(weight), eps, &mut dx, execution)
        .unwrap();

    let halves = moments(view, x, execution).unwrap();
    assert_eq!(halves, statistics);
    let affine = Affine::from_moments(&halves, Some(weight), Some(weight), eps).unwrap();
    let mut again = empty();
    apply(view, x, &affine, none, &mut again, execution).unwrap();
    assert_eq!(bits(&again), bits(&y));
    again.copy_from_slice(x);
    apply_in_place(view, &mut again, &affine, none, execution).unwrap();
    assert_eq!(bits(&again), bits(&y));
    let reduced = backward_reduce(view, dy, x, &halves, execution).unwrap();
    assert_eq!(reduced, sums);
    backward_apply(view, dy, x, &halves, &reduced, Some(weight), eps, &mut again, execution)
        .unwrap();
    assert_eq!(bits(&again), bits(&dx));

    let mut epilogues = Vec::new();
    for activation in ACTIVATIONS {
        for residual in [None, Some(dy)] {
            let epilogue = Epilogue { residual, activation };
            apply(view, x, &affine, epilogue, &mut again, execution).unwrap();
            epilogues.extend(bits(&again));
            if activation.check_training().is_err() {
                continue;
            }
            let mut y = empty();
            batch_norm(view, x, Some(weight), Some(weight), eps, epilogue, &mut y, execution)
                .unwrap();
            assert_eq!(bits(&y), bits(&again));
            // Backward in two steps and in one.
            let (mut dz, mut dx) = (empty(), empty());
            epilogue_backward(view, dy, x, &affine, epilogue, &mut dz, execution).unwrap();
            let sums =
                batch_norm_backward(view, &dz, x, &halves, Some(weight), eps, &mut dx, execution)
                    .unwrap();
            let dz = again.as_mut_ptr();
            let gate = Some(Gating { epilogue: epilogue.raw(), affine: &affine, dz });
            let upstream = Upstream { dy: dy.as_ptr(), gate };
            // SAFETY: all are exactly the elements of `view`, and dx in place of dz is allowed.
            let fused = unsafe {
                batch_norm_backward_raw(
                    view,
                    upstream,
                    x.as_ptr(),
                    &halves,
                    Some(weight),
                    eps,
                    dz,
                    execution,
                )
            };
            assert_eq!(fused, sums);
            assert_eq!(bits(&again), bits(&dx));
            epilogues.extend(bits(&dx));
        }
    }

    [
        epilogues,
        bits(&y),
        bits(&dx),
        bits64(statistics.mean()),
        bits64(statistics.m2()),
        bits64(sums.sum_dy()),
        bits64(sums.sum_dy_xmu()),
    ]
    .concat()
}
