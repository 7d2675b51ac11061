//! The arguments `mask` and `lengths`: which positions of x count.

use super::array::{self, Input};
use super::errors::kind_error;
use crate::error::Error;
use crate::mask::Mask;
use numpy::npyffi::NPY_TYPES;
use numpy::prelude::*;
use numpy::{PyArray1, PyUntypedArray};
use pyo3::prelude::*;
use std::cmp::Reverse;

/// The positions of `x` that count: by `mask`, by `lengths`, or all.
pub(super) fn optional(
    mask: Option<&Bound<'_, PyAny>>,
    lengths: Option<&Bound<'_, PyAny>>,
    x: &Input<'_>,
) -> PyResult<Option<Mask>> {
    match (mask, lengths) {
        (None, None) => Ok(None),
        (Some(mask), None) => from_mask(mask, x).map(Some),
        (None, Some(lengths)) => from_lengths(lengths, x).map(Some),
        (Some(_), Some(_)) => {
            let got = String::from("both");
            Err(Error::Range { argument: "lengths", expected: "None beside a mask", got }.into())
        }
    }
}

/// Both arguments as arrays.
pub(super) fn arrays<'py>(
    mask: Option<&Bound<'py, PyAny>>,
    lengths: Option<&Bound<'py, PyAny>>,
) -> PyResult<[Option<Bound<'py, PyAny>>; 2]> {
    let mask = mask.map(|any| array::as_array(any, "mask")).transpose()?;
    let lengths = lengths.map(as_numbers).transpose()?;
    Ok([mask, lengths].map(|array| array.map(Bound::into_any)))
}

/// A walk over the positions of x in the order of its memory.
struct Positions {
    /// Axes other than that of channels, the slowest first.
    axes: Vec<Axis>,
}

#[derive(Clone, Copy)]
struct Axis {
    /// Which one of x.
    number: usize,
    len: usize,
    /// Bytes from a position to the next in the other array, if there is one.
    stride: isize,
    /// Where the walk is.
    at: usize,
}

impl Positions {
    fn new(x: &Input<'_>, stride: impl Fn(usize) -> isize) -> Positions {
        let mut numbers: Vec<usize> = (0..x.shape().len()).filter(|&i| i != x.axis).collect();
        numbers.sort_by_key(|&i| Reverse(x.strides()[i]));
        let axis = |number| Axis { number, len: x.shape()[number], stride: stride(number), at: 0 };
        Positions { axes: numbers.into_iter().map(axis).collect() }
    }

    /// Where in the walk the axis of that number is.
    fn find(&self, number: usize) -> usize {
        self.axes.iter().position(|axis| axis.number == number).expect("not the channel axis")
    }

    /// Makes one of neighbouring axes that are one run in the other array.
    fn join(&mut self) {
        self.axes.retain(|axis| axis.len != 1);
        for i in (1..self.axes.len()).rev() {
            let (slow, fast) = (&self.axes[i - 1], &self.axes[i]);
            if slow.stride == fast.stride * fast.len as isize {
                let (len, stride) = (slow.len * fast.len, fast.stride);
                self.axes[i - 1] = Axis { len, stride, ..self.axes[i - 1] };
                self.axes.remove(i);
            }
        }
    }

    /// How many positions are left along the fastest axis.
    fn left(&self) -> usize {
        self.axes.last().map_or(1, |axis| axis.len - axis.at)
    }

    /// Goes on by so many positions, no more than are left along the fastest axis, and returns how many
    /// bytes further that is in the other array.
    fn advance(&mut self, n: usize) -> isize {
        let (mut moved, mut n) = (0, n);
        for axis in self.axes.iter_mut().rev() {
            axis.at += n;
            moved += axis.stride * n as isize;
            if axis.at < axis.len {
                break;
            }
            moved -= axis.stride * axis.len as isize;
            (axis.at, n) = (0, 1);
        }
        moved
    }
}

fn from_mask(any: &Bound<'_, PyAny>, x: &Input<'_>) -> PyResult<Mask> {
    let mask = array::as_array(any, "mask")?;
    if mask.dtype().num() != NPY_TYPES::NPY_BOOL as i32 {
        let (expected, got) = (String::from("bool"), mask.dtype().to_string());
        return Err(Error::DType { argument: "mask", expected, got }.into());
    }
    let (shape, ndim) = (x.shape(), x.shape().len());
    let with_channels = mask.ndim() == ndim;
    let place = |number: usize| number - usize::from(!with_channels && number > x.axis);
    let fits = |number: usize| {
        let len = mask.shape()[place(number)];
        len == 1 || len == shape[number]
    };
    let others = || (0..ndim).filter(|&number| number != x.axis);
    let fitting = match mask.ndim() {
        n if n == ndim => mask.shape()[x.axis] == 1 && others().all(fits),
        n if n + 1 == ndim => others().all(fits),
        _ => false,
    };
    if !fitting {
        let without: Vec<usize> = others().map(|number| shape[number]).collect();
        let mut with = shape.to_vec();
        with[x.axis] = 1;
        let (with, without) = (array::tuple(&with), array::tuple(&without));
        let expected = format!("{without} or {with}, or 1 along any axis");
        return Err(
            Error::Shape { argument: "mask", expected, got: array::tuple(mask.shape()) }.into()
        );
    }
    let mut positions = Positions::new(x, |number| {
        let place = place(number);
        if mask.shape()[place] == 1 { 0 } else { mask.strides()[place] }
    });
    positions.join();
    let mut at = array::data(&mask).cast_const();
    Ok(Mask::fill(x.view, |mut row| {
        while !row.is_empty() {
            let n = positions.left().min(row.len());
            let stride = positions.axes.last().map_or(0, |axis| axis.stride);
            let (now, later) = row.split_at_mut(n);
            // SAFETY: the walk stays within the mask, which has an element for each position: its axes
            // are as long as those of x, or their strides are 0. A bool is a byte.
            unsafe {
                if stride == 1 {
                    let bytes = std::slice::from_raw_parts(at, n);
                    now.iter_mut().zip(bytes).for_each(|(counted, byte)| *counted = *byte != 0);
                } else {
                    for (i, counted) in now.iter_mut().enumerate() {
                        *counted = *at.offset(stride * i as isize) != 0;
                    }
                }
            }
            at = at.wrapping_offset(positions.advance(n));
            row = later;
        }
    }))
}

fn from_lengths(any: &Bound<'_, PyAny>, x: &Input<'_>) -> PyResult<Mask> {
    let (shape, ndim) = (x.shape(), x.shape().len());
    let last = if x.axis == ndim - 1 { ndim - 2 } else { ndim - 1 };
    let batch = usize::from(x.axis == 0);
    if ndim < 3 {
        let expected = "given for an x of 3 or more dimensions only";
        let got = format!("an x of {ndim}");
        return Err(Error::Range { argument: "lengths", expected, got }.into());
    }
    let lengths = whole_numbers(any)?;
    if lengths.len() != shape[batch] {
        let (expected, got) = (array::tuple(&[shape[batch]]), array::tuple(&[lengths.len()]));
        return Err(Error::Shape { argument: "lengths", expected, got }.into());
    }
    if let Some(got) = lengths.iter().find(|&&length| length < 0 || length > shape[last] as i64) {
        let expected = "from 0 to the length of x along its last axis without channels";
        return Err(Error::Range { argument: "lengths", expected, got: got.to_string() }.into());
    }
    let mut positions = Positions::new(x, |_| 0);
    let [batch, last] = [batch, last].map(|number| positions.find(number));
    Ok(Mask::fill(x.view, |mut row| {
        while !row.is_empty() {
            let n = positions.left().min(row.len());
            let (axes, fastest) = (&positions.axes, positions.axes.len() - 1);
            let (now, later) = row.split_at_mut(n);
            if last == fastest {
                let (at, length) = (axes[last].at, lengths[axes[batch].at] as usize);
                let (counted, padding) = now.split_at_mut(length.saturating_sub(at).min(n));
                counted.fill(true);
                padding.fill(false);
            } else {
                for (i, counted) in now.iter_mut().enumerate() {
                    let step = if batch == fastest { i } else { 0 };
                    *counted = (axes[last].at as i64) < lengths[axes[batch].at + step];
                }
            }
            positions.advance(n);
            row = later;
        }
    }))
}

/// An array of one dimension, which NumPy may make of a sequence.
fn as_numbers<'py>(any: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let kind = || kind_error("lengths", "whole numbers, one for each sample", any);
    let array = any.py().import("numpy")?.call_method1("asarray", (any,)).map_err(|_| kind())?;
    let array = array.cast_into::<PyUntypedArray>().map_err(|_| kind())?;
    if array.ndim() == 1 { Ok(array) } else { Err(kind()) }
}

/// An array of one dimension, or a sequence, of whole numbers.
fn whole_numbers(any: &Bound<'_, PyAny>) -> PyResult<Vec<i64>> {
    let array = as_numbers(any)?;
    if !array.is_empty() && !matches!(array.dtype().kind(), b'i' | b'u') {
        let (expected, got) = (String::from("a whole number"), array.dtype().to_string());
        return Err(Error::DType { argument: "lengths", expected, got }.into());
    }
    // What does not fit into 64 bits becomes negative, and is refused for that.
    let array = array.call_method1("astype", ("int64",))?;
    Ok(array.cast_into::<PyArray1<i64>>()?.to_vec()?)
}
