//! Starting, asking and stopping the binary.

use reqwest::blocking::{Client, Response};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take. Generous: debug builds on busy machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The binary, without anything in the environment that would change what it does.
pub(crate) fn nexus() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexus"));
    command.env_clear().current_dir(root());
    for kept in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE", "SystemRoot"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// Runs the binary to its end.
pub(crate) fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    nexus().args(args).envs(env.iter().copied()).stdin(Stdio::null()).output().expect("the binary starts")
}

/// A running `nexus serve`, stopped when dropped.
pub(crate) struct Service {
    child: Child,
    pub(crate) url: String,
    pub(crate) client: Client,
    _cache: Option<TempDir>,
}

impl Service {
    /// On a free port, with an empty cache of its own.
    pub(crate) fn start(env: &[(&str, &str)]) -> Self {
        let cache = tempfile::tempdir().expect("a folder");
        let mut service = Self::start_on(cache.path(), env);
        service._cache = Some(cache);
        service
    }

    /// On a free port, with the cache in `cache`.
    pub(crate) fn start_on(cache: &Path, env: &[(&str, &str)]) -> Self {
        let mut command = nexus();
        command.arg("serve").env("NEXUS_CACHE_DIR", cache).envs(env.iter().copied());
        // The log appears with the output of a failed test.
        Self::spawn(command, |line| eprintln!("{line}"))
    }

    /// Any command that ends in `nexus serve`, on a free port; what it logs goes to `log`, line by line.
    pub(crate) fn spawn(mut command: Command, log: impl Fn(&str) + Send + 'static) -> Self {
        let mut child = command
            .env("NEXUS_PORT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take().expect("piped");
        std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| log(&line)));
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let line = lines.recv_timeout(PATIENCE).expect("it says where it listens");
        let url = line.strip_prefix("listening on ").expect("the line that programs read").to_owned();
        let client = Client::builder().timeout(PATIENCE).build().expect("a client");
        Self { child, url, client, _cache: None }
    }

    /// The same, once it is ready.
    pub(crate) fn ready(self) -> Self {
        let answer = self.wait_while_loading();
        assert_eq!(answer["status"], "ready", "{answer}");
        self
    }

    /// What `/ready` says once nothing loads any more.
    pub(crate) fn wait_while_loading(&self) -> Value {
        let started = Instant::now();
        loop {
            let answer: Value = self.get("/ready").json().expect("JSON");
            // One may have failed while another still loads.
            let mut models = answer["models"].as_array().into_iter().flatten();
            if answer["status"] != "loading" && models.all(|model| model["status"] != "loading") {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "{answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().expect("an answer")
    }

    pub(crate) fn post(&self, path: &str, body: impl Into<reqwest::blocking::Body>) -> Response {
        let request = self.client.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        request.body(body).send().expect("an answer")
    }

    /// The JSON of an answer that has to be 200.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body.to_string());
        let status = response.status();
        let text = response.text().expect("text");
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Embeds one text: the vector, and whether it came from the cache.
    pub(crate) fn embed(&self, text: &str) -> (Vec<f32>, bool) {
        let answer = self.ask("/api/v1/embed", &serde_json::json!({ "control_id": "A", "text": text }));
        (floats(&answer["embedding"]), answer["cache_hit"].as_bool().expect("a boolean"))
    }

    /// Bytes of memory that the process holds now, where the system tells.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
    }

    /// The name of each thread, and its scheduling policy by number (sched(7)).
    #[cfg(target_os = "linux")]
    pub(crate) fn threads(&self) -> Vec<(String, u32)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a system with /proc");
        let thread = |task: std::io::Result<std::fs::DirEntry>| {
            // It may have ended meanwhile. The name, in parentheses, may have spaces; the policy is field 41, proc(5).
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            let (before, after) = stat.rsplit_once(')')?;
            let name = before.split_once('(')?.1.to_owned();
            Some((name, after.split_whitespace().nth(41 - 3)?.parse().ok()?))
        };
        tasks.filter_map(thread).collect()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    /// Waits for its end.
    pub(crate) fn exit(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // In order if possible, so that coverage is written; a test that failed half-way leaves no process behind.
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
            for _ in 0..200 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits for the end of a process.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("its status") {
            return status;
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("the process does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a process has written to standard error.
pub(crate) fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    text
}

pub(crate) fn floats(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
