// The ops before and between the matvecs: embeddings, rotary angles, norms that stand alone.
#pragma once

#include "rotary.cuh"
#include "staging.cuh"

// Weights of a lane's group: s * (f - power - zero) + m. out: [32]
template <class F>
DEVICE void write_group(const Planes& table, u32 row, u32 group, float scale, float* out) {
    const auto cursor = Cursor<F, 1>::at(table, row, group);
    Tile<F, 1> tile = {};
    Cursor<F, 1>::load(cursor, tile);
    tile = Cursor<F, 1>::settled(cursor, tile);
#pragma unroll
    for (u32 eighth = 0; eighth < 4; ++eighth) {
        float f[8], s = 1.0f, m = 0.0f;
        F::weights8(tile, 0, eighth, f);
        if constexpr (F::kScaled) {
            F::scale_min(tile, 0, eighth / (4 / F::kHalves), s, m);
        }
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 column = 8 * eighth + i;
            float weight = f[i];
            if constexpr (F::kScaled) {
                weight = fmaf(s, f[i] - (F::power(column) + F::kZero), m);
            }
            if (group * kGroup + column < table.cols) {
                out[column] = weight * scale;
            }
        }
    }
}

template <class C, class F, class Op>
DEVICE void embed_rows(const Block<C>& block, const Op& op) {
    const Planes table = {at<u8>(block, op.table), u64{op.high} * 16, u64{op.scales} * 16,
                          u64{op.tops} * 16, u64{op.supers} * 16, op.vocab, op.cols};
    const u32 groups = (op.cols + kGroup - 1) / kGroup;
    const Shared<C>& shared = *block.shared;
#pragma unroll 1
    for (u32 item = blockIdx.x + grid_blocks() * threadIdx.x; item < groups * shared.row_count;
         item += grid_blocks() * C::kThreads) {
        const u32 row = item / groups, group = item % groups;
        float* out = at<float>(block, op.out) + u64{row} * op.out_stride + group * kGroup;
        write_group<F>(table, shared.rows[row].token, group, op.scale, out);
    }
}

template <class C, class Op>
DEVICE void turn_angles(const Block<C>& block, const Op& op) {
    const Shared<C>& shared = *block.shared;
#pragma unroll 1
    for (u32 table = 0; table < op.ropes; ++table) {
        const auto& rope = op.rope[table];
        const float* frequencies = at<float>(block, rope.inverse_frequencies);
        float2* angles = at<float2>(block, rope.angles);
        // From the last block on: the first ones have embeddings to write.
#pragma unroll 1
        for (u32 item = grid_blocks() - 1 - blockIdx.x + grid_blocks() * threadIdx.x;
             item < rope.pairs * shared.row_count; item += grid_blocks() * C::kThreads) {
            const u32 row = item / rope.pairs;
            const float frequency = as_float(load_weights_4(frequencies + item % rope.pairs));
            const float2 turned = turn(shared.rows[row].position, frequency);
            angles[item] = {turned.x * rope.magnitude, turned.y * rope.magnitude};
        }
    }
}

template <class C, class Op>
DEVICE void norm_rows(const Block<C>& block, const Op& op) {
    Shared<C>& shared = *block.shared;
    const u32 groups = (op.cols + kGroup - 1) / kGroup;
#pragma unroll 1
    for (u32 row = blockIdx.x; row < shared.row_count; row += grid_blocks()) {
        const float* x = at<float>(block, op.x) + u64{row} * op.x_stride;
        measure_row(block, x, groups, op.cols, 0);
        __syncthreads();
        const float root = root_of(shared.squares, groups, op.cols, op.eps);
        __syncthreads();
        const float* gains = at<float>(block, op.gain);
        float* out = at<float>(block, op.out) + u64{row} * op.out_stride;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < op.cols; i += C::kThreads) {
            float v = load_shared_by_blocks(x + i) * root * as_float(load_weights_4(gains + i));
            if (op.residual != kNowhere) {
                v += load_shared_by_blocks(at<float>(block, op.residual) +
                                           u64{row} * op.residual_stride + i);
            }
            out[i] = v;
        }
    }
}
