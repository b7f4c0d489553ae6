//! Prepared weights in a file: used where they are those of the model, and only there.

#![forbid(unsafe_code)]

use nexus_compute::cpu::{Cpu, CpuOptions};
use nexus_compute::{Backend, PackedBatch, Pooling};
use nexus_models::{
    ModelFiles, PackedFileError, PackedModel, PackedWeights, PackedWriter, Weights,
    config::Config,
    modernbert::{ModernBert, ModernBertConfig},
    qwen3::{Qwen3, Qwen3Config},
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

const CASES: [&str; 4] = ["qwen3-gqa-f32", "qwen3-sharded-f16", "modernbert-biases-f32", "qwen3-bias-f32"];
const DIGEST: [u8; 32] = [7; 32];

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap())
}

fn layout() -> String {
    cpu().packed_layout().unwrap()
}

fn load(case: &str, packed: &PackedWeights) -> Box<dyn PackedModel> {
    let files = ModelFiles::open(&golden(case)).unwrap();
    let config = Config::read(&files, "config.json").unwrap();
    let weights = Weights::open(&files, &|_, _| ()).unwrap().with_packed(Some(packed));
    if case.starts_with("qwen3") {
        let config = Qwen3Config::new(&config).unwrap();
        Box::new(Qwen3::load(cpu(), config, Pooling::Last, 64, weights).unwrap())
    } else {
        Box::new(ModernBert::load(cpu(), ModernBertConfig::new(&config).unwrap(), 64, weights).unwrap())
    }
}

fn rows(model: &dyn PackedModel) -> Vec<f32> {
    let sequences: [Vec<u32>; 3] = [vec![1, 2, 3, 4, 5], vec![9], (0..40).collect()];
    model.forward(&PackedBatch::new(&sequences).unwrap()).unwrap()
}

/// A folder with the packed weights of a case, and what the model gave when they were prepared.
fn packed(case: &str) -> (TempDir, PathBuf, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let packed = PackedWeights::new(folder.path(), &layout());
    let before = rows(&*load(case, &packed));
    let writer = packed.into_writer().unwrap();
    assert!(writer.write(&DIGEST, &|| true).unwrap());
    let path = writer.path().to_owned();
    assert_eq!(names(folder.path()), [path.file_name().unwrap().to_str().unwrap()]);
    (folder, path, before)
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn map(folder: &Path, digest: &[u8; 32]) -> Result<PackedWeights, PackedFileError> {
    let mut packed = PackedWeights::new(folder, &layout());
    packed.map(digest).map(|()| packed)
}

#[test]
fn a_mapped_model_gives_the_same_to_the_bit() {
    for case in CASES {
        let (folder, _, before) = packed(case);
        let packed = map(folder.path(), &DIGEST).unwrap();
        let model = load(case, &packed);
        assert!(packed.prepared().is_empty(), "{case}: {:?} did not come from the file", packed.prepared());
        assert!(packed.into_writer().is_none());
        assert_eq!(rows(&*model), before, "{case}");
        // The file may be replaced while it is in use.
        fs::remove_dir_all(folder.path()).unwrap();
        assert_eq!(rows(&*model), before, "{case}");
    }
}

#[test]
fn other_weights_and_no_file_are_told() {
    let (folder, path, _) = packed(CASES[0]);
    assert!(matches!(map(folder.path(), &[8; 32]), Err(PackedFileError::OtherWeights)));
    fs::remove_file(path).unwrap();
    assert!(matches!(map(folder.path(), &DIGEST), Err(PackedFileError::Absent)));
}

#[test]
fn a_file_of_another_layout_is_refused_whatever_it_is_called() {
    let (folder, path, _) = packed(CASES[0]);
    let mut other = PackedWeights::new(folder.path(), "another");
    assert_ne!(other.path(), path);
    fs::rename(&path, other.path()).unwrap();
    assert!(matches!(other.map(&DIGEST), Err(PackedFileError::Malformed(_))));
}

#[test]
fn damage_is_noticed() {
    let (folder, path, _) = packed(CASES[0]);
    let whole = fs::read(&path).unwrap();
    let header_end = 48 + u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    let refused = |bytes: &[u8], what: &str| {
        // Replaced as a whole, as the file's maps may expect.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let found = map(folder.path(), &DIGEST);
        assert!(matches!(found, Err(PackedFileError::Malformed(_) | PackedFileError::Read(_))), "{what}: {found:?}");
    };
    for length in [0, 7, 47, 48, header_end - 1, header_end, whole.len() - 1] {
        refused(&whole[..length], &format!("{length} bytes"));
    }
    for at in (0..header_end).step_by(41).chain([0, 8, 15, 16, 47, 48, header_end - 1]) {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        refused(&damaged, &format!("a bit of byte {at}"));
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(map(folder.path(), &DIGEST).is_err(), "a longer file");
    fs::write(&path, &whole).unwrap();
    map(folder.path(), &DIGEST).unwrap();
}

fn writer(folder: &Path) -> PackedWriter {
    let packed = PackedWeights::new(folder, &layout());
    load(CASES[0], &packed);
    packed.into_writer().unwrap()
}

#[test]
fn what_is_not_wanted_any_more_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!writer(folder.path()).write(&DIGEST, &|| false).unwrap());
    assert!(names(folder.path()).is_empty());
}

#[test]
fn what_a_killed_process_left_is_written_over() {
    let (folder, path, before) = packed(CASES[0]);
    fs::write(path.with_extension("partial"), vec![1; 1 << 20]).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(writer(folder.path()).write(&DIGEST, &|| true).unwrap());
    assert_eq!(names(folder.path()).len(), 1);
    assert_eq!(rows(&*load(CASES[0], &map(folder.path(), &DIGEST).unwrap())), before);
}

#[test]
fn one_process_writes_and_the_others_leave_it_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let first = writer(folder.path());
    let aside = fs::File::create(first.path().with_extension("partial")).unwrap();
    aside.lock().unwrap();
    assert!(!first.write(&DIGEST, &|| true).unwrap());
    assert!(!first.path().exists());
    drop(aside);
    assert!(first.write(&DIGEST, &|| true).unwrap());
}

#[test]
fn a_folder_that_takes_no_file_is_an_error_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let writer = writer(&folder.path().join("is not there"));
    assert!(writer.write(&DIGEST, &|| true).is_err());
}
