//! Load: closed loops, which find what the service can carry, and open ones, which do not care whether it can.
//!
//! In an open loop requests are due at fixed times, and latency runs from then: a service that stalls is charged for all
//! that was due meanwhile (no coordinated omission), and so is a generator that is late. How late it was is kept as well.

use crate::client::{Ask, Failure, Pool, Reply};
use crate::table::quantile;
use crate::texts::{Random, text};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// 200.
    Good,
    /// 429 or 503 with `Retry-After`.
    Rejected,
    /// 429 or 503 that does not say when to come back.
    RejectedBare,
    /// 504.
    Expired,
    /// Another status.
    Other(u16),
    /// No answer.
    Failed(Failure),
}

impl End {
    pub(crate) fn of(result: &Result<Reply, Failure>) -> Self {
        match result {
            Ok(reply) => match (reply.status, reply.retry_after) {
                (200, _) => Self::Good,
                (429 | 503, true) => Self::Rejected,
                (429 | 503, false) => Self::RejectedBare,
                (504, _) => Self::Expired,
                (status, _) => Self::Other(status),
            },
            Err(failure) => Self::Failed(*failure),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// When it was due, from the beginning of the loop.
    pub(crate) due: Duration,
    /// How much later than that it was begun.
    pub(crate) lag: Duration,
    /// From when it was due to the last byte of the answer.
    pub(crate) latency: Duration,
    pub(crate) end: End,
}

/// What came of a loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<Sample>);

impl Samples {
    pub(crate) fn count(&self, end: End) -> usize {
        self.0.iter().filter(|sample| sample.end == end).count()
    }

    /// Those that were due from `from` to before `to`.
    pub(crate) fn between(&self, from: Duration, to: Duration) -> Self {
        Self(self.0.iter().filter(|sample| (from..to).contains(&sample.due)).copied().collect())
    }

    /// Latencies of the requests that ended so.
    pub(crate) fn latencies(&self, end: End) -> Vec<Duration> {
        self.0.iter().filter(|sample| sample.end == end).map(|sample| sample.latency).collect()
    }

    pub(crate) fn lag_p99(&self) -> Duration {
        let lags: Vec<Duration> = self.0.iter().map(|sample| sample.lag).collect();
        quantile(&lags, 0.99).unwrap_or_default()
    }

    /// How many ended how, for people.
    pub(crate) fn summary(&self) -> String {
        let mut ends: Vec<(String, usize)> = Vec::new();
        for sample in &self.0 {
            let name = match sample.end {
                End::Good => "200".to_owned(),
                End::Rejected => "rejected".to_owned(),
                End::RejectedBare => "rejected without Retry-After".to_owned(),
                End::Expired => "504".to_owned(),
                End::Other(status) => status.to_string(),
                End::Failed(failure) => format!("{failure:?}"),
            };
            match ends.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => ends.push((name, 1)),
            }
        }
        ends.sort_by_key(|end| std::cmp::Reverse(end.1));
        ends.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    }
}

/// Asks at fixed times, phase after phase: so many requests a second for so long. A phase begins when its time has come,
/// whether those of the one before are answered or not.
pub(crate) async fn open_loop(pool: &Pool, phases: &[(f64, Duration)], mut next: impl FnMut() -> Ask) -> Samples {
    let samples = Arc::new(Mutex::new(Vec::new()));
    let mut asked = JoinSet::new();
    let start = Instant::now();
    let mut begun = Duration::ZERO;
    for &(rate, lasts) in phases {
        let count = (rate * lasts.as_secs_f64()) as u64;
        for i in 0..count {
            let due = begun + Duration::from_secs_f64(i as f64 / rate);
            // What is due already goes without a pause, so that a late generator catches up.
            if start.elapsed() < due {
                tokio::time::sleep_until(start + due).await;
            }
            let (pool, ask, samples) = (pool.clone(), next(), Arc::clone(&samples));
            asked.spawn(async move {
                let lag = start.elapsed().saturating_sub(due);
                let end = End::of(&pool.ask(&ask).await);
                let latency = start.elapsed().saturating_sub(due);
                samples.lock().unwrap_or_else(|e| e.into_inner()).push(Sample { due, lag, latency, end });
            });
            while asked.try_join_next().is_some() {}
        }
        begun += lasts;
        tokio::time::sleep_until(start + begun).await;
    }
    asked.join_all().await;
    Samples(std::mem::take(&mut *samples.lock().unwrap_or_else(|e| e.into_inner())))
}

/// `clients` that ask, one request after another, for a while; good answers a second.
pub(crate) async fn closed_loop(
    pool: &Pool,
    clients: usize,
    lasts: Duration,
    next: impl Fn(&mut Random) -> Ask + Clone + Send + 'static,
    seed: u64,
) -> f64 {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for client in 0..clients {
        let (pool, next) = (pool.clone(), next.clone());
        let mut random = Random::new(seed ^ ((client as u64 + 1) << 32));
        running.spawn(async move {
            let mut good = 0_u64;
            while start.elapsed() < lasts {
                let ask = next(&mut random);
                let end = End::of(&pool.ask(&ask).await);
                // What is answered after the end was partly computed after it.
                good += u64::from(end == End::Good && start.elapsed() <= lasts);
            }
            good
        });
    }
    let good: u64 = running.join_all().await.into_iter().sum();
    good as f64 / lasts.as_secs_f64()
}

/// An embed of a text that no cache has.
pub(crate) fn new_embed(random: &mut Random) -> Ask {
    Ask::embed(&text(random))
}

/// How many clients in a closed loop get the most out of the service, and how much that is, in answers a second.
pub(crate) async fn peak(pool: &Pool, lasts: Duration, seed: u64) -> (usize, f64) {
    let mut best = (1, 0.0);
    for clients in [4, 16, 64] {
        let rate = closed_loop(pool, clients, lasts, new_embed, seed + clients as u64).await;
        eprintln!("   {clients} clients: {rate:.0} embeds a second");
        if rate > best.1 {
            best = (clients, rate);
        }
    }
    best
}
