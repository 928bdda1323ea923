// What attention of a decode pass is dealt out in (attention.cuh): items, the shared memory that a block has
// for one, and how query heads are dealt to them.
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
    // Query heads of an item, at most, and those that a warp attends with at a time.
    kHeadsAtOnce = 8,
    kPair = 2,
    // Chunks of the contexts up to which it is to be of use.
    kPairingChunks = 16,
    // Pairs of dimensions that a lane rotates, two at a time, and values that it takes.
    kPairsOfLane = 2,
    kValuesAtOnce = 4,
};

// Whether warps attend with two heads at a time, which share what making floats of keys and values costs: where
// items have several heads, that is where there are items for more than half of the blocks. Results are the
// same. Passes of many rows, and small heads, have no registers for it; and where KV heads are few it would
// take so long a context that the code is only a burden to the rest.
template <class C, class Op>
DEVICE constexpr bool may_pair() {
    if constexpr (Op::kKnown) {
        return C::kBatch <= 2 && Op::key_dim > 64 && 2 * kPairingChunks * Op::kv_heads > kBlocks;
    } else {
        return C::kBatch <= 2;
    }
}

template <class C, class Op>
DEVICE bool pairs_heads(const Shared<C>& shared, const Op& op) {
    const u32 position = shared.rows[0].position;
    const u32 seen = op.window == 0 ? position : min(op.window, position);
    const u32 items = rows_of(shared) * op.kv_heads * (seen / kChunkTokens + 1);
    return op.heads > op.kv_heads && 2 * items > grid_blocks();
}

// How shared memory is used: `pool` of the block, in floats.
template <class Kv>
struct AttentionMemory {
    float* queries;               // [heads of the item][key_dim], grown if keys are fields
    float* query_sums;            // [heads of the item], not grown; where they are
    typename Kv::Element* key;    // [key_dim] of the row
    typename Kv::Element* value;  // [value_dim] of the row
    float* scales;                // of key and value of the row, if they have any
    float* outputs;  // [kPair][kParts][up to kOutputFloats], of a pair or in turns; before, key and value
                     // unrounded
    float* maxima;   // [kPair][kParts]
    float* sums;     // [kPair][kParts]

    template <class Op>
    DEVICE_MEMBER AttentionMemory of(float* start, const Op& op) {
        AttentionMemory memory;
        memory.maxima = start;
        memory.sums = memory.maxima + kPair * kParts;
        memory.outputs = memory.sums + kPair * kParts;
        const u32 floats = kPair * kParts * min(op.value_dim, u32{kOutputFloats});
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
