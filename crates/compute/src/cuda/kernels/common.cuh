// What several kernels share, in terms of the prelude.

// The sum over a block of 256 threads, for each of them.
INLINE float block_sum(float x) {
    SHARED(float, sums, 8);
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < 8 ? sums[threadIdx.x % 32] : 0.0f);
}

INLINE float4 load4(const float* x, int quad) { return reinterpret_cast<const float4*>(x)[quad]; }

INLINE float4 load4(const u16* x, int quad) {
    uint2 packed = reinterpret_cast<const uint2*>(x)[quad];
    float2 a = unpack_bf16(packed.x), b = unpack_bf16(packed.y);
    return make_float4(a.x, a.y, b.x, b.y);
}

INLINE void store4(float* x, int quad, float4 v) { reinterpret_cast<float4*>(x)[quad] = v; }

INLINE void store4(u16* x, int quad, float4 v) {
    reinterpret_cast<uint2*>(x)[quad] = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
}

INLINE float load1(const float* x, int i) { return x[i]; }
INLINE float load1(const u16* x, int i) { return bf16_to_f32(x[i]); }
INLINE void store1(float* x, int i, float v) { x[i] = v; }
INLINE void store1(u16* x, int i, float v) { x[i] = f32_to_bf16(v); }

// A row normalized by 256 threads: root mean square for kind 0, mean and variance for kind 1. The variance is taken around
// the mean, not as a difference of squares, which loses its digits where the mean is large.
template <class In, class Out>
INLINE void normalize(const In* x, const float* weight, const float* bias, Out* out, int columns, float eps, int kind) {
    const int t = threadIdx.x;
    if (columns % 4 == 0 && columns <= 4096) {
        // Read once, kept in registers.
        const int quads = columns / 4;
        float4 kept[4];
        float sum = 0.0f, squares = 0.0f;
        UNROLL
        for (int j = 0; j < 4; j++) {
            kept[j] = t + 256 * j < quads ? load4(x, t + 256 * j) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            sum += (kept[j].x + kept[j].y) + (kept[j].z + kept[j].w);
        }
        const float mean = kind == 1 ? block_sum(sum) / columns : 0.0f;
        UNROLL
        for (int j = 0; j < 4; j++) {
            if (t + 256 * j >= quads) continue;
            kept[j] = make_float4(kept[j].x - mean, kept[j].y - mean, kept[j].z - mean, kept[j].w - mean);
            squares += (kept[j].x * kept[j].x + kept[j].y * kept[j].y) + (kept[j].z * kept[j].z + kept[j].w * kept[j].w);
        }
        const float inverse = 1.0f / sqrtf(block_sum(squares) / columns + eps);
        UNROLL
        for (int j = 0; j < 4; j++) {
            const int quad = t + 256 * j;
            if (quad >= quads) continue;
            const float4 w = load4(weight, quad);
            const float4 b = bias ? load4(bias, quad) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            store4(out, quad, make_float4(kept[j].x * inverse * w.x + b.x, kept[j].y * inverse * w.y + b.y,
                                          kept[j].z * inverse * w.z + b.z, kept[j].w * inverse * w.w + b.w));
        }
        return;
    }
    float sum = 0.0f, squares = 0.0f;
    if (kind == 1) {
        for (int c = t; c < columns; c += 256) sum += load1(x, c);
    }
    const float mean = kind == 1 ? block_sum(sum) / columns : 0.0f;
    for (int c = t; c < columns; c += 256) {
        const float d = load1(x, c) - mean;
        squares += d * d;
    }
    const float inverse = 1.0f / sqrtf(block_sum(squares) / columns + eps);
    for (int c = t; c < columns; c += 256) {
        store1(out, c, (load1(x, c) - mean) * inverse * weight[c] + (bias ? bias[c] : 0.0f));
    }
}
