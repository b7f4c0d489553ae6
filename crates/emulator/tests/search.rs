//! Rows on a device: what may be among the best is found, and where that is not sure it is said.

#![forbid(unsafe_code)]

use nexus_compute::cuda::{Cuda, CudaOptions, DeviceRows, Format};
use nexus_emulator::Emulated;

fn cuda() -> Cuda<Emulated> {
    Cuda::new(Emulated::new(), CudaOptions::default())
}

/// A small generator of numbers in -1..1, that bf16 holds exactly.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        half::bf16::from_f32((state >> 40) as f32 / 8_388_608.0 - 1.0).to_f32()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn place(cuda: &Cuda<Emulated>, format: Format, columns: usize, rows: &[f32]) -> DeviceRows<Emulated> {
    let norms: Vec<f64> = rows.chunks(columns).map(|row| dot(row, row).sqrt()).collect();
    let bytes: Vec<u8> = match format {
        Format::F32 => rows.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Format::Bf16 => rows.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    };
    DeviceRows::new(cuda, format, columns, &bytes, &norms).unwrap()
}

fn unit(mut source: Vec<f32>) -> Vec<f32> {
    let norm = dot(&source, &source).sqrt();
    source.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    source
}

#[test]
fn the_best_are_among_the_candidates() {
    let cuda = cuda();
    for (count, columns, sources, k) in
        [(1, 8, 1, 5), (700, 64, 1, 10), (700, 64, 11, 50), (300, 17, 8, 1), (90, 264, 2, 90)]
    {
        for format in [Format::F32, Format::Bf16] {
            let mut number = numbers(count as u64 + columns as u64);
            let rows: Vec<f32> = (0..count * columns).map(|_| number()).collect();
            let sources: Vec<Vec<f32>> = (0..sources).map(|_| unit((0..columns).map(|_| number()).collect())).collect();
            let placed = place(&cuda, format, columns, &rows);
            let found = placed.search(&sources, k).unwrap().expect("similarities differ");
            assert_eq!(found.len(), sources.len());
            for (source, found) in sources.iter().zip(found) {
                let cosine = |row: usize| {
                    let row = &rows[row * columns..(row + 1) * columns];
                    dot(source, row) / dot(row, row).sqrt()
                };
                let mut ranked: Vec<usize> = (0..count).collect();
                ranked.sort_by(|&a, &b| cosine(b).total_cmp(&cosine(a)));
                let best = &ranked[..k.min(count)];
                assert!(best.iter().all(|row| found.rows.contains(row)), "{count} x {columns}");
                assert!(found.is_enough(cosine(*best.last().unwrap()) as f32), "{count} x {columns}");
                let least = found.rows.iter().map(|&row| cosine(row)).fold(f64::INFINITY, f64::min);
                assert!((least - f64::from(found.least)).abs() <= f64::from(found.error));
                let mut once = found.rows.clone();
                once.sort_unstable();
                once.dedup();
                assert_eq!(once.len(), found.rows.len(), "each row is found once");
            }
        }
    }
}

#[test]
fn what_a_device_can_not_tell_is_said() {
    let cuda = cuda();
    let source = [unit(vec![1.0; 8])];
    // Hundreds of rows are alike, and any of them may be the best.
    let alike = place(&cuda, Format::F32, 8, &vec![0.5; 8 * 1000]);
    assert_eq!(alike.search(&source, 3).unwrap(), None);
    // All of few are no question.
    let few = place(&cuda, Format::F32, 8, &vec![0.5; 8 * 20]);
    assert!(few.search(&source, 3).unwrap().is_some_and(|found| found[0].is_all && found[0].is_enough(1.0)));
    // Norms beyond f32.
    let mut tiny = vec![0.5; 8 * 100];
    tiny[..8].fill(1e-45);
    assert_eq!(place(&cuda, Format::F32, 8, &tiny).search(&source, 3).unwrap(), None);
    // The sum of the first row's products is beyond f32, and would look like the least of all.
    let mut vast = vec![0.5; 8 * 100];
    vast[..8].fill(-3e38);
    assert_eq!(place(&cuda, Format::F32, 8, &vast).search(&source, 3).unwrap(), None);
    assert_eq!(few.search(&source, 0).unwrap().map(|found| found[0].rows.len()), Some(0));
    assert!(few.search(&[vec![1.0; 9]], 3).is_err());
}

#[test]
fn the_last_of_the_best_has_to_be_clear_of_the_rest() {
    let cuda = cuda();
    // Rows whose similarities fall in steps far below what the device may be off by.
    let rows: Vec<f32> = (0..400).flat_map(|i| [1.0, i as f32 * 1e-5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).collect();
    let placed = place(&cuda, Format::F32, 8, &rows);
    let found = placed.search(&[unit(vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])], 3).unwrap();
    assert!(found.is_none_or(|found| !found[0].is_enough(1.0 - 1e-9)));
}

#[test]
fn rows_that_go_give_all_their_memory_back() {
    let cuda = cuda();
    let before = cuda.gpu().counts().bytes;
    let mut number = numbers(3);
    let rows: Vec<f32> = (0..600 * 16).map(|_| number()).collect();
    let placed = place(&cuda, Format::F32, 16, &rows);
    assert!(placed.search(&[unit(rows[..16].to_vec())], 5).unwrap().is_some());
    assert!(cuda.gpu().counts().bytes > before);
    drop(placed);
    assert_eq!(cuda.gpu().counts().bytes, before);
}
