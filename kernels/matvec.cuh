// y = act(n(x) * W^T) for 1 to 8 rows x: the op that reads the weights (MatvecOp, ops.cuh).
//
// A warp takes a unit at a time: two quads of rows, or one of W and the same of U. It walks through
// their columns in steps of 8 groups: lane = 8 * row of the quad + group. So 8 lanes read a
// cache line of a row, all rows share what they read of the activations, and few shuffles are left at
// the end. The order of additions depends on the shape and the op's split alone, not on how many rows
// x has.
//
// A step's registers take the loads of another one as soon as it has been used. In between there is no
// branch, as a branch waits for all loads before it.
#pragma once

#include "planes.cuh"
#include "staging.cuh"

// Quads of a unit: two of W, or one of W and the same one of U.
enum : u32 { kTiles = 2 };

// Where a lane reads: its group of one quad, in the planes of a type. Stepped, since a step costs less
// than computing where it leads.
template <class F>
struct Lane {
    static constexpr u32 kParts = F::kWords < 4 ? 1 : F::kWords / 4;
    static constexpr u32 kPartBytes = F::kWords < 4 ? 4 * F::kWords : 16;

    const u8 *quants, *high, *scales, *tops, *supers;

    DEVICE_MEMBER Lane at(const u8* matrix, const MatvecOp& op, u32 groups, u32 quad, u32 group) {
        const u32 row = threadIdx.x % kLanes / 8;
        const u32 by_row = (quad * 4 + row) * groups * kParts + group;
        const u32 by_quad = quad * groups + group;
        return {
            matrix + u64{by_row} * kPartBytes,
            matrix + (u64{op.high} * 16 + u64{by_row} * (4 * F::kHigh)),
            matrix + (u64{op.scales} * 16 + u64{by_quad * 4 + row} * F::kScaleBytes),
            matrix + (u64{op.tops} * 16 + u64{by_quad} * 2),
            matrix + (u64{op.supers} * 16 + u64{by_quad / 8 * 4 + row} * F::kSuperBytes),
        };
    }

    // To the step that is `steps` further on.
    DEVICE_MEMBER void advance(Lane& lane, u32 steps) {
        lane.quants += steps * (8 * kPartBytes);
        lane.high += steps * (8 * 4 * F::kHigh);
        lane.scales += steps * (8 * 4 * F::kScaleBytes);
        lane.tops += steps * (8 * 2);
        lane.supers += steps * (4 * F::kSuperBytes);
    }

    // Loads the group, if it is `wanted`; else the tile keeps what it has.
    DEVICE_MEMBER void load(const Lane& lane, u32 groups, bool wanted, Tile<F, 1>& tile) {
#pragma unroll
        for (u32 part = 0; part < kParts; ++part) {
            load_if<kPartBytes>(wanted, lane.quants + part * groups * kPartBytes,
                                &tile.quants[0][4 * part]);
        }
        if constexpr (F::kHigh > 0) {
            load_if<4 * F::kHigh>(wanted, lane.high, tile.high[0]);
        }
        if constexpr (F::kScaleBytes > 0) {
            load_if<F::kScaleBytes>(wanted, lane.scales, tile.scales);
        }
        if constexpr (F::kTwelve) {
            load_if<2>(wanted, lane.tops, &tile.tops);
        }
        if constexpr (F::kSuperBytes > 0) {
            load_if<F::kSuperBytes>(wanted, lane.supers, tile.supers);
        }
    }
};

// Adds the products of a step's tiles with the staged activations of a lane's group.
// x: [kBatch] rows of the group, each `stride` floats after the one before, shared
template <class F, u32 kBatch>
DEVICE void accumulate(const Tile<F, 1>* tiles, const float* x, u32 stride,
                       float (*sums)[kBatch]) {
    constexpr u32 kEighths = 4 / F::kHalves;
#pragma unroll
    for (u32 half = 0; half < F::kHalves; ++half) {
        float dots[kTiles][kBatch];
#pragma unroll
        for (u32 b = 0; b < kBatch; ++b) {
            const float start = F::kScaled ? -x[b * stride + kGroup + half] : 0.0f;
#pragma unroll
            for (u32 t = 0; t < kTiles; ++t) {
                dots[t][b] = F::kScaled ? start : sums[t][b];
            }
        }
#pragma unroll
        for (u32 i = 0; i < kEighths; ++i) {
            const u32 eighth = half * kEighths + i;
            float f[kTiles][8];
#pragma unroll
            for (u32 t = 0; t < kTiles; ++t) {
                F::weights8(tiles[t], 0, eighth, f[t]);
            }
#pragma unroll
            for (u32 b = 0; b < kBatch; ++b) {
                const float4* columns = reinterpret_cast<const float4*>(x + b * stride + 8 * eighth);
                const float4 low = columns[0], high = columns[1];
#pragma unroll
                for (u32 t = 0; t < kTiles; ++t) {
                    float dot = dots[t][b];
                    dot = fmaf(f[t][0], low.x, dot);
                    dot = fmaf(f[t][1], low.y, dot);
                    dot = fmaf(f[t][2], low.z, dot);
                    dot = fmaf(f[t][3], low.w, dot);
                    dot = fmaf(f[t][4], high.x, dot);
                    dot = fmaf(f[t][5], high.y, dot);
                    dot = fmaf(f[t][6], high.z, dot);
                    dots[t][b] = fmaf(f[t][7], high.w, dot);
                }
            }
        }
#pragma unroll
        for (u32 t = 0; t < kTiles; ++t) {
            float scale = 1.0f, min = 0.0f;
            if constexpr (F::kScaled) {
                Tile<F, 1> tile = tiles[t];
                if constexpr (F::kTwelve) {
                    // Loaded for all rows of the quad.
                    tile.tops >>= 4 * (threadIdx.x % kLanes / 8);
                }
                F::scale_min(tile, 0, half, scale, min);
            }
#pragma unroll
            for (u32 b = 0; b < kBatch; ++b) {
                if constexpr (!F::kScaled) {
                    sums[t][b] = dots[t][b];
                } else {
                    sums[t][b] = fmaf(scale, dots[t][b], sums[t][b]);
                    if constexpr (F::kHasMin) {
                        const float sum = x[b * stride + kGroup + F::kHalves + half];
                        sums[t][b] = fmaf(min, sum, sums[t][b]);
                    }
                }
            }
        }
    }
}

DEVICE float activate(u32 activation, float x) {
    constexpr float kLog2E = 1.44269504f;
    if (activation == kSilu) {
        return x * reciprocal_approx(1.0f + exp2_approx(-kLog2E * x));
    }
    if (activation == kGeluTanh) {
        // 0.5 x (1 + tanh u) = x / (1 + e^(-2u))
        const float u = 0.79788456f * fmaf(0.044715f * x * x, x, x);
        return x * reciprocal_approx(1.0f + exp2_approx(-2.0f * kLog2E * u));
    }
    return x;
}

// The largest result that a thread has made of one row of the pass.
struct Largest {
    float value;
    u32 row;
};

DEVICE bool above(const Largest& a, const Largest& b) {
    return a.value > b.value || (a.value == b.value && a.row < b.row);
}

// Writes y[b][row], which this thread alone has.
DEVICE void finish(const Block& block, const MatvecOp& op, u32 b, u32 row, float value, float gated,
                   float residual, Largest& largest) {
    if (op.prologue != kPlain) {
        value *= block.shared->roots[b];
        gated *= block.shared->roots[b];
    }
    if (op.bias != kNowhere) {
        value += as_float(load_weights_4(Block::at<float>(block, op.bias) + row));
    }
    if (op.up != kNowhere) {
        value = activate(op.activation, value) * gated;
    } else if (op.gate != kNowhere) {
        const float* gates = Block::at<float>(block, op.gate) + u64{b} * op.gate_stride;
        value *= activate(op.activation, load_shared_by_blocks(gates + row));
    }
    value += residual;
    if (op.softcap != 0.0f) {
        value = soften(value, op.softcap);
    }
    Block::at<float>(block, op.y)[u64{b} * op.y_stride + row] = value;
    if (op.maxima != kNowhere && above({value, row}, largest)) {
        largest = {value, row};
    }
}

// The largest results of all threads of the block, written.
template <u32 kBatch>
DEVICE void store_maxima(const Block& block, const MatvecOp& op, Largest largest) {
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
#pragma unroll
    for (u32 mask = 8; mask < kLanes; mask *= 2) {
        const Largest other = {__shfl_xor_sync(kAllLanes, largest.value, mask),
                               __shfl_xor_sync(kAllLanes, largest.row, mask)};
        largest = above(other, largest) ? other : largest;
    }
    float* values = block.shared->pool;
    u32* rows = reinterpret_cast<u32*>(block.shared->pool + kDecodeWarps * kPassRows);
    __syncthreads();
    if (lane < kBatch) {
        values[warp * kPassRows + lane] = largest.value;
        rows[warp * kPassRows + lane] = largest.row;
    }
    __syncthreads();
    if (threadIdx.x < block.shared->row_count) {
#pragma unroll 1
        for (u32 w = 0; w < kDecodeWarps; ++w) {
            const Largest other = {values[w * kPassRows + threadIdx.x],
                                   rows[w * kPassRows + threadIdx.x]};
            largest = w == 0 || above(other, largest) ? other : largest;
        }
        const u64 at = u64{threadIdx.x} * gridDim.x + blockIdx.x;
        Block::at<Largest>(block, op.maxima)[at] = largest;
    }
}

// The value that lane 8 * row + b is to write of a tile: row `row` of the quad times row b of x.
template <u32 kBatch>
DEVICE float reduce(const float (&sums)[kBatch]) {
    const u32 b = threadIdx.x % 8;
    float value = 0.0f;
#pragma unroll
    for (u32 i = 0; i < kBatch; ++i) {
        float sum = sums[i];
#pragma unroll
        for (u32 mask = 4; mask > 0; mask /= 2) {
            sum += __shfl_xor_sync(kAllLanes, sum, mask);
        }
        value = b == i ? sum : value;
    }
    return value;
}

// How shared memory is used for up to kBatch rows of activations.
template <u32 kBatch>
struct Cut {
    static constexpr u32 kPartFloats = kDecodeWarps * kTiles * 4 * kBatch;
    static constexpr u32 kGroups = staged_groups(kBatch, kPartFloats);
};

// A warp's way through its quads.
template <class F>
struct Walk {
    Lane<F> lanes[kTiles];
    u32 groups, last_quad, split;
    u32 quad;   // of the unit, the first
    u32 end;    // groups of it
    u32 group;  // of this lane, of the step that is loaded next

    // Goes to the first step of the unit that begins with `quad`.
    DEVICE_MEMBER void seek(Walk& walk, const Block& block, const MatvecOp& op, u32 first_step) {
        const u8* weights = Block::at<u8>(block, op.weights);
        const bool gated = op.up != kNowhere;
        walk.group = first_step * kStepGroups + threadIdx.x % 8;
        walk.end = walk.quad <= walk.last_quad ? walk.groups : 0;
#pragma unroll
        for (u32 t = 0; t < kTiles; ++t) {
            const bool of_up = gated && t == 1;
            // Behind the last quad the last one is read again.
            const u32 quad = min(walk.quad + (gated ? 0 : t), walk.last_quad);
            walk.lanes[t] = Lane<F>::at(of_up ? Block::at<u8>(block, op.up) : weights, op,
                                        walk.groups, quad, walk.group);
        }
    }

    // Loads a step and goes on to the next. Lanes behind the last group keep what they have, which
    // counts for nothing.
    DEVICE_MEMBER void fetch(Walk& walk, Tile<F, 1> (&tiles)[kTiles]) {
#pragma unroll
        for (u32 t = 0; t < kTiles; ++t) {
            Lane<F>::load(walk.lanes[t], walk.groups, walk.group < walk.end, tiles[t]);
            Lane<F>::advance(walk.lanes[t], walk.split);
        }
        walk.group += walk.split * kStepGroups;
    }
};

template <class F, u32 kBatch>
DEVICE void matvec(Block& block, const MatvecOp& op, bool resident) {
    using Cut = Cut<kBatch>;
    using Walk = Walk<F>;
    Shared& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const bool gated = op.up != kNowhere, normed = op.prologue != kPlain;
    const u32 shift = op.split == 8 ? 3 : op.split == 4 ? 2 : op.split == 2 ? 1 : 0;
    const u32 first_step = warp & (op.split - 1);
    const u32 quads_of_unit = gated ? 1 : 2;
    const u32 stride = (kDecodeWarps >> shift) * gridDim.x * quads_of_unit;
    const u32 place = blockIdx.x >= op.start ? blockIdx.x - op.start
                                             : blockIdx.x + gridDim.x - op.start;
    const u32 groups = (op.cols + kGroup - 1) / kGroup, last_quad = (op.rows + 3) / 4 - 1;
    Walk walk = {};
    walk.groups = groups;
    walk.last_quad = last_quad;
    walk.split = op.split;
    walk.quad = ((warp >> shift) * gridDim.x + place) * quads_of_unit;
    Walk::seek(walk, block, op, first_step);
    Tile<F, 1> tiles[kTiles] = {};
    Walk::fetch(walk, tiles);
    float* parts = shared.pool + (kPoolFloats - Cut::kPartFloats);

    Staging<F, kBatch> staging(block, op);
    await(block, op.flags, resident);
    if (op.prologue == kAddRmsNorm) {
        staging.measure_added(block, op, groups, Cut::kGroups);
    }
    Largest largest = {as_float(0xff800000), 0xffffffff};
    // Units are dealt round by round, so that all warps meet at the barriers of each.
#pragma unroll 1
    for (u32 dealt = 0; dealt <= last_quad; dealt += stride) {
        const bool first_round = dealt == 0, mine = walk.quad <= last_quad;
        // The row that this lane writes of the first tile.
        const u32 b = lane % 8, row = walk.quad * 4 + lane / 8;
        const bool writes = mine && first_step == 0 && b < min(kBatch, shared.row_count);
        float residual = 0.0f;
        if (writes && row < op.rows && op.residual != kNowhere) {
            residual = load_shared_by_blocks(Block::at<float>(block, op.residual) +
                                             b * op.residual_stride + row);
        }
        float sums[kTiles][kBatch] = {};
        u32 step = first_step;
#pragma unroll 1
        for (u32 first = 0; first < groups; first += Cut::kGroups) {
            const u32 count = min(Cut::kGroups, groups - first);
            const u32 staged = (count + kStepGroups - 1) / kStepGroups * kStepGroups;
            if (first_round || groups > Cut::kGroups) {
                if (!first_round || first > 0) {
                    __syncthreads();
                }
                staging.stage(block, op, first, staged, first_round);
                __syncthreads();
                if (normed && first_round) {
                    fold_squares<kBatch>(block, staged, first == 0, first + count == groups,
                                         op.cols, op.eps, shared.roots);
                }
            }
            const u32 end = mine ? (first + staged) / kStepGroups : 0;
            const float* x = shared.pool + (step * kStepGroups - first + lane % 8) * kGroupFloats;
            const u32 x_step = op.split * kStepGroups * kGroupFloats;
#pragma unroll 1
            for (; step < end; step += op.split, x += x_step) {
                accumulate<F, kBatch>(tiles, x, staged * kGroupFloats, sums);
                Walk::fetch(walk, tiles);
            }
        }
        // The next unit's first step, on its way while this one is finished.
        walk.quad += stride;
        if (dealt + stride <= last_quad) {
            Walk::seek(walk, block, op, first_step);
            Walk::fetch(walk, tiles);
        }

        float values[kTiles];
#pragma unroll
        for (u32 t = 0; t < kTiles; ++t) {
            values[t] = reduce<kBatch>(sums[t]);
        }
        if (op.split > 1) {
            if (!first_round) {
                __syncthreads();
            }
            if (lane % 8 < kBatch) {
#pragma unroll
                for (u32 t = 0; t < kTiles; ++t) {
                    parts[((warp * kTiles + t) * 4 + lane / 8) * kBatch + b] = values[t];
                }
            }
            __syncthreads();
            if (writes) {
#pragma unroll 1
                for (u32 i = 1; i < op.split; ++i) {
#pragma unroll
                    for (u32 t = 0; t < kTiles; ++t) {
                        values[t] += parts[(((warp + i) * kTiles + t) * 4 + lane / 8) * kBatch + b];
                    }
                }
            }
        } else if (normed && first_round) {
            __syncthreads();
        }
        if (writes) {
#pragma unroll 1
            for (u32 t = 0; t < quads_of_unit; ++t) {
                const u32 at = row + 4 * t;
                if (at < op.rows) {
                    if (t > 0 && op.residual != kNowhere) {
                        residual = load_shared_by_blocks(Block::at<float>(block, op.residual) +
                                                         b * op.residual_stride + at);
                    }
                    finish(block, op, b, at, t == 0 ? values[0] : values[1], values[1], residual,
                           largest);
                }
            }
        }
    }
    if (op.maxima != kNowhere) {
        store_maxima<kBatch>(block, op, largest);
    }
}
