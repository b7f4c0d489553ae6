//! Threads that share the work of one operation.

use crate::{ComputeError, Result};
use std::sync::{Mutex, PoisonError};

/// Work for which another thread is woken: a few times what the waking takes.
const WORTH_WAKING_NS: usize = 20_000;

/// Enough that a thread which starts late or is interrupted does not hold up the others.
const ITEMS_PER_THREAD: usize = 4;

/// Well above the cost of fetching an item.
const ITEM_LEAST_NS: usize = 2_000;

/// `threads` threads that share the work of an operation.
///
/// Who calls an operation works along with the others instead of handing over and sleeping: waking a thread costs as
/// much as a small operation, and this way no operation waits for it. A model's pass runs on one of the threads as a
/// whole ([`Pool::enter`]), where sharing work allocates nothing; an operation that is called from elsewhere borrows the
/// others.
#[derive(Debug)]
pub(crate) struct Pool {
    threads: usize,
    /// `None` where the caller is alone.
    workers: Option<rayon::ThreadPool>,
}

impl Pool {
    /// A pool that works on `threads` threads in all.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let build = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .thread_name(|i| format!("compute-{i}"))
                .build()
                .map_err(|e| ComputeError::Device(format!("could not start {threads} threads: {e}")))
        };
        let threads = threads.max(1);
        Ok(Self { threads, workers: (threads > 1).then(|| build(threads)).transpose()? })
    }

    /// Runs `f` on one of the threads, where all operations that it calls share their work without allocating.
    pub(crate) fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.workers {
            Some(workers) => workers.install(f),
            None => f(),
        }
    }

    /// Threads in all.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f` on every item, on whichever thread comes first for it; returns when all are done.
    ///
    /// `total_ns` is a rough guess of what all the items together take one thread: only as many threads are woken as
    /// it is worth. `items` is asked under a lock, so an item should be worth a microsecond or more.
    pub(crate) fn for_each<I>(&self, total_ns: usize, items: I, f: impl Fn(I::Item) + Sync)
    where
        I: IntoIterator,
        I::IntoIter: ExactSizeIterator + Send,
        I::Item: Send,
    {
        let items = items.into_iter();
        let helpers = self.threads.min(items.len()).min(total_ns / WORTH_WAKING_NS).saturating_sub(1);
        let Some(workers) = self.workers.as_ref().filter(|_| helpers > 0) else {
            return items.for_each(f);
        };
        let items = Mutex::new(items);
        let work = || {
            // The lock must not be held while an item is worked on, hence the binding of its own.
            while let Some(item) = {
                let mut items = items.lock().unwrap_or_else(PoisonError::into_inner);
                items.next()
            } {
                f(item);
            }
        };
        if workers.current_thread_index().is_some() {
            on_several(helpers + 1, &work);
        } else {
            workers.in_place_scope(|scope| {
                for _ in 0..helpers {
                    scope.spawn(|_| work());
                }
                work();
            });
        }
    }

    /// How many rows of an operation an item should take, when a row takes about `row_ns`: several items a thread, so
    /// that none waits long for the last, but none too small.
    pub(crate) fn rows_per_item(&self, rows: usize, row_ns: usize) -> usize {
        let worthwhile = ITEM_LEAST_NS.div_ceil(row_ns.max(1));
        let share = if self.threads == 1 { rows } else { rows.div_ceil(ITEMS_PER_THREAD * self.threads) };
        share.max(worthwhile).max(1)
    }

    /// How many items an operation should be cut into.
    pub(crate) fn items_wanted(&self) -> usize {
        if self.threads == 1 { 1 } else { ITEMS_PER_THREAD * self.threads }
    }
}

/// Offers `work` to `threads` threads, of which the calling one, in the pool, is the first.
fn on_several(threads: usize, work: &(impl Fn() + Sync)) {
    if threads <= 1 {
        return work();
    }
    // The caller goes left: it has offered to all the others before it begins.
    rayon::join(|| on_several(threads - threads / 2, work), || on_several(threads / 2, work));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_is_visited_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            let visits: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            let visit = || {
                pool.for_each(usize::MAX, 0..1000usize, |i| {
                    visits[i].fetch_add(1, Ordering::Relaxed);
                });
            };
            visit();
            pool.enter(visit);
            assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 2));
            pool.for_each(usize::MAX, 0..0usize, |_| unreachable!("there is no item"));
        }
    }
}
