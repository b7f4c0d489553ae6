//! The one bounded queue between requests and replicas.
//!
//! It has a lane a model, served in turn, so that a long rerank does not hold single embeds up. It is bounded in tokens,
//! since tokens are what a device spends its time on. Jobs whose caller has gone away are dropped when they are met.
//!
//! A job names the loaded model that its tokens were made for. While one revision follows another, a lane holds jobs of
//! both; a batch never does.

use crate::{EngineError, QueueWaits, Role, loaded::LoadedModel, packer, waits::Waits};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Instant,
};
use tokio::sync::oneshot;

/// Tokens that go through a model, and where their row of output goes.
#[derive(Debug)]
pub(crate) struct Job {
    /// The model whose tokenizer gave the tokens.
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) reply: oneshot::Sender<Result<Vec<f32>, EngineError>>,
}

/// What a replica runs next: jobs of one model, in order of arrival.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) jobs: Vec<Job>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    queued_tokens_max: usize,
    batch_tokens_max: usize,
    waits: Waits,
}

#[derive(Debug, Default)]
struct State {
    lanes: [VecDeque<Queued>; 2],
    queued_tokens: usize,
    last_served: usize,
    closed: bool,
}

/// A job, and since when it waits.
#[derive(Debug)]
struct Queued {
    job: Job,
    since: Instant,
}

const fn lane_of(role: Role) -> usize {
    match role {
        Role::Retriever => 0,
        Role::Reranker => 1,
    }
}

impl Queue {
    pub(crate) fn new(queued_tokens_max: usize, batch_tokens_max: usize) -> Self {
        let (state, arrived, waits) = (Mutex::default(), Condvar::new(), Waits::default());
        Self { state, arrived, queued_tokens_max, batch_tokens_max, waits }
    }

    /// Queues all of `jobs` or none. A request larger than the whole queue is admitted when nothing else waits: it could
    /// never run otherwise.
    pub(crate) fn push(&self, jobs: Vec<Job>) -> Result<(), EngineError> {
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        let mut state = self.lock();
        self.admit(&mut state, tokens)?;
        state.queued_tokens += tokens;
        let since = Instant::now();
        jobs.into_iter().for_each(|job| state.lanes[lane_of(job.model.role())].push_back(Queued { job, since }));
        drop(state);
        self.arrived.notify_all();
        Ok(())
    }

    /// Whether it refuses new work for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Whether a request of any size would be refused now: a cheap question, before work is put into one.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        self.admit(&mut self.lock(), 1)
    }

    fn admit(&self, state: &mut State, tokens: usize) -> Result<(), EngineError> {
        if state.closed {
            return Err(EngineError::ShuttingDown);
        }
        let full = |state: &State| {
            state.queued_tokens > 0 && state.queued_tokens.saturating_add(tokens) > self.queued_tokens_max
        };
        if full(state) {
            // Requests that were given up since the last batch hold no place.
            (0..state.lanes.len()).for_each(|lane| state.drop_abandoned(lane));
        }
        if full(state) { Err(EngineError::Overloaded { retry_after_s: 1 }) } else { Ok(()) }
    }

    /// The next batch; waits for one. `None` once the queue is closed and empty.
    pub(crate) fn take(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if let Some(queued) = state.next(self.batch_tokens_max) {
                drop(state);
                return self.hand_out(queued);
            }
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(|e| e.into_inner());
        }
    }

    fn hand_out(&self, queued: Vec<Queued>) -> Option<Work> {
        let model = Arc::clone(&queued.first()?.job.model);
        let now = Instant::now();
        queued.iter().for_each(|queued| self.waits.record(now - queued.since));
        Some(Work { model, jobs: queued.into_iter().map(|queued| queued.job).collect() })
    }

    /// How long jobs have waited that were handed out since the last call.
    pub(crate) fn take_waits(&self) -> QueueWaits {
        self.waits.take()
    }

    /// Tokens that wait now.
    pub(crate) fn queued_tokens(&self) -> usize {
        self.lock().queued_tokens
    }

    /// Refuses new work; what is queued is still served.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Refuses new work and forgets what is queued: whoever waits for it is told that the process is shutting down.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queued_tokens = 0;
        let forgotten = std::mem::take(&mut state.lanes);
        drop(state);
        self.arrived.notify_all();
        drop(forgotten);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    /// The next batch, never an empty one: jobs of one model, in order of arrival.
    fn next(&mut self, tokens_max: usize) -> Option<Vec<Queued>> {
        for turn in 1..=self.lanes.len() {
            let lane = (self.last_served + turn) % self.lanes.len();
            self.drop_abandoned(lane);
            let queue = &mut self.lanes[lane];
            let Some(model) = queue.front().map(|queued| Arc::clone(&queued.job.model)) else { continue };
            let alike = queue.iter().take_while(|queued| Arc::ptr_eq(&queued.job.model, &model));
            let count = packer::fitting(alike.map(|queued| queued.job.tokens.len()), tokens_max);
            let batch: Vec<Queued> = queue.drain(..count).collect();
            self.queued_tokens -= batch.iter().map(|queued| queued.job.tokens.len()).sum::<usize>();
            self.last_served = lane;
            return Some(batch);
        }
        None
    }

    fn drop_abandoned(&mut self, lane: usize) {
        let queued_tokens = &mut self.queued_tokens;
        self.lanes[lane].retain(|Queued { job, .. }| {
            let wanted = !job.reply.is_closed();
            if !wanted {
                *queued_tokens -= job.tokens.len();
            }
            wanted
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reply = oneshot::Receiver<Result<Vec<f32>, EngineError>>;

    fn model(role: Role) -> Arc<LoadedModel> {
        Arc::new(LoadedModel::new(role, Vec::new()))
    }

    fn job(model: &Arc<LoadedModel>, tokens: usize) -> (Job, Reply) {
        let (reply, receiver) = oneshot::channel();
        (Job { model: model.clone(), tokens: vec![7; tokens], reply }, receiver)
    }

    fn embed(tokens: usize) -> (Job, Reply) {
        job(&model(Role::Retriever), tokens)
    }

    fn lengths(work: Option<Work>) -> (Role, Vec<usize>) {
        let work = work.expect("work");
        assert!(work.jobs.iter().all(|job| Arc::ptr_eq(&job.model, &work.model)));
        (work.model.role(), work.jobs.iter().map(|job| job.tokens.len()).collect())
    }

    #[test]
    fn packs_in_order_and_takes_turns() {
        let queue = Queue::new(1000, 10);
        let (reranker, retriever) = (model(Role::Reranker), model(Role::Retriever));
        let (rerank, _r): (Vec<_>, Vec<_>) = [6, 6, 6].map(|tokens| job(&reranker, tokens)).into_iter().unzip();
        let (embed, _e): (Vec<_>, Vec<_>) = [4, 4, 4].map(|tokens| job(&retriever, tokens)).into_iter().unzip();
        queue.push(rerank).unwrap();
        queue.push(embed).unwrap();
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![6]));
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![4, 4]));
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![6]));
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![4]));
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![6]));
    }

    #[test]
    fn waits_are_those_of_jobs_that_were_handed_out() {
        let queue = Queue::new(1000, 10);
        let (jobs, _replies): (Vec<_>, Vec<_>) = [6, 6].map(embed).into_iter().unzip();
        queue.push(jobs).unwrap();
        assert_eq!((queue.take_waits().jobs, queue.queued_tokens()), (0, 12));
        std::thread::sleep(std::time::Duration::from_millis(20));
        queue.take();
        let waits = queue.take_waits();
        assert!(waits.jobs == 1 && waits.p50_ms >= 20.0, "{waits:?}");
        assert_eq!((queue.take_waits().jobs, queue.queued_tokens()), (0, 6));
    }

    #[test]
    fn a_batch_is_of_one_revision_and_order_is_kept() {
        let queue = Queue::new(1000, 10);
        let (old, new) = (model(Role::Retriever), model(Role::Retriever));
        // Requests that began before the flip may be queued after those that began later.
        let (jobs, _replies): (Vec<_>, Vec<_>) = [(&old, 1), (&old, 2), (&new, 3), (&old, 4), (&new, 5), (&new, 5)]
            .map(|(m, n)| job(m, n))
            .into_iter()
            .unzip();
        queue.push(jobs).unwrap();
        for (model, expected) in [(&old, vec![1, 2]), (&new, vec![3]), (&old, vec![4]), (&new, vec![5, 5])] {
            let work = queue.take();
            assert!(work.as_ref().is_some_and(|work| Arc::ptr_eq(&work.model, model)));
            assert_eq!(lengths(work), (Role::Retriever, expected));
        }
    }

    #[test]
    fn refuses_what_does_not_fit_whole() {
        let queue = Queue::new(10, 10);
        let (first, _a) = embed(8);
        queue.push(vec![first]).unwrap();
        let (second, third) = (embed(2), embed(1));
        let refused = queue.push(vec![second.0, third.0]);
        assert_eq!(refused, Err(EngineError::Overloaded { retry_after_s: 1 }));
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![8]));
        let (large, _b) = embed(50);
        queue.push(vec![large]).unwrap();
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![50]));
    }

    #[test]
    fn forgets_jobs_nobody_waits_for_and_frees_their_place() {
        let queue = Queue::new(10, 10);
        let (gone, receiver) = embed(9);
        queue.push(vec![gone]).unwrap();
        drop(receiver);
        let (wanted, _r) = job(&model(Role::Reranker), 3);
        queue.push(vec![wanted]).unwrap();
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![3]));
        let (late, receiver) = embed(2);
        queue.push(vec![late]).unwrap();
        drop(receiver);
        queue.close();
        assert!(queue.take().is_none());
        let (late, _l) = embed(1);
        assert_eq!(queue.push(vec![late]), Err(EngineError::ShuttingDown));
    }

    #[test]
    fn serves_what_is_queued_after_closing() {
        let queue = Queue::new(10, 10);
        let (wanted, _r) = embed(3);
        queue.push(vec![wanted]).unwrap();
        queue.close();
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![3]));
        assert!(queue.take().is_none());
    }

    #[test]
    fn forgets_what_is_queued_when_abandoned() {
        let queue = Queue::new(10, 10);
        let (unlucky, receiver) = embed(3);
        queue.push(vec![unlucky]).unwrap();
        queue.abandon();
        assert!(receiver.blocking_recv().is_err());
        assert!(queue.take().is_none());
    }
}
