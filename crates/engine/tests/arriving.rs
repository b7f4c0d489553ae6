//! Models that are loaded while their files arrive: what is told meanwhile, and what a change of the source comes to.

#![forbid(unsafe_code)]

mod support;

use nexus_compute::reference::Reference;
use nexus_engine::{
    Arrival, BoxError, Devices, Engine, EngineOptions, ModelSource, ModelState, Outcome, ReloadState, Revision, Role,
};
use nexus_storage::NoCache;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{item, model, source, wait};

const OPTIONS: EngineOptions = EngineOptions { queue_tokens_max: 10_000, text_tokens_max: 32, packed_bytes_min: None };

/// A transfer that ends when a test says so, well or not.
struct Transfer {
    ended: Arc<AtomicBool>,
    settled: Result<bool, &'static str>,
}

impl Arrival for Transfer {
    fn bytes(&self) -> Option<(u64, u64)> {
        (!self.ended.load(Ordering::SeqCst)).then_some((3, 7))
    }

    fn settle(&self) -> Result<bool, BoxError> {
        while !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.settled?)
    }
}

/// What each opening finds: a folder, and how its transfer settles. The last one again and again.
struct Openings {
    list: Mutex<Vec<(std::path::PathBuf, Result<bool, &'static str>)>>,
    opened: AtomicUsize,
    ended: Arc<AtomicBool>,
}

impl Openings {
    fn new(list: &[(&Path, Result<bool, &'static str>)]) -> Arc<Self> {
        let list = Mutex::new(list.iter().map(|(folder, settled)| (folder.to_path_buf(), *settled)).collect());
        Arc::new(Self { list, opened: AtomicUsize::new(0), ended: Arc::new(AtomicBool::new(true)) })
    }

    fn source(self: &Arc<Self>) -> ModelSource {
        let openings = self.clone();
        let open = move |progress: nexus_engine::Progress<'_>| {
            let n = openings.opened.fetch_add(1, Ordering::SeqCst);
            let list = openings.list.lock().unwrap();
            let (folder, settled) = &list[n.min(list.len() - 1)];
            let mut opened = (source(folder.clone()).open)(progress)?;
            let ended = openings.ended.clone();
            opened.arrival = Some(Arc::new(Transfer { ended, settled: *settled }));
            Ok(opened)
        };
        ModelSource { name: "arriving".into(), open: Arc::new(open) }
    }

    fn start(self: &Arc<Self>) -> Engine {
        let nothing = ModelSource { name: "nothing".into(), open: Arc::new(|_| Err("nothing".into())) };
        Engine::start(
            || Ok(Devices::new(vec![Arc::new(Reference)], 64)),
            OPTIONS,
            Arc::new(NoCache::new()),
            self.source(),
            nothing,
        )
        .unwrap()
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

fn revision(engine: &Engine) -> Revision {
    assert_eq!(wait(engine, Role::Retriever), ModelState::Ready);
    engine.models().retriever.get().unwrap().info().revision.clone()
}

fn revision_of(folder: &Path) -> Revision {
    revision(&Openings::new(&[(folder, Ok(true))]).start())
}

#[test]
fn fetching_is_told_until_all_is_there_and_nothing_serves_before() {
    let folder = model("qwen3-gqa-f32", "qwen");
    let openings = Openings::new(&[(folder.path(), Ok(true))]);
    openings.ended.store(false, Ordering::SeqCst);
    let engine = openings.start();
    let fetching = ModelState::Loading { stage: "fetching", bytes_done: 3, bytes_total: 7 };
    let started = Instant::now();
    while engine.models().retriever.state() != fetching {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", engine.models().retriever.state());
        std::thread::sleep(Duration::from_millis(1));
    }
    // For as long as it would take to load it some times.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(engine.models().retriever.state(), fetching);
    openings.ended.store(true, Ordering::SeqCst);
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);
    assert_eq!(openings.opened(), 1);
}

#[test]
fn what_was_loaded_of_a_source_that_changed_meanwhile_never_serves() {
    let (old, new) = (model("qwen3-gqa-f32", "qwen"), model("qwen3-gqa-f32", "qwen"));
    let config = new.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\n")).unwrap();
    let (of_old, of_new) = (revision_of(old.path()), revision_of(new.path()));
    assert_ne!(of_old, of_new);

    let openings = Openings::new(&[(old.path(), Ok(false)), (new.path(), Ok(true))]);
    assert_eq!(revision(&openings.start()), of_new);
    assert_eq!(openings.opened(), 2);

    // Files of two uploads may not even load.
    let broken = model("qwen3-gqa-f32", "qwen");
    std::fs::write(broken.path().join("model.safetensors"), "half").unwrap();
    let openings = Openings::new(&[(broken.path(), Ok(false)), (new.path(), Ok(true))]);
    assert_eq!(revision(&openings.start()), of_new);

    // Where nothing changed, it is what it looked like.
    let openings = Openings::new(&[(broken.path(), Ok(true)), (new.path(), Ok(true))]);
    let ModelState::Failed { reason } = wait(&openings.start(), Role::Retriever) else { panic!("it loaded") };
    assert!(reason.contains("model.safetensors"), "{reason}");
    assert_eq!(openings.opened(), 1);
}

#[test]
fn the_end_of_a_transfer_is_the_reason_and_not_for_ever_tried_again() {
    let folder = model("qwen3-gqa-f32", "qwen");
    let openings = Openings::new(&[(folder.path(), Err("the link is down"))]);
    let ModelState::Failed { reason } = wait(&openings.start(), Role::Retriever) else { panic!("it loaded") };
    assert_eq!(reason, "the link is down");
    assert_eq!(openings.opened(), 1);

    let openings = Openings::new(&[(folder.path(), Ok(false))]);
    let ModelState::Failed { reason } = wait(&openings.start(), Role::Retriever) else { panic!("it loaded") };
    assert!(reason.contains("changed each time"), "{reason}");
    assert_eq!(openings.opened(), 4);
}

#[tokio::test]
async fn a_reload_ends_with_what_the_source_has() {
    let (old, new) = (model("qwen3-gqa-f32", "qwen"), model("qwen3-gqa-f32", "qwen"));
    let config = new.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}\n")).unwrap();
    let openings = Openings::new(&[(old.path(), Ok(true)), (old.path(), Ok(false)), (new.path(), Ok(true))]);
    let engine = openings.start();
    let before = revision(&engine);
    wait(&engine, Role::Reranker);
    let [retriever, _] = engine.reloader().reload().await.unwrap();
    assert_eq!(retriever.outcome, Outcome::Swapped, "{retriever:?}");
    assert_ne!(revision(&engine), before);
    assert_eq!(engine.models().retriever.get().unwrap().embed(vec![item("MFA")]).await.unwrap().len(), 1);
    assert_eq!(engine.models().retriever.reload(), Some(ReloadState::Swapped));
    assert_eq!(openings.opened(), 3);
}
