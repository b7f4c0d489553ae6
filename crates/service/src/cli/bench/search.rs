//! `nexus bench search`: the exact top-k of resident rows, on the CPU and on a device, and whether both agree to the bit.
//!
//! Rows are random, and the sources are some of them, so that the nearest row of each is known. What is timed is what is
//! served: on a device, its search and the ranking of what it found on the CPU.

use super::Failure;
use super::clock::Times;
use super::device::{self, Chosen};
use nexus_compute::Backend;
use nexus_compute::cuda::{Candidates, Cuda, DeviceRows, Format, Gpu};
use nexus_vectors::{Dtype, Rows, Scored, Sources, Threads, TopKError, kernel_name, norms, top_k_among, top_k_many};
use serde_json::{Value, json};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

/// Matrix and question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Search {
    pub(super) rows: NonZeroUsize,
    pub(super) columns: NonZeroUsize,
    pub(super) dtype: Dtype,
    pub(super) sources: NonZeroUsize,
    pub(super) top: NonZeroUsize,
    pub(super) repetitions: NonZeroUsize,
}

/// Parses the formats that a device stores rows in.
pub(super) fn parse_dtype(value: &str) -> Result<Dtype, String> {
    match value {
        "f32" => Ok(Dtype::F32),
        "bf16" => Ok(Dtype::Bf16),
        _ => Err("expected f32 or bf16".to_owned()),
    }
}

pub(super) fn run(chosen: Chosen, search: Search) -> Result<(), Failure> {
    // First: whether there is a device is known before gigabytes are made.
    let cuda = match chosen {
        Chosen::Cpu(_) => None,
        Chosen::Cuda(ordinal) => Some(device::open_cuda(ordinal)?),
    };
    let matrix = Matrix::random(search)?;
    let (expected, mut line) = on_cpu(&matrix)?;
    if let (Some(cuda), Value::Object(line)) = (cuda, &mut line) {
        line.extend(on_device(&cuda, &matrix, &expected)?);
    }
    super::super::print(&format!("{line}\n"))
}

/// Rows in memory, and what is asked of them.
struct Matrix {
    search: Search,
    data: Vec<u8>,
    norms: Vec<f64>,
    sources: Sources,
}

impl Matrix {
    /// Random rows. The sources are rows at equal distances.
    fn random(search: Search) -> Result<Self, Failure> {
        let (rows, columns) = (search.rows.get(), search.columns.get());
        let row_bytes = columns * search.dtype.bytes();
        let size = rows.checked_mul(row_bytes);
        let size = size.ok_or_else(|| Failure::Run(format!("{rows} x {columns} is more than can be addressed")))?;
        let mut data = Vec::new();
        data.try_reserve_exact(size).map_err(|error| Failure::Run(format!("{size} bytes of rows: {error}")))?;
        data.resize(size, 0);
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let rows_each = rows.div_ceil(threads);
        let norms = std::thread::scope(|scope| {
            let parts = data.chunks_mut(rows_each * row_bytes).enumerate();
            let parts: Vec<_> = parts.map(|(n, part)| scope.spawn(move || fill(part, n * rows_each, search))).collect();
            let joined =
                parts.into_iter().map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.collect::<Result<Vec<_>, _>>()
        });
        let norms = norms.map_err(failed)?.concat();
        let mut sources = Vec::with_capacity(search.sources.get() * columns);
        for row in own_rows(search) {
            sources.extend((0..columns).map(|column| value(row * columns + column, search.dtype)));
        }
        let sources = Sources::new(&sources, columns).map_err(failed)?;
        Ok(Self { search, data, norms, sources })
    }

    fn rows(&self) -> Result<Rows<'_>, Failure> {
        Rows::from_bytes(&self.data, self.search.dtype, self.search.columns.get())
            .map_err(|error| Failure::Run(error.to_string()))
    }
}

/// The row that each source is.
fn own_rows(search: Search) -> impl Iterator<Item = usize> {
    let (rows, sources) = (search.rows.get(), search.sources.get());
    // Not the first: a search that finds nothing but zeros would be right there.
    (0..sources).map(move |source| (2 * source + 1) * rows / (2 * sources))
}

/// Writes rows, the first of which is row `first`, and gives their norms.
fn fill(part: &mut [u8], first: usize, search: Search) -> Result<Vec<f64>, TopKError> {
    let (columns, dtype) = (search.columns.get(), search.dtype);
    for (at, component) in part.chunks_exact_mut(dtype.bytes()).enumerate() {
        let bytes = value(first * columns + at, dtype).to_le_bytes();
        // The upper half of an f32 is a bf16, little-endian as all of it is.
        component.copy_from_slice(&bytes[4 - dtype.bytes()..]);
    }
    let rows = Rows::from_bytes(part, dtype, columns).map_err(TopKError::Shape)?;
    let mut of_rows = Vec::with_capacity(rows.len());
    norms(rows, first, &mut of_rows)?;
    Ok(of_rows)
}

/// The component at a place of the matrix, in [-1, 1), as its format holds it: one output of SplitMix64
/// (<https://prng.di.unimi.it/splitmix64.c>).
fn value(at: usize, dtype: Dtype) -> f32 {
    let mut bits = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let exact = ((bits ^ (bits >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
    if dtype == Dtype::Bf16 { f32::from_bits(exact.to_bits() & 0xffff_0000) } else { exact }
}

/// The CPU's answers, and what there is to say of them.
fn on_cpu(matrix: &Matrix) -> Result<(Vec<Vec<Scored>>, Value), Failure> {
    let (search, rows, top) = (matrix.search, matrix.rows()?, matrix.search.top.get());
    let ask = || top_k_many(&matrix.sources, rows, Some(&matrix.norms), top, Threads::Pool);
    let answers = ask().map_err(failed)?;
    for (row, answer) in own_rows(search).zip(&answers) {
        let nearest = answer.first();
        if nearest.is_none_or(|nearest| nearest.index != row || nearest.similarity < 0.999_999) {
            return Err(Failure::Run(format!("the CPU finds {nearest:?} nearest to row {row}, not the row itself")));
        }
    }
    let times =
        Times::of(search.repetitions.get(), || ask().map(|answers| drop(black_box(answers)))).map_err(failed)?;
    let line = json!({
        "rows": search.rows, "columns": search.columns, "dtype": search.dtype.name(), "sources": search.sources,
        "top": top, "bytes": matrix.data.len(), "repetitions": search.repetitions,
        "cpu": kernel_name(),
        "cpu_median_ms": times.median_ms, "cpu_min_ms": times.min_ms, "cpu_max_ms": times.max_ms,
    });
    Ok((answers, line))
}

/// A device's answers against `expected`, and its times; or why it has no room.
fn on_device<G: Gpu>(
    cuda: &Cuda<G>,
    matrix: &Matrix,
    expected: &[Vec<Scored>],
) -> Result<serde_json::Map<String, Value>, Failure> {
    let (search, rows, top) = (matrix.search, matrix.rows()?, matrix.search.top.get());
    let format = if search.dtype == Dtype::Bf16 { Format::Bf16 } else { Format::F32 };
    let name = cuda.name();
    let mut line = serde_json::Map::from_iter([("device".to_owned(), json!(name))]);
    let (needed, free) = (DeviceRows::<G>::bytes(rows.len(), rows.dim(), format), cuda.memory_bytes_free());
    if free.is_some_and(|free| free < needed) {
        line.insert("device_refused".into(), json!(format!("{needed} bytes are needed, {} free", free.unwrap_or(0))));
        return Ok(line);
    }
    let wrong = |detail: &dyn std::fmt::Display| Failure::Run(format!("search on {name}: {detail}"));
    let start = Instant::now();
    let on_device = DeviceRows::new(cuda, format, rows.dim(), &matrix.data, &matrix.norms);
    let on_device = on_device.map_err(|error| wrong(&error))?;
    let upload_s = start.elapsed().as_secs_f64();

    let units: Vec<Vec<f32>> = (0..matrix.sources.len()).map(|source| matrix.sources.unit(source)).collect();
    let ask = || -> Result<Vec<Vec<Scored>>, Failure> {
        let found = on_device.search(&units, top).map_err(|error| wrong(&error))?;
        let found = found.ok_or_else(|| wrong(&"it can not tell, though no similarities are alike"))?;
        let candidates: Vec<Vec<usize>> = found.iter().map(|found| found.rows.clone()).collect();
        let ranked = top_k_among(&matrix.sources, rows, &matrix.norms, &candidates, top).map_err(failed)?;
        let enough = |(found, ranked): (&Candidates, &Vec<Scored>)| {
            ranked.len() == top.min(rows.len()) && ranked.last().is_none_or(|last| found.is_enough(last.similarity))
        };
        if found.iter().zip(&ranked).all(enough) { Ok(ranked) } else { Err(wrong(&"its candidates are not enough")) }
    };
    let answers = ask()?;
    if let Some(source) = (0..expected.len()).find(|&source| answers.get(source) != expected.get(source)) {
        let (answer, expected) = (answers.get(source), &expected[source]);
        return Err(wrong(&format!("source {source}: it ranks {answer:?}, the CPU {expected:?}")));
    }
    let times = Times::of(search.repetitions.get(), || ask().map(|answers| drop(black_box(answers))))?;
    for (key, figure) in [
        ("device_median_ms", times.median_ms),
        ("device_min_ms", times.min_ms),
        ("device_max_ms", times.max_ms),
        ("upload_s", upload_s),
    ] {
        line.insert(key.to_owned(), json!(figure));
    }
    Ok(line)
}

fn failed(error: TopKError) -> Failure {
    Failure::Run(format!("search: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus_compute::cuda::CudaOptions;
    use nexus_emulator::Emulated;

    fn search(dtype: Dtype, sources: usize) -> Search {
        let [rows, columns, sources, top, repetitions] =
            [700, 64, sources, 5, 1].map(|size| NonZeroUsize::new(size).unwrap());
        Search { rows, columns, dtype, sources, top, repetitions }
    }

    #[test]
    fn a_device_is_compared_with_the_cpu() {
        let cuda = Cuda::new(Emulated::new(), CudaOptions::default());
        for (dtype, sources) in [(Dtype::F32, 1), (Dtype::Bf16, 1), (Dtype::F32, 3), (Dtype::Bf16, 3)] {
            let matrix = Matrix::random(search(dtype, sources)).unwrap();
            let (mut expected, line) = on_cpu(&matrix).unwrap();
            assert_eq!((line["rows"].as_u64(), line["dtype"].as_str()), (Some(700), Some(dtype.name())));
            let line = on_device(&cuda, &matrix, &expected).unwrap();
            assert!(line["device_median_ms"].as_f64().unwrap() > 0.0, "{line:?}");
            // A ranking with one row wrong is told.
            expected[sources - 1][4].index += 1;
            let Err(Failure::Run(told)) = on_device(&cuda, &matrix, &expected) else { panic!("a wrong ranking") };
            assert!(told.contains(&format!("source {}", sources - 1)), "{told}");
        }
    }

    #[test]
    fn rows_are_what_they_are_however_many_threads_make_them() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let wanted = search(dtype, 2);
            let matrix = Matrix::random(wanted).unwrap();
            let mut whole = vec![0; matrix.data.len()];
            assert_eq!(fill(&mut whole, 0, wanted).unwrap(), matrix.norms);
            assert!(whole == matrix.data);
            assert_eq!(own_rows(wanted).collect::<Vec<_>>(), [175, 525]);
        }
    }
}
