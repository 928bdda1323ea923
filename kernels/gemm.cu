// y = x * W^T for many rows x: prompts, and decoding of more rows than matvec takes. One kernel for
// each weight type and 128, 64, 32 or 16 rows of x in a tile.
//
// A block turns weights into floats on their way to shared memory, once for all rows of its tile;
// from there each thread multiplies 8 by 8 of them at a time. While it works on a step of columns,
// the next one's are on their way.

#include "gemm.cuh"

// The part of a thread in a tile: 8 rows and 8 columns, each in two quads.
//
// Lanes that differ in bit 0 have the same rows, and in bit 1 the same columns: so a read of 16
// bytes a lane takes as little time as shared memory allows.
template <class Cut>
struct Part {
    u32 row, column;  // of the first quads
    static constexpr u32 kRowStep = 4 * Cut::kHigh, kColumnStep = 4 * Cut::kWide;

    DEVICE_MEMBER Part of_thread() {
        const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
        constexpr u32 kWarpsWide = Cut::kColumns / (8 * Cut::kWide);
        const u32 high = (lane >> 1 & 1) | (Cut::kHigh == 4 ? lane >> 3 & 2 : 0);
        const u32 wide = (lane & 1) | (lane >> 1 & (Cut::kHigh == 4 ? 6 : 14));
        return {warp / kWarpsWide * (8 * Cut::kHigh) + 4 * high,
                warp % kWarpsWide * (8 * Cut::kWide) + 4 * wide};
    }
};

DEVICE void load_quads(const float* p, u32 step, float (&values)[8]) {
    const float4 low = load_staged_16(p), high = load_staged_16(p + step);
    values[0] = low.x;
    values[1] = low.y;
    values[2] = low.z;
    values[3] = low.w;
    values[4] = high.x;
    values[5] = high.y;
    values[6] = high.z;
    values[7] = high.w;
}

// Adds the products of a step of columns.
// x: [kStep][kRowStride], w: [kStep][kColumnStride], shared, from the thread's first quads on
template <class Cut>
DEVICE void multiply(const float* x, const float* w, float (&sums)[8][8]) {
#pragma unroll
    for (u32 k = 0; k < Cut::kStep; ++k) {
        float rows[8], columns[8];
        load_quads(x + k * Cut::kRowStride, Part<Cut>::kRowStep, rows);
        load_quads(w + k * Cut::kColumnStride, Part<Cut>::kColumnStep, columns);
#pragma unroll
        for (u32 n = 0; n < 64; ++n) {
            const u32 i = Cut::kRowByRow ? n / 8 : n % 8, j = Cut::kRowByRow ? n % 8 : n / 8;
            sums[i][j] = fmaf(rows[i], columns[j], sums[i][j]);
        }
    }
}

// The thread's part of y. Two of its rows at a time go through shared memory, where only the thread
// itself reads them: so the code that finishes elements is there four times, not 64. Quads lie
// rotated: a quad that is stored at once takes registers of consecutive banks, as the columns that
// were loaded at once do, and would have each product's sum in the bank of its column.
// spare: 16 floats a thread, shared
template <class Cut>
DEVICE void write(const GemmArgs& args, u32 first_row, u32 first_column,
                  const float (&sums)[8][8], float4* spare) {
    constexpr u32 kThreads = Cut::kThreads;
    const Part<Cut> part = Part<Cut>::of_thread();
    spare += threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < 8; i += 2) {
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            const float(&s)[8] = sums[i + j];
            spare[2 * j * kThreads] = {s[3], s[0], s[1], s[2]};
            spare[(2 * j + 1) * kThreads] = {s[7], s[4], s[5], s[6]};
        }
        const u32 row = first_row + part.row + i / 4 * Part<Cut>::kRowStep + i % 4;
#pragma unroll 1
        for (u32 quad = 0; quad < 4; ++quad) {
            const u32 column = first_column + part.column + quad % 2 * Part<Cut>::kColumnStep;
            const float4 v = load_staged_16(spare + quad * kThreads);
            finish_quad(args, row + quad / 2, column, {v.y, v.z, v.w, v.x});
        }
    }
}

// splits: blocks that share a tile, each a part of the columns of x and W. Several blocks
// write their sums to partials, [splits][m][rows in whole quads], and gemm_sum makes y of them.
// second: planes like those of the weights. Blocks beyond those that the weights take are of these, and
// write behind their partials.
template <class F, u32 kTile>
DEVICE void gemm(GemmArgs args, float* partials, u32 splits, const u8* second) {
    using Cut = GemmCut<kTile>;
    using Weights = Feed<F, Cut::kFeed>;
    constexpr u32 kRowFloats = Cut::kStep * Cut::kRowStride;
    constexpr u32 kStage = kRowFloats + Cut::kStep * Cut::kColumnStride;
    STATIC_SHARED(float, staged, 2 * kStage);

    // Tiles of the same weights are neighbours, so that these are read from memory once.
    const u32 high = (args.m + kTile - 1) / kTile;
    const u32 tiles = high * ((args.weights.rows + Cut::kColumns - 1) / Cut::kColumns);
    const u32 share = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    u32 split = share;
    if (Cut::kSecond && share >= splits) {
        split -= splits;
        args.weights.start = second;
    }
    const u32 first_row = tile % high * kTile, first_column = tile / high * Cut::kColumns;

    const u32 groups = (args.weights.cols + kGroup - 1) / kGroup;
    const u32 rounds = (groups + Cut::kPairs - 1) / Cut::kPairs;
    const u32 first = 4 * (rounds * split / splits), end = 4 * (rounds * (split + 1) / splits);

    const u32 of_pair = threadIdx.x % Cut::kPairs;
    const u32 feed_row = threadIdx.x / Cut::kPairs * Cut::kFeed;
    Weights weights = Weights::begin(args.weights, first_column + feed_row);
    using Rows = Activations<Cut>;
    Rows activations = Rows::begin(args, first_row + threadIdx.x / 2);
    // Where the thread stores its weights of the first column of a step.
    const u32 feed_at = opaque(kRowFloats + feed_row +
                               step_quad<Cut::kPairs>(of_pair, 0) * 4 * Cut::kColumnStride);

    const auto load = [&](u32 step) {
        const u32 group = step / 4 * Cut::kPairs, eighth = step % 4;
        Rows::template load<!F::kScaled>(activations, args, group * kGroup + eighth * 8);
        Weights::load(weights, args.weights, group + of_pair, eighth);
    };
    // Stages take turns; where this one starts.
    const auto stage = [&](u32 step) { return step % 2 * kStage; };
    const auto store = [&](u32 step) {
        float* out = staged + stage(step);
        Rows::store(activations, out);
        float unpacked[Cut::kFeed][8];
        const u32 group = step / 4 * Cut::kPairs + of_pair;
        Weights::unpack(weights, args.weights, group, step % 4, unpacked);
        out += feed_at;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 column = step_quad<Cut::kPairs>(0, i / 4) * 4 + i % 4;
            store_row<Cut::kFeed>(out + column * Cut::kColumnStride, unpacked, i);
        }
    };

    float sums[8][8] = {};
    if (first < end) {
        load(first);
        store(first);
        if (!Cut::kBarrierFirst) {
            __syncthreads();
        }
    }
    const Part<Cut> part = Part<Cut>::of_thread();
    const u32 x_at = part.row, w_at = (kRowFloats + part.column);
    for (u32 step = first; step < end; ++step) {
        // After the last step this loads once more, in bounds, for nothing.
        load(step + 1);
        if (Cut::kBarrierFirst) {
            __syncthreads();
        }
        const float* x = staged + (stage(step) + x_at);
        const float* w = staged + (stage(step) + w_at);
        multiply<Cut>(x, w, sums);
        store(step + 1);
        if (!Cut::kBarrierFirst) {
            __syncthreads();
        }
    }
    if (Cut::kBarrierFirst) {
        __syncthreads();
    }

    if (splits > 1) {
        args.y_stride = (args.weights.rows + 3) / 4 * 4;
        args.y = partials + u64{share} * args.m * args.y_stride;
        args.flags = 0;
    }
    write<Cut>(args, first_row, first_column, sums, reinterpret_cast<float4*>(staged));
}

// Parameters one by one, as the host's launches check them: buffers and numbers.
//
// weights: the planes of [rows, cols], `high` to `supers` their offsets in bytes
// x: [m][x_stride], aligned to 16 bytes; 4 divides x_stride
// y: [m][y_stride], aligned to 16 bytes; faster if 4 divides y_stride
// bias: [rows]; other: [m][y_stride], may be y; flags: kGemmBias.. combined
// splits: parts of the columns; if several, partials: [splits][m][rows in whole quads]
// second: planes that lie as those of weights; of tiles of 32 and 16 rows twice the blocks may be
// launched for several splits, whose partials are [2][splits][m][rows in whole quads]
//
// Launched as ceil(m / tile) * ceil(rows / 128) * splits blocks of 2 * tile threads.
#define GEMM_TILE(name, Format, kTile)                                                            \
    KERNEL LAUNCH_BOUNDS(GemmCut<kTile>::kThreads, GemmCut<kTile>::kBlocks)                       \
    gemm_##name##_m##kTile(const u8* weights, u64 high, u64 scales, u64 tops, u64 supers,         \
                           u32 rows, u32 cols, const float* x, u32 x_stride, u32 m, float* y,     \
                           u32 y_stride, const float* bias, const float* other, u32 flags,        \
                           float softcap, float* partials, u32 splits, const u8* second) {        \
        gemm<Format, kTile>({{weights, high, scales, tops, supers, rows, cols},                   \
                             x,                                                                   \
                             x_stride,                                                            \
                             m,                                                                   \
                             y,                                                                   \
                             y_stride,                                                            \
                             bias,                                                                \
                             other,                                                               \
                             flags,                                                               \
                             softcap},                                                            \
                            partials, splits, second);                                                \
    }
#define GEMM(name, Format)       \
    GEMM_TILE(name, Format, 128) \
    GEMM_TILE(name, Format, 64)  \
    GEMM_TILE(name, Format, 32)  \
    GEMM_TILE(name, Format, 16)

GEMM(f32, F32)
GEMM(f16, F16)
GEMM(bf16, BF16)
GEMM(q4_0, Q4_0)
GEMM(q4_1, Q4_1)
GEMM(q5_0, Q5_0)
GEMM(q5_1, Q5_1)
GEMM(q8_0, Q8_0)
GEMM(q2_k, Q2_K)
GEMM(q3_k, Q3_K)
GEMM(q4_k, Q4_K)
GEMM(q5_k, Q5_K)
GEMM(q6_k, Q6_K)
GEMM(iq4_nl, IQ4_NL)
GEMM(iq4_xs, IQ4_XS)
GEMM(mxfp4, MXFP4)

// y of the partial sums of gemm kernels, added up in the order of their columns. Any grid.
// partials: [splits][m][rows in whole quads]; the rest as there, `rows` the width of y
KERNEL LAUNCH_BOUNDS(256, 4)
gemm_sum(const float* partials, u32 splits, u32 rows, u32 m, float* y, u32 y_stride,
         const float* bias, const float* other, u32 flags, float softcap) {
    const GemmArgs args = {{nullptr, 0, 0, 0, 0, rows, 0}, nullptr, 0, m, y, y_stride, bias,
                           other, flags, softcap};
    const u32 quads = (rows + 3) / 4;
    const u64 all = u64{m} * quads, step = u64{gridDim.x} * blockDim.x;
    for (u64 at = u64{blockIdx.x} * blockDim.x + threadIdx.x; at < all; at += step) {
        const float* from = partials + at * 4;
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        for (u32 split = 0; split < splits; ++split, from += all * 4) {
            const float4 v = *reinterpret_cast<const float4*>(from);
            sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
        }
        finish_quad(args, static_cast<u32>(at / quads), static_cast<u32>(at % quads) * 4, sum);
    }
}
