// What the threads of a decode block share: their memory, the rows of the pass, and the barrier
// across all blocks.
#pragma once

#include "config.cuh"
#include "ops.cuh"

// All shared memory of a block.
template <class C>
struct Shared {
    // Activations of a matvec; other ops use it as they like.
    float pool[C::kPool];
    // Sums of squares of groups of activations: [rows][groups].
    float squares[C::kSquares];
    float roots[kPassRows];        // 1 / rms of what a matvec multiplies with
    float block_roots[kPassRows];  // of the block that is added before (kAddRmsNorm)
    u32 ops[2][kOpWords];          // the running op and the next one
    Row rows[kPassRows];
    u32 row_count;
    u32 passes;    // of the launch, or of the job
    u32 job;       // its number; 0: the launch has no jobs
    u32 sequence;  // of its first pass
    u32 beat;      // how often the host was told of it, by the first block
    u32 going;  // a bit for each row whose sequence has not ended
    u32 failed;
    u32 last;  // whether this block did the last part of something
};

// Rows of the pass that a kernel of this size can have.
template <class C>
DEVICE u32 rows_of(const Shared<C>& shared) {
    return C::kBatch == 1 ? 1 : shared.row_count;
}

// A barrier across all blocks of a launch that are resident together: arriving and waiting are
// apart, so that what depends on nothing is done between them.
//
// The counter only grows; how much it grows wraps around, and its difference to the target, taken
// as a signed number, does not mind.
template <class C>
struct Grid {
    u32* counter;
    u32 target;  // what the counter is when all blocks have announced
    u32 limit;   // polls before waiting counts as failed

    // What this block has written is there for all that await. Of the last warp, as it has the least
    // to do in small ops: others go on to what comes next.
    // open: others see for themselves whether it is (marks.cuh).
    DEVICE_MEMBER void announce(Grid& grid, bool open = false) {
        __syncthreads();
        if (threadIdx.x == C::kThreads - kLanes) {
            if (!open) {
                __threadfence();
            }
            atomicAdd(grid.counter, 1u);
        }
        grid.target += grid_blocks();
    }

    // All blocks have announced. One thread polls: many that poll one address hold each other up.
    DEVICE_MEMBER void await(const Grid& grid, u32* failed) {
        if (threadIdx.x == C::kThreads - kLanes) {
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

template <class C>
struct Block {
    u8* arena;
    Shared<C>* shared;
    Grid<C> grid;
    const u32* next;  // the op after the running one
    u32 turn;         // which of shared.ops it goes to
    u32 pass;         // of the launch, or of the job
};

// Memory of the host that kernels see while it may change.
struct Host {
    const u32* cancels;  // [slots]: a sequence ends once its word is its Ending's ticket
    u32* desk;           // desk.cuh
};

template <class T, class C>
DEVICE T* at(const Block<C>& block, Place place) {
    return reinterpret_cast<T*>(block.arena + u64{place} * 16);
}

// Loads the next op, by a warp that is not the one to poll.
template <class C>
DEVICE void load_next(const Block<C>& block) {
    const u32 thread = threadIdx.x + 2 * kLanes - C::kThreads;
    if (thread < kOpWords / 4) {
        reinterpret_cast<uint4*>(block.shared->ops[block.turn])[thread] =
            load_words_shared_by_blocks_16(block.next + 4 * thread);
    }
}

// Waits for what an op reads; of another launch it is there. Every op does so once.
template <class C>
DEVICE void await(Block<C>& block, u32 flags, bool resident) {
    load_next(block);
    if (resident && (flags & kAwait) != 0) {
        Grid<C>::await(block.grid, &block.shared->failed);
    }
}

// Counts a part that this block has done; true if it was the last of `all`, and the block then sees what
// the others have written. count: zero before and after
template <class C>
DEVICE bool arrived_last(const Block<C>& block, u32* count, u32 all) {
    u32& last = block.shared->last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        // It is zero again after the last.
        last = atomicInc(count, all - 1) == all - 1;
        if (last) {
            __threadfence();
        }
    }
    __syncthreads();
    return last != 0;
}

// cap * tanh(x / cap)
DEVICE float soften(float x, float cap) {
    constexpr float kLog2E = 1.44269504f;
    // tanh u = 1 - 2 / (e^(2u) + 1)
    const float power = exp2_approx(2.0f * kLog2E * x * reciprocal_approx(cap));
    return cap * (1.0f - 2.0f * reciprocal_approx(power + 1.0f));
}
