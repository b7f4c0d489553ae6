//! What the service does, as operators see it: counts and times since the start (`counted`), the last errors (`recent`), and
//! the last minutes (`series`). Endpoints told by the pattern of their route, models by what they do, so that what can be told
//! apart is bounded.
//!
//! Deliberately absent: HTTP (`http::metrics` and `http::status` write it down), and what can be asked for at any time, such as
//! what waits now. Log lines a minute are `stats`.

mod busy;
mod counted;
mod process;
mod recent;
mod series;

pub(crate) use counted::model_name;
pub use process::Process;
pub use recent::Failed;
pub use series::Point;
pub(crate) use series::{EVERY, now_ms};

use crate::http::Rejection;
use busy::Busy;
use counted::Counted;
use nexus_engine::{Observer, RanBatch, Role, Stage};
use prometheus_client::registry::Registry;
use recent::Recent;
use series::Series;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often the log says that requests are refused.
const REJECTIONS_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Counts and remembers.
#[derive(Debug)]
pub struct Monitor {
    started: Instant,
    registry: Registry,
    counted: Counted,
    recent: Recent,
    series: Series,
    busy: Busy,
    rejections_told_next_ms: AtomicU64,
}

/// A request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The pattern of its route.
    pub endpoint: &'a str,
    /// Its method.
    pub method: &'a str,
    /// The status of the answer; 499 where the client left before.
    pub status: u16,
    /// How long it took.
    pub took: Duration,
    /// Whether it was a load balancer or an operator that asked.
    pub probe: bool,
}

impl Default for Monitor {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nexus");
        let counted = Counted::new(&mut registry);
        Self {
            started: Instant::now(),
            registry,
            counted,
            recent: Recent::default(),
            series: Series::default(),
            busy: Busy::default(),
            rejections_told_next_ms: AtomicU64::new(0),
        }
    }
}

impl Monitor {
    /// Since when it counts.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// What is counted, in a form that is written down by its library.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A request is over.
    pub fn answered(&self, answered: Answered<'_>) {
        self.counted.answered(answered);
        if !answered.probe {
            self.series.answered(answered.took, answered.status >= 500);
        }
    }

    /// A request was refused for a bound. Whether it is time to say so.
    pub fn rejected(&self, rejection: Rejection) -> bool {
        self.counted.rejected(rejection);
        let now_ms = self.uptime().as_millis() as u64;
        let due = |next_ms: u64| (now_ms >= next_ms).then_some(now_ms + REJECTIONS_TOLD_EVERY.as_millis() as u64);
        self.rejections_told_next_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok()
    }

    /// A request was answered with an error of the service's.
    pub fn failed(&self, failed: Failed) {
        self.recent.push(failed);
    }

    /// A response was written.
    pub fn serialized(&self, role: Role, took: Duration) {
        self.counted.stage(role, "serialize", took);
    }

    /// Errors, the last one first.
    pub fn recent(&self) -> Vec<Arc<Failed>> {
        self.recent.list()
    }

    /// The part of the last seconds that each device has computed, by what it has since the start.
    pub fn busy_ratios(&self, busy: Vec<Duration>) -> Vec<f64> {
        self.busy.ratios(busy)
    }

    /// The last minutes, the oldest point first.
    pub fn points(&self) -> Vec<Point> {
        self.series.points()
    }

    /// Requests, failed ones, refused ones, and tokens, since the start.
    pub fn totals(&self) -> (u64, u64, u64, u64) {
        let (requests, failed) = self.series.totals();
        (requests, failed, self.counted.rejections(), self.counted.tokens())
    }

    /// Ends a point of the series every two seconds, for ever.
    pub async fn watch(&self) -> std::convert::Infallible {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.series.end_point(self.counted.tokens());
        }
    }
}

/// The work of the engine.
impl Observer for Monitor {
    fn stage(&self, role: Role, stage: Stage, took: Duration) {
        self.counted.stage(role, stage.name(), took);
    }

    fn ran(&self, batch: RanBatch) {
        self.counted.ran(batch);
    }
}
