//! A server that speaks as much of S3 as a download needs, and misbehaves on demand.
//!
//! Plain threads and sockets: whoever cuts connections and lies about lengths cannot use a server that takes care of
//! both. The bytes of an object are a function of key and revision, so that a mixture of two is told from either.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

pub(super) const BUCKET: &str = "models";

/// The bytes of an object.
pub(super) fn content(key: &str, revision: u64, size: usize) -> Vec<u8> {
    let seed = Sha256::digest(format!("{key} {revision}"));
    let mut state = u64::from_le_bytes(seed[..8].try_into().unwrap());
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

#[derive(Clone)]
struct Stored {
    bytes: Arc<Vec<u8>>,
    etag: String,
    /// In base64; none for an object without a checksum.
    sha256: Option<String>,
}

/// What the server does wrong.
#[derive(Clone, Default)]
pub(super) struct Faults {
    /// Of 100 GETs, how many have their connection cut at a random place.
    pub(super) cut_percent: u64,
    /// So many GETs are answered 503 SlowDown, first.
    pub(super) slow_down: u64,
    /// So many GETs stop after half of their bytes, without an end.
    pub(super) stall: u64,
    /// So many GETs are answered with another range than was asked for.
    pub(super) wrong_range: u64,
    /// So many GETs have a byte changed.
    pub(super) flip: u64,
    /// Every request is answered with this status, code and header.
    pub(super) refuse: Option<(u16, &'static str, &'static str)>,
    /// After so many GETs, the objects whose keys end so have this revision, and the sizes that they had.
    pub(super) change: Option<(u64, &'static str, u64)>,
    /// Listings are refused.
    pub(super) no_listing: bool,
    /// GETs of keys that end so wait for as long as this is set.
    pub(super) hold: Option<&'static str>,
    /// Bytes per second of a connection.
    pub(super) bytes_per_s: Option<u64>,
}

#[derive(Default)]
struct State {
    objects: Mutex<BTreeMap<String, Stored>>,
    faults: Mutex<Faults>,
    /// Ranges that were served: key, start, end.
    served: Mutex<Vec<(String, u64, u64)>>,
    gets: AtomicU64,
    served_bytes: AtomicU64,
    answering: AtomicU64,
    random: AtomicU64,
    stop: AtomicBool,
}

/// A running server.
pub(super) struct Double {
    pub(super) url: String,
    state: Arc<State>,
}

impl Double {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State::default());
        let of_server = state.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                if of_server.stop.load(Ordering::SeqCst) {
                    return;
                }
                let state = of_server.clone();
                thread::spawn(move || {
                    // Whoever is cut off, or cuts off, is no error.
                    let _ = serve(&state, connection.unwrap());
                });
            }
        });
        Self { url, state }
    }

    pub(super) fn put(&self, key: &str, revision: u64, size: usize) {
        self.state.put(key, revision, size);
    }

    pub(super) fn remove(&self, key: &str) {
        self.state.objects.lock().unwrap().remove(key);
    }

    /// An object whose checksum is not that of its bytes.
    pub(super) fn put_damaged(&self, key: &str, size: usize) {
        self.put(key, 0, size);
        self.state.objects.lock().unwrap().get_mut(key).unwrap().sha256 = Some("A".repeat(43) + "=");
    }

    pub(super) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.state.faults.lock().unwrap()
    }

    /// Bytes of objects that were sent since the last call.
    pub(super) fn take_served_bytes(&self) -> u64 {
        self.state.served_bytes.swap(0, Ordering::SeqCst)
    }

    /// Ranges that were begun since the last call.
    pub(super) fn take_served(&self) -> Vec<(String, u64, u64)> {
        std::mem::take(&mut self.state.served.lock().unwrap())
    }

    pub(super) fn gets(&self) -> u64 {
        self.state.gets.load(Ordering::SeqCst)
    }

    /// Requests for objects that are being answered.
    pub(super) fn answering(&self) -> u64 {
        self.state.answering.load(Ordering::SeqCst)
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

impl State {
    fn put(&self, key: &str, revision: u64, size: usize) {
        let bytes = content(key, revision, size);
        let digest = Sha256::digest(&bytes);
        let etag = format!("\"{}-2\"", digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        let sha256 = Some(aws_smithy_types::base64::encode(digest));
        self.objects.lock().unwrap().insert(key.to_owned(), Stored { bytes: Arc::new(bytes), etag, sha256 });
    }

    fn random(&self, below: u64) -> u64 {
        let n = self.random.fetch_add(1, Ordering::SeqCst);
        let digest = Sha256::digest(n.to_le_bytes());
        u64::from_le_bytes(digest[..8].try_into().unwrap()) % below.max(1)
    }
}

/// Takes one of `count`, if there is one.
fn take(count: &mut u64) -> bool {
    let taken = *count > 0;
    *count -= u64::from(taken);
    taken
}

fn serve(state: &State, connection: TcpStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(60)))?;
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let [method, target, ..] = lines[0].split(' ').collect::<Vec<_>>()[..] else { return Ok(()) };
        let header = |name: &str| {
            let found = lines[1..].iter().filter_map(|line| line.split_once(": "));
            found.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = decode(path);
        let key = path.strip_prefix(&format!("/{BUCKET}")).map(|key| key.trim_start_matches('/').to_owned());
        let faults = state.faults.lock().unwrap().clone();
        let Some(key) = key else {
            error(&mut writer, method, 404, "NoSuchBucket", "")?;
            continue;
        };
        if let Some((status, code, header)) = faults.refuse {
            error(&mut writer, method, status, code, header)?;
        } else if key.is_empty() {
            if faults.no_listing {
                error(&mut writer, method, 403, "AccessDenied", "")?;
            } else {
                list(state, &mut writer, query)?;
            }
        } else {
            let wanted = (key.as_str(), header("range"), header("if-match"));
            state.answering.fetch_add(1, Ordering::SeqCst);
            let goes_on = object(state, &mut writer, method, wanted);
            state.answering.fetch_sub(1, Ordering::SeqCst);
            if !goes_on? {
                return Ok(());
            }
        }
    }
}

fn error(writer: &mut TcpStream, method: &str, status: u16, code: &str, header: &str) -> std::io::Result<()> {
    let body = if method == "HEAD" {
        String::new()
    } else {
        format!("<Error><Code>{code}</Code><Message>as it was told</Message></Error>")
    };
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let length = body.len();
    write!(
        writer,
        "HTTP/1.1 {status} X\r\n{header}content-type: application/xml\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Pages of three, so that paging is exercised.
fn list(state: &State, writer: &mut TcpStream, query: &str) -> std::io::Result<()> {
    let parameter = |name: &str| {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| decode(v))
    };
    let prefix = parameter("prefix").unwrap_or_default();
    let after = parameter("continuation-token").unwrap_or_default();
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    let mut entries = BTreeMap::new();
    for (key, stored) in state.objects.lock().unwrap().iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let rest = &key[prefix.len()..];
        if let Some((folder, _)) = rest.split_once('/') {
            let folder = format!("{prefix}{folder}/");
            entries.insert(
                folder.clone(),
                format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(&folder)),
            );
        } else {
            let (key, etag, size) = (key.clone(), escape(&stored.etag), stored.bytes.len());
            let entry =
                format!("<Contents><Key>{}</Key><ETag>{etag}</ETag><Size>{size}</Size></Contents>", escape(&key));
            entries.insert(key, entry);
        }
    }
    let rest: Vec<_> = entries.into_iter().filter(|(key, _)| *key > after).collect();
    let page = &rest[..rest.len().min(3)];
    let more = if rest.len() > page.len() {
        let last = escape(&page.last().unwrap().0);
        format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>")
    } else {
        "<IsTruncated>false</IsTruncated>".to_owned()
    };
    let entries: String = page.iter().map(|(_, entry)| entry.as_str()).collect();
    let body = format!("<?xml version=\"1.0\"?><ListBucketResult>{more}{entries}</ListBucketResult>");
    let length = body.len();
    write!(writer, "HTTP/1.1 200 OK\r\ncontent-type: application/xml\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Whether the connection goes on.
fn object(
    state: &State,
    writer: &mut TcpStream,
    method: &str,
    (key, range, if_match): (&str, Option<String>, Option<String>),
) -> std::io::Result<bool> {
    let get = method == "GET";
    if get {
        let held = |faults: &Faults| faults.hold.is_some_and(|end| key.ends_with(end));
        while held(&state.faults.lock().unwrap()) && !state.stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
        let gets = state.gets.fetch_add(1, Ordering::SeqCst);
        let mut faults = state.faults.lock().unwrap();
        if faults.change.as_ref().is_some_and(|(after, ..)| gets >= *after) {
            let (_, end, revision) = faults.change.take().unwrap();
            let sizes: Vec<_> = {
                let objects = state.objects.lock().unwrap();
                objects.iter().map(|(key, stored)| (key.clone(), stored.bytes.len())).collect()
            };
            for (key, size) in sizes.iter().filter(|(key, _)| key.ends_with(end)) {
                state.put(key, revision, *size);
            }
        }
    }
    let Some(stored) = state.objects.lock().unwrap().get(key).cloned() else {
        return error(writer, method, 404, "NoSuchKey", "").map(|()| true);
    };
    if if_match.is_some_and(|etag| etag != stored.etag) {
        return error(writer, method, 412, "PreconditionFailed", "").map(|()| true);
    }
    let etag = &stored.etag;
    let size = stored.bytes.len() as u64;
    if !get {
        let checksum = stored.sha256.map_or(String::new(), |sha256| {
            format!("x-amz-checksum-sha256: {sha256}\r\nx-amz-checksum-type: FULL_OBJECT\r\n")
        });
        write!(writer, "HTTP/1.1 200 OK\r\netag: {etag}\r\n{checksum}content-length: {size}\r\n\r\n")?;
        return Ok(true);
    }
    let range = range.unwrap();
    let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (mut start, end) = (start.parse::<u64>().unwrap(), end.parse::<u64>().unwrap() + 1);
    let (slow_down, stall, wrong, flip, cut, bytes_per_s) = {
        let mut faults = state.faults.lock().unwrap();
        (
            take(&mut faults.slow_down),
            take(&mut faults.stall),
            take(&mut faults.wrong_range),
            take(&mut faults.flip),
            state.random(100) < faults.cut_percent,
            faults.bytes_per_s,
        )
    };
    if slow_down {
        return error(writer, method, 503, "SlowDown", "").map(|()| true);
    }
    if wrong {
        start += 1;
    }
    state.served.lock().unwrap().push((key.to_owned(), start, end));
    let mut bytes = stored.bytes[start as usize..end as usize].to_vec();
    let length = bytes.len();
    if flip {
        bytes[length / 2] ^= 1;
    }
    if cut {
        bytes.truncate(state.random(length as u64) as usize);
    } else if stall {
        bytes.truncate(length / 2);
    }
    write!(
        writer,
        "HTTP/1.1 206 Partial Content\r\netag: {etag}\r\ncontent-range: bytes {start}-{}/{size}\r\ncontent-length: \
         {length}\r\n\r\n",
        end - 1
    )?;
    for chunk in bytes.chunks(16 << 10) {
        writer.write_all(chunk)?;
        state.served_bytes.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        if let Some(bytes_per_s) = bytes_per_s {
            thread::sleep(Duration::from_secs_f64(chunk.len() as f64 / bytes_per_s as f64));
        }
    }
    if stall && !cut {
        // Until the other side has enough of it.
        let mut nothing = [0];
        let _ = std::io::Read::read(writer, &mut nothing);
    }
    Ok(!cut && !stall)
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            decoded.push(u8::from_str_radix(&text[at + 1..at + 3], 16).unwrap());
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(decoded).unwrap()
}
