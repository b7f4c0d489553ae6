//! TLS: a certificate and its key from two files, which are read again when they change.
//!
//! rustls decides what is offered: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1. Deliberately absent: certificates of clients, and
//! several names with certificates of their own; a proxy in front does both.

use crate::watched::{self, LOOK_EVERY, Watched};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// The certificate that connections are offered.
pub struct Tls {
    config: RwLock<Arc<ServerConfig>>,
    files: Watched,
}

impl Tls {
    /// With the certificate, and those between it and a root, in one PEM file, and its key in another.
    ///
    /// # Errors
    ///
    /// What is wrong with the files, by the settings that name them.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, String> {
        let read = |setting: &str, path: &Path| watched::read(path).map_err(|error| format!("{setting}={error}"));
        let certificates = read("NEXUS_TLS_CERT_FILE", certificate)?;
        let secret = read("NEXUS_TLS_KEY_FILE", key)?;
        let config = configure(&certificates, &secret)?;
        let files = Watched::new(&[certificate, key], [&*certificates, &*secret]);
        Ok(Self { config: RwLock::new(config), files })
    }

    /// Reads the files again whenever they change, for ever. What is wrong changes nothing but the log; connections that
    /// are open stay.
    pub async fn watch(&self) {
        self.watch_every(LOOK_EVERY).await;
    }

    async fn watch_every(&self, pause: Duration) {
        let take = |contents: Result<Vec<Vec<u8>>, String>| {
            let config = contents.and_then(|contents| match &contents[..] {
                [certificates, key] => configure(certificates, key),
                _ => Err("two files".to_owned()),
            });
            match config {
                Ok(config) => {
                    tracing::info!("the TLS certificate was read again");
                    *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
                }
                // Between the writing of the two files, they do not belong together.
                Err(error) => tracing::warn!(error, "the TLS certificate stays what it was"),
            }
        };
        self.files.watch(pause, take).await;
    }

    /// The server's side of a handshake.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        TlsAcceptor::from(config).accept(stream).await
    }
}

fn configure(certificates: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let chain = CertificateDer::pem_slice_iter(certificates)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("NEXUS_TLS_CERT_FILE: {error}: expected certificates in PEM"))?;
    if chain.is_empty() {
        return Err("NEXUS_TLS_CERT_FILE: expected at least one certificate in PEM".to_owned());
    }
    // What is wrong with a key is told without a word of it.
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| "NEXUS_TLS_KEY_FILE: expected a private key in PEM (PKCS #8, PKCS #1 or SEC 1)".to_owned())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("NEXUS_TLS_CERT_FILE, NEXUS_TLS_KEY_FILE: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_belong_together_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        let refused = |expected: &str| {
            let error = Tls::open(&certificate, &key).expect_err("wrong");
            assert!(error.contains(expected) && !error.contains("MII"), "{error}");
        };
        refused("NEXUS_TLS_CERT_FILE=");
        let [one, other] =
            [(); 2].map(|()| rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made"));
        std::fs::write(&certificate, "no PEM").expect("written");
        refused("NEXUS_TLS_KEY_FILE=");
        std::fs::write(&key, one.cert.pem()).expect("written");
        refused("at least one certificate");
        std::fs::write(&certificate, one.cert.pem()).expect("written");
        refused("expected a private key");
        std::fs::write(&key, other.signing_key.serialize_pem()).expect("written");
        refused("NEXUS_TLS_KEY_FILE: ");
        std::fs::write(&key, one.signing_key.serialize_pem()).expect("written");
        assert!(Tls::open(&certificate, &key).is_ok());
    }
}
