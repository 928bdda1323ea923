// The sample op of decode passes, and what is between two passes of a launch: what becomes of a row
// (next.cuh), and that it goes on with its token. README.md has it in full.
//
// A row that has ended stays in the passes that follow as it was in its last one: it computes the
// same once more, and nothing is chosen. Once all rows have ended the launch does.
#pragma once

#include "desk.cuh"
#include "next.cuh"

// The largest logit of a row, from what the blocks of the last matvec found. By one warp, in all of
// its lanes.
DEVICE Chosen largest_of_blocks(const Maximum* maxima) {
    u64 largest = 0;
    for (u32 i = threadIdx.x % kLanes; i < grid_blocks(); i += kLanes) {
        const u64 rank = sample_rank(load_shared_by_blocks(&maxima[i].value),
                                     load_word_shared_by_blocks(&maxima[i].row));
        largest = rank > largest ? rank : largest;
    }
    largest = sample_reduce_warp<true>(largest);
    return {largest != 0 ? ~u32(largest) : 0, largest != 0 ? 1.0f : 0.0f};
}

// Chooses for a row whose sequence has not ended, by a whole block; but only its first warp knows.
template <class C>
DEVICE Next next_of(const Block<C>& block, const SampleOp& op, const u32* cancels, u32 row) {
    static_assert(sizeof(SampleScratch) <= sizeof(Shared<C>::pool), "a part of the pool");
    const Slots slots = {at<Choice>(block, op.choices), at<Ending>(block, op.endings), cancels};
    const Maximum* maxima = at<Maximum>(block, op.maxima) + u64{row} * grid_blocks();
    return next_of_row(block.arena, slots, block.shared->rows[row].slot,
                       at<float>(block, op.logits) + u64{row} * op.stride, op.vocab,
                       reinterpret_cast<SampleScratch*>(block.shared->pool), [&] {
                           return threadIdx.x < kLanes ? largest_of_blocks(maxima)
                                                       : Chosen{0, 0.0f};
                       });
}

template <class C>
DEVICE void choose(const Block<C>& block, const SampleOp& op, const Host& host) {
    const Shared<C>& shared = *block.shared;
    // Asked for before the token is chosen, as the host's memory is far. All blocks find the answer
    // beside the first row's token.
    u32 yielding = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0 && shared.job != 0) {
        yielding = load_from_host(host.desk + kDeskYield);
    }
    for (u32 row = blockIdx.x; row < shared.row_count; row += grid_blocks()) {
        Next next = {0, 0.0f, kEnded, 0};
        if (shared.going >> row & 1) {
            next = next_of(block, op, host.cancels, row);
        }
        if (threadIdx.x == 0) {
            next.yields = row == 0 && shared.job != 0 && yielding == shared.job;
            at<Next>(block, op.chosen)[block.pass * kPassRows + row] = next;
        }
    }
}

// Before the first pass of a launch no row has ended. By one thread.
template <class C>
DEVICE void begin_rows(Shared<C>& shared) { shared.going = (1u << shared.row_count) - 1; }

// Once all blocks have ended a pass: the rows of the next one. False if there is none left, in the
// launch or in the job. The host is told of a job's pass.
template <class C>
DEVICE bool feed_rows(const Block<C>& block, Place chosen, u32* desk) {
    Shared<C>& shared = *block.shared;
    if (threadIdx.x < kLanes) {
        bool goes_on = false;
        uint4 next = {0, 0, 0, 0};
        if (threadIdx.x < shared.row_count) {
            const Next* nexts = at<Next>(block, chosen) + block.pass * kPassRows;
            next = load_words_shared_by_blocks_16(nexts + threadIdx.x);
            goes_on = next.z == kGoesOn;
            if (goes_on) {
                Row& row = shared.rows[threadIdx.x];
                row.token = next.x;
                ++row.position;
            }
        }
        u32 going = __ballot_sync(kAllLanes, goes_on);
        if (shared.job != 0) {
            const bool yields = __ballot_sync(kAllLanes, next.w != 0) != 0;
            going = yields || block.pass + 1 == shared.passes ? 0 : going;
            if (blockIdx.x == 0) {
                tell_pass(desk, block.pass, shared.row_count, next, shared.sequence + block.pass,
                          going == 0 ? shared.job : 0, &shared.beat);
            }
        }
        if (threadIdx.x == 0) {
            shared.going = going;
        }
    }
    __syncthreads();
    return shared.going != 0;
}
