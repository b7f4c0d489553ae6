//! A model onto all replicas at once: the same files, read once, a copy on each, warmed up and checked.
//!
//! A replica whose device fails meanwhile is taken out, and so is, at the first loading, one that has no room where others
//! have: the rest goes on. What is wrong with the model itself stops the loading.

use crate::{
    BoxError, Progress, Role,
    budget::Budget,
    devices::Loaded,
    loaded::{LoadedModel, ModelCopy, dismiss},
    probe,
    queue::Queue,
    replica::{Failure, Stopped, forward},
    replicas::{Live, Replicas},
};
use nexus_compute::ComputeError;
use nexus_models::{
    LoadError, LoadOptions, ModelFiles, PackedWeights, TextTokenizer, embedder_memory, reranker_memory,
};
use std::{
    panic::resume_unwind,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// What it takes to place a model.
pub(crate) struct Placing<'a> {
    pub(crate) replicas: &'a Replicas,
    pub(crate) queue: &'a Queue,
    pub(crate) budget: &'a Mutex<Budget>,
    pub(crate) role: Role,
    pub(crate) batch_tokens_max: usize,
    pub(crate) text_tokens_max: usize,
    /// Whether no revision of the model serves: a replica that can not take it is of no use then.
    pub(crate) first: bool,
}

/// A model that works on at least one replica.
pub(crate) struct Placed {
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) pooling: &'static str,
    pub(crate) instruct: fn(&str, &str) -> String,
    pub(crate) columns: usize,
}

/// What went wrong on one replica.
pub(crate) enum Trouble {
    /// Its device failed.
    Device(Failure),
    /// There is no room on it.
    Memory(String),
    /// It would be so on each.
    Model(BoxError),
}

impl Trouble {
    fn of_load(error: LoadError) -> Self {
        match &error {
            LoadError::Prepare { source: ComputeError::OutOfMemory(_), .. } => Trouble::Memory(error.to_string()),
            LoadError::Prepare { source, .. } if source.is_device_failure() => Trouble::Device(Failure {
                reason: error.to_string(),
                of_process: matches!(source, ComputeError::Process(_)),
            }),
            _ => Trouble::Model(error.into()),
        }
    }

    fn of_run(stopped: &Stopped) -> Self {
        match (stopped.device_failure(), stopped) {
            (Some(failure), _) => Trouble::Device(failure),
            (None, Stopped::Compute(ComputeError::OutOfMemory(_))) => Trouble::Memory(stopped.to_string()),
            (None, _) => Trouble::Model(format!("the model does not work: {stopped}").into()),
        }
    }
}

impl Placing<'_> {
    /// Puts the model on the replicas `onto`.
    pub(crate) fn place(
        &self,
        onto: Vec<Live>,
        files: &ModelFiles,
        packed_weights: Option<&PackedWeights>,
        progress: Progress<'_>,
    ) -> Result<Placed, BoxError> {
        let onto = if self.first { self.with_room(onto, files)? } else { onto };
        let loaded = self.load(&onto, files, packed_weights, progress)?;
        let mut copies: Vec<Option<ModelCopy>> = Vec::new();
        let mut first = None;
        for (replica, loaded) in loaded {
            copies.resize_with(copies.len().max(replica + 1), || None);
            copies[replica] = Some(loaded.model.clone());
            first.get_or_insert(loaded);
        }
        let Loaded { model, tokenizer, pooling, instruct } = first.ok_or("no replica is left to load the model on")?;
        let columns = model.output_columns();
        drop(model);
        let probes = probe::sequences(self.role, &tokenizer)?;
        let model = Arc::new(LoadedModel::new(self.role, probes, copies));
        self.replicas.adopt(&model);
        if let Err(error) = self.check(&onto, &model, tokenizer.window_tokens(), progress) {
            dismiss(model);
            return Err(error);
        }
        Ok(Placed { model, tokenizer, pooling, instruct, columns })
    }

    /// The replicas that both models fit, as far as is known; an error where there are none.
    fn with_room(&self, onto: Vec<Live>, files: &ModelFiles) -> Result<Vec<Live>, BoxError> {
        // What a device is warmed up with is what it holds memory for from the start. One that is not takes it as batches come.
        let warm_up = |live: &Live| live.device.warm_up_tokens(self.batch_tokens_max);
        let tokens = onto.first().and_then(|live| warm_up(live).into_iter().max()).unwrap_or(0);
        let element_bytes = match onto.first().map(|live| live.device.numeric_format()) {
            Some("bf16" | "f16") => 2,
            _ => 4,
        };
        let need = match self.role {
            Role::Retriever => embedder_memory(files, tokens, element_bytes),
            Role::Reranker => reranker_memory(files, tokens, element_bytes),
        }?;
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        budget.count(self.role, need);
        let check = |live: &Live| {
            let Some(bytes) = live.memory_bytes else { return Ok(()) };
            budget.check(&live.device.name(), bytes, tokens).map_err(Trouble::Memory)
        };
        let checked = onto.into_iter().map(|live| (live.replica, check(&live).map(|()| live))).collect();
        drop(budget);
        Ok(self.settle(checked)?.into_iter().map(|(_, live)| live).collect())
    }

    fn load(
        &self,
        onto: &[Live],
        files: &ModelFiles,
        packed_weights: Option<&PackedWeights>,
        progress: Progress<'_>,
    ) -> Result<Vec<(usize, Loaded)>, BoxError> {
        // The slowest is the one that is waited for.
        let done: Vec<AtomicU64> = onto.iter().map(|_| AtomicU64::new(0)).collect();
        let loaded = at_once(onto, |at, live| {
            let tell = |bytes_done, bytes_total| {
                done[at].store(bytes_done, Ordering::Relaxed);
                let least = done.iter().map(|done| done.load(Ordering::Relaxed)).min().unwrap_or(0);
                progress("preparing weights", least, bytes_total);
            };
            let options = LoadOptions { window_limit_tokens: self.text_tokens_max, progress: &tell, packed_weights };
            let loaded = live.device.load(self.role, files, options);
            done[at].store(u64::MAX, Ordering::Relaxed);
            loaded.map_err(Trouble::of_load)
        });
        self.settle(onto.iter().map(|live| live.replica).zip(loaded).collect())
    }

    /// Runs each copy on batches of the sizes that its device wants to have seen, and then on texts whose answers are known
    /// to be sound.
    pub(crate) fn check(
        &self,
        onto: &[Live],
        model: &Arc<LoadedModel>,
        window_tokens: usize,
        progress: Progress<'_>,
    ) -> Result<(), BoxError> {
        progress("warming up", 0, 0);
        self.on_each(onto, model, |live, copy| {
            for tokens in live.device.warm_up_tokens(self.batch_tokens_max) {
                let sequences = filling(model.probes(), tokens, window_tokens);
                let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
                forward(self.replicas, live.replica, copy, &sequences).map_err(|stopped| Trouble::of_run(&stopped))?;
            }
            Ok(())
        })?;
        progress("checking", 0, 0);
        self.on_each(onto, model, |live, copy| {
            let sequences: Vec<&[u32]> = model.probes().iter().map(Vec::as_slice).collect();
            let rows =
                forward(self.replicas, live.replica, copy, &sequences).map_err(|stopped| Trouble::of_run(&stopped))?;
            probe::check(self.role, rows).map_err(|detail| Trouble::Model(detail.into()))
        })
    }

    fn on_each(
        &self,
        onto: &[Live],
        model: &Arc<LoadedModel>,
        work: impl Fn(&Live, &dyn nexus_models::PackedModel) -> Result<(), Trouble> + Sync,
    ) -> Result<(), BoxError> {
        // One that was taken out meanwhile has no copy any more.
        let outcomes = at_once(onto, |_, live| Some((live.replica, work(live, &*model.on(live.replica)?))));
        self.settle(outcomes.into_iter().flatten().collect()).map(drop)
    }

    /// What came of something on each replica: the good ones, where those that are not can be done without.
    fn settle<T>(&self, outcomes: Vec<(usize, Result<T, Trouble>)>) -> Result<Vec<(usize, T)>, BoxError> {
        let (mut good, mut full, mut last, mut wrong) = (Vec::new(), Vec::new(), None, None);
        for (replica, outcome) in outcomes {
            match outcome {
                Ok(it) => good.push((replica, it)),
                Err(Trouble::Memory(detail)) => full.push((replica, detail)),
                Err(Trouble::Device(Failure { reason, of_process })) => {
                    self.replicas.take_out(self.queue, replica, &reason, of_process);
                    last = Some(reason);
                }
                Err(Trouble::Model(error)) => wrong = wrong.or(Some(error)),
            }
        }
        if let Some(error) = wrong {
            return Err(error);
        }
        if let Some((_, detail)) = full.first().filter(|_| !self.first || good.is_empty()) {
            return Err(detail.clone().into());
        }
        for (replica, detail) in full {
            self.replicas.take_out(self.queue, replica, &detail, false);
        }
        if good.is_empty() {
            let nothing = || "no replica is left".to_owned();
            return Err(last.or_else(|| self.replicas.failure()).unwrap_or_else(nothing).into());
        }
        Ok(good)
    }
}

/// Does `work` for each item at once, each on a thread where there are several.
fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    if let [item] = items {
        return vec![work(0, item)];
    }
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items.iter().enumerate().map(|(at, item)| scope.spawn(move || work(at, item))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Sequences of `tokens` tokens in all, each of at most `window_tokens`, made of the tokens of `probes`.
fn filling(probes: &[Vec<u32>], tokens: usize, window_tokens: usize) -> Vec<Vec<u32>> {
    let mut source = probes.iter().flatten().copied().cycle();
    let mut sequences = Vec::new();
    let mut left = tokens;
    while left > 0 {
        let length = left.min(window_tokens.max(1));
        sequences.push(source.by_ref().take(length).collect());
        left -= length;
    }
    sequences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_has_the_tokens_that_were_asked_for_in_texts_of_at_most_a_window() {
        let probes = [vec![1, 2], vec![3]];
        assert_eq!(filling(&probes, 7, 4), [vec![1, 2, 3, 1], vec![2, 3, 1]]);
        assert_eq!(filling(&probes, 4, 4), [vec![1, 2, 3, 1]]);
        assert!(filling(&probes, 0, 4).is_empty());
    }
}
