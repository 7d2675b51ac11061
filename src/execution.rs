//! How a verb runs, which never changes what it computes.

use crate::caches::Caches;
use crate::error::Error;
use crate::pool;
use crate::simd::Level;

/// The instruction set and the number of threads of a call, and the caches it is planned for.
///
/// ```
/// use rustbn::{Execution, View, moments};
/// let view = View { outer: 1, channels: 2, inner: 400_000 };
/// let x: Vec<f32> = (0..view.len()).map(|i| (i % 1009) as f32).collect();
/// let execution = Execution::current()?;
/// let one = moments(view, &x, execution.with_threads(1))?;
/// let four = moments(view, &x, execution.with_threads(4))?;
/// assert_eq!(one, four); // the same bits
/// # Ok::<(), rustbn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    pub(crate) level: Level,
    pub(crate) threads: usize,
    pub(crate) caches: Caches,
}

impl Execution {
    /// Level, threads and caches of this process: see [`Level::current`],
    /// [`threads`](crate::threads) and [`Caches::current`].
    ///
    /// # Errors
    /// [`Error::Simd`] or [`Error::Range`] if an environment variable asks for what cannot be.
    pub fn current() -> Result<Execution, Error> {
        Ok(Execution {
            level: Level::current()?,
            threads: pool::threads()?,
            caches: Caches::current()?,
        })
    }

    /// The same with another number of threads. 0 counts as 1, and without the feature `rayon` so
    /// does any other.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Execution {
        Execution { threads: pool::possible(threads), ..self }
    }
}
