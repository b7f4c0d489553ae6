//! An engine over several devices: what is loaded where, what is refused, and what a failure comes to.

#![forbid(unsafe_code)]

mod support;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/tight.rs"]
mod tight;

use nexus_compute::ComputeError;
use nexus_engine::{Devices, Engine, EngineError, EngineOptions, ModelState, Outcome, ReplicaState, Role};
use nexus_storage::NoCache;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use support::{item, model, source, wait};
use tempfile::TempDir;
use tensors::{change_tensor, replace};
use tight::Tight;

const OPTIONS: EngineOptions =
    EngineOptions { queue_tokens_max: 1_000_000, text_tokens_max: 32, packed_bytes_min: None };

struct Served {
    engine: Engine,
    devices: Vec<Arc<Tight>>,
    embedder: TempDir,
    _reranker: TempDir,
}

impl Served {
    fn start(devices: Vec<Arc<Tight>>) -> Self {
        let (embedder, reranker) = (model("qwen3-gqa-f32", "qwen"), model("modernbert-cls-w16-f32", "modernbert"));
        let engine = start(devices.clone(), embedder.path(), reranker.path());
        for role in [Role::Retriever, Role::Reranker] {
            wait(&engine, role);
        }
        Self { engine, devices, embedder, _reranker: reranker }
    }

    async fn embed(&self, text: &str) -> Result<Vec<f32>, EngineError> {
        embed(&self.engine, text).await
    }

    fn states(&self) -> Vec<ReplicaState> {
        self.engine.replicas().status().into_iter().map(|replica| replica.state).collect()
    }
}

fn start(devices: Vec<Arc<Tight>>, embedder: &Path, reranker: &Path) -> Engine {
    let (embedder, reranker) = (source(embedder.into()), source(reranker.into()));
    let open = move || Ok(Devices::new(devices, 64));
    Engine::start(open, OPTIONS, Arc::new(NoCache::new()), embedder, reranker).unwrap()
}

async fn embed(engine: &Engine, text: &str) -> Result<Vec<f32>, EngineError> {
    let retriever = engine.models().retriever.get().expect("a retriever");
    Ok(retriever.embed(vec![item(text)]).await?.remove(0).vector.to_vec())
}

fn tight(n: usize) -> Vec<Arc<Tight>> {
    (0..n).map(|_| Tight::new()).collect()
}

fn is_failed(state: &ReplicaState, reason: &str) -> bool {
    matches!(state, ReplicaState::Failed { reason: it } if it.contains(reason))
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn every_device_has_both_models_and_was_warmed_up() {
    let served = Served::start(tight(3));
    assert_eq!(served.states(), [ReplicaState::Serving, ReplicaState::Serving, ReplicaState::Serving]);
    for device in &served.devices {
        assert_eq!(device.models(), 2);
        let ran = device.ran.lock().unwrap();
        assert_eq!(ran.iter().filter(|&&tokens| tokens == 7 || tokens == 64).count(), 4, "{ran:?}");
    }
    served.embed("MFA").await.unwrap();
}

#[test]
fn the_devices_are_opened_in_the_background() {
    let (go_on, held) = mpsc::channel::<()>();
    let embedder = model("qwen3-gqa-f32", "qwen");
    let open = move || {
        held.recv()?;
        Ok(Devices::new(vec![Tight::new()], 64))
    };
    let (retriever, reranker) = (source(embedder.path().into()), source("/nowhere".into()));
    let engine = Engine::start(open, OPTIONS, Arc::new(NoCache::new()), retriever, reranker).unwrap();
    for status in engine.models().status() {
        assert!(matches!(status.state, ModelState::Loading { stage: "opening devices", .. }), "{status:?}");
    }
    assert!(engine.replicas().status().is_empty());
    go_on.send(()).unwrap();
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);
}

#[test]
fn without_a_device_both_models_say_why() {
    for panics in [false, true] {
        let open = move || if panics { panic!("deliberate") } else { Err("no usable GPU".into()) };
        let (retriever, reranker) = (source("/nowhere".into()), source("/nowhere".into()));
        let engine = Engine::start(open, OPTIONS, Arc::new(NoCache::new()), retriever, reranker).unwrap();
        for role in [Role::Retriever, Role::Reranker] {
            let ModelState::Failed { reason } = wait(&engine, role) else { panic!("it loaded") };
            assert!(reason.contains(if panics { "panicked" } else { "no usable GPU" }), "{reason}");
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_anything_is_loaded() {
    let small = Tight::new();
    small.bytes_free.store(1000, Ordering::SeqCst);
    let served = Served::start(vec![small.clone()]);
    let ModelState::Failed { reason } = wait(&served.engine, Role::Retriever) else { panic!("it loaded") };
    // What is held in the second half of a layer, at 4 bytes a float.
    let config = std::fs::read(served.embedder.path().join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap();
    let heads = |key: &str| size(key) * size("head_dim");
    let (hidden, intermediate) = (size("hidden_size"), size("intermediate_size"));
    let fused = heads("num_attention_heads") + 2 * heads("num_key_value_heads");
    let columns = fused + heads("num_attention_heads") + 2 * intermediate + intermediate.max(hidden);
    let weights = weights_bytes(served.embedder.path());
    for part in [
        "a small device has 1000 bytes".to_owned(),
        format!("weights of the retriever: {weights}"),
        format!("batches of 64 tokens: {}", 64 * (4 * columns + 4 * hidden)),
    ] {
        assert!(reason.contains(&part), "{part} in {reason}");
    }
    assert_eq!(small.models(), 0);
    assert_eq!(served.engine.replicas().failure(), None, "other models may fit");

    // Where another device has room, the small one is done without.
    let served = Served::start(vec![small.clone(), Tight::new()]);
    assert!(is_failed(&served.states()[0], "1000 bytes") && served.states()[1] == ReplicaState::Serving);
    served.embed("MFA").await.unwrap();
}

/// Bytes of the tensors in a model's folder.
fn weights_bytes(folder: &Path) -> u64 {
    let file = std::fs::read(folder.join("model.safetensors")).unwrap();
    file.len() as u64 - 8 - u64::from_le_bytes(file[..8].try_into().unwrap())
}

#[test]
fn a_device_that_takes_memory_as_batches_come_needs_room_for_the_weights_alone() {
    let (embedder, reranker) = (model("qwen3-gqa-f32", "qwen"), model("modernbert-cls-w16-f32", "modernbert"));
    let device = Tight::new();
    device.warms_up.store(false, Ordering::SeqCst);
    device.bytes_free.store(weights_bytes(embedder.path()) + weights_bytes(reranker.path()), Ordering::SeqCst);
    let open = move || Ok(Devices::new(vec![device], 1 << 40));
    let (retriever, reranker) = (source(embedder.path().into()), source(reranker.path().into()));
    let engine = Engine::start(open, OPTIONS, Arc::new(NoCache::new()), retriever, reranker).unwrap();
    for role in [Role::Retriever, Role::Reranker] {
        assert_eq!(wait(&engine, role), ModelState::Ready);
    }
}

#[tokio::test]
async fn a_device_that_fails_is_taken_out_beside_a_model_that_is_wrong() {
    let served = Served::start(tight(2));
    // Of the same length.
    let path = served.embedder.path().join("model.safetensors");
    let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
    let mut bytes = std::fs::read(&path).unwrap();
    let at = text.find("\"norm.weight\"").expect("a name");
    bytes[at + 1] = b'm';
    replace(&path, &bytes);
    *served.devices[1].load_fault.lock().unwrap() = Some(ComputeError::Device("no clock".into()));
    let [retriever, _] = served.engine.reloader().reload().await.unwrap();
    assert!(
        retriever.outcome == Outcome::Failed && retriever.detail.is_some_and(|detail| detail.contains("norm.weight"))
    );
    assert!(served.states()[0] == ReplicaState::Serving && is_failed(&served.states()[1], "no clock"));
}

#[tokio::test]
async fn a_device_that_fails_while_models_load_is_done_without() {
    for fault in [ComputeError::Device("no clock".into()), ComputeError::OutOfMemory("others are on it".into())] {
        let devices = tight(2);
        *devices[1].load_fault.lock().unwrap() = Some(fault);
        let served = Served::start(devices);
        assert_eq!(served.states()[0], ReplicaState::Serving);
        assert!(matches!(served.states()[1], ReplicaState::Failed { .. }));
        served.embed("MFA").await.unwrap();
        wait_until("its memory is given back", || served.devices[1].models() == 0);
        // Reloads go on without it.
        change_tensor(served.embedder.path(), "norm.weight", |x| -x);
        assert_eq!(served.engine.reloader().reload().await.unwrap()[0].outcome, Outcome::Swapped);
        assert_eq!(served.devices[1].models(), 0);
    }
    let devices = tight(1);
    *devices[0].load_fault.lock().unwrap() = Some(ComputeError::OutOfMemory("others are on it".into()));
    let served = Served::start(devices);
    let ModelState::Failed { reason } = wait(&served.engine, Role::Retriever) else { panic!("it loaded") };
    assert!(reason.contains("others are on it"), "{reason}");
    assert_eq!(served.states(), [ReplicaState::Loading], "none is taken out for what none can do");
}

#[tokio::test]
async fn a_device_that_fails_is_out_while_the_rest_answers_and_the_last_one_ends_it() {
    let served = Served::start(tight(2));
    let before = served.embed("MFA").await.unwrap();
    *served.devices[0].run_fault.lock().unwrap() = Some(ComputeError::Device("fell off the bus".into()));
    let started = Instant::now();
    while !is_failed(&served.states()[0], "fell off the bus") {
        assert_eq!(served.embed("MFA").await, Ok(before.clone()), "no request notices");
        assert!(started.elapsed() < Duration::from_secs(60), "it met no work");
    }
    wait_until("its copies are gone", || served.devices[0].models() == 0);
    assert_eq!(served.engine.replicas().counts().device_failures, 1);

    *served.devices[1].run_fault.lock().unwrap() = Some(ComputeError::Device("so did this".into()));
    let error = served.embed("MFA").await.unwrap_err();
    assert!(matches!(&error, EngineError::Device(detail) if detail.contains("so did this")), "{error:?}");
    let reason = served.engine.replicas().ended().await;
    assert!(reason.contains("no replica is left"), "{reason}");
    let error = served.embed("Rotate access keys").await.unwrap_err();
    assert_eq!(error, EngineError::Device(reason));
}

/// Requests without a pause until it is told to stop; how many there were. Panics when one fails.
fn load(runtime: &tokio::runtime::Handle, engine: &Engine, stop: &AtomicBool, answered: &AtomicU64) {
    while !stop.load(Ordering::SeqCst) {
        runtime.block_on(async {
            embed(engine, "Rotate access keys").await.expect("no request fails");
            let reranker = engine.models().reranker.get().expect("a reranker");
            reranker.score("MFA".into(), vec!["keys".into()]).await.expect("no request fails");
        });
        answered.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn without_room_replicas_follow_one_another_under_load() {
    let devices = tight(3);
    devices.iter().for_each(|device| device.models_max.store(2, Ordering::SeqCst));
    let served = Served::start(devices);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let before = runtime.block_on(served.embed("MFA")).unwrap();
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| load(runtime.handle(), &served.engine, &stop, &answered));
        }
        let _stop = StopAtEnd(&stop);
        let some_more = || {
            let now = answered.load(Ordering::SeqCst);
            wait_until("requests are answered", || answered.load(Ordering::SeqCst) > now + 3);
        };
        some_more();
        change_tensor(served.embedder.path(), "norm.weight", |x| if x > 1.0 { x } else { -x });
        let [retriever, _] = runtime.block_on(served.engine.reloader().reload()).unwrap();
        assert_eq!((retriever.outcome, retriever.detail), (Outcome::Swapped, None));
        some_more();
        let after = runtime.block_on(served.embed("MFA")).unwrap();
        assert_ne!(after, before);
        assert_eq!(served.states(), vec![ReplicaState::Serving; 3]);

        // One that does not work changes nothing.
        change_tensor(served.embedder.path(), "norm.weight", |_| f32::NAN);
        let [retriever, _] = runtime.block_on(served.engine.reloader().reload()).unwrap();
        assert_eq!(retriever.outcome, Outcome::Failed);
        assert!(retriever.detail.is_some_and(|detail| detail.contains("not finite")));
        some_more();
        assert_eq!(runtime.block_on(served.embed("MFA")).unwrap(), after);
        assert_eq!(served.states(), vec![ReplicaState::Serving; 3]);
    });
    assert_eq!(served.engine.replicas().counts().device_failures, 0);
}

#[tokio::test]
async fn without_room_the_next_one_waits_until_the_old_weights_are_gone() {
    let devices = tight(3);
    for device in &devices {
        device.models_max.store(2, Ordering::SeqCst);
        device.freeing_ms.store(300, Ordering::SeqCst);
    }
    let served = Served::start(devices);
    change_tensor(served.embedder.path(), "norm.weight", |x| -x);
    // Nobody holds the old revision: it goes from all replicas at the flip, and in the background.
    let [retriever, _] = served.engine.reloader().reload().await.unwrap();
    assert_eq!((retriever.outcome, retriever.detail), (Outcome::Swapped, None));
    assert_eq!(served.states(), vec![ReplicaState::Serving; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_revision_that_loses_its_first_replica_goes_on_with_the_next() {
    let devices = tight(2);
    devices.iter().for_each(|device| device.models_max.store(2, Ordering::SeqCst));
    let served = Served::start(devices);
    // The last replica with the old revision waits for whoever holds it.
    let held = served.engine.models().retriever.get().unwrap();
    change_tensor(served.embedder.path(), "norm.weight", |x| -x);
    let reloader = served.engine.reloader().clone();
    let reload = tokio::spawn(async move { reloader.reload().await.unwrap() });
    let before = held.info().revision.clone();
    let flipped = || served.engine.models().retriever.get().is_ok_and(|now| now.info().revision != before);
    wait_until("it flips", flipped);
    *served.devices[0].run_fault.lock().unwrap() = Some(ComputeError::Device("fell off the bus".into()));
    // Its second try may come before the next replica is there, or after.
    if let Err(error) = served.embed("MFA").await {
        assert!(matches!(error, EngineError::Device(_)), "{error:?}");
    }
    let [retriever, _] = reload.await.unwrap();
    assert_eq!((retriever.outcome, retriever.detail), (Outcome::Swapped, None));
    assert!(is_failed(&served.states()[0], "fell off the bus") && served.states()[1] == ReplicaState::Serving);
    assert_eq!(served.engine.replicas().failure(), None);
    served.embed("MFA").await.unwrap();
    drop(held);
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
