//! Count, mean and sum of squared deviations of each channel, and how those of parts become those
//! of the whole.
//!
//! Kernels sum about a pivot `p`, a member of the channel, in one sweep: `mean = p + S1 / n` and
//! `m2 = S2 - S1² / n`, with `S1 = Σ (x - p)` and `S2 = Σ (x - p)²` (Chan, Golub & LeVeque 1983,
//! "Algorithms for computing the sample variance", eq. 1.7).
//!
//! 1. Differences of `f32` and narrower are exact in `f64`, or rounded at 2⁻⁵³: nothing is lost
//!    however large |mean| / std is. A constant channel gives `S1 = S2 = 0`, so `m2` is exactly 0.
//! 2. The subtraction `S2 - S1² / n` cancels by the factor `1 + (p - mean)² / var`, so the pivot
//!    should be typical of the channel. It is the median of the medians of three times three
//!    members, from all over the channel: a few outliers, wherever they stand, are not the pivot.
//! 3. Sums about zero are made in half the time (see [`crate::kernels`]), so zero is the pivot where
//!    the mean of those nine members is no further from it than [`NEAR`] of their range, which is
//!    about one standard deviation of normal data. However unlucky the choice, the harm is bounded:
//!    those members alone make `m2` at least half their range squared, so that `mean²` is less than
//!    `m2`, and the relative error of `m2` at most of the order of `n 2⁻⁵³`.
//! 4. Sums about one pivot add; parts with different pivots merge by eq. 2.1 of the same paper, in
//!    [`Moments::merge`].

use crate::error::Error;
use crate::simd::FloatMode;
use crate::sweep::Sums;

/// Statistics of each channel, in `f64`.
///
/// ```
/// use rustbn::Moments;
/// // 1, 2, 3 and then 4, 5 in the only channel.
/// let whole = Moments::new(3, vec![2.0], vec![2.0])?.merge(&Moments::new(2, vec![4.5], vec![0.5])?)?;
/// assert_eq!((whole.count(), whole.mean(), whole.m2()), (5, &[3.0][..], &[10.0][..]));
/// assert_eq!(whole.var(1.0), [2.5]);
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    count: u64,
    mean: Vec<f64>,
    m2: Vec<f64>,
}

impl Moments {
    /// Moments from their parts: `count` values in every channel, their `mean`, and `m2 = Σ (x -
    /// mean)²`.
    ///
    /// # Errors
    /// [`Error::Length`] if `m2` and `mean` differ in length.
    pub fn new(count: u64, mean: Vec<f64>, m2: Vec<f64>) -> Result<Moments, Error> {
        Error::check_length("m2", mean.len(), m2.len())?;
        Ok(Moments { count, mean, m2 })
    }

    /// The moments of no values, or of no channels.
    pub(crate) fn none(channels: usize, count: u64) -> Moments {
        Moments { count, mean: vec![0.0; channels], m2: vec![0.0; channels] }
    }

    /// Moments from the two sums of each channel about its pivot.
    pub(crate) fn from_sums(count: u64, sums: &Sums) -> Moments {
        let (mut mean, mut m2) = (sums.centers().to_vec(), sums.second().to_vec());
        for ((mean, m2), &first) in mean.iter_mut().zip(&mut m2).zip(sums.first()) {
            (*mean, *m2) = mean_and_m2(count, *mean, [first, *m2]);
        }
        Moments { count, mean, m2 }
    }

    /// Values in each channel.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean of each channel; 0 where there are no values.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The sum of squared deviations from the mean of each channel.
    pub fn m2(&self) -> &[f64] {
        &self.m2
    }

    /// The variance of each channel, `m2 / (count - ddof)`: `ddof` 0 is the biased one that
    /// normalises, 1 the unbiased one. NaN, or infinite, where there are no more than `ddof`
    /// values.
    pub fn var(&self, ddof: f64) -> Vec<f64> {
        let _mode = FloatMode::standard();
        let n = (self.count as f64 - ddof).max(0.0);
        self.m2.iter().map(|m2| m2 / n).collect()
    }

    /// `1 / sqrt(var + eps)` of each channel.
    pub fn invstd(&self, eps: f64) -> Vec<f64> {
        let _mode = FloatMode::standard();
        self.m2.iter().map(|&m2| invstd(biased_var(self.count, m2), eps)).collect()
    }

    /// The moments of both sets of values together (Chan et al., eq. 2.1).
    ///
    /// # Errors
    /// [`Error::Length`] if the channels differ in number; [`Error::Range`] if the counts add up to
    /// 2⁶⁴ or more.
    pub fn merge(&self, other: &Moments) -> Result<Moments, Error> {
        Error::check_length("other", self.mean.len(), other.mean.len())?;
        let _mode = FloatMode::standard();
        // Seen from the larger part, the mean moves least, and rounds least.
        let (large, small) = if self.count < other.count { (other, self) } else { (self, other) };
        if small.count == 0 {
            return Ok(large.clone());
        }
        let count = large.count.checked_add(small.count).ok_or_else(|| Error::Range {
            argument: "other",
            expected: "of a count that adds up to less than 2**64",
            got: small.count.to_string(),
        })?;
        let (most, few, n) = (large.count as f64, small.count as f64, count as f64);
        let (mean, m2) = (0..self.mean.len())
            .map(|c| {
                let delta = small.mean[c] - large.mean[c];
                (
                    large.mean[c] + delta * (few / n),
                    large.m2[c] + small.m2[c] + delta * delta * (most * (few / n)),
                )
            })
            .unzip();
        Ok(Moments { count, mean, m2 })
    }

    /// Moves running statistics toward those of this batch: `(1 - momentum) * running + momentum *
    /// batch`, the running variance toward the unbiased variance. No values change nothing.
    ///
    /// # Errors
    /// [`Error::TooFewValues`] for one value per channel, which has no unbiased variance;
    /// [`Error::Length`].
    pub fn update_running(
        &self,
        running_mean: &mut [f64],
        running_var: &mut [f64],
        momentum: f64,
    ) -> Result<(), Error> {
        Error::check_length("running_mean", self.mean.len(), running_mean.len())?;
        Error::check_length("running_var", self.mean.len(), running_var.len())?;
        let _mode = FloatMode::standard();
        if self.count == 1 {
            let (argument, purpose) = ("moments", "an unbiased variance");
            return Err(Error::TooFewValues { argument, purpose, got: 1 });
        }
        if self.count > 1 {
            let n = self.count as f64 - 1.0;
            let toward = |running: &mut f64, batch: f64| {
                *running = (1.0 - momentum) * *running + momentum * batch;
            };
            running_mean.iter_mut().zip(&self.mean).for_each(|(r, &mean)| toward(r, mean));
            running_var.iter_mut().zip(&self.m2).for_each(|(r, &m2)| toward(r, m2 / n));
        }
        Ok(())
    }
}

/// Mean and m2 of `count > 0` values from their sums about `pivot`.
#[inline]
pub(crate) fn mean_and_m2(count: u64, pivot: f64, sums: [f64; 2]) -> (f64, f64) {
    let [first, second] = sums;
    let shift = first / count as f64;
    let m2 = second - first * shift;
    // Rounding can leave a negative zero's worth; NaN must stay NaN, which `f64::max` would drop.
    (pivot + shift, if m2 < 0.0 { 0.0 } else { m2 })
}

/// `1 / sqrt(var + eps)`.
#[inline]
pub(crate) fn invstd(var: f64, eps: f64) -> f64 {
    1.0 / (var + eps).sqrt()
}

/// The biased variance, which is 0 where there are no values.
#[inline]
pub(crate) fn biased_var(count: u64, m2: f64) -> f64 {
    m2 / count.max(1) as f64
}

/// Members of a channel that [`pivots`] chooses from.
pub(crate) const CANDIDATES: usize = 9;

/// How far from zero the mean of a channel's candidates may be for a pivot of zero, in their ranges.
/// The range of nine normal values is about three standard deviations.
const NEAR: f64 = 0.35;

/// A pivot for each of `N` channels out of members of it: their ninther (Tukey 1978), or 0 where one
/// is not finite (the channel's statistics are NaN or infinite then, whatever the pivot). With
/// `zero_will_do`, 0 too where the mean of the members is no further from it than [`NEAR`] of their
/// range. Channels go side by side and without branches, which compilers make vectors of.
#[inline(always)]
pub(crate) fn pivots<const N: usize>(
    members: &[[f64; N]; CANDIDATES],
    zero_will_do: bool,
) -> [f64; N] {
    let mut pivots = [0.0; N];
    for i in 0..N {
        let [a, b, c, d, e, f, g, h, j] = [
            members[0][i],
            members[1][i],
            members[2][i],
            members[3][i],
            members[4][i],
            members[5][i],
            members[6][i],
            members[7][i],
            members[8][i],
        ];
        let [first, second, third] = [sorted(a, d, g), sorted(b, e, h), sorted(c, f, j)];
        let ninther = sorted(first[1], second[1], third[1])[1];
        let range =
            high(high(first[2], second[2]), third[2]) - low(low(first[0], second[0]), third[0]);
        let (mut sum, mut zeros) = (0.0, 0.0);
        for of_channels in members {
            sum += of_channels[i];
            // 0 times a number is 0, times infinity or NaN it is NaN.
            zeros += of_channels[i] * 0.0;
        }
        let finite = zeros == 0.0;
        let near = zero_will_do & (sum.abs() <= NEAR * CANDIDATES as f64 * range);
        pivots[i] = if finite & !near { ninther } else { 0.0 };
    }
    pivots
}

#[inline(always)]
fn low(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

#[inline(always)]
fn high(a: f64, b: f64) -> f64 {
    if a < b { b } else { a }
}

#[inline(always)]
fn sorted(a: f64, b: f64, c: f64) -> [f64; 3] {
    let (few, most) = (low(a, b), high(a, b));
    [low(few, c), low(most, high(few, c)), high(most, c)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Moments {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let m2 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        Moments::new(values.len() as u64, vec![mean], vec![m2]).unwrap()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 8.0 * f64::EPSILON * a.abs().max(b.abs())
    }

    #[test]
    fn any_split_merges_to_the_whole() {
        let values: Vec<f64> = (0..37_u64).map(|i| (i * i * 7919 % 1000) as f64 / 31.0).collect();
        let whole = of(&values);
        for split in 1..values.len() {
            let merged = of(&values[..split]).merge(&of(&values[split..])).unwrap();
            assert_eq!(merged.count(), whole.count());
            assert!(close(merged.mean()[0], whole.mean()[0]), "mean of a split at {split}");
            assert!(close(merged.m2()[0], whole.m2()[0]), "m2 of a split at {split}");
        }
    }

    #[test]
    fn nothing_merges_to_the_same() {
        let some = of(&[1.0, 2.0, 4.0]);
        let none = Moments::new(0, vec![0.0], vec![0.0]).unwrap();
        assert_eq!(some.merge(&none).unwrap(), some);
        assert_eq!(none.merge(&some).unwrap(), some);
    }

    #[test]
    fn the_pivot_is_typical() {
        let pivot = |members: [f64; CANDIDATES]| pivots(&members.map(|x| [x]), false)[0];
        assert_eq!(pivot([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]), 5.0);
        assert_eq!(pivot([9.0, 2.0, 1.0, 4.0, 5.0, 8.0, 7.0, 6.0, 3.0]), 5.0);
        assert_eq!(pivot([4.0; CANDIDATES]), 4.0);
        for outlier in 0..CANDIDATES {
            let mut members = [4.0; CANDIDATES];
            members[outlier] = 1e9;
            assert_eq!(pivot(members), 4.0, "an outlier at {outlier}");
            members[outlier] = f64::NAN;
            assert_eq!(pivot(members), 0.0, "NaN at {outlier}");
        }
        let first_three = [1e9, -1e9, 1e9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(pivot(first_three), 1.0);
    }

    #[test]
    fn the_pivot_is_zero_where_that_is_typical() {
        let pivot = |members: [f64; CANDIDATES]| pivots(&members.map(|x| [x]), true)[0];
        let members = [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(pivot(members), 0.0);
        assert_eq!(pivot(members.map(|x| -x)), 0.0);
        assert_eq!(pivot(members.map(|x| x + 1.0)), 3.0);
        assert_eq!(pivot([4.0; CANDIDATES]), 4.0);
    }

    #[test]
    fn sums_about_a_pivot() {
        // Values 1, 2, 6 about 2: S1 = -1 + 0 + 4, S2 = 1 + 0 + 16.
        let (mean, m2) = mean_and_m2(3, 2.0, [3.0, 17.0]);
        assert_eq!((mean, m2), (3.0, 14.0));
        assert!(mean_and_m2(3, 0.0, [f64::NAN, f64::NAN]).1.is_nan());
    }

    #[test]
    fn running_statistics() {
        let (mut mean, mut var) = ([1.0], [1.0]);
        let batch = of(&[0.0, 4.0]);
        batch.update_running(&mut mean, &mut var, 0.25).unwrap();
        assert_eq!((mean[0], var[0]), (0.75 + 0.5, 0.75 + 2.0));

        let none = Moments::new(0, vec![0.0], vec![0.0]).unwrap();
        none.update_running(&mut mean, &mut var, 0.1).unwrap();
        let one = of(&[3.0]).update_running(&mut mean, &mut var, 0.1);
        assert!(matches!(one, Err(Error::TooFewValues { .. })));
        let misfit = batch.update_running(&mut [1.0, 2.0], &mut var, 0.1);
        assert!(matches!(misfit, Err(Error::Length { .. })));
        assert_eq!((mean[0], var[0]), (1.25, 2.75));
    }
}
