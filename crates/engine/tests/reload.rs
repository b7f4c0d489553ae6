//! Reloads of real (tiny) models on the reference backend: what swaps, what does not, and who notices.

#![forbid(unsafe_code)]

mod support;
#[path = "support/tensors.rs"]
mod tensors;
#[path = "support/tight.rs"]
mod tight;

use futures::FutureExt;
use nexus_engine::{
    Devices, EmbedItem, Engine, EngineOptions, ModelSource, ModelState, Outcome, ReloadRefused, ReloadState, Reloaded,
    Role,
};
use nexus_storage::MemoryCache;
use std::{
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};
use support::{item, model, source, wait};
use tempfile::TempDir;
use tensors::{change_tensor, replace};
use tight::Tight;

const OPTIONS: EngineOptions = EngineOptions { queue_tokens_max: 10_000, text_tokens_max: 32, packed_bytes_min: None };

/// An engine on two folders, in which tests put one revision after another.
struct Served {
    engine: Engine,
    device: Arc<Tight>,
    embedder: TempDir,
    reranker: TempDir,
}

impl Served {
    fn start() -> Self {
        Self::start_on(model("qwen3-gqa-f32", "qwen"), model("modernbert-cls-w16-f32", "modernbert"))
    }

    fn start_on(embedder: TempDir, reranker: TempDir) -> Self {
        let sources = (source(embedder.path().into()), source(reranker.path().into()));
        let device = Tight::new();
        let engine = start(device.clone(), sources.0, sources.1);
        wait(&engine, Role::Retriever);
        wait(&engine, Role::Reranker);
        Self { engine, device, embedder, reranker }
    }

    async fn reload(&self) -> [Reloaded; 2] {
        self.engine.reloader().reload().await.expect("it begins")
    }

    async fn embed(&self, text: &str) -> (Vec<f32>, bool) {
        embed(&self.engine, item(text)).await
    }

    async fn score(&self) -> f32 {
        let reranker = self.engine.models().reranker.get().unwrap();
        reranker.score("MFA".into(), vec!["keys".into()]).await.unwrap()[0]
    }

    fn revision(&self, role: Role) -> Option<String> {
        let status = self.engine.models().status().into_iter().find(|status| status.role == role).unwrap();
        status.revision.map(|revision| revision.to_string())
    }
}

fn start(device: Arc<Tight>, retriever: ModelSource, reranker: ModelSource) -> Engine {
    Engine::start(
        move || Ok(Devices::new(vec![device], 64)),
        OPTIONS,
        Arc::new(MemoryCache::new(1 << 20)),
        retriever,
        reranker,
    )
    .unwrap()
}

async fn embed(engine: &Engine, item: EmbedItem) -> (Vec<f32>, bool) {
    let retriever = engine.models().retriever.get().unwrap();
    let embedding = retriever.embed(vec![item]).await.unwrap().remove(0);
    (embedding.vector.to_vec(), embedding.cache_hit)
}

#[tokio::test]
async fn what_did_not_change_is_not_swapped() {
    let served = Served::start();
    let retriever = served.engine.models().retriever.get().unwrap();
    let revisions = [Role::Retriever, Role::Reranker].map(|role| served.revision(role));
    for (reloaded, revision) in served.reload().await.into_iter().zip(revisions) {
        assert_eq!((reloaded.outcome, reloaded.detail), (Outcome::Unchanged, None));
        assert!(revision.is_some());
        assert_eq!(reloaded.revision.map(|revision| revision.to_string()), revision);
    }
    assert!(Arc::ptr_eq(&retriever, &served.engine.models().retriever.get().unwrap()));
    let [status, _] = served.engine.models().status();
    assert_eq!((status.state, status.reload), (ModelState::Ready, Some(ReloadState::Unchanged)));
}

#[tokio::test]
async fn a_new_revision_answers_and_each_role_is_on_its_own() {
    let served = Served::start();
    let (before, score) = (served.embed("MFA").await.0, served.score().await);
    let first = served.revision(Role::Retriever);
    let old = served.engine.models().retriever.get().unwrap();

    change_tensor(served.embedder.path(), "norm.weight", |x| if x > 1.0 { x } else { -x });
    let [retriever, reranker] = served.reload().await;
    assert_eq!((retriever.outcome, reranker.outcome), (Outcome::Swapped, Outcome::Unchanged), "{retriever:?}");
    assert_ne!(served.revision(Role::Retriever), first);
    // Not what the cache has of the old revision, although it has it.
    let (after, hit) = served.embed("MFA").await;
    assert!(!hit && after != before);
    assert_eq!(served.embed("MFA").await, (after, true));
    assert_eq!(served.score().await, score);

    // Who holds the old revision ends on it, with its cache entries, and what it computes stays its own.
    assert_eq!(old.info().revision.to_string(), first.unwrap());
    let known = old.embed(vec![item("MFA")]).await.unwrap().remove(0);
    assert_eq!((known.vector.to_vec(), known.cache_hit), (before, true));
    let late = old.embed(vec![item("Rotate access keys")]).await.unwrap().remove(0);
    let (new, hit) = served.embed("Rotate access keys").await;
    assert!(!hit && new != late.vector.to_vec());

    change_tensor(served.reranker.path(), "classifier.weight", |x| -2.0 * x);
    let [retriever, reranker] = served.reload().await;
    assert_eq!((retriever.outcome, reranker.outcome), (Outcome::Unchanged, Outcome::Swapped), "{reranker:?}");
    assert_ne!(served.score().await, score);
}

/// Weights are given back beside whatever let them go.
fn wait_for_models(device: &Tight, expected: usize) {
    let started = Instant::now();
    while device.models() != expected {
        assert!(started.elapsed() < Duration::from_secs(60), "{} models on the device", device.models());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn the_old_weights_go_when_nobody_needs_them_any_more() {
    let served = Served::start();
    assert_eq!(served.device.models(), 2);
    let old = served.engine.models().retriever.get().unwrap();
    change_tensor(served.embedder.path(), "norm.weight", |x| -x);
    assert_eq!(served.reload().await[0].outcome, Outcome::Swapped);
    // A request holds what it was given at its beginning.
    assert_eq!(served.device.models(), 3);
    old.embed(vec![item("Rotate access keys")]).await.unwrap();
    assert_eq!(served.device.models(), 3);
    drop(old);
    wait_for_models(&served.device, 2);

    // What does not take over does not stay either.
    change_tensor(served.embedder.path(), "norm.weight", |_| f32::NAN);
    assert_eq!(served.reload().await[0].outcome, Outcome::Failed);
    wait_for_models(&served.device, 2);
}

#[tokio::test]
async fn a_broken_revision_leaves_the_old_one() {
    let served = Served::start();
    let (before, score) = (served.embed("MFA").await.0, served.score().await);
    let revision = served.revision(Role::Retriever);
    let check = async |expected: &str| {
        let [retriever, reranker] = served.reload().await;
        assert_eq!((retriever.outcome, reranker.outcome), (Outcome::Failed, Outcome::Unchanged));
        let detail = retriever.detail.unwrap();
        assert!(detail.contains(expected), "{detail}");
        let [status, _] = served.engine.models().status();
        assert_eq!((status.state, status.reload), (ModelState::Ready, Some(ReloadState::Failed { reason: detail })));
        assert_eq!(retriever.revision.map(|revision| revision.to_string()), revision);
        assert_eq!(served.embed("MFA").await.0, before);
        assert_eq!(served.score().await, score);
    };
    let weights = served.embedder.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();

    replace(&weights, &whole[..whole.len() - 100]);
    check("model.safetensors").await;
    replace(&weights, b"");
    check("model.safetensors").await;
    std::fs::remove_file(&weights).unwrap();
    check("has no model.safetensors").await;
    replace(&weights, &whole);
    change_tensor(served.embedder.path(), "norm.weight", |_| f32::NAN);
    check("not finite").await;
    replace(&weights, &whole);
    change_tensor(served.embedder.path(), "norm.weight", |_| 0.0);
    check("its vector is zero").await;

    let config = served.embedder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    replace(&config, text.replace("\"qwen3\"", "\"llama\"").as_bytes());
    check("model_type is llama").await;
    replace(&config, text.as_bytes());
    replace(&weights, &whole);
    assert_eq!(served.reload().await[0].outcome, Outcome::Unchanged);
}

#[tokio::test]
async fn other_dimensions_are_refused() {
    let served = Served::start();
    let before = served.embed("MFA").await.0;
    let other = model("qwen3-bias-f32", "qwen");
    for entry in std::fs::read_dir(other.path()).unwrap() {
        let entry = entry.unwrap();
        replace(&served.embedder.path().join(entry.file_name()), &std::fs::read(entry.path()).unwrap());
    }
    let [retriever, _] = served.reload().await;
    assert_eq!(retriever.outcome, Outcome::Failed);
    let detail = retriever.detail.unwrap();
    assert!(detail.contains("dimensions, the one that serves 64"), "{detail}");
    assert_eq!(served.embed("MFA").await, (before, true));
}

#[tokio::test]
async fn a_device_without_room_refuses_with_both_numbers() {
    let served = Served::start();
    let before = served.embed("MFA").await.0;
    change_tensor(served.embedder.path(), "norm.weight", |x| -x);
    served.device.bytes_free.store(1234, Ordering::SeqCst);
    let [retriever, reranker] = served.reload().await;
    assert_eq!((retriever.outcome, reranker.outcome), (Outcome::Failed, Outcome::Unchanged));
    let detail = retriever.detail.unwrap();
    let file = std::fs::read(served.embedder.path().join("model.safetensors")).unwrap();
    let weights = file.len() as u64 - 8 - u64::from_le_bytes(file[..8].try_into().unwrap());
    for part in [format!("about {weights} bytes"), "a small device has 1234 bytes".to_owned()] {
        assert!(detail.contains(&part), "{detail}");
    }
    assert_eq!(served.embed("MFA").await.0, before);

    assert_eq!(served.device.models(), 2, "refused before anything is loaded");

    served.device.bytes_free.store(weights, Ordering::SeqCst);
    assert_eq!(served.reload().await[0].outcome, Outcome::Swapped);
    assert_ne!(served.embed("MFA").await.0, before);
}

#[tokio::test]
async fn a_reload_repairs_what_failed_at_the_start() {
    let (embedder, reranker) = (model("qwen3-gqa-f32", "qwen"), model("modernbert-cls-w16-f32", "modernbert"));
    let folders = [embedder.path(), reranker.path()].map(|folder| folder.join("config.json"));
    let configs = folders.each_ref().map(|config| std::fs::read(config).unwrap());
    folders.iter().for_each(|config| std::fs::remove_file(config).unwrap());
    let served = Served::start_on(embedder, reranker);
    for status in served.engine.models().status() {
        assert!(matches!(status.state, ModelState::Failed { .. }) && status.revision.is_none());
    }
    std::fs::write(&folders[0], "{").unwrap();
    let [retriever, reranker] = served.reload().await;
    assert_eq!((retriever.outcome, reranker.outcome), (Outcome::Failed, Outcome::Failed));
    // The newest reason is the one that is told.
    let [status, _] = served.engine.models().status();
    assert_eq!(status.state, ModelState::Failed { reason: retriever.detail.unwrap() });

    folders.iter().zip(configs).for_each(|(config, text)| std::fs::write(config, text).unwrap());
    assert_eq!(served.reload().await.map(|reloaded| reloaded.outcome), [Outcome::Swapped; 2]);
    assert_eq!(served.engine.models().status().map(|status| status.state), [ModelState::Ready, ModelState::Ready]);
    assert!(!served.embed("MFA").await.1);
    served.score().await;
}

/// A source that waits, each time, until it is told to go on.
fn held(folder: &Path) -> (ModelSource, mpsc::Sender<()>) {
    let inner = source(folder.into());
    let (go_on, held) = mpsc::channel();
    let held = Mutex::new(held);
    let open = Arc::new(move |progress: nexus_engine::Progress<'_>| {
        held.lock().unwrap().recv()?;
        (inner.open)(progress)
    });
    (ModelSource { name: inner.name, open }, go_on)
}

#[tokio::test]
async fn one_at_a_time_and_not_while_models_load_for_the_first_time() {
    let embedder = model("qwen3-gqa-f32", "qwen");
    let (retriever, go_on) = held(embedder.path());
    let device = Tight::new();
    let engine = start(device, retriever, source("/nowhere".into()));
    wait(&engine, Role::Reranker);
    assert_eq!(engine.reloader().reload().await, Err(ReloadRefused::Loading));
    go_on.send(()).unwrap();
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);

    // The first poll begins it; it goes on when the one who asked is gone.
    assert!(engine.reloader().reload().now_or_never().is_none());
    assert_eq!(engine.reloader().reload().await, Err(ReloadRefused::Running));
    let [status, _] = engine.models().status();
    assert!(matches!(status.reload, Some(ReloadState::Loading { .. }) | None), "{status:?}");
    embed(&engine, item("MFA")).await;
    go_on.send(()).unwrap();
    let reloaded = loop {
        go_on.send(()).unwrap();
        match engine.reloader().reload().await {
            Err(ReloadRefused::Running) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(reloaded.map(|reloaded| reloaded.outcome), [Outcome::Unchanged, Outcome::Failed]);
    engine.close();
    assert_eq!(engine.reloader().reload().await, Err(ReloadRefused::ShuttingDown));
}
