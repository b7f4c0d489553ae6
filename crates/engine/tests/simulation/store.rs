//! A store of embeddings behind the memory: records in bytes, and every fault that a store may have.
//!
//! It hangs, fails, answers for too few keys, lies in ways that whoever reads can notice, loses what it was given, and
//! damages what it keeps: bits, lengths, formats of other versions, the record of another key.

use super::{dice::Dice, plan::StorePlan};
use futures::{FutureExt, future::BoxFuture};
use nexus_storage::{CacheKey, CacheStats, EmbeddingCache, Vector, record};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    records: BTreeMap<CacheKey, Vec<u8>>,
    writes: Vec<(CacheKey, Vector)>,
    reads: BTreeMap<u64, Read>,
    reads_begun: u64,
}

/// A read that somebody waits for.
struct Read {
    keys: Vec<CacheKey>,
    hangs: Option<bool>,
    answer: Option<Vec<Option<Vector>>>,
    waker: Option<Waker>,
}

/// Takes a read out when nobody waits for it any more.
struct Reading(Store, u64);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.lock().reads.remove(&self.1);
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reads that could be answered: of those that hang, none before it is `calm`.
    pub(crate) fn answerable(&self, dice: &mut Dice, plan: &StorePlan, calm: bool) -> Vec<u64> {
        let mut held = self.lock();
        let open = held.reads.iter_mut().filter(|(_, read)| read.answer.is_none());
        open.filter_map(|(&id, read)| {
            let hangs = *read.hangs.get_or_insert_with(|| dice.percent(plan.hangs_percent));
            (calm || !hangs).then_some(id)
        })
        .collect()
    }

    /// Answers a read; says how.
    pub(crate) fn answer(&self, id: u64, dice: &mut Dice, plan: &StorePlan, calm: bool) -> &'static str {
        let mut held = self.lock();
        let Held { records, reads, .. } = &mut *held;
        let Some(read) = reads.get_mut(&id) else { return "is gone" };
        let found = read.keys.iter().map(|key| record::decode(key, records.get(key)?).ok());
        let mut answer: Vec<Option<Vector>> = found.collect();
        let mut how = "is answered";
        if !calm && dice.percent(plan.fails_percent) {
            // As of a store that timed out: some keys have been read, or none.
            let kept = dice.below(answer.len() + 1);
            answer.iter_mut().skip(kept).for_each(|vector| *vector = None);
            how = "fails";
        }
        if !calm && dice.percent(plan.lies_percent) {
            let at = dice.below(answer.len());
            how = "is lied to";
            match dice.below(4) {
                0 => answer[at] = Some(vec![0.5; dice.pick(&[0, 5, 9])].into()),
                1 => {
                    let length = answer[at].as_ref().map_or(4, |vector| vector.len());
                    answer[at] = Some(vec![dice.pick(&[f32::NAN, f32::INFINITY]); length].into());
                }
                2 => answer.truncate(at),
                _ => answer.push(Some(vec![0.5; 4].into())),
            }
        }
        read.answer = Some(answer);
        let waker = read.waker.take();
        drop(held);
        if let Some(waker) = waker {
            waker.wake();
        }
        how
    }

    /// Whether something waits to be written.
    pub(crate) fn has_writes(&self) -> bool {
        !self.lock().writes.is_empty()
    }

    /// Writes what waits, or loses some of it.
    pub(crate) fn write(&self, dice: &mut Dice, plan: &StorePlan, calm: bool) -> usize {
        let mut held = self.lock();
        let writes = std::mem::take(&mut held.writes);
        let mut count = 0;
        for (key, vector) in writes {
            if (calm || !dice.percent(plan.loses_percent))
                && let Some(record) = record::encode(&key, &vector)
            {
                held.records.insert(key, record);
                count += 1;
            }
        }
        count
    }

    /// Damages a record, if there is one.
    pub(crate) fn damage(&self, dice: &mut Dice) -> &'static str {
        let mut held = self.lock();
        if held.records.is_empty() {
            return "nothing";
        }
        let at = dice.below(held.records.len());
        let others: Vec<Vec<u8>> = held.records.values().cloned().collect();
        let Some(record) = held.records.values_mut().nth(at).filter(|record| record.len() > 28) else {
            return "nothing";
        };
        match dice.below(5) {
            0 => {
                let bit = dice.below(8 * record.len());
                record[bit / 8] ^= 1 << (bit % 8);
                "a bit"
            }
            1 => {
                record.truncate(dice.below(record.len()));
                "the length"
            }
            2 => {
                // The format's version.
                record[4] = dice.pick(&[0, 2, 200]);
                "the version"
            }
            3 => {
                // Of before there was a header: floats alone.
                *record = record.split_off(28);
                "the format"
            }
            _ => {
                *record = dice.pick(&others);
                "the key"
            }
        }
    }

    /// Reads that nobody waits for, and that are still there.
    pub(crate) fn reads_open(&self) -> usize {
        self.lock().reads.len()
    }
}

impl EmbeddingCache for Store {
    fn name(&self) -> String {
        "a store".into()
    }

    fn get<'a>(&'a self, keys: &'a [CacheKey]) -> BoxFuture<'a, Vec<Option<Vector>>> {
        let mut held = self.lock();
        held.reads_begun += 1;
        let id = held.reads_begun;
        held.reads.insert(id, Read { keys: keys.to_vec(), hangs: None, answer: None, waker: None });
        drop(held);
        let reading = Reading(self.clone(), id);
        poll_fn(move |context| {
            let mut held = reading.0.lock();
            let read = held.reads.get_mut(&reading.1).expect("it is there while it is waited for");
            match read.answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => {
                    read.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .boxed()
    }

    fn put(&self, entries: Vec<(CacheKey, Vector)>) {
        self.lock().writes.extend(entries);
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn stats(&self) -> CacheStats {
        CacheStats::default()
    }
}
