// Activations in shared memory, with the sums that formats need (planes.cuh).
//
// A row of activations is kGroupFloats floats a group: its 32 columns, then
//   formats with one scale a group:  [32] sum((power + zero) * x), [33] sum(x);
//   formats with two:                [32 + h] and [34 + h] the same for half h.
#pragma once

#include "planes.cuh"

// x[column..column + 4]; zeros from `cols` on. x: [cols]
DEVICE float4 load_columns(const float* x, u32 column, u32 cols) {
    float4 v;
    v.x = column < cols ? load_shared_by_blocks(x + column) : 0.0f;
    v.y = column + 1 < cols ? load_shared_by_blocks(x + column + 1) : 0.0f;
    v.z = column + 2 < cols ? load_shared_by_blocks(x + column + 2) : 0.0f;
    v.w = column + 3 < cols ? load_shared_by_blocks(x + column + 3) : 0.0f;
    return v;
}

// Groups first..first + count of `batch` rows of x, by the whole block; rows from `batch` to kBatch
// are zeros. Barriers before and after are the caller's.
// x: [batch][cols]; staged: [kBatch][count][kGroupFloats], shared
template <class F, u32 kBatch>
DEVICE void stage(const float* x, u32 cols, u32 batch, u32 first, u32 count, float* staged) {
    constexpr u32 kLanesPerSum = 8 / F::kHalves;
    const u32 lanes = kBatch * count * 8;  // each takes four columns
    // All lanes of a warp stay until the end, for the shuffles.
    for (u32 i = threadIdx.x; i / kLanes * kLanes < lanes; i += blockDim.x) {
        const u32 row = i / (8 * count), group = i / 8 % count, column = i % 8 * 4;
        const bool active = i < lanes;
        float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
        if (active && row < batch) {
            v = load_columns(x + u64{row} * cols, (first + group) * kGroup + column, cols);
        }
        float* out = staged + (u64{row} * count + group) * kGroupFloats;
        if (active) {
            *reinterpret_cast<float4*>(out + column) = v;
        }
        if constexpr (F::kScaled) {
            const u32 half = F::kHalves == 2 ? column / 16 : 0;
            float sum = v.x + v.y + (v.z + v.w);
            // Powers repeat every four columns, at most.
            float biased = (F::power(0) + F::kZero) * v.x;
            biased = fmaf(F::power(1) + F::kZero, v.y, biased);
            biased = fmaf(F::power(2) + F::kZero, v.z, biased);
            biased = fmaf(F::power(3) + F::kZero, v.w, biased);
#pragma unroll
            for (u32 mask = kLanesPerSum / 2; mask > 0; mask /= 2) {
                biased += __shfl_xor_sync(kAllLanes, biased, mask);
                sum += __shfl_xor_sync(kAllLanes, sum, mask);
            }
            if (active && i % kLanesPerSum == 0) {
                out[kGroup + half] = biased;
                out[kGroup + F::kHalves + half] = sum;
            }
        }
    }
}
