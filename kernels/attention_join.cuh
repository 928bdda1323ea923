// How attention's results come together (attention.cuh): parts of a chunk in the block that has it, chunks of a
// row across blocks.
//
// Chunks are put together in one of two ways, which compute the same bits. Where blocks are resident together,
// and look at marks, each of them puts together some dimensions of a head: what it needs of the chunks
// comes with stamps, so nobody waits for a fence or counts who is last. Else the block that is last with its chunk of
// a KV head does all of it.
#pragma once

#include "attention_item.cuh"

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

// A dimension of a head's result, where others read it. total: with_sink
template <class C, class Op>
DEVICE void store_result(const Block<C>& block, const Op& op, u32 row, u32 head, u32 d, float sum,
                         float total) {
    float* out = at<float>(block, op.out) + u64{row} * op.out_stride + head * op.value_dim + d;
    store_openly(out, marked(sum * reciprocal_approx(total), op.flags));
}

// Whether chunks of a row go to all blocks.
template <class C, class Op>
DEVICE bool arrives(const Op& op, u32 chunks, bool resident) {
    return C::kReadsMarks && op.arriving != kNowhere && resident && chunks > 1 &&
           chunks <= kArrivingChunks;
}

// In no two ops the same, until the barrier's counter wraps around; and 0, which memory begins with, in none
// before.
template <class C>
DEVICE u32 stamp_of(const Block<C>& block) {
    return block.grid.target + 1;
}

// What others have of a chunk of a head: [value_dim + 2] numbers with stamps, the last two its maximum and its
// sum of weights.
template <class C, class Op>
DEVICE u64* arriving_chunk(const Block<C>& block, const Op& op, u32 row, u32 head, u32 chunk) {
    const u64 of_head = u64{row} * op.heads + head;
    return at<u64>(block, op.arriving) +
           (of_head * min(op.chunks, u32{kArrivingChunks}) + chunk) * (op.value_dim + 2);
}

// The same for the block that is last: [chunks][group][value_dim + 4] of a row's KV head.
template <class C, class Op>
DEVICE float* partial_chunks(const Block<C>& block, const Op& op, u32 row, u32 kv_head) {
    const u64 of_row = u64{row} * op.kv_heads + kv_head;
    return at<float>(block, op.partials) +
           of_row * op.chunks * (op.heads / op.kv_heads) * (op.value_dim + 4);
}

// Where a chunk's results go.
enum Results : u32 {
    kWhole,     // there is no other chunk
    kArriving,  // to all blocks
    kPartial,   // to the block that is last
};

// A dimension of what a chunk has made of a head, relative to 2^largest; with the first one, `total`.
template <class C, class Op>
DEVICE void store_of_chunk(const Block<C>& block, const Op& op, const AttentionItem& item, u32 head,
                           Results results, u32 d, float sum, float largest, float total) {
    const u32 group = op.heads / op.kv_heads, chunk = item.chunk - item.first_chunk;
    if (results == kWhole) {
        store_result(block, op, item.row, head, d, sum, with_sink(block, op, head, largest, total));
    } else if (results == kArriving) {
        u64* to = arriving_chunk(block, op, item.row, head, chunk);
        const u32 stamp = stamp_of(block);
        store_stamped(to + d, sum, stamp);
        if (d == 0) {
            store_stamped(to + op.value_dim, largest, stamp);
            store_stamped(to + op.value_dim + 1, total, stamp);
        }
    } else {
        const u32 of_group = head - item.kv_head * group;
        float* to = partial_chunks(block, op, item.row, item.kv_head) +
                    (chunk * group + of_group) * (op.value_dim + 4);
        to[d] = sum;
        if (d == 0) {
            to[op.value_dim] = largest;
            to[op.value_dim + 1] = total;
        }
    }
}

// Parts of one head put together: dimensions d0.. of what the item makes of it.
// slot, parts: where they lie, and how many; first: of the threads that do it; head: of the model
template <class C, class Kv, class Op>
DEVICE void join_parts(const Block<C>& block, const Op& op, const AttentionItem& item,
                       const AttentionMemory<Kv>& memory, u32 slot, u32 parts, u32 head, u32 d0,
                       u32 first, Results results) {
    const u32 width = min(op.value_dim, u32{kOutputFloats});
    const float* maxima = memory.maxima + slot;
    const float* sums = memory.sums + slot;
#pragma unroll 1
    for (u32 d = (threadIdx.x + C::kThreads - first) % C::kThreads;
         d < width && d0 + d < op.value_dim; d += C::kThreads) {
        const float infinity = as_float(0x7f800000);
        float factors[kParts], largest = -infinity;
#pragma unroll
        for (u32 p = 0; p < kParts; p += 4) {
            const float4 none = {-infinity, -infinity, -infinity, -infinity};
            const float4 four = p < parts ? *reinterpret_cast<const float4*>(maxima + p) : none;
            factors[p] = four.x, factors[p + 1] = four.y;
            factors[p + 2] = four.z, factors[p + 3] = four.w;
            largest = fmaxf(largest, fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)));
        }
        float dots[4] = {}, totals[4] = {};
        const float* outputs = memory.outputs + slot * width + d;
#pragma unroll
        for (u32 p = 0; p < kParts; p += 4) {
            if (p >= parts) {
                break;
            }
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
        store_of_chunk(block, op, item, head, results, d0 + d, sum, largest, total);
    }
}

// What puts chunks together, in their order: relative to the largest of all their maxima.
struct Joined {
    float largest, sum, total;

    DEVICE_MEMBER void add(Joined& joined, float maximum, float sum, float total) {
        const float factor = exp2_approx(maximum - joined.largest);
        joined.sum = fmaf(factor, sum, joined.sum);
        joined.total = fmaf(factor, total, joined.total);
    }
};

// The results of all chunks of a row's KV head, put together by the block that finished last. A call, as most
// launches do without, and it would cost the items registers.
template <class C, class Op>
DEVICE_CALLED void join_chunks(Block<C> block, const Op* words, AttentionItem item) {
    constexpr u32 kAtOnce = C::kBatch <= 2 ? 8 : 20;  // chunks that a thread has on their way
    assume_shared(words);
    const Op& op = *words;
    const u32 group = op.heads / op.kv_heads, partial = op.value_dim + 4;
    const float* partials = partial_chunks(block, op, item.row, item.kv_head);
    const float infinity = as_float(0x7f800000);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < group * op.value_dim; i += C::kThreads) {
        const u32 of_group = i / op.value_dim, d = i - of_group * op.value_dim;
        const float* of_head = partials + of_group * partial;
        Joined joined = {-infinity, 0.0f, 0.0f};
#pragma unroll 1
        for (u32 first = 0; first < item.chunks; first += kAtOnce) {
            float maxima[kAtOnce];
#pragma unroll
            for (u32 c = 0; c < kAtOnce; ++c) {
                const float* from = of_head + (first + c) * (group * partial);
                maxima[c] = -infinity;
                load_shared_by_blocks_if(first + c < item.chunks, from + op.value_dim, maxima[c]);
            }
#pragma unroll
            for (u32 c = 0; c < kAtOnce; ++c) {
                joined.largest = fmaxf(joined.largest, maxima[c]);
            }
        }
#pragma unroll 1
        for (u32 first = 0; first < item.chunks; first += kAtOnce) {
            float maxima[kAtOnce], sums[kAtOnce], totals[kAtOnce];
#pragma unroll
            for (u32 c = 0; c < kAtOnce; ++c) {
                const float* from = of_head + (first + c) * (group * partial);
                const bool there = first + c < item.chunks;
                maxima[c] = -infinity;
                sums[c] = totals[c] = 0.0f;
                load_shared_by_blocks_if(there, from + op.value_dim, maxima[c]);
                load_shared_by_blocks_if(there, from + d, sums[c]);
                load_shared_by_blocks_if(there, from + op.value_dim + 1, totals[c]);
            }
#pragma unroll
            for (u32 c = 0; c < kAtOnce; ++c) {
                Joined::add(joined, maxima[c], sums[c], totals[c]);
            }
        }
        const u32 head = item.kv_head * group + of_group;
        store_result(block, op, item.row, head, d, joined.sum,
                     with_sink(block, op, head, joined.largest, joined.total));
    }
}

// Counts a finished item of a row's KV head; true in the block that finished the last one.
template <class C, class Op>
DEVICE bool finished_last(const Block<C>& block, const Op& op, const AttentionItem& item, u32 items) {
    u32* arrivals = at<u32>(block, op.arrivals) + (item.row * op.kv_heads + item.kv_head);
    return arrived_last(block, arrivals, items);
}

// The block's share of all heads' dimensions, each of all chunks, put together as they arrive.
template <class C, class Op>
DEVICE void join_arriving(const Block<C>& block, const Op& op) {
    constexpr u32 kAtOnce = 2;  // chunks that a warp waits for together
    Shared<C>& shared = *block.shared;
    const u32 warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, stamp = stamp_of(block);
    float* sums = shared.pool;                       // [chunks][kLanes]
    float* ends = sums + kArrivingChunks * kLanes;   // [chunks] {maximum, total}
    const u32 slices = (op.value_dim + kLanes - 1) / kLanes, of_row = op.heads * slices;
#pragma unroll 1
    for (u32 share = blockIdx.x; share < of_row * rows_of(shared); share += grid_blocks()) {
        const u32 row = share / of_row, head = share % of_row / slices;
        const u32 d = share % slices * kLanes + lane, chunks = Span::of(shared, op, row).chunks;
        if (!arrives<C>(op, chunks, true)) {
            continue;
        }
        // What the block had there before has been read.
        __syncthreads();
#pragma unroll 1
        for (u32 first = warp; first < chunks; first += kAtOnce * C::kWarps) {
            u64 sum[kAtOnce], end[kAtOnce];
            load_marked(shared, [&] {
                bool old = false;
#pragma unroll
                for (u32 i = 0; i < kAtOnce; ++i) {
                    const u32 chunk = first + i * C::kWarps;
                    if (chunk < chunks) {
                        const u64* from = arriving_chunk(block, op, row, head, chunk);
                        end[i] = load_stamped(from + op.value_dim + lane % 2);
                        sum[i] = d < op.value_dim ? load_stamped(from + d) : end[i];
                        old |= sum[i] >> 32 != stamp || end[i] >> 32 != stamp;
                    }
                }
                return old;
            });
#pragma unroll
            for (u32 i = 0; i < kAtOnce; ++i) {
                const u32 chunk = first + i * C::kWarps;
                if (chunk < chunks) {
                    sums[chunk * kLanes + lane] = as_float(static_cast<u32>(sum[i]));
                    if (lane < 2) {
                        ends[2 * chunk + lane] = as_float(static_cast<u32>(end[i]));
                    }
                }
            }
        }
        __syncthreads();
        if (warp == 0 && d < op.value_dim) {
            Joined joined = {-as_float(0x7f800000), 0.0f, 0.0f};
#pragma unroll 4
            for (u32 chunk = 0; chunk < chunks; ++chunk) {
                joined.largest = fmaxf(joined.largest, ends[2 * chunk]);
            }
#pragma unroll 4
            for (u32 chunk = 0; chunk < chunks; ++chunk) {
                const float2 end = *reinterpret_cast<const float2*>(ends + 2 * chunk);
                Joined::add(joined, end.x, sums[chunk * kLanes + lane], end.y);
            }
            store_result(block, op, row, head, d, joined.sum,
                         with_sink(block, op, head, joined.largest, joined.total));
        }
    }
}
