// The ops before and between the matvecs: embeddings, rotary angles, norms that stand alone.
#pragma once

#include "block.cuh"
#include "planes.cuh"

// Sine and cosine of `turns` quarter turns, |turns| < 2^31, to f32 precision.
//
// The nearest whole quarter is taken off, which is exact; Taylor polynomials do the rest, of at most
// an eighth of a turn. Doubles, since an angle of 10^6 in floats is off by hundredths of a turn.
DEVICE float2 cos_sin_quarters(double turns) {
    const double whole = floor(turns + 0.5);
    const double x = (turns - whole) * 1.5707963267948966, xx = x * x;
    double s = 1.0 / 39916800, c = 1.0 / 479001600;
    s = 1.0 / 362880 - s * xx;
    s = 1.0 / 5040 - s * xx;
    s = 1.0 / 120 - s * xx;
    s = 1.0 / 6 - s * xx;
    s = x - x * xx * s;
    c = 1.0 / 3628800 - c * xx;
    c = 1.0 / 40320 - c * xx;
    c = 1.0 / 720 - c * xx;
    c = 1.0 / 24 - c * xx;
    c = 0.5 - c * xx;
    c = 1.0 - c * xx;
    const u32 quarter = static_cast<u32>(static_cast<int>(whole)) & 3;
    const float a = static_cast<float>(quarter & 1 ? s : c);
    const float b = static_cast<float>(quarter & 1 ? c : s);
    return {quarter == 1 || quarter == 2 ? -a : a, quarter >= 2 ? -b : b};
}

// Weights of a lane's group: s * (f - power - zero) + m. out: [32]
template <class F>
DEVICE void write_group(const Planes& table, u32 row, u32 group, float scale, float* out) {
    Tile<F, 1> tile;
    Cursor<F, 1>::load(Cursor<F, 1>::at(table, row, group), tile);
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

template <class F>
DEVICE void embed_rows(const Block& block, const EmbedOp& op) {
    const Planes table = {Block::at<u8>(block, op.table), u64{op.high} * 16, u64{op.scales} * 16,
                          u64{op.tops} * 16, u64{op.supers} * 16, op.vocab, op.cols};
    const u32 groups = (op.cols + kGroup - 1) / kGroup;
    const Shared& shared = *block.shared;
#pragma unroll 1
    for (u32 item = blockIdx.x + gridDim.x * threadIdx.x; item < groups * shared.row_count;
         item += gridDim.x * kDecodeThreads) {
        const u32 row = item / groups, group = item % groups;
        float* out = Block::at<float>(block, op.out) + u64{row} * op.out_stride + group * kGroup;
        write_group<F>(table, shared.rows[row].token, group, op.scale, out);
    }
}

DEVICE void turn_angles(const Block& block, const EmbedOp& op) {
    constexpr double kQuartersPerRadian = 0.63661977236758134;
    const Shared& shared = *block.shared;
#pragma unroll 1
    for (u32 table = 0; table < op.ropes; ++table) {
        const auto& rope = op.rope[table];
        const float* frequencies = Block::at<float>(block, rope.inverse_frequencies);
        float2* angles = Block::at<float2>(block, rope.angles);
        // From the last block on: the first ones have embeddings to write.
#pragma unroll 1
        for (u32 item = gridDim.x - 1 - blockIdx.x + gridDim.x * threadIdx.x;
             item < rope.pairs * shared.row_count; item += gridDim.x * kDecodeThreads) {
            const u32 row = item / rope.pairs;
            const float frequency = as_float(load_weights_4(frequencies + item % rope.pairs));
            const double radians = static_cast<double>(shared.rows[row].position) * frequency;
            const float2 turned = cos_sin_quarters(radians * kQuartersPerRadian);
            angles[item] = {turned.x * rope.magnitude, turned.y * rope.magnitude};
        }
    }
}

DEVICE void norm_rows(const Block& block, const NormOp& op) {
    Shared& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    for (u32 row = blockIdx.x; row < shared.row_count; row += gridDim.x) {
        const float* x = Block::at<float>(block, op.x) + u64{row} * op.x_stride;
        float sum = 0.0f;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < op.cols; i += kDecodeThreads) {
            const float v = load_shared_by_blocks(x + i);
            sum = fmaf(v, v, sum);
        }
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) {
            sum += __shfl_xor_sync(kAllLanes, sum, mask);
        }
        __syncthreads();
        if (lane == 0) {
            shared.pool[warp] = sum;
        }
        __syncthreads();
        float total = 0.0f;
#pragma unroll 1
        for (u32 w = 0; w < kDecodeWarps; ++w) {
            total += shared.pool[w];
        }
        const float root = reciprocal_root_approx(total / static_cast<float>(op.cols) + op.eps);
        const float* gains = Block::at<float>(block, op.gain);
        float* out = Block::at<float>(block, op.out) + u64{row} * op.out_stride;
#pragma unroll 1
        for (u32 i = threadIdx.x; i < op.cols; i += kDecodeThreads) {
            float v = load_shared_by_blocks(x + i) * root * as_float(load_weights_4(gains + i));
            if (op.residual != kNowhere) {
                v += load_shared_by_blocks(Block::at<float>(block, op.residual) +
                                           u64{row} * op.residual_stride + i);
            }
            out[i] = v;
        }
    }
}
