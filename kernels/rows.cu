// All ops of a program but matrix products, for passes of any number of rows, one launch each.
//
// Buffers are [rows][stride] f32, `stride` floats from a row to the next one. Buffers that a
// kernel's flags say are not used may be any. Grids have one dimension; blocks are whole warps.

#include "gemm.cuh"
#include "rotary.cuh"
#include "row_attention.cuh"

// Threads of a block, at most; and floats of a row that is normed (MAX_NORM_WIDTH of crates/gpu).
enum : u32 { kRowThreads = 256, kSumThreads = 512, kNormFloats = 8192 };

DEVICE float warp_sum(float value) {
#pragma unroll
    for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
        value += __shfl_xor_sync(kAllLanes, value, mask);
    }
    return value;
}

// The sum over the block, in all threads: that of a block of kEach times the threads.
// scratch: [32], shared, of which each warp takes kEach
template <u32 kEach>
DEVICE float block_sum(const float (&values)[kEach], float* scratch) {
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
#pragma unroll
    for (u32 i = 0; i < kEach; ++i) {
        const float value = warp_sum(values[i]);
        if (lane == 0) {
            scratch[i * warps + warp] = value;
        }
    }
    __syncthreads();
    return warp_sum(lane < kEach * warps ? scratch[lane] : 0.0f);
}

// out = table[token] * scale, row by row: block b makes row b, a lane 32 columns at a time.
template <class F>
DEVICE void embed(const Planes& table, const Row* rows, float scale, float* out, u32 out_stride) {
    const u32 token = rows[blockIdx.x].token, groups = (table.cols + kGroup - 1) / kGroup;
    float* to = out + u64{blockIdx.x} * out_stride;
    for (u32 group = threadIdx.x; group < groups; group += blockDim.x) {
        const auto cursor = Cursor<F, 1>::at(table, token, group);
        Tile<F, 1> tile = {};
        Cursor<F, 1>::load(cursor, tile);
        tile = Cursor<F, 1>::settled(cursor, tile);
#pragma unroll
        for (u32 eighth = 0; eighth < 4; ++eighth) {
            float f[8], s = 1.0f, m = 0.0f;
            F::weights8(tile, 0, eighth, f);
            if constexpr (F::kScaled) {
                F::scale_min(tile, 0, eighth * F::kHalves / 4, s, m);
            }
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                const u32 column = group * kGroup + 8 * eighth + i;
                if (column < table.cols) {
                    to[column] = fmaf(s, f[i] - (F::power(8 * eighth + i) + F::kZero), m) * scale;
                }
            }
        }
    }
}

// One block of any number of warps for each row.
// weights: the planes of the table [vocab, cols], `high` to `supers` their offsets in bytes;
// rows: [rows]; out: [rows][out_stride], columns ..cols written
#define ROWS_EMBED(name, Format)                                                               \
    KERNEL LAUNCH_BOUNDS(kRowThreads, 1)                                                       \
    rows_embed_##name(const u8* weights, u64 high, u64 scales, u64 tops, u64 supers, u32 vocab, \
                      u32 cols, const Row* rows, float scale, float* out, u32 out_stride) {    \
        embed<Format>({weights, high, scales, tops, supers, vocab, cols}, rows, scale, out,    \
                      out_stride);                                                             \
    }

ROWS_EMBED(f32, F32)
ROWS_EMBED(f16, F16)
ROWS_EMBED(bf16, BF16)
ROWS_EMBED(q4_0, Q4_0)
ROWS_EMBED(q4_1, Q4_1)
ROWS_EMBED(q5_0, Q5_0)
ROWS_EMBED(q5_1, Q5_1)
ROWS_EMBED(q8_0, Q8_0)
ROWS_EMBED(q2_k, Q2_K)
ROWS_EMBED(q3_k, Q3_K)
ROWS_EMBED(q4_k, Q4_K)
ROWS_EMBED(q5_k, Q5_K)
ROWS_EMBED(q6_k, Q6_K)
ROWS_EMBED(iq4_nl, IQ4_NL)
ROWS_EMBED(iq4_xs, IQ4_XS)
ROWS_EMBED(mxfp4, MXFP4)

// out[i] = x[index[i]]; one block for each row of out.
// x: [any][x_stride]; index: [rows]; out: [rows][out_stride], not x
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_gather(const float* x, u32 x_stride, const u32* index, u32 cols, float* out, u32 out_stride) {
    const float* from = x + u64{index[blockIdx.x]} * x_stride;
    float* to = out + u64{blockIdx.x} * out_stride;
#pragma unroll 4
    for (u32 column = threadIdx.x; column < cols; column += blockDim.x) {
        to[column] = from[column];
    }
}

// out = x * gain / sqrt(mean(x^2) + eps) [+ residual]; one block for each row.
// x, residual, out: [rows][stride], out may be x or residual; gain: [cols]; add: residual is added
KERNEL LAUNCH_BOUNDS(kRowThreads, 4)
rows_rms_norm(const float* x, u32 x_stride, const float* gain, float eps, u32 cols,
              const float* residual, u32 residual_stride, u32 add, float* out, u32 out_stride) {
    STATIC_SHARED(float, scratch, kLanes);
    const float* from = x + u64{blockIdx.x} * x_stride;
    const float* base = residual + u64{blockIdx.x} * residual_stride;
    float* to = out + u64{blockIdx.x} * out_stride;
    float squares[1] = {0.0f};
#pragma unroll 4
    for (u32 column = threadIdx.x; column < cols; column += blockDim.x) {
        squares[0] = fmaf(from[column], from[column], squares[0]);
    }
    const float mean = block_sum(squares, scratch) / static_cast<float>(cols);
    const float scale = 1.0f / sqrtf(mean + eps);
    // What a thread writes only it has read, and reads no more: so out may be x or residual.
    if (add != 0) {
#pragma unroll 4
        for (u32 column = threadIdx.x; column < cols; column += blockDim.x) {
            to[column] = fmaf(from[column] * scale, gain[column], base[column]);
        }
    } else {
#pragma unroll 4
        for (u32 column = threadIdx.x; column < cols; column += blockDim.x) {
            to[column] = from[column] * scale * gain[column];
        }
    }
}

// Partial products of gemm kernels: `splits` parts of [m][width].
struct Partials {
    const float* start;
    u32 splits;
    u64 step;  // floats of a part

    // Of each of some partial products, whose starts differ alone: four floats from `at` on, a multiple of
    // 4, added up in the order of the columns of W. kAtOnce parts of each are on their way together.
    template <u32 kAtOnce, u32 kOf>
    DEVICE_MEMBER void sum_quads(const Partials (&partials)[kOf], u64 at, float4 (&sums)[kOf]) {
        const u32 splits = partials[0].splits;
        const u64 step = partials[0].step;
#pragma unroll
        for (u32 of = 0; of < kOf; ++of) {
            sums[of] = {0.0f, 0.0f, 0.0f, 0.0f};
        }
#pragma unroll 1
        for (u32 first = 0; first < splits; first += kAtOnce, at += kAtOnce * step) {
            // Those beyond the last are zeros, which change no sum.
            uint4 parts[kOf][kAtOnce] = {};
#pragma unroll
            for (u32 i = 0; i < kAtOnce; ++i) {
#pragma unroll
                for (u32 of = 0; of < kOf; ++of) {
                    load_words_shared_by_blocks_16_if(
                        first + i < splits, partials[of].start + (at + i * step), parts[of][i]);
                }
            }
#pragma unroll
            for (u32 i = 0; i < kAtOnce; ++i) {
#pragma unroll
                for (u32 of = 0; of < kOf; ++of) {
                    const uint4 v = parts[of][i];
                    float4& sum = sums[of];
                    sum = {sum.x + as_float(v.x), sum.y + as_float(v.y), sum.z + as_float(v.z),
                           sum.w + as_float(v.w)};
                }
            }
        }
    }

    DEVICE_MEMBER float4 sum_quad(const Partials& partials, u64 at) {
        const Partials of[1] = {partials};
        float4 sums[1];
        sum_quads<16>(of, at, sums);
        return sums[0];
    }
};

// y as gemm_sum makes it, and out = y * gain / sqrt(mean(y^2) + eps); one block for each row.
// partials: [splits][m][cols in whole quads], cols at most kNormFloats; y, out: [m][stride], out not y;
// the rest as gemm_sum's
KERNEL LAUNCH_BOUNDS(kSumThreads, 1)
rows_sum_norm(const float* partials, u32 splits, u32 cols, u32 m, float* y, u32 y_stride,
              const float* bias, const float* other, u32 flags, const float* gain, float eps,
              float* out, u32 out_stride) {
    STATIC_SHARED(float, scratch, kLanes);
    STATIC_SHARED(float4, made, kNormFloats / 4);
    const GemmArgs args = {{nullptr, 0, 0, 0, 0, cols, 0}, nullptr, 0, m, y, y_stride, bias,
                           other, flags, 0.0f};
    const u32 row = blockIdx.x, quads = (cols + 3) / 4;
    const Partials parts = {partials, splits, u64{m} * quads * 4};
    float* to = out + u64{row} * out_stride;
    // What is read at once with the first parts, as memory is far: the first of the thread's gains.
    float gains[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        gains[i] = as_float(load_weights_4(gain + min(threadIdx.x * 4 + i, cols - 1)));
    }
    // Every other quad's apart: up to 4096 columns, squares of 128 are summed by themselves.
    float even = 0.0f, odd = 0.0f;
    bool is_odd = false;
    // What a thread reads of `made` it has written itself.
#pragma unroll 1
    for (u32 at = threadIdx.x; at < quads; at += blockDim.x, is_odd = !is_odd) {
        const Quad quad = Quad::begin(args, row, at * 4);
        const float4 v = Quad::finish(
            quad, args, Partials::sum_quad(parts, (u64{row} * quads + at) * 4));
        made[at] = v;
        const float values[4] = {v.x, v.y, v.z, v.w};
        float sum = is_odd ? odd : even;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            sum = at * 4 + i < cols ? fmaf(values[i], values[i], sum) : sum;
        }
        even = is_odd ? even : sum;
        odd = is_odd ? sum : odd;
    }
    const float squares[2] = {even, odd};
    const float scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(cols) + eps);
#pragma unroll 1
    for (u32 at = threadIdx.x; at < quads; at += blockDim.x) {
        const float4 v = made[at];
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 column = at * 4 + i;
            if (column < cols) {
                const float by = at == threadIdx.x ? gains[i] : gain[column];
                to[column] = values[i] * scale * by;
            }
        }
    }
}

// y = act(gate) * up of the partial products of both; any grid.
// partials: [2][splits][m][rows in whole quads], the gate's first; flags: kGemmSilu or kGemmGelu
KERNEL LAUNCH_BOUNDS(kRowThreads, 2)
rows_sum_gate(const float* partials, u32 splits, u32 rows, u32 m, float* y, u32 y_stride,
              u32 flags) {
    const GemmArgs args = {{nullptr, 0, 0, 0, 0, rows, 0}, nullptr, 0, m, y, y_stride, nullptr,
                           nullptr, 0, 0.0f};
    const u32 quads = (rows + 3) / 4;
    const u64 all = u64{m} * quads, step = u64{gridDim.x} * blockDim.x;
    const Partials both[2] = {{partials, splits, 4 * all},
                              {partials + splits * 4 * all, splits, 4 * all}};
    const bool gelu = (flags & kGemmGelu) != 0;
    for (u64 at = u64{blockIdx.x} * blockDim.x + threadIdx.x; at < all; at += step) {
        float4 sums[2];
        Partials::sum_quads<9>(both, 4 * at, sums);
        const float4 g = sums[0], u = sums[1];
        finish_quad(args, static_cast<u32>(at / quads), static_cast<u32>(at % quads) * 4,
                    {u.x * gate(g.x, gelu), u.y * gate(g.y, gelu), u.z * gate(g.z, gelu),
                     u.w * gate(g.w, gelu)});
    }
}

// {cos, sin} * magnitude of the angles of every row's position; one thread for each pair of a row.
// rows: [count]; inverse_frequencies: [pairs]; angles: [count][pairs] {cos, sin}
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_angles(const Row* rows, u32 count, const float* inverse_frequencies, u32 pairs,
            float magnitude, float* angles) {
    const u64 index = u64{blockIdx.x} * blockDim.x + threadIdx.x;
    const u32 row = static_cast<u32>(index / pairs), pair = static_cast<u32>(index % pairs);
    if (row < count) {
        const float2 v = turn(rows[row].position, inverse_frequencies[pair]);
        angles[2 * index] = v.x * magnitude;
        angles[2 * index + 1] = v.y * magnitude;
    }
}

// What is done to a head of a row.
enum HeadOps : u32 {
    kHeadNorm = 1,         // x * gain / sqrt(mean(x^2) + eps)
    kHeadRotate = 2,       // then its pairs are rotated
    kHeadInterleaved = 4,  // pairs are (2i, 2i + 1), otherwise (i, i + pairs)
    kHeadNormKeys = 8,     // of rows_sum_heads: kHeadNorm, of keys; kHeadNorm is of queries alone
    kHeadBias = 16,        // there, too: a bias is added before
};

// A head as it is: to its row again, or to the cache.
struct InRow {
    float* to;  // [dim]
    DEVICE_MEMBER void store(const InRow& place, u32 d, float value) { place.to[d] = value; }
};
struct InKeys {
    u16* to;  // the token's in [dim / 8][kPageTokens][8] f16
    DEVICE_MEMBER void store(const InKeys& place, u32 d, float value) {
        place.to[d / 8 * (8 * kPageTokens) + d % 8] = static_cast<u16>(float_to_half(value));
    }
};

// One head, by a warp. x: [dim], may be where it is stored; gain: [dim]; angles: [pairs] {cos, sin}
template <class Place>
DEVICE void treat_head(const float* x, u32 dim, u32 ops, const float* gain, float eps,
                       const float* angles, u32 pairs, const Place& place) {
    const u32 lane = threadIdx.x % kLanes;
    const bool norm = (ops & kHeadNorm) != 0;
    float scale = 1.0f;
    if (norm) {
        float squares = 0.0f;
        for (u32 d = lane; d < dim; d += kLanes) {
            squares = fmaf(x[d], x[d], squares);
        }
#pragma unroll
        for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
            squares += __shfl_xor_sync(kAllLanes, squares, mask);
        }
        scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
    }
    const u32 rotated = (ops & kHeadRotate) != 0 ? 2 * pairs : 0;
    const bool interleaved = (ops & kHeadInterleaved) != 0;
    for (u32 pair = lane; pair < rotated / 2; pair += kLanes) {
        const u32 first = interleaved ? 2 * pair : pair;
        const u32 second = first + (interleaved ? 1 : pairs);
        float a = x[first], b = x[second];
        if (norm) {
            a = a * scale * gain[first];
            b = b * scale * gain[second];
        }
        const float cosine = angles[2 * pair], sine = angles[2 * pair + 1];
        Place::store(place, first, fmaf(a, cosine, -(b * sine)));
        Place::store(place, second, fmaf(a, sine, b * cosine));
    }
    for (u32 d = rotated + lane; d < dim; d += kLanes) {
        Place::store(place, d, norm ? x[d] * scale * gain[d] : x[d]);
    }
}

// Per-head norms and rotations in place; one warp for each head of a row, row by row.
// x: [count][x_stride], columns ..heads * dim; gain: [dim]; angles: [count][pairs] {cos, sin};
// ops: HeadOps, gain and angles are read by those that need them
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_heads(float* x, u32 x_stride, u32 count, u32 heads, u32 dim, u32 ops, const float* gain,
           float eps, const float* angles, u32 pairs) {
    const u32 unit = blockIdx.x * (blockDim.x / kLanes) + threadIdx.x / kLanes;
    const u32 row = unit / heads, head = unit % heads;
    if (row < count) {
        float* at = x + u64{row} * x_stride + head * dim;
        treat_head(at, dim, ops, gain, eps, angles + u64{row} * (2 * pairs), pairs, InRow{at});
    }
}

// Where a row's token lies in the cache: the start of its page, in bytes.
DEVICE u64 page_of(const u8* arena, const Row& row, u32 page_places) {
    const u32* table = reinterpret_cast<const u32*>(arena + u64{row.pages} * 16);
    return table[row.position / kPageTokens] * (u64{page_places} * 16);
}

// Keys, with norms and rotations as rows_heads, and values of every row into the KV cache; one warp
// for each head of keys, then of values, of a row. Rows whose pages are nowhere have none.
// arena: page tables; rows: [count]; k: [count][k_stride], columns ..kv_heads * key_dim; v:
// [count][v_stride], columns ..kv_heads * value_dim; gain: [key_dim]; angles: [count][pairs];
// cache: page 0 of the layer
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_kv_append(const u8* arena, const Row* rows, u32 count, const float* k, u32 k_stride,
               const float* v, u32 v_stride, u32 kv_heads, u32 key_dim, u32 value_dim, u32 ops,
               const float* gain, float eps, const float* angles, u32 pairs, u8* cache,
               u32 page_places) {
    const u32 unit = blockIdx.x * (blockDim.x / kLanes) + threadIdx.x / kLanes;
    const u32 index = unit / (2 * kv_heads), lane = threadIdx.x % kLanes;
    u32 head = unit % (2 * kv_heads);
    if (index >= count || rows[index].pages == kNowhere) {
        return;
    }
    const Row row = rows[index];
    u16* page = reinterpret_cast<u16*>(cache + page_of(arena, row, page_places));
    const u32 token = row.position % kPageTokens;
    if (head < kv_heads) {
        u16* keys = page + (head * key_dim * kPageTokens + 8 * token);
        treat_head(k + u64{index} * k_stride + head * key_dim, key_dim, ops, gain, eps,
                   angles + u64{index} * (2 * pairs), pairs, InKeys{keys});
    } else {
        head -= kv_heads;
        u16* values = page + (kv_heads * key_dim * kPageTokens) +
                      (head * kPageTokens + token) * value_dim;
        const float* from = v + u64{index} * v_stride + head * value_dim;
        for (u32 d = lane; d < value_dim; d += kLanes) {
            values[d] = static_cast<u16>(float_to_half(from[d]));
        }
    }
}

// The same of int8 (kv.cuh), of keys that are normed and rotated.
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_kv_append_int8(const u8* arena, const Row* rows, u32 count, const float* k, u32 k_stride,
                    const float* v, u32 v_stride, u32 kv_heads, u32 key_dim, u32 value_dim,
                    u8* cache, u32 page_places) {
    const u32 unit = blockIdx.x * (blockDim.x / kLanes) + threadIdx.x / kLanes;
    const u32 index = unit / (2 * kv_heads), number = unit % (2 * kv_heads);
    if (index >= count || rows[index].pages == kNowhere) {
        return;
    }
    const Row row = rows[index];
    u8* page = cache + page_of(arena, row, page_places);
    const u32 token = row.position % kPageTokens;
    const bool is_key = number < kv_heads;
    const u32 head = is_key ? number : number - kv_heads, dim = is_key ? key_dim : value_dim;
    const float* from = is_key ? k + u64{index} * k_stride : v + u64{index} * v_stride;
    from += head * dim;
    // The head's first element, and how far each eight is from the one before.
    u8* to = is_key ? page + (head * key_dim * kPageTokens + 8 * token)
                    : page + kv_heads * key_dim * kPageTokens +
                          (head * kPageTokens + token) * value_dim;
    const u32 step = is_key ? 8 * kPageTokens : 8;
    const auto quantiser = Quantiser::of(from, dim);
    for (u32 d = threadIdx.x % kLanes; d < dim; d += kLanes) {
        to[d / 8 * step + d % 8] = Quantiser::byte(quantiser, from[d]);
    }
    u8* scales = page + kv_heads * (key_dim + value_dim) * kPageTokens;
    if (threadIdx.x % kLanes == 0) {
        reinterpret_cast<float*>(scales)[number * kPageTokens + token] = quantiser.scale;
    }
}

// What rows_heads makes of queries and rows_kv_append of keys and values, of partial products of a row's
// queries, keys and values one behind the other; one warp for each head of a row, dim floats of shared
// memory for each warp, dim the larger one of two multiples of 8.
// partials: [splits][count][width], width a multiple of 4; bias: as long as a row; q: [count][q_stride];
// the rest as there
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_sum_heads(const u8* arena, const Row* rows, u32 count, const float* partials, u32 splits,
               u32 width, const float* bias, float* q, u32 q_stride, u32 heads, u32 kv_heads,
               u32 key_dim, u32 value_dim, u32 ops, const float* q_gain, const float* k_gain,
               float eps, const float* angles, u32 pairs, u8* cache, u32 page_places) {
    DYNAMIC_SHARED(float, shared);
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const u32 unit = blockIdx.x * (blockDim.x / kLanes) + warp, of_row = heads + 2 * kv_heads;
    const u32 index = unit / of_row, head = unit % of_row;
    if (index >= count) {
        return;
    }
    const Row row = rows[index];
    if (row.pages == kNowhere) {
        return;
    }
    // Queries have none, but it is not waited for.
    u16* page = reinterpret_cast<u16*>(cache + page_of(arena, row, page_places));
    const bool is_value = head >= heads + kv_heads;
    const u32 values_before = is_value ? head - heads - kv_heads : 0;
    const u32 first = (head - values_before) * key_dim + values_before * value_dim;
    const u32 dim = is_value ? value_dim : key_dim;
    const Partials parts = {partials, splits, u64{count} * width};
    float* own = shared + warp * max(key_dim, value_dim);
    for (u32 d = 4 * lane; d < dim; d += 4 * kLanes) {
        float4 v = Partials::sum_quad(parts, u64{index} * width + first + d);
        if ((ops & kHeadBias) != 0) {
            const float* more = bias + first + d;
            v = {v.x + more[0], v.y + more[1], v.z + more[2], v.w + more[3]};
        }
        *reinterpret_cast<float4*>(own + d) = v;
    }
    __syncwarp();
    angles += u64{index} * (2 * pairs);
    if (head < heads) {
        treat_head(own, dim, ops, q_gain, eps, angles, pairs,
                   InRow{q + u64{index} * q_stride + head * key_dim});
        return;
    }
    const u32 token = row.position % kPageTokens;
    if (is_value) {
        u16* values = page + kv_heads * key_dim * kPageTokens +
                      (values_before * kPageTokens + token) * value_dim;
        for (u32 d = lane; d < dim; d += kLanes) {
            values[d] = static_cast<u16>(float_to_half(own[d]));
        }
    } else {
        const u32 others = ops & ~u32{kHeadNorm};
        const u32 of_keys = (ops & kHeadNormKeys) != 0 ? others | kHeadNorm : others;
        u16* keys = page + ((head - heads) * key_dim * kPageTokens + 8 * token);
        treat_head(own, dim, of_keys, k_gain, eps, angles, pairs, InKeys{keys});
    }
}

// out = softmax(scores) * values for each row over its sequence up to itself: row_attention.cuh.
// kDims * 32 is the largest value_dim; a warp takes kQueries queries and kQueries * max(key_dim +
// 32 * kPages, value_dim + 2) floats of dynamic shared memory; any number of warps.
//
// Tiles are rows of one sequence at consecutive positions, whose keys and values are in the cache; of
// rows whose pages are nowhere nothing is written.
// A tile has count * heads / kv_heads queries for each KV head: best as many as warps * kQueries.
// Grid: tile_count * kv_heads * blocks, so many blocks for each KV head that they have a warp for
// each kQueries queries of the largest tile.
// arena: page tables; rows: [rows]; tiles: [tile_count] {first row, count}; q: [rows][q_stride],
// columns ..heads * key_dim; cache: page 0 of the layer, of type kKv; softcap, window: 0 for none;
// sinks: [heads], if there are; out: [rows][out_stride], columns ..heads * value_dim
//
// Those named single are for tiles of one row, of at most kQueries heads a KV head; 32 divides key_dim.
#define ROWS_ATTENTION(name, kKv, kThreads, kBlocks, kDims, kQueries, kPages, kAhead)         \
    KERNEL LAUNCH_BOUNDS(kThreads, kBlocks)                                                   \
    rows_attention_##name(const u8* arena, const Row* rows, const u32* tiles, u32 tile_count, \
                          const float* q, u32 q_stride, const u8* cache, u32 page_places,     \
                          u32 heads, u32 kv_heads, u32 key_dim, u32 value_dim, float scale,   \
                          float softcap, u32 window, const float* sinks, u32 has_sinks,       \
                          float* out, u32 out_stride) {                                       \
        attend<KvFormat<kKv>, kDims, kQueries, kPages, kAhead>(                               \
            {arena, rows, reinterpret_cast<const RowTile*>(tiles), q, q_stride, cache,        \
             page_places, heads, kv_heads, key_dim, value_dim, scale, softcap, window,        \
             has_sinks != 0 ? sinks : nullptr, out, out_stride},                              \
            tile_count);                                                                      \
    }

ROWS_ATTENTION(d64, kHalfKv, 256, 2, 2, 8, 2, 1)
ROWS_ATTENTION(d128, kHalfKv, 256, 2, 4, 8, 2, 1)
ROWS_ATTENTION(d256, kHalfKv, 128, 3, 8, 8, 2, 1)
ROWS_ATTENTION(d512, kHalfKv, 128, 3, 16, 4, 2, 1)
ROWS_ATTENTION(d1024, kHalfKv, 128, 3, 32, 2, 2, 1)
ROWS_ATTENTION(d64_int8, kInt8Kv, 256, 2, 2, 8, 2, 1)
ROWS_ATTENTION(d128_int8, kInt8Kv, 256, 2, 4, 8, 2, 1)
ROWS_ATTENTION(d256_int8, kInt8Kv, 128, 3, 8, 8, 2, 1)
ROWS_ATTENTION(d512_int8, kInt8Kv, 128, 3, 16, 4, 2, 1)
ROWS_ATTENTION(d1024_int8, kInt8Kv, 128, 3, 32, 2, 2, 1)
ROWS_ATTENTION(single_d64, kHalfKv, 256, 2, 2, 4, 2, 4)
ROWS_ATTENTION(single_d128, kHalfKv, 256, 2, 4, 4, 2, 4)
ROWS_ATTENTION(single_d64_int8, kInt8Kv, 256, 2, 2, 4, 2, 4)
ROWS_ATTENTION(single_d128_int8, kInt8Kv, 256, 2, 4, 4, 2, 4)

// x = cap * tanh(x / cap), in place; gridDim.x / count blocks for each row.
// x: [count][x_stride], columns ..cols
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_softcap(float* x, u32 x_stride, u32 count, u32 cols, float cap) {
    const u32 parts = gridDim.x / count, row = blockIdx.x / parts, part = blockIdx.x % parts;
    const float inverse = 1.0f / cap;
    float* at = x + u64{row} * x_stride;
    for (u32 column = part * blockDim.x + threadIdx.x; column < cols && row < count;
         column += parts * blockDim.x) {
        at[column] = cap * tanhf(at[column] * inverse);
    }
}

// x / (1 + e^-y). For y below -88 the exponential is infinite and the result 0.
DEVICE float times_sigmoid(float x, float y) { return x / (1.0f + exp2_approx(y * -1.44269504f)); }

// out = act(gate) * up; gridDim.x / count blocks for each row.
// gate, up, out: [count][stride], columns ..cols; out may be gate or up; activation: Activation,
// not kNoActivation
KERNEL LAUNCH_BOUNDS(kRowThreads, 1)
rows_gate(const float* gate, u32 gate_stride, const float* up, u32 up_stride, u32 count, u32 cols,
          u32 activation, float* out, u32 out_stride) {
    const u32 parts = gridDim.x / count, row = blockIdx.x / parts, part = blockIdx.x % parts;
    const float *g = gate + u64{row} * gate_stride, *u = up + u64{row} * up_stride;
    float* to = out + u64{row} * out_stride;
    for (u32 column = part * blockDim.x + threadIdx.x; column < cols && row < count;
         column += parts * blockDim.x) {
        const float x = g[column];
        float y = x;
        if (activation == kGeluTanh) {
            // 0.5 (1 + tanh(z)) = sigmoid(2 z)
            y = 2.0f * 0.797884561f * fmaf(0.044715f * x * x, x, x);
        }
        to[column] = times_sigmoid(x, y) * u[column];
    }
}
