// What the threads of a decode block share: their memory, the rows of the pass, and the barrier
// across all blocks.
#pragma once

#include "config.cuh"
#include "ops.cuh"

// All shared memory of a block.
struct Shared {
    // Activations of a matvec, and at the end sums of warps that share rows; other ops use it as they
    // like.
    float pool[kPoolFloats];
    // Sums of squares of groups of activations, and of whole rows.
    float squares[kPoolFloats / kGroupFloats];
    float totals[kPassRows];
    float roots[kPassRows];        // 1 / rms of what a matvec multiplies with
    float block_roots[kPassRows];  // of the block that is added before (kAddRmsNorm)
    u32 ops[2][kOpWords];  // the running op and the next one
    Row rows[kPassRows];
    u32 row_count;
    u32 going;  // a bit for each row whose sequence has not ended
    u32 failed;
};

// A barrier across all blocks of a launch that are resident together: arriving and waiting are
// apart, so that what depends on nothing is done between them.
//
// The counter only grows; how much it grows wraps around, and its difference to the target, taken
// as a signed number, does not mind.
struct Grid {
    u32* counter;
    u32 target;  // what the counter is when all blocks have announced
    u32 limit;   // polls before waiting counts as failed

    // What this block has written is there for all that await. Of the last warp, as it has the least
    // to do in small ops: others go on to what comes next.
    DEVICE_MEMBER void announce(Grid& grid) {
        __syncthreads();
        if (threadIdx.x == kDecodeThreads - kLanes) {
            __threadfence();
            atomicAdd(grid.counter, 1u);
        }
        grid.target += gridDim.x;
    }

    // All blocks have announced. One thread polls: many that poll one address hold each other up.
    DEVICE_MEMBER void await(const Grid& grid, u32* failed) {
        if (threadIdx.x == kDecodeThreads - kLanes) {
            // Once it has failed there is nothing to wait for: what follows is thrown away.
            u32 polls = 0;
            while (*failed == 0 &&
                   static_cast<int>(load_volatile(grid.counter) - grid.target) < 0) {
                *failed = ++polls > grid.limit;
            }
        }
        __syncthreads();
    }
};

struct Block {
    u8* arena;
    Shared* shared;
    Grid grid;
    const u32* next;  // the op after the running one
    u32 turn;         // which of shared.ops it goes to
    u32 pass;         // of the launch

    template <class T>
    DEVICE_MEMBER T* at(const Block& block, Place place) {
        return reinterpret_cast<T*>(block.arena + u64{place} * 16);
    }
};

// Loads the next op, by a warp that is not the one to poll.
DEVICE void load_next(const Block& block) {
    const u32 thread = threadIdx.x + 2 * kLanes - kDecodeThreads;
    if (thread < kOpWords / 4) {
        reinterpret_cast<uint4*>(block.shared->ops[block.turn])[thread] =
            load_words_shared_by_blocks_16(block.next + 4 * thread);
    }
}

// Waits for what an op reads; of another launch it is there. Every op does so once.
DEVICE void await(Block& block, u32 flags, bool resident) {
    load_next(block);
    if (resident && (flags & kAwait) != 0) {
        Grid::await(block.grid, &block.shared->failed);
    }
}

// cap * tanh(x / cap)
DEVICE float soften(float x, float cap) {
    constexpr float kLog2E = 1.44269504f;
    // tanh u = 1 - 2 / (e^(2u) + 1)
    const float power = exp2_approx(2.0f * kLog2E * x * reciprocal_approx(cap));
    return cap * (1.0f - 2.0f * reciprocal_approx(power + 1.0f));
}
