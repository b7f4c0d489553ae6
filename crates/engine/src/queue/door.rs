//! The door of the queue: what is let in, by the room that there is, by what its client has of it, and by the time that it would
//! have to wait.
//!
//! Room is taken while a request is still text, by an estimate of its tokens: who is refused has cost nothing. The wait is
//! estimated by how fast replicas have been of late; a request that would be too late when it is its turn is refused at once, and
//! its place goes to one that can be served.

use super::{Job, Part, Queue, State, lane_of};
use crate::{EngineError, Role};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// What batches of the past still count, each time another one is run.
const REMEMBERED: f64 = 0.9;

/// A batch of fewer tokens takes about as long as one of these: that it is slow says nothing of full ones.
const BATCH_TOKENS_MIN: usize = 64;

/// What is added to an estimated wait: batches differ.
const CAUTION: f64 = 1.4;

/// Nobody is told to come back later than this.
const RETRY_AFTER_S_MAX: u64 = 30;

/// How fast a replica runs a model.
#[derive(Debug, Default)]
pub(super) struct Pace {
    tokens: f64,
    seconds: f64,
    batches: f64,
}

impl Pace {
    fn ran(&mut self, tokens: usize, took: Duration) {
        self.tokens = self.tokens * REMEMBERED + tokens.max(BATCH_TOKENS_MIN) as f64;
        self.seconds = self.seconds * REMEMBERED + took.as_secs_f64();
        self.batches = self.batches * REMEMBERED + 1.0;
    }

    /// Zero while nothing is known.
    fn seconds_for(&self, tokens: usize) -> f64 {
        if self.tokens > 0.0 { tokens as f64 * self.seconds / self.tokens } else { 0.0 }
    }

    fn seconds_of_batch(&self) -> f64 {
        if self.batches > 0.0 { self.seconds / self.batches } else { 0.0 }
    }
}

/// Room for tokens that are still text; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    queue: Arc<Queue>,
    lane: usize,
    tokens: usize,
    /// The same, among those of its client.
    part: Option<Part>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.give_back(&mut self.queue.clone().lock());
    }
}

impl Reserved {
    fn give_back(&mut self, state: &mut State) {
        state.reserved[self.lane] -= std::mem::take(&mut self.tokens);
    }
}

impl Queue {
    /// Takes room for about `tokens` tokens of a request, of `client` if that has a name.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        role: Role,
        tokens: usize,
        deadline: Option<Instant>,
        client: Option<Arc<str>>,
    ) -> Result<Reserved, EngineError> {
        let lane = lane_of(role);
        let mut state = self.lock();
        self.admit(&mut state, lane, tokens, deadline)?;
        if let Some(client) = &client {
            self.admit_of(&mut state, client, tokens)?;
        }
        let part = client.map(|client| state.clients.take(client, tokens));
        state.reserved[lane] += tokens;
        drop(state);
        Ok(Reserved { queue: Arc::clone(self), lane, tokens, part })
    }

    /// Queues all of `jobs` or none, for which room was taken. It may turn out to be more than was thought.
    pub(crate) fn push_reserved(&self, mut jobs: Vec<Job>, mut reserved: Reserved) -> Result<(), EngineError> {
        let mut state = self.lock();
        reserved.give_back(&mut state);
        if let Some(part) = reserved.part.take() {
            jobs.iter_mut().for_each(|job| job.part = Some(part.another(job.tokens.len())));
        }
        self.refuse_for_good(&state)?;
        self.put(state, jobs)
    }

    /// A replica has run a batch.
    pub(crate) fn ran(&self, role: Role, tokens: usize, took: Duration) {
        self.lock().pace[lane_of(role)].ran(tokens, took);
    }

    /// Whether it takes nothing at all any more.
    fn refuse_for_good(&self, state: &State) -> Result<(), EngineError> {
        match &state.failed {
            Some(reason) => Err(EngineError::Device(reason.clone())),
            None if state.closed => Err(EngineError::ShuttingDown),
            None => Ok(()),
        }
    }

    /// Whether `tokens` more may wait in a lane, and would be served before `deadline`.
    pub(super) fn admit(
        &self,
        state: &mut State,
        lane: usize,
        tokens: usize,
        deadline: Option<Instant>,
    ) -> Result<(), EngineError> {
        self.refuse_for_good(state)?;
        let full = |state: &State| {
            let waiting = state.tokens_ahead();
            waiting > 0 && waiting.saturating_add(tokens) > self.queued_tokens_max
        };
        let late = |state: &State| {
            let left = deadline?.saturating_duration_since(Instant::now()).as_secs_f64();
            let wait = state.wait_s(lane);
            (wait > 0.0 && wait * CAUTION + state.pace[lane].seconds_for(tokens) > left).then_some(wait)
        };
        // Requests that were given up since the last batch hold no place, or not for long.
        if full(state) || late(state).is_some() {
            state.drop_unwanted_now_and_then();
        }
        let wait = late(state);
        if wait.is_none() && !full(state) {
            return Ok(());
        }
        let retry_after_s = (wait.unwrap_or_default().ceil() as u64).clamp(1, RETRY_AFTER_S_MAX);
        Err(EngineError::Overloaded { by_client: false, retry_after_s })
    }

    /// Whether `tokens` more of `client` may wait.
    fn admit_of(&self, state: &mut State, client: &str, tokens: usize) -> Result<(), EngineError> {
        let may_have = |state: &State| {
            let free = self.queued_tokens_max.saturating_sub(state.tokens_ahead());
            state.clients.may_have(client, tokens, free)
        };
        if may_have(state) {
            return Ok(());
        }
        // What it has given up is not its any more, unless somebody else waits for the same text.
        state.drop_unwanted_now_and_then();
        if may_have(state) {
            return Ok(());
        }
        Err(EngineError::Overloaded { by_client: true, retry_after_s: 1 })
    }
}

impl State {
    /// Tokens that wait, and those that will as soon as they are tokens.
    fn tokens_ahead(&self) -> usize {
        self.tokens.iter().chain(&self.reserved).sum()
    }

    /// For how long what came now would wait in a lane. Lanes take turns: as much of the other one goes before it as of its own.
    fn wait_s(&self, lane: usize) -> f64 {
        let of = |lane: usize| self.pace[lane].seconds_for(self.tokens[lane] + self.reserved[lane]);
        let (own, other) = (of(lane), of(1 - lane));
        let replicas = (self.busy.len() + self.idle.len()).max(1) as f64;
        let under_way =
            if self.busy.is_empty() { 0.0 } else { self.pace.iter().map(Pace::seconds_of_batch).fold(0.0, f64::max) };
        let ahead = own + other.min(own);
        if ahead > 0.0 { ahead / replicas + under_way } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::tests::{embed, model, take};
    use tokio::sync::oneshot;

    fn overloaded(result: Result<Reserved, EngineError>) -> u64 {
        match result {
            Err(EngineError::Overloaded { by_client: false, retry_after_s }) => retry_after_s,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn room_is_taken_before_there_are_tokens_and_given_back_without_them() {
        let queue = Arc::new(Queue::new(10));
        let first = queue.reserve(Role::Retriever, 6, None, None).unwrap();
        assert_eq!(overloaded(queue.reserve(Role::Reranker, 5, None, None)), 1);
        let second = queue.reserve(Role::Reranker, 4, None, None).unwrap();
        drop(first);
        let third = queue.reserve(Role::Retriever, 6, None, None).unwrap();
        // It became more tokens than was thought: what was let in is in.
        let (job, _reply) = embed(9);
        queue.push_reserved(vec![job], third).unwrap();
        assert_eq!(queue.queued_tokens(), 9);
        assert_eq!(overloaded(queue.reserve(Role::Retriever, 1, None, None)), 1);
        drop(second);
        take(&queue, 0).unwrap();
        // More than there is room for is let in where nothing else waits.
        queue.reserve(Role::Retriever, 100, None, None).unwrap();
    }

    #[test]
    fn a_client_with_its_part_is_told_so_until_it_is_its_turn() {
        let queue = Arc::new(Queue::new(100));
        let reserve = |client: &str, tokens| queue.reserve(Role::Retriever, tokens, None, Some(client.into()));
        let by_client = |result: Result<Reserved, EngineError>| match result {
            Err(EngineError::Overloaded { by_client, .. }) => by_client,
            other => panic!("{other:?}"),
        };
        let first = reserve("robot", 30).unwrap();
        let second = reserve("robot", 20).unwrap();
        assert!(by_client(reserve("robot", 1)));
        let _ann = reserve("ann", 50).unwrap();
        // For everybody.
        assert!(!by_client(reserve("ann", 1)));
        drop(second);
        // More tokens than was thought are the client's, too.
        let (job, reply) = embed(40);
        queue.push_reserved(vec![job], first).unwrap();
        assert!(by_client(reserve("robot", 1)));
        let _work = take(&queue, 0).unwrap();
        let again = reserve("robot", 10).unwrap();
        drop((again, reply));
        // What it has given up is not its any more.
        let (job, reply) = embed(30);
        queue.push_reserved(vec![job], reserve("robot", 30).unwrap()).unwrap();
        assert!(by_client(reserve("robot", 10)));
        drop(reply);
        reserve("robot", 10).unwrap();
    }

    #[test]
    fn what_would_come_too_late_is_refused_at_once() {
        let queue = Arc::new(Queue::new(1_000_000));
        let soon = || Some(Instant::now() + Duration::from_secs(2));
        // Nothing is known yet.
        let room = queue.reserve(Role::Retriever, 5000, soon(), None).unwrap();
        queue.ran(Role::Retriever, 1000, Duration::from_secs(1));
        queue.ran(Role::Reranker, 1000, Duration::from_secs(1));
        assert_eq!(overloaded(queue.reserve(Role::Retriever, 1, soon(), None)), 5);
        queue.reserve(Role::Retriever, 1, Some(Instant::now() + Duration::from_secs(8)), None).unwrap();
        queue.reserve(Role::Retriever, 1, None, None).unwrap();
        // The other model has its turns meanwhile, and nothing of its own before it.
        queue.reserve(Role::Reranker, 10, soon(), None).unwrap();
        drop(room);
        let _half = queue.reserve(Role::Retriever, 900, None, None).unwrap();
        let _other = queue.reserve(Role::Reranker, 100_000, None, None).unwrap();
        // Its own 0.9 s, and as much of the other.
        assert_eq!(overloaded(queue.reserve(Role::Retriever, 1, soon(), None)), 2);
        queue.reserve(Role::Retriever, 1, Some(Instant::now() + Duration::from_secs(3)), None).unwrap();
    }

    #[test]
    fn what_is_late_is_answered_and_never_handed_out() {
        let queue = Arc::new(Queue::new(100));
        let (reply, mut late) = oneshot::channel();
        let model = model(Role::Retriever);
        let deadline = Some(Instant::now() + Duration::from_millis(20));
        let expired = Job { deadline, ..Job::new(model.clone(), vec![7; 5], reply) };
        let (reply, _timely) = oneshot::channel();
        let deadline = Some(Instant::now() + Duration::from_secs(3600));
        let timely = Job { deadline, ..Job::new(model, vec![7; 3], reply) };
        queue.push(vec![expired, timely]).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let work = take(&queue, 0).unwrap();
        assert_eq!(work.jobs.iter().map(|job| job.tokens.len()).collect::<Vec<_>>(), [3]);
        assert_eq!(late.try_recv().unwrap(), Err(EngineError::Expired));
        assert_eq!(queue.queued_tokens(), 0);
    }
}
