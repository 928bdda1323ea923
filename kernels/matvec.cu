// y = x * W^T for 1 to 8 rows x, one kernel for each weight type and 1, 2, 4 or 8 rows.
//
// A warp takes a few rows of W and streams them once: each lane a group of 32 columns at a time, the
// next group's weights on their way while it works on one. Activations are staged in shared memory,
// in chunks of columns if they do not fit as a whole; products over chunks add up in y.

#include "staging.cuh"

// What is added to the products. Buffers that are not added may be any.
enum : u32 { kAddBias = 1, kAddResidual = 2, kAddToOutput = 4 };

struct MatvecArgs {
    Planes weights;         // [rows, cols]
    const float* x;         // [batch][cols]
    float* y;               // [batch][rows]
    const float* bias;      // [rows]
    const float* residual;  // [batch][rows]
    u32 batch;              // 1..=kBatch
    u32 chunk;              // groups staged at once; kBatch * chunk * 144 bytes of shared memory
    u32 adds;               // kAddBias.. combined
};

// Adds the products of a tile with the staged activations of its group.
// x: [kBatch] rows of a group, each `stride` floats after the one before, shared
template <class F, u32 kRows, u32 kBatch>
DEVICE void accumulate(const Tile<F, kRows>& tile, const float* x, u32 stride,
                       float (&sums)[kRows][kBatch]) {
    constexpr u32 kEighths = 4 / F::kHalves;
#pragma unroll
    for (u32 half = 0; half < F::kHalves; ++half) {
        float dots[kRows][kBatch];
#pragma unroll
        for (u32 b = 0; b < kBatch; ++b) {
            const float start = F::kScaled ? -x[b * stride + kGroup + half] : 0.0f;
#pragma unroll
            for (u32 r = 0; r < kRows; ++r) {
                dots[r][b] = F::kScaled ? start : sums[r][b];
            }
        }
#pragma unroll
        for (u32 i = 0; i < kEighths; ++i) {
            const u32 eighth = half * kEighths + i;
            float f[kRows][8];
#pragma unroll
            for (u32 r = 0; r < kRows; ++r) {
                F::weights8(tile, r, eighth, f[r]);
            }
#pragma unroll
            for (u32 b = 0; b < kBatch; ++b) {
                const float4* columns = reinterpret_cast<const float4*>(x + b * stride + 8 * eighth);
                const float4 low = columns[0], high = columns[1];
#pragma unroll
                for (u32 r = 0; r < kRows; ++r) {
                    float dot = dots[r][b];
                    dot = fmaf(f[r][0], low.x, dot);
                    dot = fmaf(f[r][1], low.y, dot);
                    dot = fmaf(f[r][2], low.z, dot);
                    dot = fmaf(f[r][3], low.w, dot);
                    dot = fmaf(f[r][4], high.x, dot);
                    dot = fmaf(f[r][5], high.y, dot);
                    dot = fmaf(f[r][6], high.z, dot);
                    dots[r][b] = fmaf(f[r][7], high.w, dot);
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
            float scale = 1.0f, min = 0.0f;
            if constexpr (F::kScaled) {
                F::scale_min(tile, r, half, scale, min);
            }
#pragma unroll
            for (u32 b = 0; b < kBatch; ++b) {
                if constexpr (!F::kScaled) {
                    sums[r][b] = dots[r][b];
                } else {
                    sums[r][b] = fmaf(scale, dots[r][b], sums[r][b]);
                    if constexpr (F::kHasMin) {
                        const float sum = x[b * stride + kGroup + F::kHalves + half];
                        sums[r][b] = fmaf(min, sum, sums[r][b]);
                    }
                }
            }
        }
    }
}

// The sums of kCount values over a warp: value `lane / (32 / kCount)` in each lane. kCount is a
// power of two up to 32. Half of the values change lanes at each step, so it takes about kCount
// shuffles, not 5 * kCount.
template <u32 kCount>
DEVICE float warp_sums(float (&values)[kCount], u32 lane) {
#pragma unroll
    for (u32 count = kCount, mask = 16; count > 1; count /= 2, mask /= 2) {
        const bool upper = (lane & mask) != 0;
#pragma unroll
        for (u32 i = 0; i < kCount / 2; ++i) {
            if (i < count / 2) {
                const float kept = upper ? values[i + count / 2] : values[i];
                const float given = upper ? values[i] : values[i + count / 2];
                values[i] = kept + __shfl_xor_sync(kAllLanes, given, mask);
            }
        }
    }
    float sum = values[0];
#pragma unroll
    for (u32 mask = 16 / kCount; mask > 0; mask /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, mask);
    }
    return sum;
}

// A warp's way through its rows of W, in one chunk of columns.
template <class F, u32 kRows>
struct Stream {
    u32 unit;   // the kRows rows being worked on
    u32 units;  // of W, padded to whole quads
    u32 step;   // warps of the grid
    Cursor<F, kRows> cursor;
    Tile<F, kRows> next;

    // Starts at the warp's first rows, with the first tile on its way.
    DEVICE_MEMBER Stream begin(const Planes& planes, u32 first, u32 count) {
        const u32 lane = threadIdx.x % kLanes, warps = blockDim.x / kLanes;
        Stream stream = {};
        stream.unit = blockIdx.x * warps + threadIdx.x / kLanes;
        stream.units = (planes.rows + 3) / 4 * (4 / kRows);
        stream.step = gridDim.x * warps;
        stream.cursor = Cursor<F, kRows>::at(planes, stream.unit * kRows, first + lane);
        if (stream.unit < stream.units && lane < count) {
            Cursor<F, kRows>::load(stream.cursor, stream.next);
        }
        return stream;
    }
};

// Rows of W times the staged chunk: groups first..first + count.
template <class F, u32 kRows, u32 kBatch>
DEVICE void multiply_chunk(const MatvecArgs& args, Stream<F, kRows> stream, const float* staged,
                           u32 first, u32 count) {
    using Weights = Cursor<F, kRows>;
    const u32 lane = threadIdx.x % kLanes;
    const u32 units = stream.units, step = stream.step;
    u32 unit = stream.unit;
    Weights weights = stream.cursor;
    Tile<F, kRows> next = stream.next;
    for (; unit < units; unit += step) {
        float sums[kRows][kBatch] = {};
        const float* x = staged + lane * kGroupFloats;
        for (u32 start = 0; start < count; start += kLanes, x += kLanes * kGroupFloats) {
            const Tile<F, kRows> tile = next;
            bool more = start + kLanes + lane < count;
            if (start + kLanes < count) {
                Weights::advance(weights);
            } else {
                weights = Weights::at(args.weights, (unit + step) * kRows, first + lane);
                more = unit + step < units && lane < count;
            }
            if (more) {
                Weights::load(weights, next);
            }
            if (start + lane < count) {
                accumulate<F, kRows, kBatch>(tile, x, count * kGroupFloats, sums);
            }
        }
        constexpr u32 kSums = kRows * kBatch, kLanesPerSum = kLanes / kSums;
        float flat[kSums];
#pragma unroll
        for (u32 i = 0; i < kSums; ++i) {
            flat[i] = sums[i / kBatch][i % kBatch];
        }
        float value = warp_sums(flat, lane);
        const u32 index = lane / kLanesPerSum, batch_row = index % kBatch;
        const u32 row = unit * kRows + index / kBatch;
        if (lane % kLanesPerSum == 0 && row < args.weights.rows && batch_row < args.batch) {
            const u64 at = u64{batch_row} * args.weights.rows + row;
            if (first == 0 && args.adds & kAddBias) {
                value += args.bias[row];
            }
            if (first == 0 && args.adds & kAddResidual) {
                value += args.residual[at];
            }
            if (first > 0 || args.adds & kAddToOutput) {
                value += args.y[at];
            }
            args.y[at] = value;
        }
    }
}

template <class F, u32 kBatch>
DEVICE void matvec(const MatvecArgs& args) {
    DYNAMIC_SHARED(float, staged);
    const u32 groups = (args.weights.cols + kGroup - 1) / kGroup;
    for (u32 first = 0; first < groups; first += args.chunk) {
        const u32 count = min(args.chunk, groups - first);
        constexpr u32 kRows = MatvecCut<F, kBatch>::kRows;
        // Weights depend on nothing, so they are on their way while activations are staged.
        const auto stream = Stream<F, kRows>::begin(args.weights, first, count);
        __syncthreads();
        stage<F, kBatch>(args.x, args.weights.cols, args.batch, first, count, staged);
        __syncthreads();
        multiply_chunk<F, kRows, kBatch>(args, stream, staged, first, count);
    }
}

// Parameters one by one, as the host's launches check them: buffers and numbers.
// weights: the planes of [rows, cols], `high` to `supers` their offsets in bytes; x: [batch][cols];
// y: [batch][rows]; bias: [rows]; residual: [batch][rows]; adds: kAddBias.. combined
#define MATVEC_BATCH(name, Format, kBatch)                                                     \
    KERNEL LAUNCH_BOUNDS(kMatvecThreads, (MatvecCut<Format, kBatch>::kBlocks))                 \
    matvec_##name##_b##kBatch(const u8* weights, u64 high, u64 scales, u64 tops, u64 supers,   \
                              u32 rows, u32 cols, const float* x, float* y, const float* bias, \
                              const float* residual, u32 batch, u32 chunk, u32 adds) {         \
        matvec<Format, kBatch>({{weights, high, scales, tops, supers, rows, cols}, x, y, bias, \
                                residual, batch, chunk, adds});                                \
    }
#define MATVEC(name, Format)      \
    MATVEC_BATCH(name, Format, 1) \
    MATVEC_BATCH(name, Format, 2) \
    MATVEC_BATCH(name, Format, 4) \
    MATVEC_BATCH(name, Format, 8)

MATVEC(f32, F32)
MATVEC(f16, F16)
MATVEC(bf16, BF16)
MATVEC(q4_0, Q4_0)
MATVEC(q4_1, Q4_1)
MATVEC(q5_0, Q5_0)
MATVEC(q5_1, Q5_1)
MATVEC(q8_0, Q8_0)
MATVEC(q2_k, Q2_K)
MATVEC(q3_k, Q3_K)
MATVEC(q4_k, Q4_K)
MATVEC(q5_k, Q5_K)
MATVEC(q6_k, Q6_K)
MATVEC(iq4_nl, IQ4_NL)
MATVEC(iq4_xs, IQ4_XS)
MATVEC(mxfp4, MXFP4)
