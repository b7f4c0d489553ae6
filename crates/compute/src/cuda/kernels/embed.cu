// Rows of an embedding table, one block a row: what a residual stream begins with.

KERNEL(embed_rows, 256, const u16* __restrict__ table, const int* __restrict__ tokens, float* __restrict__ out, int columns) {
    const u16* row = table + (u64)tokens[blockIdx.x] * columns;
    float* to = out + (u64)blockIdx.x * columns;
    if (columns % 4 == 0) {
        for (int quad = threadIdx.x; quad < columns / 4; quad += 256) store4(to, quad, load4(row, quad));
    } else {
        for (int c = threadIdx.x; c < columns; c += 256) to[c] = bf16_to_f32(row[c]);
    }
}

KERNEL(embed_norm, 256, const u16* __restrict__ table, const int* __restrict__ tokens, const float* __restrict__ weight,
       const float* __restrict__ bias, float* __restrict__ out, int columns, float eps, int kind) {
    const u16* row = table + (u64)tokens[blockIdx.x] * columns;
    normalize(row, weight, bias, out + (u64)blockIdx.x * columns, columns, eps, kind);
}
