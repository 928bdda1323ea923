// Activations in shared memory, with the sums that formats need (planes.cuh).
//
// A row of activations is kGroupFloats floats a group: its 32 columns, then
//   formats with one scale a group:  [32] sum((power + zero) * x), [33] sum(x);
//   formats with two:                [32 + h] and [34 + h] the same for half h.
#pragma once

#include "planes.cuh"

// x[column..column + 4]; zeros from `cols` on. x: [cols], aligned to 16 bytes if 4 divides cols
DEVICE float4 load_columns(const float* x, u32 column, u32 cols) {
    if (cols % 4 == 0) {
        return column < cols ? load_shared_by_blocks_16(x + column)
                             : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    float4 v;
    v.x = column < cols ? load_shared_by_blocks(x + column) : 0.0f;
    v.y = column + 1 < cols ? load_shared_by_blocks(x + column + 1) : 0.0f;
    v.z = column + 2 < cols ? load_shared_by_blocks(x + column + 2) : 0.0f;
    v.w = column + 3 < cols ? load_shared_by_blocks(x + column + 3) : 0.0f;
    return v;
}

// Stores four columns of a group and, from all lanes of a warp, the sums over them.
// group: [kGroupFloats], shared; lanes of a warp that are not `active` store nothing
template <class F>
DEVICE void store_columns(float4 v, float* group, u32 column, bool active) {
    if (active) {
        *reinterpret_cast<float4*>(group + column) = v;
    }
    if constexpr (F::kScaled) {
        constexpr u32 kLanesPerSum = 8 / F::kHalves;
        // Powers repeat every four columns, at most.
        float sum = v.x + v.y + (v.z + v.w);
        float biased = (F::power(0) + F::kZero) * v.x;
        biased = fmaf(F::power(1) + F::kZero, v.y, biased);
        biased = fmaf(F::power(2) + F::kZero, v.z, biased);
        biased = fmaf(F::power(3) + F::kZero, v.w, biased);
#pragma unroll
        for (u32 mask = kLanesPerSum / 2; mask > 0; mask /= 2) {
            biased += __shfl_xor_sync(kAllLanes, biased, mask);
            sum += __shfl_xor_sync(kAllLanes, sum, mask);
        }
        if (active && column / 4 % kLanesPerSum == 0) {
            const u32 half = column / 4 / kLanesPerSum;
            group[kGroup + half] = biased;
            group[kGroup + F::kHalves + half] = sum;
        }
    }
}

// Groups first..first + count of `batch` rows of x, by the whole block; rows from `batch` to kBatch
// are zeros. Barriers before and after are the caller's.
// x: [batch][cols]; staged: [kBatch][count][kGroupFloats], shared
template <class F, u32 kBatch>
DEVICE void stage(const float* x, u32 cols, u32 batch, u32 first, u32 count, float* staged) {
    // Each thread takes four columns; all of a warp go on to the end, for the shuffles.
    const u32 per_row = (count * 8 + blockDim.x - 1) / blockDim.x;
    const u32 column = threadIdx.x % 8 * 4;
    u32 row = 0, group = threadIdx.x / 8, left_of_row = per_row;
    for (u32 done = 0; done < kBatch * per_row; done += kStageAhead) {
        float4 v[kStageAhead];
        u32 rows[kStageAhead], groups[kStageAhead];
#pragma unroll
        for (u32 k = 0; k < kStageAhead; ++k) {
            rows[k] = row;
            groups[k] = group;
            v[k] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (group < count && row < batch) {
                v[k] = load_columns(x + u64{row} * cols, (first + group) * kGroup + column, cols);
            }
            group += blockDim.x / 8;
            if (--left_of_row == 0) {
                ++row;
                group = threadIdx.x / 8;
                left_of_row = per_row;
            }
        }
#pragma unroll
        for (u32 k = 0; k < kStageAhead; ++k) {
            const bool active = groups[k] < count && rows[k] < kBatch;
            float* out = staged + (rows[k] * count + groups[k]) * kGroupFloats;
            store_columns<F>(v[k], out, column, active);
        }
    }
}
