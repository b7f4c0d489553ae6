//! One log line a minute that says how the service does. Each field is a number, so that the metric filters of a log
//! service make metrics of them (deploy/cdk/lib/metrics.ts names the fields that it takes).
//!
//! Counters are of the time since the line before. Deliberately absent: what is counted for `/metrics` (`monitor`).

use crate::shutdown::Lifecycle;
use crate::wiring::Running;
use nexus_engine::{QueueWaits, ReplicaCounts, ReplicaState};
use nexus_storage::{CacheStats, Circuit};
use std::convert::Infallible;
use std::io::IsTerminal as _;
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(60);

/// What is counted since the start, at the line before.
#[derive(Default)]
pub struct Stats {
    cache: CacheStats,
    answers: (u64, u64),
    replicas: ReplicaCounts,
}

impl Stats {
    /// Logs a line now and then, for ever.
    pub async fn report(&mut self, running: &Running, lifecycle: &Lifecycle) -> Infallible {
        loop {
            tokio::time::sleep(EVERY).await;
            self.line(running, lifecycle);
        }
    }

    /// Logs what was since the line before.
    pub fn line(&mut self, running: &Running, lifecycle: &Lifecycle) {
        let QueueWaits { jobs, p50_ms, p95_ms, max_ms } = running.take_queue_waits();
        let (cache, answers) = (running.cache.stats(), lifecycle.answers());
        let (status, replicas) = (running.models.replicas.status(), running.models.replicas.counts());
        let replicas_up = status.iter().filter(|it| !matches!(it.state, ReplicaState::Failed { .. })).count();
        let before = std::mem::replace(self, Self { cache, answers, replicas });
        let failures = |stats: &CacheStats| stats.read_failures + stats.write_failures;
        let breaker_open = u8::from(cache.reads == Circuit::Open || cache.writes == Circuit::Open);
        macro_rules! stats {
            ($level:ident) => {
                tracing::$level!(
                    requests = answers.0 - before.answers.0,
                    requests_failed = answers.1 - before.answers.1,
                    requests_in_flight = lifecycle.in_flight(),
                    queue_jobs = jobs,
                    queue_wait_ms_p50 = p50_ms,
                    queue_wait_ms_p95 = p95_ms,
                    queue_wait_ms_max = max_ms,
                    queued_tokens = running.queued_tokens(),
                    replicas = status.len(),
                    replicas_up,
                    batches = replicas.batches - before.replicas.batches,
                    batch_tokens = replicas.batch_tokens - before.replicas.batch_tokens,
                    device_retries = replicas.device_retries - before.replicas.device_retries,
                    device_failures = replicas.device_failures - before.replicas.device_failures,
                    cache_hits = cache.hits - before.cache.hits,
                    cache_misses = cache.misses - before.cache.misses,
                    cache_damaged = cache.damaged.saturating_sub(before.cache.damaged),
                    cache_failures = failures(&cache).saturating_sub(failures(&before.cache)),
                    cache_timeouts = cache.read_timeouts.saturating_sub(before.cache.read_timeouts),
                    cache_skips = cache.read_skips.saturating_sub(before.cache.read_skips),
                    cache_dropped = cache.dropped.saturating_sub(before.cache.dropped),
                    cache_writes_waiting = cache.waiting,
                    cache_breaker_open = breaker_open,
                    "stats"
                )
            };
        }
        // A line a minute is for machines; on a terminal it would hide what happened before it.
        if std::io::stderr().is_terminal() {
            stats!(debug);
        } else {
            stats!(info);
        }
    }
}
