//! Matrix products by cuBLASLt: descriptors and layouts made once a shape, and its algorithm chosen by timing.
//!
//! cuBLASLt thinks in columns: a row-major `[rows, columns]` is to it a column-major `[columns, rows]`. So `y = x W^T` is
//! computed as `y^T = W x^T` with the weight (to it `[in, out]`) transposed, and nothing is moved.
//!
//! A plan holds for a range of rows, told by [`bucket`], for the life of the process and on all its GPUs of one kind: a batch
//! that is computed again gives the same bits, on whichever of them. An algorithm that splits the sum is only taken if its parts are added in f32 and in a fixed order
//! (reduction scheme `COMPUTE_TYPE`).
//!
//! Deliberately absent: who may call when. The device lets one in at a time.

#![allow(unsafe_code)]

use super::context::{Context, Event, Memory, Stream};
use super::error::cublaslt_check;
use super::library::CublasLt;
use crate::cuda::{Format, Product};
use crate::{ComputeError, Result};
use cudarc::cublaslt::sys;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{from_ref, null_mut};
use std::sync::{Arc, Mutex, PoisonError};

/// Algorithms asked for, and timed.
const ALGORITHMS: usize = 8;

/// Timed runs of each.
const REPETITIONS: usize = 3;

/// Alignment of addresses that is asked of callers and promised to cuBLASLt: that of a row of 8 bf16.
const ALIGNMENT_BYTES: u32 = 16;

/// `CUBLAS_STATUS_INVALID_VALUE` and `CUBLAS_STATUS_NOT_SUPPORTED`: what an algorithm says of a shape that it can not do.
const UNSUITABLE: [u32; 2] = [7, 15];

/// `cublasLtMatmulHeuristicResult_t`, with a number for the status.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
    state: u32,
    waves: f32,
    reserved: [i32; 4],
}

const _: () = assert!(size_of::<Heuristic>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

/// Numbers of rows at which another algorithm may be chosen: powers of two from 16, and halfway between from 64 on.
///
/// A product with any number of rows uses what was chosen for the least bucket that is not smaller; there is no largest.
pub fn row_buckets(rows_max: usize) -> Vec<usize> {
    let mut buckets = Vec::new();
    let mut rows = 1;
    while rows <= rows_max {
        rows = bucket(rows);
        buckets.push(rows.min(rows_max));
        rows += 1;
    }
    buckets
}

/// The least bucket that is not smaller than `rows`.
fn bucket(rows: usize) -> usize {
    let power = rows.max(16).next_power_of_two();
    let halfway = power / 4 * 3;
    if power > 64 && rows <= halfway { halfway } else { power }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    in_columns: usize,
    out_columns: usize,
    rows: usize,
    format: Format,
    accumulate: bool,
}

/// A kind of GPU: its name, and the bytes of its memory, which tell a part of one from a whole.
type Kind = (String, u64);

/// What was chosen in this process.
static CHOSEN: Mutex<Option<HashMap<(Kind, Key), sys::cublasLtMatmulAlgo_t>>> = Mutex::new(None);

/// Products of one device.
pub(super) struct Products {
    lt: &'static CublasLt,
    context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
    operation: sys::cublasLtMatmulDesc_t,
    preference: sys::cublasLtMatmulPreference_t,
    workspace: Memory,
    plans: HashMap<Key, sys::cublasLtMatmulAlgo_t>,
    /// For numbers of rows that the plan of their bucket can not do.
    exceptions: HashMap<(Key, usize), sys::cublasLtMatmulAlgo_t>,
    /// Layouts by `(format, columns, rows)`.
    layouts: HashMap<(Format, usize, usize), Layout>,
    notes: Vec<String>,
}

// SAFETY: the handles are used from one thread at a time, and by none in particular.
unsafe impl Send for Products {}

/// Layouts that are kept; there are as many as numbers of rows times shapes, and a new one takes a microsecond.
const LAYOUTS_MAX: usize = 4096;

/// The layout of a matrix, destroyed when dropped.
struct Layout {
    lt: &'static CublasLt,
    raw: sys::cublasLtMatrixLayout_t,
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        unsafe { (self.lt.cublasLtMatrixLayoutDestroy)(self.raw) };
    }
}

/// The four matrices of a product, as cuBLASLt names them; C is D.
#[derive(Clone, Copy)]
struct Layouts {
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
}

impl Products {
    pub(super) fn new(context: &Arc<Context>, lt: &'static CublasLt) -> Result<Self> {
        // What NVIDIA advises for Hopper and newer, and more than it does for older ones.
        let workspace_bytes = if context.found.capability >= (9, 0) { 64 << 20 } else { 32 << 20 };
        let workspace = Memory::new(context, workspace_bytes)?;
        context.enter()?;
        let mut products = Self {
            lt,
            context: context.clone(),
            handle: null_mut(),
            operation: null_mut(),
            preference: null_mut(),
            workspace,
            plans: HashMap::new(),
            exceptions: HashMap::new(),
            layouts: HashMap::new(),
            notes: Vec::new(),
        };
        // SAFETY: writes a handle, for the context that is current; `drop` destroys it, as the two below.
        let status = unsafe { (lt.cublasLtCreate)(&mut products.handle) };
        products.check("cublasLtCreate", status)?;
        let (compute, scale) = (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType_t::CUDA_R_32F);
        // SAFETY: as above.
        let status = unsafe { (lt.cublasLtMatmulDescCreate)(&mut products.operation, compute, scale) };
        products.check("cublasLtMatmulDescCreate", status)?;
        let transposed: i32 = 1; // CUBLAS_OP_T; B is not, by default
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the attribute is an int32.
        let status = unsafe {
            (lt.cublasLtMatmulDescSetAttribute)(products.operation, attribute, from_ref(&transposed).cast(), 4)
        };
        products.check("cublasLtMatmulDescSetAttribute", status)?;
        // SAFETY: as above.
        let status = unsafe { (lt.cublasLtMatmulPreferenceCreate)(&mut products.preference) };
        products.check("cublasLtMatmulPreferenceCreate", status)?;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        products.prefer(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(workspace_bytes as u64))?;
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        products.prefer(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            products.prefer(attribute, &ALIGNMENT_BYTES)?;
        }
        Ok(products)
    }

    /// What is worth a line in a log; told once.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn check(&self, call: &str, status: u32) -> Result<()> {
        cublaslt_check(self.lt, &self.context.label, call, status)
    }

    /// What became of a product that was asked for. cuBLASLt says only that something failed: the driver says what, and
    /// whether it is of the whole process.
    fn check_work(&self, product: &Product, status: u32, stream: &Stream, recording: bool) -> Result<()> {
        let result = self.check(&describe(product), status);
        match result {
            // A recording is lost by it; whether the device is well shows when the work is done without one.
            Err(ComputeError::Device(detail)) if recording => Err(ComputeError::Shape { op: "record", detail }),
            Err(ComputeError::Device(_)) => stream.synchronize().and(result),
            result => result,
        }
    }

    fn prefer<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the values passed above have the sizes that are documented: uint64 for bytes, uint32 for the others.
        let status = unsafe {
            (self.lt.cublasLtMatmulPreferenceSetAttribute)(
                self.preference,
                attribute,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        self.check("cublasLtMatmulPreferenceSetAttribute", status)
    }

    /// Asks for a product. While `stream` is recorded nothing can be timed: a plan that is not there yet is then the first
    /// that cuBLASLt proposes, and stays it.
    pub(super) fn multiply(&mut self, product: &Product, stream: &Stream, recording: bool) -> Result<()> {
        validate(product)?;
        self.context.enter()?;
        let layouts = self.layouts(product)?;
        let key = Key {
            in_columns: product.in_columns,
            out_columns: product.out_columns,
            rows: bucket(product.rows),
            format: product.format,
            accumulate: product.accumulate,
        };
        let exception = self.exceptions.get(&(key, product.rows));
        let algorithm = match exception.or_else(|| self.plans.get(&key)) {
            Some(algorithm) => *algorithm,
            None => self.plan(key, product, layouts, stream, recording)?,
        };
        let status = self.matmul(product, product.y.0, layouts, &algorithm, stream);
        if !UNSUITABLE.contains(&status) {
            return self.check_work(product, status, stream, recording);
        }
        // It was chosen for another number of rows of the bucket. What is proposed for this number depends on nothing else,
        // so that the same product still always uses the same algorithm.
        let algorithms = self.propose(product, layouts)?;
        let status = self.matmul(product, product.y.0, layouts, &algorithms[0], stream);
        self.check_work(product, status, stream, recording)?;
        self.exceptions.insert((key, product.rows), algorithms[0]);
        Ok(())
    }

    fn plan(
        &mut self,
        key: Key,
        product: &Product,
        layouts: Layouts,
        stream: &Stream,
        recording: bool,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let kind = (self.context.found.name.clone(), self.context.found.memory_bytes);
        let known = chosen(|chosen| chosen.get(&(kind.clone(), key)).copied());
        let best = match known {
            Some(algorithm) => algorithm,
            None => {
                let best = self.choose(product, layouts, stream, recording)?;
                // Where another device was faster, that one's choice is everyone's.
                chosen(|chosen| *chosen.entry((kind, key)).or_insert(best))
            }
        };
        self.plans.insert(key, best);
        Ok(best)
    }

    fn choose(
        &mut self,
        product: &Product,
        layouts: Layouts,
        stream: &Stream,
        recording: bool,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let proposed = self.propose(product, layouts)?;
        if recording || proposed.len() == 1 {
            return Ok(proposed[0]);
        }
        match self.fastest(product, layouts, &proposed, stream) {
            // Timing wants memory for what it computes; without it, the first that was proposed has to do.
            Err(ComputeError::OutOfMemory(what)) => {
                self.notes.push(format!("{} was not timed: {what}", describe(product)));
                Ok(proposed[0])
            }
            result => result,
        }
    }

    /// The algorithms that cuBLASLt proposes, best first by its own estimate; at least one.
    fn propose(&self, product: &Product, layouts: Layouts) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let nothing = sys::cublasLtMatmulAlgo_t { data: [0; 8] };
        let empty = Heuristic { algorithm: nothing, workspace_bytes: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut heuristics = [empty; ALGORITHMS];
        let mut count = 0;
        // SAFETY: handles that are alive; writes at most as many results as are asked for, of the layout asserted above.
        let status = unsafe {
            (self.lt.cublasLtMatmulAlgoGetHeuristic)(
                self.handle,
                self.operation,
                layouts.a,
                layouts.b,
                layouts.d,
                layouts.d,
                self.preference,
                ALGORITHMS as i32,
                heuristics.as_mut_ptr().cast(),
                &mut count,
            )
        };
        self.check(&format!("cublasLtMatmulAlgoGetHeuristic for {}", describe(product)), status)?;
        let count = usize::try_from(count).unwrap_or(0).min(ALGORITHMS);
        let proposed = &heuristics[..count];
        let usable = |heuristic: &&Heuristic| {
            heuristic.state == 0
                && heuristic.workspace_bytes <= self.workspace.bytes
                && self.is_deterministic(&heuristic.algorithm)
        };
        let algorithms: Vec<_> = proposed.iter().filter(usable).map(|h| h.algorithm).collect();
        if algorithms.is_empty() {
            let told: Vec<(u32, usize)> = proposed.iter().map(|h| (h.state, h.workspace_bytes)).collect();
            let what = format!(
                "{}: cuBLASLt has no algorithm for {} that adds in a fixed order within {} bytes of workspace; it \
                 proposed (status, bytes) {told:?}",
                self.context.label,
                describe(product),
                self.workspace.bytes
            );
            return Err(ComputeError::Device(what));
        }
        Ok(algorithms)
    }

    /// Whether it adds the parts of a split sum in f32 and in order, or does not split. One that does not tell is within what
    /// was asked for.
    fn is_deterministic(&self, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let attribute = sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME;
        let (mut scheme, mut written) = (0u32, 0);
        // SAFETY: the attribute is a uint32.
        let status = unsafe {
            (self.lt.cublasLtMatmulAlgoConfigGetAttribute)(
                algorithm,
                attribute,
                std::ptr::from_mut(&mut scheme).cast(),
                4,
                &mut written,
            )
        };
        use sys::cublasLtReductionScheme_t as Scheme;
        let allowed =
            [Scheme::CUBLASLT_REDUCTION_SCHEME_NONE as u32, Scheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32];
        status != 0 || allowed.contains(&scheme)
    }

    /// The algorithm that takes the least time for this product, whose result is left as it is where it accumulates.
    fn fastest(
        &self,
        product: &Product,
        layouts: Layouts,
        algorithms: &[sys::cublasLtMatmulAlgo_t],
        stream: &Stream,
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let scratch = match product.accumulate {
            true => {
                let bytes = product.rows * product.out_columns * product.format.size_bytes();
                Some(Memory::new(&self.context, bytes)?)
            }
            // It is overwritten as a whole afterwards.
            false => None,
        };
        let y = scratch.as_ref().map_or(product.y.0, |scratch| scratch.address);
        let (start, end) = (Event::timed(&self.context)?, Event::timed(&self.context)?);
        let mut best: Option<(f32, &sys::cublasLtMatmulAlgo_t)> = None;
        for algorithm in algorithms {
            // The first run loads the kernel.
            let status = self.matmul(product, y, layouts, algorithm, stream);
            if UNSUITABLE.contains(&status) {
                continue;
            }
            self.check_work(product, status, stream, false)?;
            start.record(stream)?;
            for _ in 0..REPETITIONS {
                let status = self.matmul(product, y, layouts, algorithm, stream);
                self.check_work(product, status, stream, false)?;
            }
            end.record(stream)?;
            end.synchronize()?;
            let ms = end.elapsed_ms(&start)?;
            if best.is_none_or(|(least, _)| ms < least) {
                best = Some((ms, algorithm));
            }
        }
        stream.synchronize()?;
        Ok(best.map_or(algorithms[0], |(_, algorithm)| *algorithm))
    }

    fn matmul(
        &self,
        product: &Product,
        y: u64,
        layouts: Layouts,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        stream: &Stream,
    ) -> u32 {
        let alpha = 1.0f32;
        let beta = if product.accumulate { 1.0f32 } else { 0.0 };
        let address = |address: u64| address as *mut c_void;
        // SAFETY: handles that are alive; scalars on the host, read within the call, of the scale type; device addresses of
        // the sizes that the layouts tell, by the contract of `Gpu::multiply`; a workspace that only this stream uses.
        unsafe {
            (self.lt.cublasLtMatmul)(
                self.handle,
                self.operation,
                from_ref(&alpha).cast(),
                address(product.weight.0),
                layouts.a,
                address(product.x.0),
                layouts.b,
                from_ref(&beta).cast(),
                address(y),
                layouts.d,
                address(y),
                layouts.d,
                algorithm,
                address(self.workspace.address),
                self.workspace.bytes,
                stream.raw().cast(),
            )
        }
    }

    fn layouts(&mut self, product: &Product) -> Result<Layouts> {
        if self.layouts.len() + 3 > LAYOUTS_MAX {
            self.layouts.clear();
        }
        Ok(Layouts {
            a: self.layout(Format::Bf16, product.in_columns, product.out_columns)?,
            b: self.layout(Format::Bf16, product.in_columns, product.rows)?,
            d: self.layout(product.format, product.out_columns, product.rows)?,
        })
    }

    /// The layout of a row-major `[rows, columns]`: to cuBLASLt `columns` rows, `rows` columns, `columns` from one column to
    /// the next.
    fn layout(&mut self, format: Format, columns: usize, rows: usize) -> Result<sys::cublasLtMatrixLayout_t> {
        if let Some(layout) = self.layouts.get(&(format, columns, rows)) {
            return Ok(layout.raw);
        }
        let element = match format {
            Format::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Format::F32 => sys::cudaDataType::CUDA_R_32F,
        };
        let mut raw = null_mut();
        // SAFETY: writes a handle, which `Layout` destroys.
        let status = unsafe {
            (self.lt.cublasLtMatrixLayoutCreate)(&mut raw, element, columns as u64, rows as u64, columns as i64)
        };
        self.check("cublasLtMatrixLayoutCreate", status)?;
        self.layouts.insert((format, columns, rows), Layout { lt: self.lt, raw });
        Ok(raw)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.layouts.clear();
        if self.context.enter().is_err() {
            return;
        }
        // SAFETY: each was created once, where it is not null, and is destroyed once.
        unsafe {
            if !self.preference.is_null() {
                (self.lt.cublasLtMatmulPreferenceDestroy)(self.preference);
            }
            if !self.operation.is_null() {
                (self.lt.cublasLtMatmulDescDestroy)(self.operation);
            }
            if !self.handle.is_null() {
                (self.lt.cublasLtDestroy)(self.handle);
            }
        }
    }
}

/// Looks at what was chosen in this process.
fn chosen<T>(look: impl FnOnce(&mut HashMap<(Kind, Key), sys::cublasLtMatmulAlgo_t>) -> T) -> T {
    look(CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

fn validate(product: &Product) -> Result<()> {
    let shape =
        |detail: &str| Err(ComputeError::Shape { op: "multiply", detail: format!("{detail}: {}", describe(product)) });
    if product.rows == 0 || product.in_columns == 0 || product.out_columns == 0 {
        return shape("nothing to compute");
    }
    if !product.in_columns.is_multiple_of(8) || !product.out_columns.is_multiple_of(8) {
        return shape("columns that are not a multiple of 8");
    }
    let addresses = [product.x, product.weight, product.y];
    if addresses.iter().any(|address| address.0 == 0 || !address.0.is_multiple_of(u64::from(ALIGNMENT_BYTES))) {
        return shape("an address that is null or not aligned to 16 bytes");
    }
    Ok(())
}

/// For errors: `cublasLtMatmul [64, 4096] x [4096, 1024] into f32, added`.
fn describe(product: &Product) -> String {
    let Product { rows, in_columns, out_columns, .. } = product;
    let format = if product.format == Format::F32 { "f32" } else { "bf16" };
    let added = if product.accumulate { ", added" } else { "" };
    format!("cublasLtMatmul [{rows}, {in_columns}] x [{in_columns}, {out_columns}] into {format}{added}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_all_rows_and_end_at_the_greatest() {
        assert_eq!(row_buckets(0), Vec::<usize>::new());
        assert_eq!(row_buckets(5), [5]);
        assert_eq!(row_buckets(16), [16]);
        assert_eq!(row_buckets(300), [16, 32, 64, 96, 128, 192, 256, 300]);
        assert_eq!(row_buckets(32_768).last(), Some(&32_768));
        for rows in 1..5000 {
            assert!(bucket(rows) >= rows);
            assert_eq!(bucket(bucket(rows)), bucket(rows));
            let choices: Vec<usize> = row_buckets(5000).into_iter().map(bucket).collect();
            assert!(choices.contains(&bucket(rows)), "{rows} rows are in no bucket of the warm-up");
        }
    }
}
