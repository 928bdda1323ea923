// Activations in shared memory, with the sums that formats need (planes.cuh).
//
// A row of activations is kGroupFloats floats a group: its 32 columns, then
//   formats with one scale a group:  [32] sum((power + zero) * x), [33] sum(x);
//   formats with two:                [32 + h] and [34 + h] the same for half h.
#pragma once

#include "marks.cuh"
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

// Of the four lanes that have a group.
DEVICE float square_sum(const Eight& v) {
    float sum = fmaf(v.low.x, v.low.x, v.low.y * v.low.y) + fmaf(v.low.z, v.low.z, v.low.w * v.low.w);
    sum += fmaf(v.high.x, v.high.x, v.high.y * v.high.y) +
           fmaf(v.high.z, v.high.z, v.high.w * v.high.w);
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

template <class C>
DEVICE void note_squares(Shared<C>& shared, const Eight& v, u32 index, bool active) {
    const float sum = square_sum(v);
    if (active && threadIdx.x % 4 == 0) {
        shared.squares[index] = sum;
    }
}

// Sums of squares of the groups of one row, from shared.squares[first] on.
template <class C>
DEVICE void measure_row(const Block<C>& block, const float* x, u32 groups, u32 cols, u32 first) {
#pragma unroll 1
    for (u32 item = threadIdx.x; item / kLanes * kLanes < groups * 4; item += C::kThreads) {
        note_squares(*block.shared, load_eight(x, item * 8, cols), first + item / 4,
                     item < groups * 4);
    }
}

// 1 / sqrt(mean of squares + eps) of one row, by a warp. squares: [groups], shared
DEVICE float root_of(const float* squares, u32 groups, u32 cols, float eps) {
    float sum = 0.0f;
    for (u32 group = threadIdx.x % kLanes; group < groups; group += kLanes) {
        sum += squares[group];
    }
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, mask);
    }
    return reciprocal_root_approx(sum * (1.0f / static_cast<float>(cols)) + eps);
}

// Brings the rows that a matvec multiplies with into shared memory, its prologue applied but for the
// division by the rms, which is left to the results.
//
// An item is eight columns of a row, one of each thread; a thread has some on their way at once. All
// lanes of a warp do their items together, for the shuffles.
enum Keeper : u32 {
    kOneBlock,   // of all that stage
    kThisBlock,
    kOtherBlock,
};

template <class C, class F, class Op>
class Staging {
  public:
    // Gains depend on nothing, so the first ones are loaded before the rows are awaited.
    DEVICE_METHOD Staging(const Block<C>& block, const Op& op)
        : x_(at<float>(block, op.x)), wanted_(Wanted::of<C>(op.flags, 0)) {
#pragma unroll
        for (u32 i = 0; i < kGains; ++i) {
            gains_[i] = i * C::kThreads * 8 < op.cols
                            ? load_gain(block, op, (threadIdx.x + i * C::kThreads) * 8)
                            : zero_eight();
        }
    }

    // kAddRmsNorm: 1 / rms of the rows of the block that is added.
    DEVICE_METHOD void measure_added(const Block<C>& block, const Op& op, u32 groups) {
        Shared<C>& shared = *block.shared;
        const u32 rows = min(C::kBatch, shared.row_count);
#pragma unroll 1
        for (u32 row = 0; row < rows; ++row) {
            measure_row(block, at<float>(block, op.block) + row * op.x_stride, groups, op.cols,
                        row * kNormGroups);
        }
        __syncthreads();
#pragma unroll 1
        for (u32 row = threadIdx.x / kLanes; row < rows; row += C::kWarps) {
            const float root =
                root_of(shared.squares + row * kNormGroups, groups, op.cols, op.block_eps);
            if (threadIdx.x % kLanes == 0) {
                shared.block_roots[row] = root;
            }
        }
        __syncthreads();
    }

    // `count` groups from `first` on of all rows; zeros behind the last column. Barriers before and
    // after are the caller's. measure: sums of squares too, and what kAddRmsNorm stores, by `keeper`
    DEVICE_METHOD void stage(const Block<C>& block, const Op& op, u32 first, u32 count, bool measure,
                             Keeper keeper) {
        const u32 items = count * 4, all = items * rows_of(*block.shared);  // whole warps
#pragma unroll 1
        for (u32 start = 0; start < all; start += C::kThreads * C::kItems) {
            Eight v[C::kItems], gains[C::kItems];
#pragma unroll
            for (u32 i = 0; i < C::kItems; ++i) {
                const u32 item = start + i * C::kThreads + threadIdx.x;
                const u32 row = C::kBatch == 1 ? 0 : item / items;
                gains[i] = zero_eight();
                if (start + i * C::kThreads < all && item < all) {
                    gains[i] = start == 0 && first == 0 && i < kGains
                                   ? gains_[i]
                                   : load_gain(block, op, first * kGroup + (item - row * items) * 8);
                }
            }
            load_marked(*block.shared, [&] {
                bool old = false;
#pragma unroll
                for (u32 i = 0; i < C::kItems; ++i) {
                    const u32 item = start + i * C::kThreads + threadIdx.x;
                    const u32 row = C::kBatch == 1 ? 0 : item / items;
                    const u32 column = first * kGroup + (item - row * items) * 8;
                    v[i] = zero_eight();
                    if (start + i * C::kThreads < all && item < all && column < op.cols) {
                        v[i] = load_eight(x_ + row * op.x_stride, column, op.cols);
                        old |= op.prologue != kAddRmsNorm && is_old(v[i].low, v[i].high, wanted_);
                    }
                }
                return old;
            });
#pragma unroll
            for (u32 i = 0; i < C::kItems; ++i) {
                const u32 item = start + i * C::kThreads + threadIdx.x;
                if (start + i * C::kThreads < all && item < all) {
                    const u32 row = C::kBatch == 1 ? 0 : item / items;
                    store_item(block, op, row, first, item - row * items, count, v[i], gains[i],
                               measure, keeper);
                }
            }
        }
    }

  private:
    // Items of a thread whose gains are loaded ahead: those of a single row.
    static constexpr u32 kGains = C::kBatch == 1 ? C::kItems : 0;

    DEVICE_MEMBER Eight load_gain(const Block<C>& block, const Op& op, u32 column) {
        return op.prologue == kPlain ? zero_eight()
                                     : load_gains(at<float>(block, op.gain), column, op.cols);
    }

    // item: of the row, from the first staged group on
    DEVICE_MEMBER void store_item(const Block<C>& block, const Op& op, u32 row, u32 first, u32 item,
                                  u32 count, Eight v, const Eight& gain, bool measure,
                                  Keeper keeper) {
        Shared<C>& shared = *block.shared;
        const u32 column = first * kGroup + item * 8, group = item / 4;
        if (op.prologue != kPlain) {
            if (op.prologue == kAddRmsNorm && column < op.cols) {
                v = added(block, op, row, column, v);
                const bool chosen = blockIdx.x - op.first_block == min(row, op.blocks - 1);
                const bool stores = keeper == kOneBlock ? chosen : keeper == kThisBlock;
                if (stores && measure && op.stream != kNowhere) {
                    float* stream = at<float>(block, op.stream) + row * op.x_stride + column;
                    reinterpret_cast<float4*>(stream)[0] = v.low;
                    reinterpret_cast<float4*>(stream)[1] = v.high;
                }
            }
            if (measure) {
                const u32 index = first + group;
                note_squares(shared, v, row * kNormGroups + index, index < kNormGroups);
            }
            v = times(v, gain);
        }
        float* out = shared.pool + (row * count + group) * kGroupFloats;
        store_eight<F>(v, out, threadIdx.x % 4 * 8, true);
    }

    DEVICE_MEMBER Eight added(const Block<C>& block, const Op& op, u32 row, u32 column,
                              const Eight& v) {
        const float* from = at<float>(block, op.block) + row * op.x_stride;
        const Eight add = times(load_eight(from, column, op.cols),
                                load_gains(at<float>(block, op.block_gain), column, op.cols));
        const float root = block.shared->block_roots[row];
        return {{fmaf(add.low.x, root, v.low.x), fmaf(add.low.y, root, v.low.y),
                 fmaf(add.low.z, root, v.low.z), fmaf(add.low.w, root, v.low.w)},
                {fmaf(add.high.x, root, v.high.x), fmaf(add.high.y, root, v.high.y),
                 fmaf(add.high.z, root, v.high.z), fmaf(add.high.w, root, v.high.w)}};
    }

    const float* x_;  // of the first row
    Wanted wanted_;
    Eight gains_[kGains == 0 ? 1 : kGains];  // of the first items
};
