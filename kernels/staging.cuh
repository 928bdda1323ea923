// Activations in shared memory, with the sums that formats need (planes.cuh).
//
// A row of activations is kGroupFloats floats a group: its 32 columns, then
//   formats with one scale a group:  [32] sum((power + zero) * x), [33] sum(x);
//   formats with two:                [32 + h] and [34 + h] the same for half h.
#pragma once

#include "block.cuh"
#include "planes.cuh"

// Eight columns of a group, which one thread takes.
struct Eight {
    float4 low, high;
};

DEVICE Eight zero_eight() { return {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}}; }

// x[column..column + 8]; zeros from `cols` on. x: [cols], aligned to 16 bytes; 8 divides cols
DEVICE Eight load_eight(const float* x, u32 column, u32 cols) {
    if (column >= cols) {
        return zero_eight();
    }
    return {load_shared_by_blocks_16(x + column), load_shared_by_blocks_16(x + column + 4)};
}

// The same of gains, which no kernel writes.
DEVICE Eight load_gains(const float* x, u32 column, u32 cols) {
    if (column >= cols) {
        return zero_eight();
    }
    const uint4 a = load_weights_16(x + column), b = load_weights_16(x + column + 4);
    return {{as_float(a.x), as_float(a.y), as_float(a.z), as_float(a.w)},
            {as_float(b.x), as_float(b.y), as_float(b.z), as_float(b.w)}};
}

DEVICE Eight times(const Eight& a, const Eight& b) {
    return {{a.low.x * b.low.x, a.low.y * b.low.y, a.low.z * b.low.z, a.low.w * b.low.w},
            {a.high.x * b.high.x, a.high.y * b.high.y, a.high.z * b.high.z, a.high.w * b.high.w}};
}

// Stores eight columns of a group and, from all lanes of a warp, the sums over them.
// group: [kGroupFloats], shared; lanes of a warp that are not `active` store nothing
template <class F>
DEVICE void store_eight(const Eight& v, float* group, u32 column, bool active) {
    if (active) {
        *reinterpret_cast<float4*>(group + column) = v.low;
        *reinterpret_cast<float4*>(group + column + 4) = v.high;
    }
    if constexpr (F::kScaled) {
        constexpr u32 kLanesPerSum = 4 / F::kHalves;
        // Powers repeat every four columns, at most.
        const float4 w = {v.low.x + v.high.x, v.low.y + v.high.y, v.low.z + v.high.z,
                          v.low.w + v.high.w};
        float sum = w.x + w.y + (w.z + w.w);
        float biased = (F::power(0) + F::kZero) * w.x;
        biased = fmaf(F::power(1) + F::kZero, w.y, biased);
        biased = fmaf(F::power(2) + F::kZero, w.z, biased);
        biased = fmaf(F::power(3) + F::kZero, w.w, biased);
#pragma unroll
        for (u32 mask = 1; mask < kLanesPerSum; mask *= 2) {
            biased += __shfl_xor_sync(kAllLanes, biased, mask);
            sum += __shfl_xor_sync(kAllLanes, sum, mask);
        }
        if (active && column / 8 % kLanesPerSum == 0) {
            const u32 half = column / 8 / kLanesPerSum;
            group[kGroup + half] = biased;
            group[kGroup + F::kHalves + half] = sum;
        }
    }
}

// The sums of squares of a staged chunk, group by group in shared.squares ([rows][count]), added to
// totals; behind the last chunk to roots: 1 / sqrt(mean of squares + eps). One warp for each row.
//
// Groups are added up in eights first, then these one after another: so the order does not depend on
// how many groups a chunk has.
template <u32 kBatch>
DEVICE void fold_squares(const Block& block, u32 count, bool first, bool last, u32 cols, float eps,
                         float* roots) {
    Shared& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes;
    // From the last warp but two on: the last ones have barriers and the next op to look after.
#pragma unroll 1
    for (u32 row = (2 * kDecodeWarps - 3 - threadIdx.x / kLanes) % kDecodeWarps;
         row < min(kBatch, shared.row_count); row += kDecodeWarps) {
        float total = first ? 0.0f : shared.totals[row];
#pragma unroll 1
        for (u32 start = 0; start < count; start += kLanes) {
            float sum = start + lane < count ? shared.squares[row * count + start + lane] : 0.0f;
#pragma unroll
            for (u32 mask = 1; mask < 8; mask *= 2) {
                sum += __shfl_xor_sync(kAllLanes, sum, mask);
            }
#pragma unroll
            for (u32 eight = 0; eight < kLanes; eight += 8) {
                total += __shfl_sync(kAllLanes, sum, eight);
            }
        }
        __syncwarp();  // all lanes have read what one of them writes
        if (lane == 0) {
            shared.totals[row] = total;
            if (last) {
                const float mean = total * reciprocal_approx(static_cast<float>(cols));
                roots[row] = reciprocal_root_approx(mean + eps);
            }
        }
    }
}

// Of the four lanes that have a group.
DEVICE float square_sum(const Eight& v) {
    float sum = fmaf(v.low.x, v.low.x, v.low.y * v.low.y) + fmaf(v.low.z, v.low.z, v.low.w * v.low.w);
    sum += fmaf(v.high.x, v.high.x, v.high.y * v.high.y) +
           fmaf(v.high.z, v.high.z, v.high.w * v.high.w);
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

// Brings the rows that a matvec multiplies with into shared memory, its prologue applied but for the
// division by the rms, which is left to the results.
//
// An item is eight columns of a row, one of each thread; the next item is on its way while one is
// worked on. All lanes of a warp do their items together, for the shuffles.
template <class F, u32 kBatch>
class Staging {
  public:
    // Gains depend on nothing, so the first ones are loaded before the rows are awaited.
    DEVICE_METHOD Staging(const Block& block, const MatvecOp& op) {
        gain_ = load_gain(block, op, threadIdx.x * 8);
    }

    // kAddRmsNorm: 1 / rms of the rows of the block that is added. chunk: groups measured at a time
    DEVICE_METHOD void measure_added(const Block& block, const MatvecOp& op, u32 groups, u32 chunk) {
        Shared& shared = *block.shared;
        const u32 items = (chunk * 4 + kDecodeThreads - 1) / kDecodeThreads;  // of a thread in a row
#pragma unroll 1
        for (u32 first = 0; first < groups; first += chunk) {
            const u32 count = min(chunk, groups - first);
#pragma unroll 1
            for (u32 row = 0; row < shared.row_count; ++row) {
#pragma unroll 1
                for (u32 n = 0; n < items; ++n) {
                    const u32 at = n * kDecodeThreads + threadIdx.x;
                    if (at / kLanes * kLanes < count * 4) {
                        const float* added = Block::at<float>(block, op.block) + row * op.x_stride;
                        const u32 column = at < count * 4 ? first * kGroup + at * 8 : op.cols;
                        note_squares(shared, load_eight(added, column, op.cols),
                                     row * count + at / 4, at < count * 4);
                    }
                }
            }
            __syncthreads();
            fold_squares<kBatch>(block, count, first == 0, first + count == groups, op.cols,
                                 op.block_eps, shared.block_roots);
            __syncthreads();
        }
    }

    // Groups first..first + count of all rows; zeros behind the last column. Barriers before and
    // after are the caller's.
    // measure: sums of squares too, and what kAddRmsNorm stores
    DEVICE_METHOD void stage(const Block& block, const MatvecOp& op, u32 first, u32 count,
                             bool measure) {
        const u32 rows = min(kBatch, block.shared->row_count);
        u32 row = 0, at = threadIdx.x;
        if (!measure || first > 0) {
            gain_ = load_gain(block, op, first * kGroup + at * 8);
        }
        Eight v = load_item(block, op, row, first, at, count);
        Eight gain = gain_;
#pragma unroll 1
        while (row < rows) {
            const u32 now_row = row, now = at;
            const Eight x = v, g = gain;
            at += kDecodeThreads;
            if (at - threadIdx.x >= count * 4) {
                at = threadIdx.x;
                ++row;
            }
            if (row < rows) {
                v = load_item(block, op, row, first, at, count);
                gain = load_gain(block, op, first * kGroup + at * 8);
            }
            if (now / kLanes * kLanes < count * 4) {
                store_item(block, op, now_row, first * kGroup + now * 8, now / 4, count, x, g,
                           measure);
            }
        }
    }

  private:
    DEVICE_MEMBER Eight load_item(const Block& block, const MatvecOp& op, u32 row, u32 first, u32 at,
                                  u32 count) {
        const float* x = Block::at<float>(block, op.x) + row * op.x_stride;
        return load_eight(x, at < count * 4 ? first * kGroup + at * 8 : op.cols, op.cols);
    }

    DEVICE_MEMBER Eight load_gain(const Block& block, const MatvecOp& op, u32 column) {
        return op.prologue == kPlain ? zero_eight()
                                     : load_gains(Block::at<float>(block, op.gain), column, op.cols);
    }

    DEVICE_MEMBER void note_squares(Shared& shared, const Eight& v, u32 index, bool active) {
        const float sum = square_sum(v);
        if (active && threadIdx.x % 4 == 0) {
            shared.squares[index] = sum;
        }
    }

    DEVICE_MEMBER void store_item(const Block& block, const MatvecOp& op, u32 row, u32 column,
                                  u32 group, u32 count, Eight v, const Eight& gain,
                                  bool measure) {
        Shared& shared = *block.shared;
        const bool active = group < count;
        if (op.prologue != kPlain) {
            if (op.prologue == kAddRmsNorm && column < op.cols) {
                v = added(block, op, row, column, v);
                // Every block has the row; one stores it.
                const bool stores = blockIdx.x == min(row, gridDim.x - 1);
                if (stores && measure && op.stream != kNowhere) {
                    float* stream = Block::at<float>(block, op.stream) + row * op.x_stride + column;
                    reinterpret_cast<float4*>(stream)[0] = v.low;
                    reinterpret_cast<float4*>(stream)[1] = v.high;
                }
            }
            if (measure) {
                note_squares(shared, v, row * count + group, active);
            }
            v = times(v, gain);
        }
        float* out = shared.pool + (row * count + group) * kGroupFloats;
        store_eight<F>(v, out, threadIdx.x % 4 * 8, active);
    }

    DEVICE_MEMBER Eight added(const Block& block, const MatvecOp& op, u32 row, u32 column,
                              const Eight& v) {
        const float* from = Block::at<float>(block, op.block) + row * op.x_stride;
        const Eight add = times(load_eight(from, column, op.cols),
                                load_gains(Block::at<float>(block, op.block_gain), column, op.cols));
        const float root = block.shared->block_roots[row];
        return {{fmaf(add.low.x, root, v.low.x), fmaf(add.low.y, root, v.low.y),
                 fmaf(add.low.z, root, v.low.z), fmaf(add.low.w, root, v.low.w)},
                {fmaf(add.high.x, root, v.high.x), fmaf(add.high.y, root, v.high.y),
                 fmaf(add.high.z, root, v.high.z), fmaf(add.high.w, root, v.high.w)}};
    }

    Eight gain_;  // of the first item
};
