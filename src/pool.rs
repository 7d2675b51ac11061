//! Threads: how many, and what they are given to do. Without the feature `rayon` there is the
//! calling thread and no other; nothing outside this module knows the difference.

use crate::error::Error;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(feature = "rayon")]
mod team;
#[cfg(feature = "rayon")]
pub(crate) use team::for_each;
#[cfg(feature = "python")]
pub(crate) use team::prepare;

/// Calls `body` with every number below `items`, on the calling thread.
#[cfg(not(feature = "rayon"))]
pub(crate) fn for_each(_workers: usize, items: usize, body: impl Fn(usize) + Sync) {
    (0..items).for_each(body);
}

/// The most threads that a call can have.
const MOST: usize = if cfg!(feature = "rayon") { usize::MAX } else { 1 };

/// Threads that [`set_threads`] asked for; 0 before anyone asked.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads of a call that says nothing else: what [`set_threads`] was told, else
/// `RUSTBN_NUM_THREADS`, else the processors that this process may run on (affinity and cgroup
/// quota respected). Without the feature `rayon` 1, whatever was asked for.
///
/// # Errors
/// [`Error::Range`] if `RUSTBN_NUM_THREADS` is not a positive whole number.
pub fn threads() -> Result<usize, Error> {
    static DEFAULT: OnceLock<Result<usize, Error>> = OnceLock::new();
    let asked = match THREADS.load(Ordering::Relaxed) {
        0 => DEFAULT
            .get_or_init(|| default_threads(std::env::var("RUSTBN_NUM_THREADS").ok().as_deref()))
            .clone(),
        n => Ok(n),
    };
    asked.map(possible)
}

/// The threads of a call that asks for `n`: at least the calling one, and no more than there can be.
pub(crate) fn possible(n: usize) -> usize {
    n.clamp(1, MOST)
}

fn default_threads(variable: Option<&str>) -> Result<usize, Error> {
    match variable.map(str::trim) {
        None | Some("") => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        Some(text) => match text.parse() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(Error::Range {
                argument: "RUSTBN_NUM_THREADS",
                expected: "a positive whole number",
                got: format!("{text:?}"),
            }),
        },
    }
}

/// Sets the threads of every later call of this process that takes its execution from
/// [`Execution::current`](crate::Execution::current); more than there are processors is allowed.
///
/// # Errors
/// [`Error::Range`] for 0.
///
/// ```
/// rustbn::set_threads(3)?;
/// assert_eq!(rustbn::threads()?, if cfg!(feature = "rayon") { 3 } else { 1 });
/// # Ok::<(), rustbn::Error>(())
/// ```
pub fn set_threads(n: usize) -> Result<(), Error> {
    if n == 0 {
        return Err(Error::Range {
            argument: "n",
            expected: "a positive whole number",
            got: "0".to_owned(),
        });
    }
    THREADS.store(n, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_met_once() {
        for workers in [1, 2, 3, 8] {
            let met: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            for_each(workers, met.len(), |i| {
                met[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(met.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{workers} workers");
        }
    }

    #[test]
    fn the_variable() {
        assert_eq!(default_threads(Some(" 3 ")), Ok(3));
        assert!(default_threads(None).unwrap() >= 1);
        for bad in ["0", "-1", "two", "1.5"] {
            assert!(matches!(default_threads(Some(bad)), Err(Error::Range { .. })), "{bad}");
        }
    }
}
