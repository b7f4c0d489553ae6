// Cosines of rows with sources of length 1: one warp a row, which is read once for up to eight sources.

INLINE void load8(const float* x, int at, float* out) {
    const float4 a = load4(x, at / 4), b = load4(x, at / 4 + 1);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

INLINE void load8(const u16* x, int at, float* out) {
    const uint4 packed = *reinterpret_cast<const uint4*>(x + at);
    const u32 pairs[4] = {packed.x, packed.y, packed.z, packed.w};
    UNROLL
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_bf16(pairs[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

template <int sources_max, class T>
INLINE void cosine(const T* rows, const float* inverse_norms, const float* sources, float* scores, int row_count, int columns,
                   int source_count) {
    const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    // Whole warps leave; nothing below spans the block.
    if (row >= row_count) return;
    const T* x = rows + (u64)row * columns;
    float sums[sources_max][2] = {};
    const int whole = columns % 8 == 0 ? columns : 0;
    for (int at = lane * 8; at < whole; at += 256) {
        float a[8];
        load8(x, at, a);
        UNROLL
        for (int source = 0; source < sources_max; source++) {
            if (source >= source_count) continue;
            float b[8];
            load8(sources + (u64)source * columns, at, b);
            UNROLL
            for (int i = 0; i < 8; i++) sums[source][i % 2] += a[i] * b[i];
        }
    }
    for (int at = whole + lane; at < columns; at += 32) {
        UNROLL
        for (int source = 0; source < sources_max; source++) {
            if (source < source_count) sums[source][0] += load1(x, at) * sources[(u64)source * columns + at];
        }
    }
    UNROLL
    for (int source = 0; source < sources_max; source++) {
        if (source >= source_count) continue;
        const float sum = warp_sum(sums[source][0] + sums[source][1]);
        if (lane == 0) scores[(u64)source * row_count + row] = sum * inverse_norms[row];
    }
}

#define COSINE(name, sources_max, type)                                                                                  \
    KERNEL(name, 256, const type* __restrict__ rows, const float* __restrict__ inverse_norms,                            \
           const float* __restrict__ sources, float* __restrict__ scores, int row_count, int columns, int source_count) { \
        cosine<sources_max>(rows, inverse_norms, sources, scores, row_count, columns, source_count);                     \
    }

COSINE(cosine_f32, 1, float)
COSINE(cosine_bf16, 1, u16)
COSINE(cosine_many_f32, 8, float)
COSINE(cosine_many_bf16, 8, u16)
