//! Threads that share the work of one operation.

use crate::{ComputeError, Result};
use std::sync::{Mutex, PoisonError};

/// Work for which another thread is woken: a few times what the waking takes.
const WORTH_WAKING_NS: usize = 20_000;

/// Enough that a thread which starts late or is interrupted does not hold up the others.
const ITEMS_PER_THREAD: usize = 4;

/// Well above the cost of fetching an item.
const ITEM_LEAST_NS: usize = 2_000;

/// The calling thread and `threads - 1` others.
///
/// The caller works along with the others instead of handing over and sleeping: waking a thread costs as much as a
/// small operation, and this way no operation waits for it.
#[derive(Debug)]
pub(crate) struct Pool {
    threads: usize,
    /// `None` where the caller is alone.
    others: Option<rayon::ThreadPool>,
}

impl Pool {
    /// A pool that works on `threads` threads in all.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let build = |others| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(others)
                .thread_name(|i| format!("compute-{i}"))
                .build()
                .map_err(|e| ComputeError::Device(format!("could not start {others} threads: {e}")))
        };
        Ok(Self { threads: threads.max(1), others: (threads > 1).then(|| build(threads - 1)).transpose()? })
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
        let Some(others) = self.others.as_ref().filter(|_| helpers > 0) else {
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
        others.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| work());
            }
            work();
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_is_visited_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            let visits: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(usize::MAX, 0..1000usize, |i| {
                visits[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(visits.iter().all(|v| v.load(Ordering::Relaxed) == 1));
            pool.for_each(usize::MAX, 0..0usize, |_| unreachable!("there is no item"));
        }
    }
}
