//! A model's files into a folder of their own.
//!
//! Weights become hard links where the file system allows, so that they take no space twice; small files are copied, as
//! people edit them. Each appears whole or not at all. What is there and the same stays; anything else is refused before
//! anything is touched.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

const TEMPORARY: &str = ".nexus.tmp";
const PROBE: &str = ".nexus-probe";

/// Refuses a folder that can not be one of a model, or not be written to, before the download. Makes it where it is not
/// there.
pub(super) fn check(dir: &Path) -> Result<(), String> {
    for (name, _) in files(dir, "").or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        io::ErrorKind::NotADirectory => Err(format!("{} is not a folder", dir.display())),
        _ => Err(format!("can not read {}: {error}", dir.display())),
    })? {
        if !name.ends_with(".json") && !name.ends_with(".safetensors") {
            return Err(alien(dir, &name));
        }
    }
    let probe = dir.join(PROBE);
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&probe, ""))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|error| format!("can not write to {}: {error}", dir.display()))
}

/// Puts the files of `folder` into `dir`, which may hold the same files already.
pub(super) fn place(folder: &Path, dir: &Path) -> Result<(), String> {
    check(dir)?;
    let failed = |error: io::Error| format!("can not put the model into {}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(failed)?;
    let wanted = files(folder, "").map_err(failed)?;
    let present = files(dir, "").map_err(failed)?;
    for (name, path) in &present {
        match wanted.get(name) {
            None => return Err(alien(dir, name)),
            Some(source) if !same(source, path).map_err(failed)? => {
                return Err(format!("{} holds another {name}: name an empty or a new folder", dir.display()));
            }
            Some(_) => {}
        }
    }
    wanted
        .iter()
        .filter(|(name, _)| !present.contains_key(*name))
        .try_for_each(|(name, source)| put(source, &dir.join(name)))
        .map_err(failed)
}

fn alien(dir: &Path, name: &str) -> String {
    format!("{} holds {name}, which is no part of the model: name an empty or a new folder", dir.display())
}

/// All files, by their names with folders; without what an earlier run left half-done, and without those that begin with
/// a dot, which are the download's own or other tools'.
fn files(folder: &Path, prefix: &str) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut all = BTreeMap::new();
    for entry in folder.read_dir()? {
        let path = entry?.path();
        let bare = path.file_name().unwrap_or_default().to_string_lossy();
        if bare.starts_with('.') {
            continue;
        }
        let name = format!("{prefix}{bare}");
        if path.is_dir() {
            all.extend(files(&path, &format!("{name}/"))?);
        } else if !name.ends_with(TEMPORARY) {
            all.insert(name, path);
        }
    }
    Ok(all)
}

fn same(a: &Path, b: &Path) -> io::Result<bool> {
    let (a, b) = (File::open(a)?, File::open(b)?);
    let (metadata_a, metadata_b) = (a.metadata()?, b.metadata()?);
    if metadata_a.len() != metadata_b.len() {
        return Ok(false);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        if (metadata_a.dev(), metadata_a.ino()) == (metadata_b.dev(), metadata_b.ino()) {
            return Ok(true);
        }
    }
    let (mut a, mut b) = (BufReader::with_capacity(1 << 20, a), BufReader::with_capacity(1 << 20, b));
    let (mut of_a, mut of_b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut left = metadata_a.len();
    while left > 0 {
        let bytes = left.min(of_a.len() as u64) as usize;
        a.read_exact(&mut of_a[..bytes])?;
        b.read_exact(&mut of_b[..bytes])?;
        if of_a[..bytes] != of_b[..bytes] {
            return Ok(false);
        }
        left -= bytes as u64;
    }
    Ok(true)
}

fn put(source: &Path, target: &Path) -> io::Result<()> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut temporary = target.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    // A link to a link is no plain file.
    let source = source.canonicalize()?;
    let weights = target.extension().is_some_and(|extension| extension == "safetensors");
    if !(weights && fs::hard_link(&source, &temporary).is_ok()) {
        fs::copy(&source, &temporary)?;
        File::open(&temporary)?.sync_all()?;
    }
    fs::rename(&temporary, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), content).unwrap();
        }
    }

    const MODEL: [(&str, &str); 3] =
        [("config.json", "{}"), ("model.safetensors", "abc"), ("1_Pooling/config.json", "[]")];

    #[test]
    fn puts_plain_files_and_agrees_with_itself() {
        let (model, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(model.path(), &MODEL);
        write(model.path(), &[(".nexus-manifest.json", "{}")]);
        let dir = out.path().join("a/b");
        // What a run that was ended left.
        write(&dir, &[("model.safetensors.nexus.tmp", "a"), ("config.json", "{}")]);
        for _ in 0..2 {
            place(model.path(), &dir).unwrap();
            let found = files(&dir, "").unwrap();
            assert_eq!(found.len(), MODEL.len());
            for (name, content) in MODEL {
                assert_eq!(fs::read_to_string(&found[name]).unwrap(), content);
                assert!(fs::symlink_metadata(&found[name]).unwrap().is_file());
            }
        }
    }

    #[test]
    fn what_is_something_else_stays_as_it_is() {
        let model = tempfile::tempdir().unwrap();
        write(model.path(), &MODEL);
        for (files_there, expected, early) in [
            ([("notes.txt", "mine")], "holds notes.txt", true),
            ([("config.json", "[]")], "holds another config.json", false),
            ([("other.safetensors", "abc")], "holds other.safetensors", false),
        ] {
            let out = tempfile::tempdir().unwrap();
            write(out.path(), &files_there);
            assert_eq!(check(out.path()).is_err(), early);
            let error = place(model.path(), out.path()).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert_eq!(files(out.path(), "").unwrap().len(), 1);
        }
        let file = model.path().join("config.json");
        assert!(check(&file).unwrap_err().contains("is not a folder"));
        assert!(check(&model.path().join("new")).is_ok());
    }
}
