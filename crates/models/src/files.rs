//! The files of a model: a folder mapped into memory, or bytes that the binary carries.
//!
//! This is the one place of the crate with `unsafe`, for the memory map.

use crate::LoadError;
use memmap2::Mmap;
use std::{collections::BTreeMap, fmt, fs::File, path::Path};

/// The files of a model by name (`config.json`, `model.safetensors`). Names may hold one folder: `1_Pooling/config.json`.
pub struct ModelFiles {
    folder: String,
    files: BTreeMap<String, Bytes>,
}

enum Bytes {
    Static(&'static [u8]),
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl ModelFiles {
    /// Files that the binary carries.
    pub fn from_static(folder: &str, files: &[(&str, &'static [u8])]) -> Self {
        let files = files.iter().map(|&(name, bytes)| (name.to_owned(), Bytes::Static(bytes))).collect();
        Self { folder: folder.to_owned(), files }
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
                map(&path).map_err(read_error(&path))?
            } else if name.ends_with(".json") {
                Bytes::Owned(std::fs::read(&path).map_err(read_error(&path))?)
            } else {
                continue;
            };
            files.insert(name.to_owned(), bytes);
        }
        const POOLING: &str = "1_Pooling/config.json";
        let pooling = folder.join(POOLING);
        if pooling.is_file() {
            files.insert(POOLING.to_owned(), Bytes::Owned(std::fs::read(&pooling).map_err(read_error(&pooling))?));
        }
        Ok(Self { folder: folder.display().to_string(), files })
    }

    /// Where the files are, for people.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// The name of a file with its folder, for messages.
    pub fn describe(&self, name: &str) -> String {
        format!("{}/{name}", self.folder.trim_end_matches('/'))
    }

    /// The content of a file.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        Some(match self.files.get(name)? {
            Bytes::Static(bytes) => bytes,
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        })
    }

    /// The content of a file that has to be there.
    pub fn require(&self, name: &str, hint: &'static str) -> Result<&[u8], LoadError> {
        self.get(name).ok_or_else(|| LoadError::MissingFile {
            folder: self.folder.clone(),
            file: name.to_owned(),
            hint,
        })
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

impl fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelFiles").field("folder", &self.folder).field("names", &self.files.keys()).finish()
    }
}

fn map(path: &Path) -> std::io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        // An empty file can not be mapped; its content is refused later, by name.
        return Ok(Bytes::Owned(Vec::new()));
    }
    // SAFETY: the map is read-only and private to this process. That nobody shortens the file while it is in use is the
    // documented condition of `open`.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::Mapped(map))
}
