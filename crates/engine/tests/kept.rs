//! Prepared weights in a file beside the model: written after the first start, used by the next, and never in place of
//! other weights.

#![forbid(unsafe_code)]

mod support;

use nexus_compute::cpu::{Cpu, CpuOptions};
use nexus_engine::{Devices, Engine, EngineOptions, ModelState, Role};
use nexus_storage::NoCache;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use support::{item, model, source, wait};

/// A text's vector by the model in `folder`, as a new process would compute it, and the engine that did.
fn start(folder: &Path, packed_bytes_min: Option<u64>) -> (Vec<f32>, Engine) {
    let options = EngineOptions { queue_tokens_max: 10_000, text_tokens_max: 32, packed_bytes_min };
    let cpu = || Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let engine = Engine::start(
        move || Ok(Devices::new(vec![Arc::new(cpu())], 64)),
        options,
        Arc::new(NoCache::new()),
        source(folder.to_owned()),
        source("/nowhere".into()),
    )
    .unwrap();
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);
    let retriever = engine.models().retriever.get().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let vector = runtime.block_on(retriever.embed(vec![item("Rotate access keys")])).unwrap()[0].vector.to_vec();
    (vector, engine)
}

fn packed_file(folder: &Path) -> Option<PathBuf> {
    let mut paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "bin"))
}

/// The file, once it is there and not what it was.
fn wait_for_file(folder: &Path, old: Option<&[u8]>) -> (PathBuf, Vec<u8>) {
    let started = Instant::now();
    loop {
        if let Some(path) = packed_file(folder) {
            let content = fs::read(&path).unwrap();
            if old != Some(&content) {
                return (path, content);
            }
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no file was written");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_next_start_uses_what_the_first_kept() {
    let folder = model("qwen3-gqa-f32", "qwen");
    let (first, _) = start(folder.path(), Some(0));
    let (path, mut content) = wait_for_file(folder.path(), None);
    assert_eq!(start(folder.path(), Some(0)).0, first);

    // The weights proper carry no sum: what is changed there has to show.
    let at = content.len() / 2;
    content[at..at + 4096].fill(0);
    fs::remove_file(&path).unwrap();
    fs::write(&path, &content).unwrap();
    let (changed, _) = start(folder.path(), Some(0));
    assert_ne!(changed, first, "the file is not used");
    assert_eq!(fs::read(&path).unwrap(), content, "a file that was used was written again");
}

#[test]
fn other_weights_are_prepared_anew_and_kept_instead() {
    let folder = model("qwen3-gqa-f32", "qwen");
    let _engine = start(folder.path(), Some(0));
    let (_, old) = wait_for_file(folder.path(), None);

    // The same shapes, and one value that is another.
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 0x40;
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    let (expected, _) = start(folder.path(), None);
    let (second, _engine) = start(folder.path(), Some(0));
    assert_eq!(second, expected);
    let (_, new) = wait_for_file(folder.path(), Some(&old));
    assert_ne!(new, old);
    assert_eq!(start(folder.path(), Some(0)).0, expected);
}

#[test]
fn small_models_and_those_that_are_not_wanted_leave_no_file() {
    for bytes_min in [None, Some(1 << 30)] {
        let folder = model("qwen3-gqa-f32", "qwen");
        drop(start(folder.path(), bytes_min));
        sleep(Duration::from_millis(100));
        assert_eq!(packed_file(folder.path()), None);
    }
}

#[test]
fn a_file_that_can_not_be_written_or_read_fails_nothing() {
    let folder = model("qwen3-gqa-f32", "qwen");
    let (first, _) = start(folder.path(), Some(0));
    let (path, _) = wait_for_file(folder.path(), None);
    fs::remove_file(&path).unwrap();
    // A folder where the file should be, and one where it would be written.
    fs::create_dir(&path).unwrap();
    fs::create_dir(path.with_extension("partial")).unwrap();
    assert_eq!(start(folder.path(), Some(0)).0, first);
}
