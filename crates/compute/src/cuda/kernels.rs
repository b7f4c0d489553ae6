//! The kernels, by name: sources that include nothing, so that they compile where CUDA's headers are not.
//!
//! Each `.cu` file under `kernels/` is compiled with `prelude.cuh` and `common.cuh` in front of it. bf16 is carried as `unsigned short`.
//! Accumulation is in f32 everywhere. A kernel's signature is documented where it is defined; [`Launch`](super::Launch)
//! passes its arguments in that order.

/// What stands in front of every source: types, bf16 and the PTX instructions as functions; then what kernels share.
pub const PRELUDE: &str = concat!(include_str!("kernels/prelude.cuh"), "\n", include_str!("kernels/common.cuh"));

/// A `.cu` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name, without a folder: `norm.cu`.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! kernels {
    ($($file:literal { $($(#[$doc:meta])* $kernel:ident = $name:literal, $threads:literal threads, $shared:expr;)+ })+) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kernel {
            $($($(#[$doc])* $kernel,)+)+
        }

        impl Kernel {
            /// All of them, those of one file together.
            pub const ALL: &'static [Self] = &[$($(Self::$kernel,)+)+];

            /// The name of its function.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$kernel => $name,)+)+ }
            }

            /// Threads in a block.
            pub const fn threads(self) -> u32 {
                match self { $($(Self::$kernel => $threads,)+)+ }
            }

            /// Bytes of dynamic shared memory that a block takes.
            pub const fn shared_bytes(self) -> u32 {
                match self { $($(Self::$kernel => $shared,)+)+ }
            }

            /// Where it is written.
            pub const fn source(self) -> Source {
                match self {
                    $($(Self::$kernel)|+ => Source { file: $file, text: include_str!(concat!("kernels/", $file)) },)+
                }
            }
        }
    };
}

/// Rows of queries in a tile of the attention kernels.
pub const ATTENTION_TILE_ROWS: usize = 64;

/// Bytes of a tile of queries, keys or values, 64 rows of `dim` bf16.
const fn attention_tile_bytes(dim: u32) -> u32 {
    64 * dim * 2
}

kernels! {
    "embed.cu" {
        /// Rows of a table: `(table bf16, tokens i32, out f32, columns)`; a block a row.
        EmbedRows = "embed_rows", 256 threads, 0;
        /// Rows of a table, normalized: `(table bf16, tokens i32, weight f32, bias f32 or null, out f32, columns, eps, kind)`
        /// with kind 0 for root mean square, 1 for layer; a block a row.
        EmbedNorm = "embed_norm", 256 threads, 0;
    }
    "norm.cu" {
        /// Normalized rows: `(x f32, weight f32, bias f32 or null, out bf16, columns, eps, kind)`; a block a row.
        NormF32 = "norm_f32", 256 threads, 0;
        /// The same of bf16.
        NormBf16 = "norm_bf16", 256 threads, 0;
    }
    "rope.cu" {
        /// Query and key norms and rotation in place: `(qkv bf16, positions i32, angles f32 [positions, dim / 2, (cos, sin)],
        /// query weight f32 or null, key weight f32 or null, query heads, key heads, dim, query eps, key eps)`; a warp a head,
        /// grid `[rows, ceil((query heads + key heads) / 8)]`.
        QkNormRope = "qk_norm_rope", 256 threads, 0;
    }
    "attention.cu" {
        /// Causal attention, heads of 64: `(qkv bf16, out bf16, offsets i32, tile sequence i32, tile query i32, query heads,
        /// key heads, scale * log2(e), window)`; a tile without a sequence (-1) is skipped; grid `[tiles, query heads]`.
        AttentionCausal64 = "attention_causal_64", 128 threads, 3 * attention_tile_bytes(64);
        /// The same, heads of 128.
        AttentionCausal128 = "attention_causal_128", 128 threads, 3 * attention_tile_bytes(128);
        /// Attention to keys within `window` on either side, or to all where it is negative; heads of 64.
        AttentionWindow64 = "attention_window_64", 128 threads, 3 * attention_tile_bytes(64);
        /// The same, heads of 128.
        AttentionWindow128 = "attention_window_128", 128 threads, 3 * attention_tile_bytes(128);
    }
    "attention_any.cu" {
        /// Attention with heads of at most 256 floats, without matrix instructions: `(qkv bf16, out bf16, offsets i32, sequence
        /// of each row i32, query heads, key heads, dim, scale * log2(e), causal 0 or 1, window or -1)`; a warp a query, grid
        /// `[rows, query heads]`. A row without a sequence (-1) is skipped.
        AttentionAny = "attention_any", 32 threads, 0;
    }
    "gate.cu" {
        /// `silu(first half) * second half`: `(x bf16 [rows, 2 columns], out bf16, columns)`; grid `[rows, ceil(columns / 2048)]`.
        GateSilu = "gate_silu", 256 threads, 0;
        /// The same by exact GELU.
        GateGelu = "gate_gelu", 256 threads, 0;
        /// An activation in place: `(x bf16, count, activation)` with 0 for SiLU, 1 for exact GELU; grid `ceil(count / 256)`.
        ActivateBf16 = "activate_bf16", 256 threads, 0;
        /// The same of f32.
        ActivateF32 = "activate_f32", 256 threads, 0;
    }
    "pool.cu" {
        /// The first or last row of each sequence: `(x f32, offsets i32, out f32, columns, last 0 or 1)`; grid
        /// `[sequences, ceil(columns / 256)]`.
        PoolRowF32 = "pool_row_f32", 256 threads, 0;
        /// The same of bf16, into bf16.
        PoolRowBf16 = "pool_row_bf16", 256 threads, 0;
        /// The mean of the rows of each sequence: `(x f32, offsets i32, out f32, columns)`; grid as above.
        PoolMeanF32 = "pool_mean_f32", 256 threads, 0;
        /// The same of bf16, into f32.
        PoolMeanBf16 = "pool_mean_bf16", 256 threads, 0;
    }
    "linear.cu" {
        /// A product of any shape, without matrix instructions: `(x bf16 [rows, in], w bf16 [out, in], y bf16, rows, in, out,
        /// accumulate 0 or 1)`; grid `[ceil(out / 16), ceil(rows / 16)]`.
        LinearBf16 = "linear_bf16", 256 threads, 0;
        /// The same into f32.
        LinearF32 = "linear_f32", 256 threads, 0;
        /// A product with few outputs, as the head of a classifier: `(x bf16 [rows, in], w bf16 [out, in], y f32, in, out)`; a
        /// warp an output, grid `[rows, out]`.
        LinearHead = "linear_head", 32 threads, 0;
    }
    "cosine.cu" {
        /// Cosines with one source of length 1: `(rows f32 [rows, columns], inverse norms f32 [rows], source f32 [columns], scores
        /// f32 [rows], rows, columns, 1)`; a warp a row, grid `ceil(rows / 8)`.
        CosineF32 = "cosine_f32", 256 threads, 0;
        /// The same over rows in bf16.
        CosineBf16 = "cosine_bf16", 256 threads, 0;
        /// The same with up to 8 sources, `[sources, columns]`, into scores of `[sources, rows]`; the last argument is their number.
        CosineManyF32 = "cosine_many_f32", 256 threads, 0;
        /// The same over rows in bf16.
        CosineManyBf16 = "cosine_many_bf16", 256 threads, 0;
    }
    "topk.cu" {
        /// Before a selection: `(state u32 [3], histogram u32 [2048], count u32, k)`; one block. k is at least 1 and at most the
        /// number of scores.
        TopkStart = "topk_start", 256 threads, 0;
        /// Counts a digit: `(scores f32, number of scores, state, histogram, shift)`; any grid. Then [`Kernel::TopkNarrow`]; with
        /// shifts 21, 10 and 0 in turn.
        TopkCount = "topk_count", 256 threads, 0;
        /// Narrows down to the digit of the k-th largest: `(state, histogram, shift, bits)` with 11, 11 and 10 bits; one block.
        TopkNarrow = "topk_narrow", 256 threads, 0;
        /// Collects all scores that are not below the k-th largest: `(scores, number of scores, state, count, indices u32, found f32,
        /// most to be collected)`; any grid. `count` is how many there were, also beyond what was collected.
        TopkCollect = "topk_collect", 256 threads, 0;
    }
    "elementwise.cu" {
        /// `(x f32, y bf16, count)`; grid `ceil(count / 256)`.
        ToBf16 = "to_bf16", 256 threads, 0;
        /// `(x bf16, y f32, count)`; grid `ceil(count / 256)`.
        ToF32 = "to_f32", 256 threads, 0;
        /// `y += bias` in every row: `(y f32, bias f32, columns)`; grid `[rows, ceil(columns / 256)]`.
        AddBias = "add_bias", 256 threads, 0;
    }
}
