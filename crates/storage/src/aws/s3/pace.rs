//! How fast bytes arrive: a range that is too slow is dropped and asked for again.
//!
//! Too slow is what is below the floor and at the same time below half of what the other connections get: on a slow line
//! all of them are, and new connections would not help. Only time spent waiting for the network counts, as a slow disk is
//! no reason either.

use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// What all connections of a download do, together.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    bytes: AtomicU64,
    connections: AtomicU64,
}

/// Watches one response.
pub(super) struct Pace<'a> {
    traffic: &'a Traffic,
    bytes_per_s_min: u64,
    window: Duration,
    waited: Duration,
    bytes: u64,
    began: Instant,
    traffic_began: u64,
}

/// What comes next.
pub(super) enum Next {
    Chunk(Bytes),
    End,
    Broken(BoxError),
    /// So many bytes in the window.
    Slow(u64),
}

impl<'a> Pace<'a> {
    pub(super) fn new(traffic: &'a Traffic, bytes_per_s_min: u64, window: Duration) -> Self {
        traffic.connections.fetch_add(1, Ordering::Relaxed);
        let traffic_began = traffic.bytes.load(Ordering::Relaxed);
        Self {
            traffic,
            bytes_per_s_min,
            window,
            waited: Duration::ZERO,
            bytes: 0,
            began: Instant::now(),
            traffic_began,
        }
    }

    pub(super) async fn next(&mut self, body: &mut ByteStream) -> Next {
        loop {
            let began = Instant::now();
            let next = timeout(self.window.saturating_sub(self.waited), body.next()).await;
            self.waited += began.elapsed();
            match next {
                Ok(Some(Ok(chunk))) => {
                    self.bytes += chunk.len() as u64;
                    self.traffic.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    // What came is kept. If that is too slow, the next call finds so as soon as it would have to wait.
                    if self.waited >= self.window {
                        self.judge();
                    }
                    return Next::Chunk(chunk);
                }
                Ok(Some(Err(error))) => return Next::Broken(error.into()),
                Ok(None) => return Next::End,
                Err(_) => {
                    let bytes = self.bytes;
                    if self.judge() {
                        return Next::Slow(bytes);
                    }
                }
            }
        }
    }

    /// Whether this window was too slow; begins the next one if not.
    fn judge(&mut self) -> bool {
        let others = self.traffic.bytes.load(Ordering::Relaxed) - self.traffic_began;
        let connections = self.traffic.connections.load(Ordering::Relaxed).max(1);
        if is_slow(self.bytes, self.waited, self.bytes_per_s_min, others / connections, self.began.elapsed()) {
            return true;
        }
        (self.waited, self.bytes, self.began) = (Duration::ZERO, 0, Instant::now());
        self.traffic_began = self.traffic.bytes.load(Ordering::Relaxed);
        false
    }
}

impl Drop for Pace<'_> {
    fn drop(&mut self) {
        self.traffic.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// `bytes` came in `waited`; a connection got `average` bytes in `elapsed`.
fn is_slow(bytes: u64, waited: Duration, bytes_per_s_min: u64, average: u64, elapsed: Duration) -> bool {
    let rate = bytes as f64 / waited.as_secs_f64().max(1e-3);
    let usual = average as f64 / elapsed.as_secs_f64().max(1e-3);
    bytes == 0 || (rate < bytes_per_s_min as f64 && rate < usual / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_is_slower_than_the_floor_and_than_the_others() {
        let s = Duration::from_secs;
        assert!(is_slow(0, s(10), 1, 0, s(10)), "nothing at all");
        assert!(is_slow(500, s(10), 100, 2000, s(10)));
        assert!(!is_slow(1500, s(10), 100, 10_000, s(10)), "above the floor");
        assert!(!is_slow(500, s(10), 100, 600, s(10)), "all are slow");
    }
}
