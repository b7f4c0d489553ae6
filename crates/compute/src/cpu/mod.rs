//! The CPU backend: SIMD chosen when it starts, weights packed when they are prepared, one pool of threads.
//!
//! Everything is f32 except stored weights, which stay bf16 where their file has bf16, or become 8-bit integers where that
//! is asked for. Deliberately absent: products in bf16 (they would round the activations, which the other backends and the
//! models' own vectors do not).

mod attention;
mod buffer;
mod gemm;
mod memory;
mod pages;
mod pool;
mod rows;
mod simd;
mod tile;

use crate::check;
use crate::rope::RopeTable;
use crate::{
    Activation, Backend, ComputeError, DType, HeadNorms, Heads, Mask, Norm, Packed, PackedBatch, Pooling, Result,
    SharedBytes, TensorView,
};
use attention::{Attention, HEAD_DIM_MAX};
use buffer::{Leased, Workspace};
pub use gemm::Linear;
use gemm::Product;
use gemm::kernel::panel_columns;
use gemm::panels::Panels;
use half::bf16;
use pages::Pages;
use pool::Pool;
pub use simd::Isa;
use simd::Level;

/// How the CPU is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// The instruction set; [`Isa::detect`] when `None`.
    pub isa: Option<Isa>,
    /// Threads that work on one operation, the caller's included; one a core when `None`.
    pub threads: Option<usize>,
    /// How the weights of linear layers are held.
    pub weights: CpuWeights,
}

/// How the weights of linear layers are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuWeights {
    /// In the dtype of their file (f16 widened to f32).
    #[default]
    Stored,
    /// As 8-bit integers with a scale for each output; activations are rounded to 16-bit integers with a scale for each
    /// row. Faster, and a little off.
    Int8,
}

// Stored weights are used as they lie in their files, which is little-endian.
const _: () = assert!(cfg!(target_endian = "little"), "the CPU backend is for little-endian machines");

/// Changes with what is in a packed weight, so that files of old are not taken for new ones.
const LAYOUT_VERSION: u32 = 1;

/// Bytes of a table that a thread copies at a time.
const COPIED_AT_ONCE: usize = 4 << 20;

/// The CPU as a [`Backend`]. Operations are called from one thread at a time to be fast; from several they are correct.
#[derive(Debug)]
pub struct Cpu {
    isa: Isa,
    level: Level,
    pool: Pool,
    workspace: Workspace,
    weights: CpuWeights,
}

/// A prepared embedding table, in the dtype of its file (f16 widened to f32).
#[derive(Debug)]
pub struct Table {
    rows: usize,
    columns: usize,
    values: TableValues,
}

#[derive(Debug)]
enum TableValues {
    F32(SharedBytes),
    Bf16(SharedBytes),
}

impl TableValues {
    /// The dtype's name in a file, and the bytes.
    fn parts(&self) -> (&'static str, &SharedBytes) {
        match self {
            TableValues::F32(bytes) => ("f32", bytes),
            TableValues::Bf16(bytes) => ("bf16", bytes),
        }
    }
}

/// A prepared rotary table.
#[derive(Debug)]
pub struct Rope(RopeTable);

/// A packed batch with the position of every row within its sequence.
#[derive(Debug)]
pub struct Batch {
    packed: PackedBatch,
    positions: Vec<usize>,
}

/// Activations of `[rows, columns]`, row-major; their memory returns to the backend when they are dropped.
#[derive(Debug)]
pub struct Tensor {
    rows: usize,
    columns: usize,
    data: Leased,
}

impl Cpu {
    /// Starts the backend; fails when the CPU lacks the instruction set that is asked for, or threads can not be had.
    pub fn new(options: CpuOptions) -> Result<Self> {
        let isa = options.isa.unwrap_or_else(|| Isa::detect(options.weights));
        let level = Level::new(isa).ok_or_else(|| {
            let (asked, available) = (isa.name(), Isa::available_names().join(", "));
            ComputeError::Device(format!("it has no {asked} instructions; available here: {available}"))
        })?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let pool = Pool::new(options.threads.unwrap_or_else(cores))?;
        Ok(Self { isa, level, pool, workspace: Workspace::default(), weights: options.weights })
    }

    /// All of `bias`, filled up to whole panels.
    fn padded(&self, bias: &[TensorView<'_>]) -> Option<Vec<f32>> {
        let mut padded: Vec<f32> = bias.iter().flat_map(TensorView::to_f32).collect();
        padded.resize(padded.len().next_multiple_of(panel_columns(self.level.lanes())), 0.0);
        (!padded.is_empty()).then_some(padded)
    }

    fn tensor(&self, rows: usize, columns: usize) -> Tensor {
        Tensor { rows, columns, data: self.workspace.take(rows * columns) }
    }

    fn product(&self, x: &Tensor, weight: &Linear, out: &mut Tensor, accumulate: bool) -> Result<()> {
        const OP: &str = "linear";
        check::columns_match(OP, x.columns, weight.in_columns)?;
        check::columns_match(OP, out.columns, weight.out_columns)?;
        check::ensure(x.rows == out.rows, OP, || format!("{} rows into {}", x.rows, out.rows))?;
        let (level, pool, workspace) = (self.level, &self.pool, &self.workspace);
        let product = Product { level, pool, workspace, x: x.data.as_slice(), rows: x.rows, accumulate };
        gemm::linear(product, weight, out.data.as_mut_slice());
        Ok(())
    }
}

impl Backend for Cpu {
    type Linear = Linear;
    type Table = Table;
    type Vector = Vec<f32>;
    type Rope = Rope;
    type Batch = Batch;
    type Tensor = Tensor;
    type Recording = ();

    fn name(&self) -> String {
        let threads = self.pool.threads();
        let int8 = if self.weights == CpuWeights::Int8 { ", int8 weights" } else { "" };
        format!("cpu ({}, {threads} thread{}{int8})", self.isa.name(), if threads == 1 { "" } else { "s" })
    }

    fn numeric_format(&self) -> &'static str {
        match self.weights {
            CpuWeights::Stored => "f32",
            CpuWeights::Int8 => "int8",
        }
    }

    fn warm_up_tokens(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        memory::bytes_free()
    }

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Linear> {
        let [out_columns, in_columns] = check::linear_shape(parts, bias)?;
        let panels = Panels::pack(self.level, &self.pool, self.weights, parts, in_columns)?;
        Ok(Linear { out_columns, in_columns, panels, bias: self.padded(bias) })
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<Table> {
        let [rows, columns] = check::matrix_shape("prepare_table", table)?;
        let values = match table.dtype() {
            DType::Bf16 | DType::F32 => {
                let mut pages = Pages::zeroed(table.bytes().len())?;
                let parts = pages.as_mut_slice().chunks_mut(COPIED_AT_ONCE).zip(table.bytes().chunks(COPIED_AT_ONCE));
                self.pool.for_each(table.bytes().len(), parts, |(to, from)| to.copy_from_slice(from));
                let bytes = SharedBytes::new(pages);
                if table.dtype() == DType::F32 { TableValues::F32(bytes) } else { TableValues::Bf16(bytes) }
            }
            DType::F16 => {
                let mut pages = Pages::zeroed(table.len() * size_of::<f32>())?;
                table.widen(0, bytemuck::cast_slice_mut(pages.as_mut_slice()));
                TableValues::F32(SharedBytes::new(pages))
            }
        };
        Ok(Table { rows, columns, values })
    }

    fn packed_layout(&self) -> Option<String> {
        let weights = match self.weights {
            CpuWeights::Stored => "",
            CpuWeights::Int8 => "-int8",
        };
        Some(format!("cpu-{}-columns{weights}-v{LAYOUT_VERSION}", panel_columns(self.level.lanes())))
    }

    fn packed_linear(&self, weight: &Linear) -> Option<Packed> {
        Some(Packed {
            shape: [weight.out_columns, weight.in_columns],
            format: weight.panels.dtype().name().to_owned(),
            bytes: weight.panels.bytes().clone(),
        })
    }

    fn packed_table(&self, table: &Table) -> Option<Packed> {
        let (format, bytes) = table.values.parts();
        Some(Packed { shape: [table.rows, table.columns], format: format.to_owned(), bytes: bytes.clone() })
    }

    fn linear_from(&self, packed: &Packed, bias: &[TensorView<'_>]) -> Result<Linear> {
        let [out_columns, in_columns] = packed.shape;
        let panels = Panels::unpack(self.level, packed)?;
        let biased: usize = bias.iter().map(TensorView::len).sum();
        check::ensure(bias.is_empty() || biased == out_columns, "linear_from", || {
            format!("a bias of {biased} for {out_columns} columns")
        })?;
        Ok(Linear { out_columns, in_columns, panels, bias: self.padded(bias) })
    }

    fn table_from(&self, packed: &Packed) -> Result<Table> {
        const OP: &str = "table_from";
        let [rows, columns] = packed.shape;
        let bytes = packed.bytes.clone();
        let (values, element_bytes) = match packed.format.as_str() {
            "f32" => (TableValues::F32(bytes), 4),
            "bf16" => (TableValues::Bf16(bytes), 2),
            _ => return Err(packed.refused(OP)),
        };
        packed.require(OP, rows.checked_mul(columns).and_then(|elements| elements.checked_mul(element_bytes)))?;
        Ok(Table { rows, columns, values })
    }

    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<Vec<f32>> {
        check::vector_length(vector)?;
        Ok(vector.to_f32())
    }

    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<Rope> {
        RopeTable::new(theta, dim, positions).map(Rope)
    }

    fn upload(&self, batch: &PackedBatch) -> Result<Batch> {
        Ok(Batch { packed: batch.clone(), positions: batch.ranges().flat_map(|range| 0..range.len()).collect() })
    }

    fn run(
        &self,
        _: &(),
        batch: &PackedBatch,
        forward: &(dyn Fn(&Self::Batch) -> Result<Self::Tensor> + Sync),
    ) -> Result<Vec<f32>> {
        let batch = self.upload(batch)?;
        // On a thread of the pool, where operations share their work at the least cost.
        self.pool.enter(|| self.download(&forward(&batch)?))
    }

    fn embed(&self, table: &Table, norm: Option<&Norm<Vec<f32>>>, batch: &Batch) -> Result<Tensor> {
        check::tokens_in_table(&batch.packed, table.rows)?;
        let mut out = self.tensor(batch.packed.rows(), table.columns);
        let rows = out.data.as_mut_slice().chunks_exact_mut(table.columns);
        for (out, &id) in rows.zip(batch.packed.tokens()) {
            let range = id as usize * table.columns..(id as usize + 1) * table.columns;
            match &table.values {
                TableValues::F32(bytes) => out.copy_from_slice(&bytemuck::cast_slice(bytes)[range]),
                TableValues::Bf16(bytes) => {
                    let values: &[u16] = bytemuck::cast_slice(bytes);
                    out.iter_mut().zip(&values[range]).for_each(|(out, &x)| *out = bf16::from_bits(x).to_f32());
                }
            }
        }
        match norm {
            Some(norm) => self.norm(&out, norm),
            None => Ok(out),
        }
    }

    fn linear(&self, x: &Tensor, weight: &Linear) -> Result<Tensor> {
        let mut out = self.tensor(x.rows, weight.out_columns);
        self.product(x, weight, &mut out, false)?;
        Ok(out)
    }

    fn linear_add(&self, x: &Tensor, weight: &Linear, residual: &mut Tensor) -> Result<()> {
        self.product(x, weight, residual, true)
    }

    fn norm(&self, x: &Tensor, norm: &Norm<Vec<f32>>) -> Result<Tensor> {
        check::norm_columns("norm", x.columns, norm.weight.len(), norm.bias.as_ref().map(Vec::len))?;
        let mut out = self.tensor(x.rows, x.columns);
        rows::norm(self.level, &self.pool, x.data.as_slice(), out.data.as_mut_slice(), norm);
        Ok(out)
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut Tensor,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vec<f32>>>,
        rope: &Rope,
        batch: &Batch,
    ) -> Result<()> {
        const OP: &str = "qk_norm_rope";
        check::fused_heads(OP, heads, [qkv.rows, qkv.columns], &batch.packed)?;
        check::rope_covers(OP, heads, rope.0.dim, rope.0.positions, &batch.packed)?;
        for norm in norms.iter().flat_map(|(q, k)| [q, k]) {
            check::head_norm(OP, heads, norm.kind, norm.weight.len(), norm.bias.is_some())?;
        }
        let op = rows::QkNormRope { heads, norms, rope: &rope.0, positions: &batch.positions };
        op.apply(self.level, &self.pool, qkv.data.as_mut_slice());
        Ok(())
    }

    fn attention(&self, qkv: &Tensor, heads: Heads, mask: Mask, batch: &Batch) -> Result<Tensor> {
        const OP: &str = "attention";
        check::fused_heads(OP, heads, [qkv.rows, qkv.columns], &batch.packed)?;
        check::ensure(heads.dim <= HEAD_DIM_MAX, OP, || {
            format!("heads of {} floats, this backend takes at most {HEAD_DIM_MAX}", heads.dim)
        })?;
        let mut out = self.tensor(qkv.rows, heads.output_columns());
        let attention = Attention {
            level: self.level,
            pool: &self.pool,
            workspace: &self.workspace,
            heads,
            mask,
            batch: &batch.packed,
            qkv: qkv.data.as_slice(),
        };
        attention.run(out.data.as_mut_slice());
        Ok(out)
    }

    fn gated_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        check::ensure(x.columns.is_multiple_of(2), "gated_act", || format!("{} columns have no halves", x.columns))?;
        let mut out = self.tensor(x.rows, x.columns / 2);
        let columns = out.columns;
        rows::gated(self.level, &self.pool, x.data.as_slice(), out.data.as_mut_slice(), columns, activation);
        Ok(out)
    }

    fn activation(&self, x: &mut Tensor, activation: Activation) -> Result<()> {
        rows::activate(self.level, &self.pool, x.data.as_mut_slice(), activation);
        Ok(())
    }

    fn pool(&self, x: &Tensor, pooling: Pooling, batch: &Batch) -> Result<Tensor> {
        check::rows_of_batch("pool", x.rows, &batch.packed)?;
        let mut out = self.tensor(batch.packed.sequences(), x.columns);
        let sequences = batch.packed.ranges();
        rows::pool(&self.pool, x.data.as_slice(), x.columns, pooling, sequences, out.data.as_mut_slice());
        Ok(out)
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.data.as_slice().to_vec())
    }
}
