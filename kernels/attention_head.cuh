// A head of a query or a key on its way into attention (attention.cuh): its norm and its rotation.
#pragma once

#include "attention_item.cuh"

DEVICE float warp_sum(float v) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        v += __shfl_xor_sync(kAllLanes, v, mask);
    }
    return v;
}

// One head of a query or key on its way through norm and rotation, by one warp: a lane has pairs of
// dimensions that are turned together, and of dimensions beyond those any two.
struct Head {
    float2 pairs[kPairsOfLane], turns[kPairsOfLane], gains[kPairsOfLane];
};

// The two dimensions of a pair.
template <class Op>
DEVICE uint2 dimensions(const Op& op, u32 pair) {
    const bool halves = pair < op.pairs && !op.interleaved;
    return halves ? uint2{pair, pair + op.pairs} : uint2{2 * pair, 2 * pair + 1};
}

// Loads pairs `first` and so on of a head, and what they are multiplied with. Returns the sum of their
// squares.
template <class C, class Op>
DEVICE float load_pairs(const Block<C>& block, const Op& op, u32 row, const float* from,
                        const Wanted& wanted, Place gain, u32 first, Head& head) {
    const u32 lane = threadIdx.x % kLanes;
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < kPairsOfLane; ++i) {
        const u32 pair = first + i * kLanes + lane;
        const uint2 two = dimensions(op, pair);
        head.pairs[i] = {0.0f, 0.0f};
        head.turns[i] = {1.0f, 0.0f};
        head.gains[i] = {1.0f, 1.0f};
        if (2 * pair < op.key_dim && gain != kNowhere) {
            const float* gains = at<float>(block, gain);
            head.gains[i] = {as_float(load_weights_4(gains + two.x)),
                             as_float(load_weights_4(gains + two.y))};
        }
        if (pair < op.pairs) {
            const float* angles = at<float>(block, op.angles) + 2 * (u64{row} * op.pairs + pair);
            head.turns[i] = {load_shared_by_blocks(angles), load_shared_by_blocks(angles + 1)};
        }
    }
    load_marked(*block.shared, [&] {
        bool old = false;
#pragma unroll
        for (u32 i = 0; i < kPairsOfLane; ++i) {
            const u32 pair = first + i * kLanes + lane;
            const uint2 two = dimensions(op, pair);
            if (2 * pair < op.key_dim) {
                head.pairs[i] = {load_shared_by_blocks(from + two.x),
                                 load_shared_by_blocks(from + two.y)};
                old |= is_old(head.pairs[i].x, wanted) | is_old(head.pairs[i].y, wanted);
            }
        }
        return old;
    });
#pragma unroll
    for (u32 i = 0; i < kPairsOfLane; ++i) {
        squares = fmaf(head.pairs[i].x, head.pairs[i].x, squares);
        squares = fmaf(head.pairs[i].y, head.pairs[i].y, squares);
    }
    return squares;
}

// Norm and rotation. from: [key_dim] f32; `put(dimension, value)` takes the results.
template <class C, class Op, class Put>
DEVICE void prepare_head(const Block<C>& block, const Op& op, u32 row, const float* from,
                         const Wanted& wanted, Place gain, Put put) {
    constexpr u32 kPairs = kPairsOfLane * kLanes;
    const u32 lane = threadIdx.x % kLanes;
    Head head;
    float root = 1.0f;
    if (gain != kNowhere) {
        float squares = 0.0f;
#pragma unroll 1
        for (u32 first = 0; 2 * first < op.key_dim; first += kPairs) {
            squares += load_pairs(block, op, row, from, wanted, gain, first, head);
        }
        const float mean = warp_sum(squares) * reciprocal_approx(static_cast<float>(op.key_dim));
        root = reciprocal_root_approx(mean + op.norm_eps);
    }
#pragma unroll 1
    for (u32 first = 0; 2 * first < op.key_dim; first += kPairs) {
        if (gain == kNowhere || op.key_dim > 2 * kPairs) {
            load_pairs(block, op, row, from, wanted, gain, first, head);
        }
#pragma unroll
        for (u32 i = 0; i < kPairsOfLane; ++i) {
            const u32 pair = first + i * kLanes + lane;
            const uint2 two = dimensions(op, pair);
            if (2 * pair < op.key_dim) {
                const float a = head.pairs[i].x * root * head.gains[i].x;
                const float b = head.pairs[i].y * root * head.gains[i].y;
                put(two.x, a * head.turns[i].x - b * head.turns[i].y);
                put(two.y, a * head.turns[i].y + b * head.turns[i].x);
            }
        }
    }
}
