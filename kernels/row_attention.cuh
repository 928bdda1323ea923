// Softmax attention of a pass of any number of rows over the pages of their sequences.
//
// A warp takes kQueries queries: heads of consecutive rows that share one KV head. It goes over the
// tokens that they see, kPages pages at a time:
//   scores   lanes are tokens, one of each page: a lane reads 8 elements of its keys at once, in
//            whole cache lines, makes floats of them once for all queries, and reads the queries
//            from shared memory, where all lanes want the same 16 bytes; scales of keys, where there
//            are any, multiply scores;
//   weights  e^(score - maximum), the maximum being raised only when a score exceeds it by much, so
//            that sums are seldom rescaled; they go to shared memory, times scales of values;
//   values   lanes are elements: weights come four tokens at once from shared memory.
// Warps share nothing, except when a tile has fewer queries than the block has room for: then
// several warps take the same queries, each some of the pages, and add up their sums in the end.
//
// Single rows have little to compute and wait for memory: kernels for these take few queries and have more
// keys and values on their way at once (kAhead). What comes of it is the same, bit for bit.
#pragma once

#include "kv.cuh"
#include "planes.cuh"

constexpr float kLog2E = 1.44269504f;

// Rows of one sequence, at consecutive positions.
struct RowTile {
    u32 first, count;
};

struct RowAttention {
    const u8* arena;        // page tables are at places counted from here
    const Row* rows;        // [rows of the pass]
    const RowTile* tiles;   // [blocks of the grid / kv_heads]
    const float* q;         // [rows][q_stride]
    u32 q_stride;
    const u8* cache;        // page 0 of the layer
    u32 page_places;        // of a page
    u32 heads, kv_heads, key_dim, value_dim;
    float scale, softcap;   // softcap 0: none
    u32 window;             // tokens that a row sees, itself included; 0: all
    const float* sinks;     // [heads]: e^sink is added to a head's sum of weights; or null
    float* out;             // [rows][out_stride]
    u32 out_stride;
};

// kCount elements, as loaded.
template <class Kv, u32 kCount>
struct Elements {
    static constexpr u32 kBytes = kCount * sizeof(typename Kv::Element);
    u32 words[words_for(kBytes)];
};

// Keys and values are read as weights are: no kernel writes them while this one runs, and the
// read-only path is the only one that an M40 caches in its SMs.
template <class Kv, u32 kCount>
DEVICE void load_elements(const u8* p, Elements<Kv, kCount>& to) {
    load_packed<Elements<Kv, kCount>::kBytes>(p, to.words);
}

template <class Kv, u32 kCount>
DEVICE void to_floats(const Elements<Kv, kCount>& from, float (&to)[kCount]) {
    constexpr u32 kInWord = 4 / sizeof(typename Kv::Element);
#pragma unroll
    for (u32 i = 0; i < kCount; ++i) {
        to[i] = Kv::number(from.words[i / kInWord], i % kInWord);
    }
}

// kDims elements of values a lane: value_dim is at most 32 * kDims. A lane has runs of kRun
// consecutive elements, the lanes' runs side by side. kAhead eights of a key's elements, and as many fours
// of tokens' values, are on their way at once: 1, 2, 4 or 8; 8 * kAhead divides key_dim.
template <class Kv, u32 kDims, u32 kQueries, u32 kPages, u32 kAhead>
struct Attention {
    static constexpr u32 kElementBytes = sizeof(typename Kv::Element);
    static constexpr u32 kTokens = kPages * kPageTokens;  // that a warp weighs at a time
    static constexpr u32 kRun = kDims < 8 ? kDims : 8, kRuns = kDims / kRun;
    // How far a score may exceed the maximum that its weight is relative to: weights up to 2^8.
    static constexpr float kSlack = 8.0f;
    // Less than any score of use, and finite: differences to it are no NaN.
    static constexpr float kLowest = -3.0e38f;

    float sums[kQueries][kDims];  // of weighted values
    float maximum[kQueries];      // what weights are relative to, the same in all lanes
    float total[kQueries];        // of the lane's weights

    // Floats of shared memory for each warp: queries and weights, later the sums to add up.
    DEVICE_MEMBER u32 warp_floats(u32 key_dim, u32 value_dim) {
        return kQueries * max(key_dim + kTokens, value_dim + 2);
    }

    // Products of all queries with the lane's key in each of some pages.
    // keys: of the head in each page, from the lane's on;
    // queries: [key_dim / 8][kQueries][8], shared
    DEVICE_MEMBER void multiply(const u8* (&keys)[kPages], const float* queries, u32 key_dim,
                                float (&scores)[kQueries][kPages]) {
        constexpr u32 kStep = 8 * kPageTokens * kElementBytes;
        Elements<Kv, 8> next[kAhead][kPages];
#pragma unroll
        for (u32 page = 0; page < kPages; ++page) {
#pragma unroll
            for (u32 ahead = 0; ahead < kAhead; ++ahead) {
                load_elements(keys[page] + ahead * kStep, next[ahead][page]);
            }
#pragma unroll
            for (u32 r = 0; r < kQueries; ++r) {
                scores[r][page] = 0.0f;
            }
        }
#pragma unroll 1
        for (u32 left = key_dim; left > 0; left -= 8 * kAhead) {
#pragma unroll
            for (u32 ahead = 0; ahead < kAhead; ++ahead) {
                float k[kPages][8];
#pragma unroll
                for (u32 page = 0; page < kPages; ++page) {
                    to_floats(next[ahead][page], k[page]);
                    keys[page] += kStep;
                }
                if (left > 8 * kAhead) {
#pragma unroll
                    for (u32 page = 0; page < kPages; ++page) {
                        load_elements(keys[page] + (kAhead - 1) * kStep, next[ahead][page]);
                    }
                }
#pragma unroll
                for (u32 r = 0; r < kQueries; ++r) {
#pragma unroll
                    for (u32 i = 0; i < 8; i += 4) {
                        const float4 q = *reinterpret_cast<const float4*>(queries + 8 * r + i);
#pragma unroll
                        for (u32 page = 0; page < kPages; ++page) {
                            float score = scores[r][page];
                            score = fmaf(q.x, k[page][i], score);
                            score = fmaf(q.y, k[page][i + 1], score);
                            score = fmaf(q.z, k[page][i + 2], score);
                            scores[r][page] = fmaf(q.w, k[page][i + 3], score);
                        }
                    }
                }
                queries += 8 * kQueries;
            }
        }
    }

    DEVICE_MEMBER float highest_of(const float (&scores)[kPages]) {
        float highest = scores[0];
#pragma unroll
        for (u32 page = 1; page < kPages; ++page) {
            highest = fmaxf(highest, scores[page]);
        }
        return highest;
    }

    // Turns scores into weights and adds those to the totals.
    // scales: of values of the lane's tokens; weights: [kQueries][kTokens], shared
    DEVICE_MEMBER void weigh(Attention& state, const float (&scores)[kQueries][kPages],
                             const float (&scales)[kPages], float* weights) {
        const u32 lane = threadIdx.x % kLanes;
        bool exceeds = false;
#pragma unroll
        for (u32 r = 0; r < kQueries; ++r) {
            exceeds |= highest_of(scores[r]) > state.maximum[r] + kSlack;
        }
        if (__ballot_sync(kAllLanes, exceeds) != 0) {
#pragma unroll
            for (u32 r = 0; r < kQueries; ++r) {
                float highest = highest_of(scores[r]);
#pragma unroll
                for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
                    highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, mask));
                }
                highest = fmaxf(highest, state.maximum[r]);
                const float factor = exp2_approx(state.maximum[r] - highest);
                state.maximum[r] = highest;
                state.total[r] *= factor;
#pragma unroll
                for (u32 d = 0; d < kDims; ++d) {
                    state.sums[r][d] *= factor;
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < kQueries; ++r) {
#pragma unroll
            for (u32 page = 0; page < kPages; ++page) {
                const float weight = exp2_approx(scores[r][page] - state.maximum[r]);
                state.total[r] += weight;
                weights[r * kTokens + page * kPageTokens + lane] =
                    Kv::kScaled ? weight * scales[page] : weight;
            }
        }
    }

    // Adds the weighted values of tokens from..to of a page; `from` is a multiple of 4 * kAhead, less than
    // `to`. Those beyond `to` are not read: they may be of no token, and no number.
    // values: of the head in the page, [kPageTokens][value_dim]; weights: of the page, shared
    DEVICE_MEMBER void add(Attention& state, const u8* values, u32 value_dim, const float* weights,
                           u32 from, u32 to) {
        const u32 lane = threadIdx.x % kLanes, token_bytes = kElementBytes * value_dim;
        weights += from;
#pragma unroll
        for (u32 run = 0; run < kRuns; ++run) {
            const u32 dim = run * kLanes * kRun + lane * kRun;
            // Lanes without elements read others', to no use.
            const u8* p = values + (dim < value_dim ? kElementBytes * dim : 0) + from * token_bytes;
            const float* w = weights;
            u32 steps[4] = {0, token_bytes, 2 * token_bytes, 3 * token_bytes};
            u32 left = to - from;
            Elements<Kv, kRun> next[kAhead][4];
#pragma unroll
            for (u32 ahead = 0; ahead < kAhead; ++ahead) {
                load_tokens(p, steps, 4 * ahead, left, next[ahead]);
            }
#pragma unroll 1
            while (true) {
                const bool more = left > 4 * kAhead;
#pragma unroll
                for (u32 ahead = 0; ahead < kAhead; ++ahead) {
                    float v[4][kRun];
#pragma unroll
                    for (u32 i = 0; i < 4; ++i) {
                        to_floats(next[ahead][i], v[i]);
                    }
                    if (more) {
                        if (ahead == 0) {
                            left -= 4 * kAhead;
                            p += 4 * kAhead * token_bytes;
                        }
                        load_tokens(p, steps, 4 * ahead, left, next[ahead]);
                    }
#pragma unroll
                    for (u32 r = 0; r < kQueries; ++r) {
                        const float4 weight = *reinterpret_cast<const float4*>(w + r * kTokens);
#pragma unroll
                        for (u32 d = 0; d < kRun; ++d) {
                            float sum = state.sums[r][run * kRun + d];
                            sum = fmaf(weight.x, v[0][d], sum);
                            sum = fmaf(weight.y, v[1][d], sum);
                            sum = fmaf(weight.z, v[2][d], sum);
                            state.sums[r][run * kRun + d] = fmaf(weight.w, v[3][d], sum);
                        }
                    }
                    w += 4;
                }
                if (!more) {
                    break;
                }
            }
        }
    }

    // Leaves everything in shared memory: [kQueries][value_dim] sums, then [kQueries] {maximum,
    // total}.
    DEVICE_MEMBER void leave(const Attention& state, u32 value_dim, float* to) {
        const u32 lane = threadIdx.x % kLanes;
#pragma unroll
        for (u32 run = 0; run < kRuns; ++run) {
            const u32 dim = run * kLanes * kRun + lane * kRun;
            if (dim < value_dim) {
#pragma unroll
                for (u32 r = 0; r < kQueries; ++r) {
#pragma unroll
                    for (u32 d = 0; d < kRun; ++d) {
                        to[r * value_dim + dim + d] = state.sums[r][run * kRun + d];
                    }
                }
            }
        }
        if (lane == 0) {
            float* peaks = to + kQueries * value_dim;
#pragma unroll
            for (u32 r = 0; r < kQueries; ++r) {
                peaks[2 * r] = state.maximum[r];
                peaks[2 * r + 1] = state.total[r];
            }
        }
    }

    // Four tokens from `first` on, of `left`: beyond those others are repeated (their weights are 0).
    DEVICE_MEMBER void load_tokens(const u8* p, u32 (&steps)[4], u32 first, u32 left,
                                   Elements<Kv, kRun> (&to)[4]) {
        if constexpr (kAhead > 1) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                load_elements(p + min(first + i, left - 1) * steps[1], to[i]);
            }
            return;
        }
        if (left < 4) {
            const u32 step = steps[1];
            steps[1] = left > 1 ? step : 0;
            steps[2] = left > 2 ? 2 * step : 0;
            steps[3] = 0;
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            load_elements(p + steps[i], to[i]);
        }
    }
};

// What a warp's queries are.
struct QuerySet {
    u32 first;      // among those of the tile's rows: row * group + head of the group
    u32 queries;    // of the tile
    u32 group;      // heads of a KV head
    u32 first_row;  // of the tile
    u32 kv_head;

    // Query r; beyond the last one, that.
    DEVICE_MEMBER u32 query(const QuerySet& set, u32 r) {
        return min(set.first + r, set.queries - 1);
    }
    DEVICE_MEMBER u32 row(const QuerySet& set, u32 r) { return query(set, r) / set.group; }
    DEVICE_MEMBER u32 head(const QuerySet& set, u32 r) {
        return set.kv_head * set.group + query(set, r) % set.group;
    }
    // The first token that a row at `position` sees.
    DEVICE_MEMBER u32 first_seen(u32 position, u32 window) {
        return window != 0 && position >= window ? position + 1 - window : 0;
    }
};

// A set of queries over every `ways`-th kPages pages from those of number `part` on.
// own: the warp's shared memory
template <class Kv, u32 kDims, u32 kQueries, u32 kPages, u32 kAhead>
DEVICE void attend_part(const RowAttention& a, const QuerySet& set, u32 part, u32 ways, float* own,
                        Attention<Kv, kDims, kQueries, kPages, kAhead>& state) {
    using State = Attention<Kv, kDims, kQueries, kPages, kAhead>;
    const u32 lane = threadIdx.x % kLanes;
    float* weights = own + kQueries * a.key_dim;
    // Powers of two come cheaper than of e: logarithms to the base 2 throughout. With a softcap,
    // the products are those that e^(2 * score / softcap) takes.
    const float factor = kLog2E * (a.softcap == 0.0f ? a.scale : 2.0f * a.scale / a.softcap);
    u32 starts[kQueries];
#pragma unroll
    for (u32 r = 0; r < kQueries; ++r) {
        starts[r] = (set.first_row + QuerySet::row(set, r)) * a.q_stride +
                    QuerySet::head(set, r) * a.key_dim;
    }
    for (u32 d = lane; d < a.key_dim; d += kLanes) {
        float q[kQueries];
#pragma unroll
        for (u32 r = 0; r < kQueries; ++r) {
            q[r] = a.q[starts[r] + d];
        }
#pragma unroll
        for (u32 r = 0; r < kQueries; ++r) {
            own[(d / 8 * kQueries + r) * 8 + d % 8] = q[r] * factor;
        }
    }
#pragma unroll
    for (u32 r = 0; r < kQueries; ++r) {
        state.maximum[r] = State::kLowest;
        state.total[r] = 0.0f;
#pragma unroll
        for (u32 d = 0; d < kDims; ++d) {
            state.sums[r][d] = 0.0f;
        }
    }
    __syncwarp();
    const u64 table_bytes = u64{a.rows[set.first_row].pages} * 16;
    const u32* table = reinterpret_cast<const u32*>(a.arena + table_bytes);
    const u64 page_bytes = u64{a.page_places} * 16;
    constexpr u32 kElementBytes = State::kElementBytes;
    const u8* keys =
        a.cache + (u64{set.kv_head} * a.key_dim * kPageTokens + 8 * lane) * kElementBytes;
    const u8* values = a.cache + (u64{a.kv_heads} * a.key_dim + u64{set.kv_head} * a.value_dim) *
                                     (kPageTokens * kElementBytes);
    // Of the lane's token in a page: of its key.
    const u8* scales = a.cache + u64{a.kv_heads} * (a.key_dim + a.value_dim) * kPageTokens +
                       (set.kv_head * kPageTokens + lane) * 4;
    // Of query `lane`: the others are the last one's.
    const u32 own_row = set.first_row + QuerySet::row(set, min(lane, kQueries - 1));
    const u32 own_position = a.rows[own_row].position;
    const u32 earliest = __shfl_sync(kAllLanes, own_position, 0);
    const u32 latest = __shfl_sync(kAllLanes, own_position, kQueries - 1);
    const u32 begin = QuerySet::first_seen(earliest, a.window), end = latest + 1;
    // From here on, all rows see a token: none of it has left the window of the last.
    const u32 all_see = QuerySet::first_seen(latest, a.window);
    const u32 first_page = begin / kPageTokens, last_page = latest / kPageTokens;
    // Lane i has the number of the i-th page, loaded while the pages before are worked on. After
    // the last page that one stands in; no row sees its tokens there.
    u32 page = first_page + kPages * part;
    u32 own_page = table[min(page + lane % kPages, last_page)];
#pragma unroll 1
    for (; page <= last_page; page += kPages * ways) {
        const u32 number = own_page;
        own_page = table[min(page + kPages * ways + lane % kPages, last_page)];
        float scores[kQueries][kPages];
        const u8* page_keys[kPages];
#pragma unroll
        for (u32 i = 0; i < kPages; ++i) {
            page_keys[i] = keys + __shfl_sync(kAllLanes, number, i) * page_bytes;
        }
        // Of tokens that are not there yet they may be anything, and no number.
        float key_scales[kPages] = {}, value_scales[kPages] = {};
        if constexpr (Kv::kScaled) {
#pragma unroll
            for (u32 i = 0; i < kPages; ++i) {
                const u8* p = scales + __shfl_sync(kAllLanes, number, i) * page_bytes;
                if ((page + i) * kPageTokens + lane < end) {
                    key_scales[i] = as_float(load_weights_4(p));
                    value_scales[i] = as_float(load_weights_4(p + a.kv_heads * kPageTokens * 4));
                }
            }
        }
        State::multiply(page_keys, own, a.key_dim, scores);
        if constexpr (Kv::kScaled) {
#pragma unroll
            for (u32 r = 0; r < kQueries; ++r) {
#pragma unroll
                for (u32 i = 0; i < kPages; ++i) {
                    scores[r][i] *= key_scales[i];
                }
            }
        }
        if (a.softcap != 0.0f) {
#pragma unroll
            for (u32 r = 0; r < kQueries; ++r) {
#pragma unroll
                for (u32 i = 0; i < kPages; ++i) {
                    // tanh(u) = 1 - 2 / (e^(2u) + 1)
                    const float inverse = reciprocal_approx(exp2_approx(scores[r][i]) + 1.0f);
                    scores[r][i] = kLog2E * a.softcap * fmaf(-2.0f, inverse, 1.0f);
                }
            }
        }
        const u32 start = page * kPageTokens;
        if (start + State::kTokens - 1 > earliest || start < all_see) {
#pragma unroll
            for (u32 r = 0; r < kQueries; ++r) {
                const u32 position = __shfl_sync(kAllLanes, own_position, r);
                const u32 seen = QuerySet::first_seen(position, a.window);
#pragma unroll
                for (u32 i = 0; i < kPages; ++i) {
                    const u32 token = start + i * kPageTokens + lane;
                    if (token > position || token < seen) {
                        scores[r][i] = as_float(0xff800000);
                    }
                }
            }
        }
        // The weights of the pages before have been read.
        __syncwarp();
        State::weigh(state, scores, value_scales, weights);
        __syncwarp();
        constexpr u32 kFours = 4 * kAhead;
        u32 from = page == first_page ? begin % kPageTokens / kFours * kFours : 0, to = end - start;
#pragma unroll 1
        for (u32 i = 0; i < kPages; ++i) {
            const u8* page_values = values + __shfl_sync(kAllLanes, number, i) * page_bytes;
            State::add(state, page_values, a.value_dim, weights + i * kPageTokens, from,
                       min(to, kPageTokens));
            if (to <= kPageTokens) {
                break;
            }
            from = 0;
            to -= kPageTokens;
        }
    }
#pragma unroll
    for (u32 r = 0; r < kQueries; ++r) {
#pragma unroll
        for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
            state.total[r] += __shfl_xor_sync(kAllLanes, state.total[r], mask);
        }
    }
}

// Adds up the sums that `ways` warps left for a set of queries, of every `ways`-th query from
// `part` on, and stores the result.
// left: what State::leave wrote, each `stride` floats after the one before, shared
template <u32 kQueries>
DEVICE void combine(const RowAttention& a, const QuerySet& set, u32 part, u32 ways,
                    const float* left, u32 stride) {
    const u32 lane = threadIdx.x % kLanes;
#pragma unroll 1
    for (u32 r = part; r < kQueries && set.first + r < set.queries; r += ways) {
        const float* peaks = left + kQueries * a.value_dim + 2 * r;
        // Warps behind the last page have seen no token.
        u32 parts = ways;
        while (parts > 1 && peaks[(parts - 1) * stride + 1] == 0.0f) {
            --parts;
        }
        float highest = peaks[0], total = 0.0f;
#pragma unroll 1
        for (u32 i = 1; i < parts; ++i) {
            highest = fmaxf(highest, peaks[i * stride]);
        }
#pragma unroll 1
        for (u32 i = 0; i < parts; ++i) {
            const float factor = exp2_approx(peaks[i * stride] - highest);
            total = fmaf(peaks[i * stride + 1], factor, total);
        }
        const u64 row = set.first_row + QuerySet::row(set, r);
        const u32 head = QuerySet::head(set, r);
        if (a.sinks != nullptr) {
            // Far above all scores it is infinite, and the result 0.
            total += exp2_approx(as_float(load_weights_4(a.sinks + head)) * kLog2E - highest);
        }
        float* out = a.out + row * a.out_stride + head * a.value_dim;
#pragma unroll 1
        for (u32 dim = lane; dim < a.value_dim; dim += kLanes) {
            float sum = 0.0f;
#pragma unroll 1
            for (u32 i = 0; i < parts; ++i) {
                const float factor = exp2_approx(peaks[i * stride] - highest);
                sum = fmaf(left[i * stride + r * a.value_dim + dim], factor, sum);
            }
            out[dim] = sum / total;
        }
    }
}

// Blocks take (tile, KV head, sets of queries), the last fastest, and tiles from the last to the
// first, as later rows of a sequence see more tokens.
template <class Kv, u32 kDims, u32 kQueries, u32 kPages, u32 kAhead>
DEVICE void attend(const RowAttention& a, u32 tile_count) {
    using State = Attention<Kv, kDims, kQueries, kPages, kAhead>;
    DYNAMIC_SHARED(float, shared);
    const u32 warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
    const u32 blocks_of_head = gridDim.x / (tile_count * a.kv_heads);
    const u32 tile_and_head = blockIdx.x / blocks_of_head;
    const RowTile tile = a.tiles[tile_count - 1 - tile_and_head / a.kv_heads];
    QuerySet set;
    set.group = a.heads / a.kv_heads;
    set.queries = tile.count * set.group;
    set.first_row = tile.first;
    set.kv_head = tile_and_head % a.kv_heads;
    const u32 first_set = blockIdx.x % blocks_of_head * warps;
    const u32 sets = (set.queries + kQueries - 1) / kQueries;
    if (first_set >= sets || a.rows[tile.first].pages == kNowhere) {
        return;
    }
    // Warps that take the same queries.
    const u32 ways = max(warps / (sets - first_set), 1), part = warp % ways;
    const u32 index = first_set + warp / ways;
    const u32 warp_floats = State::warp_floats(a.key_dim, a.value_dim);
    float* own = shared + warp * warp_floats;
    set.first = index * kQueries;
    if (index < sets) {
        State state;
        attend_part(a, set, part, ways, own, state);
        // The queries and weights have been read.
        __syncwarp();
        State::leave(state, a.value_dim, own);
    }
    __syncthreads();
    if (index < sets) {
        combine<kQueries>(a, set, part, ways, own - part * warp_floats, warp_floats);
    }
}
