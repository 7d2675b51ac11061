//! What [`conforms!`](super::conforms) asks of an instruction set.

use super::{
    Bits16, Double, Kernel, LANES, Level, STREAM_ALIGNMENT, Simd, Vector, narrow_bf16, narrow_f16,
    widen_bf16, widen_f16,
};
use crate::backward::{Differentiate, Gating, Upstream, batch_norm_backward_raw};
use crate::element::{Element, Real};
use crate::{
    Activation, Affine, Caches, Epilogue, Execution, Mask, View, apply, apply_in_place,
    backward_apply, backward_reduce, batch_norm, batch_norm_backward, epilogue_backward, moments,
};
use std::ops::{Deref, DerefMut, Range};

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
            4 => 6e4,
            5 => 3e-7,
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
        for bits_of in [0, 1, 0x8000, 0xaaaa, u16::MAX, 0x1234 << (n % 4)] {
            let selected =
                std::array::from_fn::<_, LANES, _>(
                    |i| {
                        if bits_of >> i & 1 == 1 { a[i] } else { b[i] }
                    },
                );
            assert_eq!(stored(V::select(bits_of, 0, va, vb)), bits(&selected));
        }
        let (plus, minus) = (V::splat(zero), V::splat(V::Scalar::from_f64(-0.0)));
        assert!(plus.is_zero() && minus.is_zero() && !nan.is_zero());
        for i in 0..LANES {
            let mut alone = [zero; LANES];
            alone[i] = V::Scalar::LEAST;
            assert!(!V::load(alone.as_ptr()).is_zero(), "lane {i}");
        }
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

/// Loads, stores and conversions of both formats of 16 bits against portable code.
pub(super) fn bits16(level: Level) {
    if available(level) {
        // SAFETY: this kernel works on arrays of its own.
        unsafe { level.run(Halves) };
    }
}

struct Halves;

impl Kernel for Halves {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self, simd: S) {
        // Every pattern there is.
        for first in (0..=u16::MAX).step_by(LANES) {
            check_widening::<S>(std::array::from_fn(|i| first + i as u16));
        }
        // Every upper half of an `f32` with the lower halves around ties of `bf16`, which are values of
        // every exponent, of both signs, infinite ones and NaN.
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        // The fractions around ties of `f16`: normal ones end at bit 13, subnormal ones further up.
        let ties = (1..=13).flat_map(|end| {
            let tie = 0x1000_u32 << (end - 1);
            [tie.wrapping_sub(1), tie, tie + 1]
        });
        let lower: Vec<u32> = lower.into_iter().chain(ties).collect();
        for upper in 0..=u16::MAX {
            for lower in lower.chunks(LANES) {
                let mut floats = [f32::from_bits(u32::from(upper) << 16); LANES];
                for (float, lower) in floats.iter_mut().zip(lower) {
                    *float = f32::from_bits(u32::from(upper) << 16 ^ lower);
                }
                check_narrowing::<S>(floats);
            }
        }
        for n in 0..=LANES {
            check_memory::<S>(n);
        }
        simd.fence();
    }
}

/// Widening of one vector. NaN may have another payload, but has to be one.
#[inline(always)]
fn check_widening<S: Simd>(bits: [u16; LANES]) {
    let (mut f16, mut bf16) = ([0.0; LANES], [0.0; LANES]);
    // SAFETY: every access is to an array of LANES; `Level::run` vouches for the set.
    unsafe {
        let loaded = S::U16::load(bits.as_ptr());
        loaded.widen_f16().store(f16.as_mut_ptr());
        loaded.widen_bf16().store(bf16.as_mut_ptr());
    }
    let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    for i in 0..LANES {
        assert!(same(f16[i], widen_f16(bits[i])), "f16 {:#06x}", bits[i]);
        assert!(same(bf16[i], widen_bf16(bits[i])), "bf16 {:#06x}", bits[i]);
    }
}

/// Narrowing of one vector.
#[inline(always)]
fn check_narrowing<S: Simd>(floats: [f32; LANES]) {
    let (mut f16, mut bf16) = ([0; LANES], [0; LANES]);
    // SAFETY: as above.
    unsafe {
        let loaded = S::F32::load(floats.as_ptr());
        S::U16::narrow_f16(loaded).store(f16.as_mut_ptr());
        S::U16::narrow_bf16(loaded).store(bf16.as_mut_ptr());
    }
    let same =
        |a: u16, b: u16, widen: fn(u16) -> f32| a == b || widen(a).is_nan() && widen(b).is_nan();
    for i in 0..LANES {
        let float = floats[i];
        assert!(same(f16[i], narrow_f16(float), widen_f16), "f16 of {float:e}");
        assert!(same(bf16[i], narrow_bf16(float), widen_bf16), "bf16 of {float:e}");
    }
}

/// Loads and stores of `n` elements; what lies beyond them is a guard that must not change.
#[inline(always)]
fn check_memory<S: Simd>(n: usize) {
    const GUARD: u16 = 0x1234;
    #[repr(align(64))]
    struct Aligned([u16; 2 * LANES]);
    let bits: [u16; LANES] = std::array::from_fn(|i| 0x3f80 + 17 * i as u16);

    // SAFETY: every access is to an array of LANES, or to `n <= LANES` of its elements; a streamed
    // store to half a line of an aligned array.
    unsafe {
        let loaded = S::U16::load(bits.as_ptr());
        let stored = |v: S::U16| {
            let mut out = [GUARD; LANES];
            v.store(out.as_mut_ptr());
            out
        };
        assert_eq!(stored(loaded), bits);

        // A copy of its own, so that a checker of memory notices a read beyond it.
        let mut first = [0; LANES];
        first[..n].copy_from_slice(&bits[..n]);
        let part = bits[..n].to_vec();
        assert_eq!(stored(S::U16::load_partial(part.as_ptr(), n)), first, "{n}, then zeros");

        let mut out = [GUARD; LANES];
        loaded.store_partial(out.as_mut_ptr(), n);
        let mut first = [GUARD; LANES];
        first[..n].copy_from_slice(&bits[..n]);
        assert_eq!(out, first, "{n} elements written and no more");

        for half in 0..2 {
            let mut out = Aligned([GUARD; 2 * LANES]);
            loaded.stream(out.0.as_mut_ptr().add(half * LANES));
            assert_eq!(out.0[half * LANES..][..LANES], bits);
            assert_eq!(out.0[(1 - half) * LANES..][..LANES], [GUARD; LANES]);
        }
    }
}

/// Every verb over shapes that reach every loop, on one thread and on three, through caches and past
/// them, against the portable level on one thread.
pub(super) fn verbs<E: Element>(level: Level) {
    if !available(level) {
        return;
    }
    let shapes = [
        (3, 5, 1),
        (1, 7, 1),
        (40, 3, 1),
        (70, 16, 1),
        (7, 600, 1),
        (40, 240, 1),
        (300, 37, 1),
        (300, 2060, 1),
        (20, 1100, 1),
        (20, 2064, 1),
        (12, 4100, 1),
        (2, 5, 16),
        (2, 3, 20),
        (9, 5, 7),
        (2, 3, 7),
        (33, 20, 49),
        (5, 40, 49),
        (6, 20, 196),
        (33, 60, 36),
        (9, 12, 64),
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
            |n: usize| -> Vec<E> { (0..n).map(|_| E::narrow(random.value())).collect() };
        let (mut x, dy) = (values(view.len()), values(view.len()));
        // Every third shape is far from zero in every channel, every third in some channels.
        for (i, x) in x.iter_mut().enumerate() {
            if seed % 3 == 1 || seed % 3 == 2 && (i / inner) % 2 == 1 {
                *x = E::narrow(x.widen() + 100.0);
            }
        }
        let parameters: Vec<f64> = (0..channels).map(|c| 0.5 + c as f64).collect();
        let caches = Caches::current().unwrap();
        let on = |execution, behind| outputs(view, &x, &dy, &parameters, execution, behind);
        let expected = on(Execution { level: Level::Scalar, threads: 1, caches }, 0);
        let none = Caches { l2: 1 << 16, last: 0, overlap: true };
        let some = seed % LANES;
        for (threads, caches, behind) in
            [(1, caches, 4), (3, caches, some), (1, none, some), (3, none, 4), (1, none, 0)]
        {
            let got = on(Execution { level, threads, caches }, behind);
            let place =
                format!("on {threads} threads, {caches:?}, {behind} elements behind a line");
            assert_eq!(got, expected, "{view:?} {place}");
        }
        for share in [2, 14] {
            // Single positions at random, and stretches of a hundred.
            let mut counted: Vec<bool> =
                (0..view.count()).map(|_| random.next() % 16 < share).collect();
            for (i, stretch) in counted.chunks_mut(100).enumerate() {
                if i % 3 > 0 {
                    stretch.fill(i % 3 == 1);
                }
            }
            counted[0] = true;
            let mask = Mask::new(view, &counted).unwrap();
            let on = |execution, behind| masked_outputs(view, &mask, &x, &dy, execution, behind);
            let expected = on(Execution { level: Level::Scalar, threads: 1, caches }, 0);
            for (threads, caches, behind) in [(1, caches, some), (3, none, 4)] {
                let got = on(Execution { level, threads, caches }, behind);
                assert_eq!(got, expected, "{share}/16 of {view:?}, {threads} threads, {caches:?}");
            }
        }
    }
}

/// The bits of what the verbs compute of the positions that count, with NaN at all others, whose `dy` is
/// 0 half of the time. The fused ones and their halves agree; so do a mask of all positions and none.
fn masked_outputs<E: Element>(
    view: View,
    mask: &Mask,
    x: &[E],
    dy: &[E],
    execution: Execution,
    behind: usize,
) -> Vec<u64> {
    let bits = |values: &[E]| {
        let bits = |x: &E| if x.widen().is_nan() { 0 } else { x.widen().to_bits() };
        values.iter().map(bits).collect::<Vec<_>>()
    };
    let (eps, none) = (1e-5, Epilogue::default());
    let empty = || Outputs::<E>::new(view.len(), behind);
    let batch = view.masked(mask).unwrap();
    let counted = mask.to_vec();
    let (mut x, mut dy) = (x.to_vec(), dy.to_vec());
    for (i, (x, dy)) in x.iter_mut().zip(&mut dy).enumerate() {
        let position = i / (view.channels * view.inner) * view.inner + i % view.inner;
        if !counted[position] {
            *x = E::narrow(f64::NAN);
            if (position / 200).is_multiple_of(2) {
                *dy = E::narrow(0.0);
            }
        }
    }
    let (mut y, mut dx, mut again) = (empty(), empty(), empty());
    let statistics = batch_norm(batch, &x, None, None, eps, none, &mut y, execution).unwrap();
    assert!(statistics.mean().iter().all(|mean| mean.is_finite()));
    assert_eq!(moments(batch, &x, execution).unwrap(), statistics);
    let sums =
        batch_norm_backward(batch, &dy, &x, &statistics, None, eps, &mut dx, execution).unwrap();
    let reduced = backward_reduce(batch, &dy, &x, &statistics, execution).unwrap();
    let bits64 = |values: &[f64]| {
        let bits = |x: &f64| if x.is_nan() { 0 } else { x.to_bits() };
        values.iter().map(bits).collect::<Vec<_>>()
    };
    assert_eq!(bits64(reduced.sum_dy_xmu()), bits64(sums.sum_dy_xmu()));
    backward_apply(batch, &dy, &x, &statistics, &sums, None, eps, &mut again, execution).unwrap();
    assert_eq!(bits(&again), bits(&dx));
    let all = Mask::new(view, &vec![true; view.count()]).unwrap();
    let batch = view.masked(&all).unwrap();
    assert_eq!(
        moments(batch, &dy, execution).unwrap(),
        moments(view, &dy, execution).unwrap(),
        "{view:?}"
    );
    [bits(&y), bits(&dx), bits64(statistics.mean()), bits64(statistics.m2())]
        .into_iter()
        .chain([bits64(sums.sum_dy()), bits64(sums.sum_dy_xmu())])
        .flatten()
        .collect()
}

/// Outputs that begin at a place of their own beside lines of memory.
struct Outputs<E> {
    values: Vec<E>,
    range: Range<usize>,
}

impl<E: Element> Outputs<E> {
    /// So many, the first of them so many elements behind the beginning of a line.
    fn new(len: usize, behind: usize) -> Self {
        let room = STREAM_ALIGNMENT / size_of::<E>();
        let values = vec![E::narrow(0.0); room + behind + len];
        let start = values.as_ptr().align_offset(STREAM_ALIGNMENT) + behind;
        Outputs { values, range: start..start + len }
    }
}

impl<E> Deref for Outputs<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.values[self.range.clone()]
    }
}

impl<E> DerefMut for Outputs<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.values[self.range.clone()]
    }
}

/// The bits of everything that the verbs compute into outputs that begin so many elements behind a line, the fused ones and
/// their halves agreeing.
fn outputs<E: Element>(
    view: View,
    x: &[E],
    dy: &[E],
    weight: &[f64],
    execution: Execution,
    behind: usize,
) -> Vec<u64> {
    let eps = 1e-5;
    let none = Epilogue::default();
    let bits = |values: &[E]| values.iter().map(|x| x.widen().to_bits()).collect::<Vec<_>>();
    let bits64 = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let empty = || Outputs::<E>::new(view.len(), behind);

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
                    view.into(),
                    upstream,
                    x.as_ptr(),
                    Differentiate { moments: &halves, weight: Some(weight), eps },
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
