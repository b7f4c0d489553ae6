//! When to stop: SIGTERM and SIGINT, and what follows from them; and SIGHUP, which asks for something else.
//!
//! [`Lifecycle`] is shared by whoever needs to know that the end is near. Deliberately absent: what to do about it
//! (`http::server` lets requests finish, `cli::serve` flushes the cache).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Whether the process is stopping, how many requests are in flight, and how many were answered.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    stopping: AtomicBool,
    in_flight: AtomicUsize,
    answered: AtomicU64,
    failed: AtomicU64,
    idle: Notify,
    stop: Notify,
}

impl Lifecycle {
    /// From here on `/ready` says no, and connections close after their response.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
        self.0.stop.notify_waiters();
    }

    /// Whether [`Lifecycle::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    /// Waits for [`Lifecycle::stop`].
    pub async fn stopped(&self) {
        // Registered before the look, or it could be called in between, unnoticed.
        let notified = self.0.stop.notified();
        let mut notified = std::pin::pin!(notified);
        notified.as_mut().enable();
        if !self.is_stopping() {
            notified.await;
        }
    }

    /// Counts a request until the guard is dropped.
    pub fn enter(&self) -> InFlight {
        self.0.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(self.clone())
    }

    /// Counts an answer, probes left out; 500 and above is a failure.
    pub fn answered(&self, status: u16) {
        self.0.answered.fetch_add(1, Ordering::Relaxed);
        self.0.failed.fetch_add(u64::from(status >= 500), Ordering::Relaxed);
    }

    /// Answers since the start, and how many of them were failures.
    pub fn answers(&self) -> (u64, u64) {
        (self.0.answered.load(Ordering::Relaxed), self.0.failed.load(Ordering::Relaxed))
    }

    /// Requests in flight, now.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until no request is in flight.
    pub async fn idle(&self) {
        loop {
            // Registered before the count is read, or the last guard could drop in between, unnoticed.
            let notified = self.0.idle.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            if self.0.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct InFlight(Lifecycle);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.0.idle.notify_waiters();
        }
    }
}

/// The signals that end the process. Registered once, so that none is missed between the first and the second.
#[derive(Debug)]
pub struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes over the signals; from here on they no longer end the process by themselves.
    pub fn register() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for the next signal; its name.
    pub async fn next(&mut self) -> &'static str {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
        #[cfg(not(unix))]
        match tokio::signal::ctrl_c().await {
            Ok(()) => "Ctrl-C",
            // Without a way to hear of it, waiting forever is the only honest answer.
            Err(_) => std::future::pending().await,
        }
    }
}

/// SIGHUP, by which a service is told to look at its models again.
#[derive(Debug)]
pub struct Hangups(#[cfg(unix)] Option<tokio::signal::unix::Signal>);

impl Hangups {
    /// Takes over the signal; from here on it no longer ends the process. On a terminal it still does: there it says that
    /// the terminal is gone, and a service that stayed would hold its port unseen.
    pub fn register() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use std::io::IsTerminal as _;
            use tokio::signal::unix::{SignalKind, signal};
            let on_terminal = std::io::stderr().is_terminal();
            Ok(Self((!on_terminal).then(|| signal(SignalKind::hangup())).transpose()?))
        }
        #[cfg(not(unix))]
        Ok(Self())
    }

    /// Waits for the next one; for ever where it is not taken over.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.0 {
            signal.recv().await;
            return;
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn stopped_waits_for_the_stop_and_is_over_after_it() {
        let lifecycle = Lifecycle::default();
        let waiting = tokio::spawn({
            let lifecycle = lifecycle.clone();
            async move { lifecycle.stopped().await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        lifecycle.stop();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("in time").expect("no panic");
        lifecycle.stopped().await;
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_guard() {
        let lifecycle = Lifecycle::default();
        let guard = lifecycle.enter();
        let waiting = tokio::spawn({
            let lifecycle = lifecycle.clone();
            async move { lifecycle.idle().await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!waiting.is_finished());
        drop(guard);
        tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("in time").expect("no panic");
        lifecycle.idle().await;
    }
}
