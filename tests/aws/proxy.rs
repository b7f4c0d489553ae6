//! A proxy between the service and what it depends on, that breaks what the test tells it to break, while all runs.
//!
//! A rule looks at each request and says what happens to it. Requests go on as they are, so that signatures stay right
//! (of the host, too: both servers take any). One connection to the server for each request: what a fault leaves behind
//! is never the next request's.

mod http;

pub(crate) use http::Message;

use socket2::SockRef;
use std::io::{BufReader, Read as _, Result, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What happens to a request.
pub(crate) enum Fault {
    /// The server answers.
    Pass,
    /// This is answered, and the server is not asked.
    Answer(Message),
    /// Nothing is answered, and the connection stays.
    Hang,
    /// The connection is reset before the answer.
    Reset,
    /// The connection is reset after so many bytes of the answer's body.
    Cut { bytes: usize },
    /// The server answers, this much later.
    Delay(Duration),
    /// The server answers, and so many bytes of the body come each second.
    Trickle { bytes_per_s: usize },
    /// This is done with the request; the other argument asks the server.
    Between(Between),
}

/// Makes an answer of a request, and of what the server says to it or to another.
pub(crate) type Between = fn(Message, &dyn Fn(Message) -> Result<Message>) -> Result<Message>;

/// What a request is, as far as rules and tests care.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    /// A header's value, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// What is asked of DynamoDB: `BatchGetItem` and the like.
    pub(crate) fn operation(&self) -> &str {
        self.header("x-amz-target").rsplit('.').next().unwrap_or_default()
    }
}

type Rule = dyn Fn(&Asked) -> Fault + Send + Sync;

struct Shared {
    server: String,
    rule: Mutex<Arc<Rule>>,
    asked: Mutex<Vec<Asked>>,
    /// Bytes of bodies that went to clients.
    bytes: AtomicU64,
    stopped: AtomicBool,
}

/// A running proxy; nobody listens any more once it is dropped.
pub(crate) struct Proxy {
    /// To be used in place of the server's address.
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// In front of the server at `url`, letting everything through.
    pub(crate) fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            server: url.trim_start_matches("http://").trim_end_matches('/').to_owned(),
            rule: Mutex::new(Arc::new(|_: &Asked| Fault::Pass)),
            asked: Mutex::default(),
            bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if theirs.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let shared = theirs.clone();
                // However a connection ends is what a client has to live with.
                std::thread::spawn(move || stream.and_then(|stream| serve(&stream, &shared)));
            }
        });
        Self { url: format!("http://{address}"), shared }
    }

    /// From now on, `rule` says what happens to requests.
    pub(crate) fn rule(&self, rule: impl Fn(&Asked) -> Fault + Send + Sync + 'static) {
        *self.shared.rule.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(rule);
    }

    /// From now on, everything goes through.
    pub(crate) fn pass(&self) {
        self.rule(|_| Fault::Pass);
    }

    /// The requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of bodies that went to clients so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // The listener waits for one more.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

fn serve(client: &TcpStream, shared: &Shared) -> Result<()> {
    client.set_nodelay(true)?;
    let mut reader = BufReader::new(client);
    while let Some(request) = Message::read_request(&mut reader, &mut &*client)? {
        let mut words = request.start.split(' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let asked = Asked { method: word(), path: word(), headers: request.headers.clone() };
        shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        let rule = shared.rule.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let head_only = asked.method == "HEAD";
        let mut cut = usize::MAX;
        let mut bytes_per_s = usize::MAX;
        let answer = match rule(&asked) {
            Fault::Pass => forward(request, shared, head_only)?,
            Fault::Answer(answer) => answer,
            Fault::Hang => {
                // Until the client has had enough.
                while reader.read(&mut [0])? > 0 {}
                return Ok(());
            }
            Fault::Reset => return reset(client),
            Fault::Cut { bytes } => {
                cut = bytes;
                forward(request, shared, head_only)?
            }
            Fault::Delay(time) => {
                std::thread::sleep(time);
                forward(request, shared, head_only)?
            }
            Fault::Trickle { bytes_per_s: slow } => {
                bytes_per_s = slow;
                forward(request, shared, head_only)?
            }
            Fault::Between(between) => {
                let mut answer = between(request, &|request| forward(request, shared, head_only))?;
                // DynamoDB's checksum of the body, which no longer is.
                answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("x-amz-crc32"));
                answer
            }
        };
        let mut client = client;
        client.write_all(answer.head(head_only).as_bytes())?;
        let body = if head_only { &[][..] } else { &answer.body };
        let (sent, missing) = body.split_at(cut.min(body.len()));
        // Ten pieces a second when slow, else what a socket takes at once.
        for piece in sent.chunks((bytes_per_s / 10).clamp(1, 1 << 16)) {
            if bytes_per_s < usize::MAX {
                std::thread::sleep(Duration::from_millis(100));
            }
            client.write_all(piece)?;
            shared.bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        if !missing.is_empty() {
            return reset(client);
        }
    }
    Ok(())
}

fn forward(mut request: Message, shared: &Shared, head_only: bool) -> Result<Message> {
    request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("connection"));
    request.headers.push(("connection".to_owned(), "close".to_owned()));
    let mut server = TcpStream::connect(&shared.server)?;
    server.write_all(request.head(false).as_bytes())?;
    server.write_all(&request.body)?;
    Message::read_response(&mut BufReader::new(server), head_only)
}

/// Closes a connection so that the other side gets an error, not an end.
fn reset(stream: &TcpStream) -> Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}
