// Shows that the emulation does what kernels rely on, and notices what they must not do: a name of
// one of the tests below as argument runs it. Those named fail_* must end the process.
#define M40_EMULATE
#include "../device.cuh"

#include <cstdio>
#include <cstring>

namespace {

constexpr u32 kGrid = 3, kThreads = 96;

void check(bool holds, const char* what) {
    if (!holds) {
        emulate::fail(what);
    }
}

// Each block adds to a counter and waits for all the others, several times.
void grid_barrier() {
    u32 arrived = 0, seen[kGrid * kThreads] = {};
    emulate::run(kGrid, kThreads, 0, [&] {
        for (u32 round = 1; round <= 4; ++round) {
            __syncthreads();
            if (threadIdx.x == 0) {
                __threadfence();
                atomicAdd(&arrived, 1u);
                while (load_volatile(&arrived) < round * kGrid) {
                }
            }
            __syncthreads();
            check(load_volatile(&arrived) >= round * kGrid, "a block passed the barrier early");
            ++seen[blockIdx.x * kThreads + threadIdx.x];
        }
    });
    for (u32 rounds : seen) {
        check(rounds == 4, "a thread missed a round");
    }
}

void shuffles() {
    emulate::run(1, kThreads, 0, [&] {
        const u32 lane = threadIdx.x % kLanes;
        check(__shfl_sync(kAllLanes, threadIdx.x, 5) == threadIdx.x / 32 * 32 + 5, "shfl");
        check(__shfl_xor_sync(kAllLanes, float(lane), 3) == float(lane ^ 3), "shfl_xor");
        check(__shfl_down_sync(kAllLanes, lane, 16) == (lane < 16 ? lane + 16 : lane), "shfl_down");
        check(__ballot_sync(kAllLanes, lane % 2 == 1) == 0xaaaaaaaau, "ballot");
        for (u32 bound = 0; bound < 5; ++bound) {
            check(__syncthreads_count(threadIdx.x < bound) == bound, "a count at a barrier");
        }
    });
}

// Reversing through both kinds of shared memory, which blocks do not share with each other.
void shared_memory() {
    u32 out[kGrid * kThreads];
    emulate::run(kGrid, kThreads, kThreads * 4, [&] {
        DYNAMIC_SHARED(u32, dynamic);
        STATIC_SHARED(u32, fixed, kThreads);
        STATIC_SHARED(u32, other, 1);
        const u32 t = threadIdx.x, last = kThreads - 1;
        dynamic[t] = 1000 * blockIdx.x + t;
        if (t == 0) {
            other[0] = blockIdx.x;
        }
        __syncthreads();
        fixed[t] = dynamic[last - t];
        __syncthreads();
        check(other[0] == blockIdx.x, "shared memory is not a block's own");
        out[blockIdx.x * kThreads + t] = fixed[last - t];
    });
    for (u32 i = 0; i < kGrid * kThreads; ++i) {
        check(out[i] == i / kThreads * 1000 + i % kThreads, "shared memory lost something");
    }
}

void bits() {
    check(permute(0x33221100, 0x77665544, 0x7531) == 0x77553311, "permute");
    check(permute(0x00008000, 0, 0x0998) == 0x00ffff00, "permute spreads signs");
    check(masked_or(0xffffffff, 0x0f0, 0x3000) == 0x30f0, "masked_or");
    check(select_bits(0xff00, 0x1234, 0x5678) == 0x1278, "select_bits");
    check(rotate_left(0x80000001, 4) == 0x18 && rotate_left(7, 0) == 7, "rotate_left");
    check(half_to_float(0x3c00) == 1.0f && half_to_float(0xc000) == -2.0f, "halves");
    check(half_to_float(0x0001) == 0x1p-24f && half_to_float(0x7bff) == 65504.0f, "half extremes");
    check(half_to_float(0xfc00) == -HUGE_VALF && std::isnan(half_to_float(0x7e00)), "half specials");
    check(half_to_float_high(0x3c000000) == 1.0f, "high half");
}

void fail_misaligned_load() {
    alignas(16) u8 bytes[32] = {};
    emulate::run(1, 32, 0, [&] { load_weights_16(bytes + 8); });
}

void fail_beyond_shared_memory() {
    emulate::run(1, 32, 64, [&] {
        DYNAMIC_SHARED(volatile u32, words);
        words[threadIdx.x] = 1;
    });
}

void fail_beyond_static_shared_memory() {
    emulate::run(1, 32, 0, [&] {
        STATIC_SHARED(volatile u32, words, 16);
        words[threadIdx.x] = 1;
    });
}

void fail_shuffle_without_all_lanes() {
    emulate::run(1, 32, 0, [&] {
        if (threadIdx.x != 7) {
            __shfl_sync(kAllLanes, 1u, 0);
        }
    });
}

void fail_wait_for_ever() {
    u32 word = 0;
    emulate::run(2, 32, 0, [&] {
        while (load_volatile(&word) == 0) {
        }
    });
}

void fail_too_much_shared_memory() {
    emulate::run(1, 32, (48 << 10) + 16, [] {});
}

const struct {
    const char* name;
    void (*run)();
} kTests[] = {
    {"grid_barrier", grid_barrier},
    {"shuffles", shuffles},
    {"shared_memory", shared_memory},
    {"bits", bits},
    {"fail_misaligned_load", fail_misaligned_load},
    {"fail_beyond_shared_memory", fail_beyond_shared_memory},
    {"fail_beyond_static_shared_memory", fail_beyond_static_shared_memory},
    {"fail_shuffle_without_all_lanes", fail_shuffle_without_all_lanes},
    {"fail_wait_for_ever", fail_wait_for_ever},
    {"fail_too_much_shared_memory", fail_too_much_shared_memory},
};

}  // namespace

int main(int count, char** arguments) {
    for (const auto& test : kTests) {
        if (count == 2 && std::strcmp(test.name, arguments[1]) == 0) {
            test.run();
            return 0;
        }
    }
    for (const auto& test : kTests) {
        std::puts(test.name);
    }
    return count == 1 ? 0 : 2;
}
