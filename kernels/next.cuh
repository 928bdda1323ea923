// What becomes of a row once its logits are there: its next token is chosen as its sequence's Choice
// says, and its Ending says whether the sequence ends with it. README.md has it in full.
#pragma once

#include "sample.cuh"

// Where sequences keep what they go on by.
struct Slots {
    Choice* choices;     // [slots]
    Ending* endings;     // [slots]
    const u32* cancels;  // [slots] words that the host may change at any time
};

// Any choice but that of the largest logit, by a whole block; the sequence's state knows of the token
// then.
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
// slot: of the sequence, or nowhere; logits: of the row, may be changed; largest: called by all threads,
// gives the first warp the likeliest token
template <class Largest>
DEVICE Next next_of_row(u8* arena, const Slots& slots, u32 slot, float* logits, u32 vocab,
                        SampleScratch* scratch, Largest largest) {
    if (slot == kNowhere) {
        const Chosen chosen = largest();
        const u32 end = chosen.probability > 0.0f ? kGoesOn : kNoToken;
        return {chosen.token, chosen.probability, end, 0};
    }
    Choice* choice = slots.choices + slot;
    Ending* ending = slots.endings + slot;
    const bool first_warp = threadIdx.x < kLanes;
    Orders orders = {0, 0};
    if (first_warp) {
        orders = Orders::load(ending, slots.cancels, slot);
    }
    const Chosen chosen = takes_largest(choice)
                              ? largest()
                              : sample_and_accept(arena, logits, vocab, choice, scratch);
    u32 end = kNoToken;
    if (first_warp && chosen.probability > 0.0f) {
        end = Orders::end(orders, chosen.token, ending);
    }
    return {chosen.token, chosen.probability, end, 0};
}
