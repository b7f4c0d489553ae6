//! The [`Backend`] over a [`Gpu`]: which kernels an operation is, and with what.
//!
//! A residual stream begins in `embed` and is f32; so is what pooling makes of it, and the few outputs of a classifier.
//! Everything else is bf16: what products read is rounded once, and accumulated in f32. Weights are bf16, whatever their file
//! holds.
//!
//! Shapes that matrix instructions do not take (columns that are no multiple of 8, heads of other than 64 or 128 floats) are
//! computed by plain kernels, slowly.

mod batch;
pub(super) mod memory;
mod recording;
mod weights;

use super::gpu::{Address, Arg, Format, Gpu, Launch, Product};
use super::kernels::Kernel;
use crate::rope::RopeTable;
use crate::{
    Activation, Backend, HeadNorms, Heads, Mask, Norm, NormKind, Packed, PackedBatch, Pooling, Result, TensorView,
    check,
};
pub use batch::Batch;
use memory::{Leased, Workspace};
pub use recording::Recording;
use std::sync::{Arc, Mutex};
pub use weights::{Linear, Matrix, Rope, Vector};

/// Heads of more floats are not computed.
const HEAD_DIM_MAX: usize = 256;
/// Outputs up to which a layer is a classifier's, computed in f32.
const HEAD_COLUMNS_MAX: usize = 8;

/// How a GPU is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaOptions {
    /// Batches of at most so many tokens are recorded as a graph and replayed: one pass is some hundred kernels, which start
    /// faster together. 0 records nothing.
    pub graph_tokens_max: usize,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { graph_tokens_max: 256 }
    }
}

/// A GPU as a [`Backend`].
#[derive(Debug)]
pub struct Cuda<G: Gpu> {
    gpu: Arc<G>,
    workspace: Arc<Workspace<G>>,
    options: CudaOptions,
    /// Held while a model runs: a recording uses memory that others would lease.
    running: Mutex<()>,
}

/// Activations of `[rows, columns]`, row-major; their memory returns to the workspace when they are dropped.
#[derive(Debug)]
pub struct Tensor<G: Gpu> {
    rows: usize,
    columns: usize,
    format: Format,
    memory: Leased<G>,
}

impl<G: Gpu> Tensor<G> {
    fn address(&self) -> Arg {
        Arg::Address(self.memory.address())
    }

    fn count(&self) -> usize {
        self.rows * self.columns
    }
}

impl<G: Gpu> Cuda<G> {
    /// Wraps an open device.
    pub fn new(gpu: G, options: CudaOptions) -> Self {
        let gpu = Arc::new(gpu);
        Self { workspace: Workspace::new(gpu.clone()), gpu, options, running: Mutex::new(()) }
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<G> {
        &self.gpu
    }

    fn tensor(&self, rows: usize, columns: usize, format: Format) -> Result<Tensor<G>> {
        let memory = self.workspace.lease(rows * columns * format.size_bytes())?;
        Ok(Tensor { rows, columns, format, memory })
    }

    fn launch(&self, kernel: Kernel, grid: [usize; 2], args: &[Arg]) -> Result<()> {
        // 65,535 blocks along y is the limit of every device.
        let fits = grid[0] <= i32::MAX as usize && grid[1] <= 65_535;
        check::ensure(fits, kernel.name(), || format!("a grid of {} x {} blocks", grid[0], grid[1]))?;
        self.gpu.launch(&Launch { kernel, grid: [grid[0] as u32, grid[1] as u32, 1], args })
    }

    /// A kernel over `x` as a row of elements, with what it needs beyond them.
    fn elementwise(&self, kernel: Kernel, x: &Tensor<G>, out: Option<&Tensor<G>>, more: Option<Arg>) -> Result<()> {
        let count = x.count();
        check::ensure(count <= i32::MAX as usize, kernel.name(), || format!("{count} elements are too many"))?;
        let args: Vec<Arg> =
            [Some(x.address()), out.map(Tensor::address), Some(int(count)), more].into_iter().flatten().collect();
        self.launch(kernel, [count.div_ceil(kernel.threads() as usize), 1], &args)
    }

    /// `x` in bf16: what products and attention read.
    fn rounded(&self, x: &Tensor<G>) -> Result<Tensor<G>> {
        let out = self.tensor(x.rows, x.columns, Format::Bf16)?;
        self.elementwise(Kernel::ToBf16, x, Some(&out), None)?;
        Ok(out)
    }

    fn product(&self, x: &Tensor<G>, weight: &Linear<G>, y: &Tensor<G>, accumulate: bool) -> Result<()> {
        const OP: &str = "linear";
        let Matrix { rows: out_columns, columns: in_columns, memory } = &weight.weight;
        check::columns_match(OP, x.columns, *in_columns)?;
        check::columns_match(OP, y.columns, *out_columns)?;
        check::ensure(x.rows == y.rows, OP, || format!("{} rows into {}", x.rows, y.rows))?;
        if weight.bias.is_some() && y.format == Format::Bf16 {
            // Rounded once, after the bias.
            let wide = self.tensor(y.rows, y.columns, Format::F32)?;
            if accumulate {
                self.elementwise(Kernel::ToF32, y, Some(&wide), None)?;
            }
            self.product(x, weight, &wide, accumulate)?;
            return self.elementwise(Kernel::ToBf16, &wide, Some(y), None);
        }
        let rounded = (x.format == Format::F32).then(|| self.rounded(x)).transpose()?;
        let (x, rows) = (rounded.as_ref().unwrap_or(x), x.rows);
        let (w, sizes) = (Arg::Address(memory.address()), [rows, *in_columns, *out_columns].map(int));
        if in_columns.is_multiple_of(8) && out_columns.is_multiple_of(8) {
            self.gpu.multiply(&Product {
                x: x.memory.address(),
                weight: memory.address(),
                y: y.memory.address(),
                rows,
                in_columns: *in_columns,
                out_columns: *out_columns,
                format: y.format,
                accumulate,
            })?;
        } else if *out_columns <= HEAD_COLUMNS_MAX && !accumulate && y.format == Format::F32 {
            let args = [x.address(), w, y.address(), sizes[1], sizes[2]];
            self.launch(Kernel::LinearHead, [rows, *out_columns], &args)?;
        } else {
            let kernel = match y.format {
                Format::Bf16 => Kernel::LinearBf16,
                Format::F32 => Kernel::LinearF32,
            };
            let args = [x.address(), w, y.address(), sizes[0], sizes[1], sizes[2], int(usize::from(accumulate))];
            self.launch(kernel, [out_columns.div_ceil(16), rows.div_ceil(16)], &args)?;
        }
        let Some(bias) = &weight.bias else { return Ok(()) };
        let blocks = out_columns.div_ceil(Kernel::AddBias.threads() as usize);
        self.launch(Kernel::AddBias, [rows, blocks], &[y.address(), vector(bias), int(y.columns)])
    }
}

impl<G: Gpu> Backend for Cuda<G> {
    type Linear = Linear<G>;
    type Table = Matrix<G>;
    type Vector = Vector<G>;
    type Rope = Rope<G>;
    type Batch = Batch<G>;
    type Tensor = Tensor<G>;
    type Recording = Recording<G>;

    fn name(&self) -> String {
        self.gpu.name()
    }

    fn numeric_format(&self) -> &'static str {
        "bf16"
    }

    fn warm_up_tokens(&self, tokens_max: usize) -> Vec<usize> {
        // The largest first: its buffers serve the others.
        let mut rows = self.gpu.row_buckets(tokens_max);
        rows.reverse();
        rows
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.gpu.memory_bytes().ok()
    }

    fn memory_bytes_free(&self) -> Option<u64> {
        self.gpu.memory_bytes_free().ok()
    }

    fn prepare_linear(&self, parts: &[TensorView<'_>], bias: &[TensorView<'_>]) -> Result<Linear<G>> {
        let [out_columns, in_columns] = check::linear_shape(parts, bias)?;
        let weight = Matrix::new(&self.gpu, out_columns, in_columns, parts)?;
        let bias = (!bias.is_empty()).then(|| Vector::new(&self.gpu, bias.iter().flat_map(TensorView::to_f32)));
        Ok(Linear { weight, bias: bias.transpose()? })
    }

    fn prepare_table(&self, table: &TensorView<'_>) -> Result<Matrix<G>> {
        let [rows, columns] = check::matrix_shape("prepare_table", table)?;
        Matrix::new(&self.gpu, rows, columns, std::slice::from_ref(table))
    }

    fn packed_layout(&self) -> Option<String> {
        None
    }

    fn packed_linear(&self, _: &Linear<G>) -> Option<Packed> {
        None
    }

    fn packed_table(&self, _: &Matrix<G>) -> Option<Packed> {
        None
    }

    fn linear_from(&self, packed: &Packed, _: &[TensorView<'_>]) -> Result<Linear<G>> {
        Err(packed.refused("linear_from"))
    }

    fn table_from(&self, packed: &Packed) -> Result<Matrix<G>> {
        Err(packed.refused("table_from"))
    }

    fn prepare_vector(&self, vector: &TensorView<'_>) -> Result<Vector<G>> {
        check::vector_length(vector)?;
        Vector::new(&self.gpu, vector.to_f32().into_iter())
    }

    fn prepare_rope(&self, theta: f32, dim: usize, positions: usize) -> Result<Rope<G>> {
        Rope::new(&self.gpu, &RopeTable::new(theta, dim, positions)?)
    }

    fn upload(&self, batch: &PackedBatch) -> Result<Batch<G>> {
        Batch::upload(&*self.gpu, &self.workspace, batch)
    }

    fn run(
        &self,
        recording: &Recording<G>,
        batch: &PackedBatch,
        forward: &(dyn Fn(&Batch<G>) -> Result<Tensor<G>> + Sync),
    ) -> Result<Vec<f32>> {
        recording::run(self, recording, batch, forward)
    }

    fn embed(&self, table: &Matrix<G>, norm: Option<&Norm<Vector<G>>>, batch: &Batch<G>) -> Result<Tensor<G>> {
        const OP: &str = "embed";
        batch.check_tokens(table.rows)?;
        let out = self.tensor(batch.rows(), table.columns, Format::F32)?;
        let (rows, table, tokens) = (out.rows, Arg::Address(table.memory.address()), Arg::Address(batch.tokens()));
        let Some(norm) = norm else {
            let args = [table, tokens, out.address(), int(out.columns)];
            self.launch(Kernel::EmbedRows, [rows, 1], &args)?;
            return Ok(out);
        };
        check::norm_columns(OP, out.columns, norm.weight.length, norm.bias.as_ref().map(|bias| bias.length))?;
        let [weight, bias, eps, kind] = norm_args(norm);
        let args = [table, tokens, weight, bias, out.address(), int(out.columns), eps, kind];
        self.launch(Kernel::EmbedNorm, [rows, 1], &args)?;
        Ok(out)
    }

    fn linear(&self, x: &Tensor<G>, weight: &Linear<G>) -> Result<Tensor<G>> {
        let columns = weight.weight.rows;
        let format = if columns <= HEAD_COLUMNS_MAX { Format::F32 } else { Format::Bf16 };
        let y = self.tensor(x.rows, columns, format)?;
        self.product(x, weight, &y, false)?;
        Ok(y)
    }

    fn linear_add(&self, x: &Tensor<G>, weight: &Linear<G>, residual: &mut Tensor<G>) -> Result<()> {
        self.product(x, weight, residual, true)
    }

    fn norm(&self, x: &Tensor<G>, norm: &Norm<Vector<G>>) -> Result<Tensor<G>> {
        check::norm_columns("norm", x.columns, norm.weight.length, norm.bias.as_ref().map(|bias| bias.length))?;
        let out = self.tensor(x.rows, x.columns, Format::Bf16)?;
        let kernel = match x.format {
            Format::Bf16 => Kernel::NormBf16,
            Format::F32 => Kernel::NormF32,
        };
        let [weight, bias, eps, kind] = norm_args(norm);
        self.launch(kernel, [x.rows, 1], &[x.address(), weight, bias, out.address(), int(x.columns), eps, kind])?;
        Ok(out)
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut Tensor<G>,
        heads: Heads,
        norms: Option<HeadNorms<'_, Vector<G>>>,
        rope: &Rope<G>,
        batch: &Batch<G>,
    ) -> Result<()> {
        const OP: &str = "qk_norm_rope";
        check::fused_heads(OP, heads, [qkv.rows, qkv.columns], &batch.packed)?;
        batch.limit_length(rope.positions);
        check::rope_covers(OP, heads, rope.dim, rope.positions, &batch.packed)?;
        for norm in norms.iter().flat_map(|(q, k)| [q, k]) {
            check::head_norm(OP, heads, norm.kind, norm.weight.length, norm.bias.is_some())?;
        }
        if qkv.format == Format::F32 {
            *qkv = self.rounded(qkv)?;
        }
        let (weights, eps) = match norms {
            Some((query, key)) => ([query, key].map(|norm| vector(&norm.weight)), [query.eps, key.eps]),
            None => ([Arg::Address(Address::NULL); 2], [0.0; 2]),
        };
        let args = [
            qkv.address(),
            Arg::Address(batch.positions()),
            Arg::Address(rope.memory.address()),
            weights[0],
            weights[1],
            int(heads.query),
            int(heads.key_value),
            int(heads.dim),
            Arg::F32(eps[0]),
            Arg::F32(eps[1]),
        ];
        let warps = Kernel::QkNormRope.threads() as usize / 32;
        self.launch(Kernel::QkNormRope, [qkv.rows, (heads.query + heads.key_value).div_ceil(warps)], &args)
    }

    fn attention(&self, qkv: &Tensor<G>, heads: Heads, mask: Mask, batch: &Batch<G>) -> Result<Tensor<G>> {
        const OP: &str = "attention";
        check::fused_heads(OP, heads, [qkv.rows, qkv.columns], &batch.packed)?;
        check::ensure(heads.dim <= HEAD_DIM_MAX, OP, || {
            format!("heads of {} floats, this backend takes at most {HEAD_DIM_MAX}", heads.dim)
        })?;
        let rounded = (qkv.format == Format::F32).then(|| self.rounded(qkv)).transpose()?;
        let qkv = rounded.as_ref().unwrap_or(qkv);
        let out = self.tensor(qkv.rows, heads.output_columns(), Format::Bf16)?;
        let scale = Arg::F32(std::f32::consts::LOG2_E / (heads.dim as f32).sqrt());
        let [query, key_value, dim] = [heads.query, heads.key_value, heads.dim].map(int);
        // Wider than any sequence is all of it.
        let window = match mask {
            Mask::Window(n) => i32::try_from(n).unwrap_or(-1),
            Mask::Causal | Mask::Full => -1,
        };
        let causal = mask == Mask::Causal;
        let kernel = match (heads.dim, causal) {
            (64, true) => Kernel::AttentionCausal64,
            (64, false) => Kernel::AttentionWindow64,
            (128, true) => Kernel::AttentionCausal128,
            (128, false) => Kernel::AttentionWindow128,
            _ => Kernel::AttentionAny,
        };
        let [inputs, output, offsets] = [qkv.address(), out.address(), Arg::Address(batch.offsets())];
        if kernel == Kernel::AttentionAny {
            let sequences = Arg::Address(batch.row_sequences());
            let causal = int(usize::from(causal));
            let args = [inputs, output, offsets, sequences, query, key_value, dim, scale, causal, Arg::I32(window)];
            self.launch(kernel, [qkv.rows, heads.query], &args)?;
        } else {
            let [tiles, queries] = [batch.tile_sequences(), batch.tile_queries()].map(Arg::Address);
            let args = [inputs, output, offsets, tiles, queries, query, key_value, scale, Arg::I32(window)];
            self.launch(kernel, [batch.tiles(), heads.query], &args)?;
        }
        Ok(out)
    }

    fn gated_act(&self, x: &Tensor<G>, activation: Activation) -> Result<Tensor<G>> {
        check::ensure(x.columns.is_multiple_of(2), "gated_act", || format!("{} columns have no halves", x.columns))?;
        let rounded = (x.format == Format::F32).then(|| self.rounded(x)).transpose()?;
        let x = rounded.as_ref().unwrap_or(x);
        let out = self.tensor(x.rows, x.columns / 2, Format::Bf16)?;
        let kernel = match activation {
            Activation::Silu => Kernel::GateSilu,
            Activation::Gelu => Kernel::GateGelu,
        };
        // 8 elements a thread.
        let grid = [x.rows, out.columns.div_ceil(8 * kernel.threads() as usize)];
        self.launch(kernel, grid, &[x.address(), out.address(), int(out.columns)])?;
        Ok(out)
    }

    fn activation(&self, x: &mut Tensor<G>, activation: Activation) -> Result<()> {
        let kernel = match x.format {
            Format::Bf16 => Kernel::ActivateBf16,
            Format::F32 => Kernel::ActivateF32,
        };
        let which = match activation {
            Activation::Silu => 0,
            Activation::Gelu => 1,
        };
        self.elementwise(kernel, x, None, Some(Arg::I32(which)))
    }

    fn pool(&self, x: &Tensor<G>, pooling: Pooling, batch: &Batch<G>) -> Result<Tensor<G>> {
        check::rows_of_batch("pool", x.rows, &batch.packed)?;
        let (kernel, format) = match (pooling, x.format) {
            (Pooling::First | Pooling::Last, Format::F32) => (Kernel::PoolRowF32, Format::F32),
            (Pooling::First | Pooling::Last, Format::Bf16) => (Kernel::PoolRowBf16, Format::Bf16),
            (Pooling::Mean, Format::F32) => (Kernel::PoolMeanF32, Format::F32),
            (Pooling::Mean, Format::Bf16) => (Kernel::PoolMeanBf16, Format::F32),
        };
        let out = self.tensor(batch.sequences(), x.columns, format)?;
        let mut args = vec![x.address(), Arg::Address(batch.offsets()), out.address(), int(x.columns)];
        if pooling != Pooling::Mean {
            args.push(int(usize::from(pooling == Pooling::Last)));
        }
        let blocks = x.columns.div_ceil(kernel.threads() as usize);
        self.launch(kernel, [out.rows, blocks], &args)?;
        Ok(out)
    }

    fn download(&self, x: &Tensor<G>) -> Result<Vec<f32>> {
        let widened = match x.format {
            Format::F32 => None,
            Format::Bf16 => {
                let out = self.tensor(x.rows, x.columns, Format::F32)?;
                self.elementwise(Kernel::ToF32, x, Some(&out), None)?;
                Some(out)
            }
        };
        let mut floats = vec![0.0f32; x.count()];
        let x = widened.as_ref().unwrap_or(x);
        self.gpu.read(x.memory.address(), bytemuck::cast_slice_mut(&mut floats))?;
        Ok(floats)
    }
}

/// A size as an argument. Sizes that reach here are of tensors that exist; what does not fit is refused by the launch's grid
/// or the count's check.
fn int(size: usize) -> Arg {
    Arg::I32(i32::try_from(size).unwrap_or(i32::MAX))
}

fn vector<G: Gpu>(vector: &Vector<G>) -> Arg {
    Arg::Address(vector.memory.address())
}

/// Scale, shift, epsilon and kind, as kernels take them.
fn norm_args<G: Gpu>(norm: &Norm<Vector<G>>) -> [Arg; 4] {
    let bias = norm.bias.as_ref().map_or(Arg::Address(Address::NULL), vector);
    let kind = match norm.kind {
        NormKind::Rms => 0,
        NormKind::Layer => 1,
    };
    [vector(&norm.weight), bias, Arg::F32(norm.eps), Arg::I32(kind)]
}
