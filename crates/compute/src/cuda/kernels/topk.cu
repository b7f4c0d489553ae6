// The k largest scores, by radix select: three rounds count digits of 11, 11 and 10 bits among the scores that share the digits
// found so far, and narrow down the k-th largest; then whatever is not smaller is collected, in no order.
//
// state: the bits of the k-th largest that are known, which bits those are, and how many are still to be found among the scores
// that share them.

// Keys rise with the scores. NaN is above all: who collects it sees that something is wrong.
INLINE u32 key_of(float score) {
    const u32 bits = float_bits(score);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0xffffffffu;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

KERNEL(topk_start, 256, u32* __restrict__ state, u32* __restrict__ histogram, u32* __restrict__ count, int k) {
    for (int bin = threadIdx.x; bin < 2048; bin += 256) histogram[bin] = 0;
    if (threadIdx.x > 0) return;
    state[0] = 0;
    state[1] = 0;
    state[2] = (u32)k;
    *count = 0;
}

KERNEL(topk_count, 256, const float* __restrict__ scores, int score_count, const u32* __restrict__ state,
       u32* __restrict__ histogram, int shift) {
    SHARED(u32, bins, 2048);
    for (int bin = threadIdx.x; bin < 2048; bin += 256) bins[bin] = 0;
    __syncthreads();
    const u32 known = state[0], mask = state[1];
    for (u32 i = blockIdx.x * 256u + threadIdx.x; i < (u32)score_count; i += gridDim.x * 256u) {
        const u32 key = key_of(scores[i]);
        if ((key & mask) == known) atomic_add(&bins[(key >> shift) & 2047u], 1);
    }
    __syncthreads();
    for (int bin = threadIdx.x; bin < 2048; bin += 256) {
        if (bins[bin] > 0) atomic_add(&histogram[bin], bins[bin]);
    }
}

KERNEL(topk_narrow, 256, u32* __restrict__ state, u32* __restrict__ histogram, int shift, int bits) {
    SHARED(u32, bins, 2048);
    SHARED(u32, sums, 256);
    u32 sum = 0;
    for (int i = 0; i < 8; i++) {
        const int bin = threadIdx.x * 8 + i;
        bins[bin] = histogram[bin];
        sum += bins[bin];
        histogram[bin] = 0;
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    // From the largest digit down to the one in which the k-th largest is.
    u32 wanted = state[2];
    int group = 255;
    while (group > 0 && sums[group] < wanted) wanted -= sums[group--];
    int bin = group * 8 + 7;
    while (bin > group * 8 && bins[bin] < wanted) wanted -= bins[bin--];
    state[0] |= (u32)bin << shift;
    state[1] |= ((1u << bits) - 1) << shift;
    state[2] = wanted;
}

KERNEL(topk_collect, 256, const float* __restrict__ scores, int score_count, const u32* __restrict__ state,
       u32* __restrict__ count, u32* __restrict__ indices, float* __restrict__ found, int found_max) {
    const u32 least = state[0];
    for (u32 i = blockIdx.x * 256u + threadIdx.x; i < (u32)score_count; i += gridDim.x * 256u) {
        if (key_of(scores[i]) < least) continue;
        const u32 at = atomic_add(count, 1);
        if (at < (u32)found_max) {
            indices[at] = i;
            found[at] = scores[i];
        }
    }
}
