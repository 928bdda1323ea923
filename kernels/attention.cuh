// Softmax attention of the rows of a pass over the KV cache (AttentionOp, ops.cuh).
//
// An item is some query heads of one KV head, of one row, over one chunk of its tokens; a block works
// on one at a time. A part is kPartTokens tokens of it, which one warp takes, one or two heads at a time:
// lane = token + 16 * half of the key's dimensions. A chunk that is at most half full has no more parts
// than half of the warps take: the other half then does the next heads. The part's first keys are on
// their way before what the op waits for is there; the row's own key and value replace what memory has in
// their place. Parts have their own maximum and sum, and meet at the end of each head or pair; so a head's
// result depends on its sequence alone, not on how heads are dealt to blocks.
#pragma once

#include "attention_head.cuh"
#include "attention_part.cuh"

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

// The results of all chunks of a row's KV head, put together by the block that finished last.
// partials: [chunks][group][value_dim + 4]; out: [group][value_dim]
// kAtOnce: chunks that a thread has on their way
template <u32 kAtOnce, class C, class Op>
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
        for (u32 first = 0; first < chunks; first += kAtOnce) {
            float here[kAtOnce], part[kAtOnce], parts[kAtOnce];
#pragma unroll
            for (u32 c = 0; c < kAtOnce; ++c) {
                const float* from = of_head + (first + c) * (group * partial);
                here[c] = -infinity;
                part[c] = parts[c] = 0.0f;
                load_shared_by_blocks_if(first + c < chunks, from + op.value_dim, here[c]);
                load_shared_by_blocks_if(first + c < chunks, from + d, part[c]);
                load_shared_by_blocks_if(first + c < chunks, from + op.value_dim + 1, parts[c]);
            }
            float highest = largest;
#pragma unroll
            for (u32 c = 0; c < kAtOnce; ++c) {
                highest = fmaxf(highest, here[c]);
            }
            const float old = exp2_approx(largest - highest);
            sum *= old;
            total *= old;
#pragma unroll
            for (u32 c = 0; c < kAtOnce; ++c) {
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
// slot, parts: where they lie, and how many; first: of the threads that do it;
// out: [value_dim], or [value_dim + 4] of a row of several chunks
template <class C, class Kv, class Op>
DEVICE void join_parts(const Block<C>& block, const Op& op, const AttentionMemory<Kv>& memory,
                       u32 slot, u32 parts, u32 head, u32 d0, u32 first, float* out, bool whole) {
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

template <class C, class Kv, u32 kHeads, class Op>
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
        const bool is_short = kHeads > 1 && item.with_own && item.heads > kHeads &&
                              item.position % kChunkTokens < kChunkTokens / 2;
        const u32 sides = is_short ? 2 : 1, slots = kParts / sides;  // side by side, and parts of each
        // Tokens of earlier passes, angles and gains are there before this op's own input.
        Part<Kv, Op> parts[kPartsOfWarp];
#pragma unroll
        for (u32 p = 0; p < kPartsOfWarp; ++p) {
            Part<Kv, Op>::find(block, op, item, split, (warp + p * C::kWarps) % slots, parts[p]);
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
        for (u32 first_head = 0; first_head < item.heads; first_head += kHeads * sides) {
            float probability[kPartsOfWarp][kHeads];
#pragma unroll 1
            for (u32 d0 = 0; d0 < op.value_dim; d0 += kOutputFloats) {
#pragma unroll
                for (u32 p = 0; p < kPartsOfWarp; ++p) {
                    const u32 slot = warp + p * C::kWarps;
                    u32 places[kHeads], heads[kHeads];
#pragma unroll
                    for (u32 h = 0; h < kHeads; ++h) {
                        // Of an odd number of heads the last one is its own partner.
                        const u32 head = first_head + h + (slot >= slots ? kHeads : 0);
                        heads[h] = min(head, item.heads - 1);
                        places[h] = (turn + h) * kParts + slot;
                    }
                    if (slot < kParts) {
                        attend<C, Kv, kHeads>(op, item, memory, split, parts[p], places, heads, d0,
                                              probability[p]);
                    }
                }
                __syncthreads();
                // Each head by other threads; of single heads the others go on to the next one meanwhile.
#pragma unroll 1
                for (u32 h = 0; h < kHeads * sides && first_head + h < item.heads; ++h) {
                    const u32 head = item.first_head + first_head + h;
                    const u32 of_group = head - item.kv_head * group;
                    float* to = whole
                                    ? at<float>(block, op.out) + u64{item.row} * op.out_stride +
                                          head * op.value_dim
                                    : at<float>(block, op.partials) + of_row +
                                          ((item.chunk - item.first_chunk) * group + of_group) * partial;
                    join_parts<C>(block, op, memory, (turn + h % kHeads) * kParts + h / kHeads * slots,
                                  slots, head, d0, (first_head + h) * kOutputFloats % C::kThreads, to,
                                  whole);
                }
                if (kHeads > 1 || op.value_dim > kOutputFloats) {
                    // Maxima of these heads are of use to their next dimensions.
                    __syncthreads();
                }
            }
            turn ^= kHeads == 1 ? 1 : 0;
        }
        if (!whole) {
            if (finished_last(block, op, item, item.chunks * cut.parts)) {
                join_chunks<8 * kHeads + 1>(block, op, item.chunks, item.kv_head, group,
                                            at<float>(block, op.partials) + of_row,
                                            at<float>(block, op.out) +
                                                u64{item.row} * op.out_stride +
                                                u64{item.kv_head} * group * op.value_dim);
            }
        }
    }
    if (!awaited) {
        await(block, op.flags, resident);
    }
}
