//! The threads that help a call: a pool of our own, and the work that they share.
//!
//! A call takes part in its own work and asks the pool for the others only, so that one thread
//! needs no pool and a nested or concurrent call cannot wait for itself.

use crate::simd::FloatMode;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Calls `body` with every number below `items`, on `workers` threads of which the caller is one.
///
/// The caller waits for the threads that have begun to help, not for those that never came: a small
/// call does not stand in line behind somebody else's large one.
///
/// # Panics
/// If `body` does, on whichever thread.
pub(crate) fn for_each(workers: usize, items: usize, body: impl Fn(usize) + Sync) {
    let workers = workers.min(items);
    match if workers > 1 { helpers(workers - 1) } else { None } {
        Some(pool) => share(pool, workers, items, &body),
        None => (0..items).for_each(body),
    }
}

/// [`for_each`] with threads of `pool`; one function for all bodies, of which there are dozens.
fn share(pool: &ThreadPool, workers: usize, items: usize, body: &(dyn Fn(usize) + Sync)) {
    // SAFETY: the job is closed before this function is left, on every way out of it; then nobody
    // calls `body`.
    let body: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(body) };
    let job = Arc::new(Job {
        body,
        items,
        next: AtomicUsize::new(0),
        door: Mutex::new(Door { open: true, inside: 0, panicked: false }),
        left: Condvar::new(),
    });
    let closing = Closing(&job);
    for _ in 1..workers {
        let job = Arc::clone(&job);
        pool.spawn(move || job.help());
    }
    job.work();
    drop(closing);
    assert!(!job.door().panicked, "a helping thread panicked");
}

/// Work that several threads share.
struct Job {
    body: &'static (dyn Fn(usize) + Sync),
    items: usize,
    next: AtomicUsize,
    door: Mutex<Door>,
    left: Condvar,
}

struct Door {
    open: bool,
    inside: usize,
    panicked: bool,
}

impl Job {
    fn door(&self) -> MutexGuard<'_, Door> {
        // Nothing that can panic is done with the lock held.
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes items until there are none.
    fn work(&self) {
        let _mode = FloatMode::standard();
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= self.items {
                return;
            }
            (self.body)(item);
        }
    }

    /// What a helping thread does: it goes in, unless it comes too late.
    fn help(&self) {
        {
            let mut door = self.door();
            if !door.open {
                return;
            }
            door.inside += 1;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| self.work()));
        let mut door = self.door();
        door.inside -= 1;
        door.panicked |= outcome.is_err();
        self.left.notify_all();
    }
}

/// Closes a job when it goes out of scope: lets nobody in and waits for those who are.
struct Closing<'a>(&'a Job);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut door = self.0.door();
        door.open = false;
        while door.inside > 0 {
            door = self.0.left.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Makes the pool that `workers` threads need, if it is not there, and waits until its threads are.
///
/// What is made once in a process is made under locks of the standard library; a child that is
/// forked meanwhile finds them locked forever. Callers that can be forked make the pool beforehand,
/// where they know that nobody forks.
#[cfg(feature = "python")]
pub(crate) fn prepare(workers: usize) {
    if workers > 1 {
        helpers(workers - 1);
    }
}

/// Pools up to two to this power serve calls for fewer threads as well. One of 512 took ten times as long to
/// wake one thread of; with one of 64 there was no difference.
const USUAL: usize = 6;

/// A pool and the process that its threads belong to.
struct Helpers {
    process: u32,
    pool: ThreadPool,
}

impl Helpers {
    /// What is in a slot, if its threads are those of `process`.
    fn of(slot: &AtomicPtr<Helpers>, process: u32) -> Option<&'static Helpers> {
        // SAFETY: a pointer in a slot comes from the `Box::into_raw` in `helpers`, and what is in a slot is never freed.
        let helpers = unsafe { slot.load(Ordering::Acquire).as_ref() };
        helpers.filter(|helpers| helpers.process == process)
    }
}

/// A pool of at least `n` threads (fewer if `n` is beyond reason), or `None` where the system gives
/// none.
///
/// Pools come in powers of two, each made when there is none that is as large (but not out of proportion), and kept: after [`prepare`] no call for fewer
/// threads makes one. After `fork` the threads of the parent's pools do not exist in the child, so a pool of another
/// process is replaced, and leaked, as dropping it would wait for those threads.
fn helpers(n: usize) -> Option<&'static ThreadPool> {
    static POOLS: [AtomicPtr<Helpers>; 12] = [const { AtomicPtr::new(ptr::null_mut()) }; 12];
    let class = (n.next_power_of_two().trailing_zeros() as usize).min(POOLS.len() - 1);
    let process = std::process::id();
    let usual = POOLS.len().min(class.max(USUAL) + 1);
    if let Some(helpers) = POOLS[class..usual].iter().find_map(|slot| Helpers::of(slot, process)) {
        return Some(&helpers.pool);
    }
    let slot = &POOLS[class];
    let current = slot.load(Ordering::Acquire);
    let pool = ThreadPoolBuilder::new()
        .num_threads(1 << class)
        .thread_name(|i| format!("rustbn-{i}"))
        .build()
        .ok()?;
    // Every thread has begun, and made what it makes once, when this returns.
    pool.broadcast(|_| ());
    let made = Box::into_raw(Box::new(Helpers { process, pool }));
    if slot.compare_exchange(current, made, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: it never came into a slot, so it is ours alone: another thread of this process was first.
        drop(unsafe { Box::from_raw(made) });
    }
    Helpers::of(slot, process).map(|helpers| &helpers.pool)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_panic_reaches_the_caller_and_the_pool_lives() {
        for culprit in 0..50 {
            let call = || for_each(3, 50, |i| assert_ne!(i, culprit));
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err(), "item {culprit}");
        }
        let met = AtomicUsize::new(0);
        for_each(3, 100, |_| {
            met.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(met.into_inner(), 100);
    }

    #[test]
    fn a_call_does_not_wait_for_threads_that_are_busy_elsewhere() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let busy = Mutex::new(receiver);
        let pool = ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        std::thread::scope(|scope| {
            // The one helper and its caller are held until the second call is done.
            scope.spawn(|| share(&pool, 2, 2, &|_| busy.lock().unwrap().recv().unwrap()));
            std::thread::sleep(std::time::Duration::from_millis(50));
            share(&pool, 2, 10, &|_| ());
            sender.send(()).unwrap();
            sender.send(()).unwrap();
        });
    }
}
