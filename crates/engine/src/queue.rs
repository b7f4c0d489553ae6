//! The one bounded queue between requests and replicas.
//!
//! It has a lane a model, served in turn, so that a long rerank does not hold single embeds up. It is bounded in tokens,
//! since tokens are what a device spends its time on. Jobs whose caller has gone away are dropped when they are met.

use crate::{EngineError, Role, packer};
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard},
};
use tokio::sync::oneshot;

/// Tokens that go through a model, and where their row of output goes.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) tokens: Vec<u32>,
    pub(crate) reply: oneshot::Sender<Result<Vec<f32>, EngineError>>,
}

/// What a replica runs next: jobs of one model, in order of arrival.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) role: Role,
    pub(crate) jobs: Vec<Job>,
}

#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    queued_tokens_max: usize,
    batch_tokens_max: usize,
}

#[derive(Debug, Default)]
struct State {
    lanes: [VecDeque<Job>; 2],
    queued_tokens: usize,
    last_served: usize,
    closed: bool,
}

const ROLES: [Role; 2] = [Role::Retriever, Role::Reranker];

const fn lane_of(role: Role) -> usize {
    match role {
        Role::Retriever => 0,
        Role::Reranker => 1,
    }
}

impl Queue {
    pub(crate) fn new(queued_tokens_max: usize, batch_tokens_max: usize) -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), queued_tokens_max, batch_tokens_max }
    }

    /// Queues all of `jobs` or none. A request larger than the whole queue is admitted when nothing else waits: it could
    /// never run otherwise.
    pub(crate) fn push(&self, role: Role, jobs: Vec<Job>) -> Result<(), EngineError> {
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        let mut state = self.lock();
        self.admit(&mut state, tokens)?;
        state.queued_tokens += tokens;
        state.lanes[lane_of(role)].extend(jobs);
        drop(state);
        self.arrived.notify_all();
        Ok(())
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
            if let Some(work) = state.next(self.batch_tokens_max) {
                return Some(work);
            }
            if state.closed {
                return None;
            }
            state = self.arrived.wait(state).unwrap_or_else(|e| e.into_inner());
        }
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
    fn next(&mut self, tokens_max: usize) -> Option<Work> {
        for turn in 1..=self.lanes.len() {
            let lane = (self.last_served + turn) % self.lanes.len();
            self.drop_abandoned(lane);
            let queue = &mut self.lanes[lane];
            let count = packer::fitting(queue.iter().map(|job| job.tokens.len()), tokens_max);
            if count == 0 {
                continue;
            }
            let jobs: Vec<Job> = queue.drain(..count).collect();
            self.queued_tokens -= jobs.iter().map(|job| job.tokens.len()).sum::<usize>();
            self.last_served = lane;
            return Some(Work { role: ROLES[lane], jobs });
        }
        None
    }

    fn drop_abandoned(&mut self, lane: usize) {
        let queued_tokens = &mut self.queued_tokens;
        self.lanes[lane].retain(|job| {
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

    fn job(tokens: usize) -> (Job, oneshot::Receiver<Result<Vec<f32>, EngineError>>) {
        let (reply, receiver) = oneshot::channel();
        (Job { tokens: vec![7; tokens], reply }, receiver)
    }

    fn lengths(work: Option<Work>) -> (Role, Vec<usize>) {
        let work = work.expect("work");
        (work.role, work.jobs.iter().map(|job| job.tokens.len()).collect())
    }

    #[test]
    fn packs_in_order_and_takes_turns() {
        let queue = Queue::new(1000, 10);
        let (rerank, _r): (Vec<_>, Vec<_>) = [6, 6, 6].map(job).into_iter().unzip();
        let (embed, _e): (Vec<_>, Vec<_>) = [4, 4, 4].map(job).into_iter().unzip();
        queue.push(Role::Reranker, rerank).unwrap();
        queue.push(Role::Retriever, embed).unwrap();
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![6]));
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![4, 4]));
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![6]));
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![4]));
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![6]));
    }

    #[test]
    fn refuses_what_does_not_fit_whole() {
        let queue = Queue::new(10, 10);
        let (first, _a) = job(8);
        queue.push(Role::Retriever, vec![first]).unwrap();
        let (second, third) = (job(2), job(1));
        let refused = queue.push(Role::Retriever, vec![second.0, third.0]);
        assert_eq!(refused, Err(EngineError::Overloaded { retry_after_s: 1 }));
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![8]));
        let (large, _b) = job(50);
        queue.push(Role::Retriever, vec![large]).unwrap();
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![50]));
    }

    #[test]
    fn forgets_jobs_nobody_waits_for_and_frees_their_place() {
        let queue = Queue::new(10, 10);
        let (gone, receiver) = job(9);
        queue.push(Role::Retriever, vec![gone]).unwrap();
        drop(receiver);
        let (wanted, _r) = job(3);
        queue.push(Role::Reranker, vec![wanted]).unwrap();
        assert_eq!(lengths(queue.take()), (Role::Reranker, vec![3]));
        let (late, receiver) = job(2);
        queue.push(Role::Retriever, vec![late]).unwrap();
        drop(receiver);
        queue.close();
        assert!(queue.take().is_none());
        let (late, _l) = job(1);
        assert_eq!(queue.push(Role::Retriever, vec![late]), Err(EngineError::ShuttingDown));
    }

    #[test]
    fn serves_what_is_queued_after_closing() {
        let queue = Queue::new(10, 10);
        let (wanted, _r) = job(3);
        queue.push(Role::Retriever, vec![wanted]).unwrap();
        queue.close();
        assert_eq!(lengths(queue.take()), (Role::Retriever, vec![3]));
        assert!(queue.take().is_none());
    }

    #[test]
    fn forgets_what_is_queued_when_abandoned() {
        let queue = Queue::new(10, 10);
        let (unlucky, receiver) = job(3);
        queue.push(Role::Retriever, vec![unlucky]).unwrap();
        queue.abandon();
        assert!(receiver.blocking_recv().is_err());
        assert!(queue.take().is_none());
    }
}
