// Softmax attention of the rows of a pass over the KV cache (AttentionOp, ops.cuh).
//
// An item is some query heads of one KV head, of one row, over one chunk of its tokens; a block works
// on one at a time. A part is kPartTokens tokens of it, which one warp takes: lane = token + 16 * half
// of the key's dimensions. The part's first keys are on their way before what the op waits for is
// there; the row's own key and value replace what memory has in their place. Parts have their own
// maximum and sum, and meet at the end of each head; so a head's result depends on its
// sequence alone, not on how heads are dealt to blocks.
#pragma once

#include "kv.cuh"
#include "marks.cuh"

enum : u32 {
    kPartTokens = 16,
    kParts = kChunkTokens / kPartTokens,
    // 16-byte loads of keys, and of values, that a lane has on their way.
    kLoads = 8,
    // Dimensions of values that a warp adds up at a time.
    kOutputFloats = 128,
    // Partial results of a row that a thread has on their way.
    kChunksAtOnce = 9,
    // Query heads of an item, at most.
    kHeadsAtOnce = 8,
    // Pairs of dimensions that a lane rotates, two at a time, and values that it takes.
    kPairsOfLane = 2,
    kValuesAtOnce = 4,
};

// How shared memory is used: `pool` of the block, in floats.
template <class Kv>
struct AttentionMemory {
    float* queries;               // [heads of the item][key_dim], grown if keys are fields
    float* query_sums;            // [heads of the item], not grown; where they are
    typename Kv::Element* key;    // [key_dim] of the row
    typename Kv::Element* value;  // [value_dim] of the row
    float* scales;                // of key and value of the row, if they have any
    float* outputs;  // [2][kParts][up to kOutputFloats], in turns; before, key and value unrounded
    float* maxima;   // [2][kParts]
    float* sums;     // [2][kParts]

    template <class Op>
    DEVICE_MEMBER AttentionMemory of(float* start, const Op& op) {
        AttentionMemory memory;
        memory.maxima = start;
        memory.sums = memory.maxima + 2 * kParts;
        memory.outputs = memory.sums + 2 * kParts;
        const u32 floats = 2 * kParts * min(op.value_dim, u32{kOutputFloats});
        const u32 own_floats = op.key_dim + op.value_dim;
        float* own = memory.outputs + (Kv::kScaled ? max(floats, own_floats) : floats);
        memory.key = reinterpret_cast<typename Kv::Element*>(own);
        memory.value = memory.key + op.key_dim;
        // Bytes leave half of what halves take to the scales.
        memory.scales = own + own_floats / 4;
        memory.query_sums = own + own_floats / 2;
        memory.queries = memory.query_sums + (Kv::kScaled ? u32{kHeadsAtOnce} : 0);
        return memory;
    }
};

struct AttentionItem {
    u32 row, kv_head, first_head, heads;  // query heads first_head..first_head + heads
    u32 chunk;                            // of the sequence
    u32 first_chunk, chunks;              // of the row
    u32 position, first_token;            // tokens first_token..=position are seen
    bool with_own;                        // the row's own token is in the chunk
    bool appends;                         // and this item stores it
};

// How the query heads of a KV head are dealt to items: one item while chunks keep all blocks busy.
struct HeadCut {
    u32 parts, heads;  // items of a KV head, and heads of each but the last
    u32 items;         // of all rows

    template <class C, class Op>
    DEVICE_MEMBER HeadCut of(const Shared<C>& shared, const Op& op) {
        u32 items = 0;
#pragma unroll 1
        for (u32 row = 0; row < rows_of(shared); ++row) {
            const u32 position = shared.rows[row].position;
            const u32 seen = op.window == 0 ? position + 1 : min(op.window, position + 1);
            items += op.kv_heads * (position / kChunkTokens - (position + 1 - seen) / kChunkTokens + 1);
        }
        const u32 group = op.heads / op.kv_heads, share = max(grid_blocks() / items, 1u);
        const u32 heads = min((group + share - 1) / share, u32{kHeadsAtOnce});
        const u32 parts = (group + heads - 1) / heads;
        return {parts, heads, items * parts};
    }
};

// The item of a number below cut.items.
template <class C, class Op>
DEVICE AttentionItem find_item(const Shared<C>& shared, const Op& op, const HeadCut& cut,
                               u32 number) {
    const u32 group = op.heads / op.kv_heads, of_chunk = op.kv_heads * cut.parts;
    AttentionItem item = {};
#pragma unroll 1
    for (u32 row = 0; row < rows_of(shared); ++row) {
        const u32 position = shared.rows[row].position;
        const u32 seen = op.window == 0 ? position + 1 : min(op.window, position + 1);
        item.row = C::kBatch == 1 ? 0 : row;
        item.position = position;
        item.first_token = position + 1 - seen;
        item.first_chunk = item.first_token / kChunkTokens;
        item.chunks = position / kChunkTokens - item.first_chunk + 1;
        if (C::kBatch == 1 || number < item.chunks * of_chunk) {
            break;
        }
        number -= item.chunks * of_chunk;
    }
    // Heads vary fastest; the chunk of the row's own token, which is the shortest, last.
    const u32 chunk = item.chunks == 1 ? 0 : number / of_chunk, head = number - chunk * of_chunk;
    const u32 part = head / op.kv_heads;
    item.chunk = item.first_chunk + chunk;
    item.kv_head = head - part * op.kv_heads;
    item.first_head = item.kv_head * group + part * cut.heads;
    item.heads = min(cut.heads, group - part * cut.heads);
    item.with_own = chunk + 1 == item.chunks;
    item.appends = part == 0;
    return item;
}

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

constexpr float kLog2E = 1.44269504f;

// A score as a power of 2.
template <class Op>
DEVICE float score(const Op& op, float dot) {
    float s = dot * op.scale;
    if (op.softcap != 0.0f) {
        s = soften(s, op.softcap);
    }
    return s * kLog2E;
}

// A head's sum of weights relative to 2^largest, with that of its sink.
template <class C, class Op>
DEVICE float with_sink(const Block<C>& block, const Op& op, u32 head, float largest, float total) {
    if (op.sinks == kNowhere) {
        return total;
    }
    // Far above all scores it is infinite, and the result 0.
    const float sink = as_float(load_weights_4(at<float>(block, op.sinks) + head));
    return total + exp2_approx(sink * kLog2E - largest);
}

// The lanes of a warp over the values of a part: `lanes` of them take a token, 8 dimensions each.
struct ValueLanes {
    u32 lanes, tokens;  // tokens at once
    u32 token, dim;     // of this lane
    bool active;

    DEVICE_MEMBER ValueLanes of(u32 value_dim) {
        const u32 lane = threadIdx.x % kLanes;
        const u32 lanes = min(value_dim / 8, u32{kLanes});
        const u32 tokens = min(kLanes / lanes, u32{kPartTokens}), token = lane / lanes;
        return {lanes, tokens, token, (lane - token * lanes) * 8, token < tokens};
    }
};

// Where scales of a head's keys lie in a page; those of its values are op.kv_heads * kPageTokens
// further on.
template <class Op>
DEVICE float* scales_of(const Op& op, u8* page, u32 kv_head) {
    const u32 bytes = op.kv_heads * (op.key_dim + op.value_dim) * kPageTokens;
    return reinterpret_cast<float*>(page + bytes) + kv_head * kPageTokens;
}

// A warp's part of an item: where it lies, and what is loaded of it.
template <class Kv, class Op>
struct Part {
    typedef typename Kv::Eight Eight;
    u32 first;            // token of the sequence
    const Eight* keys;    // of the lane's token and half, kPageTokens apart
    const Eight* values;  // of the lane's first token and dimensions
    const float* scales;  // of the lane's token: of its key
    Eight key[kLoads], value[kLoads];
    float key_scale, value_scale;  // of the lane's token

    template <class C>
    DEVICE_MEMBER void find(const Block<C>& block, const Op& op, const AttentionItem& item,
                            const ValueLanes& split, u32 number, Part& part) {
        const u32 token = threadIdx.x % kPartTokens, half = threadIdx.x % kLanes / kPartTokens;
        part.first = item.chunk * kChunkTokens + number * kPartTokens;
        part.keys = part.values = nullptr;
        part.scales = nullptr;
        if (seen(item, part)) {
            const u32* table = at<u32>(block, block.shared->rows[item.row].pages);
            const u32 index = load_word_shared_by_blocks(table + part.first / kPageTokens);
            u8* start = at<u8>(block, op.cache) + u64{index} * op.page_places * 16;
            const Eight* page = reinterpret_cast<const Eight*>(start);
            const u32 eighths = op.key_dim / 8, first = part.first % kPageTokens;
            part.keys = page + (item.kv_head * eighths + half * ((eighths + 1) / 2)) * kPageTokens +
                        first + token;
            part.values = page + op.kv_heads * eighths * kPageTokens +
                          ((item.kv_head * kPageTokens + first + split.token) * op.value_dim +
                           split.dim) / 8;
            part.scales = scales_of(op, start, item.kv_head) + first + token;
        }
    }

    // Whether it has a token before the row's own that is seen.
    DEVICE_MEMBER bool seen(const AttentionItem& item, const Part& part) {
        return part.first < item.position && part.first + kPartTokens > item.first_token;
    }

    // Eighths of a key that a lane's half has.
    DEVICE_MEMBER u32 eighths(const Op& op) {
        const u32 all = op.key_dim / 8, first = (all + 1) / 2;
        return threadIdx.x % kLanes < kPartTokens ? first : all - first;
    }

    DEVICE_MEMBER void load_scales(const Op& op, const AttentionItem& item, Part& part) {
        const bool there = seen(item, part) && part.first + threadIdx.x % kPartTokens < item.position;
        part.key_scale = part.value_scale = 0.0f;
        load_shared_by_blocks_if(there, part.scales, part.key_scale);
        load_shared_by_blocks_if(there, part.scales + op.kv_heads * kPageTokens, part.value_scale);
    }

    // Keys: eighths first..first + kLoads of the lane's token. Of tokens that the cache has not they
    // are not read: what is there may be anything.
    DEVICE_MEMBER void load_keys(const Op& op, const AttentionItem& item, Part& part, u32 first) {
        const u32 count = eighths(op);
        const bool there = seen(item, part) && part.first + threadIdx.x % kPartTokens < item.position;
#pragma unroll
        for (u32 i = 0; i < kLoads; ++i) {
            part.key[i] = {};
            if (first + i < (op.key_dim / 8 + 1) / 2) {
                Kv::load_if(there & (first + i < count), part.keys + (first + i) * kPageTokens,
                            part.key[i]);
            }
        }
    }

    // Values: of dimensions d0 on, loads first..first + kLoads, each of split.tokens tokens.
    DEVICE_MEMBER void load_values(const Op& op, const AttentionItem& item, const ValueLanes& split,
                                   Part& part, u32 d0, u32 first) {
        const bool here = seen(item, part) && split.active && d0 + split.dim < op.value_dim;
#pragma unroll
        for (u32 i = 0; i < kLoads; ++i) {
            const u32 token = (first + i) * split.tokens + split.token;
            part.value[i] = {};
            if ((first + i) * split.tokens < kPartTokens) {
                Kv::load_if(here & (token < kPartTokens) & (part.first + token < item.position),
                            part.values + ((first + i) * split.tokens * op.value_dim + d0) / 8,
                            part.value[i]);
            }
        }
    }
};

// Products of 8 loaded numbers with 8 others, added to four sums.
template <class Kv>
DEVICE void dot_eight(const typename Kv::Eight& loaded, const float* x, float (&sums)[4]) {
    const float4* eight = reinterpret_cast<const float4*>(x);
    const float4 low = eight[0], high = eight[1];
    float numbers[8];
    Kv::fields(loaded, numbers);
    sums[0] = fmaf(numbers[0], low.x, sums[0]);
    sums[1] = fmaf(numbers[1], low.y, sums[1]);
    sums[2] = fmaf(numbers[2], low.z, sums[2]);
    sums[3] = fmaf(numbers[3], low.w, sums[3]);
    sums[0] = fmaf(numbers[4], high.x, sums[0]);
    sums[1] = fmaf(numbers[5], high.y, sums[1]);
    sums[2] = fmaf(numbers[6], high.z, sums[2]);
    sums[3] = fmaf(numbers[7], high.w, sums[3]);
}

template <class Kv>
DEVICE void add_eight(const typename Kv::Eight& loaded, float weight, float (&sums)[8]) {
    float numbers[8];
    Kv::fields(loaded, numbers);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        sums[i] = fmaf(weight, numbers[i], sums[i]);
    }
}

// One head of the item over one part: its sums of values relative to its own maximum, into memory.
// Keys and values from the first ones on are loaded, and are again where there are more than those.
template <class C, class Kv, class Op>
DEVICE void attend(const Op& op, const AttentionItem& item, const AttentionMemory<Kv>& memory,
                   const ValueLanes& split, Part<Kv, Op>& part, u32 number, u32 head, u32 turn, u32 d0,
                   float& probability) {
    typedef typename Kv::Eight Eight;
    const u32 lane = threadIdx.x % kLanes, token = lane % kPartTokens, half = lane / kPartTokens;
    const bool owns = item.with_own && part.first <= item.position &&
                      item.position < part.first + kPartTokens;
    const u32 own = item.position - part.first, width = min(op.value_dim, u32{kOutputFloats});
    float4* out =
        reinterpret_cast<float4*>(memory.outputs + (turn * kParts + number) * width + split.dim);
    if (!owns && !Part<Kv, Op>::seen(item, part)) {
        // Nothing, which must be a number to be multiplied with.
        if (split.token == 0) {
            out[0] = out[1] = {0.0f, 0.0f, 0.0f, 0.0f};
        }
        if (lane == 0) {
            memory.maxima[turn * kParts + number] = -as_float(0x7f800000);
            memory.sums[turn * kParts + number] = 0.0f;
        }
        return;
    }
    if (d0 == 0) {
        const u32 most = (op.key_dim / 8 + 1) / 2, count = Part<Kv, Op>::eighths(op);
        const u32 skipped = half * most;
        const Eight* own_key = reinterpret_cast<const Eight*>(memory.key) + skipped;
        const float* query = memory.queries + head * op.key_dim + skipped * 8;
        float dots[4] = {};
#pragma unroll 1
        for (u32 first = 0; first < most; first += kLoads) {
            if (most > kLoads) {
                Part<Kv, Op>::load_keys(op, item, part, first);
            }
            if (owns) {
#pragma unroll
                for (u32 i = 0; i < kLoads; ++i) {
                    if (first + i < most && first + i < count && token == own) {
                        part.key[i] = own_key[first + i];
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < kLoads; ++i) {
                if (first + i < most && first + i < count) {
                    dot_eight<Kv>(part.key[i], query + 8 * (first + i), dots);
                }
            }
        }
        float dot = dots[0] + dots[1] + (dots[2] + dots[3]);
        dot += __shfl_xor_sync(kAllLanes, dot, kPartTokens);
        if constexpr (Kv::kScaled) {
            if (owns && token == own) {
                part.key_scale = memory.scales[0];
                part.value_scale = memory.scales[1];
            }
            dot = fmaf(dot, Kv::kShrinkage, -Kv::kZero * memory.query_sums[head]) * part.key_scale;
        }
        const u32 here = part.first + token;
        const float infinity = as_float(0x7f800000);
        const float s =
            here >= item.first_token && here <= item.position ? score(op, dot) : -infinity;
        float largest = s;
#pragma unroll
        for (u32 mask = kPartTokens / 2; mask > 0; mask /= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
        }
        probability = s == -infinity ? 0.0f : exp2_approx(s - largest);
        float sum = probability;
#pragma unroll
        for (u32 mask = kPartTokens / 2; mask > 0; mask /= 2) {
            sum += __shfl_xor_sync(kAllLanes, sum, mask);
        }
        if (lane == 0) {
            memory.maxima[turn * kParts + number] = largest;
            memory.sums[turn * kParts + number] = sum;
        }
    }
    float weighs = probability;
    if constexpr (Kv::kScaled) {
        weighs *= part.value_scale * Kv::kGrowth;
    }
    float sums[8] = {}, weight_sum = 0.0f;
#pragma unroll 1
    for (u32 first = 0; first * split.tokens < kPartTokens; first += kLoads) {
        if (kLoads * split.tokens < kPartTokens || d0 > 0 || op.value_dim > kOutputFloats) {
            Part<Kv, Op>::load_values(op, item, split, part, d0, first);
        }
        if (owns) {
#pragma unroll
            for (u32 i = 0; i < kLoads; ++i) {
                const u32 of_value = (first + i) * split.tokens + split.token;
                if (split.active && of_value == own && d0 + split.dim < op.value_dim) {
                    part.value[i] = *reinterpret_cast<const Eight*>(memory.value + d0 + split.dim);
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < kLoads; ++i) {
            if ((first + i) * split.tokens < kPartTokens) {
                const u32 of_value = (first + i) * split.tokens + split.token;
                const float weight = __shfl_sync(kAllLanes, weighs, of_value % kPartTokens);
                const float used = of_value < kPartTokens ? weight : 0.0f;
                add_eight<Kv>(part.value[i], used, sums);
                if constexpr (Kv::kScaled) {
                    weight_sum += used;
                }
            }
        }
    }
    if constexpr (Kv::kScaled) {
        const float zeros = weight_sum * (-Kv::kZero / Kv::kGrowth);
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            sums[i] = fmaf(sums[i], Kv::kShrinkage, zeros);
        }
    }
    // Lanes of other tokens to those of the first one.
    if ((split.lanes & (split.lanes - 1)) == 0) {
#pragma unroll
        for (u32 mask = 1; mask < kLanes; mask *= 2) {
            if (mask >= split.lanes && mask < split.lanes * split.tokens) {
#pragma unroll
                for (u32 i = 0; i < 8; ++i) {
                    sums[i] += __shfl_xor_sync(kAllLanes, sums[i], mask);
                }
            }
        }
    } else {
#pragma unroll 1
        for (u32 other = 1; other < split.tokens; ++other) {
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                const float given =
                    __shfl_sync(kAllLanes, sums[i], (lane + other * split.lanes) % kLanes);
                sums[i] += split.token == 0 ? given : 0.0f;
            }
        }
    }
    if (split.token == 0) {
        out[0] = {sums[0], sums[1], sums[2], sums[3]};
        out[1] = {sums[4], sums[5], sums[6], sums[7]};
    }
}

// The results of all chunks of a row's KV head, put together by the block that finished last.
// partials: [chunks][group][value_dim + 4]; out: [group][value_dim]
template <class C, class Op>
DEVICE void join_chunks(const Block<C>& block, const Op& op, u32 chunks, u32 kv_head, u32 group,
                        const float* partials, float* out) {
    const u32 partial = op.value_dim + 4;
    const float infinity = as_float(0x7f800000);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < group * op.value_dim; i += C::kThreads) {
        const u32 head = i / op.value_dim, d = i - head * op.value_dim;
        const float* of_head = partials + head * partial;
        float largest = -infinity, sum = 0.0f, total = 0.0f;
#pragma unroll 1
        for (u32 first = 0; first < chunks; first += kChunksAtOnce) {
            float here[kChunksAtOnce], part[kChunksAtOnce], parts[kChunksAtOnce];
#pragma unroll
            for (u32 c = 0; c < kChunksAtOnce; ++c) {
                const float* from = of_head + (first + c) * (group * partial);
                here[c] = -infinity;
                part[c] = parts[c] = 0.0f;
                load_shared_by_blocks_if(first + c < chunks, from + op.value_dim, here[c]);
                load_shared_by_blocks_if(first + c < chunks, from + d, part[c]);
                load_shared_by_blocks_if(first + c < chunks, from + op.value_dim + 1, parts[c]);
            }
            float highest = largest;
#pragma unroll
            for (u32 c = 0; c < kChunksAtOnce; ++c) {
                highest = fmaxf(highest, here[c]);
            }
            const float old = exp2_approx(largest - highest);
            sum *= old;
            total *= old;
#pragma unroll
            for (u32 c = 0; c < kChunksAtOnce; ++c) {
                const float factor = exp2_approx(here[c] - highest);
                sum = fmaf(factor, part[c], sum);
                total = fmaf(factor, parts[c], total);
            }
            largest = highest;
        }
        total = with_sink(block, op, kv_head * group + head, largest, total);
        store_openly(out + i, marked(sum * reciprocal_approx(total), op.flags));
    }
}

// Counts a finished item of a row's KV head; true in the block that finished the last one.
template <class C, class Op>
DEVICE bool finished_last(const Block<C>& block, const Op& op, const AttentionItem& item, u32 items) {
    u32* arrivals = at<u32>(block, op.arrivals) + (item.row * op.kv_heads + item.kv_head);
    return arrived_last(block, arrivals, items);
}

// A key or value of the row, whole in `from` and this warp's, rounded to what the cache holds: for this
// block, and into the cache if `appends`. There dimension d is element `at(d)`.
template <class At>
DEVICE void keep_scaled(const float* from, u32 dim, u8* own, float* own_scale, bool appends, u8* cache,
                        float* scale, At at) {
    __syncwarp();
    const u32 lane = threadIdx.x % kLanes;
    const auto quantiser = Quantiser::of(from, dim);
#pragma unroll 4
    for (u32 d = lane; d < dim; d += kLanes) {
        const u8 byte = Quantiser::byte(quantiser, from[d]);
        own[d] = byte;
        if (appends) {
            cache[at(d)] = byte;
        }
    }
    if (lane == 0) {
        *own_scale = quantiser.scale;
        if (appends) {
            *scale = quantiser.scale;
        }
    }
}

// Queries, key and value of the item, prepared and stored, by a warp each. The key and the value are
// rounded to what the cache holds. page: of the row's own token.
template <class C, class Kv, class Op>
DEVICE void prepare(const Block<C>& block, const Op& op, const AttentionItem& item,
                    const AttentionMemory<Kv>& memory, u32 task, u32 page) {
    typedef typename Kv::Element Element;
    u8* start = at<u8>(block, op.cache) + u64{page} * op.page_places * 16;
    Element* cache = reinterpret_cast<Element*>(start);
    const u32 lane = threadIdx.x % kLanes, token = item.position % kPageTokens;
    float* scale = scales_of(op, start, item.kv_head) + token;
    if (task < item.heads) {
        const float* from = at<float>(block, op.q) + u64{item.row} * op.q_stride +
                            (item.first_head + task) * op.key_dim;
        float* to = memory.queries + task * op.key_dim;
        float sum = 0.0f;
        const Wanted wanted = Wanted::of<C>(op.flags, 0);
        prepare_head(block, op, item.row, from, wanted, op.q_gain, [&](u32 d, float x) {
            if constexpr (Kv::kScaled) {
                sum += x;
                x *= Kv::kGrowth;
            }
            to[d] = x;
        });
        if constexpr (Kv::kScaled) {
            sum = warp_sum(sum);
            if (lane == 0) {
                memory.query_sums[task] = sum;
            }
        }
    } else if (task == item.heads) {
        const float* from =
            at<float>(block, op.k) + u64{item.row} * op.k_stride + item.kv_head * op.key_dim;
        Element* to = cache + item.kv_head * op.key_dim * kPageTokens + token * 8;
        const auto place = [](u32 d) { return d / 8 * (kPageTokens * 8) + d % 8; };
        const Wanted wanted = Wanted::of<C>(op.flags, 1);
        prepare_head(block, op, item.row, from, wanted, op.k_gain, [&](u32 d, float x) {
            if constexpr (Kv::kScaled) {
                memory.outputs[d] = x;
            } else {
                const u16 bits = static_cast<u16>(float_to_half(x));
                memory.key[d] = bits;
                if (item.appends) {
                    to[place(d)] = bits;
                }
            }
        });
        if constexpr (Kv::kScaled) {
            keep_scaled(memory.outputs, op.key_dim, memory.key, memory.scales, item.appends, to,
                        scale, place);
        }
    } else {
        const float* from =
            at<float>(block, op.v) + u64{item.row} * op.v_stride + item.kv_head * op.value_dim;
        Element* to = cache + op.kv_heads * op.key_dim * kPageTokens +
                      (item.kv_head * kPageTokens + token) * op.value_dim;
        float* staged = memory.outputs + op.key_dim;
        const Wanted wanted = Wanted::of<C>(op.flags, 2);
#pragma unroll 1
        for (u32 first = lane; first < op.value_dim; first += kValuesAtOnce * kLanes) {
            float x[kValuesAtOnce] = {};
            load_marked(*block.shared, [&] {
                bool old = false;
#pragma unroll
                for (u32 i = 0; i < kValuesAtOnce; ++i) {
                    if (first + i * kLanes < op.value_dim) {
                        x[i] = load_shared_by_blocks(from + first + i * kLanes);
                        old |= is_old(x[i], wanted);
                    }
                }
                return old;
            });
#pragma unroll
            for (u32 i = 0; i < kValuesAtOnce; ++i) {
                const u32 d = first + i * kLanes;
                if (d < op.value_dim) {
                    if constexpr (Kv::kScaled) {
                        staged[d] = x[i];
                    } else {
                        const u16 bits = static_cast<u16>(float_to_half(x[i]));
                        memory.value[d] = bits;
                        if (item.appends) {
                            to[d] = bits;
                        }
                    }
                }
            }
        }
        if constexpr (Kv::kScaled) {
            keep_scaled(staged, op.value_dim, memory.value, memory.scales + 1, item.appends, to,
                        scale + op.kv_heads * kPageTokens, [](u32 d) { return d; });
        }
    }
}

// Parts of one head put together: dimensions d0.. of its result, or of the chunk's.
// first: of the threads that do it; out: [value_dim], or [value_dim + 4] of a row of several chunks
template <class C, class Kv, class Op>
DEVICE void join_parts(const Block<C>& block, const Op& op, const AttentionMemory<Kv>& memory,
                       u32 turn, u32 head, u32 d0, u32 first, float* out, bool whole) {
    const u32 width = min(op.value_dim, u32{kOutputFloats});
    const float* maxima = memory.maxima + turn * kParts;
    const float* sums = memory.sums + turn * kParts;
#pragma unroll 1
    for (u32 d = (threadIdx.x + C::kThreads - first) % C::kThreads;
         d < width && d0 + d < op.value_dim; d += C::kThreads) {
        float factors[kParts], largest = -as_float(0x7f800000);
#pragma unroll
        for (u32 p = 0; p < kParts; p += 4) {
            const float4 four = *reinterpret_cast<const float4*>(maxima + p);
            factors[p] = four.x, factors[p + 1] = four.y;
            factors[p + 2] = four.z, factors[p + 3] = four.w;
            largest = fmaxf(largest, fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)));
        }
        float dots[4] = {}, totals[4] = {};
        const float* outputs = memory.outputs + turn * kParts * width + d;
#pragma unroll
        for (u32 p = 0; p < kParts; p += 4) {
            const float4 four = *reinterpret_cast<const float4*>(sums + p);
            const float part_sums[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                // A part that sees nothing has a maximum of -inf, and counts for nothing.
                const float factor = exp2_approx(factors[p + i] - largest);
                dots[i] = fmaf(factor, outputs[(p + i) * width], dots[i]);
                totals[i] = fmaf(factor, part_sums[i], totals[i]);
            }
        }
        const float sum = dots[0] + dots[1] + (dots[2] + dots[3]);
        const float total = totals[0] + totals[1] + (totals[2] + totals[3]);
        if (whole) {
            const float total_with_sink = with_sink(block, op, head, largest, total);
            store_openly(out + d0 + d, marked(sum * reciprocal_approx(total_with_sink), op.flags));
        } else {
            out[d0 + d] = sum;
        }
        if (!whole && d0 + d == 0) {
            out[op.value_dim] = largest;
            out[op.value_dim + 1] = total;
        }
    }
}

template <class C, class Kv, class Op>
DEVICE void attention(Block<C>& block, const Op& op, bool resident) {
    constexpr u32 kPartsOfWarp = (kParts + C::kWarps - 1) / C::kWarps;
    Shared<C>& shared = *block.shared;
    const u32 warp = threadIdx.x / kLanes;
    const auto memory = AttentionMemory<Kv>::of(shared.pool, op);
    const auto split = ValueLanes::of(min(op.value_dim, u32{kOutputFloats}));
    const auto cut = HeadCut::of(shared, op);
    const u32 group = op.heads / op.kv_heads;

    bool awaited = false;
    u32 turn = 0;
#pragma unroll 1
    for (u32 first = 0; first < cut.items; first += grid_blocks()) {
        // To and fro, so that the short items at the end meet in the same blocks.
        const bool back = first / grid_blocks() % 2 != 0;
        const u32 number = first + (back ? grid_blocks() - 1 - blockIdx.x : blockIdx.x);
        if (number >= cut.items) {
            continue;
        }
        const auto item = find_item(shared, op, cut, number);
        // Tokens of earlier passes, angles and gains are there before this op's own input.
        Part<Kv, Op> parts[kPartsOfWarp];
#pragma unroll
        for (u32 p = 0; p < kPartsOfWarp; ++p) {
            Part<Kv, Op>::find(block, op, item, split, warp + p * C::kWarps, parts[p]);
            Part<Kv, Op>::load_keys(op, item, parts[p], 0);
            if constexpr (Kv::kScaled) {
                Part<Kv, Op>::load_scales(op, item, parts[p]);
            }
        }
        const u32 tasks = item.heads + (item.with_own ? 2 : 0);
        u32 page = 0;
        if (warp + C::kWarps >= item.heads && item.with_own) {
            const u32* table = at<u32>(block, shared.rows[item.row].pages);
            page = load_word_shared_by_blocks(table + item.position / kPageTokens);
        }
        if (!awaited) {
            await(block, op.flags, resident);
            awaited = true;
        } else {
            __syncthreads();
        }
#pragma unroll 1
        for (u32 task = warp; task < tasks; task += C::kWarps) {
            prepare(block, op, item, memory, task, page);
        }
        // Values come later, as queries would wait behind them.
#pragma unroll
        for (u32 p = 0; p < kPartsOfWarp; ++p) {
            Part<Kv, Op>::load_values(op, item, split, parts[p], 0, 0);
        }
        __syncthreads();

        const bool whole = item.chunks == 1;
        const u32 partial = op.value_dim + 4;  // floats of a head's partial result
        const u32 of_row = (item.row * op.kv_heads + item.kv_head) * op.chunks * group * partial;
#pragma unroll 1
        for (u32 h = 0; h < item.heads; ++h) {
            float probability[kPartsOfWarp];
#pragma unroll 1
            for (u32 d0 = 0; d0 < op.value_dim; d0 += kOutputFloats) {
#pragma unroll
                for (u32 p = 0; p < kPartsOfWarp; ++p) {
                    if (warp + p * C::kWarps < kParts) {
                        attend<C, Kv>(op, item, memory, split, parts[p], warp + p * C::kWarps, h, turn,
                                  d0, probability[p]);
                    }
                }
                __syncthreads();
                // Heads in turns, by other threads each, as the others go on to the next head.
                const u32 head = item.first_head + h, of_group = head - item.kv_head * group;
                float* to = whole ? at<float>(block, op.out) + u64{item.row} * op.out_stride +
                                        head * op.value_dim
                                  : at<float>(block, op.partials) + of_row +
                                        ((item.chunk - item.first_chunk) * group + of_group) * partial;
                join_parts<C>(block, op, memory, turn, head, d0, h * kOutputFloats % C::kThreads, to, whole);
                if (op.value_dim > kOutputFloats) {
                    // Maxima of this head are of use to its next dimensions.
                    __syncthreads();
                }
            }
            turn ^= 1;
        }
        if (!whole) {
            if (finished_last(block, op, item, item.chunks * cut.parts)) {
                join_chunks<C>(block, op, item.chunks, item.kv_head, group,
                               at<float>(block, op.partials) + of_row,
                               at<float>(block, op.out) + u64{item.row} * op.out_stride +
                                   u64{item.kv_head} * group * op.value_dim);
            }
        }
    }
    if (!awaited) {
        await(block, op.flags, resident);
    }
}
