// Runs the kernels for many rows in emulation; the commands are those of arena.h and
//
//   call KERNEL GRID THREADS SHARED ARGUMENTS
//
// each argument a number: of a pointer, the byte of the arena that it points to; of an integer, the
// integer; of a float, its bits.
#define M40_EMULATE
#include "../device.cuh"

#include "../gemm.cu"
#include "../rows.cu"
#include "../sample.cu"

#include "arena.h"

#include <tuple>
#include <utility>

namespace {

template <class T>
T argument(Arena& arena) {
    u64 number = 0;
    if (!(std::cin >> number)) {
        emulate::fail("a call ends early");
    }
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(arena.at(number, 0));
    } else if constexpr (std::is_same_v<T, float>) {
        return as_float(static_cast<u32>(number));
    } else {
        return static_cast<T>(number);
    }
}

using Calls = std::map<std::string, std::function<std::function<void()>(Arena&)>>;

// What reads a kernel's arguments and returns a thread of it.
template <class... T>
Calls::mapped_type callable(void (*kernel)(T...)) {
    return [kernel](Arena& arena) {
        // Braces have their elements evaluated in order.
        const std::tuple<T...> arguments{argument<T>(arena)...};
        return [kernel, arguments] { std::apply(kernel, arguments); };
    };
}

#define KERNEL_OF(name) {#name, callable(name)}
#define KERNELS_OF(type)                                                               \
    KERNEL_OF(rows_embed_##type), KERNEL_OF(gemm_##type##_m128),                       \
        KERNEL_OF(gemm_##type##_m64), KERNEL_OF(gemm_##type##_m32), KERNEL_OF(gemm_##type##_m16)

const Calls kCalls = {
    KERNELS_OF(f32),  KERNELS_OF(f16),  KERNELS_OF(bf16), KERNELS_OF(q4_0),   KERNELS_OF(q4_1),
    KERNELS_OF(q5_0), KERNELS_OF(q5_1), KERNELS_OF(q8_0), KERNELS_OF(q2_k),   KERNELS_OF(q3_k),
    KERNELS_OF(q4_k), KERNELS_OF(q5_k), KERNELS_OF(q6_k), KERNELS_OF(iq4_nl), KERNELS_OF(iq4_xs),
    KERNELS_OF(mxfp4),
    KERNEL_OF(rows_gather), KERNEL_OF(rows_rms_norm), KERNEL_OF(rows_angles), KERNEL_OF(rows_heads),
    KERNEL_OF(rows_kv_append), KERNEL_OF(rows_kv_append_int8), KERNEL_OF(rows_attention_d64), KERNEL_OF(rows_attention_d128),
    KERNEL_OF(rows_attention_d256), KERNEL_OF(rows_attention_d512),
    KERNEL_OF(rows_attention_d1024), KERNEL_OF(gemm_sum),
    KERNEL_OF(rows_choose), KERNEL_OF(rows_sum_norm), KERNEL_OF(rows_sum_gate),
    KERNEL_OF(rows_sum_heads),
    KERNEL_OF(rows_attention_d64_int8), KERNEL_OF(rows_attention_d128_int8),
    KERNEL_OF(rows_attention_d256_int8), KERNEL_OF(rows_attention_d512_int8),
    KERNEL_OF(rows_attention_d1024_int8),
    KERNEL_OF(rows_attention_single_d64), KERNEL_OF(rows_attention_single_d128),
    KERNEL_OF(rows_attention_single_d64_int8), KERNEL_OF(rows_attention_single_d128_int8),
};

void call(Arena& arena, const std::string& command) {
    std::string kernel;
    u32 grid, threads, shared;
    if (command != "call" || !(std::cin >> kernel >> grid >> threads >> shared)) {
        emulate::fail("no such command");
    }
    const auto found = kCalls.find(kernel);
    if (found == kCalls.end()) {
        emulate::fail("no such kernel");
    }
    emulate::run(grid, threads, shared, found->second(arena));
}

}  // namespace

int main() { return serve(call); }
