// The sample op of decode passes, and what is between two passes of a launch: the next token of a row
// is chosen as its sequence's Choice says, its Ending says whether the sequence ends with it, and
// otherwise the row goes on with it. README.md has it in full.
//
// A row that has ended stays in the passes that follow as it was in its last one: it computes the
// same once more, and nothing is chosen. Once all rows have ended the launch does.
#pragma once

#include "desk.cuh"
#include "sample.cuh"

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

// Any other choice, by a whole block; the sequence's state knows of the token then.
DEVICE_CALLED Chosen sample_and_accept(u8* arena, float* logits, u32 vocab, Choice* choice,
                                       SampleScratch* scratch) {
    assume_shared(scratch);
    const Chosen chosen = sample_row(arena, logits, vocab, choice, scratch, nullptr);
    if (chosen.probability > 0.0f) {
        accept_token(arena, choice, chosen.token, &scratch->found);
    }
    return chosen;
}

// What one warp knows of when a sequence ends: lane i has word i of its Ending, lane 0 also the
// host's word. Both are asked for before the token is chosen, as the host's memory is far.
struct Orders {
    u32 word;
    u32 cancelled;

    DEVICE_MEMBER Orders load(const Ending* ending, const u32* cancels, u32 slot) {
        const u32 lane = threadIdx.x % kLanes;
        Orders orders = {0, 0};
        if (lane < sizeof(Ending) / 4) {
            orders.word = load_word_shared_by_blocks(reinterpret_cast<const u32*>(ending) + lane);
        }
        if (lane == 0) {
            orders.cancelled = load_volatile(cancels + slot);
        }
        return orders;
    }

    // Counts the token, and says whether the sequence ends with it, in all lanes.
    DEVICE_MEMBER u32 end(const Orders& orders, u32 token, Ending* ending) {
        constexpr u32 kFirstStop = sizeof(Ending) / 4 - kMostStops;
        const u32 lane = threadIdx.x % kLanes;
        const u32 left = __shfl_sync(kAllLanes, orders.word, 1);
        const u32 stops = __shfl_sync(kAllLanes, orders.word, 2);
        // Of lanes before the first stop the difference is beyond any count.
        const u32 stopped =
            __ballot_sync(kAllLanes, lane - kFirstStop < stops && orders.word == token);
        const u32 any_cancelled =
            __ballot_sync(kAllLanes, lane == 0 && orders.cancelled == orders.word);
        if (lane == 0 && left > 0) {
            ending->left = left - 1;
        }
        if (stopped != 0) {
            return kStopToken;
        }
        if (left <= 1) {
            return kLastToken;
        }
        return any_cancelled != 0 ? kCancelled : kGoesOn;
    }
};

// Chooses for a row whose sequence has not ended, by a whole block; but only its first warp knows.
template <class C>
DEVICE Next next_of(const Block<C>& block, const SampleOp& op, const u32* cancels, u32 row) {
    static_assert(sizeof(SampleScratch) <= sizeof(Shared<C>::pool), "a part of the pool");
    const u32 slot = block.shared->rows[row].slot;
    const Maximum* maxima = at<Maximum>(block, op.maxima) + u64{row} * grid_blocks();
    const bool first_warp = threadIdx.x < kLanes;
    if (slot == kNowhere) {
        const Chosen chosen = first_warp ? largest_of_blocks(maxima) : Chosen{0, 0.0f};
        const u32 end = chosen.probability > 0.0f ? kGoesOn : kNoToken;
        return {chosen.token, chosen.probability, end, 0};
    }
    Choice* choice = at<Choice>(block, op.choices) + slot;
    Ending* ending = at<Ending>(block, op.endings) + slot;
    Orders orders = {0, 0};
    if (first_warp) {
        orders = Orders::load(ending, cancels, slot);
    }
    Chosen chosen = {0, 0.0f};
    if (!takes_largest(choice)) {
        float* logits = at<float>(block, op.logits) + u64{row} * op.stride;
        chosen = sample_and_accept(block.arena, logits, op.vocab, choice,
                                   reinterpret_cast<SampleScratch*>(block.shared->pool));
    } else if (first_warp) {
        chosen = largest_of_blocks(maxima);
    }
    u32 end = kNoToken;
    if (first_warp && chosen.probability > 0.0f) {
        end = Orders::end(orders, chosen.token, ending);
    }
    return {chosen.token, chosen.probability, end, 0};
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
