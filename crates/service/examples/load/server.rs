//! The service as a process: started, looked at from outside, ended.
//!
//! What it uses is read from /proc, which it can not gloss over; what it counts is read from `GET /metrics`.

use crate::Result;
use crate::client::Pool;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the service may take until it is ready.
const READY_IN: Duration = Duration::from_secs(60);

/// How this run goes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    nexus: PathBuf,
    /// Shorter everywhere.
    pub(crate) quick: bool,
    server_core: String,
    client_core: String,
}

impl Plan {
    pub(crate) fn of_environment() -> Result<Self> {
        let of = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let nexus = std::env::var_os("NEXUS_LOAD_BINARY").ok_or("NEXUS_LOAD_BINARY names the release binary")?;
        Ok(Self {
            nexus: nexus.into(),
            quick: !matches!(of("NEXUS_LOAD_QUICK", "").as_str(), "" | "0"),
            server_core: of("NEXUS_LOAD_SERVER_CORE", "0"),
            client_core: of("NEXUS_LOAD_CLIENT_CORE", "1"),
        })
    }

    /// The binary.
    pub(crate) fn nexus(&self) -> &Path {
        &self.nexus
    }

    /// `full`, or `quick` in a rehearsal.
    pub(crate) fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    pub(crate) fn seconds(&self, full: u64, quick: u64) -> Duration {
        Duration::from_secs(self.pick(full, quick))
    }

    /// How busy the two cores are when nothing of this program runs, as a share: figures of a machine that does other
    /// work are figures of that work, too.
    pub(crate) fn busy_before(&self) -> Result<f64> {
        let before = self.ticks()?;
        std::thread::sleep(Duration::from_secs(2));
        let after = self.ticks()?;
        Ok((after.0 - before.0) / (after.1 - before.1).max(1.0))
    }

    /// Ticks of the two cores: those in which they did something, and all.
    fn ticks(&self) -> Result<(f64, f64)> {
        let (mut busy, mut all) = (0.0, 0.0);
        for line in std::fs::read_to_string("/proc/stat")?.lines() {
            let Some((core, rest)) = line.strip_prefix("cpu").and_then(|line| line.split_once(' ')) else { continue };
            if core == self.server_core || core == self.client_core {
                // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in these already.
                let ticks: Vec<f64> = rest.split_whitespace().take(8).filter_map(|it| it.parse().ok()).collect();
                let sum: f64 = ticks.iter().sum();
                all += sum;
                busy += sum - ticks.get(3).unwrap_or(&0.0) - ticks.get(4).unwrap_or(&0.0);
            }
        }
        Ok((busy, all))
    }

    pub(crate) fn pin_this_process(&self) -> Result<()> {
        let pid = std::process::id().to_string();
        let pinned = Command::new("taskset").args(["-cp", &self.client_core, &pid]).output()?;
        if !pinned.status.success() {
            return Err(format!("taskset: {}", String::from_utf8_lossy(&pinned.stderr).trim()).into());
        }
        Ok(())
    }
}

/// A service that runs. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: TempDir,
}

impl Server {
    /// Starts it, with a cache folder of its own, and waits until it is ready.
    pub(crate) async fn start(plan: &Plan, settings: &[(&str, &str)]) -> Result<Self> {
        let server = Self::spawn(plan, settings, None)?;
        server.until_ready().await?;
        Ok(server)
    }

    /// Starts it, over `cache_folder` if there is one.
    pub(crate) fn spawn(plan: &Plan, settings: &[(&str, &str)], cache_folder: Option<&Path>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new("taskset");
        command.args(["-c", &plan.server_core]).arg(&plan.nexus).arg("serve");
        // Nothing of the settings that the machine may have for a service of its own.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("NEXUS_") || name == "MODEL_BUCKET" || name == "EMBEDDING_CACHE_TABLE" {
                command.env_remove(name);
            }
        }
        command
            .env("NEXUS_PORT", "0")
            .env("NEXUS_DEVICE", "cpu")
            .env("NEXUS_CACHE_DIR", cache_folder.unwrap_or(folder.path()))
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let Some(address) = line.trim().strip_prefix("listening on http://").and_then(|it| it.parse().ok()) else {
            let _ = child.wait();
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            return Err(format!("the service did not start: {line}{log}").into());
        };
        Ok(Self { child, address, folder })
    }

    pub(crate) async fn until_ready(&self) -> Result<()> {
        let pool = Pool::new(self.address);
        let deadline = Instant::now() + READY_IN;
        while !pool.get("/ready").await.is_ok_and(|reply| reply.status == 200) {
            if Instant::now() > deadline {
                return Err(format!("not ready within {READY_IN:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }

    /// Open file descriptors.
    pub(crate) fn open_fds(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// What they are, to find the one that is too many.
    pub(crate) fn which_fds(&self) -> Result<Vec<String>> {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?;
        Ok(fds.filter_map(|fd| Some(std::fs::read_link(fd.ok()?.path()).ok()?.display().to_string())).collect())
    }

    /// Waits until no more file descriptors are open than `fds`; how many are when the time is over.
    pub(crate) async fn fds_back_to(&self, fds: usize, within: Duration) -> Result<usize> {
        let deadline = Instant::now() + within;
        loop {
            let open = self.open_fds()?;
            if open <= fds || Instant::now() > deadline {
                return Ok(open);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join("log"))?)
    }

    /// Waits for a line of the log that has `part` in it. Whether it came.
    pub(crate) async fn log_has(&self, part: &str, within: Duration) -> Result<bool> {
        let deadline = Instant::now() + within;
        while !self.log()?.contains(part) {
            if Instant::now() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) -> Result<()> {
        Command::new("kill").args(["-TERM", &self.pid().to_string()]).status()?;
        Ok(())
    }

    /// SIGKILL, and waits for it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended.
    pub(crate) async fn exit(&mut self, within: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What it counts, now; `None` for a service without `/metrics`.
    pub(crate) async fn metrics(&self) -> Option<Metrics> {
        let reply = Pool::new(self.address).get("/metrics").await.ok()?;
        (reply.status == 200).then(|| Metrics(String::from_utf8_lossy(&reply.body).into_owned()))
    }

    /// Texts that were handed to a device since the start, of a model (`embedder`, `reranker`). Of a service without
    /// `/metrics`, both models' together, from the log; that is complete only when the service has ended.
    pub(crate) async fn texts_computed(&self, model: &str) -> Result<f64> {
        if let Some(metrics) = self.metrics().await {
            return Ok(metrics.sum("nexus_batch_sequences_sum", &[("model", model)]));
        }
        let jobs = |line: &str| line.split_once("\"queue_jobs\":")?.1.split([',', '}']).next()?.parse::<f64>().ok();
        Ok(self.log()?.lines().filter_map(jobs).sum())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// An answer of `GET /metrics`.
#[derive(Debug)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// The sum over the samples of `name` that have all of `labels`.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matching = |line: &&str| {
            let Some(rest) = line.strip_prefix(name) else { return false };
            rest.starts_with(['{', ' '])
                && labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
        };
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        self.0.lines().filter(matching).filter_map(value).sum()
    }
}
