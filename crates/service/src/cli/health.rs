//! `nexus health`: one question to a running service, for health checks of containers that have no other HTTP client.
//!
//! The answer is the exit status: 0 for yes, 1 for anything else. Over TLS, the certificate has to be the one in
//! `NEXUS_TLS_CERT_FILE`, whatever name it is for. Deliberately absent: redirects, and all else that asking this machine does not
//! need.

mod pinned;

use super::Failure;
use crate::settings::ListenSettings;
use clap::Args;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};
use tokio_rustls::rustls::pki_types::CertificateDer;

/// Time for all of it. Health checks that take longer are ended by who started them, without a reason.
const TIMEOUT: Duration = Duration::from_secs(4);
const ANSWER_BYTES_MAX: usize = 64 << 10;

#[derive(Args, Debug)]
pub(super) struct HealthArgs {
    /// Ask whether both models are loaded (`/ready`), and not only whether the process lives (`/health`)
    #[arg(long)]
    ready: bool,

    /// Address of the service; unset, the host and port below, on this machine
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    listen: ListenSettings,
}

pub(super) fn run(args: &HealthArgs) -> Result<(), Failure> {
    let authority = match &args.url {
        Some(url) => of_url(url)?,
        None => of_settings(&args.listen)?,
    };
    let path = if args.ready { "/ready" } else { "/health" };
    let certificate = match &args.listen.tls_cert_file {
        Some(file) if args.url.is_none() => Some(pinned::certificate(file).map_err(Failure::Usage)?),
        _ => None,
    };
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let failed = |what: String| Failure::Run(format!("{scheme}://{authority}{path}: {what}"));
    let answer = ask(&authority, path, certificate).map_err(|error| failed(no_answer(&error)))?;
    let (status, body) = parse(&answer).ok_or_else(|| failed("the answer is not HTTP".to_owned()))?;
    if status == 200 {
        return super::print(&format!("{}\n", said(body).unwrap_or_else(|| "200".to_owned())));
    }
    Err(failed(said(body).map_or_else(|| status.to_string(), |said| format!("{status}, {said}"))))
}

/// Host and port of `http://host[:port][/]`.
fn of_url(url: &str) -> Result<String, Failure> {
    let authority = url.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    match authority {
        Some(authority) if !authority.is_empty() && !authority.contains(['/', '?', '#', '@', ' ', '\r', '\n']) => {
            let has_port = authority.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
            Ok(if has_port { authority.to_owned() } else { format!("{authority}:80") })
        }
        _ => Err(Failure::Usage(format!("--url={url:?}: expected http://host:port"))),
    }
}

/// Where the service listens, seen from this machine.
fn of_settings(listen: &ListenSettings) -> Result<String, Failure> {
    if listen.port == 0 {
        return Err(Failure::Usage(
            "NEXUS_PORT=\"0\": expected the port that the service has; or give --url".to_owned(),
        ));
    }
    let host = match listen.bare_host() {
        // All addresses of the machine are none to connect to.
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    Ok(if host.contains(':') { format!("[{host}]:{}", listen.port) } else { format!("{host}:{}", listen.port) })
}

/// The whole answer, as it came. HTTP/1.0 has no chunks, and ends with the connection.
fn ask(authority: &str, path: &str, certificate: Option<CertificateDer<'static>>) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let socket = connect(&authority.to_socket_addrs()?.collect::<Vec<_>>(), deadline)?;
    socket.set_write_timeout(Some(left(deadline)?))?;
    socket.set_read_timeout(Some(left(deadline)?))?;
    let limits = socket.try_clone()?;
    let mut stream: Box<dyn Channel> = match certificate {
        Some(certificate) => Box::new(pinned::over(socket, certificate)?),
        None => Box::new(socket),
    };
    let question = format!("GET {path} HTTP/1.0\r\nhost: {authority}\r\nuser-agent: nexus-health\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while answer.len() < ANSWER_BYTES_MAX {
        // Each read has what is left, so that a byte now and then is no way around the limit.
        limits.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => answer.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The end of the connection without the end of TLS; an answer that lacks something is found out anyway.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// What can be written to and read from.
trait Channel: io::Read + io::Write {}

impl<T: io::Read + io::Write> Channel for T {}

/// The first address that takes a connection.
fn connect(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in addresses {
        match TcpStream::connect_timeout(address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn no_answer(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => format!("no answer in {} s", TIMEOUT.as_secs()),
        _ => format!("no answer: {error}"),
    }
}

/// Status and body.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut words = head.lines().next()?.split(' ');
    let status = words.next()?.starts_with("HTTP/1.").then(|| words.next()?.parse().ok())??;
    Some((status, &answer[end + 4..]))
}

/// What the service says: its status, and what is wrong with models that failed. One line.
fn said(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let mut said = body["status"].as_str()?.to_owned();
    for model in body["models"].as_array().into_iter().flatten() {
        if let (Some(role), Some(detail)) = (model["role"].as_str(), model["detail"].as_str()) {
            said += &format!("; {role}: {detail}");
        }
    }
    Some(said.replace(['\r', '\n'], " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let listen =
            |host: &str| ListenSettings { host: host.to_owned(), port: 8000, tls_cert_file: None, tls_key_file: None };
        for (host, expected) in [
            ("127.0.0.1", "127.0.0.1:8000"),
            ("0.0.0.0", "127.0.0.1:8000"),
            ("::", "[::1]:8000"),
            ("[::]", "[::1]:8000"),
            ("localhost", "localhost:8000"),
        ] {
            assert_eq!(of_settings(&listen(host)).unwrap(), expected);
        }
        for (url, expected) in [
            ("http://a:1", Some("a:1")),
            ("http://a:1/", Some("a:1")),
            ("http://a", Some("a:80")),
            ("http://[::1]", Some("[::1]:80")),
            ("http://[::1]:9", Some("[::1]:9")),
            ("https://a", None),
            ("http://", None),
            ("http://a/health", None),
            ("a:1", None),
        ] {
            assert_eq!(of_url(url).ok().as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn answers() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\nx"), Some((200, b"x".as_slice())));
        for broken in [b"".as_slice(), b"HTTP/1.1 200 OK\r\n", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"] {
            assert_eq!(parse(broken), None);
        }
        let body =
            br#"{"status": "failed", "models": [{"role": "retriever", "detail": "a\nb"}, {"role": "reranker"}]}"#;
        assert_eq!(said(body).as_deref(), Some("failed; retriever: a b"));
    }
}
