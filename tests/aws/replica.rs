//! Starting the service with what it needs of AWS, and reading what it logs.

use crate::places::{dynamodb_url, s3_url};
use crate::support::{PATIENCE, Service, nexus};
use serde_json::Value;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How a replica is started: credentials that are taken, both servers, nothing cached, but for what is changed.
#[derive(Clone)]
pub(crate) struct Start {
    env: Vec<(String, String)>,
    folder: Option<PathBuf>,
    file_bytes_max: Option<u64>,
}

impl Start {
    pub(crate) fn new() -> Self {
        let start = Self { env: Vec::new(), folder: None, file_bytes_max: None };
        start
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            // Nothing of who runs the tests.
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
            .env("AWS_ENDPOINT_URL_S3", &s3_url())
            .env("AWS_ENDPOINT_URL_DYNAMODB", &dynamodb_url())
            .env("NEXUS_CACHE", "off")
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(found, _)| found != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Unsets a variable.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.env.retain(|(found, _)| found != name);
        self
    }

    /// Keeps what it keeps in `folder`, rather than in one of its own.
    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// No file may become longer: what an unprivileged test can do for a full disk.
    pub(crate) fn file_bytes_max(mut self, bytes: u64) -> Self {
        self.file_bytes_max = Some(bytes);
        self
    }

    /// Starts `nexus serve`.
    pub(crate) fn start(&self) -> Replica {
        let own = tempfile::tempdir().expect("a folder");
        let mut command = self.command(&["serve"]);
        command.env("NEXUS_CACHE_DIR", self.folder.as_deref().unwrap_or(own.path()));
        let log = Arc::<Mutex<Vec<String>>>::default();
        let lines = log.clone();
        let service = Service::spawn(command, move |line| {
            eprintln!("{line}");
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        });
        Replica { service, log, _own: own }
    }

    /// Runs another command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        if let Some(folder) = &self.folder {
            command.env("NEXUS_CACHE_DIR", folder);
        }
        command.stdin(Stdio::null()).output().expect("the binary starts")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = nexus();
        if let Some(bytes) = self.file_bytes_max {
            // In blocks of 512 bytes. A file beyond is an error to handle only where the signal is ignored.
            let limited = format!(r#"trap "" XFSZ; ulimit -f {}; exec "$@""#, bytes / 512);
            let mut shell = Command::new("sh");
            shell.args(["-c", &limited, "sh"]).arg(command.get_program()).env_clear();
            for (name, value) in command.get_envs() {
                if let Some(value) = value {
                    shell.env(name, value);
                }
            }
            if let Some(folder) = command.get_current_dir() {
                shell.current_dir(folder);
            }
            command = shell;
        }
        command.args(args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A running service and its log.
pub(crate) struct Replica {
    service: Service,
    log: Arc<Mutex<Vec<String>>>,
    _own: TempDir,
}

impl Deref for Replica {
    type Target = Service;

    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Replica {
    /// The same, once it is ready.
    pub(crate) fn ready(self) -> Self {
        let answer = self.wait_while_loading();
        assert_eq!(answer["status"], "ready", "{answer}");
        self
    }

    /// What `/ready` says once `wanted` is so.
    pub(crate) fn ready_when(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let answer: Value = self.get("/ready").json().expect("JSON");
            if wanted(&answer) {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "{answer}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The lines logged so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it with SIGTERM, and sees that the end is a good one.
    pub(crate) fn stop(mut self) {
        self.service.signal("TERM");
        let status = self.service.exit();
        assert!(status.success(), "{status}");
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.service.signal("KILL");
        self.service.exit();
    }
}
