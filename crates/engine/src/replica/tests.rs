//! One replica or several, with models that fail as they are told.

use super::*;
use crate::{
    Role,
    devices::{Device, Loaded},
    loaded::{LoadedModel, ModelCopy},
    replicas::ReplicaState,
};
use nexus_models::{LoadError, LoadOptions, ModelFiles};
use std::{
    collections::HashMap,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// A device that is there by name.
struct Named(usize);

impl Device for Named {
    fn name(&self) -> String {
        format!("device {}", self.0)
    }

    fn packed_layout(&self) -> Option<String> {
        None
    }

    fn numeric_format(&self) -> &'static str {
        "f32"
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        None
    }

    fn warm_up_tokens(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn load(&self, _: Role, _: &ModelFiles, _: LoadOptions<'_>) -> Result<Loaded, LoadError> {
        unreachable!("models are given")
    }
}

/// What a token does on a replica: `(replica, token)`.
type Faults = HashMap<(usize, u32), ComputeError>;

/// The first tokens of each batch, and the replica that ran it.
type Batches = Arc<Mutex<Vec<(usize, Vec<u32>)>>>;

/// Doubles the first token of each sequence; token 13 panics, 15 gives NaN for its own row, others as `faults` say. Has
/// room for `tokens_max` tokens.
struct Fake {
    replica: usize,
    faults: Arc<Mutex<Faults>>,
    tokens_max: usize,
    batches: Batches,
    held: Arc<Gate>,
}

/// Token 99 waits here until the gate is open.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl PackedModel for Fake {
    fn output_columns(&self) -> usize {
        1
    }

    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ComputeError> {
        let first: Vec<u32> = batch.ranges().map(|range| batch.tokens()[range.start]).collect();
        self.batches.lock().unwrap().push((self.replica, first.clone()));
        if first.contains(&99) {
            self.held.waiting.fetch_add(1, Ordering::SeqCst);
            let open = self.held.open.lock().unwrap();
            drop(self.held.changed.wait_while(open, |open| !*open).unwrap());
        }
        assert!(!first.contains(&13), "unlucky");
        let faults = self.faults.lock().unwrap();
        if let Some(fault) = first.iter().find_map(|&token| faults.get(&(self.replica, token))) {
            return Err(fault.clone());
        }
        if batch.tokens().len() > self.tokens_max {
            return Err(ComputeError::OutOfMemory(format!("{} tokens", batch.tokens().len())));
        }
        Ok(first.iter().map(|&t| if t == 15 { f32::NAN } else { 2.0 * t as f32 }).collect())
    }
}

const PROBE: u32 = 77;

struct Rig {
    queue: Arc<Queue>,
    replicas: Arc<Replicas>,
    model: Arc<LoadedModel>,
    faults: Arc<Mutex<Faults>>,
    batches: Batches,
    held: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    /// Replicas whose devices have room for so many tokens each.
    fn new(rooms: &[usize]) -> Self {
        let (queue, replicas) = (Arc::new(Queue::new(100_000)), Arc::new(Replicas::default()));
        let devices: Vec<Arc<dyn Device>> = (0..rooms.len()).map(|n| Arc::new(Named(n)) as _).collect();
        replicas.open(&devices);
        let (faults, batches, held) = <(Arc<Mutex<Faults>>, Arc<Mutex<Vec<_>>>, Arc<Gate>)>::default();
        let copy = |(replica, &tokens_max): (usize, &usize)| {
            let (faults, batches, held) = (faults.clone(), batches.clone(), held.clone());
            Some(Arc::new(Fake { replica, faults, tokens_max, batches, held }) as ModelCopy)
        };
        let copies = rooms.iter().enumerate().map(copy).collect();
        let model = Arc::new(LoadedModel::new(Role::Retriever, vec![vec![PROBE, 1]], copies));
        replicas.adopt(&model);
        replicas.serves(&model);
        Self { queue, replicas, model, faults, batches, held, threads: Vec::new() }
    }

    fn spawn(&mut self) {
        let n = self.replicas.status().len();
        let spawned = (0..n).map(|n| spawn(n, 1000, self.queue.clone(), self.replicas.clone()).unwrap());
        self.threads = spawned.collect();
    }

    fn fault(&self, replica: usize, token: u32, fault: ComputeError) {
        self.faults.lock().unwrap().insert((replica, token), fault);
    }

    fn push(&self, tokens: &[u32]) -> Vec<oneshot::Receiver<Result<Vec<f32>, EngineError>>> {
        let job = |&token: &u32| {
            let (reply, receiver) = oneshot::channel();
            (Job::new(self.model.clone(), vec![token, 1], reply), receiver)
        };
        let (jobs, replies): (Vec<_>, Vec<_>) = tokens.iter().map(job).unzip();
        self.queue.push(jobs).unwrap();
        replies
    }

    fn answers(&self, tokens: &[u32]) -> Vec<Result<f32, String>> {
        self.push(tokens).into_iter().map(answer).collect()
    }

    fn failed(&self) -> Vec<usize> {
        let failed = |state: &ReplicaState| matches!(state, ReplicaState::Failed { .. });
        self.replicas.status().iter().enumerate().filter(|(_, it)| failed(&it.state)).map(|(n, _)| n).collect()
    }

    fn batches_with(&self, token: u32) -> Vec<usize> {
        let batches = self.batches.lock().unwrap();
        batches.iter().filter(|(_, tokens)| tokens.contains(&token)).map(|(replica, _)| *replica).collect()
    }

    fn end(mut self) {
        self.queue.close();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

fn answer(reply: oneshot::Receiver<Result<Vec<f32>, EngineError>>) -> Result<f32, String> {
    reply.blocking_recv().expect("an answer").map(|row| row[0]).map_err(|e| e.to_string())
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

fn device() -> ComputeError {
    ComputeError::Device("fell off the bus".into())
}

fn process() -> ComputeError {
    ComputeError::Process("illegal address".into())
}

#[test]
fn a_bug_fails_its_own_requests_and_nothing_else() {
    let mut rig = Rig::new(&[1000]);
    rig.fault(0, 14, ComputeError::Shape { op: "linear", detail: "3 is not 4".into() });
    rig.spawn();
    assert_eq!(rig.answers(&[1, 2]), [Ok(2.0), Ok(4.0)]);
    let panicked = rig.answers(&[3, 13]);
    assert!(panicked.iter().all(|a| a.as_ref().is_err_and(|e| e.contains("panicked"))), "{panicked:?}");
    assert_eq!(rig.answers(&[4]), [Ok(8.0)]);
    assert_eq!(rig.answers(&[14]), [Err("the retriever failed: linear: 3 is not 4".to_owned())]);
    let nan = rig.answers(&[5, 15, 6]);
    assert_eq!((&nan[0], &nan[2]), (&Ok(10.0), &Ok(12.0)));
    assert!(nan[1].as_ref().is_err_and(|e| e.contains("not finite")));
    assert!(rig.failed().is_empty());
    rig.end();
}

#[test]
fn a_failed_device_is_out_at_once_and_its_batch_is_run_once_more_elsewhere() {
    let mut rig = Rig::new(&[1000, 1000]);
    // Whichever of the two takes it first fails.
    rig.fault(0, 14, device());
    let replies = rig.push(&[1, 14, 2]);
    let first = spawn(0, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap();
    // Its thread ends with it, and there is a second on which nothing has run yet.
    first.join().unwrap();
    assert_eq!(rig.failed(), [0]);
    assert!(rig.model.replicas() == [1], "its copy is gone");
    rig.threads.push(spawn(1, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap());
    let answers: Vec<_> = replies.into_iter().map(answer).collect();
    assert_eq!(answers, [Ok(2.0), Ok(28.0), Ok(4.0)]);
    assert_eq!(rig.batches_with(14), [0, 1]);
    let counts = rig.replicas.counts();
    assert_eq!((counts.device_failures, counts.device_retries), (1, 1));
    assert_eq!(rig.answers(&[3]), [Ok(6.0)]);
    assert_eq!(rig.replicas.failure(), None);
    rig.end();
}

#[test]
fn what_meets_two_failures_is_answered_and_the_third_device_stays() {
    let mut rig = Rig::new(&[1000, 1000, 1000]);
    (0..3).for_each(|replica| rig.fault(replica, 14, device()));
    rig.spawn();
    let answers = rig.answers(&[14]);
    assert_eq!(answers, [Err("the retriever met a device failure twice: device failure: fell off the bus".to_owned())]);
    wait_until("two are out", || rig.failed().len() == 2);
    assert_eq!(rig.batches_with(14).len(), 2);
    assert_eq!(rig.answers(&[5]), [Ok(10.0)]);
    rig.end();
}

#[test]
fn the_last_replica_ends_it_and_who_waits_is_told() {
    let mut rig = Rig::new(&[1000]);
    rig.fault(0, 14, device());
    let replies = rig.push(&[14, 2]);
    rig.spawn();
    for reply in replies {
        let error = answer(reply).unwrap_err();
        assert!(
            error.contains("no replica is left") && error.contains("device 0: device failure: fell off"),
            "{error}"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let reason = runtime.block_on(rig.replicas.ended());
    assert!(reason.contains("no replica is left"), "{reason}");
    assert!(matches!(rig.queue.reserve(Role::Retriever, 1, None, None), Err(EngineError::Device(_))));
    rig.end();
}

#[test]
fn a_failure_of_the_process_has_every_other_replica_prove_itself() {
    let mut rig = Rig::new(&[1000, 1000, 1000]);
    rig.fault(0, 14, process());
    let replies = rig.push(&[14]);
    rig.threads.push(spawn(0, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap());
    wait_until("it is out", || rig.failed() == [0]);
    rig.threads.extend((1..3).map(|n| spawn(n, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap()));
    assert_eq!(replies.into_iter().map(answer).collect::<Vec<_>>(), [Ok(28.0)]);
    wait_until("both have shown it", || rig.batches_with(PROBE).len() == 2);
    assert_eq!(rig.replicas.failure(), None);
    // Proven, they may fail one by one again.
    rig.fault(1, 20, device());
    rig.fault(2, 20, device());
    assert!(rig.answers(&[20])[0].is_err());
    rig.end();
}

#[test]
fn a_failure_that_spreads_ends_it() {
    let mut rig = Rig::new(&[1000, 1000, 1000]);
    rig.fault(0, 14, process());
    rig.fault(1, PROBE, device());
    let replies = rig.push(&[14]);
    rig.threads.push(spawn(0, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap());
    wait_until("it is out", || rig.failed() == [0]);
    rig.threads.push(spawn(1, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap());
    let error = replies.into_iter().map(answer).next().unwrap().unwrap_err();
    assert!(error.contains("spreads through the process") && error.contains("device 1"), "{error}");
    assert!(rig.replicas.failure().is_some());
    rig.end();
}

#[test]
fn what_does_not_fit_is_split_and_a_single_text_is_tried_once_elsewhere() {
    // Sequences are of two tokens: one fits the first device, four the second.
    let mut rig = Rig::new(&[2, 8]);
    let replies = rig.push(&[1, 2, 3, 4]);
    rig.threads.push(spawn(0, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap());
    assert_eq!(replies.into_iter().map(answer).collect::<Vec<_>>(), [Ok(2.0), Ok(4.0), Ok(6.0), Ok(8.0)]);
    let batches = rig.batches.lock().unwrap().clone();
    let parts: [&[u32]; 7] = [&[1, 2, 3, 4], &[1, 2], &[1], &[2], &[3, 4], &[3], &[4]];
    assert_eq!(batches.iter().map(|(_, tokens)| tokens.as_slice()).collect::<Vec<_>>(), parts);

    let alone = |token, tokens: usize| {
        let (reply, receiver) = oneshot::channel();
        rig.queue.push(vec![Job::new(rig.model.clone(), vec![token; tokens], reply)]).unwrap();
        receiver
    };
    let (fits_the_second, fits_none) = (alone(5, 6), alone(6, 9));
    wait_until("the first has tried both", || !rig.batches_with(6).is_empty());
    rig.threads.push(spawn(1, 1000, rig.queue.clone(), rig.replicas.clone()).unwrap());
    assert_eq!(answer(fits_the_second), Ok(10.0));
    let error = answer(fits_none).unwrap_err();
    assert!(error.contains("a text of 9 tokens, alone") && error.contains("fewer tokens"), "{error}");
    let batches = rig.batches.lock().unwrap().clone();
    let alone: Vec<_> = batches.iter().filter(|(_, tokens)| tokens == &[6]).map(|(replica, _)| *replica).collect();
    assert_eq!(alone, [0, 1], "once on each");
    assert!(rig.failed().is_empty());
    rig.end();
}

#[test]
fn idle_replicas_work_at_once() {
    let mut rig = Rig::new(&[1000, 1000, 1000, 1000]);
    rig.spawn();
    // Each text holds its replica: only four at once end the wait.
    let mut replies = Vec::new();
    for n in 1..=4 {
        replies.extend(rig.push(&[99]));
        wait_until("another replica takes it", || rig.held.waiting.load(Ordering::SeqCst) == n);
    }
    *rig.held.open.lock().unwrap() = true;
    rig.held.changed.notify_all();
    assert!(replies.into_iter().map(answer).all(|answer| answer == Ok(198.0)));
    let mut used = rig.batches_with(99);
    used.sort_unstable();
    assert_eq!(used, [0, 1, 2, 3]);
    rig.end();
}

#[test]
fn a_replica_is_taken_out_once_however_often_it_is_said() {
    let rig = Rig::new(&[1000, 1000]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| rig.replicas.take_out(&rig.queue, 0, "gone", true));
        }
    });
    assert_eq!((rig.failed(), rig.replicas.counts().device_failures), (vec![0], 1));
    assert_eq!(rig.replicas.failure(), None);
    // A copy that arrives late does not stay, and a model that is adopted late has none there.
    let late = Rig::new(&[1000]).model.remove(0).unwrap();
    assert!(!rig.replicas.add_copy(&rig.model, 0, late));
    assert_eq!(rig.model.replicas(), [1]);
}

#[test]
fn the_weights_go_with_the_last_job_and_not_before() {
    let mut rig = Rig::new(&[1000]);
    let replies = rig.push(&[99, 1]);
    let alive = rig.model.alive();
    // From here on, only the jobs hold it.
    rig.model = Arc::new(LoadedModel::new(Role::Retriever, Vec::new(), Vec::new()));
    rig.spawn();
    wait_until("it runs", || rig.held.waiting.load(Ordering::SeqCst) == 1);
    assert!(alive.upgrade().is_some());
    *rig.held.open.lock().unwrap() = true;
    rig.held.changed.notify_all();
    assert!(replies.into_iter().map(answer).all(|answer| answer.is_ok()));
    wait_until("the weights are given back", || alive.upgrade().is_none());
    rig.end();
}
