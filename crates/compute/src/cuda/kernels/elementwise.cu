// Conversions, and biases.

KERNEL(to_bf16, 256, const float* __restrict__ x, u16* __restrict__ y, int count) {
    const u32 i = blockIdx.x * 256u + threadIdx.x;
    if (i < (u32)count) y[i] = f32_to_bf16(x[i]);
}

KERNEL(to_f32, 256, const u16* __restrict__ x, float* __restrict__ y, int count) {
    const u32 i = blockIdx.x * 256u + threadIdx.x;
    if (i < (u32)count) y[i] = bf16_to_f32(x[i]);
}

KERNEL(add_bias, 256, float* __restrict__ y, const float* __restrict__ bias, int columns) {
    const int c = blockIdx.y * 256 + threadIdx.x;
    if (c < columns) y[(u64)blockIdx.x * columns + c] += bias[c];
}
