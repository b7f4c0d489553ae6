//! What is remembered of files, and the file that it lies in.
//!
//! Text, one line a file: digest, size, modification time, change time, path. The first line names the version, the
//! last holds the SHA-256 of all lines before it, so that a torn or edited memo is noticed and ignored.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, process};

const FIRST_LINE: &str = "nexus digests 1\n";
/// A memo is never near this; beyond, it is something else.
const MEMO_BYTES_MAX: u64 = 16 << 20;
/// A file that changed within this time of being looked at may change again without its time showing it, where the file
/// system counts in seconds. Such a file is not remembered yet.
const SETTLED: Duration = Duration::from_secs(3);

/// What tells that a file is the same as before without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileState {
    bytes: u64,
    modified_ns: i128,
    /// The inode's change time, which no tool sets: tells of a file that was replaced and given its old time back.
    /// Zero where there is none.
    changed_ns: i128,
}

impl FileState {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
        }
        #[cfg(unix)]
        let changed_ns = {
            use std::os::unix::fs::MetadataExt;
            i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec())
        };
        #[cfg(not(unix))]
        let changed_ns = 0;
        Ok(Self { bytes: metadata.len(), modified_ns: nanoseconds(metadata.modified()?), changed_ns })
    }

    /// Whether the content is that of `other`, as far as one can tell who has read the file in between. A link that was made
    /// or removed is no change.
    pub(super) fn is_content_of(&self, other: &Self) -> bool {
        (self.bytes, self.modified_ns) == (other.bytes, other.modified_ns)
    }

    fn is_settled(&self) -> bool {
        nanoseconds(SystemTime::now()) - self.modified_ns.max(self.changed_ns) >= SETTLED.as_nanos() as i128
    }
}

fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

#[derive(Debug, Default)]
pub(super) struct Memo {
    files: BTreeMap<PathBuf, (FileState, [u8; 32])>,
}

impl Memo {
    /// The memo at `path`; empty where there is none, or none that is whole.
    pub(super) fn load(path: &Path) -> Self {
        let readable = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= MEMO_BYTES_MAX);
        let text = if readable { fs::read_to_string(path) } else { return Self::default() };
        match text.ok().as_deref().and_then(parse) {
            Some(files) => Self { files },
            None => {
                tracing::warn!(path = %path.display(), "ignoring a damaged memo of digests; they are computed again");
                Self::default()
            }
        }
    }

    pub(super) fn get(&self, path: &Path, state: &FileState) -> Option<[u8; 32]> {
        self.files.get(path).filter(|(known, _)| known == state).map(|(_, digest)| *digest)
    }

    pub(super) fn insert(&mut self, path: &Path, state: &FileState, digest: [u8; 32]) {
        if state.is_settled() {
            self.insert_settled(path, state, digest);
        }
    }

    pub(super) fn insert_settled(&mut self, path: &Path, state: &FileState, digest: [u8; 32]) {
        // A path that does not fit on a line is read again each time; nobody has one.
        if path.to_str().is_some_and(|path| !path.contains(['\n', '\r'])) {
            self.files.insert(path.to_owned(), (state.clone(), digest));
        }
    }

    /// Replaces the memo at `path`, with what other processes remembered since added to this one and files that are
    /// gone left out.
    pub(super) fn save(&mut self, path: &Path) -> io::Result<()> {
        for (file, known) in Self::load(path).files {
            self.files.entry(file).or_insert(known);
        }
        self.files.retain(|file, _| file.exists());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let temporary = path.with_extension(format!("{}.tmp", process::id()));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(self.to_text().as_bytes())?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| fs::rename(&temporary, path));
        if renamed.is_err() {
            fs::remove_file(&temporary).ok();
        }
        renamed
    }

    fn to_text(&self) -> String {
        let mut text = FIRST_LINE.to_owned();
        for (path, (state, digest)) in &self.files {
            let FileState { bytes, modified_ns, changed_ns } = state;
            let (digest, path) = (hex(digest), path.display());
            // Writing to a string does not fail.
            let _ = writeln!(text, "{digest} {bytes} {modified_ns} {changed_ns} {path}");
        }
        let checksum = hex(&Sha256::digest(text.as_bytes()).into());
        text + &checksum + "\n"
    }
}

pub(super) fn parse(text: &str) -> Option<BTreeMap<PathBuf, (FileState, [u8; 32])>> {
    let (content, checksum) = text.strip_suffix('\n')?.rsplit_once('\n')?;
    let content_bytes = &text.as_bytes()[..content.len() + 1];
    if checksum != hex(&Sha256::digest(content_bytes).into()) {
        return None;
    }
    let lines = text[..content.len() + 1].strip_prefix(FIRST_LINE)?;
    lines.lines().map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(PathBuf, (FileState, [u8; 32]))> {
    let mut parts = line.splitn(5, ' ');
    let digest = from_hex(parts.next()?)?;
    let bytes = parts.next()?.parse().ok()?;
    let modified_ns = parts.next()?.parse().ok()?;
    let changed_ns = parts.next()?.parse().ok()?;
    Some((PathBuf::from(parts.next()?), (FileState { bytes, modified_ns, changed_ns }, digest)))
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn from_hex(hex: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return None };
    if pairs.len() != digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}
