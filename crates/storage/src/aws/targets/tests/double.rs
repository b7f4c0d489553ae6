//! An S3 in this process, as far as shared target sets speak it: objects with metadata and ETags, ranges, conditions,
//! listings of a few a page, multipart uploads. It counts, and fails as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

const PAGE: usize = 2;

#[derive(Default)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Object>,
    /// By id: what was put of an upload that is under way.
    pub(super) uploads: BTreeMap<String, Upload>,
    /// Requests, as `HEAD`, `PEEK` (the first byte alone), `LIST`, `GET`, `PUT`, `PART`, `BEGIN`, `COMPLETE`, `ABORT`, `DELETE`.
    pub(super) counts: BTreeMap<&'static str, usize>,
    pub(super) bytes_sent: usize,
    /// Ranges at once, now and at most.
    now: usize,
    pub(super) at_once_max: usize,
    /// What is answered instead: for a kind of request, from the one after so many, a status and a code.
    pub(super) refusals: BTreeMap<&'static str, (usize, u16, &'static str)>,
    /// Before any answer.
    pub(super) delay: Duration,
    /// And before the answer with a page of a list.
    pub(super) list_delay: Duration,
    /// There is no bucket.
    pub(super) no_bucket: bool,
    /// Nobody is answered while it is set.
    pub(super) hangs: bool,
    /// Replaces an object when this many ranges of it were sent.
    pub(super) replace_after: Option<(usize, String, Object)>,
    next: u64,
}

#[derive(Clone, Default)]
pub(super) struct Object {
    pub(super) bytes: Vec<u8>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) etag: String,
}

#[derive(Default)]
pub(super) struct Upload {
    key: String,
    metadata: BTreeMap<String, String>,
    parts: BTreeMap<u32, Vec<u8>>,
    /// The kind of checksum that parts will have.
    pub(super) announced: Option<String>,
}

pub(super) struct Double {
    shared: Arc<(Mutex<State>, Condvar)>,
    pub(super) address: SocketAddr,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn of(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn error(status: u16, code: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>{code}, as asked</Message></Error>");
        Self { body: body.into_bytes(), ..Self::of(status) }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

impl Double {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let serving = Arc::clone(&shared);
        // Ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                thread::spawn(move || drop(serve(stream, &shared)));
            }
        });
        Self { shared, address }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    pub(super) fn count(&self, kind: &str) -> usize {
        self.state().counts.get(kind).copied().unwrap_or(0)
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.state().hangs = hangs;
        self.shared.1.notify_all();
    }

    pub(super) fn refuse(&self, kind: &'static str, after: usize, status: u16, code: &'static str) {
        let mut state = self.state();
        let so_far = state.counts.get(kind).copied().unwrap_or(0);
        state.refusals.insert(kind, (so_far + after, status, code));
    }
}

fn serve(stream: TcpStream, shared: &(Mutex<State>, Condvar)) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader)? {
        let kind = kind(&request);
        let (delay, refusal) = {
            let mut state = shared.0.lock().unwrap();
            let count = *state.counts.entry(kind).and_modify(|count| *count += 1).or_insert(1);
            if kind == "GET" {
                state.now += 1;
                state.at_once_max = state.at_once_max.max(state.now);
            }
            let state = shared.1.wait_while(state, |state| state.hangs).unwrap();
            let refusal = state.refusals.get(kind).filter(|(after, ..)| count > *after);
            let listing = if kind == "LIST" { state.list_delay } else { Duration::ZERO };
            (state.delay + listing, refusal.map(|(_, status, code)| Answer::error(*status, code)))
        };
        thread::sleep(delay);
        let answer = {
            let mut state = shared.0.lock().unwrap();
            let answer = refusal.unwrap_or_else(|| answer(&mut state, kind, &request));
            if kind == "GET" {
                state.now -= 1;
                state.bytes_sent += answer.body.len();
            }
            answer
        };
        let Answer { status, headers, body } = answer;
        let mut head = format!("HTTP/1.1 {status} {status}\r\nx-amz-request-id: 1\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !head.contains("content-length") {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let body = if request.method == "HEAD" { &[][..] } else { &body[..] };
        out.write_all(&[head.as_bytes(), body].concat())?;
    }
    Ok(())
}

fn read(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    if headers.contains_key("expect") {
        reader.get_ref().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    assert!(!headers.contains_key("transfer-encoding") && !headers.contains_key("content-encoding"), "{headers:?}");
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let query = pairs.map(|(key, value)| (key.to_owned(), value.replace("%2F", "/"))).collect();
    Ok(Some(Request { method, path: path.trim_start_matches('/').to_owned(), query, headers, body }))
}

fn kind(request: &Request) -> &'static str {
    let has = |key: &str| request.query.contains_key(key);
    match request.method.as_str() {
        "HEAD" => "HEAD",
        "GET" if has("list-type") => "LIST",
        "GET" if request.headers.get("range").is_some_and(|range| range == "bytes=0-0") => "PEEK",
        "GET" => "GET",
        "PUT" if has("partNumber") => "PART",
        "PUT" => "PUT",
        "POST" if has("uploads") => "BEGIN",
        "POST" => "COMPLETE",
        "DELETE" if has("uploadId") => "ABORT",
        "DELETE" => "DELETE",
        other => panic!("{other}"),
    }
}

fn answer(state: &mut State, kind: &str, request: &Request) -> Answer {
    let (bucket, key) = request.path.split_once('/').unwrap_or((&request.path, ""));
    assert_eq!(bucket, "bucket");
    if state.no_bucket {
        // Nobody sees the code in the answer to HEAD.
        return Answer::error(404, "NoSuchBucket");
    }
    let key = key.to_owned();
    let metadata = || {
        let own = request
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("x-amz-meta-")?.to_owned(), value.clone())));
        own.collect::<BTreeMap<_, _>>()
    };
    let upload = request.query.get("uploadId").cloned().unwrap_or_default();
    match kind {
        "HEAD" => match state.objects.get(&key) {
            None => Answer::of(404),
            Some(object) => {
                let answer = Answer::of(200).with("etag", &object.etag);
                let answer = answer.with("content-length", object.bytes.len().to_string());
                object
                    .metadata
                    .iter()
                    .fold(answer, |answer, (name, value)| answer.with(&format!("x-amz-meta-{name}"), value))
            }
        },
        "LIST" => list(state, request),
        "GET" | "PEEK" => get(state, &key, request),
        "PUT" => {
            let etag = state.store(key, request.body.clone(), metadata());
            Answer::of(200).with("etag", etag)
        }
        "BEGIN" => {
            state.next += 1;
            let id = format!("upload-{}", state.next);
            state.uploads.insert(
                id.clone(),
                Upload { key, metadata: metadata(), announced: checksum_algorithm(request), parts: BTreeMap::new() },
            );
            let body =
                format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>");
            Answer { body: body.into_bytes(), ..Answer::of(200) }
        }
        "PART" => {
            let number = request.query["partNumber"].parse().unwrap();
            let Some(upload) = state.uploads.get_mut(&upload) else { return Answer::error(404, "NoSuchUpload") };
            let Some(checksum) = request.headers.get("x-amz-checksum-crc32") else {
                panic!("the SDK sends a checksum with each part: {:?}", request.headers)
            };
            if upload.announced.as_deref() != Some("CRC32") {
                // As S3 does, and lenient servers do not.
                return Answer::error(400, "InvalidRequest");
            }
            upload.parts.insert(number, request.body.clone());
            Answer::of(200).with("etag", format!("\"part-{number}\"")).with("x-amz-checksum-crc32", checksum)
        }
        "COMPLETE" => {
            let Some(upload) = state.uploads.remove(&upload) else { return Answer::error(404, "NoSuchUpload") };
            let named = String::from_utf8_lossy(&request.body).matches("<PartNumber>").count();
            assert_eq!(named, upload.parts.len());
            assert_eq!(String::from_utf8_lossy(&request.body).matches("<ChecksumCRC32>").count(), named);
            let etag = state.store(upload.key, upload.parts.into_values().flatten().collect(), upload.metadata);
            let body = format!("<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>");
            Answer { body: body.into_bytes(), ..Answer::of(200) }
        }
        "ABORT" => match state.uploads.remove(&upload) {
            Some(_) => Answer::of(204),
            None => Answer::error(404, "NoSuchUpload"),
        },
        _ => {
            state.objects.remove(&key);
            Answer::of(204)
        }
    }
}

fn checksum_algorithm(request: &Request) -> Option<String> {
    request.headers.get("x-amz-checksum-algorithm").cloned()
}

impl State {
    pub(super) fn store(&mut self, key: String, bytes: Vec<u8>, metadata: BTreeMap<String, String>) -> String {
        self.next += 1;
        let etag = format!("\"etag-{}\"", self.next);
        self.objects.insert(key, Object { bytes, metadata, etag: etag.clone() });
        etag
    }
}

fn get(state: &mut State, key: &str, request: &Request) -> Answer {
    let answer = match state.objects.get(key) {
        None => return Answer::error(404, "NoSuchKey"),
        Some(object) if request.headers.get("if-match").is_some_and(|etag| *etag != object.etag) => {
            return Answer::error(412, "PreconditionFailed");
        }
        Some(object) => {
            let range = request.headers["range"].strip_prefix("bytes=").unwrap();
            let (begin, end) = range.split_once('-').unwrap();
            let (begin, end): (usize, usize) = (begin.parse().unwrap(), end.parse().unwrap());
            let answer = Answer::of(206).with("etag", &object.etag);
            let range = format!("bytes {begin}-{end}/{}", object.bytes.len());
            Answer { body: object.bytes[begin..=end].to_vec(), ..answer.with("content-range", range) }
        }
    };
    if let Some((left, ..)) = &mut state.replace_after {
        *left -= 1;
    }
    if let Some((_, key, object)) = state.replace_after.take_if(|(left, ..)| *left == 0) {
        state.objects.insert(key, object);
    }
    answer
}

fn list(state: &State, request: &Request) -> Answer {
    let (prefix, after) = (&request.query["prefix"], request.query.get("continuation-token"));
    let mut page = state.objects.iter().filter(|(key, _)| {
        let rest = key.strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| !rest.contains('/')) && after.is_none_or(|after| *key > after)
    });
    let mut body = "<ListBucketResult>".to_owned();
    let mut last = "";
    for (key, Object { bytes, etag, .. }) in page.by_ref().take(PAGE) {
        body.push_str(&format!("<Contents><Key>{key}</Key><ETag>{etag}</ETag><Size>{}</Size></Contents>", bytes.len()));
        last = key;
    }
    let more = page.next().is_some();
    body.push_str(&format!("<IsTruncated>{more}</IsTruncated>"));
    if more {
        body.push_str(&format!("<NextContinuationToken>{last}</NextContinuationToken>"));
    }
    body.push_str("</ListBucketResult>");
    Answer { body: body.into_bytes(), ..Answer::of(200) }
}
