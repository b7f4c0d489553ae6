// Products that matrix instructions do not take, and those of a classifier. Neither is where time goes.

template <class T>
INLINE void linear(const u16* x, const u16* w, T* y, int rows, int in_columns, int out_columns, int accumulate) {
    const int column = blockIdx.x * 16 + threadIdx.x % 16, row = blockIdx.y * 16 + threadIdx.x / 16;
    if (column >= out_columns || row >= rows) return;
    const u16* a = x + (u64)row * in_columns;
    const u16* b = w + (u64)column * in_columns;
    float sum = 0.0f;
    for (int k = 0; k < in_columns; k++) sum += bf16_to_f32(a[k]) * bf16_to_f32(b[k]);
    T* to = y + (u64)row * out_columns + column;
    store1(to, 0, accumulate ? load1(to, 0) + sum : sum);
}

KERNEL(linear_bf16, 256, const u16* __restrict__ x, const u16* __restrict__ w, u16* __restrict__ y, int rows, int in_columns,
       int out_columns, int accumulate) {
    linear(x, w, y, rows, in_columns, out_columns, accumulate);
}

KERNEL(linear_f32, 256, const u16* __restrict__ x, const u16* __restrict__ w, float* __restrict__ y, int rows,
       int in_columns, int out_columns, int accumulate) {
    linear(x, w, y, rows, in_columns, out_columns, accumulate);
}

KERNEL(linear_head, 32, const u16* __restrict__ x, const u16* __restrict__ w, float* __restrict__ y, int in_columns,
       int out_columns) {
    const u16* a = x + (u64)blockIdx.x * in_columns;
    const u16* b = w + (u64)blockIdx.y * in_columns;
    float sum = 0.0f;
    for (int k = threadIdx.x; k < in_columns; k += 32) sum += bf16_to_f32(a[k]) * bf16_to_f32(b[k]);
    sum = warp_sum(sum);
    if (threadIdx.x == 0) y[(u64)blockIdx.x * out_columns + blockIdx.y] = sum;
}
