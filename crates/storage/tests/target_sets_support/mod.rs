//! What the tests of target sets have in common: sets of which every byte follows from a number.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "this is part of each test file")]

use nexus_storage::{SetDtype, SetInfo, SetName, SetWriter, TargetOptions, TargetSets};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

pub fn open(folder: &Path) -> TargetSets {
    TargetSets::open(folder, TargetOptions::default()).unwrap()
}

pub fn name(name: &str) -> SetName {
    SetName::parse(name).unwrap()
}

/// Bytes that are unlike those of another seed; storage does not look at what they mean.
pub fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed.wrapping_mul(31).wrapping_add(i).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

pub fn norms(seed: usize, rows: usize) -> Vec<f64> {
    (0..rows).map(|i| 1.0 + seed as f64 + i as f64 / 3.0).collect()
}

/// A set with ids `<seed>/<row>`.
pub fn put(sets: &TargetSets, set: &str, seed: usize, rows: usize) -> (SetInfo, bool) {
    let mut writer = sets.begin(&name(set)).unwrap();
    fill(&mut writer, seed, rows);
    writer.finish().unwrap()
}

pub fn fill(writer: &mut SetWriter, seed: usize, rows: usize) {
    writer.set_shape(SetDtype::F32, 8).unwrap();
    writer.push(&bytes(seed, rows * 32), &norms(seed, rows)).unwrap();
    writer.push_ids((0..rows).map(|row| format!("{seed}/{row}"))).unwrap();
}

pub fn assert_is(sets: &TargetSets, set: &str, seed: usize, rows: usize) {
    let set = sets.get(set).unwrap();
    assert_eq!(set.rows(), bytes(seed, rows * 32));
    assert_eq!(set.norms(), norms(seed, rows));
    assert!((0..rows).all(|row| set.id(row) == Some(&format!("{seed}/{row}"))));
    assert_eq!(set.id(rows), None);
}

pub fn names(sets: &TargetSets) -> Vec<String> {
    sets.list().into_iter().map(|info| info.name).collect()
}

/// The files of sets, whole ones and temporary ones.
pub fn set_files(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.ends_with(".safetensors") || name.starts_with(".writing-")
        })
        .collect();
    files.sort();
    files
}

pub fn copy(from: &Path) -> TempDir {
    let to = tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}
