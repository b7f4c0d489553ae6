//! Every job that was ever queued, and what happened to it: what must hold of the queue and of what is taken from it.
//!
//! A job is known by the address of its tokens, which it keeps wherever it goes.

use super::texts;
use crate::{
    Role,
    loaded::LoadedModel,
    queue::{Job, Queue, Work},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    Panicked,
    Misshapen,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) tokens: Vec<u32>,
    pub(crate) revision: u64,
    /// Passes that ended with a failure of the device.
    pub(crate) device_failures: usize,
    /// Passes, alone, that did not fit.
    pub(crate) too_large: usize,
    /// The replica of the first of them.
    pub(crate) too_large_on: Option<usize>,
    /// Batches that it was in, and that a failure of the device ended.
    pub(crate) setbacks: usize,
    pub(crate) end: Option<End>,
    overtaken: usize,
    /// How often something had been put back when it was overtaken first.
    put_back_before: usize,
}

/// A job in the queue, as a replica sees it.
pub(crate) struct Waiting {
    pub(crate) id: usize,
    tokens: usize,
    left: bool,
    model: *const LoadedModel,
    takeable: bool,
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) jobs: Vec<Record>,
    ids: BTreeMap<usize, usize>,
    models: Vec<(Weak<LoadedModel>, u64)>,
    /// What replicas had when it looked last.
    held: Vec<usize>,
    /// Times that a replica put something back in front of all others.
    put_back: usize,
    /// Tokens in the queue that somebody waits for.
    pub(crate) wanted_tokens: usize,
}

pub(crate) fn address(job: &Job) -> usize {
    job.tokens.as_ptr() as usize
}

const fn lane_of(role: Role) -> usize {
    match role {
        Role::Retriever => 0,
        Role::Reranker => 1,
    }
}

impl Ledger {
    /// Makes a model known. Its address stays its own as long as this lives.
    pub(crate) fn know(&mut self, model: &Arc<LoadedModel>, revision: u64) {
        self.models.push((Arc::downgrade(model), revision));
    }

    /// Models that are still held by somebody.
    pub(crate) fn models_held(&self) -> usize {
        self.models.iter().filter(|(model, _)| model.strong_count() > 0).count()
    }

    pub(crate) fn id(&self, job: &Job) -> usize {
        *self.ids.get(&address(job)).expect("a job that was in the queue before")
    }

    pub(crate) fn record(&mut self, job: &Job) -> &mut Record {
        let id = self.id(job);
        &mut self.jobs[id]
    }

    /// Looks at the queue after something happened; `held` are the jobs that replicas have.
    pub(crate) fn look(&mut self, queue: &Queue, held: Vec<usize>) {
        let known = &self.ids;
        let of = |job: &Job| {
            let at = address(job);
            let new = (!known.contains_key(&at)).then(|| (job.tokens.clone(), Arc::as_ptr(&job.model)));
            (at, job.tokens.len(), job.reply.is_closed(), new)
        };
        let (mut tokens, mut seen) = (0, held.iter().copied().collect::<BTreeSet<usize>>());
        assert_eq!(seen.len(), held.len(), "a job is in one place");
        self.wanted_tokens = 0;
        let mut put_back = Vec::new();
        for (at, length, left, new) in queue.each_waiting(of).into_iter().flatten() {
            assert!(seen.insert(at), "a job is in one place");
            tokens += length;
            put_back.extend(self.held.contains(&at).then_some(at));
            self.wanted_tokens += if left { 0 } else { length };
            if let Some((tokens, model)) = new {
                let revision = self.models.iter().find(|(known, _)| known.as_ptr() == model);
                let revision = revision.expect("a known model").1;
                self.ids.insert(at, self.jobs.len());
                self.jobs.push(Record {
                    tokens,
                    revision,
                    device_failures: 0,
                    too_large: 0,
                    too_large_on: None,
                    setbacks: 0,
                    end: None,
                    overtaken: 0,
                    put_back_before: 0,
                });
            }
            let job = &self.jobs[self.ids[&at]];
            assert_eq!(job.end, None, "{job:?} is over, and in the queue");
            assert!(job.device_failures < 2 && job.too_large < 2, "{job:?} would be run a third time");
        }
        assert_eq!(tokens, queue.queued_tokens(), "tokens of the jobs in the queue");
        // One replica takes a step at a time, and its jobs are of one lane.
        let in_order: Vec<usize> = self.held.iter().copied().filter(|at| put_back.contains(at)).collect();
        assert_eq!(put_back, in_order, "what comes back keeps its order");
        self.put_back += usize::from(!put_back.is_empty());
        self.held = held;
        self.ids.retain(|at, _| seen.contains(at));
    }

    /// The queue as a replica sees it, by lane.
    pub(crate) fn seen_by(&self, queue: &Queue, replica: usize) -> [Vec<Waiting>; 2] {
        queue.each_waiting(|job| Waiting {
            id: self.id(job),
            tokens: job.tokens.len(),
            left: job.reply.is_closed(),
            model: Arc::as_ptr(&job.model),
            takeable: job.model.is_on(replica) && job.may_run_on(replica),
        })
    }

    /// Whether a replica finds something to do.
    pub(crate) fn has_work(before: &[Vec<Waiting>; 2]) -> bool {
        before.iter().flatten().any(|job| job.takeable && !job.left)
    }

    /// Checks what a replica took of the queue as it was `before`. `is_wanted` says whether somebody is there who waits
    /// for these tokens of a revision.
    pub(crate) fn taken(
        &mut self,
        before: &[Vec<Waiting>; 2],
        work: &Work,
        replica: usize,
        tokens_max: usize,
        replicas: usize,
        is_wanted: impl Fn(u64, &[u32]) -> bool,
    ) {
        let lane = lane_of(work.model.role());
        let taken: Vec<usize> = work.jobs.iter().map(|job| self.id(job)).collect();
        let waiting: Vec<&Waiting> = before[lane].iter().filter(|job| !job.left).collect();
        let first = waiting.iter().position(|job| job.takeable).expect("there is something to take");
        let model = waiting[first].model;
        let run: Vec<_> = waiting[first..].iter().take_while(|job| job.model == model && job.takeable).collect();
        let expected: Vec<usize> = run.iter().map(|job| job.id).take(taken.len()).collect();
        assert_eq!(taken, expected, "the first jobs of lane {lane}, in order");
        let tokens: usize = run[..taken.len()].iter().map(|job| job.tokens).sum();
        assert!(tokens <= tokens_max || taken.len() == 1, "a batch of {tokens} tokens, where {tokens_max} are allowed");
        if replicas == 1
            && let Some(next) = run.get(taken.len())
        {
            assert!(tokens + next.tokens > tokens_max, "a batch of {tokens} tokens leaves one of {} out", next.tokens);
        }
        for &id in &taken {
            let job = &self.jobs[id];
            assert_ne!(job.too_large_on, Some(replica), "job {id} did not fit here");
            assert!(is_wanted(job.revision, &job.tokens), "job {id} was taken, and nobody waits for it");
        }
        if let Some(passed) = before[1 - lane].iter().find(|job| job.takeable && !job.left) {
            let job = &mut self.jobs[passed.id];
            if job.overtaken == 0 {
                job.put_back_before = self.put_back;
            }
            job.overtaken += 1;
            let times = job.overtaken;
            // Each replica may have a first job of its own. What comes back goes before it in its own lane.
            let allowed = replicas.min(2) + self.put_back - job.put_back_before;
            assert!(times <= allowed, "job {} has been overtaken by {times} batches of the other lane", passed.id);
        }
        taken.iter().for_each(|&id| self.jobs[id].overtaken = 0);
    }

    /// Whether one of the jobs with such tokens came to this.
    pub(crate) fn any(&self, revision: u64, tokens: &[Vec<u32>], what: impl Fn(&Record) -> bool) -> bool {
        self.jobs.iter().any(|job| job.revision == revision && what(job) && tokens.contains(&job.tokens))
    }

    /// The texts that were computed more often than once, of those that were asked for once.
    pub(crate) fn computed_twice(&self, asked: &[(u64, Vec<Vec<u32>>)]) -> Option<&Record> {
        let mut times: BTreeMap<(u64, &[u32]), (usize, usize)> = BTreeMap::new();
        for (revision, all) in asked {
            all.iter().for_each(|tokens| times.entry((*revision, tokens)).or_default().0 += 1);
        }
        for job in self.jobs.iter().filter(|job| job.end == Some(End::Answered)) {
            times.entry((job.revision, &job.tokens)).or_default().1 += 1;
        }
        let again = |job: &&Record| times.get(&(job.revision, &job.tokens[..])).is_some_and(|(a, c)| *a == 1 && *c > 1);
        self.jobs.iter().find(again)
    }

    /// Answers of which nothing but the text decides what they are.
    pub(crate) fn ended(&mut self, job: &Job, end: End) {
        let record = self.record(job);
        assert_eq!(record.end, None, "{record:?} is answered once");
        if end == End::Answered {
            let nature = texts::nature(&record.tokens);
            assert!(!matches!(nature, texts::Nature::Panics | texts::Nature::Shape), "{record:?} can not be answered");
        }
        record.end = Some(end);
    }
}
