//! The files of a model: a folder mapped into memory, a folder whose weights are still on their way, or bytes that the
//! binary carries.
//!
//! This is the one place of the crate with `unsafe`, for the memory map.

#![allow(unsafe_code)]

use crate::LoadError;
use memmap2::Mmap;
use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// Blocks until the file of a name is complete in its folder, and says why where that will never be. Called for one name
/// more than once, and from several threads.
pub type WaitForFile = Arc<dyn Fn(&str) -> Result<(), Box<dyn Error + Send + Sync>> + Send + Sync>;

/// The files of a model by name (`config.json`, `model.safetensors`). Names may hold one folder: `1_Pooling/config.json`.
pub struct ModelFiles {
    folder: String,
    /// Where they are on this machine's disk.
    path: Option<PathBuf>,
    files: BTreeMap<String, Bytes>,
}

enum Bytes {
    Static(&'static [u8]),
    Mapped(Mmap),
    Owned(Vec<u8>),
    Arriving(Arriving),
}

/// A file that is waited for when somebody needs it.
struct Arriving {
    path: PathBuf,
    wait: WaitForFile,
    content: OnceLock<Box<Bytes>>,
}

const POOLING: &str = "1_Pooling/config.json";

impl ModelFiles {
    /// Files that the binary carries.
    pub fn from_static(folder: &str, files: &[(&str, &'static [u8])]) -> Self {
        let files = files.iter().map(|&(name, bytes)| (name.to_owned(), Bytes::Static(bytes))).collect();
        Self { folder: folder.to_owned(), path: None, files }
    }

    /// Opens what a model needs of a folder: every `.json` and `.safetensors` in it, and `1_Pooling/config.json`.
    /// Safetensors files are mapped, the rest is read.
    ///
    /// The files must not change while the model loads: a mapped file that shrinks ends the process with SIGBUS.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let read_error = |path: &Path| {
            let path = path.to_owned();
            move |source| LoadError::Read { path, source }
        };
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(read_error(folder))? {
            let path = entry.map_err(read_error(folder))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            let bytes = if name.ends_with(".safetensors") {
                map_or_read(&path).map_err(read_error(&path))?
            } else if name.ends_with(".json") {
                Bytes::Owned(std::fs::read(&path).map_err(read_error(&path))?)
            } else {
                continue;
            };
            files.insert(name.to_owned(), bytes);
        }
        let pooling = folder.join(POOLING);
        if pooling.is_file() {
            files.insert(POOLING.to_owned(), Bytes::Owned(std::fs::read(&pooling).map_err(read_error(&pooling))?));
        }
        Ok(Self { folder: folder.display().to_string(), path: Some(folder.to_owned()), files })
    }

    /// The files of `names` in a folder into which they are being brought: `wait` tells when one is complete. What is not
    /// weights is small, and is waited for and read here. A safetensors file is waited for when it is first needed, so
    /// that the weights of one file are prepared while the next is on its way.
    ///
    /// Names that [`ModelFiles::open`] would not look at are left out. A file that is complete must not change any more,
    /// as there.
    ///
    /// # Errors
    ///
    /// When a small file does not come or can not be read.
    pub fn arriving<'a>(
        folder: &Path,
        names: impl IntoIterator<Item = &'a str>,
        wait: &WaitForFile,
    ) -> Result<Self, LoadError> {
        let mut files = BTreeMap::new();
        for name in names {
            let path = folder.join(name);
            if name.ends_with(".safetensors") && !name.contains('/') {
                let arriving = Arriving { path, wait: wait.clone(), content: OnceLock::new() };
                files.insert(name.to_owned(), Bytes::Arriving(arriving));
            } else if name == POOLING || name.ends_with(".json") && !name.contains('/') {
                wait(name).map_err(|source| LoadError::NotArrived { file: path.display().to_string(), source })?;
                let content = std::fs::read(&path).map_err(|source| LoadError::Read { path, source })?;
                files.insert(name.to_owned(), Bytes::Owned(content));
            }
        }
        Ok(Self { folder: folder.display().to_string(), path: Some(folder.to_owned()), files })
    }

    /// The folder on this machine's disk, if they are in one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Says that bytes `range` of a file will be read soon, so that they come from the disk meanwhile.
    pub(crate) fn will_read(&self, name: &str, range: Range<usize>) {
        if let Some(map) = self.files.get(name).and_then(Bytes::mapped) {
            let end = range.end.min(map.len());
            // A wish, and only that.
            #[cfg(unix)]
            if range.start < end {
                let _ = map.advise_range(memmap2::Advice::WillNeed, range.start, end - range.start);
            }
        }
    }

    /// Says that bytes `range` of a file will not be read again, so that they need not stay in memory. Who reads them still
    /// gets them.
    pub(crate) fn was_read(&self, name: &str, range: Range<usize>) {
        if let Some(map) = self.files.get(name).and_then(Bytes::mapped) {
            // SAFETY: the map is shared and of a file that is only read: what is dropped is read from the file again.
            #[cfg(unix)]
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }

    /// Whether some file may still be on its way.
    pub fn may_arrive(&self) -> bool {
        self.files.values().any(|bytes| matches!(bytes, Bytes::Arriving(arriving) if arriving.content.get().is_none()))
    }

    /// Where the files are, for people.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The name of a file with its folder, for messages.
    pub fn describe(&self, name: &str) -> String {
        format!("{}/{name}", self.folder.trim_end_matches('/'))
    }

    /// The content of a file that is here. `None`, too, for a file on its way that nobody has waited for:
    /// [`ModelFiles::require`] waits.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name)?.here()
    }

    /// The content of a file that has to be there; waits for one that is on its way.
    pub fn require(&self, name: &str, hint: &'static str) -> Result<&[u8], LoadError> {
        let missing = || LoadError::MissingFile { folder: self.folder.clone(), file: name.to_owned(), hint };
        let bytes = self.files.get(name).ok_or_else(missing)?;
        if let Bytes::Arriving(arriving) = bytes
            && arriving.content.get().is_none()
        {
            let Arriving { path, wait, content } = arriving;
            wait(name).map_err(|source| LoadError::NotArrived { file: self.describe(name), source })?;
            let mapped = map_or_read(path).map_err(|source| LoadError::Read { path: path.clone(), source })?;
            // Whoever waited as well has the same file.
            let _ = content.set(Box::new(mapped));
        }
        bytes.here().ok_or_else(missing)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

impl Bytes {
    fn mapped(&self) -> Option<&Mmap> {
        match self {
            Bytes::Mapped(map) => Some(map),
            Bytes::Arriving(arriving) => arriving.content.get()?.mapped(),
            Bytes::Static(_) | Bytes::Owned(_) => None,
        }
    }

    fn here(&self) -> Option<&[u8]> {
        match self {
            Bytes::Static(bytes) => Some(bytes),
            Bytes::Mapped(map) => Some(map),
            Bytes::Owned(bytes) => Some(bytes),
            Bytes::Arriving(arriving) => arriving.content.get()?.here(),
        }
    }
}

impl fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelFiles").field("folder", &self.folder).field("names", &self.files.keys()).finish()
    }
}

fn map_or_read(path: &Path) -> std::io::Result<Bytes> {
    if std::fs::metadata(path)?.len() == 0 {
        // An empty file can not be mapped; its content is refused later, by name.
        return Ok(Bytes::Owned(Vec::new()));
    }
    map(path).map(Bytes::Mapped)
}

/// Maps a file, which must not be shortened while somebody holds the map.
pub(crate) fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the map is only read. That nobody shortens the file while it is in use is the documented condition of
    // `ModelFiles::open` and of `ModelFiles::arriving`; files of packed weights are only ever replaced as a whole.
    unsafe { Mmap::map(&file) }
}
