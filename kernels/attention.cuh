// Softmax attention of the rows of a pass over the KV cache (AttentionOp, ops.cuh).
//
// An item is up to kHeadsAtOnce query heads of one KV head, of one row, over one chunk of its tokens;
// a block works on one at a time. All keys and values of a chunk are on their way to L2 at once,
// before what the op waits for is there: warp w has page w % 8 of it, of keys the dimensions of half
// w / 8, of values the tokens of that half.
// The row's own key and value come from the pass, and join at the end.
#pragma once

#include "block.cuh"

enum : u32 {
    kHeadsAtOnce = 8,
    kChunkPages = kChunkTokens / kPageTokens,
    // Query heads whose sums a thread holds at a time.
    kHeadsInRegisters = 4,
    // Dimensions of values that a block adds up at a time, all heads in registers together.
    kOutputFloats = 512,
    // Pairs of dimensions that a lane rotates, two at a time.
    kPairsOfLane = 2,
};

// How shared memory is used: `pool` of the block, in floats.
struct AttentionMemory {
    float* scores;   // [kHeadsAtOnce][kChunkTokens] of halves of the dimensions, then probabilities
    float* own;      // [kHeadsAtOnce]: scores, then probabilities of the row's own token
    float* maxima;   // [kHeadsAtOnce]
    float* sums;     // [kHeadsAtOnce]
    float* value;    // [value_dim] of the row
    float* outputs;  // [kDecodeWarps][kOutputFloats], in the place of what follows
    float* key;      // [key_dim] of the row
    float* queries;  // [kHeadsAtOnce][key_dim]
    float* others;   // [kHeadsAtOnce][kChunkTokens]: scores of the other halves

    DEVICE_MEMBER AttentionMemory of(float* start, const AttentionOp& op) {
        AttentionMemory memory;
        memory.scores = start;
        memory.own = memory.scores + kHeadsAtOnce * kChunkTokens;
        memory.maxima = memory.own + kHeadsAtOnce;
        memory.sums = memory.maxima + kHeadsAtOnce;
        memory.value = memory.sums + kHeadsAtOnce;
        memory.outputs = memory.value + op.value_dim;
        memory.key = memory.outputs;
        memory.queries = memory.key + op.key_dim;
        memory.others = memory.queries + kHeadsAtOnce * op.key_dim;
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

// The item of this number, if there is one. group: query heads of a KV head; parts: items they make
DEVICE bool find_item(const Shared& shared, const AttentionOp& op, u32 group, u32 parts, u32 number,
                      AttentionItem& item) {
#pragma unroll 1
    for (u32 row = 0; row < shared.row_count; ++row) {
        const u32 position = shared.rows[row].position;
        const u32 seen = op.window == 0 ? position + 1 : min(op.window, position + 1);
        item.first_token = position + 1 - seen;
        item.first_chunk = item.first_token / kChunkTokens;
        item.chunks = position / kChunkTokens - item.first_chunk + 1;
        const u32 items = item.chunks * op.kv_heads * parts;
        if (number < items) {
            // Heads vary fastest; the chunk of the row's own token, which has the most to do, first.
            const u32 heads = op.kv_heads * parts, chunk = number / heads;
            const u32 head = number - chunk * heads;
            const u32 part = parts == 1 ? 0 : head % parts;
            item.row = row;
            item.position = position;
            item.chunk = item.first_chunk + item.chunks - 1 - chunk;
            item.kv_head = parts == 1 ? head : head / parts;
            item.first_head = item.kv_head * group + part * kHeadsAtOnce;
            item.heads = min(u32{kHeadsAtOnce}, group - part * kHeadsAtOnce);
            item.with_own = chunk == 0;
            item.appends = part == 0;
            return true;
        }
        number -= items;
    }
    return false;
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
DEVICE uint2 dimensions(const AttentionOp& op, u32 pair) {
    const bool halves = pair < op.pairs && !op.interleaved;
    return halves ? uint2{pair, pair + op.pairs} : uint2{2 * pair, 2 * pair + 1};
}

// What a head is multiplied with, which is there before the head itself.
DEVICE void load_turns(const Block& block, const AttentionOp& op, u32 row, Place gain, u32 first,
                       Head& head) {
    const u32 lane = threadIdx.x % kLanes;
#pragma unroll
    for (u32 i = 0; i < kPairsOfLane; ++i) {
        const u32 pair = first + i * kLanes + lane;
        const uint2 at = dimensions(op, pair);
        head.turns[i] = {1.0f, 0.0f};
        head.gains[i] = {1.0f, 1.0f};
        if (pair < op.pairs) {
            const float* angles =
                Block::at<float>(block, op.angles) + 2 * (u64{row} * op.pairs + pair);
            head.turns[i] = {load_shared_by_blocks(angles), load_shared_by_blocks(angles + 1)};
        }
        if (gain != kNowhere && 2 * pair < op.key_dim) {
            const float* gains = Block::at<float>(block, gain);
            head.gains[i] = {as_float(load_weights_4(gains + at.x)),
                             as_float(load_weights_4(gains + at.y))};
        }
    }
}

DEVICE float load_pairs(const AttentionOp& op, const float* from, u32 first, Head& head) {
    const u32 lane = threadIdx.x % kLanes;
    float squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < kPairsOfLane; ++i) {
        const u32 pair = first + i * kLanes + lane;
        const uint2 at = dimensions(op, pair);
        head.pairs[i] = {0.0f, 0.0f};
        if (2 * pair < op.key_dim) {
            head.pairs[i] = {load_shared_by_blocks(from + at.x), load_shared_by_blocks(from + at.y)};
        }
        squares = fmaf(head.pairs[i].x, head.pairs[i].x, squares);
        squares = fmaf(head.pairs[i].y, head.pairs[i].y, squares);
    }
    return squares;
}

// Norm and rotation. from: [key_dim] f32; to: [key_dim], shared. `head` holds what load_turns
// loaded for the first pairs.
DEVICE void prepare_head(const Block& block, const AttentionOp& op, u32 row, const float* from,
                         Place gain, Head& head, float* to) {
    constexpr u32 kPairs = kPairsOfLane * kLanes;
    const u32 lane = threadIdx.x % kLanes;
    float squares = load_pairs(op, from, 0, head);
    float root = 1.0f;
    if (gain != kNowhere) {
#pragma unroll 1
        for (u32 first = kPairs; 2 * first < op.key_dim; first += kPairs) {
            Head rest;
            squares += load_pairs(op, from, first, rest);
        }
        const float mean =
            warp_sum(squares) * reciprocal_approx(static_cast<float>(op.key_dim));
        root = reciprocal_root_approx(mean + op.norm_eps);
    }
#pragma unroll 1
    for (u32 first = 0; 2 * first < op.key_dim; first += kPairs) {
        if (first > 0) {
            load_turns(block, op, row, gain, first, head);
            load_pairs(op, from, first, head);
        }
#pragma unroll
        for (u32 i = 0; i < kPairsOfLane; ++i) {
            const u32 pair = first + i * kLanes + lane;
            const uint2 at = dimensions(op, pair);
            if (2 * pair < op.key_dim) {
                const float a = head.pairs[i].x * root * head.gains[i].x;
                const float b = head.pairs[i].y * root * head.gains[i].y;
                to[at.x] = a * head.turns[i].x - b * head.turns[i].y;
                to[at.y] = a * head.turns[i].y + b * head.turns[i].x;
            }
        }
    }
    __syncwarp();
}

// Rounds a warp's floats to what the cache holds, and stores them there if `append`: eight
// neighbours together, `stride` f16 behind the eight before. floats: shared
DEVICE void store_halves(float* floats, u32 count, u16* cache, u32 stride, bool append) {
    const u32 lane = threadIdx.x % kLanes;
#pragma unroll 1
    for (u32 i = lane; i < count; i += kLanes) {
        const u32 bits = float_to_half(floats[i]);
        floats[i] = half_to_float(bits);
        if (append) {
            cache[i / 8 * stride + i % 8] = static_cast<u16>(bits);
        }
    }
}

// Adds to the scores of a lane's token, for up to kHeadsInRegisters heads, 8 dimensions of its key.
DEVICE void add_scores(uint4 key, const float* queries, u32 key_dim, u32 heads,
                       float (&scores)[kHeadsInRegisters]) {
    const u32 words[4] = {key.x, key.y, key.z, key.w};
    float k[8];
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
        k[2 * j] = half_to_float(words[j]);
        k[2 * j + 1] = half_to_float_high(words[j]);
    }
#pragma unroll
    for (u32 h = 0; h < kHeadsInRegisters; ++h) {
        if (h < heads) {
            const float4* q = reinterpret_cast<const float4*>(queries + h * key_dim);
            const float4 low = q[0], high = q[1];
            float sum = scores[h];
            sum = fmaf(k[0], low.x, sum);
            sum = fmaf(k[1], low.y, sum);
            sum = fmaf(k[2], low.z, sum);
            sum = fmaf(k[3], low.w, sum);
            sum = fmaf(k[4], high.x, sum);
            sum = fmaf(k[5], high.y, sum);
            sum = fmaf(k[6], high.z, sum);
            scores[h] = fmaf(k[7], high.w, sum);
        }
    }
}

// Adds 8 dimensions of a token's value to the sums of up to kHeadsInRegisters heads.
// weights: of the token for the first head, the next heads' kChunkTokens further on
DEVICE void add_value(uint4 value, const float* weights, u32 heads,
                      float (&sums)[kHeadsInRegisters][8]) {
    const u32 words[4] = {value.x, value.y, value.z, value.w};
    float v[8];
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
        v[2 * j] = half_to_float(words[j]);
        v[2 * j + 1] = half_to_float_high(words[j]);
    }
#pragma unroll
    for (u32 h = 0; h < kHeadsInRegisters; ++h) {
        if (h < heads) {
            const float weight = weights[h * kChunkTokens];
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
                sums[h][j] = fmaf(weight, v[j], sums[h][j]);
            }
        }
    }
}

// A score as a power of 2.
DEVICE float score(const AttentionOp& op, float dot) {
    constexpr float kLog2E = 1.44269504f;
    float s = dot * op.scale;
    if (op.softcap != 0.0f) {
        s = soften(s, op.softcap);
    }
    return s * kLog2E;
}

// Turns the scores of one head into probabilities times a common factor, by one warp.
DEVICE void soften_head(const AttentionOp& op, const AttentionItem& item,
                        const AttentionMemory& memory, u32 head, bool with_own) {
    constexpr u32 kEach = kChunkTokens / kLanes;
    const u32 lane = threadIdx.x % kLanes;
    const u32 start = item.chunk * kChunkTokens + lane;
    const float infinity = as_float(0x7f800000);
    float* scores_of = memory.scores + head * kChunkTokens + lane;
    const float* others_of = memory.others + head * kChunkTokens + lane;
    float largest = -infinity;
#pragma unroll 2
    for (u32 i = 0; i < kEach; ++i) {
        const u32 token = start + i * kLanes;
        const float both = scores_of[i * kLanes] + others_of[i * kLanes];
        const bool seen = token >= item.first_token && token < item.position;
        const float s = seen ? score(op, both) : -infinity;
        scores_of[i * kLanes] = s;
        largest = fmaxf(largest, s);
    }
    // A chunk that is asked for has a token that is seen, so `largest` is a number.
    const float own = with_own ? score(op, memory.own[head]) : -infinity;
    largest = fmaxf(largest, own);
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
    }
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = 0; i < kEach; ++i) {
        const float p = exp2_approx(scores_of[i * kLanes] - largest);
        scores_of[i * kLanes] = p;
        sum += p;
    }
    const float p = exp2_approx(own - largest);
    sum = warp_sum(sum) + p;
    __syncwarp();  // all lanes have read what one of them writes
    if (lane == 0) {
        memory.own[head] = p;
        memory.maxima[head] = largest;
        memory.sums[head] = sum;
    }
}

// Values of a warp's half page: tokens are dealt to groups of lanes, of which each lane takes 8
// dimensions.
struct ValueLanes {
    u32 lanes;       // of a token
    u32 tokens;      // at once
    u32 token, dim;  // of this lane
    u32 loads;       // of a lane
    bool active;

    DEVICE_MEMBER ValueLanes of(u32 value_dim) {
        const u32 lane = threadIdx.x % kLanes;
        const u32 lanes = min(value_dim / 8, u32{kLanes}), tokens = kLanes / lanes;
        const u32 token = lane / lanes;
        return {lanes, tokens, token, (lane - token * lanes) * 8,
                (kPageTokens / 2 + tokens - 1) / tokens, token < tokens};
    }
};

// Adds up what the lanes of a warp have of the same dimensions, if a token takes a power of two of
// them; then those of the first token hold the sums.
DEVICE void sum_over_tokens(u32 lanes, float (&sums)[kHeadsInRegisters][8]) {
#pragma unroll 1
    for (u32 mask = lanes; mask < kLanes; mask *= 2) {
#pragma unroll
        for (u32 h = 0; h < kHeadsInRegisters; ++h) {
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                sums[h][i] += __shfl_xor_sync(kAllLanes, sums[h][i], mask);
            }
        }
    }
}

// A part of the work on a chunk: what is loaded, and where from.
struct AttentionLoads {
    const uint4* keys;    // of the lane's token, [..] kPageTokens apart
    const uint4* values;  // of the lane's first token and dimensions
    u32 key_loads, value_step;
    u32 tokens;  // of the warp's half page, before the row's own: what is behind may be anything
    bool any;    // the warp's page has a token that is seen, beside the row's own
};

// Where the keys and values of a warp lie: its page of the chunk, and which half of it.
DEVICE AttentionLoads find_loads(const Block& block, const AttentionOp& op,
                                 const AttentionItem& item, const ValueLanes& split) {
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const u32 half = warp / kChunkPages;
    const u32 start = item.chunk * kChunkTokens + warp % kChunkPages * kPageTokens;
    const u32 blocks8 = op.key_dim / 8, first8 = half == 0 ? 0 : (blocks8 + 1) / 2;
    const u32 of_half = start + half * (kPageTokens / 2);
    AttentionLoads loads = {
        nullptr, nullptr, half == 0 ? (blocks8 + 1) / 2 : blocks8 / 2,
        split.tokens * op.value_dim / 8,
        of_half < item.position ? min(item.position - of_half, u32{kPageTokens / 2}) : 0,
        start < item.position && start + kPageTokens > item.first_token};
    if (loads.any) {
        const u32* table = Block::at<u32>(block, block.shared->rows[item.row].pages);
        const u32 index = load_word_shared_by_blocks(table + start / kPageTokens);
        const u8* page = Block::at<u8>(block, op.cache) + u64{index} * op.page_places * 16;
        const uint4* places = reinterpret_cast<const uint4*>(page);
        loads.keys = places + (item.kv_head * blocks8 + first8) * kPageTokens + lane;
        const u32 token = item.kv_head * kPageTokens + half * (kPageTokens / 2) + split.token;
        loads.values = places + op.kv_heads * blocks8 * kPageTokens +
                       (token * op.value_dim + split.dim) / 8;
    }
    return loads;
}

// Sums of weights times values, unless the row's own, of up to kHeadsInRegisters heads: `width`
// dimensions from d0 on, into memory.outputs, one part for each warp and, where tokens do not take a
// power of two of lanes, for each token it has at once. Returns how many parts there are.
DEVICE u32 add_values(const AttentionMemory& memory, const AttentionLoads& loads,
                      const ValueLanes& split, u32 h0, u32 heads, u32 d0, u32 value_dim) {
    const u32 warp = threadIdx.x / kLanes, width = split.lanes * 8;
    const float* weights = memory.scores + h0 * kChunkTokens + warp % kChunkPages * kPageTokens +
                           warp / kChunkPages * (kPageTokens / 2) + split.token;
    const bool here = loads.any && split.active && d0 + split.dim < value_dim;
    const u32 tokens = here && loads.tokens > split.token ? loads.tokens - split.token : 0;
    float sums[kHeadsInRegisters][8] = {};
#pragma unroll 4
    for (u32 i = 0; i < split.loads; ++i) {
        if (i * split.tokens < tokens) {
            const uint4* from = loads.values + d0 / 8 + i * loads.value_step;
            add_value(load_words_shared_by_blocks_16(from), weights + i * split.tokens, heads, sums);
        }
    }
    const bool summed = (split.lanes & (split.lanes - 1)) == 0;
    if (summed) {
        sum_over_tokens(split.lanes, sums);
    }
    const u32 parts_of_warp = summed ? 1 : split.tokens;
    if (split.active && split.token < parts_of_warp) {
        float* out = memory.outputs + (warp * parts_of_warp + split.token) * heads * width + split.dim;
#pragma unroll
        for (u32 h = 0; h < kHeadsInRegisters; ++h) {
            if (h < heads) {
                float4* eight = reinterpret_cast<float4*>(out + h * width);
                eight[0] = {sums[h][0], sums[h][1], sums[h][2], sums[h][3]};
                eight[1] = {sums[h][4], sums[h][5], sums[h][6], sums[h][7]};
            }
        }
    }
    return kDecodeWarps * parts_of_warp;
}

// The results of all chunks of a row's KV head, put together by the block that finished last.
// partials: [chunks][group][value_dim + 4]; out: [group][value_dim]
DEVICE void join_chunks(const AttentionOp& op, u32 chunks, u32 group, const float* partials,
                        float* out) {
    const u32 partial = op.value_dim + 4;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < group * op.value_dim; i += kDecodeThreads) {
        const u32 head = i / op.value_dim, d = i - head * op.value_dim;
        const float* of_head = partials + head * partial;
        float largest = -as_float(0x7f800000), sum = 0.0f, total = 0.0f;
#pragma unroll 4
        for (u32 c = 0; c < chunks; ++c) {
            const float* from = of_head + c * (group * partial);
            const float here = load_shared_by_blocks(from + op.value_dim);
            const float part = load_shared_by_blocks(from + d);
            const float parts = load_shared_by_blocks(from + op.value_dim + 1);
            const float highest = fmaxf(largest, here);
            const float old = exp2_approx(largest - highest), factor = exp2_approx(here - highest);
            sum = fmaf(factor, part, sum * old);
            total = fmaf(factor, parts, total * old);
            largest = highest;
        }
        out[i] = sum * reciprocal_approx(total);
    }
}

// Counts a finished item of a row's KV head; true in the block that finished the last one.
DEVICE bool finished_last(const Block& block, const AttentionOp& op, const AttentionItem& item,
                          u32 items) {
    u32* last = reinterpret_cast<u32*>(block.shared->totals);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* arrivals =
            Block::at<u32>(block, op.arrivals) + (item.row * op.kv_heads + item.kv_head);
        *last = atomicAdd(arrivals, 1u) + 1 == items;
        if (*last) {
            atomicExch(arrivals, 0u);
        }
        __threadfence();
    }
    __syncthreads();
    return *last != 0;
}

DEVICE void attention(Block& block, const AttentionOp& op, bool resident) {
    Shared& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const auto memory = AttentionMemory::of(shared.pool, op);
    const auto split = ValueLanes::of(op.value_dim);
    const u32 group = op.heads / op.kv_heads, parts = (group + kHeadsAtOnce - 1) / kHeadsAtOnce;
    const u32 half = warp / kChunkPages, half8 = (op.key_dim / 8 + 1) / 2;

    bool awaited = false;
    AttentionItem item;
    u32 number = blockIdx.x;
#pragma unroll 1
    while (find_item(shared, op, group, parts, number, item)) {
        number += gridDim.x;
        // Tokens of earlier passes, angles and gains are there before this op's own input.
        const auto loads = find_loads(block, op, item, split);
        if (loads.any) {
#pragma unroll 1
            for (u32 i = 0; i < loads.key_loads; ++i) {
                prefetch_to_l2(loads.keys + i * kPageTokens);
            }
#pragma unroll 1
            for (u32 i = 0; split.active && i * split.tokens + split.token < loads.tokens; ++i) {
                prefetch_to_l2(loads.values + i * loads.value_step);
            }
        }
        // Warps of queries, one of the key, one of the value.
        const bool is_query = warp < item.heads, is_key = item.with_own && warp == kHeadsAtOnce;
        const bool is_value = item.with_own && warp == kHeadsAtOnce + 1;
        const Place gain = is_query ? op.q_gain : op.k_gain;
        Head head;
        if (is_query || is_key) {
            load_turns(block, op, item.row, gain, 0, head);
        }
        u16* own_page = nullptr;
        if (is_key || is_value) {
            const u32* table = Block::at<u32>(block, shared.rows[item.row].pages);
            const u32 index = load_word_shared_by_blocks(table + item.position / kPageTokens);
            own_page = Block::at<u16>(block, op.cache) + u64{index} * op.page_places * 8;
        }
        if (!awaited) {
            await(block, op.flags, resident);
            awaited = true;
        }

        if (is_query || is_key) {
            const u32 h = is_query ? item.first_head + warp : item.kv_head;
            const float* from = Block::at<float>(block, is_query ? op.q : op.k) +
                                u64{item.row} * (is_query ? op.q_stride : op.k_stride) +
                                h * op.key_dim;
            float* to = is_query ? memory.queries + warp * op.key_dim : memory.key;
            prepare_head(block, op, item.row, from, gain, head, to);
        }
        const u32 token = item.position % kPageTokens;
        if (is_key) {
            u16* at = own_page + item.kv_head * op.key_dim * kPageTokens + token * 8;
            store_halves(memory.key, op.key_dim, at, kPageTokens * 8, item.appends);
        }
        if (is_value) {
            const float* from = Block::at<float>(block, op.v) + u64{item.row} * op.v_stride +
                                item.kv_head * op.value_dim;
#pragma unroll 1
            for (u32 i = lane; i < op.value_dim; i += kLanes) {
                memory.value[i] = load_shared_by_blocks(from + i);
            }
            u16* at = own_page + op.kv_heads * op.key_dim * kPageTokens +
                      (item.kv_head * kPageTokens + token) * op.value_dim;
            store_halves(memory.value, op.value_dim, at, 8, item.appends);
        }
        __syncthreads();

#pragma unroll 1
        for (u32 h0 = 0; h0 < item.heads; h0 += kHeadsInRegisters) {
            const u32 heads = min(u32{kHeadsInRegisters}, item.heads - h0);
            const float* queries = memory.queries + h0 * op.key_dim + half * half8 * 8;
            float scores[kHeadsInRegisters] = {};
#pragma unroll 4
            for (u32 i = 0; i < loads.key_loads; ++i) {
                const uint4 key =
                    loads.any ? load_words_shared_by_blocks_16(loads.keys + i * kPageTokens)
                              : uint4{0, 0, 0, 0};
                add_scores(key, queries + 8 * i, op.key_dim, heads, scores);
            }
            float* out = (half == 0 ? memory.scores : memory.others) + h0 * kChunkTokens +
                         warp % kChunkPages * kPageTokens + lane;
#pragma unroll
            for (u32 h = 0; h < kHeadsInRegisters; ++h) {
                if (h < heads) {
                    out[h * kChunkTokens] = scores[h];
                }
            }
        }
        if (item.with_own && warp < item.heads) {
            float dot = 0.0f;
#pragma unroll 1
            for (u32 i = lane; i < op.key_dim; i += kLanes) {
                dot = fmaf(memory.queries[warp * op.key_dim + i], memory.key[i], dot);
            }
            dot = warp_sum(dot);
            if (lane == 0) {
                memory.own[warp] = dot;
            }
        }
        __syncthreads();
        if (warp < item.heads) {
            soften_head(op, item, memory, warp, item.with_own);
        }
        __syncthreads();

        const bool whole = item.chunks == 1;
        const u32 partial = op.value_dim + 4, width = split.lanes * 8;
        float* partials =
            Block::at<float>(block, op.partials) +
            (u64{item.row} * op.kv_heads + item.kv_head) * op.chunks * group * partial;
        float* out = Block::at<float>(block, op.out) + u64{item.row} * op.out_stride +
                     item.first_head * op.value_dim;
        float* mine = partials + (u64{item.chunk - item.first_chunk} * group + item.first_head -
                                  item.kv_head * group) * partial;
        const bool summed = (split.lanes & (split.lanes - 1)) == 0;
        const u32 at_once = summed && width <= 128 ? u32{kHeadsInRegisters} : 2;
#pragma unroll 1
        for (u32 h0 = 0; h0 < item.heads; h0 += at_once) {
            const u32 heads = min(at_once, item.heads - h0);
#pragma unroll 1
            for (u32 d0 = 0; d0 < op.value_dim; d0 += width) {
                const u32 count =
                    add_values(memory, loads, split, h0, heads, d0, op.value_dim);
                __syncthreads();
#pragma unroll 1
                for (u32 i = threadIdx.x; i < heads * width; i += kDecodeThreads) {
                    const u32 h = i >= 3 * width ? 3 : i >= 2 * width ? 2 : i >= width ? 1 : 0;
                    const u32 d = d0 + i - h * width;
                    float sum = 0.0f;
#pragma unroll 8
                    for (u32 part = 0; part < count; ++part) {
                        sum += memory.outputs[part * heads * width + i];
                    }
                    if (d < op.value_dim) {
                        if (item.with_own) {
                            sum = fmaf(memory.own[h0 + h], memory.value[d], sum);
                        }
                        if (whole) {
                            const float share = reciprocal_approx(memory.sums[h0 + h]);
                            out[(h0 + h) * op.value_dim + d] = sum * share;
                        } else {
                            mine[(h0 + h) * partial + d] = sum;
                        }
                    }
                }
                __syncthreads();
            }
        }
        if (!whole) {
            if (threadIdx.x < item.heads) {
                mine[threadIdx.x * partial + op.value_dim] = memory.maxima[threadIdx.x];
                mine[threadIdx.x * partial + op.value_dim + 1] = memory.sums[threadIdx.x];
            }
            if (finished_last(block, op, item, item.chunks * parts)) {
                join_chunks(op, item.chunks, group, partials,
                            Block::at<float>(block, op.out) + u64{item.row} * op.out_stride +
                                u64{item.kv_head} * group * op.value_dim);
            }
            __syncthreads();
        }
    }
    if (!awaited) {
        await(block, op.flags, resident);
    }
}
