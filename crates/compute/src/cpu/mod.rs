//! The CPU backend: SIMD chosen when it starts, weights packed when they are prepared, one pool of threads.
//!
//! Everything is f32 except stored weights, which stay bf16 where their file has bf16. Deliberately absent: quantized
//! weights, and products in bf16 (they would round the activations, which the other backends and the models' own
//! vectors do not).

mod attention;
mod buffer;
mod gemm;
mod memory;
mod pool;
mod rows;
mod simd;
mod tile;

use crate::check;
use crate::rope::RopeTable;
use crate::{
    Activation, Backend, ComputeError, DType, HeadNorms, Heads, Mask, Norm, PackedBatch, Pooling, Result, TensorView,
};
use attention::{Attention, HEAD_DIM_MAX};
use buffer::{Leased, Workspace};
pub use gemm::Linear;
use gemm::kernel::panel_columns;
use gemm::panels::Panels;
use half::bf16;
use pool::Pool;
pub use simd::Isa;
use simd::Level;

/// How the CPU is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// The instruction set; the best of the machine when `None`.
    pub isa: Option<Isa>,
    /// Threads that work on one operation, the caller's included; one a core when `None`.
    pub threads: Option<usize>,
}

/// The CPU as a [`Backend`]. Operations are called from one thread at a time to be fast; from several they are correct.
#[derive(Debug)]
pub struct Cpu {
    isa: Isa,
    level: Level,
    pool: Pool,
    workspace: Workspace,
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
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
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
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let level = Level::new(isa)
            .ok_or_else(|| ComputeError::Device(format!("this CPU has no {} instructions", isa.name())))?;
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let pool = Pool::new(options.threads.unwrap_or_else(cores))?;
        Ok(Self { isa, level, pool, workspace: Workspace::default() })
    }

    fn tensor(&self, rows: usize, columns: usize) -> Tensor {
        Tensor { rows, columns, data: self.workspace.take(rows * columns) }
    }

    fn product(&self, x: &Tensor, weight: &Linear, out: &mut Tensor, accumulate: bool) -> Result<()> {
        const OP: &str = "linear";
        check::columns_match(OP, x.columns, weight.in_columns)?;
        check::columns_match(OP, out.columns, weight.out_columns)?;
        check::ensure(x.rows == out.rows, OP, || format!("{} rows into {}", x.rows, out.rows))?;
        gemm::linear(self.level, &self.pool, x.data.as_slice(), weight, out.data.as_mut_slice(), x.rows, accumulate);
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
        format!("cpu ({}, {threads} thread{})", self.isa.name(), if threads == 1 { "" } else { "s" })
    }

    fn numeric_format(&self) -> &'static str {
        "f32"
    }

    fn warm_up_tokens(&self, _: usize) -> Vec<usize> {
        Vec::new()
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        memory::bytes_free()
    }

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Linear> {
        let [out_columns, in_columns] = check::linear_shape(parts, bias)?;
        let panels = Panels::pack(self.level, &self.pool, parts, in_columns);
        let bias = (!bias.is_empty()).then(|| {
            let mut bias: Vec<f32> = bias.iter().flat_map(TensorView::to_f32).collect();
            bias.resize(out_columns.next_multiple_of(panel_columns(self.level.lanes())), 0.0);
            bias
        });
        Ok(Linear { out_columns, in_columns, panels, bias })
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<Table> {
        let [rows, columns] = check::matrix_shape("prepare_table", table)?;
        let values = match table.dtype() {
            DType::Bf16 => {
                TableValues::Bf16(table.bytes().as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
            }
            DType::F32 | DType::F16 => TableValues::F32(table.to_f32()),
        };
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
                TableValues::F32(values) => out.copy_from_slice(&values[range]),
                TableValues::Bf16(values) => {
                    out.iter_mut().zip(&values[range]).for_each(|(out, value)| *out = value.to_f32());
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
