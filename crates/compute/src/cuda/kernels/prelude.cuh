// What stands in front of every kernel source: types, bf16, and what is PTX, as functions. NVRTC finds no headers where only
// its library is installed, so nothing is included.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE __device__ __forceinline__
#define KERNEL(name, threads, ...) extern "C" __global__ void __launch_bounds__(threads, 1) name(__VA_ARGS__)
// With registers for so many blocks at once on a multiprocessor.
#define KERNEL_RESIDENT(name, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) type name[]
#define SHARED(type, name, count) __shared__ type name[count]
#define UNROLL _Pragma("unroll")

INLINE float bf16_to_f32(u16 x) { return __uint_as_float((u32)x << 16); }

// Two floats as bf16, to the nearest, ties to even; `low` comes first in memory.
INLINE u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

INLINE u16 f32_to_bf16(float x) { return (u16)(pack_bf16(x, 0.0f) & 0xffffu); }

INLINE float2 unpack_bf16(u32 x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }

INLINE u32 float_bits(float x) { return __float_as_uint(x); }

// Adds to what is at `to`, in global or in shared memory; gives what was there.
INLINE u32 atomic_add(u32* to, u32 x) { return atomicAdd(to, x); }

INLINE float warp_sum(float x) {
    UNROLL
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

// Within each group of four lanes.
INLINE float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

INLINE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

INLINE void sync_warp() { __syncwarp(); }

INLINE u32 shared_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// c += a b for tiles of 16 x 8 x 16 (mma.m16n8k16; the registers of each lane are those of the PTX ISA).
INLINE void mma_bf16(float* c, const u32* a, const u32* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8: lane i gives the address of row i % 8 of matrix i / 8.
INLINE void ldmatrix(u32* r, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The same, each matrix transposed.
INLINE void ldmatrix_transposed(u32* r, u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// 16 bytes from global to shared memory, on their way until they are waited for; zeros where they are not valid.
INLINE void cp_async(u32 to, const void* from, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

INLINE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread but the last `pending`.
template <int pending>
INLINE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
