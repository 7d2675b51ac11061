//! Batch normalization on CPUs, forward and backward, at the speed of memory.
//!
//! ```text
//! x ── View ──► moments ──► Moments ──(merge with peers)──► Affine ──► apply ──► y
//! running statistics ──────────────────────────────────────► Affine ──► apply        (inference)
//!
//! dy, x ──► backward_reduce ──► GradSums ──(add peers)──► backward_apply ──► dx
//!                                  └──► dbias = sum_dy, dweight = sum_dy_xmu · invstd
//! ```
//!
//! Five nouns and four verbs:
//!
//! - [`View`]: how channels lie in memory, read from strides; a [`Mask`] says which of its positions
//!   count.
//! - [`Moments`]: count, mean and m2 of each channel in `f64`; those of parts merge to those of the
//!   whole.
//! - [`Affine`]: `y = (x - mean) * scale + bias`. Training and inference differ only in where it
//!   comes from.
//! - the epilogue: what follows the normalisation before the result is stored.
//! - [`GradSums`]: the two sums of each channel that all gradients are made of; those of parts add.
//! - [`moments()`], [`apply()`], [`backward_reduce()`], [`backward_apply()`]; and the two training
//!   passes that do both of theirs while a block of channels is in the cache, [`batch_norm()`] and
//!   [`batch_norm_backward()`].
//!
//! Batch normalization is bound by memory, so the arithmetic can afford to be exact: sums are `f64`
//! sums about a pivot in one sweep, outputs are computed with the mean as a high and a low part.
//! Results are the same bits for any number of threads and with any instruction set: [`Execution`]
//! says how a verb runs, never what it computes.
//!
//! ```
//! use rustbn::{Affine, Epilogue, Execution, View, apply, batch_norm, batch_norm_backward};
//!
//! let view = View::contiguous(&[2, 3, 4, 4], 1)?; // N C H W, channels at axis 1
//! let execution = Execution::current()?;
//! let x: Vec<f32> = (0..view.len()).map(|i| (i * i % 17) as f32).collect();
//!
//! let mut y = vec![0.0; x.len()];
//! let moments = batch_norm(view, &x, None, None, 1e-5, Epilogue::default(), &mut y, execution)?;
//!
//! let dy = x.clone();
//! let mut dx = vec![0.0; x.len()];
//! let sums = batch_norm_backward(view, &dy, &x, &moments, None, 1e-5, &mut dx, execution)?;
//! assert_eq!(sums.sum_dy().len(), 3);
//!
//! let inference = Affine::from_running(moments.mean(), &moments.var(1.0), None, None, 1e-5)?;
//! apply(view, &x, &inference, Epilogue::default(), &mut y, execution)?;
//! # Ok::<(), rustbn::Error>(())
//! ```
//!
//! An [`Affine`] is also what goes into the layer before it, in a network that is only run:
//! [`Affine::fold_into`]. `examples/inference.rs` does so with a checkpoint.
//!
//! # Features
//! - `rayon` (default): threads. Without it a call runs on the calling thread, to the same bits.
//! - `python`: the extension module of the Python package `rustbn`.
//!
//! # Where things live
//! | module | what | what would go there |
//! |---|---|---|
//! | `view`, `mask`, `moments`, `affine`, `grad_sums`, `renorm` | the nouns: shapes and formulas, no pointers | a new statistic |
//! | `element` | storage types: widening load, narrowing store | a new dtype |
//! | `epilogue` | what follows the normalisation | a new activation |
//! | `forward`, `backward` | the verbs | |
//! | `schedule` | a view into blocks and chunks, from shape, caches and threads | a new walk through memory |
//! | `sweep`, `items`, `pool` | the schedule carried out, item by item, on threads (feature `rayon`) | |
//! | `kernels` | the loops and the expressions in them | |
//! | `simd` | the only place with `core::arch` | a new instruction set |
//! | `blocks` | memory for large outputs, recycled | another source of memory |
//! | `python` | the only place with Python (feature `python`) | |

mod affine;
mod aligned;
mod backward;
#[cfg(any(test, feature = "python"))]
mod blocks;
mod caches;
mod element;
mod epilogue;
mod error;
mod execution;
mod forward;
mod grad_sums;
mod items;
mod kernels;
mod mask;
mod moments;
mod pool;
mod renorm;
mod schedule;
mod simd;
mod sweep;
mod view;

#[cfg(feature = "python")]
mod python;

pub use affine::Affine;
pub use backward::{backward_apply, backward_reduce, batch_norm_backward, epilogue_backward};
pub use caches::Caches;
pub use element::{Element, Real};
pub use epilogue::{Activation, Epilogue};
pub use error::Error;
pub use execution::Execution;
pub use forward::{apply, apply_in_place, batch_norm, moments};
pub use grad_sums::GradSums;
pub use mask::{Batch, Mask};
pub use moments::Moments;
pub use pool::{set_threads, threads};
pub use renorm::Renorm;
pub use simd::Level;
pub use view::View;

// The Rust how-to of the site: its code is tested with that of the comments.
#[cfg(doctest)]
#[doc = include_str!("../docs/howto/rust.md")]
struct HowTo;
