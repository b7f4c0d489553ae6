//! `nexus serve`: bind, start loading, answer, and end in order.

use super::{Failure, ServeArgs, ready};
use crate::api_keys::ApiKeys;
use crate::device_sets::DeviceSets;
use crate::http::tls::Tls;
use crate::http::{self, Admin, App, Budget, Connections, Limits, Resident, server};
use crate::monitor::Monitor;
use crate::settings::ListenSettings;
use crate::shutdown::{Hangups, Lifecycle, Signals};
use crate::stats::Stats;
use crate::traces::Traces;
use crate::{limits, telemetry, terminal, wiring};
use nexus_engine::Reloader;
use nexus_storage::CacheStats;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections that may wait to be accepted; the system may allow fewer. With the usual 128, a thousand clients that come at once,
/// as after a restart, have to try again a second later, or are connected on one side only.
const BACKLOG: u32 = 4096;

/// For how long at most requests in flight are told that no device is left, before the process ends for that.
const FAILURE_GRACE: Duration = Duration::from_secs(5);

pub(super) fn run(args: &ServeArgs) -> Result<(), Failure> {
    args.settings.check().and_then(|()| args.http.check()).map_err(Failure::Usage)?;
    // Before the runtime, and given up after it: what sends them blocks.
    let traces = args.http.otlp_endpoint.as_deref().map(Traces::start).transpose().map_err(Failure::Usage)?;
    telemetry::start(args.settings.log.log_level.filter(), traces.as_ref());
    let runtime = super::runtime()?;
    let result = runtime.block_on(serve(args));
    // Work that can not be interrupted, such as the parsing of a large body, has no one left to answer to. The process ends
    // now; a runtime that ends before it would make threads panic that wait for a download on it.
    std::mem::forget(runtime);
    drop(traces);
    result
}

async fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let ServeArgs { http, settings } = args;
    let unwatched = |error: io::Error| Failure::Run(format!("can not watch signals: {error}"));
    let mut signals = Signals::register().map_err(unwatched)?;
    let hangups = Hangups::register().map_err(unwatched)?;
    let tls = match (&http.listen.tls_cert_file, &http.listen.tls_key_file) {
        (Some(certificate), Some(key)) => Some(Arc::new(Tls::open(certificate, key).map_err(Failure::Usage)?)),
        _ => None,
    };
    // The port comes first: /health answers while models load, and a taken port is known before any work is done.
    let listener = bind(&http.listen).await?;
    let settled = http.api_keys.as_ref().map_or(&[][..], |list| &list.0);
    let keys = ApiKeys::open(settled, http.api_keys_file.as_deref()).map_err(Failure::Usage)?.map(Arc::new);
    if keys.is_none() && listener.local_addr().is_ok_and(|address| !address.ip().to_canonical().is_loopback()) {
        tracing::warn!(
            "NEXUS_HOST={} may be reached from other machines, and whoever reaches it may ask; NEXUS_API_KEYS or \
             NEXUS_API_KEYS_FILE says who may",
            http.listen.host
        );
    }
    if settings.models.serves_built_in() {
        tracing::info!("MODEL_BUCKET is unset: serving the small built-in models");
    }
    let monitor = Arc::new(Monitor::default());
    let running = wiring::start(settings, monitor.clone()).map_err(|error| Failure::Run(error.to_string()))?;

    let targets = Arc::new(Resident::default());
    wiring::targets::open(http, settings, Arc::clone(&targets));
    let device_sets = Arc::new(DeviceSets::default());
    wiring::search::open(http, settings, Arc::clone(&device_sets));

    let lifecycle = Lifecycle::default();
    let connections = Connections::new(limits::connections(http.connections_max.get()));
    let transport = server::Transport { connections: connections.clone(), tls: tls.clone() };
    let reported = lifecycle.clone();
    let app = App {
        models: Arc::clone(&running.models),
        lifecycle: lifecycle.clone(),
        limits: Limits::from(http),
        requests: Budget::new(http.requests_max.get()),
        bodies: Budget::new(http.bodies_bytes_max.as_usize()),
        connections,
        monitor: Arc::clone(&monitor),
        queue: Some(running.queue()),
        cache: Some(Arc::clone(&running.cache)),
        origins: http.cors_origins.clone().unwrap_or_default(),
        targets,
        device_sets,
        keys: keys.clone(),
        admin: http.admin_token.as_deref().map(|token| Admin::new(token, running.reloader().clone())),
    };
    announce(&listener, tls.is_some())?;

    let shutdown_timeout = http.shutdown_timeout();
    let stop = Notify::new();
    let serving = async {
        let router = http::router(Arc::new(app));
        let deadline = server::serve(listener, transport, router, lifecycle, stop.notified(), shutdown_timeout).await;
        finish(&running, deadline).await;
    };
    let signalled = async {
        let name = signals.next().await;
        tracing::info!(signal = name, "stopping; a second signal stops at once");
        stop.notify_one();
        signals.next().await;
        Failure::Interrupted
    };
    let mut stats = Stats::default();
    let watching = async {
        ready::watch(&running.models).await;
        std::future::pending::<()>().await;
    };
    let watching_keys = async {
        match &keys {
            Some(keys) => keys.watch().await,
            None => std::future::pending().await,
        }
    };
    let watching_tls = async {
        match &tls {
            Some(tls) => tls.watch().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        () = serving => {
            tracing::info!("stopped");
            Ok(())
        }
        failure = signalled => Err(failure),
        failure = fail(running.models.replicas.ended(), &stop, FAILURE_GRACE) => Err(failure),
        () = watching => Ok(()),
        () = watching_keys => Ok(()),
        () = watching_tls => Ok(()),
        never = monitor.watch() => match never {},
        never = reload_on(hangups, running.reloader()) => match never {},
        never = stats.report(&running, &reported) => match never {},
    };
    // The last minute counts as well.
    stats.line(&running, &reported);
    terminal::clear();
    if let Some(reason) = running.models.replicas.failure() {
        // What is on a device that failed can not be given back in order, and the system takes it back anyway.
        std::mem::forget(running);
        return ended.and(Err(no_device(&reason)));
    }
    ended
}

/// Waits until no device is left, stops, and gives it a moment.
async fn fail(ended: impl Future<Output = String>, stop: &Notify, grace: Duration) -> Failure {
    let reason = ended.await;
    tracing::error!(reason, "stopping: no device is left to run the models");
    stop.notify_one();
    tokio::time::sleep(grace).await;
    no_device(&reason)
}

/// A status other than 0, by which whoever started the process knows to start another.
fn no_device(reason: &str) -> Failure {
    Failure::Run(format!("no device is left to run the models: {reason}"))
}

/// Reloads the models at each SIGHUP. The engine logs what comes of it.
async fn reload_on(mut hangups: Hangups, reloader: &Reloader) -> Infallible {
    loop {
        hangups.next().await;
        tracing::info!(signal = "SIGHUP", "reloading the models");
        if let Err(refused) = reloader.reload().await {
            tracing::warn!(%refused, "the models are not reloaded");
        }
    }
}

async fn bind(listen: &ListenSettings) -> Result<TcpListener, Failure> {
    let ListenSettings { host, port, .. } = listen;
    listen_on(listen.bare_host(), *port).await.map_err(|error| {
        let setting = if error.kind() == std::io::ErrorKind::AddrInUse { "NEXUS_PORT" } else { "NEXUS_HOST" };
        Failure::Run(format!("can not listen on {host}:{port}: {error}; {setting} sets another"))
    })
}

/// The first of a host's addresses that can be listened on.
async fn listen_on(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut failure = io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address");
    for address in lookup_host((host, port)).await? {
        match listen_at(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // So that a service which is started again does not wait for connections of the one before. Elsewhere it means more.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// On standard output, for people and for programs that asked for any free port.
fn announce(listener: &TcpListener, tls: bool) -> Result<(), Failure> {
    let address = listener.local_addr().map_err(|error| Failure::Run(format!("the socket has no address: {error}")))?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
    let scheme = if tls { "https" } else { "http" };
    super::print(&format!("listening on {scheme}://{address}\n"))
}

/// Ends the engine and writes out the cache.
async fn finish(running: &wiring::Running, deadline: Instant) {
    if tokio::time::timeout_at(deadline, running.shutdown()).await.is_err() {
        tracing::warn!("the cache was not written in time");
    }
    let CacheStats { hits, misses, damaged, dropped, .. } = running.cache.stats();
    tracing::info!(hits, misses, damaged, dropped, "the cache, since the start");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn when_no_device_is_left_it_stops_and_fails() {
        let stop = Notify::new();
        let (tell, told) = tokio::sync::oneshot::channel::<String>();
        let failing = fail(async { told.await.expect("a reason") }, &stop, Duration::ZERO);
        let stopped = async {
            tell.send("fell off the bus".to_owned()).expect("it waits");
            stop.notified().await;
        };
        let (failure, ()) = tokio::join!(failing, stopped);
        assert!(matches!(failure, Failure::Run(line) if line.contains("fell off the bus")));
    }
}
