//! How a verb runs, which never changes what it computes.

use crate::caches::Caches;
use crate::error::Error;
use crate::pool;
use crate::simd::Level;

/// The instruction set and the number of threads of a call, and the caches it is planned for.
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

    /// The same with another number of threads (0 counts as 1).
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Execution {
        Execution { threads: threads.max(1), ..self }
    }
}
