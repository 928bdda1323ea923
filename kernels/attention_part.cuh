// A part of an item of attention (attention.cuh): 16 tokens of the cache that a warp takes, what is loaded of
// them, and what heads make of them.
#pragma once

#include "attention_item.cuh"

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

// Products of 8 loaded numbers with 8 others of each head, added to four sums.
// x: of the item's first head; starts: how much further on those of the heads are
template <class Kv, u32 kHeads>
DEVICE void dot_eight(const typename Kv::Eight& loaded, const float* x, const u32 (&starts)[kHeads],
                      float (&sums)[kHeads][4]) {
    float numbers[8];
    Kv::fields(loaded, numbers);
#pragma unroll
    for (u32 h = 0; h < kHeads; ++h) {
        const float4* eight = reinterpret_cast<const float4*>(x + starts[h]);
        const float4 low = eight[0], high = eight[1];
        sums[h][0] = fmaf(numbers[0], low.x, sums[h][0]);
        sums[h][1] = fmaf(numbers[1], low.y, sums[h][1]);
        sums[h][2] = fmaf(numbers[2], low.z, sums[h][2]);
        sums[h][3] = fmaf(numbers[3], low.w, sums[h][3]);
        sums[h][0] = fmaf(numbers[4], high.x, sums[h][0]);
        sums[h][1] = fmaf(numbers[5], high.y, sums[h][1]);
        sums[h][2] = fmaf(numbers[6], high.z, sums[h][2]);
        sums[h][3] = fmaf(numbers[7], high.w, sums[h][3]);
    }
}

// One or two of the item's heads over one part: their sums of values relative to their own maxima, into memory.
// Keys and values from the first ones on are loaded, and are again where there are more than those.
// slots: where in memory results of each head go
template <class C, class Kv, u32 kHeads, class Op>
DEVICE void attend(const Op& op, const AttentionItem& item, const AttentionMemory<Kv>& memory,
                   const ValueLanes& split, Part<Kv, Op>& part, const u32 (&slots)[kHeads],
                   const u32 (&heads)[kHeads], u32 d0, float (&probability)[kHeads]) {
    typedef typename Kv::Eight Eight;
    const u32 lane = threadIdx.x % kLanes, token = lane % kPartTokens, half = lane / kPartTokens;
    const bool owns = item.with_own && part.first <= item.position &&
                      item.position < part.first + kPartTokens;
    const u32 own = item.position - part.first, width = min(op.value_dim, u32{kOutputFloats});
    if (!owns && !Part<Kv, Op>::seen(item, part)) {
        // Nothing, which must be a number to be multiplied with.
#pragma unroll
        for (u32 h = 0; h < kHeads; ++h) {
            float4* out = reinterpret_cast<float4*>(memory.outputs + slots[h] * width + split.dim);
            if (split.token == 0) {
                out[0] = out[1] = {0.0f, 0.0f, 0.0f, 0.0f};
            }
            if (lane == 0) {
                memory.maxima[slots[h]] = -as_float(0x7f800000);
                memory.sums[slots[h]] = 0.0f;
            }
        }
        return;
    }
    if (d0 == 0) {
        const u32 most = (op.key_dim / 8 + 1) / 2, count = Part<Kv, Op>::eighths(op);
        const u32 skipped = half * most;
        const Eight* own_key = reinterpret_cast<const Eight*>(memory.key) + skipped;
        const float* query = memory.queries + skipped * 8;
        u32 starts[kHeads];
#pragma unroll
        for (u32 h = 0; h < kHeads; ++h) {
            starts[h] = heads[h] * op.key_dim;
        }
        float dots[kHeads][4] = {};
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
                    dot_eight<Kv>(part.key[i], query + 8 * (first + i), starts, dots);
                }
            }
        }
        if constexpr (Kv::kScaled) {
            if (owns && token == own) {
                part.key_scale = memory.scales[0];
                part.value_scale = memory.scales[1];
            }
        }
        const u32 here = part.first + token;
        const float infinity = as_float(0x7f800000);
        float largest[kHeads], sum[kHeads];
#pragma unroll
        for (u32 h = 0; h < kHeads; ++h) {
            float dot = dots[h][0] + dots[h][1] + (dots[h][2] + dots[h][3]);
            dot += __shfl_xor_sync(kAllLanes, dot, kPartTokens);
            if constexpr (Kv::kScaled) {
                dot = fmaf(dot, Kv::kShrinkage, -Kv::kZero * memory.query_sums[heads[h]]) *
                      part.key_scale;
            }
            const float s =
                here >= item.first_token && here <= item.position ? score(op, dot) : -infinity;
            largest[h] = probability[h] = s;
        }
#pragma unroll
        for (u32 mask = kPartTokens / 2; mask > 0; mask /= 2) {
#pragma unroll
            for (u32 h = 0; h < kHeads; ++h) {
                largest[h] = fmaxf(largest[h], __shfl_xor_sync(kAllLanes, largest[h], mask));
            }
        }
#pragma unroll
        for (u32 h = 0; h < kHeads; ++h) {
            const float s = probability[h];
            sum[h] = probability[h] = s == -infinity ? 0.0f : exp2_approx(s - largest[h]);
        }
#pragma unroll
        for (u32 mask = kPartTokens / 2; mask > 0; mask /= 2) {
#pragma unroll
            for (u32 h = 0; h < kHeads; ++h) {
                sum[h] += __shfl_xor_sync(kAllLanes, sum[h], mask);
            }
        }
        if (lane == 0) {
#pragma unroll
            for (u32 h = 0; h < kHeads; ++h) {
                memory.maxima[slots[h]] = largest[h];
                memory.sums[slots[h]] = sum[h];
            }
        }
    }
    float weighs[kHeads];
#pragma unroll
    for (u32 h = 0; h < kHeads; ++h) {
        weighs[h] = probability[h];
        if constexpr (Kv::kScaled) {
            weighs[h] *= part.value_scale * Kv::kGrowth;
        }
    }
    float sums[kHeads][8] = {}, weight_sum[kHeads] = {};
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
                float numbers[8];
                Kv::fields(part.value[i], numbers);
#pragma unroll
                for (u32 h = 0; h < kHeads; ++h) {
                    const float weight = __shfl_sync(kAllLanes, weighs[h], of_value % kPartTokens);
                    const float used = of_value < kPartTokens ? weight : 0.0f;
#pragma unroll
                    for (u32 n = 0; n < 8; ++n) {
                        sums[h][n] = fmaf(used, numbers[n], sums[h][n]);
                    }
                    if constexpr (Kv::kScaled) {
                        weight_sum[h] += used;
                    }
                }
            }
        }
    }
#pragma unroll
    for (u32 h = 0; h < kHeads; ++h) {
        if constexpr (Kv::kScaled) {
            const float zeros = weight_sum[h] * (-Kv::kZero / Kv::kGrowth);
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                sums[h][i] = fmaf(sums[h][i], Kv::kShrinkage, zeros);
            }
        }
        // Lanes of other tokens to those of the first one.
        if ((split.lanes & (split.lanes - 1)) == 0) {
#pragma unroll
            for (u32 mask = 1; mask < kLanes; mask *= 2) {
                if (mask >= split.lanes && mask < split.lanes * split.tokens) {
#pragma unroll
                    for (u32 i = 0; i < 8; ++i) {
                        sums[h][i] += __shfl_xor_sync(kAllLanes, sums[h][i], mask);
                    }
                }
            }
        } else {
#pragma unroll 1
            for (u32 other = 1; other < split.tokens; ++other) {
#pragma unroll
                for (u32 i = 0; i < 8; ++i) {
                    const float given =
                        __shfl_sync(kAllLanes, sums[h][i], (lane + other * split.lanes) % kLanes);
                    sums[h][i] += split.token == 0 ? given : 0.0f;
                }
            }
        }
        if (split.token == 0) {
            float4* out = reinterpret_cast<float4*>(memory.outputs + slots[h] * width + split.dim);
            out[0] = {sums[h][0], sums[h][1], sums[h][2], sums[h][3]};
            out[1] = {sums[h][4], sums[h][5], sums[h][6], sums[h][7]};
        }
    }
}
