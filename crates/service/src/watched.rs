//! Files that are read again when what is in them changes: API keys, certificates.
//!
//! They are small and looked at each second, as a whole: their times and lengths may stay when their text does not, and mounts
//! of secrets swap links that a watch on a file does not see.

use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often files are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a file held.
pub(crate) type ContentDigest = [u8; 32];

/// Files of one purpose, and what they held when they were read first: a change before the watch begins is a change, too.
#[derive(Debug)]
pub(crate) struct Watched {
    paths: Vec<PathBuf>,
    read: ContentDigest,
}

impl Watched {
    /// The files at `paths`, which held `contents`.
    pub(crate) fn new<'a>(paths: &[&Path], contents: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self { paths: paths.iter().map(|&path| path.to_owned()).collect(), read: digest(contents) }
    }

    /// Gives the contents to `take` whenever they change, for ever; or why they can not be read.
    pub(crate) async fn watch(&self, pause: Duration, take: impl Fn(Result<Vec<Vec<u8>>, String>)) {
        let mut seen = Ok(self.read);
        loop {
            tokio::time::sleep(pause).await;
            let paths = self.paths.clone();
            // A mount that hangs holds nobody else up.
            let read_all = move || paths.iter().map(|path| read(path)).collect::<Result<Vec<_>, _>>();
            let contents = tokio::task::spawn_blocking(read_all).await.unwrap_or_else(|error| Err(error.to_string()));
            let now = contents.as_ref().map(|contents| digest(contents.iter().map(Vec::as_slice))).map_err(|_| ());
            if now != seen {
                seen = now;
                take(contents);
            }
        }
    }
}

/// What is in a file, or why that is not known.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn digest<'a>(contents: impl IntoIterator<Item = &'a [u8]>) -> ContentDigest {
    let mut all = Sha256::new();
    for content in contents {
        // Each by its own digest, so that what ends one can not begin the next.
        all.update(Sha256::digest(content));
    }
    all.finalize().into()
}
