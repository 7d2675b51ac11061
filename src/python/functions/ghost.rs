//! Ghost batches: the samples of a batch normalised in groups, each with its own statistics.

use super::{Arguments, Forward};
use crate::moments::Moments;
use crate::python::array;
use crate::python::context::{Context, Groups, Statistics};
use numpy::PyUntypedArray;
use numpy::prelude::*;
use pyo3::prelude::*;
use pyo3::types::{PySlice, PyTuple};
use std::ops::Range;

impl Forward<'_> {
    /// How many samples a group has, if there is more than one group.
    pub(super) fn group_size(&self, asked: Option<usize>) -> Option<usize> {
        let samples = self.x.shape()[batch_axis(self.x.axis)];
        asked.filter(|&size| self.training && size < samples)
    }
}

/// The axis of samples: the first that is not that of channels.
fn batch_axis(channel_axis: usize) -> usize {
    usize::from(channel_axis == 0)
}

/// Some samples of an array.
pub(in crate::python) fn samples<'py>(
    array: &Bound<'py, PyAny>,
    axis: usize,
    range: &Range<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = array.py();
    let all = || PySlice::full(py);
    let (start, stop) = (range.start as isize, range.end as isize);
    let last = PySlice::new(py, start, stop, 1);
    let index: Vec<_> = (0..axis).map(|_| all()).chain([last]).collect();
    array.get_item(PyTuple::new(py, index)?)
}

/// Some samples of a mask, all of which may share one.
fn samples_of_mask<'py>(
    any: &Bound<'py, PyAny>,
    whole: &Forward<'py>,
    range: &Range<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let mask = array::as_array(any, "mask")?;
    let axis = batch_axis(whole.x.axis);
    let without_channels = mask.ndim() < whole.x.shape().len();
    let axis = if without_channels && whole.x.axis < axis { axis - 1 } else { axis };
    if mask.shape()[axis] == 1 {
        return Ok(mask.into_any());
    }
    samples(mask.as_any(), axis, range)
}

/// Normalises groups of `size` samples of `whole`, which are `arguments` that were checked.
pub(super) fn forward<'py>(
    arguments: &Arguments<'_, 'py>,
    mut whole: Forward<'py>,
    size: usize,
) -> PyResult<(Bound<'py, PyAny>, Context)> {
    let axis = batch_axis(whole.x.axis);
    let count = whole.x.shape()[axis];
    let ranges: Vec<_> =
        (0..count).step_by(size).map(|start| start..(start + size).min(count)).collect();
    // As in backward, groups are written where x's order is, and brought to the caller's array at the end.
    let out = whole.out.dense().clone();
    let lengths = match arguments.lengths {
        Some(lengths) => Some(out.py().import("numpy")?.call_method1("asarray", (lengths,))?),
        None => None,
    };
    let part = |array: &Bound<'py, PyUntypedArray>, range| samples(array.as_any(), axis, range);

    // Whatever can be wrong is found before the first group is normalised.
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in &ranges {
        let x = part(&whole.x.given, range)?;
        let out = part(&out, range)?;
        let residual = whole.residual.as_ref().map(|r| part(&r.given, range)).transpose()?;
        let mask = arguments.mask.map(|mask| samples_of_mask(mask, &whole, range)).transpose()?;
        let lengths = lengths.as_ref().map(|lengths| samples(lengths, 0, range)).transpose()?;
        pieces.push((x, out, residual, mask, lengths));
    }
    let mut parts = Vec::with_capacity(ranges.len());
    for (x, out, residual, mask, lengths) in &pieces {
        let part = Arguments {
            x,
            residual: residual.as_ref(),
            mask: mask.as_ref(),
            lengths: lengths.as_ref(),
            out: Some(out),
            axis: whole.x.axis as isize,
            ..*arguments
        };
        let part = part.check()?;
        part.check_enough("the statistics of each group of group_size")?;
        parts.push(part);
    }

    let channels = whole.x.view.channels;
    let mut moments = Moments::new(0, vec![0.0; channels], vec![0.0; channels])?;
    let mut contexts = Vec::with_capacity(parts.len());
    for mut part in parts {
        let of_part = part.train()?;
        moments = moments.merge(&of_part)?;
        let context = part.context(Statistics::Batch(of_part))?;
        part.out.finish()?;
        contexts.push(context);
    }
    let groups = Groups { axis, ranges, contexts };
    let mut context = whole.context(Statistics::Batch(moments.clone()))?;
    context.groups = Some(groups);
    Ok((whole.finish(Some(&moments))?, context))
}
