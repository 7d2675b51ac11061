//! The two sums of each channel that all gradients of a batch are made of.

use crate::error::Error;
use crate::moments::Moments;
use crate::simd::FloatMode;
use crate::sweep::Sums;

/// `Σ dy` and `Σ dy (x - mean)` of each channel, in `f64`. Those of parts add up to those of the
/// whole. The gradients are made of them as in Ioffe & Szegedy 2015, section 3; see
/// [`batch_norm_backward`](crate::batch_norm_backward).
///
/// ```
/// use rustbn::GradSums;
/// let part = GradSums::new(vec![1.0, 2.0], vec![3.0, 4.0])?;
/// let other = GradSums::new(vec![10.0, 20.0], vec![30.0, 40.0])?;
/// let whole = part.add(&other)?;
/// assert_eq!(whole.sum_dy(), [11.0, 22.0]);
/// assert_eq!(whole.sum_dy_xmu(), [33.0, 44.0]);
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GradSums {
    sum_dy: Vec<f64>,
    sum_dy_xmu: Vec<f64>,
}

impl GradSums {
    /// Sums from their values.
    ///
    /// # Errors
    /// [`Error::Length`] if the two differ in length.
    pub fn new(sum_dy: Vec<f64>, sum_dy_xmu: Vec<f64>) -> Result<GradSums, Error> {
        Error::check_length("sum_dy_xmu", sum_dy.len(), sum_dy_xmu.len())?;
        Ok(GradSums { sum_dy, sum_dy_xmu })
    }

    /// The sums of no elements.
    pub fn zero(channels: usize) -> GradSums {
        GradSums { sum_dy: vec![0.0; channels], sum_dy_xmu: vec![0.0; channels] }
    }

    /// Sums about the means of `moments` from sums about other centres.
    pub(crate) fn from_sums(sums: &Sums, moments: &Moments) -> GradSums {
        let (sum_dy, mut sum_dy_xmu) = (sums.first().to_vec(), sums.second().to_vec());
        let about = sum_dy.iter().zip(sums.centers()).zip(moments.mean());
        for (sum, ((&sum_dy, &center), &mean)) in sum_dy_xmu.iter_mut().zip(about) {
            *sum = about_mean(*sum, sum_dy, center, mean);
        }
        GradSums { sum_dy, sum_dy_xmu }
    }

    /// `Σ dy`, which is the gradient with respect to the bias.
    pub fn sum_dy(&self) -> &[f64] {
        &self.sum_dy
    }

    /// `Σ dy (x - mean)`, which times `invstd` is the gradient with respect to the weight.
    pub fn sum_dy_xmu(&self) -> &[f64] {
        &self.sum_dy_xmu
    }

    /// The sums of both sets of elements together.
    ///
    /// # Errors
    /// [`Error::Length`] if the channels differ in number.
    pub fn add(&self, other: &GradSums) -> Result<GradSums, Error> {
        Error::check_length("other", self.sum_dy.len(), other.sum_dy.len())?;
        let _mode = FloatMode::standard();
        let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
        Ok(GradSums {
            sum_dy: add(&self.sum_dy, &other.sum_dy),
            sum_dy_xmu: add(&self.sum_dy_xmu, &other.sum_dy_xmu),
        })
    }
}

/// `Σ dy (x - mean)` from `Σ dy (x - center)`. What is infinite about the mean stays so.
#[inline(always)]
#[allow(clippy::float_cmp)]
pub(crate) fn about_mean(sum_dy_xc: f64, sum_dy: f64, center: f64, mean: f64) -> f64 {
    let moved = sum_dy_xc - (mean - center) * sum_dy;
    if center == mean { sum_dy_xc } else { moved }
}
