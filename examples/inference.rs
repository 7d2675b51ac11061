//! Runs a trained network on a CPU from its checkpoint, without Python and without a framework:
//!
//! ```sh
//! cargo run --release --example inference
//! ```
//!
//! `examples/digits.safetensors` holds a network of three dense layers, with batch norm and ReLU
//! behind the first two, and images of digits for it to name; `examples/train_digits.py` wrote it.
//! Here the batch norms are found in it; the network is run with batch norm and ReLU in one pass, in
//! place; and once more with the batch norms folded into the layers before them.

use rustbn::{Activation, Affine, Epilogue, Execution, View, apply_in_place};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/digits.safetensors");

/// What is added to the variance: no checkpoint says, and PyTorch's default is what this one's
/// network was trained with.
const EPS: f64 = 1e-5;

fn main() -> Result<()> {
    let file = std::fs::read(CHECKPOINT)?;
    let checkpoint = SafeTensors::deserialize(&file)?;
    for (name, affine) in &batch_norms(&checkpoint)? {
        println!("{name} is a batch norm of {} channels", affine.mean().len());
    }

    let network = Network::read(&checkpoint)?;
    let (images, labels) = (floats(&checkpoint, "images")?, floats(&checkpoint, "labels")?);
    let logits = network.run(&images)?;
    let right = logits.chunks(10).zip(&labels).filter(|&(row, &label)| best(row) == label as usize);
    println!("normalised in place: {} of {} digits named right", right.count(), labels.len());

    let folded = network.run_folded(&images)?;
    println!("folded: logits differ by {:.0e} at most", largest_difference(&logits, &folded));
    Ok(())
}

/// Every batch norm of a checkpoint, whatever the network: where there is a running mean, there is
/// one.
fn batch_norms(checkpoint: &SafeTensors<'_>) -> Result<BTreeMap<String, Affine>> {
    let mut found = BTreeMap::new();
    for name in checkpoint.names().iter().filter_map(|name| name.strip_suffix(".running_mean")) {
        let part = |part: &str| -> Result<Vec<f64>> {
            Ok(floats(checkpoint, &format!("{name}.{part}"))?.into_iter().map(f64::from).collect())
        };
        let (weight, bias) = (part("weight")?, part("bias")?);
        let (mean, var) = (part("running_mean")?, part("running_var")?);
        let affine = Affine::from_running(&mean, &var, Some(&weight), Some(&bias), EPS)?;
        found.insert(name.to_owned(), affine);
    }
    Ok(found)
}

/// Dense layers with batch norm and ReLU behind them, and a last one without.
struct Network {
    hidden: Vec<(Dense, Affine)>,
    last: Dense,
}

impl Network {
    fn read(checkpoint: &SafeTensors<'_>) -> Result<Network> {
        let mut batch_norms = batch_norms(checkpoint)?;
        let mut normalised = |dense: &str, name: &str| -> Result<_> {
            let affine = batch_norms.remove(name).ok_or(format!("no batch norm {name}"))?;
            Ok((Dense::read(checkpoint, dense)?, affine))
        };
        let hidden = vec![normalised("fc1", "bn1")?, normalised("fc2", "bn2")?];
        Ok(Network { hidden, last: Dense::read(checkpoint, "fc3")? })
    }

    /// The logits of images, one row after another.
    fn run(&self, images: &[f32]) -> Result<Vec<f32>> {
        let relu = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
        let execution = Execution::current()?;
        let mut x = images.to_vec();
        for (dense, affine) in &self.hidden {
            x = dense.run(&x);
            let channels = affine.mean().len();
            let view = View::contiguous(&[x.len() / channels, channels], 1)?;
            apply_in_place(view, &mut x, affine, relu, execution)?;
        }
        Ok(self.last.run(&x))
    }

    /// The same without batch norms.
    fn run_folded(&self, images: &[f32]) -> Result<Vec<f32>> {
        let mut x = images.to_vec();
        for (dense, affine) in &self.hidden {
            x = dense.folded(affine)?.run(&x);
            x.iter_mut().for_each(|z| *z = z.max(0.0));
        }
        Ok(self.last.run(&x))
    }
}

/// `x Wᵀ + b`, for `W` of shape (outputs, inputs).
struct Dense {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Dense {
    fn read(checkpoint: &SafeTensors<'_>, name: &str) -> Result<Dense> {
        let part = |part: &str| floats(checkpoint, &format!("{name}.{part}"));
        Ok(Dense { weight: part("weight")?, bias: part("bias")? })
    }

    fn inputs(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    fn run(&self, x: &[f32]) -> Vec<f32> {
        let output = |(row, bias): (&[f32], &f32), x: &[f32]| {
            row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + bias
        };
        let of_row =
            |x| self.weight.chunks(self.inputs()).zip(&self.bias).map(move |o| output(o, x));
        x.chunks(self.inputs()).flat_map(of_row).collect()
    }

    /// This layer and a batch norm behind it in one.
    fn folded(&self, affine: &Affine) -> Result<Dense> {
        let outputs = View::contiguous(&[self.bias.len(), self.inputs()], 0)?;
        let (weight, bias) = affine.fold_into(outputs, 1, &self.weight, Some(&self.bias))?;
        Ok(Dense { weight, bias })
    }
}

/// The values of an entry.
fn floats(checkpoint: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>> {
    let entry = checkpoint.tensor(name)?;
    if entry.dtype() != Dtype::F32 {
        return Err(format!("{name} must be of F32, is of {:?}", entry.dtype()).into());
    }
    let (values, _) = entry.data().as_chunks();
    Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

/// Where the largest value is.
fn best(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap_or(0)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `logits` of the checkpoint are what NumPy made of it in float64, straight from the formulas.
#[test]
fn the_answers_are_those_of_float64_numpy() -> Result<()> {
    let file = std::fs::read(CHECKPOINT)?;
    let checkpoint = SafeTensors::deserialize(&file)?;
    let names: Vec<String> = batch_norms(&checkpoint)?.into_keys().collect();
    assert_eq!(names, ["bn1", "bn2"]);

    let expected = floats(&checkpoint, "logits")?;
    assert_eq!(expected.len(), 16 * 10);
    let network = Network::read(&checkpoint)?;
    let images = floats(&checkpoint, "images")?;
    for logits in [network.run(&images)?, network.run_folded(&images)?] {
        let difference = largest_difference(&logits, &expected);
        assert!(difference < 1e-5 * expected.iter().fold(0.0, |m: f32, l| m.max(l.abs())));
    }
    Ok(())
}
