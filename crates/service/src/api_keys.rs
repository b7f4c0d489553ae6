//! API keys: who may ask, by names, where the operator says so.
//!
//! A key is known by the SHA-256 of its bytes alone, in the settings and in memory: who reads them can not use them. Plain
//! SHA-256 is enough for keys that `nexus key` makes, of 256 random bits; it would not be for passwords.
//!
//! Deliberately absent: how a key comes with a request (`http::keys`), scopes and expiry. Who gets a name of their own can be
//! shut out by taking its line away.

use crate::watched::{self, LOOK_EVERY, Watched};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// What a line or an entry looks like.
const FORM: &str = "name:digest, with a name of 1 to 64 letters, digits, `.`, `_` and `-`, and the key's SHA-256 in 64 \
                    hexadecimal digits; `nexus key NAME` makes both";

/// Without any key, nobody could ask.
const EMPTY: &str = "at least one key";

/// The digest of a key.
pub type KeyDigest = [u8; 32];

/// A key by its digest, and whose it is.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// What the log calls the client.
    pub name: Arc<str>,
    /// The SHA-256 of the key.
    pub digest: KeyDigest,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ApiKey").field(&self.name).finish()
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        self.digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The SHA-256 of a key.
pub fn digest_of(key: &[u8]) -> KeyDigest {
    Sha256::digest(key).into()
}

impl FromStr for ApiKey {
    type Err = String;

    fn from_str(entry: &str) -> Result<Self, String> {
        // What does not parse may be a key that was put in instead of its digest: it is not quoted.
        let (name, digest) = entry.trim().split_once(':').ok_or(FORM)?;
        let (name, digest) = (name.trim(), parse_digest(digest.trim()).ok_or(FORM)?);
        if !is_name(name) {
            return Err(FORM.to_owned());
        }
        Ok(Self { name: name.into(), digest })
    }
}

/// Whether a client may be called so, in logs and files.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn parse_digest(text: &str) -> Option<KeyDigest> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// Entries with commas between them. An error says what was expected.
pub fn parse_list(list: &str) -> Result<Vec<ApiKey>, String> {
    let entries = list.split(',').filter(|entry| !entry.trim().is_empty());
    let keys = entries.map(str::parse).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(EMPTY.to_owned()) } else { Ok(keys) }
}

/// One entry a line; what follows `#` at the begin of a line is for people.
pub fn parse_file(text: &str) -> Result<Vec<ApiKey>, String> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let entries = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let keys = entries
        .map(|(number, line)| line.parse().map_err(|error| format!("line {number}: expected {error}")))
        .collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() { Err(format!("expected {EMPTY}")) } else { Ok(keys) }
}

/// All keys that are good now.
#[derive(Debug)]
pub struct ApiKeys {
    settled: Vec<ApiKey>,
    file: Option<Watched>,
    of_file: RwLock<Vec<ApiKey>>,
}

impl ApiKeys {
    /// Those of the settings, and of a file, where there is one; nothing where there are neither.
    ///
    /// # Errors
    ///
    /// What is wrong with the file: keys that were meant and are not there must not let everybody in.
    pub fn open(settled: &[ApiKey], file: Option<&Path>) -> Result<Option<Self>, String> {
        if settled.is_empty() && file.is_none() {
            return Ok(None);
        }
        let (file, of_file) = match file {
            Some(path) => {
                let content = watched::read(path).map_err(|error| of_file(&error))?;
                let keys = parse_content(&content).map_err(|error| of_file(&format!("{}: {error}", path.display())))?;
                (Some(Watched::new(&[path], [&*content])), keys)
            }
            None => (None, Vec::new()),
        };
        Ok(Some(Self { settled: settled.to_vec(), file, of_file: RwLock::new(of_file) }))
    }

    /// Whose key has this digest. Every key is compared, so that it takes as long for each.
    pub fn name_of(&self, same: impl Fn(&KeyDigest) -> bool) -> Option<Arc<str>> {
        let of_file = self.of_file.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for key in self.settled.iter().chain(of_file.iter()) {
            if same(&key.digest) {
                found = Some(&key.name);
            }
        }
        found.cloned()
    }

    /// Reads the file again whenever it changes, for ever. A file that is wrong or gone changes nothing but the log.
    pub async fn watch(&self) {
        self.watch_every(LOOK_EVERY).await;
    }

    async fn watch_every(&self, pause: Duration) {
        let Some(file) = &self.file else { return std::future::pending().await };
        let take = |contents: Result<Vec<Vec<u8>>, String>| match contents
            .and_then(|contents| parse_content(&contents.concat()))
        {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "the file of API keys was read again");
                *self.of_file.write().unwrap_or_else(PoisonError::into_inner) = keys;
            }
            Err(error) => tracing::error!(error = of_file(&error), "API keys stay what they were"),
        };
        file.watch(pause, take).await;
    }
}

fn parse_content(content: &[u8]) -> Result<Vec<ApiKey>, String> {
    parse_file(std::str::from_utf8(content).map_err(|error| error.to_string())?)
}

fn of_file(error: &str) -> String {
    format!("NEXUS_API_KEYS_FILE={error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(20);

    fn entry(name: &str, key: &str) -> String {
        ApiKey { name: name.into(), digest: digest_of(key.as_bytes()) }.to_string()
    }

    #[test]
    fn a_key_is_known_by_what_sha256sum_says() {
        // FIPS 180-4, the example "abc".
        let expected = "ci:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(entry("ci", "abc"), expected);
        assert_eq!(expected.parse::<ApiKey>().expect("a key").to_string(), expected);
    }

    #[test]
    fn wrong_entries_are_not_quoted() {
        let secret = "hunter2hunter2";
        for wrong in [secret.to_owned(), format!("ci:{secret}"), format!("{secret}{secret}{secret}{secret}{secret}:00")]
        {
            let error = wrong.parse::<ApiKey>().expect_err("no digest");
            assert!(error.contains("nexus key NAME") && !error.contains(secret), "{error}");
        }
        assert!(parse_list(" , ").is_err());
        assert!(parse_file("# nobody\n\n").is_err());
        let file = format!("# people\n{}\nrobot\n", entry("ann", "a"));
        assert!(parse_file(&file).expect_err("no digest").starts_with("line 3: "));
    }

    #[test]
    fn a_file_that_is_not_there_does_not_let_everybody_in() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(ApiKeys::open(&[], Some(&folder.path().join("keys"))).is_err());
        assert!(ApiKeys::open(&[], None).expect("nothing asked for").is_none());
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_wrong_one_is_not_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys");
        std::fs::write(&file, entry("ann", "a")).expect("written");
        let settled = parse_list(&entry("robot", "r")).expect("a key");
        let keys = ApiKeys::open(&settled, Some(&file)).expect("a file").expect("keys");
        let name = |key: &str| keys.name_of(|digest| *digest == digest_of(key.as_bytes()));
        assert_eq!((name("a").as_deref(), name("r").as_deref(), name("b")), (Some("ann"), Some("robot"), None));
        // The first change comes before the watch begins.
        let changes = async {
            for (text, of_a, of_b) in [
                (format!("{}\n{}\n", entry("ann", "a"), entry("bob", "b")), true, true),
                (entry("bob", "b"), false, true),
                ("nonsense".to_owned(), false, true),
            ] {
                std::fs::write(&file, text).expect("written");
                let as_it_should = || (name("a").is_some(), name("b").is_some()) == (of_a, of_b);
                // A wrong file changes nothing, however long one waits.
                tokio::time::sleep(PAUSE * 3).await;
                let came = async {
                    while !as_it_should() {
                        tokio::time::sleep(PAUSE).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(60), came).await.expect("in time");
            }
            std::fs::remove_file(&file).expect("removed");
            tokio::time::sleep(PAUSE * 3).await;
            assert!(name("b").is_some() && name("r").is_some());
        };
        tokio::select! {
            biased;
            () = changes => {}
            () = keys.watch_every(PAUSE) => unreachable!("it never ends"),
        }
    }
}
