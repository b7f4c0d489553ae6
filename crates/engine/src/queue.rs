//! The one bounded queue between requests and replicas.
//!
//! It has a lane a model, served in turn, so that a long rerank does not hold single embeds up. It is bounded in tokens,
//! since tokens are what a device spends its time on. Jobs whose caller has gone away, or waits no longer, are dropped before any
//! is handed out. What is let in, and what is not, is in `door`.
//!
//! Replicas pull: who has least to do comes first. Where several are idle, what waits is shared out between them.
//!
//! A job names the loaded model that its tokens were made for. While one revision follows another, a lane holds jobs of
//! both; a batch never does, and a replica takes only what it has a copy for. A job for which no replica is left is
//! answered with that.

use crate::{EngineError, Observer, QueueWaits, Role, Stage, caller, loaded::LoadedModel, packer, waits::Waits};
use door::Pace;
use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    task::Poll,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// A pass with fewer tokens takes a GPU as long as one with a single token, about: below it, nothing is shared out.
const SHARE_TOKENS_MIN: usize = 256;

/// Under a storm of requests, each of which is refused, a long queue is not looked through for each, and not sooner again than this.
const LOOK_THROUGH_EVERY: Duration = Duration::from_millis(5);

/// A queue of no more jobs than these is short. It takes some thirty microseconds to look through.
const LOOK_THROUGH_ALWAYS: usize = 200;

/// Tokens that go through a model, and where their row of output goes.
#[derive(Debug)]
pub(crate) struct Job {
    /// The model whose tokenizer gave the tokens.
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) reply: oneshot::Sender<Result<Vec<f32>, EngineError>>,
    /// What went wrong the first time; there is no third.
    pub(crate) setback: Option<Setback>,
    /// When nobody wants the answer any more.
    pub(crate) deadline: Option<Instant>,
    /// Its tokens among those of its client, while it waits for its first turn.
    pub(crate) part: Option<Part>,
}

/// Why a job is run a second time.
#[derive(Clone, Debug)]
pub(crate) enum Setback {
    /// Its device failed.
    Device(String),
    /// It alone does not fit this replica.
    Memory(usize, String),
}

impl Job {
    pub(crate) fn new(
        model: Arc<LoadedModel>,
        tokens: Vec<u32>,
        reply: oneshot::Sender<Result<Vec<f32>, EngineError>>,
    ) -> Self {
        Self { model, tokens, reply, setback: None, deadline: caller::deadline(), part: None }
    }

    /// Whether a replica that has a copy of the model may try it.
    pub(crate) fn may_run_on(&self, replica: usize) -> bool {
        !matches!(self.setback, Some(Setback::Memory(tried, _)) if tried == replica)
    }

    fn has_a_place(&self) -> bool {
        self.model.replicas().into_iter().any(|replica| self.may_run_on(replica))
    }

    fn is_unwanted(&self, now: Instant) -> bool {
        self.reply.is_closed() || self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Answers that there is no time left.
    fn expire(&mut self) {
        let reply = std::mem::replace(&mut self.reply, oneshot::channel().0);
        let _ = reply.send(Err(EngineError::Expired));
    }

    /// Answers; whoever asked may have gone away meanwhile.
    pub(crate) fn answer(self, result: Result<Vec<f32>, EngineError>) {
        let _ = self.reply.send(result);
    }

    /// Answers that there is nobody to run it.
    fn give_up(self) {
        let role = self.model.role().name();
        let error = match &self.setback {
            None => EngineError::Device(format!("no replica with this revision of the {role} is left")),
            Some(Setback::Device(detail)) => {
                EngineError::Device(format!("no replica with this revision of the {role} is left: {detail}"))
            }
            Some(Setback::Memory(_, detail)) => too_large(role, self.tokens.len(), detail),
        };
        self.answer(Err(error));
    }
}

/// A single text that no replica has room for.
pub(crate) fn too_large(role: &str, tokens: usize, detail: &str) -> EngineError {
    EngineError::Model(format!(
        "the {role} failed: a text of {tokens} tokens, alone in its batch, does not fit the memory of the device: {detail}; \
         truncate texts to fewer tokens, or use a device with more memory"
    ))
}

/// What a replica does next.
#[derive(Debug)]
pub(crate) enum Task {
    /// Run a batch.
    Run(Work),
    /// Show that it works.
    Prove,
}

/// Jobs of one model, in order of arrival.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) model: Arc<LoadedModel>,
    pub(crate) jobs: Vec<Job>,
}

pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    queued_tokens_max: usize,
    waits: Waits,
    observer: Arc<dyn Observer>,
    /// How often the replicas that wait were woken, for tests that step them by hand.
    #[cfg(test)]
    pub(crate) wakes: std::sync::atomic::AtomicU64,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("queued_tokens_max", &self.queued_tokens_max).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    lanes: [VecDeque<Queued>; 2],
    /// Tokens that wait, by lane.
    tokens: [usize; 2],
    /// Tokens that will wait, as soon as their texts are tokens.
    reserved: [usize; 2],
    /// Tokens of clients that have names.
    clients: Clients,
    pace: [Pace; 2],
    /// When jobs were looked through last for those that nobody waits for.
    looked_through: Option<Instant>,
    last_served: usize,
    closed: bool,
    abandoned: bool,
    failed: Option<String>,
    /// Replicas that wait for work.
    idle: BTreeSet<usize>,
    /// Replicas that have work, which may come back.
    busy: BTreeSet<usize>,
    /// Replicas that have to show that they work before they get any.
    to_prove: BTreeSet<usize>,
}

/// A job, and since when it waits.
#[derive(Debug)]
struct Queued {
    job: Job,
    since: Instant,
    /// Batches of the other lane that replicas took instead of it.
    passed_over: usize,
}

impl Queued {
    fn new(job: Job, since: Instant) -> Self {
        Self { job, since, passed_over: 0 }
    }
}

/// A [`Task`] that is not counted yet.
enum Taken {
    Run(Vec<Queued>),
    Prove,
}

const fn lane_of(role: Role) -> usize {
    match role {
        Role::Retriever => 0,
        Role::Reranker => 1,
    }
}

impl Queue {
    /// Of at most so many tokens.
    #[cfg(test)]
    pub(crate) fn new(queued_tokens_max: usize) -> Self {
        Self::observed(queued_tokens_max, Arc::new(crate::Unobserved))
    }

    /// Of at most so many tokens; what is done with them is told to `observer`.
    pub(crate) fn observed(queued_tokens_max: usize, observer: Arc<dyn Observer>) -> Self {
        let (state, arrived, waits) = (Mutex::default(), Condvar::new(), Waits::default());
        Self {
            state,
            arrived,
            queued_tokens_max,
            waits,
            observer,
            #[cfg(test)]
            wakes: Default::default(),
        }
    }

    /// Who is told of the work.
    pub(crate) fn observer(&self) -> &Arc<dyn Observer> {
        &self.observer
    }

    /// Queues all of `jobs` or none. A request larger than the whole queue is admitted when nothing else waits: it could
    /// never run otherwise.
    #[cfg(test)]
    pub(crate) fn push(&self, jobs: Vec<Job>) -> Result<(), EngineError> {
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        let Some(lane) = jobs.first().map(|job| lane_of(job.model.role())) else { return Ok(()) };
        let mut state = self.lock();
        self.admit(&mut state, lane, tokens, None)?;
        self.put(state, jobs)
    }

    /// Queues what was let in.
    fn put(&self, mut state: MutexGuard<'_, State>, jobs: Vec<Job>) -> Result<(), EngineError> {
        // All jobs of a request are of one model. Under the lock, since a replica loses its copies before the queue is
        // swept: a job is swept, or not let in.
        if let Some(job) = jobs.first().filter(|job| !job.has_a_place()) {
            let role = job.model.role().name();
            return Err(EngineError::Device(format!("no replica with this revision of the {role} is left")));
        }
        let since = Instant::now();
        for job in jobs {
            let lane = lane_of(job.model.role());
            state.tokens[lane] += job.tokens.len();
            state.lanes[lane].push_back(Queued::new(job, since));
        }
        drop(state);
        self.wake();
        Ok(())
    }

    /// Puts jobs back in front of all others, in their order, whether there is room or not.
    pub(crate) fn put_back(&self, jobs: Vec<Job>) {
        let mut state = self.lock();
        if state.abandoned {
            // Their callers hear that the process is shutting down.
            return;
        }
        if let Some(reason) = state.failed.clone() {
            drop(state);
            jobs.into_iter().for_each(|job| job.answer(Err(EngineError::Device(reason.clone()))));
            return;
        }
        let since = Instant::now();
        for job in jobs.into_iter().rev() {
            let lane = lane_of(job.model.role());
            state.tokens[lane] += job.tokens.len();
            state.lanes[lane].push_front(Queued::new(job, since));
        }
        drop(state);
        self.wake();
    }

    /// Answers the jobs for which no replica is left.
    pub(crate) fn sweep(&self) {
        let mut state = self.lock();
        let mut lost = Vec::new();
        for lane in &mut state.lanes {
            for queued in std::mem::take(lane) {
                if queued.job.has_a_place() { lane.push_back(queued) } else { lost.push(queued.job) }
            }
        }
        for job in &lost {
            state.tokens[lane_of(job.model.role())] -= job.tokens.len();
        }
        drop(state);
        self.wake();
        lost.into_iter().for_each(Job::give_up);
    }

    /// Asks replicas to show that they work, before they get anything else.
    pub(crate) fn prove(&self, replicas: &BTreeSet<usize>) {
        self.lock().to_prove.extend(replicas);
        self.wake();
    }

    /// Whether it refuses new work for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The next batch of at most `tokens_max` tokens for a replica, or something else that it has to do; waits for it.
    /// What it had before is done. `None` once the queue is closed and empty, and nothing can come back.
    pub(crate) fn take(&self, replica: usize, tokens_max: usize) -> Option<Task> {
        let mut state = self.lock();
        let taken = loop {
            match self.look(&mut state, replica, tokens_max) {
                Poll::Ready(taken) => break taken,
                Poll::Pending => state = self.arrived.wait(state).unwrap_or_else(|e| e.into_inner()),
            }
        };
        drop(state);
        self.hand_out(taken?)
    }

    /// Like [`Self::take`]; pending where that would wait.
    #[cfg(test)]
    pub(crate) fn try_take(&self, replica: usize, tokens_max: usize) -> Poll<Option<Task>> {
        let looked = self.look(&mut self.lock(), replica, tokens_max);
        looked.map(|taken| self.hand_out(taken?))
    }

    /// What a replica does next, where that is known.
    fn look(&self, state: &mut State, replica: usize, tokens_max: usize) -> Poll<Option<Taken>> {
        if state.busy.remove(&replica) && state.closed {
            self.wake();
        }
        if state.abandoned {
            return Poll::Ready(None);
        }
        let taken = if state.to_prove.remove(&replica) {
            Taken::Prove
        } else if let Some(queued) = state.next(replica, tokens_max) {
            Taken::Run(queued)
        } else if state.closed && state.busy.is_empty() && state.lanes.iter().all(VecDeque::is_empty) {
            return Poll::Ready(None);
        } else {
            state.idle.insert(replica);
            return Poll::Pending;
        };
        state.idle.remove(&replica);
        state.busy.insert(replica);
        Poll::Ready(Some(taken))
    }

    /// Has every replica that waits look again.
    fn wake(&self) {
        #[cfg(test)]
        self.wakes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        self.arrived.notify_all();
    }

    /// A replica takes nothing any more.
    pub(crate) fn leave(&self, replica: usize) {
        let mut state = self.lock();
        state.busy.remove(&replica);
        state.idle.remove(&replica);
        state.to_prove.remove(&replica);
        drop(state);
        self.wake();
    }

    fn hand_out(&self, taken: Taken) -> Option<Task> {
        let Taken::Run(queued) = taken else { return Some(Task::Prove) };
        let model = Arc::clone(&queued.first()?.job.model);
        let now = Instant::now();
        for queued in &queued {
            let wait = now - queued.since;
            self.waits.record(wait);
            self.observer.stage(model.role(), Stage::Queue, wait);
        }
        Some(Task::Run(Work { model, jobs: queued.into_iter().map(|queued| queued.job).collect() }))
    }

    /// How long jobs have waited that were handed out since the last call.
    pub(crate) fn take_waits(&self) -> QueueWaits {
        self.waits.take()
    }

    /// The jobs that wait, by lane, for tests that look at each.
    #[cfg(test)]
    pub(crate) fn each_waiting<T>(&self, of: impl Fn(&Job) -> T) -> [Vec<T>; 2] {
        let state = self.lock();
        [0, 1].map(|lane| state.lanes[lane].iter().map(|queued| of(&queued.job)).collect())
    }

    /// Tokens that wait now.
    pub(crate) fn queued_tokens(&self) -> usize {
        self.lock().tokens.iter().sum()
    }

    /// Tokens that will wait as soon as their texts are tokens.
    #[cfg(test)]
    pub(crate) fn reserved_tokens(&self) -> usize {
        self.lock().reserved.iter().sum()
    }

    /// Tokens of `client` that wait, or will.
    #[cfg(test)]
    pub(crate) fn tokens_of(&self, client: &str) -> usize {
        self.lock().clients.held(client)
    }

    /// Refuses new work; what is queued is still served.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake();
    }

    /// Refuses new work and forgets what is queued: whoever waits for it is told that the process is shutting down.
    pub(crate) fn abandon(&self) {
        drop(self.end(|state| state.abandoned = true));
    }

    /// Refuses new work and what is queued, with the reason.
    pub(crate) fn fail(&self, reason: &str) {
        let refused = self.end(|state| state.failed = Some(reason.to_owned()));
        refused.into_iter().for_each(|queued| queued.job.answer(Err(EngineError::Device(reason.to_owned()))));
    }

    fn end(&self, mark: impl FnOnce(&mut State)) -> Vec<Queued> {
        let mut state = self.lock();
        state.closed = true;
        mark(&mut state);
        state.tokens = [0; 2];
        let queued = std::mem::take(&mut state.lanes).into_iter().flatten().collect();
        drop(state);
        self.wake();
        queued
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    /// The next batch for a replica, never an empty one: jobs of one model, in order of arrival.
    fn next(&mut self, replica: usize, tokens_max: usize) -> Option<Vec<Queued>> {
        self.drop_unwanted();
        let first_of = |lane| Some((lane, first_for(&self.lanes[lane], replica)?));
        let firsts: Vec<(usize, usize)> = (0..self.lanes.len()).filter_map(first_of).collect();
        // Lanes take turns. A replica that serves jobs behind one that it can not take uses its lane's turn up, too: so
        // what has been passed over goes first.
        let claim = |&&(lane, first): &&(usize, usize)| (self.lanes[lane][first].passed_over, lane != self.last_served);
        let &(lane, first) = firsts.iter().max_by_key(claim)?;
        for &(other, first) in firsts.iter().filter(|(other, _)| *other != lane) {
            self.lanes[other][first].passed_over += 1;
        }
        let queue = &mut self.lanes[lane];
        let model = Arc::clone(&queue[first].job.model);
        let alike = || {
            let runs = |queued: &&Queued| Arc::ptr_eq(&queued.job.model, &model) && queued.job.may_run_on(replica);
            queue.range(first..).take_while(runs).map(|queued| queued.job.tokens.len())
        };
        let others = self.idle.iter().filter(|&&other| other != replica && model.is_on(other)).count();
        let share = match others {
            0 => tokens_max,
            _ => alike().sum::<usize>().div_ceil(others + 1).max(SHARE_TOKENS_MIN).min(tokens_max),
        };
        let count = packer::fitting(alike(), share);
        let mut batch: Vec<Queued> = queue.drain(first..first + count).collect();
        batch.iter_mut().for_each(|queued| queued.job.part = None);
        self.tokens[lane] -= batch.iter().map(|queued| queued.job.tokens.len()).sum::<usize>();
        self.last_served = lane;
        Some(batch)
    }

    /// Drops the jobs whose callers are gone, or do not wait for them any longer.
    fn drop_unwanted(&mut self) {
        let now = Instant::now();
        self.looked_through = Some(now);
        for (lane, tokens) in self.lanes.iter_mut().zip(&mut self.tokens) {
            lane.retain_mut(|Queued { job, .. }| {
                let unwanted = job.is_unwanted(now);
                if unwanted {
                    *tokens -= job.tokens.len();
                    job.expire();
                }
                !unwanted
            });
        }
    }

    /// The same, where it costs nothing or was not done just now.
    fn drop_unwanted_now_and_then(&mut self) {
        let jobs: usize = self.lanes.iter().map(VecDeque::len).sum();
        if jobs <= LOOK_THROUGH_ALWAYS || self.looked_through.is_none_or(|at| at.elapsed() >= LOOK_THROUGH_EVERY) {
            self.drop_unwanted();
        }
    }
}

/// The first job of a lane that a replica can take. A lane holds few models and many jobs.
fn first_for(lane: &VecDeque<Queued>, replica: usize) -> Option<usize> {
    let mut looked_at: Option<(&Arc<LoadedModel>, bool)> = None;
    lane.iter().position(|Queued { job, .. }| {
        let is_on = match looked_at {
            Some((model, is_on)) if Arc::ptr_eq(model, &job.model) => is_on,
            _ => job.model.is_on(replica),
        };
        looked_at = Some((&job.model, is_on));
        is_on && job.may_run_on(replica)
    })
}

mod clients;
mod door;
mod view;

use clients::{Clients, Part};
pub(crate) use door::Reserved;
pub use view::QueueView;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
