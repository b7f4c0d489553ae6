// Query and key norms and rotary embedding in place, one warp a head of a row. Halves are paired: x[i] with x[i + dim / 2].
// Norms and rotation are f32; one rounding at the end.

KERNEL(qk_norm_rope, 256, u16* __restrict__ qkv, const int* __restrict__ positions, const float* __restrict__ angles,
       const float* __restrict__ query_weight, const float* __restrict__ key_weight, int query_heads, int key_heads, int dim,
       float query_eps, float key_eps) {
    const int head = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    // Whole warps leave; nothing below spans the block.
    if (head >= query_heads + key_heads) return;
    const bool is_query = head < query_heads;
    const float* weight = is_query ? query_weight : key_weight;
    const int half = dim / 2;
    u16* x = qkv + ((u64)blockIdx.x * (query_heads + 2 * key_heads) + head) * dim;
    const float2* angle = reinterpret_cast<const float2*>(angles) + (u64)positions[blockIdx.x] * half;

    float inverse = 1.0f;
    if (weight) {
        float squares = 0.0f;
        for (int i = lane; i < dim; i += 32) {
            const float v = bf16_to_f32(x[i]);
            squares += v * v;
        }
        inverse = 1.0f / sqrtf(warp_sum(squares) / dim + (is_query ? query_eps : key_eps));
    }
    if (half % 2 == 0) {
        for (int i = 2 * lane; i < half; i += 64) {
            u32* low = reinterpret_cast<u32*>(x + i);
            u32* high = reinterpret_cast<u32*>(x + i + half);
            float2 a = unpack_bf16(*low), b = unpack_bf16(*high);
            if (weight) {
                a = make_float2(a.x * inverse * weight[i], a.y * inverse * weight[i + 1]);
                b = make_float2(b.x * inverse * weight[i + half], b.y * inverse * weight[i + half + 1]);
            }
            const float2 first = angle[i], second = angle[i + 1];
            *low = pack_bf16(a.x * first.x - b.x * first.y, a.y * second.x - b.y * second.y);
            *high = pack_bf16(b.x * first.x + a.x * first.y, b.y * second.x + a.y * second.y);
        }
        return;
    }
    for (int i = lane; i < half; i += 32) {
        float a = bf16_to_f32(x[i]), b = bf16_to_f32(x[i + half]);
        if (weight) {
            a *= inverse * weight[i];
            b *= inverse * weight[i + half];
        }
        x[i] = f32_to_bf16(a * angle[i].x - b * angle[i].y);
        x[i + half] = f32_to_bf16(b * angle[i].x + a * angle[i].y);
    }
}
