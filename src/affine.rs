//! The transformation that batch normalization is once its statistics are known: `y = (x - mean) *
//! scale + bias`.
//!
//! It stays centred. Collapsing it to `x * a + b` cancels when |mean| is much larger than the
//! standard deviation.

use crate::element::{Element, Real};
use crate::error::Error;
use crate::moments::{Moments, invstd};
use crate::simd::FloatMode;
use crate::view::View;

/// `y = (x - mean) * scale + bias` for each channel, in `f64`.
///
/// ```
/// use rustbn::Affine;
/// let affine = Affine::from_running(&[3.0], &[0.25], Some(&[5.0]), Some(&[7.0]), 0.0)?;
/// assert_eq!(affine, Affine::new(vec![3.0], vec![10.0], vec![7.0])?);
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    mean: Vec<f64>,
    scale: Vec<f64>,
    bias: Vec<f64>,
}

impl Affine {
    /// The transformation with these coefficients.
    ///
    /// # Errors
    /// [`Error::Length`] if `scale` or `bias` differs from `mean` in length.
    pub fn new(mean: Vec<f64>, scale: Vec<f64>, bias: Vec<f64>) -> Result<Affine, Error> {
        check("scale", mean.len(), Some(&scale))?;
        check("bias", mean.len(), Some(&bias))?;
        Ok(Affine { mean, scale, bias })
    }

    /// Normalisation with batch statistics: the biased variance (Ioffe & Szegedy 2015, Algorithm
    /// 1), then `weight` and `bias`, which are 1 and 0 where absent.
    ///
    /// # Errors
    /// [`Error::Length`] if `weight` or `bias` is not one value a channel.
    pub fn from_moments(
        moments: &Moments,
        weight: Option<&[f64]>,
        bias: Option<&[f64]>,
        eps: f64,
    ) -> Result<Affine, Error> {
        Affine::normalising(moments.mean().to_vec(), moments.invstd(eps), weight, bias)
    }

    /// Normalisation with running statistics, which is what batch normalization is at inference
    /// (Ioffe & Szegedy 2015, Algorithm 2).
    ///
    /// # Errors
    /// [`Error::Length`] if a vector is not as long as `running_mean`.
    pub fn from_running(
        running_mean: &[f64],
        running_var: &[f64],
        weight: Option<&[f64]>,
        bias: Option<&[f64]>,
        eps: f64,
    ) -> Result<Affine, Error> {
        check("running_var", running_mean.len(), Some(running_var))?;
        let _mode = FloatMode::standard();
        let invstd = running_var.iter().map(|&var| invstd(var, eps)).collect();
        Affine::normalising(running_mean.to_vec(), invstd, weight, bias)
    }

    fn normalising(
        mean: Vec<f64>,
        mut scale: Vec<f64>,
        weight: Option<&[f64]>,
        bias: Option<&[f64]>,
    ) -> Result<Affine, Error> {
        check("weight", mean.len(), weight)?;
        check("bias", mean.len(), bias)?;
        let _mode = FloatMode::standard();
        if let Some(weight) = weight {
            scale.iter_mut().zip(weight).for_each(|(scale, weight)| *scale *= weight);
        }
        let bias = bias.map_or_else(|| vec![0.0; mean.len()], <[f64]>::to_vec);
        Ok(Affine { mean, scale, bias })
    }

    /// Weight and bias of the one layer that does what a linear or convolutional layer and then this
    /// transformation do (Ioffe & Szegedy 2015, Algorithm 2):
    ///
    /// ```text
    /// W'[o] = scale[o] W[o]        b'[o] = (b[o] - mean[o]) scale[o] + bias[o]
    /// ```
    ///
    /// in `f64`, rounded once. An absent `bias` is 0. `outputs` is the view of the weight whose
    /// channels are the outputs of the layer:
    ///
    /// | layer | weight | `outputs` |
    /// |---|---|---|
    /// | linear | (O, I) | `View::contiguous(&shape, 0)?` |
    /// | linear, in Keras and Flax | (I, O) | `View::contiguous(&shape, 1)?` |
    /// | convolution, grouped or not | (O, I / groups, H, W) | `View::contiguous(&shape, 0)?` |
    /// | convolution, in Keras and Flax | (H, W, I / groups, O) | `View::contiguous(&shape, 3)?` |
    /// | transposed convolution | (I, O / `groups`, H, W) | `View::contiguous(&shape, 1)?` |
    ///
    /// `groups` is 1 but for a transposed convolution, where the groups share the axis of the outputs:
    /// output `g * O / groups + j` is `weight[i, j]` for the inputs `i` of group `g`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `weight` is not exactly the elements of `outputs`; [`Error::Length`] if
    /// this transformation or `bias` is not one value an output; [`Error::Range`] if `groups` does not
    /// divide the inputs, or if a folded value is too large for `E`.
    ///
    /// ```
    /// use rustbn::{Affine, View};
    /// let affine = Affine::new(vec![0.0, 1.0], vec![2.0, 3.0], vec![0.5, 0.5])?;
    /// let outputs = View::contiguous(&[2, 3], 0)?;
    /// let (weight, bias) = affine.fold_into(outputs, 1, &[1.0_f32; 6], None)?;
    /// assert_eq!(weight, [2.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
    /// assert_eq!(bias, [0.5, -2.5]);
    /// # Ok::<(), rustbn::Error>(())
    /// ```
    pub fn fold_into<E: Element>(
        &self,
        outputs: View,
        groups: usize,
        weight: &[E],
        bias: Option<&[E]>,
    ) -> Result<(Vec<E>, Vec<E>), Error> {
        outputs.check("weight", weight)?;
        if groups == 0 || !outputs.outer.is_multiple_of(groups) {
            return Err(Error::Range {
                argument: "groups",
                expected: "a positive divisor of the blocks of outputs in weight",
                got: groups.to_string(),
            });
        }
        let channels = outputs.channels * groups;
        Error::check_length("mean", channels, self.mean.len())?;
        bias.map_or(Ok(()), |bias| Error::check_length("bias", channels, bias.len()))?;

        let _mode = FloatMode::standard();
        let mut folded = Vec::with_capacity(weight.len());
        let mut runs = weight.chunks_exact(outputs.inner.max(1));
        for outer in 0..outputs.outer {
            let group = outer / (outputs.outer / groups);
            let scales = &self.scale[group * outputs.channels..][..outputs.channels];
            for (scale, run) in scales.iter().zip(&mut runs) {
                for value in run {
                    folded.push(rounded("weight", value.widen() * scale)?);
                }
            }
        }
        let folded_bias = (0..channels).map(|o| {
            let before = bias.map_or(0.0, |bias| bias[o].widen());
            rounded("bias", (before - self.mean[o]) * self.scale[o] + self.bias[o])
        });
        Ok((folded, folded_bias.collect::<Result<_, _>>()?))
    }

    /// What is subtracted.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// What the difference is multiplied by.
    pub fn scale(&self) -> &[f64] {
        &self.scale
    }

    /// What is added.
    pub fn bias(&self) -> &[f64] {
        &self.bias
    }
}

fn check(argument: &'static str, expected: usize, vector: Option<&[f64]>) -> Result<(), Error> {
    vector.map_or(Ok(()), |vector| Error::check_length(argument, expected, vector.len()))
}

/// The `E` nearest to `value`, refused where it is infinite and `value` is not.
fn rounded<E: Element>(argument: &'static str, value: f64) -> Result<E, Error> {
    let nearest = E::narrow(value);
    if value.is_finite() && !nearest.widen().is_finite() {
        let expected = "of a type that holds its folded values";
        return Err(Error::Range { argument, expected, got: format!("{value:e}") });
    }
    Ok(nearest)
}

/// The `R` nearest to a finite `value`, never infinite: a difference of zero times it must stay
/// zero.
#[inline(always)]
pub(crate) fn factor<R: Real>(value: f64) -> R {
    let limit = R::MAX.to_f64();
    // Made whether it is needed or not: compilers make vectors of what has no branch.
    let clamped = value.clamp(-limit, limit);
    R::from_f64(if value.is_infinite() { value } else { clamped })
}

/// `value` as the sum of two `R`: the nearest one and what it leaves.
///
/// Subtracting the parts one after the other keeps the error of `x - value` at that of `x`, however
/// large the value is.
#[inline(always)]
pub(crate) fn split<R: Real>(value: f64) -> [R; 2] {
    let high = R::from_f64(value);
    // Nothing is left where that is infinite, whether the value is or is only beyond `R`: a difference of infinities would
    // be NaN.
    let rest = if high.to_f64().is_infinite() { 0.0 } else { value - high.to_f64() };
    [high, R::from_f64(rest)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_keeps_twice_the_digits() {
        let value = 1.0 + 2.0_f64.powi(-30);
        let [high, low] = split::<f32>(value);
        assert_eq!((high, low), (1.0, 2.0_f32.powi(-30)));
        assert_eq!(split::<f64>(value), [value, 0.0]);
        assert_eq!(split::<f32>(f64::INFINITY), [f32::INFINITY, 0.0]);
        assert_eq!(split::<f32>(-1e39), [f32::NEG_INFINITY, 0.0]);
        assert!(split::<f32>(f64::NAN)[0].is_nan());
    }

    #[test]
    fn a_factor_is_finite() {
        assert_eq!(factor::<f32>(0.1), 0.1);
        assert_eq!(factor::<f32>(-1e40), -f32::MAX);
        assert_eq!(factor::<f32>(f64::INFINITY), f32::INFINITY);
        assert!(factor::<f32>(f64::NAN).is_nan());
    }

    #[test]
    fn absent_parameters_are_one_and_zero() {
        let affine = Affine::from_running(&[3.0], &[0.25], None, None, 0.0).unwrap();
        assert_eq!(affine, Affine::new(vec![3.0], vec![2.0], vec![0.0]).unwrap());
        let affine =
            Affine::from_running(&[3.0], &[0.25], Some(&[5.0]), Some(&[7.0]), 0.0).unwrap();
        assert_eq!(affine, Affine::new(vec![3.0], vec![10.0], vec![7.0]).unwrap());
    }

    #[test]
    fn lengths_are_checked_by_name() {
        let error = Affine::from_running(&[3.0], &[1.0, 1.0], None, None, 0.0).unwrap_err();
        assert!(matches!(error, Error::Length { argument: "running_var", expected: 1, .. }));
        let error = Affine::from_running(&[3.0], &[1.0], Some(&[]), None, 0.0).unwrap_err();
        assert!(matches!(error, Error::Length { argument: "weight", .. }));
    }
    /// A layer by definition: output `o` from the weight of each of its inputs at each tap.
    fn layer(
        [outputs, inputs, taps]: [usize; 3],
        weight: impl Fn(usize, usize, usize) -> Option<f64>,
        bias: &[f64],
        x: &[f64],
    ) -> Vec<f64> {
        let terms = |o| {
            let of_input = |i| (0..taps).map(move |t| (i, t));
            let weight = &weight;
            (0..inputs)
                .flat_map(of_input)
                .filter_map(move |(i, t)| Some(weight(o, i, t)? * x[i * taps + t]))
        };
        (0..outputs).map(|o| bias[o] + terms(o).sum::<f64>()).collect()
    }

    #[test]
    fn a_folded_layer_does_both() {
        let (o, i, taps) = (6, 4, 3);
        let number = |k: usize| ((k * 7919 + 13) % 101) as f64 / 25.0 - 2.0;
        let vector = |seed: usize, n: usize| (0..n).map(|k| number(seed + k)).collect::<Vec<_>>();
        let affine = Affine::new(vector(1, o), vector(20, o), vector(40, o)).unwrap();
        let (x, bias) = (vector(60, i * taps), vector(80, o));

        // Where the weight of an output, an input and a tap is, as PyTorch and Keras document it.
        type At<'a> = &'a dyn Fn(usize, usize, usize) -> Option<usize>;
        let cases: [(&str, View, usize, At<'_>); 6] = [
            ("OIHW", View::contiguous(&[o, i, taps], 0).unwrap(), 1, &|o_, i_, t| {
                Some((o_ * i + i_) * taps + t)
            }),
            ("HWIO", View::contiguous(&[taps, i, o], 2).unwrap(), 1, &|o_, i_, t| {
                Some((t * i + i_) * o + o_)
            }),
            (
                "OIHW in 2 groups",
                View::contiguous(&[o, i / 2, taps], 0).unwrap(),
                1,
                &|o_, i_, t| (o_ / 3 == i_ / 2).then_some((o_ * 2 + i_ % 2) * taps + t),
            ),
            ("IOHW", View::contiguous(&[i, o, taps], 1).unwrap(), 1, &|o_, i_, t| {
                Some((i_ * o + o_) * taps + t)
            }),
            (
                "IOHW in 2 groups",
                View::contiguous(&[i, o / 2, taps], 1).unwrap(),
                2,
                &|o_, i_, t| (o_ / 3 == i_ / 2).then_some((i_ * 3 + o_ % 3) * taps + t),
            ),
            ("HWOI", View::contiguous(&[taps, o, i], 1).unwrap(), 1, &|o_, i_, t| {
                Some((t * o + o_) * i + i_)
            }),
        ];
        for (name, view, groups, at) in cases {
            let weight = vector(100, view.len());
            for bias in [Some(&bias[..]), None] {
                let shape = [o, i, taps];
                let zeros = vec![0.0; o];
                let given = bias.unwrap_or(&zeros);
                let y = layer(shape, |o, i, t| Some(weight[at(o, i, t)?]), given, &x);
                let (w, b) = affine.fold_into(view, groups, &weight, bias).unwrap();
                let folded = layer(shape, |o, i, t| Some(w[at(o, i, t)?]), &b, &x);
                for c in 0..o {
                    let both = (y[c] - affine.mean[c]) * affine.scale[c] + affine.bias[c];
                    assert!((folded[c] - both).abs() < 1e-12, "{name}, output {c}");
                }
            }
        }
    }

    #[test]
    fn folding_rounds_once() {
        // In f32 alone the scale would round to 1 first; as it is, 3 (1 + 2⁻²⁵) is nearest to 3, and
        // (1 + 2⁻²³) (1 + 2⁻²⁴ + 2⁻³⁰) to 1 + 2⁻²².
        let scale = 1.0 + 2.0_f64.powi(-24) + 2.0_f64.powi(-30);
        let affine = Affine::new(vec![0.0], vec![scale], vec![0.0]).unwrap();
        let weight = [1.0 + 2.0_f32.powi(-23)];
        let outputs = View::contiguous(&[1, 1], 0).unwrap();
        let (folded, _) = affine.fold_into(outputs, 1, &weight, None).unwrap();
        assert_eq!(folded, [1.0 + 2.0_f32.powi(-22)]);
    }

    #[test]
    fn a_layer_that_does_not_fit_is_refused() {
        let affine = |scale| Affine::new(vec![0.0; 2], vec![scale; 2], vec![0.0; 2]).unwrap();
        let view = View::contiguous(&[3, 2], 1).unwrap();
        let fold = |scale, groups, weight: &[f32], bias: Option<&[f32]>| {
            affine(scale).fold_into(view, groups, weight, bias).unwrap_err()
        };
        let ones = [1.0; 6];
        assert!(matches!(fold(1.0, 1, &ones[1..], None), Error::Shape { argument: "weight", .. }));
        for groups in [0, 2] {
            let error = fold(1.0, groups, &ones, None);
            assert!(matches!(error, Error::Range { argument: "groups", .. }), "{groups}");
        }
        let error = fold(1.0, 3, &ones, None);
        assert!(matches!(error, Error::Length { argument: "mean", expected: 6, .. }));
        let error = fold(1.0, 1, &ones, Some(&ones));
        assert!(matches!(error, Error::Length { argument: "bias", expected: 2, .. }));
        let error = fold(1e39, 1, &ones, None);
        assert!(matches!(error, Error::Range { argument: "weight", .. }), "{error}");
        // What was infinite before it was folded stays so.
        let infinite = [f32::INFINITY; 6];
        assert_eq!(affine(2.0).fold_into(view, 1, &infinite, None).unwrap().0, infinite);
    }

    #[test]
    fn layers_without_weights_fold() {
        let affine = Affine::new(vec![1.0; 2], vec![2.0; 2], vec![3.0; 2]).unwrap();
        for shape in [[2, 0], [2, 0]] {
            let view = View::contiguous(&shape, 0).unwrap();
            assert_eq!(affine.fold_into::<f32>(view, 1, &[], None), Ok((vec![], vec![1.0; 2])));
        }
    }
}
