// The functions of the kernels' prelude, executed on the CPU. What is arithmetic is the same as in prelude.cuh; what are
// instructions of a GPU follows the PTX ISA's tables of which lane holds what
// (https://docs.nvidia.com/cuda/parallel-thread-execution/, "Matrix Fragments for mma.m16n8k16", "ldmatrix").
#pragma once

#include "block.hpp"
#include "registry.hpp"

#include <algorithm>
#include <cmath>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

using std::max;
using std::min;

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

#define INLINE inline
#define UNROLL
#define KERNEL(name, threads, ...)                                     \
    static void name(__VA_ARGS__);                                     \
    static const Registered registered_##name(#name, threads, &name);  \
    static void name(__VA_ARGS__)
#define KERNEL_RESIDENT(name, threads, blocks, ...) KERNEL(name, threads, __VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(Block::current()->dynamic())
#define SHARED(type, name, count)     \
    static const char declared_##name = 0; \
    type* name = static_cast<type*>(Block::current()->declared(&declared_##name, sizeof(type) * (count)))

#define threadIdx (Block::current()->thread())
#define blockIdx (Block::current()->index)
#define blockDim (Block::current()->size)
#define gridDim (Block::current()->grid)

inline void __syncthreads() { Block::current()->barrier(); }

inline float __uint_as_float(u32 x) {
    float f;
    std::memcpy(&f, &x, 4);
    return f;
}

inline u32 __float_as_uint(float x) {
    u32 u;
    std::memcpy(&u, &x, 4);
    return u;
}

inline u32 float_bits(float x) { return __float_as_uint(x); }

inline u32 atomic_add(u32* to, u32 x) {
    const u32 before = *to;
    *to += x;
    return before;
}

inline float bf16_to_f32(u16 x) { return __uint_as_float((u32)x << 16); }

inline u16 f32_to_bf16(float x) {
    const u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline u32 pack_bf16(float low, float high) { return (u32)f32_to_bf16(high) << 16 | f32_to_bf16(low); }

inline float2 unpack_bf16(u32 x) { return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)); }

inline u32 lane_of_thread() { return Block::current()->thread().x % Block::lanes; }

template <class T>
inline T __shfl_xor_sync(u32, T x, int lanes) {
    Block::current()->tell(&x, sizeof(T));
    return Block::current()->told<T>(lane_of_thread() ^ (u32)lanes);
}

inline float warp_sum(float x) {
    Block::current()->tell(&x, sizeof x);
    return Block::current()->told_sum();
}

inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

inline void sync_warp() {
    const u32 nothing = 0;
    Block::current()->tell(&nothing, sizeof nothing);
}

inline u32 shared_address(const void* shared) { return (u32)(static_cast<const char*>(shared) - Block::current()->dynamic()); }

struct Fragments {
    u32 a[4], b[2];
};
static_assert(sizeof(Fragments) <= Block::message_bytes, "what lanes tell each other");

inline void mma_bf16(float* c, const u32* a, const u32* b) {
    Block* block = Block::current();
    const Fragments own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    block->tell(&own, sizeof own);
    const u32 lane = lane_of_thread(), group = lane / 4, in_group = lane % 4;
    float left[2][16], right[2][16];
    for (u32 quarter = 0; quarter < 4; quarter++) {
        // Rows group and group + 8 of a are held by the lanes of this group, columns n of b by those of group n.
        const Fragments row = block->told<Fragments>(group * 4 + quarter);
        for (u32 half = 0; half < 2; half++) {
            for (u32 high = 0; high < 2; high++) {
                const float2 pair = unpack_bf16(row.a[half + 2 * high]);
                left[half][8 * high + 2 * quarter] = pair.x;
                left[half][8 * high + 2 * quarter + 1] = pair.y;
            }
        }
        for (u32 column = 0; column < 2; column++) {
            const Fragments other = block->told<Fragments>((2 * in_group + column) * 4 + quarter);
            for (u32 high = 0; high < 2; high++) {
                const float2 pair = unpack_bf16(other.b[high]);
                right[column][8 * high + 2 * quarter] = pair.x;
                right[column][8 * high + 2 * quarter + 1] = pair.y;
            }
        }
    }
    for (u32 half = 0; half < 2; half++) {
        for (u32 column = 0; column < 2; column++) {
            float sum = 0.0f;
            for (u32 k = 0; k < 16; k++) sum += left[half][k] * right[column][k];
            c[2 * half + column] += sum;
        }
    }
}

inline void ldmatrix_by(u32* r, u32 address, bool transposed) {
    Block* block = Block::current();
    block->tell(&address, sizeof address);
    const u32 lane = lane_of_thread(), high = lane / 4, low = 2 * (lane % 4);
    for (u32 matrix = 0; matrix < 4; matrix++) {
        u16 pair[2];
        for (u32 i = 0; i < 2; i++) {
            const u32 row = transposed ? low + i : high, column = transposed ? high : low + i;
            const char* from = block->shared(block->told<u32>(matrix * 8 + row), 16);
            std::memcpy(&pair[i], from + 2 * column, 2);
        }
        r[matrix] = (u32)pair[1] << 16 | pair[0];
    }
}

inline void ldmatrix(u32* r, u32 address) { ldmatrix_by(r, address, false); }
inline void ldmatrix_transposed(u32* r, u32 address) { ldmatrix_by(r, address, true); }

inline void cp_async(u32 to, const void* from, bool valid) { Block::current()->copy(to, from, valid); }
inline void cp_async_commit() { Block::current()->commit(); }

template <int pending>
inline void cp_async_wait() {
    Block::current()->wait_copies(pending);
}
