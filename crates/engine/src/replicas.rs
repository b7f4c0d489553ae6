//! The replicas of a process: which device each has, whether it works, and what follows when one fails.
//!
//! A replica whose device failed is taken out once, and stays out for the life of the process: its copies of the models
//! are dropped, and its thread ends. A failure that may be of the whole process puts every other replica under suspicion
//! until it has run a batch of its own accord (`queue::Task::Prove`); one that fails meanwhile shows that the failure
//! spreads. Then, or when a model has no replica left, the engine is done for: it refuses everything, and says so to who
//! waits for it ([`Replicas::ended`]).
//!
//! Deliberately absent: what work a replica takes (`queue`), and how it is run (`replica`).

use crate::{
    Role,
    devices::Device,
    loaded::{LoadedModel, free},
    queue::Queue,
};
use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Where a replica stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// It lacks a copy of a model that serves, or none serves yet.
    Loading,
    /// It has a copy of each model that serves.
    Serving,
    /// A model is being replaced on it; it serves the other one.
    Draining,
    /// It was taken out.
    Failed {
        /// What its device said.
        reason: String,
    },
}

/// A replica, as `/ready` reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its device, for people: `cpu (avx512, 2 threads)`.
    pub device: String,
    /// Where it stands.
    pub state: ReplicaState,
    /// Time that it has computed, since the start.
    pub busy: Duration,
    /// Batches that it has run.
    pub batches: u64,
    /// Tokens in them.
    pub tokens: u64,
}

/// The memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that nobody holds.
    pub bytes_free: u64,
}

/// What a replica has done.
#[derive(Default)]
struct Done {
    busy_ns: AtomicU64,
    batches: AtomicU64,
    tokens: AtomicU64,
}

/// What is counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaCounts {
    /// Batches that were run.
    pub batches: u64,
    /// Tokens in them.
    pub batch_tokens: u64,
    /// Batches that were put back to be run elsewhere, or in smaller parts.
    pub device_retries: u64,
    /// Replicas that were taken out.
    pub device_failures: u64,
}

/// The replicas of a process. There are none until the devices are open.
#[derive(Default)]
pub struct Replicas {
    state: Mutex<State>,
    batches: AtomicU64,
    batch_tokens: AtomicU64,
    retries: AtomicU64,
    failures: AtomicU64,
    ended: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct State {
    list: Vec<Replica>,
    numeric_format: &'static str,
    /// Whatever may have copies on them.
    models: Vec<Weak<LoadedModel>>,
    serving: [Weak<LoadedModel>; 2],
    /// Models that replicas are given one after another: one that has none meanwhile will have one again.
    rolling: [bool; 2],
    /// Replicas that have not run anything since the last failure that may be of the whole process.
    suspects: BTreeSet<usize>,
}

struct Replica {
    name: String,
    /// Gone with the replica.
    device: Option<Arc<dyn Device>>,
    memory_bytes: Option<u64>,
    draining: bool,
    failed: Option<String>,
    turn: Arc<Mutex<()>>,
    done: Done,
}

impl State {
    /// A model that serves, and has no replica for good.
    fn orphan(&self) -> Option<Arc<LoadedModel>> {
        let serving = self.serving.iter().zip(self.rolling).filter(|(_, rolling)| !rolling);
        serving.filter_map(|(model, _)| model.upgrade()).find(|model| model.replicas().is_empty())
    }
}

/// A replica that works, as the loader sees it.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) replica: usize,
    pub(crate) device: Arc<dyn Device>,
    /// Bytes of memory that were free when the device was opened, as far as it tells.
    pub(crate) memory_bytes: Option<u64>,
}

impl Replicas {
    /// All replicas, by number.
    pub fn status(&self) -> Vec<ReplicaStatus> {
        let state = self.lock();
        let serving: Vec<_> = state.serving.iter().filter_map(Weak::upgrade).collect();
        let of = |(n, replica): (usize, &Replica)| {
            let complete = !serving.is_empty() && serving.iter().all(|model| model.is_on(n));
            let state = match &replica.failed {
                Some(reason) => ReplicaState::Failed { reason: reason.clone() },
                None if replica.draining => ReplicaState::Draining,
                None if complete => ReplicaState::Serving,
                None => ReplicaState::Loading,
            };
            let Done { busy_ns, batches, tokens } = &replica.done;
            let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let (busy, batches, tokens) = (Duration::from_nanos(get(busy_ns)), get(batches), get(tokens));
            ReplicaStatus { device: replica.name.clone(), state, busy, batches, tokens }
        };
        state.list.iter().enumerate().map(of).collect()
    }

    /// The memory of each replica's device, where it has its own and works. Asks the devices.
    pub fn memory(&self) -> Vec<Option<DeviceMemory>> {
        let devices: Vec<_> = self.lock().list.iter().map(|replica| replica.device.clone()).collect();
        let memory = |device: Option<Arc<dyn Device>>| {
            let device = device?;
            Some(DeviceMemory { bytes: device.memory_bytes()?, bytes_free: device.memory_bytes_free()? })
        };
        devices.into_iter().map(memory).collect()
    }

    /// What is counted since the start.
    pub fn counts(&self) -> ReplicaCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReplicaCounts {
            batches: get(&self.batches),
            batch_tokens: get(&self.batch_tokens),
            device_retries: get(&self.retries),
            device_failures: get(&self.failures),
        }
    }

    /// Why nothing can be computed any more, if that is so. It never changes back: the process is to be replaced.
    pub fn failure(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits until nothing can be computed any more; why.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender is in `self`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Puts the devices in their places.
    pub(crate) fn open(&self, devices: &[Arc<dyn Device>]) {
        let replica = |device: &Arc<dyn Device>| Replica {
            name: device.name(),
            memory_bytes: device.memory_bytes_free(),
            device: Some(device.clone()),
            draining: false,
            failed: None,
            turn: Arc::default(),
            done: Done::default(),
        };
        let list = devices.iter().map(replica).collect();
        let mut state = self.lock();
        state.numeric_format = devices.first().map_or("", |device| device.numeric_format());
        state.list = list;
    }

    /// The format in which the devices compute.
    pub(crate) fn numeric_format(&self) -> &'static str {
        self.lock().numeric_format
    }

    /// The replicas that work.
    pub(crate) fn live(&self) -> Vec<Live> {
        let of = |(replica, it): (usize, &Replica)| {
            Some(Live { replica, device: it.device.clone()?, memory_bytes: it.memory_bytes })
        };
        self.lock().list.iter().enumerate().filter_map(of).collect()
    }

    /// What has to be held to run something on a replica: one forward pass at a time.
    pub(crate) fn turn(&self, replica: usize) -> Arc<Mutex<()>> {
        self.lock().list.get(replica).map(|replica| replica.turn.clone()).unwrap_or_default()
    }

    /// Makes a model known, whose copies go when their replicas are taken out.
    pub(crate) fn adopt(&self, model: &Arc<LoadedModel>) {
        let mut state = self.lock();
        state.models.retain(|model| model.strong_count() > 0);
        state.models.push(Arc::downgrade(model));
        // Replicas that were taken out while it was loaded.
        let out = state.list.iter().enumerate().filter(|(_, replica)| replica.failed.is_some());
        out.filter_map(|(n, _)| model.remove(n)).for_each(free);
    }

    /// Puts a copy on a replica, unless it was taken out meanwhile; whether it is there.
    pub(crate) fn add_copy(&self, model: &LoadedModel, replica: usize, copy: crate::loaded::ModelCopy) -> bool {
        let state = self.lock();
        if state.list.get(replica).is_some_and(|replica| replica.failed.is_none()) {
            model.insert(replica, copy);
            return true;
        }
        drop(state);
        free(copy);
        false
    }

    /// This model serves from now on.
    pub(crate) fn serves(&self, model: &Arc<LoadedModel>) {
        self.lock().serving[index_of(model.role())] = Arc::downgrade(model);
    }

    /// The model that serves.
    pub(crate) fn serving(&self, role: Role) -> Option<Arc<LoadedModel>> {
        self.lock().serving[index_of(role)].upgrade()
    }

    /// All models that have a copy on a replica.
    pub(crate) fn models_on(&self, replica: usize) -> Vec<Arc<LoadedModel>> {
        let state = self.lock();
        state.models.iter().filter_map(Weak::upgrade).filter(|model| model.is_on(replica)).collect()
    }

    /// Tells that a model is being replaced on a replica, or no longer.
    pub(crate) fn drain(&self, replica: usize, draining: bool) {
        if let Some(replica) = self.lock().list.get_mut(replica) {
            replica.draining = draining;
        }
    }

    /// Whether a replica works.
    pub(crate) fn works(&self, replica: usize) -> bool {
        self.lock().list.get(replica).is_some_and(|replica| replica.failed.is_none())
    }

    /// Tells that replicas begin to be given a model one after another.
    pub(crate) fn rolls(&self, role: Role) {
        self.lock().rolling[index_of(role)] = true;
    }

    /// Tells that this is over. If the model that serves has no replica now, it has none for good.
    pub(crate) fn rolled(&self, queue: &Queue, role: Role) {
        let mut state = self.lock();
        state.rolling[index_of(role)] = false;
        let Some(model) = state.orphan() else { return };
        let failed = |it: &Replica| Some(format!("{}: {}", it.name, it.failed.as_ref()?));
        let failed: Vec<String> = state.list.iter().filter_map(failed).collect();
        drop(state);
        self.end(queue, format!("no replica with the {} is left: {}", model.role().name(), failed.join("; ")));
    }

    /// Counts a batch that was run.
    pub(crate) fn ran(&self, replica: usize, tokens: usize, took: Duration) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.batch_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        if let Some(replica) = self.lock().list.get(replica) {
            let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
            add(&replica.done.batches, 1);
            add(&replica.done.tokens, tokens as u64);
            add(&replica.done.busy_ns, took.as_nanos() as u64);
        }
    }

    /// Counts a batch that is run again.
    pub(crate) fn retries(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A replica has shown that it works, since the last failure that may be of the whole process.
    pub(crate) fn proven(&self, replica: usize) {
        self.lock().suspects.remove(&replica);
    }

    /// Takes a replica out; once, whoever says it how often. `of_process`: the failure may be of the whole process.
    pub(crate) fn take_out(&self, queue: &Queue, replica: usize, reason: &str, of_process: bool) {
        let mut state = self.lock();
        let Some(it) = state.list.get_mut(replica).filter(|it| it.failed.is_none()) else { return };
        it.failed = Some(reason.to_owned());
        let name = it.name.clone();
        let device = it.device.take();
        let models: Vec<_> = state.models.iter().filter_map(Weak::upgrade).collect();
        let copies: Vec<_> = models.iter().filter_map(|model| model.remove(replica)).collect();
        let spreads = state.suspects.remove(&replica);
        let up: BTreeSet<usize> =
            state.list.iter().enumerate().filter(|(_, it)| it.failed.is_none()).map(|(n, _)| n).collect();
        if of_process {
            state.suspects.clone_from(&up);
        }
        let orphan = state.orphan();
        if of_process {
            // Under the lock: who sees that it is out finds the others asked.
            queue.prove(&up);
        }
        drop(state);

        self.failures.fetch_add(1, Ordering::Relaxed);
        free((copies, device));
        tracing::error!(replica, device = name, reason, replicas_up = up.len(), "a replica failed and is taken out");
        let end = if up.is_empty() {
            Some(format!("no replica is left; the last one failed: {name}: {reason}"))
        } else if spreads {
            Some(format!("a device failure spreads through the process; the last one: {name}: {reason}"))
        } else {
            orphan.map(|model| {
                format!("no replica with the {} is left; the last one failed: {name}: {reason}", model.role().name())
            })
        };
        match end {
            Some(reason) => self.end(queue, reason),
            None => queue.sweep(),
        }
    }

    /// Nothing can be computed any more.
    fn end(&self, queue: &Queue, reason: String) {
        let first = self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| reason.clone());
            first
        });
        if first {
            tracing::error!(reason, "the process can compute nothing any more");
            queue.fail(&reason);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn index_of(role: Role) -> usize {
    match role {
        Role::Retriever => 0,
        Role::Reranker => 1,
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.status()).finish()
    }
}
