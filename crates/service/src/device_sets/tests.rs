//! On the emulator, whose GPU is this project's kernels on the CPU.

use super::*;
use nexus_compute::cuda::CudaOptions;
use nexus_emulator::Emulated;
use nexus_storage::{SetName, TargetOptions, TargetSets};
use nexus_vectors::{Threads, top_k_many};
use std::time::{Duration, Instant};

const DIM: usize = 64;
const ROWS: usize = SET_BYTES_MIN / DIM / 4;

fn set(sets: &TargetSets, name: &str, seed: u32, rows: usize) -> Arc<TargetSet> {
    let mut state = seed;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let data: Vec<f32> = (0..rows * DIM).map(|_| number()).collect();
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut norms = Vec::new();
    nexus_vectors::norms(Rows::new(&data, DIM).unwrap(), 0, &mut norms).unwrap();
    let mut writer = sets.begin(&SetName::parse(name).unwrap()).unwrap();
    writer.set_shape(SetDtype::F32, DIM).unwrap();
    writer.push(&bytes, &norms).unwrap();
    writer.finish().unwrap();
    sets.get(name).unwrap()
}

fn exact(set: &TargetSet, sources: &Sources, k: usize) -> Vec<Vec<Scored>> {
    let rows = Rows::from_bytes(set.rows(), Dtype::F32, DIM).unwrap();
    top_k_many(sources, rows, Some(set.norms()), k, Threads::Caller).unwrap()
}

fn device() -> Cuda<Emulated> {
    Cuda::new(Emulated::new(), CudaOptions::default())
}

/// What comes of it once the set has been brought.
fn brought(sets: &DeviceSets, set: &Arc<TargetSet>, sources: &Sources, k: usize) -> Vec<Vec<Scored>> {
    let started = Instant::now();
    loop {
        if let Some(found) = sets.nearest(set, sources, k) {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "the set does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_device_finds_what_the_cpu_finds_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let stored = TargetSets::open(folder.path(), TargetOptions::default()).unwrap();
    let (large, small) = (set(&stored, "large", 1, ROWS), set(&stored, "small", 2, 100));
    let sources: Vec<f32> = (0..3 * DIM).map(|i| ((i * 7919) % 101) as f32 - 50.0).collect();
    let sources = Sources::new(&sources, DIM).unwrap();
    let device_sets = DeviceSets::default();
    assert_eq!(device_sets.nearest(&large, &sources, 5), None, "there is no device");
    device_sets.open(device(), 1 << 30);
    assert_eq!(device_sets.nearest(&large, &sources, 5), None, "it is asked for the first time");
    let expected = exact(&large, &sources, 50);
    assert_eq!(brought(&device_sets, &large, &sources, 50), expected);
    for _ in 0..3 {
        assert_eq!(device_sets.nearest(&small, &sources, 5), None, "the CPU is faster");
    }
    // Another set of the same name is another set.
    let replaced = set(&stored, "large", 3, ROWS);
    assert_eq!(device_sets.nearest(&replaced, &sources, 50), None);
    assert_eq!(device_sets.nearest(&large, &sources, 50), Some(expected), "whoever still holds the old one has it");
    assert_eq!(brought(&device_sets, &replaced, &sources, 50), exact(&replaced, &sources, 50));
}

#[test]
fn what_was_used_longest_ago_makes_room_and_a_failed_device_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let stored = TargetSets::open(folder.path(), TargetOptions::default()).unwrap();
    let (a, b) = (set(&stored, "a", 1, ROWS), set(&stored, "b", 2, ROWS));
    let source = Sources::new(&[1.0; DIM], DIM).unwrap();
    let bytes = DeviceRows::<Emulated>::bytes(ROWS, DIM, Format::F32);
    let on =
        Arc::new(OnDevice { device: device(), bytes_max: bytes, entries: Mutex::default(), is_gone: false.into() });
    let sets = DeviceSets(OnceLock::from(on.clone() as Arc<dyn Finder>));
    let there = |set: &Arc<TargetSet>| {
        let entries = on.entries();
        entries.iter().any(|entry| {
            entry.set.upgrade().is_some_and(|held| Arc::ptr_eq(&held, set)) && matches!(entry.place, Place::There(..))
        })
    };
    brought(&sets, &a, &source, 3);
    assert!(there(&a));
    brought(&sets, &b, &source, 3);
    assert!(there(&b) && !there(&a), "there is room for one");

    on.device.gpu().fail_after(0, ComputeError::Device("gone".into()));
    assert_eq!(sets.nearest(&b, &source, 3), None);
    on.device.gpu().fail_after(usize::MAX, ComputeError::Device("never".into()));
    assert_eq!(sets.nearest(&b, &source, 3), None, "it is not asked again");

    let tight = DeviceSets::default();
    tight.open(device(), bytes - 1);
    for _ in 0..3 {
        assert_eq!(tight.nearest(&a, &source, 3), None, "it does not fit");
    }
}

#[test]
fn what_is_on_its_way_is_not_pushed_beyond_the_room() {
    let entry = |place| Entry::<Emulated> { set: Weak::new(), place };
    let mut entries = [entry(Place::Coming(60)), entry(Place::Elsewhere), entry(Place::Refused)];
    assert!(!make_room(&mut entries, 40), "another of 60 would make 120 of 100");
    assert!(make_room(&mut entries, 60));
    assert!(matches!(entries[0].place, Place::Coming(60)));
}
