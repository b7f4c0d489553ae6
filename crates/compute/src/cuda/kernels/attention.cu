// Attention within packed sequences on matrix instructions: 64 queries of one head a block, 16 a warp, against 64 keys at a
// time, with the running maximum and sum of FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691).
//
// The next tile of keys and values is on its way while one is computed. Tiles lie in shared memory with their 16-byte chunks
// permuted by the row, so that eight rows of one column fall into eight different banks.

// The address of a chunk of 8 elements.
template <int dim>
INLINE u32 chunk_of(u32 tile, int row, int chunk) {
    return tile + row * dim * 2 + ((chunk ^ (row & 7)) << 4);
}

// Rows first .. first + 64 of a sequence; zeros beyond its end.
template <int dim>
INLINE void load_tile(u32 tile, const u16* rows, int row_stride, int first, int length) {
    for (int i = threadIdx.x; i < 64 * (dim / 8); i += 128) {
        const int row = i / (dim / 8), chunk = i % (dim / 8);
        const bool valid = first + row < length;
        cp_async(chunk_of<dim>(tile, row, chunk), rows + (u64)(valid ? first + row : 0) * row_stride + chunk * 8, valid);
    }
}

template <int dim, bool causal>
INLINE void attend(const u16* qkv, u16* out, const int* offsets, const int* tile_sequence, const int* tile_query,
                   int query_heads, int key_heads, float scale, int window) {
    DYNAMIC_SHARED(u16, memory);
    const int sequence = tile_sequence[blockIdx.x];
    // The whole block leaves.
    if (sequence < 0) return;
    const int first_query = tile_query[blockIdx.x], head = blockIdx.y, key_head = head / (query_heads / key_heads);
    const int begin = offsets[sequence], length = offsets[sequence + 1] - begin;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row_stride = (query_heads + 2 * key_heads) * dim;
    const u16* rows = qkv + (u64)begin * row_stride;
    const u16* keys = rows + (query_heads + key_head) * dim;
    const u16* values = keys + key_heads * dim;
    const u32 tile_bytes = 64 * dim * 2;
    const u32 query_tile = shared_address(memory), key_tiles = query_tile + tile_bytes, value_tiles = key_tiles + 2 * tile_bytes;

    const bool windowed = !causal && window >= 0 && window < length;
    const int last_query = min(first_query + 64, length) - 1;
    const int key_end = causal ? last_query + 1 : windowed ? min(length, last_query + window + 1) : length;
    const int key_begin = windowed ? max(0, first_query - window) / 64 * 64 : 0;

    load_tile<dim>(query_tile, rows + head * dim, row_stride, first_query, length);
    load_tile<dim>(key_tiles, keys, row_stride, key_begin, length);
    load_tile<dim>(value_tiles, values, row_stride, key_begin, length);
    cp_async_commit();

    // Finite, so that a difference of two of them is no NaN. What a tile without a single allowed key adds is scaled by 0 as
    // soon as an allowed one is met, and every query meets itself.
    const float never = -1e30f;
    float o[dim / 8][4] = {};
    float max0 = never, max1 = never, sum0 = 0.0f, sum1 = 0.0f;
    const int row0 = first_query + warp * 16 + lane / 4, row1 = row0 + 8;

    for (int first_key = key_begin; first_key < key_end; first_key += 64) {
        const u32 stage = ((first_key - key_begin) / 64) & 1;
        if (first_key + 64 < key_end) {
            load_tile<dim>(key_tiles + (stage ^ 1) * tile_bytes, keys, row_stride, first_key + 64, length);
            load_tile<dim>(value_tiles + (stage ^ 1) * tile_bytes, values, row_stride, first_key + 64, length);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();

        const u32 key_tile = key_tiles + stage * tile_bytes, value_tile = value_tiles + stage * tile_bytes;
        float s[8][4] = {};
        UNROLL
        for (int d = 0; d < dim / 16; d++) {
            u32 a[4];
            ldmatrix(a, chunk_of<dim>(query_tile, warp * 16 + (lane & 15), d * 2 + (lane >> 4)));
            UNROLL
            for (int n = 0; n < 4; n++) {
                u32 b[4];
                ldmatrix(b, chunk_of<dim>(key_tile, n * 16 + (lane & 7) + ((lane >> 4) << 3), d * 2 + ((lane >> 3) & 1)));
                mma_bf16(s[2 * n], a, b);
                mma_bf16(s[2 * n + 1], a, b + 2);
            }
        }

        // Whether every key of the tile is allowed for every query of the warp.
        const int top = first_query + warp * 16;
        const bool whole = first_key + 64 <= length && (!causal || first_key + 63 <= top) &&
                           (!windowed || (first_key + 63 - top <= window && top + 15 - first_key <= window));
        float new0 = max0, new1 = max1;
        UNROLL
        for (int n = 0; n < 8; n++) {
            UNROLL
            for (int j = 0; j < 4; j++) {
                const int row = j < 2 ? row0 : row1, key = first_key + n * 8 + (lane & 3) * 2 + (j & 1);
                bool allowed = whole;
                if (!whole) {
                    allowed = key < length && (!causal || key <= row) &&
                              (!windowed || (key - row <= window && row - key <= window));
                }
                s[n][j] = allowed ? s[n][j] * scale : never;
                if (j < 2) new0 = fmaxf(new0, s[n][j]);
                else new1 = fmaxf(new1, s[n][j]);
            }
        }
        new0 = quad_max(new0);
        new1 = quad_max(new1);
        const float old0 = exp2f(max0 - new0), old1 = exp2f(max1 - new1);
        max0 = new0;
        max1 = new1;
        sum0 *= old0;
        sum1 *= old1;
        UNROLL
        for (int i = 0; i < dim / 8; i++) {
            o[i][0] *= old0;
            o[i][1] *= old0;
            o[i][2] *= old1;
            o[i][3] *= old1;
        }
        UNROLL
        for (int n = 0; n < 8; n++) {
            s[n][0] = exp2f(s[n][0] - max0);
            s[n][1] = exp2f(s[n][1] - max0);
            s[n][2] = exp2f(s[n][2] - max1);
            s[n][3] = exp2f(s[n][3] - max1);
            sum0 += s[n][0] + s[n][1];
            sum1 += s[n][2] + s[n][3];
        }
        UNROLL
        for (int k = 0; k < 4; k++) {
            // The products of the scores lie in registers as the next product's left side needs them.
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
        // The next round loads over this tile.
        __syncthreads();
    }

    const float inverse0 = 1.0f / quad_sum(sum0), inverse1 = 1.0f / quad_sum(sum1);
    u16* to = out + (u64)begin * query_heads * dim + head * dim + (lane & 3) * 2;
    UNROLL
    for (int i = 0; i < dim / 8; i++) {
        if (row0 < length) {
            *reinterpret_cast<u32*>(to + (u64)row0 * query_heads * dim + i * 8) = pack_bf16(o[i][0] * inverse0, o[i][1] * inverse0);
        }
        if (row1 < length) {
            *reinterpret_cast<u32*>(to + (u64)row1 * query_heads * dim + i * 8) = pack_bf16(o[i][2] * inverse1, o[i][3] * inverse1);
        }
    }
}

#define ATTENTION(name, dim, causal)                                                                                     \
    KERNEL(name, 128, const u16* __restrict__ qkv, u16* __restrict__ out, const int* __restrict__ offsets,               \
           const int* __restrict__ tile_sequence, const int* __restrict__ tile_query, int query_heads, int key_heads,    \
           float scale, int window) {                                                                                    \
        attend<dim, causal>(qkv, out, offsets, tile_sequence, tile_query, query_heads, key_heads, scale, window);        \
    }

ATTENTION(attention_causal_64, 64, true)
ATTENTION(attention_causal_128, 128, true)
ATTENTION(attention_window_64, 64, false)
ATTENTION(attention_window_128, 128, false)
