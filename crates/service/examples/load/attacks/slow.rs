//! Clients that take their time: with headers, with a body, with everything, with reading.

use super::{REQUEST_TIME, Seen, saw};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

const BYTE_EVERY: Duration = Duration::from_secs(1);

/// How long time may take to end a connection without a request: longer than load balancers keep theirs, 60 s, and not
/// much longer.
const IDLE_MAX: Duration = Duration::from_secs(90);

const HEADERS: &[u8] = b"POST /api/v1/embed HTTP/1.1\r\nhost: load\r\nx-slow: ";
const BODY: &[u8] =
    b"POST /api/v1/embed HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{";

pub(super) async fn headers(address: SocketAddr, count: usize, until: Instant) -> Seen {
    many(count, move || trickle(address, HEADERS, until)).await
}

pub(super) async fn bodies(address: SocketAddr, count: usize, until: Instant) -> Seen {
    many(count, move || trickle(address, BODY, until)).await
}

pub(super) async fn idle(address: SocketAddr, count: usize, until: Instant) -> Seen {
    many(count, move || trickle(address, b"", until)).await
}

/// The documentation's specification is the largest answer that needs no body.
pub(super) async fn readers(address: SocketAddr, count: usize, until: Instant) -> Seen {
    let ask = "GET /openapi.json HTTP/1.1\r\nhost: load\r\n\r\n".repeat(20);
    many(count, move || {
        let ask = ask.clone();
        async move {
            let Ok(mut stream) = TcpStream::connect(address).await else { return "refused".to_owned() };
            let _ = stream.write_all(ask.as_bytes()).await;
            tokio::time::sleep_until(until).await;
            // What was in the buffers of the two sockets is there in any case.
            let mut got = 0;
            let mut buffer = vec![0; 1 << 16];
            while let Ok(Ok(read @ 1..)) =
                tokio::time::timeout(Duration::from_millis(1), stream.read(&mut buffer)).await
            {
                got += read;
            }
            format!("got {} MB or less", got.div_ceil(1_000_000))
        }
    })
    .await
}

async fn many<F>(count: usize, one: impl Fn() -> F) -> Seen
where
    F: Future<Output = String> + Send + 'static,
{
    let mut running = JoinSet::new();
    for _ in 0..count {
        running.spawn(one());
    }
    let mut seen = Seen::new();
    running.join_all().await.into_iter().for_each(|what| saw(&mut seen, what));
    seen
}

/// Sends `first`, then a byte a second, or nothing where there is no beginning; what had become of it at the end.
async fn trickle(address: SocketAddr, first: &'static [u8], until: Instant) -> String {
    match closed_after(address, first, until).await {
        Some(Ok((time, status))) => format!("closed after {} s ({status})", time.as_secs()),
        Some(Err(())) => "refused".to_owned(),
        None => "still open at the end".to_owned(),
    }
}

/// When the service closed the connection, and the status that it gave before; `Err` where it was not accepted.
async fn closed_after(
    address: SocketAddr,
    first: &'static [u8],
    until: Instant,
) -> Option<Result<(Duration, String), ()>> {
    let Ok(mut stream) = TcpStream::connect(address).await else { return Some(Err(())) };
    let start = Instant::now();
    if stream.write_all(first).await.is_err() {
        return Some(Ok((start.elapsed(), "no answer".to_owned())));
    }
    let (mut reader, mut writer) = stream.into_split();
    let mut answer = Vec::new();
    let mut next = Instant::now() + BYTE_EVERY;
    loop {
        let mut buffer = [0; 1024];
        tokio::select! {
            read = reader.read(&mut buffer) => match read {
                Ok(read @ 1..) => answer.extend_from_slice(&buffer[..read]),
                _ => {
                    let answer = String::from_utf8_lossy(&answer);
                    let status = answer.split(' ').nth(1).unwrap_or("no answer").to_owned();
                    return Some(Ok((start.elapsed(), status)));
                }
            },
            () = tokio::time::sleep_until(next) => {
                next += BYTE_EVERY;
                if !first.is_empty() {
                    // Whether it still can: the reader sees it.
                    let _ = writer.write_all(b"a").await;
                }
            }
            () = tokio::time::sleep_until(until) => return None,
        }
    }
}

/// One of each kind, until it is closed: what, the bar, after how long.
pub(super) async fn outlast(address: SocketAddr) -> Vec<(&'static str, Duration, Option<Duration>)> {
    let until = Instant::now() + Duration::from_secs(200);
    let one = async |first| match closed_after(address, first, until).await {
        Some(Ok((time, _))) => Some(time),
        _ => None,
    };
    let (headers, body, idle, after_one) =
        tokio::join!(one(HEADERS), one(BODY), one(b""), one(b"GET /health HTTP/1.1\r\nhost: load\r\n\r\n"));
    vec![
        ("a byte of headers a second", IDLE_MAX, headers),
        ("a byte of a body a second (NEXUS_REQUEST_TIMEOUT_MS=30000)", REQUEST_TIME + Duration::from_secs(5), body),
        ("an idle socket", IDLE_MAX, idle),
        ("one request, then a byte of headers a second", IDLE_MAX, after_one),
    ]
}
