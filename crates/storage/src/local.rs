//! Models in folders of this machine.

use crate::model_store::{FetchProgress, ModelStore, ModelStoreError, Progress};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use std::io;
use std::path::{Component, Path, PathBuf};

/// The file that makes a folder a model.
const CONFIG: &str = "config.json";

/// Model folders under one root. Nothing is copied: `fetch` answers where the folder is.
#[derive(Clone, Debug)]
pub struct LocalModels {
    root: PathBuf,
}

impl LocalModels {
    /// Models under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn find(&self, path: &str) -> Result<(PathBuf, u64), ModelStoreError> {
        let folder = self.root.join(self.relative(path)?);
        let metadata = folder.metadata().map_err(|source| read_error(&folder, source))?;
        if !metadata.is_dir() {
            return Err(ModelStoreError::NotADirectory { place: folder.display().to_string() });
        }
        match folder.join(CONFIG).metadata() {
            Ok(config) if config.is_file() => {}
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(read_error(&folder.join(CONFIG), source));
            }
            _ => return Err(ModelStoreError::NotAModel { place: folder.display().to_string(), file: CONFIG }),
        }
        let bytes = bytes_of_files(&folder).map_err(|source| read_error(&folder, source))?;
        Ok((folder, bytes))
    }

    /// A leading slash is an object store's habit and means the root here, not the machine's.
    fn relative(&self, path: &str) -> Result<PathBuf, ModelStoreError> {
        let mut relative = PathBuf::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => relative.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    let root = self.root.display().to_string();
                    return Err(ModelStoreError::OutsideRoot { path: path.to_owned(), root });
                }
            }
        }
        Ok(relative)
    }
}

impl ModelStore for LocalModels {
    fn name(&self) -> String {
        format!("folder {}", self.root.display())
    }

    fn fetch<'a>(
        &'a self,
        path: &'a str,
        progress: &'a Progress<'a>,
    ) -> BoxFuture<'a, Result<PathBuf, ModelStoreError>> {
        // A handful of stat calls: not worth another thread.
        let found = self.find(path).map(|(folder, bytes)| {
            progress(FetchProgress { bytes_done: bytes, bytes_total: bytes });
            folder
        });
        ready(found).boxed()
    }
}

fn bytes_of_files(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in folder.read_dir()? {
        // Through links: model folders of download tools are full of them. One that leads nowhere has no size, and
        // whoever needs the file will say so.
        // What begins with a dot is other tools', or weights that were packed.
        let entry = entry?;
        if let Ok(metadata) = entry.path().metadata()
            && metadata.is_file()
            && !entry.file_name().as_encoded_bytes().starts_with(b".")
        {
            bytes += metadata.len();
        }
    }
    Ok(bytes)
}

fn read_error(path: &Path, source: io::Error) -> ModelStoreError {
    let place = path.display().to_string();
    match source.kind() {
        io::ErrorKind::NotFound => ModelStoreError::NotFound {
            place,
            advice: "check the bucket setting and the model's path setting, which are joined to this".to_owned(),
        },
        io::ErrorKind::NotADirectory => ModelStoreError::NotADirectory { place },
        io::ErrorKind::PermissionDenied => ModelStoreError::Denied {
            place,
            advice: "let the user that runs the service read this folder and enter those above it".to_owned(),
        },
        _ => ModelStoreError::Io { place, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use std::fs;
    use std::sync::Mutex;

    fn model(root: &Path, path: &str) -> PathBuf {
        let folder = root.join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(CONFIG), "{}").unwrap();
        fs::write(folder.join("model.safetensors"), [0; 100]).unwrap();
        folder
    }

    fn fetch(root: &Path, path: &str) -> Result<PathBuf, ModelStoreError> {
        block_on(LocalModels::new(root).fetch(path, &|_| {}))
    }

    #[test]
    fn finds_the_folder_however_it_is_written() {
        let root = tempfile::tempdir().unwrap();
        let folder = model(root.path(), "models/a");
        for path in ["models/a", "models/a/", "/models/a/", "./models//a", "//models/a"] {
            assert_eq!(fetch(root.path(), path).unwrap(), folder, "{path}");
        }
        model(root.path(), ".");
        assert!(fetch(root.path(), "").is_ok(), "the root itself");
    }

    #[test]
    fn progress_is_told_once() {
        let root = tempfile::tempdir().unwrap();
        model(root.path(), "a");
        let told = Mutex::new(Vec::new());
        block_on(LocalModels::new(root.path()).fetch("a", &|progress| told.lock().unwrap().push(progress))).unwrap();
        assert_eq!(*told.lock().unwrap(), [FetchProgress { bytes_done: 102, bytes_total: 102 }]);
    }

    #[test]
    fn errors_name_the_place_and_say_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let place = |path: &str| root.path().join(path).display().to_string();
        fs::write(root.path().join("file"), "").unwrap();
        fs::create_dir_all(root.path().join("empty/config.json")).unwrap();
        for (path, expected) in [
            (
                "absent",
                format!(
                    "{} does not exist: check the bucket setting and the model's path setting, which are joined to this",
                    place("absent")
                ),
            ),
            ("file", format!("{} is not a folder: name the folder that holds the model's config.json", place("file"))),
            (
                "file/x",
                format!("{} is not a folder: name the folder that holds the model's config.json", place("file/x")),
            ),
            (
                "empty",
                format!(
                    "{} has no config.json: a model folder holds config.json, tokenizer.json and *.safetensors",
                    place("empty")
                ),
            ),
            (
                "a/../../etc",
                format!("\"a/../../etc\" has a `..` in it: model paths stay inside {}", root.path().display()),
            ),
        ] {
            assert_eq!(fetch(root.path(), path).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn the_source_of_an_error_is_kept() {
        let error = read_error(Path::new("/x"), io::Error::other("the disk is on fire"));
        let source = std::error::Error::source(&error).unwrap();
        assert_eq!(
            (error.to_string().as_str(), source.to_string().as_str()),
            ("cannot read /x", "the disk is on fire")
        );
        assert!(matches!(
            read_error(Path::new("/x"), io::ErrorKind::PermissionDenied.into()),
            ModelStoreError::Denied { .. }
        ));
    }
}
