// Activations, exact as the reference implementations define them, and gates by them.

INLINE float silu(float x) { return x / (1.0f + expf(-x)); }

INLINE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); }

template <bool by_silu>
INLINE float activated(float x) {
    return by_silu ? silu(x) : gelu(x);
}

template <bool by_silu>
INLINE void gate(const u16* x, u16* out, int columns) {
    const int first = (blockIdx.y * 256 + threadIdx.x) * 8;
    const u16* gates = x + (u64)blockIdx.x * 2 * columns;
    const u16* ups = gates + columns;
    u16* to = out + (u64)blockIdx.x * columns;
    if (columns % 8 == 0) {
        if (first >= columns) return;
        const uint4 a = *reinterpret_cast<const uint4*>(gates + first), b = *reinterpret_cast<const uint4*>(ups + first);
        const u32 packed_a[4] = {a.x, a.y, a.z, a.w}, packed_b[4] = {b.x, b.y, b.z, b.w};
        u32 result[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            const float2 g = unpack_bf16(packed_a[j]), u = unpack_bf16(packed_b[j]);
            result[j] = pack_bf16(activated<by_silu>(g.x) * u.x, activated<by_silu>(g.y) * u.y);
        }
        *reinterpret_cast<uint4*>(to + first) = make_uint4(result[0], result[1], result[2], result[3]);
        return;
    }
    for (int c = first; c < min(first + 8, columns); c++) {
        to[c] = f32_to_bf16(activated<by_silu>(bf16_to_f32(gates[c])) * bf16_to_f32(ups[c]));
    }
}

KERNEL(gate_silu, 256, const u16* __restrict__ x, u16* __restrict__ out, int columns) { gate<true>(x, out, columns); }

KERNEL(gate_gelu, 256, const u16* __restrict__ x, u16* __restrict__ out, int columns) { gate<false>(x, out, columns); }

// activation: 0 for SiLU, 1 for exact GELU.
template <class T>
INLINE void activate(T* x, int count, int activation) {
    // Of 2^31 elements the last block reaches beyond what an int holds.
    const u32 i = blockIdx.x * 256u + threadIdx.x;
    if (i >= (u32)count) return;
    const float v = load1(x + i, 0);
    store1(x + i, 0, activation == 0 ? silu(v) : gelu(v));
}

KERNEL(activate_bf16, 256, u16* x, int count, int activation) { activate(x, count, activation); }

KERNEL(activate_f32, 256, float* x, int count, int activation) { activate(x, count, activation); }
