//! TLS: by settings, with a certificate that changes while the service runs.

use crate::support::{PATIENCE, Service, nexus, run};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A new certificate for this machine, in the files that the settings name.
fn write_certificate(folder: &Path) -> String {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).expect("written");
    made.cert.pem()
}

/// What a client that trusts this certificate alone is answered, and the protocol that was agreed on; nothing where it does
/// not trust the service.
fn ask(service: &Service, certificate: &str, protocol: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    let client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let socket = TcpStream::connect(service.url.trim_start_matches("https://")).expect("a connection");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let mut stream = StreamOwned::new(client, socket);
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let protocol = stream.conn.alpn_protocol()?.to_vec();
    Some((String::from_utf8_lossy(&answer).into_owned(), protocol))
}

fn is_answered(service: &Service, certificate: &str) -> bool {
    ask(service, certificate, b"http/1.1").is_some_and(|(answer, _)| answer.starts_with("HTTP/1.1 200 "))
}

#[test]
fn a_certificate_is_offered_and_a_new_one_without_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = write_certificate(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (certificate, key) = (file("cert.pem"), file("key.pem"));
    let env = [("NEXUS_TLS_CERT_FILE", certificate.as_str()), ("NEXUS_TLS_KEY_FILE", key.as_str())];
    let service = Service::start(&env);
    assert!(service.url.starts_with("https://"), "{}", service.url);
    assert!(is_answered(&service, &first));
    assert_eq!(ask(&service, &first, b"h2").expect("an answer").1, b"h2");
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate").cert.pem();
    assert!(!is_answered(&service, &stranger));

    // `nexus health` takes the certificate of the file, and no other.
    let port = service.url.rsplit(':').next().expect("a port").to_owned();
    let health = || run(&["health", "--port", &port], &env);
    assert_eq!(String::from_utf8_lossy(&health().stdout), "ok\n", "{:?}", health());
    assert_eq!(run(&["health", "--port", &port], &[]).status.code(), Some(1), "no TLS is no answer");

    // A plain connection is closed, and harms nobody.
    let plain = service.client.get(service.url.replace("https", "http")).send();
    assert!(plain.is_err());

    // A broken file changes nothing; a new pair is taken.
    std::fs::write(folder.path().join("cert.pem"), "nonsense").expect("written");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(is_answered(&service, &first));
    let second = write_certificate(folder.path());
    let began = Instant::now();
    while !is_answered(&service, &second) {
        assert!(began.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!is_answered(&service, &first));
    assert_eq!(health().status.code(), Some(0));
}

#[test]
fn settings_that_are_half_there_or_wrong_stop_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    write_certificate(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (certificate, key, none) = (file("cert.pem"), file("key.pem"), file("none.pem"));
    for (env, expected) in [
        (vec![("NEXUS_TLS_CERT_FILE", &certificate)], "NEXUS_TLS_KEY_FILE is not"),
        (vec![("NEXUS_TLS_KEY_FILE", &key)], "NEXUS_TLS_CERT_FILE is not"),
        (vec![("NEXUS_TLS_CERT_FILE", &none), ("NEXUS_TLS_KEY_FILE", &key)], "NEXUS_TLS_CERT_FILE="),
        (vec![("NEXUS_TLS_CERT_FILE", &key), ("NEXUS_TLS_KEY_FILE", &key)], "at least one certificate"),
        (vec![("NEXUS_TLS_CERT_FILE", &certificate), ("NEXUS_TLS_KEY_FILE", &certificate)], "private key"),
    ] {
        let mut command = nexus();
        command.args(["serve", "--port", "0"]).env("NEXUS_CACHE", "off").envs(env);
        let output = command.output().expect("it starts");
        assert_eq!(output.status.code(), Some(2));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(expected) && stderr.lines().count() == 1, "{stderr}");
    }
}
