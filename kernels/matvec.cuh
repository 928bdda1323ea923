// y = act(n(x) * W^T) for 1 to 8 rows x: the op that reads the weights (MatvecOp, ops.cuh).
//
// A warp takes a unit of rows at a time: R of W, or R / 2 of W and the same of U. It walks through
// their columns in steps of 32 groups, one a lane, so that what it loads of a row is one run, and
// what it reads of the activations serves all rows of the unit. Each step's products are added up
// across the lanes at once; so the order of additions depends on the shape alone, whatever else is
// in the pass.
//
// Activations that do not fit into shared memory come in chunks of whole steps, and a warp then does
// a chunk of several units before the next is brought in.
//
// A step's registers take the loads of another one as soon as it has been used. In between there is no
// branch, as a branch waits for all loads before it.
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

    // About how long the busiest SM takes, of units of so many rows. Up to 2 rows of the pass it is
    // bound by instructions, four of a row of weights; with more by those and by shared memory, which
    // answers a warp's step in so many cycles however many rows use it, or by the length of a step.
    DEVICE_MEMBER constexpr u32 cost(u32 unit) {
        const u32 warps = C::kWarps * known_blocks(), rows = kGated ? 2 * Op::rows : Op::rows;
        const u32 units = (rows + unit - 1) / unit, rounds = (units + warps - 1) / warps;
        if (C::kBatch <= 2) {
            return rounds * (4 * unit + 1);
        }
        const u32 busy = ((units < warps ? units : warps) + known_blocks() - 1) / known_blocks();
        const u32 answers = busy * (40 + 11 * unit), length = (2 * unit + 1) * 38;
        return rounds * (answers > length ? answers : length);
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

// A warp's way through units, chunks and steps, some loads ahead of what it works on.
template <class C, class F, class Op>
struct Walk {
    using Cut = ::Cut<C, F, Op>;
    typename Cut::Cursor cursor;
    long long to_up;  // bytes from W to U
    u32 rows, groups, steps, chunk_steps;
    u32 first_row;    // of the warp's first unit
    u32 unit_stride;  // units from one of the warp's to the next
    u32 rounds;       // units of the busiest warps
    u32 mine;         // units of this one
    // Of what is loaded next.
    u32 round, step;             // step: the first of kAhead
    u32 chunk_first, chunk_end;  // steps
    u32 batch_first;             // the first of the rounds that are worked on together

    // Whether steps come in whole lots of kAhead.
    DEVICE_MEMBER bool in_lots(const Walk& walk) {
        return walk.steps % Cut::kAhead == 0 && walk.chunk_steps % Cut::kAhead == 0;
    }

    // Goes on to the next steps of the unit, or to the next unit.
    DEVICE_MEMBER void advance_whole(Walk& walk) {
        const u32 last = (walk.steps - 1) / Cut::kAhead * Cut::kAhead;
        const bool ends = walk.step >= last;
        Cut::Cursor::move_either(
            walk.cursor, ends, static_cast<int>(walk.unit_stride * Cut::kMatrixRows / 4),
            -static_cast<int>(last * (kStepGroups / 8)), int{Cut::kAhead * (kStepGroups / 8)});
        walk.round += ends ? 1 : 0;
        walk.step = ends ? 0 : walk.step + Cut::kAhead;
    }

    // Goes on to the next steps: of the unit, of the next unit, of the next chunk, or of the next
    // units that are worked on together.
    DEVICE_MEMBER void advance(Walk& walk) {
        if (walk.chunk_steps >= walk.steps) {
            advance_whole(walk);
            return;
        }
        const u32 step = walk.step + Cut::kAhead;
        const u32 batch_end = min(walk.batch_first + Cut::kUnits, walk.mine);
        const bool more_steps = step < walk.chunk_end;
        const bool more_units = walk.round + 1 < batch_end;
        const bool more_chunks = walk.chunk_end < walk.steps;
        const bool same_chunk = more_steps | more_units;
        walk.chunk_first = same_chunk ? walk.chunk_first : more_chunks ? walk.chunk_end : 0;
        walk.batch_first = same_chunk | more_chunks ? walk.batch_first : batch_end;
        walk.chunk_end = min(walk.chunk_first + walk.chunk_steps, walk.steps);
        const u32 next_round = more_steps   ? walk.round
                               : more_units ? walk.round + 1
                                            : walk.batch_first;
        const u32 next_step = more_steps ? step : walk.chunk_first;
        const int rounds = static_cast<int>(next_round - walk.round);
        const int steps = static_cast<int>(next_step - walk.step);
        Cut::Cursor::move(
            walk.cursor, rounds * static_cast<int>(walk.unit_stride * Cut::kMatrixRows / 4),
            steps * int{kStepGroups / 8});
        walk.round = next_round;
        walk.step = next_step;
    }

    // Loads what is next, and goes on. Lanes behind the last group keep what they have, which counts
    // for nothing.
    DEVICE_MEMBER void fetch(Walk& walk, Loaded<C, F, Op>& loaded) {
#pragma unroll
        for (u32 j = 0; j < Cut::kAhead; ++j) {
            const u32 step = walk.step + j, group = step * kStepGroups + threadIdx.x % kLanes;
            const bool full = walk.groups % kStepGroups == 0;
            const bool wanted = (walk.round < walk.mine) &
                                (in_lots(walk) | (step < walk.chunk_end)) &
                                (full | (group < walk.groups));
            typename Cut::Cursor cursor = walk.cursor;
            Cut::Cursor::move(cursor, 0, static_cast<int>(j * kStepGroups / 8));
            load_tiles<Cut>(cursor, loaded.tiles[j], wanted, walk.to_up,
                            walk.first_row + walk.round * walk.unit_stride * Cut::kMatrixRows,
                            walk.rows);
        }
        advance(walk);
    }
};

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
    value += residual;
    if (op.softcap != 0.0f) {
        value = soften(value, op.softcap);
    }
    at<float>(block, op.y)[u64{b} * op.y_stride + row] = value;
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

// values[index], in registers: no address may be taken of them.
template <u32 kCount>
DEVICE float chosen(const float (&values)[kCount], u32 index) {
    float value = values[0];
#pragma unroll
    for (u32 i = 1; i < kCount; ++i) {
        value = index == i ? values[i] : value;
    }
    return value;
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

#include "split.cuh"

template <class C, class F, class Op>
DEVICE void matvec(Block<C>& block, const Op& op, bool resident) {
    using Cut = ::Cut<C, F, Op>;
    using Walk = ::Walk<C, F, Op>;
    constexpr u32 kBatch = C::kBatch, kMatrixRows = Cut::kMatrixRows, kAhead = Cut::kAhead;
    constexpr u32 kSums = Cut::kSums, kOwned = Cut::kOwned;
    Shared<C>& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const bool normed = op.prologue != kPlain;
    const u32 blocks = grid_blocks();
    const u32 groups = (op.cols + kGroup - 1) / kGroup;
    const u32 steps = (groups + kStepGroups - 1) / kStepGroups;
    // Chunks of about the same size.
    const u32 chunks = (steps + C::kSteps - 1) / C::kSteps;
    const bool whole = chunks == 1;
    if constexpr (kAhead == 1 && kBatch >= 4) {
        if (!whole && (Op::kKnown ? Op::kSplits : op.sums != kNowhere)) {
            split_matvec<C, F, Op>(block, op, resident);
            return;
        }
    }
    const u32 even_steps = ((steps + chunks - 1) / chunks + kAhead - 1) / kAhead * kAhead;
    const u32 chunk_steps = whole ? steps : min(C::kSteps, even_steps);
    const u32 all_units = (op.rows + kMatrixRows - 1) / kMatrixRows;
    const u32 first_unit = warp * blocks + blockIdx.x, unit_stride = C::kWarps * blocks;

    Walk walk;
    walk.rows = op.rows;
    walk.groups = groups;
    walk.steps = steps;
    walk.chunk_steps = chunk_steps;
    walk.first_row = first_unit * kMatrixRows;
    walk.unit_stride = unit_stride;
    walk.rounds = (all_units + unit_stride - 1) / unit_stride;
    walk.mine = walk.rounds - ((walk.rounds - 1) * unit_stride + first_unit < all_units ? 0 : 1);
    walk.round = walk.step = walk.chunk_first = walk.batch_first = 0;
    walk.chunk_end = chunk_steps;
    walk.cursor = cursor_at<Cut>(block, op, walk.first_row, lane);
    walk.to_up = Cut::kGated ? (static_cast<long long>(op.up) - op.weights) * 16 : 0;
    Loaded<C, F, Op> next = {};
    Walk::fetch(walk, next);

    Staging<C, F, Op> staging(block, op);
    await(block, op.flags, resident);
    if (op.prologue == kAddRmsNorm) {
        staging.measure_added(block, op, groups);
    }
    // What this lane has of a unit's results: row i of W, or of U, and rows b.. of the pass.
    const u32 index = lane % Cut::kSpan / Cut::kCopies * kOwned;
    const u32 b = index % kBatch, i = index / kBatch % kMatrixRows;
    const bool writes = lane < Cut::kSpan && lane % Cut::kCopies == 0 &&
                        index < kMatrixRows * kBatch;
    float roots[kOwned];
    Largest largest[kOwned];
#pragma unroll
    for (u32 j = 0; j < kOwned; ++j) {
        roots[j] = 1.0f;
        largest[j] = {as_float(0xff800000), 0xffffffff};
    }
    if (whole) {
        staging.stage(block, op, 0, steps * kStepGroups, true, kOneBlock);
        __syncthreads();
        if (normed && kBatch > 2) {
            roots_of_rows(block, op, groups, b, roots);
        }
    }
    const u32 last_round = whole ? walk.mine : walk.rounds;
#pragma unroll 1
    for (u32 first_round = 0; first_round < last_round; first_round += whole ? 1 : Cut::kUnits) {
        const u32 end_round = whole ? first_round + 1 : min(walk.rounds, first_round + Cut::kUnits);
        float sums[kOwned][Cut::kUnits] = {};
        float residuals[kOwned] = {};
        const u32 first_row = (first_unit + first_round * unit_stride) * kMatrixRows + i;
        if (whole) {
            load_residuals(block, op, writes, b, first_row, residuals);
        }
#pragma unroll 1
        for (u32 chunk = 0; chunk < steps; chunk += chunk_steps) {
            const u32 end = min(chunk + chunk_steps, steps);
            if (!whole) {
                __syncthreads();
                staging.stage(block, op, chunk * kStepGroups, (end - chunk) * kStepGroups,
                              first_round == 0, kOneBlock);
                __syncthreads();
            }
            const u32 stride = (end - chunk) * kStepGroups * kGroupFloats;
#pragma unroll 1
            for (u32 round = first_round; round < min(end_round, walk.mine); ++round) {
                float totals[kOwned];
#pragma unroll
                for (u32 j = 0; j < kOwned; ++j) {
                    totals[j] = whole ? 0.0f : chosen(sums[j], round - first_round);
                }
#pragma unroll 1
                for (u32 step = chunk; step < end; step += kAhead) {
                    auto loaded = Loaded<C, F, Op>::taken(next);
                    Walk::fetch(walk, next);
                    const float* x =
                        shared.pool + ((step - chunk) * kStepGroups + lane) * kGroupFloats;
                    float products[kAhead * kSums];
#pragma unroll
                    for (u32 j = 0; j < kAhead; ++j) {
                        if (j == 0 || Walk::in_lots(walk) || step + j < end) {
                            multiply<C, F, Op>(walk.cursor, loaded.tiles[j],
                                               x + j * kStepGroups * kGroupFloats, stride,
                                               products + j * kSums);
                        } else {
#pragma unroll
                            for (u32 s = 0; s < kSums; ++s) {
                                products[j * kSums + s] = 0.0f;
                            }
                        }
                    }
                    sum_over_lanes(products);
                    if constexpr (kAhead == 1) {
#pragma unroll
                        for (u32 j = 0; j < kOwned; ++j) {
                            totals[j] += products[j];
                        }
                    } else {
                        const float other = __shfl_xor_sync(kAllLanes, products[0], Cut::kSpan);
                        totals[0] += lane < Cut::kSpan ? products[0] : other;
                        totals[0] += lane < Cut::kSpan ? other : products[0];
                    }
                }
#pragma unroll
                for (u32 j = 0; j < kOwned; ++j) {
                    if (whole) {
                        sums[j][0] = totals[j];
                    } else {
#pragma unroll
                        for (u32 u = 0; u < Cut::kUnits; ++u) {
                            sums[j][u] = round - first_round == u ? totals[j] : sums[j][u];
                        }
                    }
                }
            }
        }
        if (normed && first_round == 0 && (kBatch <= 2 || !whole)) {
            roots_of_rows(block, op, groups, b, roots);
        }
#pragma unroll 1
        for (u32 u = 0; u < end_round - first_round; ++u) {
            const u32 row = first_row + u * unit_stride * kMatrixRows;
            if (!whole) {
                load_residuals(block, op, writes, b, row, residuals);
            }
#pragma unroll
            for (u32 j = 0; j < kOwned; ++j) {
                const float value = whole ? sums[j][0] : chosen(sums[j], u);
                const float gated =
                    Cut::kGated ? __shfl_xor_sync(kAllLanes, value, Cut::kSpan / 2) : 0.0f;
                if (writes && row < op.rows && b + j < rows_of(shared)) {
                    finish(block, op, b + j, row, value, gated, residuals[j], roots[j], largest[j]);
                }
            }
        }
    }
    if (op.maxima != kNowhere) {
        store_maxima(block, op, largest, Cut::kCopies, Cut::kCopies * kBatch / kOwned);
    }
}
