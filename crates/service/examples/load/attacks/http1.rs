//! What goes wrong within HTTP/1.1: too much at once, headers without end, two lengths, no HTTP at all.

use super::{Seen, saw};
use crate::texts::Random;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

const DEPTH: usize = 1_000;
/// Longer than any answer here may take.
const ANSWER_IN: Duration = Duration::from_secs(5);
const HEADERS_BYTES: usize = 8 << 20;
/// What lies in the buffers of two sockets is no bound that the service can set: chunks are sent at a pace, so that little
/// more than what was read is sent when the answer comes.
const HEADERS_BYTES_BAR: usize = 2 << 20;
pub(super) const CHUNK_EVERY: Duration = Duration::from_millis(1);

/// Calls `once` at a pace until it is over. What takes longer than the pace is not caught up with.
async fn paced(seen: &mut Seen, until: Instant, every: Duration, mut once: impl AsyncFnMut() -> String) {
    while Instant::now() < until {
        let next = Instant::now() + every;
        saw(seen, once().await);
        tokio::time::sleep_until(next.min(until)).await;
    }
}

/// Everything that comes, until the service closes. Whether it did.
async fn read_to_end(stream: &mut TcpStream, within: Duration) -> (String, bool) {
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(within, stream.read_to_end(&mut answer)).await.is_ok();
    (String::from_utf8_lossy(&answer).into_owned(), closed)
}

pub(super) async fn pipelining(address: SocketAddr, until: Instant) -> Seen {
    let mut seen = Seen::new();
    let mut asks = "GET /health HTTP/1.1\r\nhost: load\r\n\r\n".repeat(DEPTH - 1);
    asks.push_str("GET /health HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n");
    paced(&mut seen, until, Duration::from_secs(1), async || {
        let Ok(stream) = TcpStream::connect(address).await else { return "refused".to_owned() };
        // Both at once: a service that reads no further until its answers are read would wait for ever.
        let (mut reader, mut writer) = stream.into_split();
        let mut answer = Vec::new();
        let (_, _) = tokio::join!(
            async { writer.write_all(asks.as_bytes()).await },
            tokio::time::timeout(ANSWER_IN, reader.read_to_end(&mut answer)),
        );
        format!("{} answers", String::from_utf8_lossy(&answer).matches("HTTP/1.1 200 OK").count())
    })
    .await;
    seen
}

pub(super) async fn oversized(address: SocketAddr, until: Instant) -> Seen {
    let mut seen = Seen::new();
    let (mut round, one, many) = (0, vec![b'a'; 1 << 14], "x-many: a\r\n".repeat(1_500));
    paced(&mut seen, until, Duration::from_millis(100), async || {
        round += 1;
        // One header without end, and headers without end.
        let (first, chunk) = match round % 2 {
            0 => ("GET /health HTTP/1.1\r\nhost: load\r\nx-large: ", one.as_slice()),
            _ => ("GET /health HTTP/1.1\r\nhost: load\r\n", many.as_bytes()),
        };
        flood(address, first.as_bytes(), chunk).await
    })
    .await;
    seen
}

/// Sends chunks until the service has had enough.
async fn flood(address: SocketAddr, first: &[u8], chunk: &[u8]) -> String {
    let Ok(stream) = TcpStream::connect(address).await else { return "not accepted".to_owned() };
    let (mut reader, mut writer) = stream.into_split();
    let mut sent = 0;
    let sending = async {
        if writer.write_all(first).await.is_ok() {
            while sent < HEADERS_BYTES && writer.write_all(chunk).await.is_ok() {
                sent += chunk.len();
                tokio::time::sleep(CHUNK_EVERY).await;
            }
        }
        // Closed by the service, which the reader sees; or it has taken everything.
        tokio::time::sleep(ANSWER_IN).await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        _ = reader.read_to_end(&mut answer) => {}
        () = sending => {}
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or("no answer").to_owned();
    match (sent < HEADERS_BYTES_BAR, status.as_str()) {
        (true, status) if status != "200" => format!("refused ({status}) before 2 MiB"),
        _ => format!("{status} after {} KiB", sent >> 10),
    }
}

/// Requests whose end is where one reads it: a proxy in front may read another.
const AMBIGUOUS: [(&str, &str); 7] = [
    ("CL, TE", "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("TE, CL", "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
    ("two CL", "content-length: 0\r\ncontent-length: 44\r\n\r\n"),
    ("CL with +", "content-length: +0\r\n\r\n"),
    ("TE of no kind", "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("TE, then identity", "transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    ("space before colon", "transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
];

/// Each with a second request behind it, which must never be answered.
pub(super) async fn both_lengths(address: SocketAddr, until: Instant) -> Seen {
    let (mut seen, mut round) = (Seen::new(), 0);
    paced(&mut seen, until, Duration::from_millis(50), async || {
        let (name, rest) = AMBIGUOUS[round % AMBIGUOUS.len()];
        round += 1;
        let Ok(mut stream) = TcpStream::connect(address).await else { return "not accepted".to_owned() };
        let head = "POST /api/v1/embed HTTP/1.1\r\nhost: load\r\ncontent-type: application/json\r\n";
        let smuggled = "GET /health HTTP/1.1\r\nhost: load\r\n\r\n";
        let _ = stream.write_all(format!("{head}{rest}{smuggled}").as_bytes()).await;
        let (answer, closed) = read_to_end(&mut stream, Duration::from_millis(500)).await;
        let statuses: Vec<&str> =
            answer.split("HTTP/1.1 ").skip(1).map(|answer| answer.split(' ').next().unwrap_or_default()).collect();
        match statuses.as_slice() {
            // Transfer-Encoding may win (RFC 9112, 6.3), if the connection ends with the answer: here that of an empty body.
            ["400" | "422" | "501"] if closed => "refused".to_owned(),
            _ => format!("{name}: {}, {}", statuses.join(" "), if closed { "closed" } else { "open" }),
        }
    })
    .await;
    seen
}

pub(super) async fn not_http(address: SocketAddr, until: Instant) -> Seen {
    let (mut seen, mut random) = (Seen::new(), Random::new(120));
    paced(&mut seen, until, Duration::from_millis(50), async || {
        let bytes = match random.below(3) {
            0 => tls_hello(&mut random),
            1 => noise(&mut random, 600),
            // A preface of HTTP/2 that goes on as something else.
            _ => [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), noise(&mut random, 600)].concat(),
        };
        let Ok(mut stream) = TcpStream::connect(address).await else { return "not accepted".to_owned() };
        let _ = stream.write_all(&bytes).await;
        // More than the service may need to know that it is nothing.
        let _ = stream.write_all(b"\r\n\r\n").await;
        let (_, closed) = read_to_end(&mut stream, Duration::from_secs(1)).await;
        if closed { "closed".to_owned() } else { format!("open after {:02x?}", &bytes[..8]) }
    })
    .await;
    seen
}

fn noise(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.next() as u8).collect()
}

/// A record of a handshake with a ClientHello in it: version, random bytes, one cipher suite, no extensions.
fn tls_hello(random: &mut Random) -> Vec<u8> {
    let mut hello = vec![0x03, 0x03];
    hello.extend(noise(random, 32));
    hello.extend([0x00, 0x00, 0x02, 0x13, 0x01, 0x01, 0x00]);
    let mut out = vec![0x16, 0x03, 0x01, 0x00, hello.len() as u8 + 4, 0x01, 0x00, 0x00, hello.len() as u8];
    out.extend(hello);
    out
}
