// What kernels use of CUDA, without NVIDIA's headers: intrinsics as PTX, or, when M40_EMULATE is
// defined, as host C++ in which tests run the same kernels (emulate/emulate.h).
//
// Only what an sm_52 has: no warp-level matrix, half or dot-product arithmetic, no acquire or
// release, no cooperative launch.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef M40_EMULATE
#include "emulate/emulate.h"
#else

#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
// A function that is called: what it needs burdens no loop of its callers.
#define DEVICE_CALLED static __device__ __noinline__
#define KERNEL extern "C" __global__ void
#define LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

// All dynamic shared memory of the block, as `type* name`, aligned to 16 bytes.
#define DYNAMIC_SHARED(type, name)                              \
    extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(dynamic_shared)

// An array in the block's shared memory, in addition.
#define STATIC_SHARED(type, name, count) __shared__ __align__(16) type name[count]

// Weights never change while a kernel runs, so they may be read through the read-only cache. The
// asm is not volatile: the compiler may move these loads to where they hide best.
DEVICE uint4 load_weights_16(const void* p) {
    uint4 v;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}
DEVICE uint2 load_weights_8(const void* p) {
    uint2 v;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE u32 load_weights_4(const void* p) {
    u32 v;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
DEVICE u32 load_weights_2(const void* p) {
    u16 v;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}
DEVICE u32 load_weights_1(const void* p) {
    u32 v;
    asm("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// The same, if `wanted`: one predicated instruction, no branch. Volatile, since the words are changed
// or left as they are.
DEVICE void load_weights_16_if(bool wanted, const void* p, u32& a, u32& b, u32& c, u32& d) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; "
                 "@p ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(a), "+r"(b), "+r"(c), "+r"(d)
                 : "l"(p), "r"(static_cast<u32>(wanted)));
}
DEVICE void load_weights_8_if(bool wanted, const void* p, u32& a, u32& b) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.nc.v2.u32 {%0, %1}, [%2]; }"
                 : "+r"(a), "+r"(b)
                 : "l"(p), "r"(static_cast<u32>(wanted)));
}
DEVICE void load_weights_4_if(bool wanted, const void* p, u32& a) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.u32 %0, [%1]; }"
                 : "+r"(a)
                 : "l"(p), "r"(static_cast<u32>(wanted)));
}
DEVICE void load_weights_2_if(bool wanted, const void* p, u32& a) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.u16 %0, [%1]; }"
                 : "+r"(a)
                 : "l"(p), "r"(static_cast<u32>(wanted)));
}
DEVICE void load_weights_1_if(bool wanted, const void* p, u32& a) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.nc.u8 %0, [%1]; }"
                 : "+r"(a)
                 : "l"(p), "r"(static_cast<u32>(wanted)));
}

// What another block may have written: read from L2, which all blocks share, never from L1.
DEVICE float load_shared_by_blocks(const float* p) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

DEVICE float4 load_shared_by_blocks_16(const float* p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

DEVICE uint4 load_words_shared_by_blocks_16(const void* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
DEVICE u32 load_word_shared_by_blocks(const void* p) {
    u32 v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

DEVICE void load_words_shared_by_blocks_16_if(bool wanted, const void* p, uint4& v) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %5, 0; "
                 "@p ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "l"(p), "r"(static_cast<u32>(wanted))
                 : "memory");
}

DEVICE void load_words_shared_by_blocks_8_if(bool wanted, const void* p, uint2& v) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p ld.global.cg.v2.u32 {%0, %1}, [%2]; }"
                 : "+r"(v.x), "+r"(v.y)
                 : "l"(p), "r"(static_cast<u32>(wanted))
                 : "memory");
}

DEVICE void load_shared_by_blocks_if(bool wanted, const float* p, float& v) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p ld.global.cg.f32 %0, [%1]; }"
                 : "+f"(v)
                 : "l"(p), "r"(static_cast<u32>(wanted))
                 : "memory");
}

// A copy in another register, now.
DEVICE u32 copied(u32 a) {
    u32 b;
    asm volatile("mov.b32 %0, %1;" : "=r"(b) : "r"(a));
    return b;
}

// A word that another block, or the host, is expected to change: for spinning. The compiler may
// neither keep it in a register nor drop the loop around it.
DEVICE u32 load_volatile(const u32* p) {
    u32 v;
    asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// Words of the host's memory that the host and a running kernel change. What is stored is there in the
// order of __threadfence_system().
DEVICE u32 load_from_host(const u32* p) {
    u32 v;
    asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE void store_to_host(u32* p, u32 v) {
    asm volatile("st.volatile.global.u32 [%0], %1;" : : "l"(p), "r"(v) : "memory");
}

// Between two looks at what another block is about to write.
DEVICE void look_again() {}

// A number that others read before a fence.
DEVICE void store_openly(float* p, float v) { *p = v; }

// A clock: it need not be exact, and steps by about a microsecond.
DEVICE u64 nanoseconds() {
    u64 v;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v));
    return v;
}

// 2^x, 1/x and 1/sqrt(x) to about 2 units in the last place; what is below 2^-126 counts as 0, as
// more would take three instructions.
DEVICE float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float reciprocal_root_approx(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// The f16 nearest to x, in the low half; of two equally near ones the even one.
DEVICE u32 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// (a & mask) | c in one instruction; from C++ operators with two literals it becomes two.
DEVICE u32 masked_or(u32 a, u32 mask, u32 c) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(mask), "r"(c));
    return d;
}
// Bits of a where mask is set, of b elsewhere.
DEVICE u32 select_bits(u32 mask, u32 a, u32 b) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(d) : "r"(mask), "r"(a), "r"(b));
    return d;
}
// Four bytes of the eight in (b, a), byte i the one that nibble i of the selector names; with bit 3
// of the nibble set, eight copies of that byte's top bit.
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}
DEVICE u32 rotate_left(u32 a, u32 bits) { return __funnelshift_l(a, a, bits); }
// The upper half of the product.
DEVICE u64 multiply_high(u64 a, u64 b) { return __umul64hi(a, b); }
// a * b, rounded: never fused with a sum.
DEVICE float rounded_product(float a, float b) { return __fmul_rn(a, b); }
// Tells a called function that a pointer is to shared memory: otherwise it would ask each time.
DEVICE void assume_shared(const void* p) { __builtin_assume(__isShared(p)); }
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float x) { return __float_as_uint(x); }
// The float of the f16 in the low half of `bits`.
DEVICE float half_to_float(u32 bits) {
    float x;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }"
        : "=f"(x)
        : "r"(bits));
    return x;
}
DEVICE float half_to_float_high(u32 bits) {
    float x;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high; }"
        : "=f"(x)
        : "r"(bits));
    return x;
}
#endif

// Lanes of a warp.
enum : u32 { kLanes = 32, kAllLanes = 0xffffffffu };
