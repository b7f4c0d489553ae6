// Normalized rows, one block a row, into what products read.

KERNEL(norm_f32, 256, const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
       u16* __restrict__ out, int columns, float eps, int kind) {
    const u64 row = (u64)blockIdx.x * columns;
    normalize(x + row, weight, bias, out + row, columns, eps, kind);
}

KERNEL(norm_bf16, 256, const u16* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
       u16* __restrict__ out, int columns, float eps, int kind) {
    const u64 row = (u64)blockIdx.x * columns;
    normalize(x + row, weight, bias, out + row, columns, eps, kind);
}
