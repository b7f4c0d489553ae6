//! Which devices the binary takes, with stand-ins for NVIDIA's libraries: what is opened, what is refused, and what is said.

use crate::support::{PATIENCE, Service, nexus, root};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Appends its name to a file when it is opened, and has nothing of what it is opened for.
const MARKS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void opened(void) {
    FILE *file = fopen(getenv("STUB_MARKS"), "a");
    if (file) {
        fputs(NAME "\n", file);
        fclose(file);
    }
}
"#;

const LIBRARIES: [(&str, &str); 3] =
    [("libcuda.so.1", "cuda.c"), ("libnvrtc.so.12", "nvrtc.c"), ("libcublasLt.so.12", "cublaslt.c")];

fn compile(source: &Path, library: &Path, name: &str) {
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-pthread", &format!("-DNAME=\"{name}\"")])
        .arg(source)
        .arg("-o")
        .arg(library)
        .output()
        .expect("cc is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Libraries that say that they were opened.
fn marking() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("marks.c");
    std::fs::write(&source, MARKS).expect("a source");
    LIBRARIES.iter().for_each(|(name, _)| compile(&source, &folder.path().join(name), name));
    folder
}

/// Libraries that work in the memory of the host, for two devices, of which the second is too old. Kernels compute nothing.
fn working() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let sources = root().join("crates/compute/tests/stubs");
    LIBRARIES.iter().for_each(|(name, source)| compile(&sources.join(source), &folder.path().join(name), name));
    folder
}

/// A service that finds the libraries in `folder`, once nothing loads any more and `until` was logged; what `/ready` says, and
/// the log.
fn serve(folder: &TempDir, device: &str, env: &[(&str, &str)], until: &str) -> (Value, Vec<String>) {
    let cache = tempfile::tempdir().expect("a folder");
    let mut command = nexus();
    command
        .arg("serve")
        .env("NEXUS_CACHE_DIR", cache.path())
        .env("NEXUS_DEVICE", device)
        .env("LD_LIBRARY_PATH", folder.path())
        .env("STUB_MARKS", folder.path().join("marks"))
        .envs(env.iter().copied());
    let log = Arc::new(Mutex::new(Vec::new()));
    let lines = log.clone();
    let service = Service::spawn(command, move |line| {
        eprintln!("{line}");
        lines.lock().expect("a log").push(line.to_owned());
    });
    let answer = service.wait_while_loading();
    let began = Instant::now();
    loop {
        let log = log.lock().expect("a log").clone();
        if log.iter().any(|line| line.contains(until)) {
            return (answer, log);
        }
        assert!(began.elapsed() < PATIENCE, "no {until:?} in {log:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What is logged once devices are chosen, and after everything that is to be said of the choice.
const CHOSEN: &str = "\"message\":\"devices\"";
const NONE: &str = "no device can be used";

fn warnings(log: &[String]) -> Vec<&String> {
    log.iter().filter(|line| line.contains("\"WARN\"")).collect()
}

#[test]
fn the_cpu_is_taken_without_opening_any_library_of_nvidia() {
    let folder = marking();
    let marks = || std::fs::read_to_string(folder.path().join("marks")).unwrap_or_default();
    let (answer, log) = serve(&folder, "cpu", &[], CHOSEN);
    assert_eq!((answer["status"].as_str(), marks().as_str()), (Some("ready"), ""));
    assert!(warnings(&log).is_empty(), "{log:?}");
    // They would be found.
    let (answer, log) = serve(&folder, "auto", &[], CHOSEN);
    assert_eq!(answer["status"], "ready", "{answer}");
    assert!(marks().starts_with("libcuda.so.1\n"), "{}", marks());
    let [warning] = warnings(&log)[..] else { panic!("{log:?}") };
    assert!(warning.contains("libcuda.so.1 lacks") && warning.contains("the CPU runs the models"), "{warning}");
}

#[test]
fn a_gpu_that_computes_wrong_serves_nobody() {
    let folder = working();
    let (answer, log) = serve(&folder, "cuda", &[], NONE);
    assert_eq!((&answer["status"], &answer["replicas"]), (&"failed".into(), &serde_json::json!([])), "{answer}");
    for model in answer["models"].as_array().expect("models") {
        let detail = model["detail"].as_str().expect("a reason");
        assert!(detail.contains("GPU 0") && detail.contains("computes wrong"), "{detail}");
    }
    let [too_old] = warnings(&log)[..] else { panic!("{log:?}") };
    assert!(too_old.contains("GPU 1 (Stub 1, compute capability 7.5) is passed over"), "{too_old}");

    let (answer, log) = serve(&folder, "auto", &[], CHOSEN);
    assert_eq!(answer["status"], "ready", "{answer}");
    assert!(answer["replicas"][0]["device"].as_str().is_some_and(|device| device.starts_with("cpu")), "{answer}");
    let [too_old, wrong] = warnings(&log)[..] else { panic!("{log:?}") };
    assert!(too_old.contains("GPU 1") && wrong.contains("computes wrong"), "{too_old} {wrong}");

    let (answer, _) = serve(&folder, "cuda:1", &[], NONE);
    let detail = answer["models"][0]["detail"].as_str().expect("a reason");
    assert!(detail.contains("NEXUS_DEVICE=cuda:1") && detail.contains("8.0 is needed"), "{detail}");

    // Nor are target sets searched on it.
    let env = [("NEXUS_TARGETS_DEVICE_BYTES_MAX", "64MiB")];
    let (_, log) = serve(&folder, "auto", &env, "target sets are searched on the CPU");
    assert!(warnings(&log).iter().any(|line| line.contains("sets") && line.contains("computes wrong")), "{log:?}");
}
