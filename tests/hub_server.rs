//! A model hub on loopback, as far as clients of `hf://` use one: the list of a repository's files, files by ranges,
//! redirects to another server for the large ones, tokens. And what hubs and networks do on bad days.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The one commit that the hub has.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The one repository.
pub(crate) const REPOSITORY: &str = "acme/model";

/// A file of the repository.
#[derive(Clone)]
pub(crate) struct HubFile {
    pub(crate) content: Vec<u8>,
    /// With it, the file is a large one: kept on the other server, its digest listed.
    pub(crate) sha256: Option<String>,
}

/// How the hub behaves.
#[derive(Clone, Default)]
pub(crate) struct Mood {
    /// Only who shows this token is told anything.
    pub(crate) token: Option<String>,
    /// The repository is listed, and its files are closed.
    pub(crate) gated: bool,
    /// So many answers of the list are 503 first.
    pub(crate) busy_times: u32,
    /// Connections break after so many bytes of a body.
    pub(crate) cut_after: Option<usize>,
    /// Bodies begin and never go on.
    pub(crate) hangs: bool,
    /// Ranges are not honoured.
    pub(crate) ignores_ranges: bool,
    /// Bodies of large files are so many bytes too short, as their header says.
    pub(crate) short_by: usize,
    /// So many bodies of large files have a wrong byte.
    pub(crate) wrong_times: u32,
    /// Sizes and digests are not listed.
    pub(crate) terse: bool,
    /// Pause after each 64 KiB.
    pub(crate) pause: Duration,
}

struct Shared {
    files: BTreeMap<String, HubFile>,
    mood: Mutex<Mood>,
    requests: Mutex<Vec<String>>,
    closed: AtomicBool,
}

/// The running hub.
pub(crate) struct Hub {
    /// What `HF_ENDPOINT` is set to.
    pub(crate) endpoint: String,
    shared: Arc<Shared>,
}

impl Hub {
    pub(crate) fn start(files: BTreeMap<String, HubFile>, mood: Mood) -> Self {
        let shared =
            Shared { files, mood: Mutex::new(mood), requests: Mutex::default(), closed: AtomicBool::new(false) };
        let shared = Arc::new(shared);
        let far = listen(&shared, String::new());
        let near = listen(&shared, far);
        Self { endpoint: near, shared }
    }

    /// Changes how it behaves from now on.
    pub(crate) fn set(&self, mood: Mood) {
        *lock(&self.shared.mood) = mood;
    }

    /// The requests so far: `GET PATH range=... authorization=...`.
    pub(crate) fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// From here on connections break at once.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens in the background, until the process ends. `far` is where large files are; empty: here.
fn listen(shared: &Arc<Shared>, far: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (shared, far) = (Arc::clone(&shared), far.clone());
            std::thread::spawn(move || {
                // A client that goes away is none of the hub's business.
                let _ = answer(&shared, &far, stream);
            });
        }
    });
    address
}

fn answer(shared: &Shared, far: &str, mut stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let headers: BTreeMap<String, String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    if shared.closed.load(Ordering::SeqCst) {
        return Ok(());
    }
    let path = first.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    lock(&shared.requests).push(format!(
        "GET {path} range={} authorization={}",
        header("range"),
        header("authorization")
    ));
    let mood = lock(&shared.mood).clone();
    let (path, _query) = path.split_once('?').unwrap_or((&path, ""));

    if let Some(name) = path.strip_prefix("/far/") {
        return send(shared, &mood, &mut stream, name, &header("range"), true);
    }
    if let Some(token) = &mood.token
        && header("authorization") != format!("Bearer {token}")
    {
        return refuse(&mut stream, "401 Unauthorized", "RepoNotFound");
    }
    if let Some(rest) = path.strip_prefix("/api/models/") {
        let Some(revision) = rest.strip_prefix(&format!("{REPOSITORY}/revision/")) else {
            return refuse(&mut stream, "404 Not Found", "RepoNotFound");
        };
        if !["main", "v1", COMMIT].contains(&revision) {
            return refuse(&mut stream, "404 Not Found", "RevisionNotFound");
        }
        if mood.busy_times > 0 {
            lock(&shared.mood).busy_times -= 1;
            return refuse(&mut stream, "503 Service Unavailable", "");
        }
        let body = list(shared, &mood);
        return write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    }
    let Some(name) = path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/")) else {
        return refuse(&mut stream, "404 Not Found", "EntryNotFound");
    };
    if mood.gated {
        return refuse(&mut stream, "403 Forbidden", "GatedRepo");
    }
    match shared.files.get(name) {
        None => refuse(&mut stream, "404 Not Found", "EntryNotFound"),
        Some(HubFile { content, sha256: Some(sha256) }) => write!(
            stream,
            "HTTP/1.1 302 Found\r\nconnection: close\r\ncontent-length: 0\r\nlocation: {far}/far/{name}\r\n\
             x-repo-commit: {COMMIT}\r\nx-linked-size: {}\r\nx-linked-etag: \"{sha256}\"\r\n\r\n",
            content.len()
        ),
        Some(_) => send(shared, &mood, &mut stream, name, &header("range"), false),
    }
}

fn refuse(stream: &mut TcpStream, status: &str, code: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\nx-error-code: {code}\r\n\r\n")
}

fn list(shared: &Shared, mood: &Mood) -> String {
    let sibling = |(name, file): (&String, &HubFile)| {
        let size = file.content.len();
        let id = id_of(name);
        match &file.sha256 {
            _ if mood.terse => format!(r#"{{"rfilename":"{name}"}}"#),
            Some(sha256) => format!(
                r#"{{"rfilename":"{name}","size":{size},"blobId":"{id}","lfs":{{"sha256":"{sha256}","size":{size},"pointerSize":134}}}}"#
            ),
            None => format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"{id}"}}"#),
        }
    };
    let siblings: Vec<String> = shared.files.iter().map(sibling).collect();
    format!(r#"{{"id":"{REPOSITORY}","sha":"{COMMIT}","siblings":[{}]}}"#, siblings.join(","))
}

/// Not git's hash, and just as much another for each file.
pub(crate) fn id_of(name: &str) -> String {
    let id: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{id:0<40}")[..40].to_owned()
}

fn send(
    shared: &Shared,
    mood: &Mood,
    stream: &mut TcpStream,
    name: &str,
    range: &str,
    far: bool,
) -> std::io::Result<()> {
    let Some(file) = shared.files.get(name) else { return refuse(stream, "404 Not Found", "EntryNotFound") };
    let mut content = file.content.clone();
    if far {
        content.truncate(content.len() - mood.short_by.min(content.len()));
        let mut mood = lock(&shared.mood);
        if mood.wrong_times > 0 {
            mood.wrong_times -= 1;
            content[0] ^= 1;
        }
    }
    let size = content.len();
    let asked = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).filter(|_| !mood.ignores_ranges);
    let (status, body) = match asked {
        Some((start, end)) => {
            let start: usize = start.parse().unwrap_or(0);
            let end = end.parse().map_or(size, |end: usize| (end + 1).min(size));
            if start >= size {
                return refuse(stream, "416 Range Not Satisfiable", "");
            }
            let range = format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{size}", end - 1);
            (range, &content[start..end])
        }
        None => ("200 OK".to_owned(), &content[..]),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\netag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\n\r\n",
        body.len(),
        id_of(name)
    )?;
    let sent = mood.cut_after.unwrap_or(body.len()).min(body.len());
    if mood.hangs {
        stream.write_all(&body[..1])?;
        std::thread::sleep(Duration::from_secs(600));
    }
    for piece in body[..sent].chunks(64 << 10) {
        stream.write_all(piece)?;
        std::thread::sleep(mood.pause);
    }
    Ok(())
}
