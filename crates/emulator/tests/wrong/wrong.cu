// Kernels with one mistake each, for the tests of the emulator.

KERNEL(wrong_no_barrier, 64, float* out) {
    SHARED(float, memory, 64);
    memory[threadIdx.x] = threadIdx.x;
    // Missing: __syncthreads().
    out[threadIdx.x] = memory[63 - threadIdx.x];
}

KERNEL(wrong_no_wait, 32, const float* from, float* out) {
    DYNAMIC_SHARED(float, memory);
    cp_async(shared_address(memory) + threadIdx.x * 16, from + threadIdx.x * 4, true);
    cp_async_commit();
    // Missing: cp_async_wait<0>().
    out[threadIdx.x] = memory[threadIdx.x * 4];
    cp_async_wait<0>();
}

KERNEL(wrong_barrier, 64, float* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1.0f;
}

KERNEL(wrong_lanes, 32, float* out) {
    if (threadIdx.x < 7) out[threadIdx.x] = warp_sum(1.0f);
}

KERNEL(wrong_shared, 32, float* out) {
    u32 r[4];
    ldmatrix(r, threadIdx.x * 16 + 4096);
    out[threadIdx.x] = r[0];
}

// Not wrong: what a warp multiplies, as its lanes hold it.
KERNEL(product_16_8_16, 32, const u16* a, const u16* b, float* c) {
    const int lane = threadIdx.x, group = lane / 4, pair = 2 * (lane % 4);
    DYNAMIC_SHARED(u16, memory);
    for (int i = lane; i < 16 * 16 + 8 * 16; i += 32) memory[i] = i < 256 ? a[i] : b[i - 256];
    __syncthreads();
    u32 left[4], right[4];
    // Rows of 16 elements are two chunks; of b, [columns, k], the second pair of matrices is not needed.
    ldmatrix(left, shared_address(memory) + (lane % 16) * 32 + (lane / 16) * 16);
    ldmatrix(right, shared_address(memory) + 512 + (lane % 8) * 32 + ((lane / 8) % 2) * 16);
    float sums[4] = {};
    mma_bf16(sums, left, right);
    c[group * 8 + pair] = sums[0];
    c[group * 8 + pair + 1] = sums[1];
    c[(group + 8) * 8 + pair] = sums[2];
    c[(group + 8) * 8 + pair + 1] = sums[3];
}
