//! What goes wrong within HTTP/2, in frames written by hand: a library would keep the limits that are to be tried.

use super::http1::CHUNK_EVERY;
use super::{Seen, saw};
use crate::texts::embed_body;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const GOAWAY: u8 = 0x7;
const CONTINUATION: u8 = 0x9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

const CANCEL: u32 = 0x8;
const MAX_CONCURRENT_STREAMS: u16 = 0x3;

const STREAMS: u32 = 2_000;
const STREAMS_BAR: u32 = 1_000;
const RESETS: u32 = 1_000;
const HEADERS_BYTES: usize = 8 << 20;
const HEADERS_BYTES_BAR: usize = 2 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames are small").to_be_bytes();
    let mut out = length[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// `POST /api/v1/embed` in HPACK, without Huffman coding and without the dynamic table.
fn headers_of_embed() -> Vec<u8> {
    // Of the static table: `:method: POST`, `:scheme: http`.
    let mut out = vec![0x83, 0x86];
    // A literal that is not indexed, with the name of the static table: 4 is `:path`, 1 `:authority`.
    for (name, value) in [(0x04, "/api/v1/embed"), (0x01, "load")] {
        out.extend([name, value.len() as u8]);
        out.extend(value.as_bytes());
    }
    // 31, `content-type`, needs a second byte in a prefix of four bits.
    out.extend([0x0f, 0x10, 16]);
    out.extend(b"application/json");
    out
}

struct Connection {
    frames: Frames,
    writer: OwnedWriteHalf,
}

async fn connect(address: SocketAddr) -> Option<Connection> {
    let (reader, mut writer) = TcpStream::connect(address).await.ok()?.into_split();
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[]));
    hello.extend(frame(SETTINGS, ACK, 0, &[]));
    writer.write_all(&hello).await.ok()?;
    Some(Connection { frames: Frames { reader, buffer: Vec::new() }, writer })
}

/// What the service sends.
struct Frames {
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
}

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Frames {
    /// `None` when the connection has ended. May be dropped while it waits.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(&[a, b, c, kind, flags, ..]) = self.buffer.get(..9) {
                let length = u32::from_be_bytes([0, a, b, c]) as usize;
                if self.buffer.len() >= 9 + length {
                    let payload = self.buffer[9..9 + length].to_vec();
                    self.buffer.drain(..9 + length);
                    return Some(Frame { kind, flags, payload });
                }
            }
            let read = self.reader.read_buf(&mut self.buffer).await.ok()?;
            if read == 0 {
                return None;
            }
        }
    }
}

fn code(payload: &[u8], at: usize) -> u32 {
    payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The service's limit of streams, if these are settings that have one.
fn streams_max(frame: &Frame) -> Option<u32> {
    let is_settings = frame.kind == SETTINGS && frame.flags & ACK == 0;
    let mut settings = frame.payload.chunks_exact(6).filter(|_| is_settings);
    let setting = settings.find(|setting| setting[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes())?;
    Some(code(setting, 2))
}

/// Streams that wait for their bodies, far more than the service says it takes.
pub(super) async fn many_streams(address: SocketAddr, until: Instant) -> Seen {
    let mut seen = Seen::new();
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..4 {
        connections.spawn(many_streams_once(address, until));
    }
    connections.join_all().await.into_iter().for_each(|what| saw(&mut seen, what));
    seen
}

async fn many_streams_once(address: SocketAddr, until: Instant) -> String {
    let Some(Connection { mut frames, mut writer }) = connect(address).await else { return "not accepted".to_owned() };
    let block = headers_of_embed();
    let sending = tokio::spawn(async move {
        for stream in 0..STREAMS {
            if writer.write_all(&frame(HEADERS, END_HEADERS, 2 * stream + 1, &block)).await.is_err() {
                break;
            }
        }
        // Dropped, it would close the connection.
        writer
    });
    let (mut announced, mut refused, mut gone) = (None, 0, None);
    loop {
        match tokio::time::timeout_at(until, frames.next()).await {
            Ok(Some(frame)) => {
                announced = announced.or(streams_max(&frame));
                refused += u32::from(frame.kind == RST_STREAM);
                if frame.kind == GOAWAY {
                    gone = Some(format!("GOAWAY {}", code(&frame.payload, 4)));
                }
            }
            Ok(None) => {
                gone.get_or_insert_with(|| "without a word".to_owned());
                break;
            }
            Err(_) => break,
        }
    }
    drop(sending.await);
    let limit = announced.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
    let open = if gone.is_some() { 0 } else { STREAMS - refused };
    let within = announced.is_some_and(|limit| limit <= STREAMS_BAR && open <= limit);
    let verdict = if within { "bounded" } else { "NOT bounded" };
    let how = gone.map_or_else(|| format!("{open} open, {refused} refused"), |why| format!("closed ({why})"));
    format!("{verdict}: {limit} announced, {how}")
}

/// Embeds that are whole, and reset in the same breath.
pub(super) async fn rapid_reset(address: SocketAddr, until: Instant) -> Seen {
    let mut seen = Seen::new();
    while Instant::now() < until {
        let next = Instant::now() + Duration::from_millis(250);
        saw(&mut seen, rapid_reset_once(address).await);
        tokio::time::sleep_until(next.min(until)).await;
    }
    seen
}

async fn rapid_reset_once(address: SocketAddr) -> String {
    let Some(Connection { mut frames, mut writer }) = connect(address).await else { return "not accepted".to_owned() };
    let block = headers_of_embed();
    let mut sent = 0;
    let sending = async {
        for reset in 0..RESETS {
            let stream = 2 * reset + 1;
            let body = embed_body(&format!("reset at once, number {reset} of {:?}", Instant::now()));
            let mut out = frame(HEADERS, END_HEADERS, stream, &block);
            out.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
            out.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
            if writer.write_all(&out).await.is_err() {
                break;
            }
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let ended = async {
        let mut why = None;
        while let Some(frame) = frames.next().await {
            if frame.kind == GOAWAY {
                why = Some(code(&frame.payload, 4));
            }
        }
        why
    };
    tokio::select! {
        why = ended => {
            let why = why.map_or_else(|| "without a word".to_owned(), |code| format!("GOAWAY {code}"));
            // What is in the sockets' buffers counts as sent; it is not exact.
            format!("closed ({why})")
        }
        () = sending => format!("open after {sent} resets"),
    }
}

/// A header block of continuations without end.
pub(super) async fn endless_headers(address: SocketAddr, until: Instant) -> Seen {
    let mut seen = Seen::new();
    while Instant::now() < until {
        let next = Instant::now() + Duration::from_millis(250);
        saw(&mut seen, endless_headers_once(address).await);
        tokio::time::sleep_until(next.min(until)).await;
    }
    seen
}

async fn endless_headers_once(address: SocketAddr) -> String {
    let Some(Connection { mut frames, mut writer }) = connect(address).await else { return "not accepted".to_owned() };
    // A literal with a new name, `x`, and a value of 4096 bytes: 7 bits of length, then the rest of it.
    let mut header = vec![0x00, 0x01, b'x', 0x7f, 0x81, 0x1f];
    header.extend([b'a'; 4096]);
    let block = header.repeat(3);
    let mut sent = 0;
    let sending = async {
        let _ = writer.write_all(&frame(HEADERS, 0, 1, &headers_of_embed())).await;
        while sent < HEADERS_BYTES && writer.write_all(&frame(CONTINUATION, 0, 1, &block)).await.is_ok() {
            sent += block.len();
            tokio::time::sleep(CHUNK_EVERY).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let ended = async { while frames.next().await.is_some() {} };
    let closed = tokio::select! {
        () = ended => true,
        () = sending => false,
    };
    match (closed, sent < HEADERS_BYTES_BAR) {
        (true, true) => "closed before 2 MiB".to_owned(),
        (true, false) => format!("late: after {} KiB", sent >> 10),
        (false, _) => format!("open after {} KiB", sent >> 10),
    }
}
