// Attention with heads of any even number of floats up to 256, one warp a query and head, one key after another: for shapes
// that the matrix instructions do not take.

KERNEL(attention_any, 32, const u16* __restrict__ qkv, u16* __restrict__ out, const int* __restrict__ offsets,
       const int* __restrict__ row_sequence, int query_heads, int key_heads, int dim, float scale, int causal, int window) {
    const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x;
    const int sequence = row_sequence[row];
    if (sequence < 0) return;
    const int begin = offsets[sequence], length = offsets[sequence + 1] - begin, position = row - begin;
    const int row_stride = (query_heads + 2 * key_heads) * dim, key_head = head / (query_heads / key_heads);
    const u16* query = qkv + (u64)row * row_stride + head * dim;
    const u16* keys = qkv + (u64)begin * row_stride + (query_heads + key_head) * dim;
    const bool windowed = !causal && window >= 0 && window < length;
    const int first = windowed ? max(0, position - window) : 0;
    const int end = causal ? position + 1 : windowed ? min(length, position + window + 1) : length;

    float q[8], o[8] = {};
    UNROLL
    for (int j = 0; j < 8; j++) q[j] = lane + 32 * j < dim ? bf16_to_f32(query[lane + 32 * j]) * scale : 0.0f;
    float most = -1e30f, sum = 0.0f;
    for (int i = first; i < end; i++) {
        const u16* key = keys + (u64)i * row_stride;
        const u16* value = key + key_heads * dim;
        float score = 0.0f;
        UNROLL
        for (int j = 0; j < 8; j++) {
            if (lane + 32 * j < dim) score += q[j] * bf16_to_f32(key[lane + 32 * j]);
        }
        score = warp_sum(score);
        const float now = fmaxf(most, score), old = exp2f(most - now), weight = exp2f(score - now);
        most = now;
        sum = sum * old + weight;
        UNROLL
        for (int j = 0; j < 8; j++) {
            if (lane + 32 * j < dim) o[j] = o[j] * old + weight * bf16_to_f32(value[lane + 32 * j]);
        }
    }
    u16* to = out + ((u64)row * query_heads + head) * dim;
    UNROLL
    for (int j = 0; j < 8; j++) {
        if (lane + 32 * j < dim) to[lane + 32 * j] = f32_to_bf16(o[j] / sum);
    }
}
