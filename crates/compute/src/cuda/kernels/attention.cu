// Attention within packed sequences on matrix instructions: 64 queries of one head a block, 16 a warp, against 64 keys at a
// time, with the running maximum and sum of FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691).
//
// Keys and values have one tile of shared memory each: values arrive while scores are computed, and the next keys while values
// are summed. With the queries that is 3 tiles, so that two blocks with heads of 128 fit a multiprocessor with 100 KiB. Chunks of
// 16 bytes are permuted within a row, so that eight rows of one column fall into eight different banks.

// The address of a chunk of 8 elements.
template <int dim>
INLINE u32 chunk_of(u32 tile, int row, int chunk) {
    return tile + row * dim * 2 + ((chunk ^ (row & 7)) << 4);
}

// Asks for rows first .. first + 64 of a sequence; what lies beyond its end is zeros.
template <int dim>
INLINE void ask_for_tile(u32 tile, const u16* rows, int row_stride, int first, int length) {
    const int chunk = threadIdx.x % (dim / 8), top = threadIdx.x / (dim / 8);
    UNROLL
    for (int i = 0; i < dim / 16; i++) {
        const int row = top + i * (1024 / dim);
        const bool valid = first + row < length;
        cp_async(chunk_of<dim>(tile, row, chunk), rows + (u64)(valid ? first + row : 0) * row_stride + chunk * 8, valid);
    }
}

template <int dim, bool causal>
INLINE void attend(const u16* qkv, u16* out, const int* offsets, const int* tile_sequence, const int* tile_query,
                   int query_heads, int key_heads, float scale, int window) {
    DYNAMIC_SHARED(u16, memory);
    // The last queries of a causal sequence see the most keys: they begin first.
    const int tile = causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const int sequence = tile_sequence[tile];
    // The whole block leaves.
    if (sequence < 0) return;
    const int first_query = tile_query[tile], head = blockIdx.y, key_head = head / (query_heads / key_heads);
    const int begin = offsets[sequence], length = offsets[sequence + 1] - begin;
    const int warp_row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    const int row_stride = (query_heads + 2 * key_heads) * dim;
    const u16* rows = qkv + (u64)begin * row_stride;
    const u16* keys = rows + (query_heads + key_head) * dim;
    const u16* values = keys + key_heads * dim;
    const u32 query_tile = shared_address(memory), key_tile = query_tile + 64 * dim * 2, value_tile = key_tile + 64 * dim * 2;

    // The keys that some query of the tile sees.
    const bool windowed = !causal && window >= 0 && window < length;
    const int last_query = min(first_query + 64, length) - 1;
    const int key_begin = windowed ? max(0, first_query - window) : 0;
    const int key_end = causal ? last_query + 1 : windowed ? min(length, last_query + window + 1) : length;

    ask_for_tile<dim>(query_tile, rows + head * dim, row_stride, first_query, length);
    ask_for_tile<dim>(key_tile, keys, row_stride, key_begin, length);
    cp_async_commit();

    // Finite, so that a difference of two of them is no NaN. What a tile without a single allowed key adds is scaled by 0 as
    // soon as an allowed one is met, and every query meets itself.
    const float never = -1e30f;
    u32 query[dim / 16][4];
    float o[dim / 8][4] = {};
    // Of the two rows of this lane.
    float most[2] = {never, never}, sums[2] = {};

    for (int first_key = key_begin; first_key < key_end; first_key += 64) {
        cp_async_wait<0>();
        // The keys are there for all threads, and nobody reads the last values any more.
        __syncthreads();
        ask_for_tile<dim>(value_tile, values, row_stride, first_key, length);
        cp_async_commit();

        if (first_key == key_begin) {
            UNROLL
            for (int d = 0; d < dim / 16; d++) {
                ldmatrix(query[d], chunk_of<dim>(query_tile, warp_row + (lane & 15), d * 2 + (lane >> 4)));
            }
        }
        float s[8][4] = {};
        UNROLL
        for (int d = 0; d < dim / 16; d++) {
            UNROLL
            for (int n = 0; n < 4; n++) {
                u32 b[4];
                ldmatrix(b, chunk_of<dim>(key_tile, n * 16 + (lane & 7) + ((lane >> 4) << 3), d * 2 + ((lane >> 3) & 1)));
                mma_bf16(s[2 * n], query[d], b);
                mma_bf16(s[2 * n + 1], query[d], b + 2);
            }
        }

        cp_async_wait<0>();
        // The values are there for all threads, and nobody reads the keys any more.
        __syncthreads();
        if (first_key + 64 < key_end) ask_for_tile<dim>(key_tile, keys, row_stride, first_key + 64, length);
        cp_async_commit();

        // Whether every key of the tile is allowed for every query of the warp.
        const int top = first_query + warp_row, row0 = top + lane / 4;
        const bool whole = first_key + 64 <= length && (!causal || first_key + 63 <= top) &&
                           (!windowed || (first_key + 63 - top <= window && top + 15 - first_key <= window));
        if (!whole) {
            UNROLL
            for (int n = 0; n < 8; n++) {
                UNROLL
                for (int j = 0; j < 4; j++) {
                    const int row = row0 + (j < 2 ? 0 : 8), key = first_key + n * 8 + (lane & 3) * 2 + (j & 1);
                    const bool allowed = key < length && (!causal || key <= row) &&
                                         (!windowed || (key - row <= window && row - key <= window));
                    if (!allowed) s[n][j] = never;
                }
            }
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            float now = most[r];
            UNROLL
            for (int n = 0; n < 8; n++) now = fmaxf(now, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            now = quad_max(now);
            const float base = now * scale, old = exp2f(most[r] * scale - base);
            most[r] = now;
            sums[r] *= old;
            UNROLL
            for (int n = 0; n < 8; n++) {
                s[n][2 * r] = exp2f(s[n][2 * r] * scale - base);
                s[n][2 * r + 1] = exp2f(s[n][2 * r + 1] * scale - base);
                sums[r] += s[n][2 * r] + s[n][2 * r + 1];
            }
            UNROLL
            for (int d = 0; d < dim / 8; d++) {
                o[d][2 * r] *= old;
                o[d][2 * r + 1] *= old;
            }
        }
        UNROLL
        for (int k = 0; k < 4; k++) {
            // Scores lie in registers as the next product's left side needs them.
            const u32 a[4] = {pack_bf16(s[2 * k][0], s[2 * k][1]), pack_bf16(s[2 * k][2], s[2 * k][3]),
                              pack_bf16(s[2 * k + 1][0], s[2 * k + 1][1]), pack_bf16(s[2 * k + 1][2], s[2 * k + 1][3])};
            UNROLL
            for (int d = 0; d < dim / 16; d++) {
                u32 b[4];
                ldmatrix_transposed(b, chunk_of<dim>(value_tile, k * 16 + (lane & 15), d * 2 + (lane >> 4)));
                mma_bf16(o[2 * d], a, b);
                mma_bf16(o[2 * d + 1], a, b + 2);
            }
        }
    }

    // By way of the warp's own rows of the queries, which nobody reads any more, for stores of 16 bytes.
    UNROLL
    for (int r = 0; r < 2; r++) {
        const float share = 1.0f / quad_sum(sums[r]);
        const int row = warp_row + lane / 4 + 8 * r;
        UNROLL
        for (int d = 0; d < dim / 8; d++) {
            const int at = row * dim + ((d ^ (row & 7)) << 3) + (lane & 3) * 2;
            *reinterpret_cast<u32*>(memory + at) = pack_bf16(o[d][2 * r] * share, o[d][2 * r + 1] * share);
        }
    }
    sync_warp();
    u16* to = out + (u64)begin * query_heads * dim + head * dim;
    UNROLL
    for (int i = 0; i < dim / 16; i++) {
        const int row = warp_row + (i * 32 + lane) / (dim / 8), chunk = lane % (dim / 8);
        if (first_query + row >= length) continue;
        const uint4 v = *reinterpret_cast<const uint4*>(memory + row * dim + ((chunk ^ (row & 7)) << 3));
        *reinterpret_cast<uint4*>(to + (u64)(first_query + row) * query_heads * dim + chunk * 8) = v;
    }
}

#define ATTENTION(name, blocks, dim, causal)                                                                             \
    KERNEL_RESIDENT(name, 128, blocks, const u16* __restrict__ qkv, u16* __restrict__ out,                               \
                    const int* __restrict__ offsets, const int* __restrict__ tile_sequence,                              \
                    const int* __restrict__ tile_query, int query_heads, int key_heads, float scale, int window) {       \
        attend<dim, causal>(qkv, out, offsets, tile_sequence, tile_query, query_heads, key_heads, scale, window);        \
    }

ATTENTION(attention_causal_64, 3, 64, true)
ATTENTION(attention_causal_128, 2, 128, true)
ATTENTION(attention_window_64, 3, 64, false)
ATTENTION(attention_window_128, 2, 128, false)
