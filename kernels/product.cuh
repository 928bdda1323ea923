// What all products of a pass's rows with a matrix are made of (MatvecOp, ops.cuh): how their work is cut,
// weights on their way, products of a step and their sums, and what is done to results.
//
// A warp takes a unit of rows at a time: R of W, or R / 2 of W and the same of U, and of their columns a
// step of 32 groups, one a lane. So what it loads of a row is one run, and what it reads of the
// activations serves all rows of the unit. Each step's products are added up across the lanes at once; so
// the order of additions depends on the shape alone, whatever else is in the pass.
#pragma once

#include "planes.cuh"
#include "staging.cuh"

// The cut of a product: rows of a unit, steps that are loaded and worked on together, units that a
// warp has begun at a time if activations come in chunks.
template <class C, class F, class Op>
struct Cut {
    static constexpr bool kGated = Op::kGated;
    static constexpr u32 kWords = F::kWords + F::kHigh;

    // Fewer rows share less of what is read, but deal out small matrices more evenly. As many as there are
    // registers for.
    DEVICE_MEMBER constexpr u32 unit_rows() {
        constexpr bool simple = F::kHigh == 0 && F::kHalves == 1;
        constexpr u32 most = kWords > 8 ? (kGated || C::kBatch >= 4 ? 2 : 1)
                             : C::kBatch < 4 ? 2
                             : kWords > 6 || (C::kBatch == 8 && !simple) ? 4
                                                                         : 8;
        if constexpr (Op::kKnown) {
            u32 best = kGated ? 2 : 1;
            for (u32 rows = best; rows <= most; rows *= 2) {
                best = cost(rows) < cost(best) ? rows : best;
            }
            return best;
        } else {
            return most < 2 ? 2 : most;
        }
    }

    // About how long the busiest SM takes, of units of so many rows: its scheduler with the most of them
    // issues all of their steps, and a warp's own steps follow each other.
    DEVICE_MEMBER constexpr u32 cost(u32 unit) {
        const u32 warps = C::kWarps * Op::blocks, rows = kGated ? 2 * Op::rows : Op::rows;
        // Where columns are dealt too, so are steps.
        const u32 steps = C::kBatch >= 4 && Op::kSplits ? (Op::cols + 1023) / 1024 : 1;
        const u32 units = (rows + unit - 1) / unit * steps, rounds = (units + warps - 1) / warps;
        const u32 schedulers = 4 * Op::blocks, turns = (units + schedulers - 1) / schedulers;
        if (C::kBatch <= 2) {
            const u32 alone = rounds * (4 * unit + 7), together = turns * (4 * unit + 1);
            return alone > together ? alone : together;
        }
        // A warp's step in issue slots; warps of a scheduler share them, one alone has two of three.
        const u32 step = 150 + 8 * C::kBatch + unit * (50 + 38 * C::kBatch);
        const u32 alone = (step * 3 / 2) * rounds, together = step * 9 / 8 * turns;
        return alone > together ? alone : together;
    }

    static constexpr u32 kRows = unit_rows();
    static constexpr u32 kMatrixRows = kGated ? kRows / 2 : kRows;
    // Rows come in tiles, of up to a quad: of W and of U, or one or two of W.
    static constexpr u32 kTiles = kGated || kRows == 8 ? 2 : 1, kTileRows = kRows / kTiles;
    using Cursor = ::Cursor<F, kTileRows>;
    using Tile = ::Tile<F, kTileRows>;
    static constexpr u32 kAhead = kRows * kWords > 8 || kRows * C::kBatch > 8 ? 1 : 2;
    // Columns whose weights are floats at a time, of all rows.
    static constexpr u32 kColumns = kRows == 8 ? 4 : 8;
    // Sums of a step: one each row of the unit and row of the pass. Lanes that end with sums of the
    // same step, with the same sum, and sums that each ends with.
    static constexpr u32 kSums = kRows * C::kBatch;
    static constexpr u32 kSpan = kLanes / kAhead, kCopies = kSums < kSpan ? kSpan / kSums : 1;
    static constexpr u32 kOwned = kSums > kSpan ? kSums / kSpan : 1;
    static constexpr u32 kUnits = 8 / kOwned;
};

// A group of the rows of a unit of each of some steps, as loaded.
template <class C, class F, class Op>
struct Loaded {
    using Cut = ::Cut<C, F, Op>;
    typename Cut::Tile tiles[Cut::kAhead][Cut::kTiles];

    // A copy, made here and now: what it is made of may take the next loads.
    DEVICE_MEMBER Loaded taken(const Loaded& from) {
        Loaded to;
#pragma unroll
        for (u32 j = 0; j < Cut::kAhead; ++j) {
#pragma unroll
            for (u32 t = 0; t < Cut::kTiles; ++t) {
                to.tiles[j][t] = Cut::Tile::taken(from.tiles[j][t]);
            }
        }
        return to;
    }
};

// Loads the tiles of a unit. row: its first one, of a matrix of `rows`
template <class Cut>
DEVICE void load_tiles(const typename Cut::Cursor& cursor, typename Cut::Tile* tiles, bool wanted,
                       long long to_up, u32 row, u32 rows) {
    using Cursor = typename Cut::Cursor;
    Cursor::load(cursor, tiles[0], wanted);
    if constexpr (Cut::kGated) {
        Cursor::load(cursor, tiles[1], wanted, to_up);
    } else if constexpr (Cut::kTiles == 2) {
        Cursor second = cursor;
        Cursor::move(second, 1, 0);
        const bool even = rows % 8 == 0;
        Cursor::load(second, tiles[1], wanted & (even | (row + 4 < rows)));
    }
}

// Products of one group of the unit's rows with the staged activations of a lane's group.
// tiles: W's and U's; x: [kBatch] rows of the group, each `stride` floats after the one before,
// shared; sums: row of the unit * kBatch + row of the pass
template <class C, class F, class Op>
DEVICE void multiply(const Cursor<F, Cut<C, F, Op>::kTileRows>& cursor,
                     Tile<F, Cut<C, F, Op>::kTileRows>* tiles, const float* x, u32 stride,
                     float* sums) {
    using Cut = ::Cut<C, F, Op>;
    constexpr u32 kEighths = 4 / F::kHalves, kBatch = C::kBatch, kRows = Cut::kRows;
    constexpr u32 kTileRows = Cut::kTileRows, kColumns = Cut::kColumns;
    constexpr bool rolls = F::kRolls && kBatch >= 4;
#pragma unroll
    for (u32 half = 0; half < F::kHalves; ++half) {
        float dots[kRows][kBatch];
#pragma unroll
        for (u32 b = 0; b < kBatch; ++b) {
            const float start = F::kScaled ? -x[b * stride + kGroup + half] : 0.0f;
#pragma unroll
            for (u32 r = 0; r < kRows; ++r) {
                dots[r][b] = start;
            }
        }
        const auto add = [&](u32 eighth) {
#pragma unroll
            for (u32 first = 0; first < 8; first += kColumns) {
                float f[kRows][8];
#pragma unroll
                for (u32 r = 0; r < kRows; ++r) {
                    F::weights8(tiles[r / kTileRows], r % kTileRows, rolls ? 0 : eighth, f[r]);
                }
#pragma unroll
                for (u32 b = 0; b < kBatch; ++b) {
                    float columns[8];
#pragma unroll
                    for (u32 i = first; i < first + kColumns; i += 4) {
                        const float4 four =
                            *reinterpret_cast<const float4*>(x + b * stride + 8 * eighth + i);
                        columns[i] = four.x, columns[i + 1] = four.y;
                        columns[i + 2] = four.z, columns[i + 3] = four.w;
                    }
#pragma unroll
                    for (u32 r = 0; r < kRows; ++r) {
#pragma unroll
                        for (u32 i = first; i < first + kColumns; ++i) {
                            dots[r][b] = fmaf(f[r][i], columns[i], dots[r][b]);
                        }
                    }
                }
            }
        };
        if constexpr (rolls) {
            // One eighth's code for all: of many rows, that of a group would be too long.
#pragma unroll 1
            for (u32 i = 0; i < kEighths; ++i) {
                add(half * kEighths + i);
#pragma unroll
                for (u32 r = 0; r < kRows; ++r) {
                    F::roll(tiles[r / kTileRows], r % kTileRows, half * kEighths + i);
                }
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < kEighths; ++i) {
                add(half * kEighths + i);
            }
        }
#pragma unroll
        for (u32 t = 0; t < Cut::kTiles; ++t) {
            Tile<F, kTileRows> tile = tiles[t];
            if constexpr (F::kScaled) {
                tile = Cursor<F, kTileRows>::settled(cursor, tile);
            }
#pragma unroll
            for (u32 i = 0; i < kTileRows; ++i) {
                const u32 r = t * kTileRows + i;
                float scale = 1.0f, min = 0.0f;
                if constexpr (F::kScaled) {
                    F::scale_min(tile, i, half, scale, min);
                }
#pragma unroll
                for (u32 b = 0; b < kBatch; ++b) {
                    float product = dots[r][b];
                    if constexpr (F::kScaled) {
                        product *= scale;
                        if constexpr (F::kHasMin) {
                            product = fmaf(min, x[b * stride + kGroup + F::kHalves + half], product);
                        }
                    }
                    float& sum = sums[r * kBatch + b];
                    sum = half == 0 ? product : sum + product;
                }
            }
        }
    }
}

// Sums of each value over all lanes, always in the same order: of the value lane / (32 / kCount) into
// values[0], or of kCount / 32 values from lane * kCount / 32 on into the first ones.
template <u32 kCount>
DEVICE void sum_over_lanes(float (&values)[kCount]) {
    u32 count = kCount;
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) {
        if (count > 1) {
            const bool upper = (threadIdx.x & mask) != 0;
            count /= 2;
#pragma unroll
            for (u32 i = 0; i < kCount / 2; ++i) {
                if (i < count) {
                    const float kept = upper ? values[i + count] : values[i];
                    const float given = upper ? values[i] : values[i + count];
                    values[i] = kept + __shfl_xor_sync(kAllLanes, given, mask);
                }
            }
        } else {
            values[0] += __shfl_xor_sync(kAllLanes, values[0], mask);
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
template <class C, class Op>
DEVICE void finish(const Block<C>& block, const Op& op, u32 b, u32 row, float value, float gated,
                   float residual, float root, Largest& largest) {
    if (op.prologue != kPlain) {
        value *= root;
        gated *= root;
    }
    if (op.bias != kNowhere) {
        value += as_float(load_weights_4(at<float>(block, op.bias) + row));
    }
    if (Op::kGated) {
        value = activate(op.activation, value) * gated;
    } else if (op.gate != kNowhere) {
        const float* gates = at<float>(block, op.gate) + u64{b} * op.gate_stride;
        value *= activate(op.activation, load_shared_by_blocks(gates + row));
    }
    if (op.residual != kNowhere) {
        const Wanted wanted = Wanted::of<C>(op.flags, 1);
        const float* place = at<float>(block, op.residual) + b * op.residual_stride + row;
        for (u32 polls = 0; is_old(residual, wanted) && looks_again(*block.shared, polls);) {
            residual = load_shared_by_blocks(place);
        }
    }
    value += residual;
    if (op.softcap != 0.0f) {
        value = soften(value, op.softcap);
    }
    value = marked(value, op.flags);
    store_openly(at<float>(block, op.y) + u64{b} * op.y_stride + row, value);
    if (op.maxima != kNowhere && above({value, row}, largest)) {
        largest = {value, row};
    }
}

// The largest results of all threads of the block, written. A lane has those of kOwned rows of the
// pass; lanes that differ in the bits from `first` on have the same rows, as have `copies` neighbours.
template <class C, class Op, u32 kOwned>
DEVICE void store_maxima(const Block<C>& block, const Op& op, Largest (&largest)[kOwned], u32 copies,
                         u32 first) {
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    float* values = block.shared->pool;
    u32* rows = reinterpret_cast<u32*>(block.shared->pool + C::kWarps * kPassRows);
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < kOwned; ++i) {
#pragma unroll
        for (u32 mask = 1; mask < kLanes; mask *= 2) {
            if (mask >= first) {
                const Largest other = {__shfl_xor_sync(kAllLanes, largest[i].value, mask),
                                       __shfl_xor_sync(kAllLanes, largest[i].row, mask)};
                largest[i] = above(other, largest[i]) ? other : largest[i];
            }
        }
        if (lane < first && lane % copies == 0) {
            values[warp * kPassRows + lane / copies * kOwned + i] = largest[i].value;
            rows[warp * kPassRows + lane / copies * kOwned + i] = largest[i].row;
        }
    }
    __syncthreads();
    if (threadIdx.x < block.shared->row_count) {
        Largest most = {values[threadIdx.x], rows[threadIdx.x]};
#pragma unroll 4
        for (u32 w = 1; w < C::kWarps; ++w) {
            const Largest other = {values[w * kPassRows + threadIdx.x],
                                   rows[w * kPassRows + threadIdx.x]};
            most = above(other, most) ? other : most;
        }
        const u64 index = u64{threadIdx.x} * grid_blocks() + blockIdx.x;
        at<Largest>(block, op.maxima)[index] = most;
    }
}

// 1 / rms of rows b.. of the pass, from the sums of squares that staging left; all threads meet if the
// pass may have many rows.
template <class C, class Op, u32 kOwned>
DEVICE void roots_of_rows(const Block<C>& block, const Op& op, u32 groups, u32 b,
                          float (&roots)[kOwned]) {
    Shared<C>& shared = *block.shared;
    if constexpr (C::kBatch <= 2) {
        roots[0] = root_of(shared.squares, groups, op.cols, op.eps);
        if (C::kBatch == 2) {
            const float other = root_of(shared.squares + kNormGroups, groups, op.cols, op.eps);
            roots[0] = b == 0 ? roots[0] : other;
        }
    } else {
#pragma unroll 1
        for (u32 row = threadIdx.x / kLanes; row < min(C::kBatch, shared.row_count);
             row += C::kWarps) {
            const float root = root_of(shared.squares + row * kNormGroups, groups, op.cols, op.eps);
            if (threadIdx.x % kLanes == 0) {
                shared.roots[row] = root;
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 j = 0; j < kOwned; ++j) {
            roots[j] = shared.roots[b + j];
        }
    }
}

// What is added to results of rows b.. of the pass.
template <class C, class Op, u32 kOwned>
DEVICE void load_residuals(const Block<C>& block, const Op& op, bool writes, u32 b, u32 row,
                           float (&residuals)[kOwned]) {
#pragma unroll
    for (u32 j = 0; j < kOwned; ++j) {
        if (op.residual != kNowhere && writes && row < op.rows && b + j < rows_of(*block.shared)) {
            residuals[j] = load_shared_by_blocks(at<float>(block, op.residual) +
                                                 (b + j) * op.residual_stride + row);
        }
    }
}

// Where a lane begins to read W.
template <class Cut, class C, class Op>
DEVICE auto cursor_at(const Block<C>& block, const Op& op, u32 row, u32 group) {
    const Planes planes = {at<u8>(block, op.weights), u64{op.high} * 16, u64{op.scales} * 16,
                           u64{op.tops} * 16, u64{op.supers} * 16, op.rows, op.cols};
    return Cut::Cursor::at(planes, row, group);
}
