//! Batch renormalization: training outputs that depend less on the rest of their batch.

use crate::error::Error;
use crate::moments::{self, Moments};
use crate::simd::FloatMode;

/// Batch renormalization (Ioffe 2017, "Batch Renormalization: Towards Reducing Minibatch Dependence in
/// Batch-Normalized Models", Algorithm 1): normalised values are moved on to where the running
/// statistics would have put them, no further than two bounds allow.
///
/// ```text
/// r = clip(σ_batch / σ, 1 / r_max, r_max)     σ_batch = sqrt(var_batch + eps)
/// d = clip((μ_batch - μ) / σ, -d_max, d_max)  μ, σ = running mean, sqrt(running variance + eps)
/// y = ((x - μ_batch) / σ_batch · r + d) · weight + bias
/// ```
///
/// `r` and `d` are constants to the gradient, so this is batch normalization with a weight of `r ·
/// weight` and a bias of `d · weight + bias`, forward and backward, and `dweight = r · Σ dy x̂ + d · Σ
/// dy`. With bounds of 1 and 0 it is batch normalization.
///
/// ```
/// use rustbn::{Affine, Execution, Renorm, View, moments};
/// let x = [1.0_f32, 3.0];
/// let moments = moments(View { outer: 2, channels: 1, inner: 1 }, &x, Execution::current()?)?;
/// // With wide bounds, what the running statistics make of x: mean 0, variance 4.
/// let renorm = Renorm::new(&[0.0], &[4.0], 3.0, 5.0)?;
/// let [weight, bias] = renorm.parameters(&moments, None, None, 1e-12)?;
/// let affine = Affine::from_moments(&moments, Some(&weight), Some(&bias), 1e-12)?;
/// assert!((affine.scale()[0] - 0.5).abs() < 1e-9);
/// assert!((affine.bias()[0] - 1.0).abs() < 1e-9);
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Renorm<'a> {
    running_mean: &'a [f64],
    running_var: &'a [f64],
    r_max: f64,
    d_max: f64,
}

impl<'a> Renorm<'a> {
    /// Toward running statistics, within bounds.
    ///
    /// # Errors
    /// [`Error::Length`] if the running statistics differ in length; [`Error::Range`] if `r_max` is less
    /// than 1 or `d_max` less than 0, or one of them no number.
    pub fn new(
        running_mean: &'a [f64],
        running_var: &'a [f64],
        r_max: f64,
        d_max: f64,
    ) -> Result<Self, Error> {
        Error::check_length("running_var", running_mean.len(), running_var.len())?;
        Self::check_bounds(r_max, d_max)?;
        Ok(Renorm { running_mean, running_var, r_max, d_max })
    }

    /// Refuses bounds that leave no room for batch normalization.
    pub(crate) fn check_bounds(r_max: f64, d_max: f64) -> Result<(), Error> {
        if r_max >= 1.0 && d_max >= 0.0 {
            return Ok(());
        }
        let expected = "an r_max of 1 or more and a d_max of 0 or more";
        Err(Error::Range { argument: "renorm", expected, got: format!("({r_max}, {d_max})") })
    }

    /// `r` and `d` of each channel.
    ///
    /// # Errors
    /// [`Error::Length`] if `moments` has other channels.
    pub fn corrections(&self, moments: &Moments, eps: f64) -> Result<[Vec<f64>; 2], Error> {
        Error::check_length("moments", self.running_mean.len(), moments.mean().len())?;
        let _mode = FloatMode::standard();
        let (r, d) = (0..moments.mean().len())
            .map(|c| {
                let var = moments::biased_var(moments.count(), moments.m2()[c]);
                let running = [self.running_mean[c], self.running_var[c]];
                let [r, d] = self.correction([moments.mean()[c], var], running, eps);
                (r, d)
            })
            .unzip();
        Ok([r, d])
    }

    /// The weight and bias with which batch normalization is renormalization.
    ///
    /// # Errors
    /// [`Error::Length`] if `moments`, `weight` or `bias` has other channels.
    pub fn parameters(
        &self,
        moments: &Moments,
        weight: Option<&[f64]>,
        bias: Option<&[f64]>,
        eps: f64,
    ) -> Result<[Vec<f64>; 2], Error> {
        let [r, d] = self.corrections(moments, eps)?;
        for (argument, vector) in [("weight", weight), ("bias", bias)] {
            vector.map_or(Ok(()), |v| Error::check_length(argument, r.len(), v.len()))?;
        }
        Ok(of_all([&r, &d], weight, bias))
    }

    /// The channels' running mean and variance.
    pub(crate) fn running(&self) -> [&'a [f64]; 2] {
        [self.running_mean, self.running_var]
    }

    /// `r` and `d` of a channel, from the mean and variance of the batch and the running ones.
    #[inline(always)]
    pub(crate) fn correction(&self, batch: [f64; 2], running: [f64; 2], eps: f64) -> [f64; 2] {
        let ([mean, var], [running_mean, running_var]) = (batch, running);
        let sigma = (running_var + eps).sqrt();
        let r = (var + eps).sqrt() / sigma;
        let d = (mean - running_mean) / sigma;
        [clip(r, 1.0 / self.r_max, self.r_max), clip(d, -self.d_max, self.d_max)]
    }
}

/// Weight and bias of a channel, from `r` and `d` and its own.
#[inline(always)]
pub(crate) fn parameters([r, d]: [f64; 2], weight: f64, bias: f64) -> [f64; 2] {
    [r * weight, d * weight + bias]
}

/// [`parameters`] of all channels, of which the corrections are given.
pub(crate) fn of_all(
    [r, d]: [&[f64]; 2],
    weight: Option<&[f64]>,
    bias: Option<&[f64]>,
) -> [Vec<f64>; 2] {
    let _mode = FloatMode::standard();
    let of_channel = |c: usize| {
        let (weight, bias) = (weight.map_or(1.0, |v| v[c]), bias.map_or(0.0, |v| v[c]));
        parameters([r[c], d[c]], weight, bias).into()
    };
    let (weights, biases) = (0..r.len()).map(of_channel).unzip::<f64, f64, Vec<_>, Vec<_>>();
    [weights, biases]
}

/// `value` within bounds; NaN stays NaN.
#[inline(always)]
fn clip(value: f64, least: f64, most: f64) -> f64 {
    if value < least {
        least
    } else if value > most {
        most
    } else {
        value
    }
}
