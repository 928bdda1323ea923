// Runs CUDA kernels on the host, so that tests without a GPU run the real kernel sources under
// AddressSanitizer and UndefinedBehaviorSanitizer.
//
// Each CUDA thread is a fiber. All blocks of a launch are resident at once and run in turns, so
// grid-wide barriers and spinning on what another block writes work. A fiber gives way at barriers,
// shuffles, fences, atomics and volatile loads; where it does, and which fiber is next, is
// the same in every run. A barrier that some threads never reach, or a launch that makes no
// progress, ends the process with a message instead of hanging.
//
// Emulated: __syncthreads, __syncthreads_count, shuffles, ballots, __syncwarp, 32- and 64-bit atomics,
// fences, static and dynamic shared memory, alignment of vector loads. What a block stores openly arrives
// late, or with its next fence. Not emulated: timing, caches, weak order of all else.
#pragma once

#ifndef __cplusplus
#error "C++17"
#endif

#include <pthread.h>
#include <ucontext.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATE_ASAN 1
#else
#define EMULATE_ASAN 0
#endif

#define DEVICE [[maybe_unused]] static inline
#define DEVICE_MEMBER static inline
#define DEVICE_METHOD inline
#define DEVICE_CALLED [[maybe_unused]] static
#define KERNEL extern "C" void
#define LAUNCH_BOUNDS(threads, blocks)
#define __device__
#define __global__
#define __restrict__
#define __forceinline__ inline

struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { u32 x = 1, y = 1, z = 1; };

namespace emulate {

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulation: %s\n", what);
    std::abort();
}

constexpr std::size_t kStackBytes = 256 << 10;
// Rounds over all threads in which none may finish or pass a barrier before a launch counts as hung.
constexpr u64 kStuckRounds = 1 << 16;

// A set of threads that meet: a block or a warp. Threads that have returned no longer count.
struct Meeting {
    u32 members = 0, arrived = 0, round = 0;
    void open_if_complete() {
        if (members > 0 && arrived == members) {
            arrived = 0;
            ++round;
        }
    }
};

struct Warp {
    Meeting meeting;
    u32 exchange[32] = {};
};

struct Block {
    dim3 index;
    Meeting meeting;
    std::vector<Warp> warps;
    std::unique_ptr<unsigned char[]> dynamic;
    // Of __syncthreads_count: the barrier's round, and how many threads said yes.
    struct {
        u32 round = 0xffffffff, count = 0;
    } votes[2];
    // Static shared memory, by its declaration.
    std::map<const void*, std::unique_ptr<unsigned char[]>> fixed;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<unsigned char[]> stack;
    Block* block = nullptr;
    u32 thread = 0;
    bool done = false;
    // What it waits for, until its round is over.
    const Meeting* meeting = nullptr;
    u32 round = 0;
    void* fake_stack = nullptr;
};

struct Launch {
    dim3 grid, block;
    std::function<void()> kernel;
    std::vector<Block> blocks;
    std::vector<Fiber> fibers;
    Fiber* current = nullptr;
    ucontext_t scheduler;
    const void* scheduler_stack = nullptr;
    std::size_t scheduler_stack_bytes = 0;
    void* scheduler_fake_stack = nullptr;
    u64 progress = 0;  // barriers passed and threads finished
    u64 rounds = 0;    // in which each thread had a turn
    // On their way: by address, and by the round in which they arrive.
    struct Store {
        float value;
        const Block* block;
        u64 due;
    };
    std::map<float*, Store> stores;
    std::multimap<u64, float*> due;
};

inline Launch* launch = nullptr;
// What the host does before a word is polled, if anything.
inline std::function<void(const u32*)> host;
// Of launches that have ended, for the next ones.
inline std::vector<std::unique_ptr<unsigned char[]>> spare_stacks;

inline Fiber& self() { return *launch->current; }
inline Warp& warp() { return self().block->warps[self().thread / 32]; }
inline u32 lane() { return self().thread % 32; }

// Lets other threads run.
inline void yield() {
    Fiber& fiber = self();
#if EMULATE_ASAN
    __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack,
                                   launch->scheduler_stack, launch->scheduler_stack_bytes);
#endif
    swapcontext(&fiber.context, &launch->scheduler);
#if EMULATE_ASAN
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

inline void arrive(std::map<float*, Launch::Store>::iterator store) {
    *store->first = store->second.value;
    launch->stores.erase(store);
}

// Stores of a block, or of all, arrive.
inline void arrive_of(const Block* block) {
    for (auto it = launch->stores.begin(); it != launch->stores.end();) {
        const auto store = it++;
        if (block == nullptr || store->second.block == block) {
            arrive(store);
        }
    }
}

// Stores arrive whose round has come.
inline void arrive_due() {
    auto& due = launch->due;
    while (!due.empty() && due.begin()->first <= launch->rounds) {
        const auto store = launch->stores.find(due.begin()->second);
        if (store != launch->stores.end() && store->second.due == due.begin()->first) {
            arrive(store);
        }
        due.erase(due.begin());
    }
}

// Stores, to arrive within some rounds; after what was stored there before.
inline void store_late(float* p, float value) {
    const auto before = launch->stores.find(p);
    if (before != launch->stores.end()) {
        arrive(before);
    }
    const u64 address = reinterpret_cast<std::uintptr_t>(p) / 4;
    const u64 due = launch->rounds + 1 + (address * 0x9e3779b97f4a7c15 >> 32) % 61;
    launch->stores[p] = {value, self().block, due};
    launch->due.emplace(due, p);
}

inline void leave(Meeting& meeting) {
    --meeting.members;
    meeting.open_if_complete();
}

inline void enter_fiber() {
#if EMULATE_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &launch->scheduler_stack,
                                    &launch->scheduler_stack_bytes);
#endif
    launch->kernel();
    Fiber& fiber = self();
    fiber.done = true;
    ++launch->progress;
    leave(warp().meeting);
    leave(fiber.block->meeting);
    yield();
}

inline void resume(Fiber& fiber) {
    launch->current = &fiber;
#if EMULATE_ASAN
    __sanitizer_start_switch_fiber(&launch->scheduler_fake_stack, fiber.stack.get(), kStackBytes);
#endif
    swapcontext(&launch->scheduler, &fiber.context);
#if EMULATE_ASAN
    __sanitizer_finish_switch_fiber(launch->scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void meet(Meeting& meeting) {
    const u32 round = meeting.round;
    ++meeting.arrived;
    meeting.open_if_complete();
    if (meeting.round == round) {
        self().meeting = &meeting;
        self().round = round;
        yield();
    }
    ++launch->progress;
}

// Every lane's value, once all lanes of the warp have given theirs, to `read`.
template <class Read>
u32 exchange(u32 mask, u32 value, Read read) {
    if (mask != 0xffffffffu || warp().meeting.members != 32) {
        fail("a warp-wide operation without all 32 lanes");
    }
    warp().exchange[lane()] = value;
    meet(warp().meeting);
    const u32 result = read(warp().exchange);
    meet(warp().meeting);
    return result;
}

template <class T>
T shuffle(u32 mask, T value, u32 from) {
    static_assert(sizeof(T) == 4, "one register");
    u32 bits;
    std::memcpy(&bits, &value, 4);
    bits = exchange(mask, bits, [&](const u32* all) { return all[from % 32]; });
    std::memcpy(&value, &bits, 4);
    return value;
}

// What tells a declaration from all others: the address of a variable of its closure's type. So a
// declaration in a template is another one in each instantiation.
template <class Closure>
const void* declaration(Closure) {
    static const char mark = 0;
    return &mark;
}

template <class T>
T* shared(const void* declaration, std::size_t count) {
    auto& memory = self().block->fixed[declaration];
    if (!memory) {
        memory.reset(new unsigned char[count * sizeof(T)]);
        std::memset(memory.get(), 0xff, count * sizeof(T));
    }
    return reinterpret_cast<T*>(memory.get());
}

template <class T>
const T& aligned(const void* p) {
    if (reinterpret_cast<std::uintptr_t>(p) % sizeof(T) != 0) {
        fail("a load from an address that is not a multiple of its size");
    }
    return *static_cast<const T*>(p);
}

// Not inlined: getcontext counts as returning twice, which would worry the compiler about variables.
[[gnu::noinline]] inline void prepare(Fiber& fiber) {
    if (spare_stacks.empty()) {
        fiber.stack.reset(new unsigned char[kStackBytes]);
    } else {
        fiber.stack = std::move(spare_stacks.back());
        spare_stacks.pop_back();
#if EMULATE_ASAN
        ASAN_UNPOISON_MEMORY_REGION(fiber.stack.get(), kStackBytes);
#endif
    }
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter_fiber, 0);
    // From here on the stack is known by its registers. At every switch AddressSanitizer would mark the
    // stack named here as usable throughout, which takes most of the time and hides errors on it.
    fiber.context.uc_stack.ss_sp = nullptr;
    fiber.context.uc_stack.ss_size = 0;
}

// Runs kernel() in every thread of a grid of blocks, with so many bytes of dynamic shared memory.
// Fresh shared memory holds NaNs.
inline void run(u32 grid, u32 block, std::size_t shared_bytes, std::function<void()> kernel) {
    if (block == 0 || block > 1024 || shared_bytes > 48 << 10) {
        fail("no such block on an sm_52");
    }
    Launch state;
    launch = &state;
    state.grid.x = grid;
    state.block.x = block;
    state.kernel = std::move(kernel);
    state.blocks.resize(grid);
    state.fibers.resize(std::size_t{grid} * block);
    for (u32 b = 0; b < grid; ++b) {
        Block& it = state.blocks[b];
        it.index = dim3{b, 0, 0};
        it.meeting.members = block;
        it.warps.resize((block + 31) / 32);
        it.dynamic.reset(new unsigned char[shared_bytes]);
        std::memset(it.dynamic.get(), 0xff, shared_bytes);
        for (u32 t = 0; t < block; ++t) {
            Fiber& fiber = state.fibers[std::size_t{b} * block + t];
            fiber.block = &it;
            fiber.thread = t;
            ++it.warps[t / 32].meeting.members;
            prepare(fiber);
        }
    }
    std::size_t left = state.fibers.size();
    u64 seen = 0, stuck = 0;
    while (left > 0) {
        ++state.rounds;
        arrive_due();
        for (Fiber& fiber : state.fibers) {
            if (fiber.done || (fiber.meeting != nullptr && fiber.meeting->round == fiber.round)) {
                continue;
            }
            fiber.meeting = nullptr;
            resume(fiber);
            left -= fiber.done;
        }
        stuck = state.progress == seen ? stuck + 1 : 0;
        seen = state.progress;
        if (stuck > kStuckRounds) {
            fail("threads wait for each other for ever");
        }
    }
    arrive_of(nullptr);
    for (Fiber& fiber : state.fibers) {
        spare_stacks.push_back(std::move(fiber.stack));
    }
    launch = nullptr;
}

}  // namespace emulate

#define threadIdx (dim3{emulate::self().thread, 0, 0})
#define blockIdx (emulate::self().block->index)
#define blockDim (emulate::launch->block)
#define gridDim (emulate::launch->grid)

#define DYNAMIC_SHARED(type, name) \
    type* name = reinterpret_cast<type*>(emulate::self().block->dynamic.get())

#define STATIC_SHARED(type, name, count) \
    type* name = emulate::shared<type>(emulate::declaration([] {}), count)

DEVICE void __syncthreads() { emulate::meet(emulate::self().block->meeting); }
// How many threads of the block have a true predicate. Nobody is two barriers ahead, so votes of two
// rounds are enough.
DEVICE u32 __syncthreads_count(bool predicate) {
    emulate::Block& block = *emulate::self().block;
    const u32 round = block.meeting.round;
    auto& votes = block.votes[round % 2];
    if (votes.round != round) {
        votes.round = round;
        votes.count = 0;
    }
    votes.count += predicate;
    emulate::meet(block.meeting);
    return votes.count;
}
DEVICE void __syncwarp(u32 mask = 0xffffffffu) {
    emulate::exchange(mask, 0, [](const u32*) { return 0u; });
}
DEVICE void __threadfence_block() { emulate::yield(); }
DEVICE void __threadfence() {
    emulate::arrive_of(emulate::self().block);
    emulate::yield();
}
DEVICE void __threadfence_system() {
    emulate::arrive_of(emulate::self().block);
    __sync_synchronize();
    emulate::yield();
}

template <class T>
T __shfl_sync(u32 mask, T value, u32 lane) {
    return emulate::shuffle(mask, value, lane);
}
template <class T>
T __shfl_xor_sync(u32 mask, T value, u32 lanes) {
    return emulate::shuffle(mask, value, emulate::lane() ^ lanes);
}
template <class T>
T __shfl_down_sync(u32 mask, T value, u32 delta) {
    const u32 from = emulate::lane() + delta;
    return emulate::shuffle(mask, value, from < 32 ? from : emulate::lane());
}
DEVICE u32 __ballot_sync(u32 mask, bool predicate) {
    return emulate::exchange(mask, predicate, [](const u32* all) {
        u32 bits = 0;
        for (u32 i = 0; i < 32; ++i) {
            bits |= all[i] << i;
        }
        return bits;
    });
}

template <class T>
T atomicAdd(T* p, T value) {
    emulate::yield();
    const T old = emulate::aligned<T>(p);
    *p = old + value;
    return old;
}
inline u32 atomicInc(u32* p, u32 last) {
    emulate::yield();
    const u32 old = emulate::aligned<u32>(p);
    *p = old >= last ? 0 : old + 1;
    return old;
}
template <class T>
T atomicCAS(T* p, T expected, T value) {
    emulate::yield();
    const T old = emulate::aligned<T>(p);
    if (old == expected) {
        *p = value;
    }
    return old;
}
template <class T>
T atomicExch(T* p, T value) {
    emulate::yield();
    const T old = emulate::aligned<T>(p);
    *p = value;
    return old;
}

DEVICE uint4 load_weights_16(const void* p) { return emulate::aligned<uint4>(p); }
DEVICE uint2 load_weights_8(const void* p) { return emulate::aligned<uint2>(p); }
DEVICE u32 load_weights_4(const void* p) { return emulate::aligned<u32>(p); }
DEVICE u32 load_weights_2(const void* p) { return emulate::aligned<u16>(p); }
DEVICE u32 load_weights_1(const void* p) { return emulate::aligned<u8>(p); }
DEVICE void load_weights_16_if(bool wanted, const void* p, u32& a, u32& b, u32& c, u32& d) {
    if (wanted) {
        const uint4 v = load_weights_16(p);
        a = v.x, b = v.y, c = v.z, d = v.w;
    }
}
DEVICE void load_weights_8_if(bool wanted, const void* p, u32& a, u32& b) {
    if (wanted) {
        const uint2 v = load_weights_8(p);
        a = v.x, b = v.y;
    }
}
DEVICE void load_weights_4_if(bool wanted, const void* p, u32& a) {
    a = wanted ? load_weights_4(p) : a;
}
DEVICE void load_weights_2_if(bool wanted, const void* p, u32& a) {
    a = wanted ? load_weights_2(p) : a;
}
DEVICE void load_weights_1_if(bool wanted, const void* p, u32& a) {
    a = wanted ? load_weights_1(p) : a;
}
DEVICE float load_shared_by_blocks(const float* p) { return emulate::aligned<float>(p); }
DEVICE float4 load_shared_by_blocks_16(const float* p) { return emulate::aligned<float4>(p); }
DEVICE uint4 load_words_shared_by_blocks_16(const void* p) { return emulate::aligned<uint4>(p); }
DEVICE u32 load_word_shared_by_blocks(const void* p) { return emulate::aligned<u32>(p); }
DEVICE void load_words_shared_by_blocks_16_if(bool wanted, const void* p, uint4& v) {
    v = wanted ? load_words_shared_by_blocks_16(p) : v;
}
DEVICE void load_words_shared_by_blocks_8_if(bool wanted, const void* p, uint2& v) {
    v = wanted ? emulate::aligned<uint2>(p) : v;
}
DEVICE void load_shared_by_blocks_if(bool wanted, const float* p, float& v) {
    v = wanted ? load_shared_by_blocks(p) : v;
}
DEVICE u32 copied(u32 a) { return a; }
// A spinning thread must let the thread it waits for run, and the host do what it does meanwhile.
DEVICE void look_again() { emulate::yield(); }
DEVICE void store_openly(float* p, float v) { emulate::store_late(p, v); }
DEVICE u32 load_volatile(const u32* p) {
    emulate::yield();
    if (emulate::host) {
        emulate::host(p);
    }
    return emulate::aligned<u32>(p);
}

// The host's memory may be another process's, which must come to its turn.
DEVICE u32 load_from_host(const u32* p) {
    if (emulate::lane() == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    // Waiting for the host is not waiting for each other.
    ++emulate::launch->progress;
    emulate::yield();
    return *static_cast<const volatile u32*>(p);
}
DEVICE void store_to_host(u32* p, u32 v) { *static_cast<volatile u32*>(p) = v; }
DEVICE u64 nanoseconds() {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return u64(std::chrono::nanoseconds(time).count());
}

DEVICE u32 min(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 max(u32 a, u32 b) { return a > b ? a : b; }

DEVICE u32 masked_or(u32 a, u32 mask, u32 c) { return (a & mask) | c; }
DEVICE u32 select_bits(u32 mask, u32 a, u32 b) { return (a & mask) | (b & ~mask); }
DEVICE u32 permute(u32 a, u32 b, u32 selector) {
    const u64 bytes = u64{b} << 32 | a;
    u32 out = 0;
    for (u32 i = 0; i < 4; ++i) {
        const u32 nibble = selector >> (4 * i) & 15;
        u32 byte = u32(bytes >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8) {
            byte = byte & 0x80 ? 0xff : 0;
        }
        out |= byte << (8 * i);
    }
    return out;
}
DEVICE u32 rotate_left(u32 a, u32 bits) {
    return bits % 32 == 0 ? a : a << bits % 32 | a >> (32 - bits % 32);
}
DEVICE u64 multiply_high(u64 a, u64 b) {
    __extension__ typedef unsigned __int128 u128;
    return u64(u128{a} * b >> 64);
}
DEVICE void assume_shared(const void*) {}
// x86-64 code fuses nothing unless it is told that it may.
DEVICE float rounded_product(float a, float b) { return a * b; }
DEVICE float as_float(u32 bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
DEVICE u32 as_bits(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
DEVICE float half_to_float(u32 bits) {
    const u32 sign = (bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) {
        return as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    }
    // The exponents' biases differ by 112; the product also brings subnormals into place.
    return as_float(sign | as_bits(as_float(magnitude << 13) * 0x1p112f));
}
DEVICE float exp2_approx(float x) { return std::exp2(x); }
DEVICE float reciprocal_approx(float x) { return 1.0f / x; }
DEVICE float reciprocal_root_approx(float x) { return 1.0f / std::sqrt(x); }
DEVICE u32 float_to_half(float x) {
    const u32 bits = as_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return sign | 0x7e00;
    }
    if (magnitude >= 0x47800000) {  // 2^16, and all that rounds to it below
        return sign | 0x7c00;
    }
    if (magnitude < 0x38800000) {  // subnormal: the sum's last bit is worth 2^-24
        return sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000);
    }
    const u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | (rounded - 0x38000000) >> 13;
}
DEVICE float half_to_float_high(u32 bits) { return half_to_float(bits >> 16); }
