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

    // Fewer rows share less of what is read, but deal out small matrices more evenly.
    DEVICE_MEMBER constexpr u32 unit_rows() {
        if constexpr (Op::kKnown) {
            constexpr u32 most = kWords > 8 ? (kGated || C::kBatch >= 4 ? 2 : 1)
                                            : (C::kBatch >= 4 ? 4 : 2);
            u32 best = kGated ? 2 : 1;
            for (u32 rows = best; rows <= most; rows *= 2) {
                best = cost(rows) < cost(best) ? rows : best;
            }
            return best;
        } else {
            return C::kBatch >= 4 && kWords <= 8 ? 4 : 2;
        }
    }

    // About how long the busiest SM takes, of units of so many rows. Up to 2 rows of the pass it is
    // bound by instructions, four of a row of weights; with more by shared memory, which answers a
    // warp's step in so many cycles however many rows use it, or by the length of a step.
    DEVICE_MEMBER constexpr u32 cost(u32 unit) {
        const u32 warps = C::kWarps * known_blocks(), rows = kGated ? 2 * Op::rows : Op::rows;
        const u32 units = (rows + unit - 1) / unit, rounds = (units + warps - 1) / warps;
        if (C::kBatch <= 2) {
            return rounds * (4 * unit + 1);
        }
        const u32 busy = ((units < warps ? units : warps) + known_blocks() - 1) / known_blocks();
        const u32 answers = busy * 40 * C::kBatch, length = (2 * unit + 1) * 38 * C::kBatch;
        return rounds * (answers > length ? answers : length);
    }

    static constexpr u32 kRows = unit_rows();
    static constexpr u32 kMatrixRows = kGated ? kRows / 2 : kRows;
    static constexpr u32 kAhead = kRows * kWords > 8 || kRows * C::kBatch > 8 ? 1 : 2;
    static constexpr u32 kUnits = 8;
    // Sums of a step: one each row of the unit and row of the pass. Lanes that end with sums of the
    // same step, and with the same sum.
    static constexpr u32 kSums = kRows * C::kBatch;
    static constexpr u32 kSpan = kLanes / kAhead, kCopies = kSpan / kSums;
};

// A group of the rows of a unit of each of some steps, as loaded.
template <class C, class F, class Op>
struct Loaded {
    using Cut = ::Cut<C, F, Op>;
    Tile<F, Cut::kMatrixRows> tiles[Cut::kAhead][Cut::kGated ? 2 : 1];

    // A copy, made here and now: what it is made of may take the next loads.
    DEVICE_MEMBER Loaded taken(const Loaded& from) {
        Loaded to;
#pragma unroll
        for (u32 j = 0; j < Cut::kAhead; ++j) {
#pragma unroll
            for (u32 m = 0; m < (Cut::kGated ? 2 : 1); ++m) {
                to.tiles[j][m] = Tile<F, Cut::kMatrixRows>::taken(from.tiles[j][m]);
            }
        }
        return to;
    }
};

// A warp's way through units, chunks and steps, some loads ahead of what it works on.
template <class C, class F, class Op>
struct Walk {
    using Cut = ::Cut<C, F, Op>;
    Cursor<F, Cut::kMatrixRows> cursor;
    long long to_up;  // bytes from W to U
    u32 groups, steps, chunk_steps;
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
        Cursor<F, Cut::kMatrixRows>::move_either(
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
        Cursor<F, Cut::kMatrixRows>::move(
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
            Cursor<F, Cut::kMatrixRows> cursor = walk.cursor;
            Cursor<F, Cut::kMatrixRows>::move(cursor, 0, static_cast<int>(j * kStepGroups / 8));
            Cursor<F, Cut::kMatrixRows>::load(cursor, loaded.tiles[j][0], wanted);
            if constexpr (Cut::kGated) {
                Cursor<F, Cut::kMatrixRows>::load(cursor, loaded.tiles[j][1], wanted, walk.to_up);
            }
        }
        advance(walk);
    }
};

// Products of one group of the unit's rows with the staged activations of a lane's group.
// tiles: W's and U's; x: [kBatch] rows of the group, each `stride` floats after the one before,
// shared; sums: row of the unit * kBatch + row of the pass
template <class C, class F, class Op>
DEVICE void multiply(const Walk<C, F, Op>& walk,
                     Tile<F, Cut<C, F, Op>::kMatrixRows>* tiles, const float* x, u32 stride,
                     float* sums) {
    using Cut = ::Cut<C, F, Op>;
    constexpr u32 kEighths = 4 / F::kHalves, kBatch = C::kBatch, kRows = Cut::kRows;
    constexpr u32 kMatrixRows = Cut::kMatrixRows;
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
            float f[kRows][8];
#pragma unroll
            for (u32 r = 0; r < kRows; ++r) {
                F::weights8(tiles[r / kMatrixRows], r % kMatrixRows, rolls ? 0 : eighth, f[r]);
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
        };
        if constexpr (rolls) {
            // One eighth's code for all: of many rows, that of a group would be too long.
#pragma unroll 1
            for (u32 i = 0; i < kEighths; ++i) {
                add(half * kEighths + i);
#pragma unroll
                for (u32 r = 0; r < kRows; ++r) {
                    F::roll(tiles[r / kMatrixRows], r % kMatrixRows, half * kEighths + i);
                }
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < kEighths; ++i) {
                add(half * kEighths + i);
            }
        }
#pragma unroll
        for (u32 m = 0; m < (Cut::kGated ? 2 : 1); ++m) {
            Tile<F, kMatrixRows> tile = tiles[m];
            if constexpr (F::kScaled) {
                tile = Cursor<F, kMatrixRows>::settled(walk.cursor, tile);
            }
#pragma unroll
            for (u32 i = 0; i < kMatrixRows; ++i) {
                const u32 r = m * kMatrixRows + i;
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

// The sum over all lanes of the value that is lane / (32 / kCount) of each. Always in the same order.
template <u32 kCount>
DEVICE float sum_of_lanes(float (&values)[kCount]) {
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
    return values[0];
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

// The largest results of all threads of the block, written. Lanes that differ in the bits from `first`
// on have the same row of the pass.
template <class C, class Op>
DEVICE void store_maxima(const Block<C>& block, const Op& op, Largest largest, u32 copies,
                         u32 first) {
    constexpr u32 kBatch = C::kBatch;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
#pragma unroll
    for (u32 mask = 1; mask < kLanes; mask *= 2) {
        if (mask >= first) {
            const Largest other = {__shfl_xor_sync(kAllLanes, largest.value, mask),
                                   __shfl_xor_sync(kAllLanes, largest.row, mask)};
            largest = above(other, largest) ? other : largest;
        }
    }
    float* values = block.shared->pool;
    u32* rows = reinterpret_cast<u32*>(block.shared->pool + C::kWarps * kPassRows);
    __syncthreads();
    if (lane < copies * kBatch && lane % copies == 0) {
        values[warp * kPassRows + lane / copies] = largest.value;
        rows[warp * kPassRows + lane / copies] = largest.row;
    }
    __syncthreads();
    if (threadIdx.x < block.shared->row_count) {
        largest = {values[threadIdx.x], rows[threadIdx.x]};
#pragma unroll 4
        for (u32 w = 1; w < C::kWarps; ++w) {
            const Largest other = {values[w * kPassRows + threadIdx.x],
                                   rows[w * kPassRows + threadIdx.x]};
            largest = above(other, largest) ? other : largest;
        }
        const u64 index = u64{threadIdx.x} * grid_blocks() + blockIdx.x;
        at<Largest>(block, op.maxima)[index] = largest;
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

// 1 / rms of row b of the pass, from the sums of squares that staging left; all threads meet if the
// pass may have many rows.
template <class C, class Op>
DEVICE float root_of_row(const Block<C>& block, const Op& op, u32 groups, u32 b) {
    Shared<C>& shared = *block.shared;
    if constexpr (C::kBatch <= 2) {
        float root = root_of(shared.squares, groups, op.cols, op.eps);
        if (C::kBatch == 2) {
            const float other = root_of(shared.squares + kNormGroups, groups, op.cols, op.eps);
            root = b == 0 ? root : other;
        }
        return root;
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
        return shared.roots[b];
    }
}

template <class C, class F, class Op>
DEVICE void matvec(Block<C>& block, const Op& op, bool resident) {
    using Cut = ::Cut<C, F, Op>;
    using Walk = ::Walk<C, F, Op>;
    constexpr u32 kBatch = C::kBatch, kMatrixRows = Cut::kMatrixRows, kAhead = Cut::kAhead;
    constexpr u32 kSums = Cut::kSums;
    Shared<C>& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const bool normed = op.prologue != kPlain;
    const u32 blocks = grid_blocks();
    const u32 groups = (op.cols + kGroup - 1) / kGroup;
    const u32 steps = (groups + kStepGroups - 1) / kStepGroups;
    // Chunks of about the same size.
    const u32 chunks = (steps + C::kSteps - 1) / C::kSteps;
    const bool whole = chunks == 1;
    const u32 even_steps = ((steps + chunks - 1) / chunks + kAhead - 1) / kAhead * kAhead;
    const u32 chunk_steps = whole ? steps : min(C::kSteps, even_steps);
    const u32 all_units = (op.rows + kMatrixRows - 1) / kMatrixRows;
    const u32 first_unit = warp * blocks + blockIdx.x, unit_stride = C::kWarps * blocks;

    Walk walk;
    walk.groups = groups;
    walk.steps = steps;
    walk.chunk_steps = chunk_steps;
    walk.unit_stride = unit_stride;
    walk.rounds = (all_units + unit_stride - 1) / unit_stride;
    walk.mine = walk.rounds - ((walk.rounds - 1) * unit_stride + first_unit < all_units ? 0 : 1);
    walk.round = walk.step = walk.chunk_first = walk.batch_first = 0;
    walk.chunk_end = chunk_steps;
    const Planes planes = {at<u8>(block, op.weights), u64{op.high} * 16, u64{op.scales} * 16,
                           u64{op.tops} * 16, u64{op.supers} * 16, op.rows, op.cols};
    walk.cursor = Cursor<F, kMatrixRows>::at(planes, first_unit * kMatrixRows, lane);
    walk.to_up = Cut::kGated ? (static_cast<long long>(op.up) - op.weights) * 16 : 0;
    Loaded<C, F, Op> next = {};
    Walk::fetch(walk, next);

    Staging<C, F, Op> staging(block, op);
    await(block, op.flags, resident);
    if (op.prologue == kAddRmsNorm) {
        staging.measure_added(block, op, groups);
    }
    // What this lane has of a unit's results: row i of W, or of U, and row b of the pass.
    const u32 index = lane % Cut::kSpan / Cut::kCopies;
    const u32 b = index % kBatch, i = index / kBatch % kMatrixRows;
    const bool writes = lane < Cut::kSpan && lane % Cut::kCopies == 0 &&
                        index < kMatrixRows * kBatch && b < rows_of(shared);
    float root = 1.0f;
    Largest largest = {as_float(0xff800000), 0xffffffff};
    if (whole) {
        staging.stage(block, op, 0, steps * kStepGroups, true);
        __syncthreads();
        if (normed && kBatch > 2) {
            root = root_of_row(block, op, groups, b);
        }
    }
    const u32 last_round = whole ? walk.mine : walk.rounds;
#pragma unroll 1
    for (u32 first_round = 0; first_round < last_round; first_round += whole ? 1 : Cut::kUnits) {
        const u32 end_round = whole ? first_round + 1 : min(walk.rounds, first_round + Cut::kUnits);
        float sums[Cut::kUnits] = {};
        float residual = 0.0f;
        const u32 first_row = (first_unit + first_round * unit_stride) * kMatrixRows + i;
        if (whole && op.residual != kNowhere && writes && first_row < op.rows) {
            residual = load_shared_by_blocks(at<float>(block, op.residual) +
                                             b * op.residual_stride + first_row);
        }
#pragma unroll 1
        for (u32 chunk = 0; chunk < steps; chunk += chunk_steps) {
            const u32 end = min(chunk + chunk_steps, steps);
            if (!whole) {
                __syncthreads();
                staging.stage(block, op, chunk * kStepGroups, (end - chunk) * kStepGroups,
                              first_round == 0);
                __syncthreads();
            }
            const u32 stride = (end - chunk) * kStepGroups * kGroupFloats;
#pragma unroll 1
            for (u32 round = first_round; round < min(end_round, walk.mine); ++round) {
                float total = whole ? 0.0f : chosen(sums, round - first_round);
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
                            multiply<C, F, Op>(walk, loaded.tiles[j],
                                               x + j * kStepGroups * kGroupFloats, stride,
                                               products + j * kSums);
                        } else {
#pragma unroll
                            for (u32 s = 0; s < kSums; ++s) {
                                products[j * kSums + s] = 0.0f;
                            }
                        }
                    }
                    const float sum = sum_of_lanes(products);
                    if constexpr (kAhead == 1) {
                        total += sum;
                    } else {
                        const float other = __shfl_xor_sync(kAllLanes, sum, Cut::kSpan);
                        total += lane < Cut::kSpan ? sum : other;
                        total += lane < Cut::kSpan ? other : sum;
                    }
                }
                if (whole) {
                    sums[0] = total;
                } else {
#pragma unroll
                    for (u32 u = 0; u < Cut::kUnits; ++u) {
                        sums[u] = round - first_round == u ? total : sums[u];
                    }
                }
            }
        }
        if (normed && first_round == 0 && (kBatch <= 2 || !whole)) {
            root = root_of_row(block, op, groups, b);
        }
#pragma unroll 1
        for (u32 u = 0; u < end_round - first_round; ++u) {
            const float value = whole ? sums[0] : chosen(sums, u);
            const float gated =
                Cut::kGated ? __shfl_xor_sync(kAllLanes, value, Cut::kSpan / 2) : 0.0f;
            const u32 row = first_row + u * unit_stride * kMatrixRows;
            if (writes && row < op.rows) {
                if (!whole && op.residual != kNowhere) {
                    residual = load_shared_by_blocks(at<float>(block, op.residual) +
                                                     b * op.residual_stride + row);
                }
                finish(block, op, b, row, value, gated, residual, root, largest);
            }
        }
    }
    if (op.maxima != kNowhere) {
        store_maxima(block, op, largest, Cut::kCopies, Cut::kCopies * kBatch);
    }
}
