// One row a sequence.

template <class T>
INLINE void pool_row(const T* x, const int* offsets, T* out, int columns, int last) {
    const int c = blockIdx.y * 256 + threadIdx.x;
    if (c >= columns) return;
    const int row = last ? offsets[blockIdx.x + 1] - 1 : offsets[blockIdx.x];
    out[(u64)blockIdx.x * columns + c] = x[(u64)row * columns + c];
}

template <class T>
INLINE void pool_mean(const T* x, const int* offsets, float* out, int columns) {
    const int c = blockIdx.y * 256 + threadIdx.x;
    if (c >= columns) return;
    const int begin = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    // Compensated (Kahan 1965, https://doi.org/10.1145/363707.363723): a sequence has thousands of rows.
    float sum = 0.0f, lost = 0.0f;
    for (int row = begin; row < end; row++) {
        const float y = load1(x + (u64)row * columns, c) - lost;
        const float t = sum + y;
        lost = (t - sum) - y;
        sum = t;
    }
    out[(u64)blockIdx.x * columns + c] = sum / (end - begin);
}

KERNEL(pool_row_f32, 256, const float* __restrict__ x, const int* __restrict__ offsets, float* __restrict__ out, int columns,
       int last) {
    pool_row(x, offsets, out, columns, last);
}

KERNEL(pool_row_bf16, 256, const u16* __restrict__ x, const int* __restrict__ offsets, u16* __restrict__ out, int columns,
       int last) {
    pool_row(x, offsets, out, columns, last);
}

KERNEL(pool_mean_f32, 256, const float* __restrict__ x, const int* __restrict__ offsets, float* __restrict__ out,
       int columns) {
    pool_mean(x, offsets, out, columns);
}

KERNEL(pool_mean_bf16, 256, const u16* __restrict__ x, const int* __restrict__ offsets, float* __restrict__ out,
       int columns) {
    pool_mean(x, offsets, out, columns);
}
