//! The transformation that batch normalization is once its statistics are known: `y = (x - mean) *
//! scale + bias`.
//!
//! It stays centred. Collapsing it to `x * a + b` cancels when |mean| is much larger than the
//! standard deviation.

use crate::element::Real;
use crate::error::Error;
use crate::moments::{Moments, invstd};

/// `y = (x - mean) * scale + bias` for each channel, in `f64`.
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
        if let Some(weight) = weight {
            scale.iter_mut().zip(weight).for_each(|(scale, weight)| *scale *= weight);
        }
        let bias = bias.map_or_else(|| vec![0.0; mean.len()], <[f64]>::to_vec);
        Ok(Affine { mean, scale, bias })
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

/// The `R` nearest to a finite `value`, never infinite: a difference of zero times it must stay
/// zero.
#[inline(always)]
pub(crate) fn factor<R: Real>(value: f64) -> R {
    let limit = R::MAX.to_f64();
    R::from_f64(if value.is_infinite() { value } else { value.clamp(-limit, limit) })
}

/// `value` as the sum of two `R`: the nearest one and what it leaves.
///
/// Subtracting the parts one after the other keeps the error of `x - value` at that of `x`, however
/// large the value is.
#[inline(always)]
pub(crate) fn split<R: Real>(value: f64) -> [R; 2] {
    let high = R::from_f64(value);
    let rest = value - high.to_f64();
    // Nothing is left of an infinite value; infinity - infinity would make it NaN.
    [high, R::from_f64(if rest.is_nan() { 0.0 } else { rest })]
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
}
