// y = act(n(x) * W^T) for 1 to 8 rows x: the op that reads the weights (MatvecOp, ops.cuh).
//
// A warp walks through the columns of its units step by step. Activations that do not fit into shared
// memory come in chunks of whole steps, and a warp then does a chunk of several units before the next is
// brought in.
//
// A step's registers take the loads of another one as soon as it has been used. In between there is no
// branch, as a branch waits for all loads before it.
#pragma once

#include "split.cuh"

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

template <class C, class F, class Op>
DEVICE void matvec(Block<C>& block, const Op& op, bool resident) {
    using Cut = ::Cut<C, F, Op>;
    using Walk = ::Walk<C, F, Op>;
    constexpr u32 kBatch = C::kBatch, kMatrixRows = Cut::kMatrixRows, kAhead = Cut::kAhead;
    constexpr u32 kSums = Cut::kSums, kOwned = Cut::kOwned;
    Shared<C>& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const bool normed = op.prologue != kPlain;
    const u32 blocks = op.blocks, number = blockIdx.x - op.first_block;
    if (blocks != grid_blocks() && number >= blocks) {
        load_next(block);
        return;
    }
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
    const u32 first_unit = warp * blocks + number, unit_stride = C::kWarps * blocks;

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
            const u32 count = steps % chunk_steps == 0 ? chunk_steps : min(chunk_steps, steps - chunk);
            const u32 end = chunk + count, stride = count * kStepGroups * kGroupFloats;
            if (!whole) {
                __syncthreads();
                staging.stage(block, op, chunk * kStepGroups, count * kStepGroups, first_round == 0,
                              kOneBlock);
                __syncthreads();
            }
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
