//! Threads: how many, and a pool of our own to run them.
//!
//! A call takes part in its own work and asks the pool for the others only, so that one thread needs no pool and a nested
//! or concurrent call cannot wait for itself.

use crate::error::Error;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Threads that [`set_threads`] asked for; 0 before anyone asked.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads of a call that says nothing else: what [`set_threads`] was told, else `RUSTBN_NUM_THREADS`, else the processors
/// that this process may run on (affinity and cgroup quota respected).
///
/// # Errors
/// [`Error::Range`] if `RUSTBN_NUM_THREADS` is not a positive whole number.
pub fn threads() -> Result<usize, Error> {
    static DEFAULT: OnceLock<Result<usize, Error>> = OnceLock::new();
    match THREADS.load(Ordering::Relaxed) {
        0 => DEFAULT
            .get_or_init(|| default_threads(std::env::var("RUSTBN_NUM_THREADS").ok().as_deref()))
            .clone(),
        n => Ok(n),
    }
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

/// Sets the threads of every later call of this process; more than there are processors is allowed.
///
/// # Errors
/// [`Error::Range`] for 0.
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

/// Calls `body` with every number below `items`, on `workers` threads of which the caller is one.
pub(crate) fn for_each(workers: usize, items: usize, body: impl Fn(usize) + Sync) {
    let workers = workers.min(items);
    let pool = if workers > 1 { helpers(workers - 1) } else { None };
    let Some(pool) = pool else {
        (0..items).for_each(body);
        return;
    };
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                return;
            }
            body(item);
        }
    };
    pool.in_place_scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// A pool and the process that its threads belong to.
struct Helpers {
    process: u32,
    pool: ThreadPool,
}

/// A pool of at least `n` threads, or `None` where the system gives no more.
///
/// Pools come in powers of two, each made when it is first asked for and kept. After `fork` the threads of the parent's pools
/// do not exist in the child, so a pool of another process is replaced. No lock is held at any time: one that another
/// thread held during `fork` would stay locked in the child forever. What is replaced is leaked, as dropping it would
/// wait for those threads.
fn helpers(n: usize) -> Option<&'static ThreadPool> {
    static POOLS: [AtomicPtr<Helpers>; 16] = [const { AtomicPtr::new(ptr::null_mut()) }; 16];
    let class = n.next_power_of_two().trailing_zeros() as usize;
    let slot = POOLS.get(class)?;
    let process = std::process::id();
    let current = slot.load(Ordering::Acquire);
    // SAFETY: a pointer in a slot comes from the `Box::into_raw` below, and what is in a slot is never freed.
    if let Some(helpers) = unsafe { current.as_ref() }
        && helpers.process == process
    {
        return Some(&helpers.pool);
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(1 << class)
        .thread_name(|i| format!("rustbn-{i}"))
        .build()
        .ok()?;
    let made = Box::into_raw(Box::new(Helpers { process, pool }));
    match slot.compare_exchange(current, made, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: as above.
        Ok(_) => Some(unsafe { &(*made).pool }),
        Err(theirs) => {
            // SAFETY: `made` is ours alone, and another thread of this process was first with `theirs`.
            unsafe {
                drop(Box::from_raw(made));
                Some(&(*theirs).pool)
            }
        }
    }
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
    fn concurrent_and_nested_calls() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for_each(3, 10, |_| {
                        for_each(2, 10, |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
        });
        assert_eq!(total.into_inner(), 400);
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
