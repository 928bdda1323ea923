// The next token of a row, chosen by one block: the steps of crates/sched/src/sampler, and nothing
// sorted.
//
// What top-k, top-p and min-p keep is always a beginning of the tokens in order of likelihood:
// larger logits first, equal ones (zeros of both signs too) by ascending id. So what is left is
// told by one token, the last one kept. To find it, a bar is guessed that few tokens are above,
// those are listed in shared memory, and each of them counts what is before it; where too many are
// above, the range of logits in which the cut must be is halved until what is in it can be listed.
//
// Weights e^(logit - largest) are summed as integers, units of 2^-44: no order of adding gives
// another sum, so a choice depends on logits, choice and position only, not on threads, rows or the
// grid. Smaller weights are 0. Up to 2^19 of them can be summed.
#pragma once

#include "choice.cuh"

// Tokens that can be listed, and pieces that a row is cut into to find a drawn token.
enum : u32 { kSampleListed = 480, kSampleChunks = 256 };

// What the threads of the block share.
struct alignas(16) SampleScratch {
    Choice choice;
    u64 partials[32];
    // In no order. Once tokens are listed, pick() is also given other things with an id and a mass.
    u64 mass[kSampleListed];
    float logit[kSampleListed];
    u32 id[kSampleListed];
    u32 listed;      // tokens that should be in the list
    u32 cut_last;    // the last token kept, its logit, and the mass of all that are kept
    float cut_logit;
    u32 found;
    u64 cut_mass;
    u64 rest;        // of pick: the target less what is before the picked one
};
static_assert(sizeof(SampleScratch) <= 8192, "8 KB of a block's shared memory");

// --- Floats in order ---

// A constant as a function: as a variable it would be stored in the module.
DEVICE constexpr float sample_largest_float() { return 3.40282347e+38f; }

DEVICE float sample_minus_infinity() { return as_float(0xff800000u); }

// Ordered as the floats are, with one value for both zeros.
DEVICE int sample_order(float x) {
    const u32 bits = as_bits(x);
    return bits >> 31 ? -int(bits & 0x7fffffffu) : int(bits);
}
DEVICE float sample_from_order(int order) {
    return as_float(order < 0 ? 0x80000000u | u32(-order) : u32(order));
}
// Between two orders, above the lower one if they differ.
DEVICE int sample_middle(int low, int high) {
    return int(u32(low) + (u32(high) - u32(low)) / 2 + ((u32(high) - u32(low)) & 1));
}
// A float of the range low < x <= top (or low, where they are equal) near its middle.
DEVICE float sample_halve(float low, float top, bool by_order) {
    const float middle = 0.5f * low + 0.5f * top;
    if (middle > low && middle <= top && !by_order) {
        return middle;
    }
    return sample_from_order(sample_middle(sample_order(low), sample_order(top)));
}

// --- Weights ---

// e^x in units of 2^-44, for x <= 0 (a NaN counts as -inf, anything above 0 as 0). The steps of
// crates/sched/src/sampler/exp.rs, with fused multiplications.
DEVICE u64 sample_mass(float x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
    // fmaxf first: of a NaN it makes the other. e^-40 is below 2^-44.
    const float inside = fminf(fmaxf(x, -40.0f), 0.0f);
    const float shifted = fmaf(inside, 1.44269504f, kRound);
    const float n = shifted - kRound;
    float r = fmaf(-n, 0.693359375f, inside);
    r = fmaf(-n, -2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = fmaf(p, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    const u32 mantissa = as_bits(fmaf(p * r, r, r) + 1.0f);
    const u32 bits = mantissa + ((as_bits(shifted) - as_bits(kRound)) << 23);
    // At most 1.0, so the exponent is at most 127; 23 + 21 places make the unit 2^-44.
    return u64{(bits & 0x7fffffu) | 0x800000u} << 21 >> (127 - (bits >> 23));
}

// --- A block's sums ---

DEVICE u64 sample_shuffle_xor(u64 value, u32 mask) {
    const u32 low = __shfl_xor_sync(kAllLanes, u32(value), mask);
    const u32 high = __shfl_xor_sync(kAllLanes, u32(value >> 32), mask);
    return u64{high} << 32 | low;
}

template <bool kLargest>
DEVICE u64 sample_combine(u64 a, u64 b) {
    return !kLargest ? a + b : a > b ? a : b;
}

template <bool kLargest>
DEVICE u64 sample_reduce_warp(u64 value) {
#pragma unroll 1
    for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
        value = sample_combine<kLargest>(value, sample_shuffle_xor(value, mask));
    }
    return value;
}

// The sum, or the largest, of every thread's value, in every thread. Contains barriers.
template <bool kLargest>
DEVICE u64 sample_reduce(u64 value, u64* partials) {
    const u32 lane = threadIdx.x % kLanes;
    value = sample_reduce_warp<kLargest>(value);
    __syncthreads();
    if (lane == 0) {
        partials[threadIdx.x / kLanes] = value;
    }
    __syncthreads();
    value = partials[0];
#pragma unroll 1
    for (u32 warp = 1; warp < blockDim.x / kLanes; ++warp) {
        value = sample_combine<kLargest>(value, partials[warp]);
    }
    return value;
}

// Larger for a larger value, and for a smaller id of equal ones; 0 for -inf and NaN.
DEVICE u64 sample_rank(float value, u32 id) {
    return value > sample_minus_infinity()
               ? u64{u32(sample_order(value)) ^ 0x80000000u} << 32 | ~id
               : 0;
}
DEVICE float sample_rank_value(u64 rank) {
    return sample_from_order(int(u32(rank >> 32) ^ 0x80000000u));
}

// --- Passes over the row ---

// logits[i..i + 4], -inf from `end` on.
DEVICE float4 sample_load(const float* logits, u32 i, u32 end) {
    if (i + 4 <= end) {
        return load_shared_by_blocks_16(logits + i);
    }
    const float none = sample_minus_infinity();
    float4 v = {none, none, none, none};
    if (i < end) {
        v.x = load_shared_by_blocks(logits + i);
    }
    if (i + 1 < end) {
        v.y = load_shared_by_blocks(logits + i + 1);
    }
    if (i + 2 < end) {
        v.z = load_shared_by_blocks(logits + i + 2);
    }
    return v;
}

// body(i, logits[i..i + 4]) for i = first, first + step.. below `end`, with loads two turns ahead.
template <class Body>
DEVICE void sample_each_four(const float* logits, u32 first, u32 step, u32 end, Body body) {
    float4 next = sample_load(logits, first, end);
    float4 after = sample_load(logits, first + step, end);
#pragma unroll 1
    for (u32 i = first; i < end; i += step) {
        const float4 now = next;
        next = after;
        after = sample_load(logits, i + 2 * step, end);
        body(i, now);
    }
}

DEVICE float sample_largest(float4 v) { return fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)); }

struct SampleRange {
    u64 mass;   // of tokens in the range
    u64 below;  // of tokens below it, if asked for
    u32 count;  // of tokens in the range
};

// What of the row is within low..=top, also listed if it fits. Masses are at temperature 1.
DEVICE SampleRange sample_scan(const float* logits, u32 vocab, float low, float top, float largest,
                               bool weigh_below, SampleScratch* scratch) {
    __syncthreads();
    if (threadIdx.x == 0) {
        scratch->listed = 0;
    }
    __syncthreads();
    SampleRange range = {0, 0, 0};
    sample_each_four(logits, threadIdx.x * 4, blockDim.x * 4, vocab, [&](u32 i, float4 v) {
        if (!weigh_below && !(sample_largest(v) >= low)) {
            return;
        }
#pragma unroll 1
        for (u32 end = i + 4; i < end; ++i) {
            const float x = v.x;
            v = {v.y, v.z, v.w, x};
            const bool within = x >= low && x <= top;
            if (!within && !weigh_below) {
                continue;
            }
            const u64 mass = sample_mass(x - largest);
            if (!within) {
                range.below += mass;
                continue;
            }
            range.mass += mass;
            ++range.count;
            // Once it is full nobody queues for it.
            if (*static_cast<volatile u32*>(&scratch->listed) < kSampleListed) {
                const u32 place = atomicAdd(&scratch->listed, 1u);
                if (place < kSampleListed) {
                    scratch->logit[place] = x;
                    scratch->id[place] = i;
                    scratch->mass[place] = mass;
                }
            }
        }
    });
    range.count = u32(sample_reduce<false>(range.count, scratch->partials));
    range.mass = sample_reduce<false>(range.mass, scratch->partials);
    if (weigh_below) {
        range.below = sample_reduce<false>(range.below, scratch->partials);
    }
    return range;
}

// --- In the list ---

// Of `count` entries in ascending id, the first with which the running mass exceeds `target`: its
// index, and in scratch->rest the target less what is before it. The total must exceed it. Contains
// barriers.
DEVICE u32 sample_pick(u32 count, u64 target, SampleScratch* scratch) {
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const u32 id = scratch->id[i];
        u64 before = 0;
#pragma unroll 1
        for (u32 j = 0; j < count; ++j) {
            before += scratch->id[j] < id ? scratch->mass[j] : 0;
        }
        if (before <= target && target - before < scratch->mass[i]) {
            scratch->found = i;
            scratch->rest = target - before;
        }
    }
    __syncthreads();
    return scratch->found;
}

// Makes the cut behind the first `target` of the list, tokens or mass, in order of likelihood;
// `above` and `above_mass` are before the list. The target must be in the list. Contains barriers.
DEVICE void sample_cut(u32 count, bool by_mass, u64 target, u64 above, u64 above_mass,
                       SampleScratch* scratch) {
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const float logit = scratch->logit[i];
        const u32 id = scratch->id[i];
        u64 before = above_mass;
        u32 place = 0;
#pragma unroll 1
        for (u32 j = 0; j < count; ++j) {
            const float other = scratch->logit[j];
            if (other > logit || (other == logit && scratch->id[j] < id)) {
                before += scratch->mass[j];
                ++place;
            }
        }
        const u64 mass = scratch->mass[i];
        const u64 start = by_mass ? before : above + place;
        if (start < target && start + (by_mass ? mass : 1) >= target) {
            scratch->cut_logit = logit;
            scratch->cut_last = id;
            scratch->cut_mass = before + mass;
        }
    }
    __syncthreads();
}

// --- In the whole row ---

// Which tokens have a weight, and which.
struct SampleWeights {
    float low;      // the smallest logit that has one,
    u32 low_last;   // up to this id
    float top;      // the largest
    u64 each;       // the weight; 0: e^((logit - largest) * scale)
    float largest, scale;

    DEVICE_MEMBER u64 of(const SampleWeights& w, float x, u32 id) {
        if ((x > w.low || (x == w.low && id <= w.low_last)) && x <= w.top) {
            return w.each != 0 ? w.each : sample_mass((x - w.largest) * w.scale);
        }
        return 0;
    }
};

// The first token, by ascending id, with which the running weight exceeds `target`, or, of a draw,
// target / 2^64 of the total. Its weight goes to `weight`, the total to `total`; if that is 0,
// there is no such token. Contains barriers.
DEVICE u32 sample_locate(const float* logits, u32 vocab, const SampleWeights& weights, bool draw,
                         u64 target, u64& weight, u64& total, SampleScratch* scratch) {
    // A warp sums a chunk of consecutive tokens.
    const u32 lane = threadIdx.x % kLanes;
    const u32 chunk = ((vocab - 1) / kSampleChunks / 128 + 1) * 128;
    const u32 chunks = (vocab - 1) / chunk + 1;
    auto weight_of_four = [&](u32 i, float4 v) {
        u64 sum = 0;
        if (sample_largest(v) >= weights.low) {
#pragma unroll 1
            for (u32 end = i + 4; i < end; ++i) {
                const float x = v.x;
                v = {v.y, v.z, v.w, x};
                sum += SampleWeights::of(weights, x, i);
            }
        }
        return sum;
    };
    __syncthreads();
    u64 sum = 0;
#pragma unroll 1
    for (u32 c = threadIdx.x / kLanes; c < chunks; c += blockDim.x / kLanes) {
        const u32 first = c * chunk;
        u64 of_chunk = 0;
        sample_each_four(logits, first + lane * 4, kLanes * 4, min(first + chunk, vocab),
                         [&](u32 i, float4 v) { of_chunk += weight_of_four(i, v); });
        sum += of_chunk;
        of_chunk = sample_reduce_warp<false>(of_chunk);
        if (lane == 0) {
            scratch->id[c] = c;
            scratch->mass[c] = of_chunk;
        }
    }
    total = sample_reduce<false>(sum, scratch->partials);
    if (total == 0) {
        weight = 0;
        return 0;
    }
    // Then a thread sums four tokens of the chunk, then there are four left.
    const u64 wanted = draw ? multiply_high(target, total) : target;
    const u32 first = sample_pick(chunks, wanted, scratch) * chunk;
    const u64 rest = scratch->rest;
    __syncthreads();
    const u32 end = min(first + chunk, vocab), fours = (end - first + 3) / 4;
    for (u32 i = threadIdx.x; i < fours; i += blockDim.x) {
        scratch->id[i] = i;
        scratch->mass[i] = weight_of_four(first + i * 4, sample_load(logits, first + i * 4, end));
    }
    const u32 start = first + sample_pick(fours, rest, scratch) * 4;
    u64 left = scratch->rest;
    float4 v = sample_load(logits, start, end);
    u32 id = start;
    weight = 0;
#pragma unroll 1
    for (; id < start + 4; ++id) {
        const float x = v.x;
        v = {v.y, v.z, v.w, x};
        weight = SampleWeights::of(weights, x, id);
        if (weight > left) {
            break;
        }
        left -= weight;
    }
    return id;
}

// --- Choosing ---

// fraction / 2^64 of the total, rounded up; at least 1.
DEVICE u64 sample_part(u64 fraction, u64 total) {
    const u64 part = multiply_high(fraction, total) + (fraction * total != 0);
    return part != 0 ? part : 1;
}

// A guess of the logit that `count` tokens of the row reach: the count-th largest of the threads'
// largest ones. So many reach it at least, and few more where count is much below the number of
// threads. Contains barriers.
DEVICE float sample_bar(u32 count, float largest_of_thread, float largest) {
    const int mine = sample_order(largest_of_thread);
    int low = sample_order(-sample_largest_float()), high = sample_order(largest);
#pragma unroll 1
    while (low < high) {
        const int middle = sample_middle(low, high);
        if (__syncthreads_count(mine >= middle) >= count) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return sample_from_order(low);
}

// Logits between which a filter cuts, and what is before them.
struct SampleBracket {
    u64 target;      // of tokens or mass
    u64 total;       // mass of all that was there, if by mass
    u64 above;       // tokens with a logit above the bracket, and their mass
    u64 above_mass;
    float low, high;
    u32 count;       // of tokens in the bracket, also listed if they fit
    bool reached;    // otherwise there is less than the target
};

// The bracket of `target` tokens, or of a mass: the part top_p / 2^64 of `total`, where 0 stands
// for the mass of the whole row. Down from a guessed bar until the target is reached, then between
// what reaches it and what does not, until all of the bracket is listed or it is one logit.
// Contains barriers.
DEVICE SampleBracket sample_bracket(const float* logits, u32 vocab, bool by_mass, u64 top_p,
                                    u64 target, u64 total, float bar, float top, float largest,
                                    SampleScratch* scratch) {
    SampleBracket bracket;
    bracket.target = by_mass ? sample_part(top_p, total) : target;
    bracket.total = total;
    bracket.above = bracket.above_mass = 0;
    bracket.high = top;
    bracket.reached = false;
#pragma unroll 1
    for (u32 turn = 0;; ++turn) {
        bar = fmaxf(bar, -sample_largest_float());
        const bool weigh_below = by_mass && bracket.total == 0;
        const SampleRange range =
            sample_scan(logits, vocab, bar, bracket.high, largest, weigh_below, scratch);
        if (weigh_below) {
            bracket.total = range.mass + range.below;
            bracket.target = sample_part(top_p, bracket.total);
        }
        const u64 with_range =
            by_mass ? bracket.above_mass + range.mass : bracket.above + range.count;
        if (with_range >= bracket.target) {
            bracket.low = bar;
            bracket.count = range.count;
            bracket.reached = true;
            if (range.count <= kSampleListed || bar == bracket.high) {
                return bracket;
            }
        } else {
            bracket.above += range.count;
            bracket.above_mass += range.mass;
            if (bar == -sample_largest_float()) {
                bracket.count = range.count;
                return bracket;
            }
            bracket.high = sample_from_order(sample_order(bar) - 1);
        }
        bar = bracket.reached ? sample_halve(bracket.low, bracket.high, turn > 24)
              : turn < 6      ? largest - (2.0f * (largest - bar) + 1.0f)
                              : -sample_largest_float();
    }
}

// Draws from the listed tokens. part: of 2^64, the random number
DEVICE Chosen sample_draw_listed(u32 listed, const SampleWeights& weights, u64 part,
                                 SampleScratch* scratch) {
    __syncthreads();
    u64 sum = 0;
    for (u32 i = threadIdx.x; i < listed; i += blockDim.x) {
        const u64 weight = SampleWeights::of(weights, scratch->logit[i], scratch->id[i]);
        scratch->mass[i] = weight;
        sum += weight;
    }
    const u64 total = sample_reduce<false>(sum, scratch->partials);
    if (total == 0) {
        return {0, 0.0f};
    }
    const u32 i = sample_pick(listed, multiply_high(part, total), scratch);
    return {scratch->id[i], float(scratch->mass[i]) / float(total)};
}

// Top-k, top-p, then the draw with min-p and temperature, from a row with a usable logit.
// top: the largest logit; largest_of_thread: of those that this thread has looked at, -inf: none
DEVICE Chosen sample_draw(const float* logits, u32 vocab, const volatile Choice& choice, float top,
                          float largest_of_thread, SampleScratch* scratch) {
    const float largest = fminf(top, sample_largest_float());
    SampleWeights weights;
    weights.low = -sample_largest_float();
    weights.low_last = 0xffffffffu;
    weights.top = top;
    weights.each = 0;
    weights.largest = largest;
    weights.scale = choice.inverse_temperature;
    u32 listed = 0;  // tokens in the list, if all that are kept are in it
    u64 kept = 0;    // their mass, once something was cut
    // One loop, so that what goes through the whole row is in the code once.
#pragma unroll 1
    for (u32 step = 0;; ++step) {
        const bool by_mass = step == 1, draw = step == 2;
        const u64 top_p = choice.top_p;
        SampleWeights located = weights;
        u64 target = choice.top_k;
        if (draw) {
            const float bar = largest + choice.min_p_log;
            if (bar > weights.low) {
                located.low = bar;
                located.low_last = 0xffffffffu;
            }
            // 53 bits.
            target = sample_random(choice.seed, choice.position) & ~u64{0x7ff};
            if (listed > 0) {
                return sample_draw_listed(listed, located, target, scratch);
            }
        } else {
            if (by_mass ? top_p == sample_top_p_off() : target == 0 || target >= vocab) {
                continue;
            }
            SampleBracket bracket;
            if (listed > 0) {
                bracket.target = sample_part(top_p, kept);
                bracket.above = bracket.above_mass = 0;
                bracket.count = listed;
            } else {
                const float bar = by_mass ? largest - 6.0f
                                          : sample_bar(min(u32(target), blockDim.x),
                                                       largest_of_thread, largest);
                bracket = sample_bracket(logits, vocab, by_mass, top_p, target, kept, bar, top,
                                         largest, scratch);
                // The list has all that is kept if nothing is above it.
                listed = bracket.count <= kSampleListed && bracket.high == top ? bracket.count : 0;
                if (!bracket.reached) {
                    kept = bracket.above_mass;
                    continue;
                }
            }
            if (bracket.count <= kSampleListed) {
                sample_cut(bracket.count, by_mass, bracket.target, bracket.above,
                           bracket.above_mass, scratch);
                weights.low = scratch->cut_logit;
                weights.low_last = scratch->cut_last;
                kept = scratch->cut_mass;
                continue;
            }
            // Too many equal logits to be listed: of those, the first ones are kept.
            const u64 each = sample_mass(bracket.low - largest);
            const u64 missing = bracket.target - (by_mass ? bracket.above_mass : bracket.above);
            kept = bracket.above_mass + missing * each;
            target = missing - 1;
            located.low = located.top = bracket.low;
            located.low_last = 0xffffffffu;
            located.each = by_mass ? each : 1;
        }
        u64 weight, total;
        const u32 token =
            sample_locate(logits, vocab, located, draw, target, weight, total, scratch);
        if (draw) {
            return {token, total > 0 ? float(weight) / float(total) : 0.0f};
        }
        weights.low = located.low;
        weights.low_last = token;
    }
}

// The rank of the row's largest logit, 0 if none is usable, in every thread; the largest of those that
// this thread has looked at, -inf: none, goes to `mine`. Contains barriers.
DEVICE u64 sample_largest_rank(const float* logits, u32 vocab, float& mine,
                               SampleScratch* scratch) {
    mine = sample_minus_infinity();
    u32 mine_at = 0;
    sample_each_four(logits, threadIdx.x * 4, blockDim.x * 4, vocab, [&](u32 i, float4 v) {
        if (sample_largest(v) > mine) {
            mine = sample_largest(v);
            mine_at = v.x == mine ? i : v.y == mine ? i + 1 : v.z == mine ? i + 2 : i + 3;
        }
    });
    return sample_reduce<true>(sample_rank(mine, mine_at), scratch->partials);
}

// Chooses the token of a row, by a whole block of a multiple of 32 threads; the state is left as it
// is (accept_token). The logits are changed by biases and penalties.
// arena: where places count from; logits: [vocab], aligned to 16 bytes; out: may be null; the
// result is every thread's
DEVICE Chosen sample_row(const u8* arena, float* logits, u32 vocab, const Choice* state,
                         SampleScratch* scratch, Chosen* out) {
    // Volatile: loads that the compiler joins, with gaps in them, need a newer PTX than 7.0.
    const volatile Choice& choice = scratch->choice;
    __syncthreads();
    for (u32 i = threadIdx.x; i < sizeof(Choice) / 4; i += blockDim.x) {
        reinterpret_cast<u32*>(&scratch->choice)[i] =
            load_word_shared_by_blocks(reinterpret_cast<const u32*>(state) + i);
    }
    __syncthreads();
    if (choice.bias_count > 0 || choice.window_length > 0) {
        sample_adjust(arena, logits, vocab, choice);
    }
    float mine;
    const u64 rank = sample_largest_rank(logits, vocab, mine, scratch);
    Chosen chosen = {~u32(rank), 1.0f};
    if (rank == 0) {
        chosen = {0, 0.0f};
    } else if (choice.greedy == 0) {
        chosen = sample_draw(logits, vocab, choice, sample_rank_value(rank), mine, scratch);
    }
    if (threadIdx.x == 0 && out != nullptr) {
        *out = chosen;
    }
    return chosen;
}

// The largest logit of a row, from the largest of each of its parts, by a whole block.
// maxima: [count]; out: may be null; the result is every thread's
DEVICE Chosen sample_greedy_from_maxima(const Maximum* maxima, u32 count, SampleScratch* scratch,
                                        Chosen* out) {
    u64 rank = 0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
        const u64 other = sample_rank(load_shared_by_blocks(&maxima[i].value),
                                      load_word_shared_by_blocks(&maxima[i].row));
        rank = other > rank ? other : rank;
    }
    rank = sample_reduce<true>(rank, scratch->partials);
    const Chosen chosen = {rank != 0 ? ~u32(rank) : 0, rank != 0 ? 1.0f : 0.0f};
    if (threadIdx.x == 0 && out != nullptr) {
        *out = chosen;
    }
    return chosen;
}
