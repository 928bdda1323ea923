// Products whose columns are dealt to blocks: of matrices with few rows for each block, and more columns
// than shared memory has room for.
//
// A task is a unit of rows over one step of columns. Blocks take tasks in the order of steps, so that
// each brings in the activations of one step, or a few. What comes of a task is stored; when all are
// done, results are added up in the order of steps, which gives the bits of a block that has whole
// rows: each block does a part, or, where blocks do not wait for each other, the last one does all.
#pragma once

#include "product.cuh"

// What the sums of a split product lie behind, in floats: the number of blocks that have stored theirs,
// and squares [kPassRows][kNormGroups].
enum : u32 {
    kArrivalFloats = 4,
    kSquareFloats = kPassRows * kNormGroups,
    kSplitHeader = kArrivalFloats + kSquareFloats,
};

// Results added up and finished, from `first` to `last` of [units][rows of W][rows of the pass].
template <class C, class F, class Op>
DEVICE void join_steps(Block<C>& block, const Op& op, u32 units, u32 steps, u32 first, u32 last) {
    using Cut = ::Cut<C, F, Op>;
    constexpr u32 kBatch = C::kBatch, kResults = Cut::kMatrixRows * kBatch;
    Shared<C>& shared = *block.shared;
    const u32 groups = (op.cols + kGroup - 1) / kGroup, b = threadIdx.x % kBatch;
    const float* squares = at<float>(block, op.sums) + kArrivalFloats;
    const float* sums = squares + kSquareFloats;
    float roots[1] = {1.0f};
    if (op.prologue != kPlain) {
#pragma unroll 4
        for (u32 i = threadIdx.x; i < groups * rows_of(shared); i += C::kThreads) {
            const u32 row = i / groups, place = row * kNormGroups + i - row * groups;
            shared.squares[place] = load_shared_by_blocks(squares + place);
        }
        __syncthreads();
        roots_of_rows(block, op, groups, b, roots);
    }
    Largest largest[1] = {{as_float(0xff800000), 0xffffffff}};
#pragma unroll 1
    for (u32 i = first + threadIdx.x; i < last; i += C::kThreads) {
        const u32 unit = i / kResults, result = i % kResults;
        const u32 row = unit * Cut::kMatrixRows + result / kBatch;
        if (row < op.rows && b < rows_of(shared)) {
            float residuals[1] = {};
            load_residuals(block, op, true, b, row, residuals);
            const float* from = sums + u64{unit} * Cut::kSums + result;
            float value = 0.0f, gated = 0.0f;
#pragma unroll 8
            for (u32 step = 0; step < steps; ++step) {
                value += load_shared_by_blocks(from + u64{step} * units * Cut::kSums);
                if (Cut::kGated) {
                    gated += load_shared_by_blocks(from + u64{step} * units * Cut::kSums + kResults);
                }
            }
            finish(block, op, b, row, value, gated, residuals[0], roots[0], largest[0]);
        }
    }
    if (op.maxima != kNowhere) {
        store_maxima(block, op, largest, 1, kBatch);
    }
}

// A warp's way through tasks, one ahead of what it works on.
template <class C, class F, class Op>
struct Tasks {
    using Cut = ::Cut<C, F, Op>;
    typename Cut::Cursor cursor;
    long long to_up;  // bytes from W to U
    u32 rows, groups, units;
    u32 task, end;   // the next one, and the block's last
    u32 step, unit;  // of the next one

    DEVICE_MEMBER void fetch(Tasks& tasks, Loaded<C, F, Op>& loaded) {
        const u32 group = tasks.step * kStepGroups + threadIdx.x % kLanes;
        const bool full = tasks.groups % kStepGroups == 0;
        const bool wanted = (tasks.task < tasks.end) & (full | (group < tasks.groups));
        load_tiles<Cut>(tasks.cursor, loaded.tiles[0], wanted, tasks.to_up,
                        tasks.unit * Cut::kMatrixRows, tasks.rows);
        tasks.task += C::kWarps;
        const bool wraps = tasks.unit + C::kWarps >= tasks.units;
        const int on = static_cast<int>(C::kWarps) - static_cast<int>(wraps ? tasks.units : 0);
        // Units may have fewer rows than a quad; all of them together have whole quads.
        Cut::Cursor::move(tasks.cursor, on * static_cast<int>(Cut::kMatrixRows) / 4,
                          wraps ? int{kStepGroups / 8} : 0);
        tasks.unit += static_cast<u32>(on);
        tasks.step += wraps ? 1 : 0;
    }
};

template <class C, class F, class Op>
DEVICE void split_matvec(Block<C>& block, const Op& op, bool resident) {
    using Cut = ::Cut<C, F, Op>;
    using Tasks = ::Tasks<C, F, Op>;
    Shared<C>& shared = *block.shared;
    const u32 lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
    const u32 blocks = grid_blocks(), groups = (op.cols + kGroup - 1) / kGroup;
    const u32 steps = (groups + kStepGroups - 1) / kStepGroups;
    const u32 units = (op.rows + Cut::kMatrixRows - 1) / Cut::kMatrixRows, all = units * steps;
    const u32 share = all / blocks, more = all % blocks;
    const u32 begin = blockIdx.x * share + min(blockIdx.x, more);
    const u32 end = begin + share + (blockIdx.x < more ? 1 : 0);

    Tasks tasks;
    tasks.rows = op.rows;
    tasks.groups = groups;
    tasks.units = units;
    tasks.task = begin + warp;
    tasks.end = end;
    tasks.step = tasks.task / units;
    tasks.unit = tasks.task - tasks.step * units;
    tasks.cursor = cursor_at<Cut>(block, op, tasks.unit * Cut::kMatrixRows,
                                  tasks.step * kStepGroups + lane);
    tasks.to_up = Cut::kGated ? (static_cast<long long>(op.up) - op.weights) * 16 : 0;
    Loaded<C, F, Op> next = {};
    Tasks::fetch(tasks, next);

    Staging<C, F, Op> staging(block, op);
    await(block, op.flags, resident);
    if (op.prologue == kAddRmsNorm) {
        staging.measure_added(block, op, groups);
    }
    float* squares = at<float>(block, op.sums) + kArrivalFloats;
    float* sums = squares + kSquareFloats;
    constexpr u32 kStride = kStepGroups * kGroupFloats;
    u32 mine = begin + warp;
#pragma unroll 1
    for (u32 now = begin / units; now * units < end; ++now) {
        // The block that has a step's first task keeps what else comes of staging it.
        const bool keeps = op.prologue != kPlain && now * units >= begin;
        const u32 first_group = now * kStepGroups;
        __syncthreads();
        staging.stage(block, op, first_group, kStepGroups, keeps, keeps ? kThisBlock : kOtherBlock);
        __syncthreads();
        if (keeps) {
            for (u32 i = threadIdx.x; i < kStepGroups * rows_of(shared); i += C::kThreads) {
                const u32 place = i / kStepGroups * kNormGroups + first_group + i % kStepGroups;
                if (first_group + i % kStepGroups < groups) {
                    squares[place] = shared.squares[place];
                }
            }
        }
#pragma unroll 1
        for (; mine < min(end, (now + 1) * units); mine += C::kWarps) {
            auto loaded = Loaded<C, F, Op>::taken(next);
            Tasks::fetch(tasks, next);
            float products[Cut::kSums];
            multiply<C, F, Op>(tasks.cursor, loaded.tiles[0], shared.pool + lane * kGroupFloats, kStride,
                               products);
            sum_over_lanes(products);
            if (lane % Cut::kCopies == 0) {
                float* to = sums + u64{mine} * Cut::kSums + lane / Cut::kCopies * Cut::kOwned;
#pragma unroll
                for (u32 j = 0; j < Cut::kOwned; ++j) {
                    to[j] = products[j];
                }
            }
        }
    }

    const u32 results = units * Cut::kMatrixRows * C::kBatch;
    u32 first = 0, last = results;
    if (resident) {
        Grid<C>::announce(block.grid);
        Grid<C>::await(block.grid, &shared.failed);
        // Whole rows of the pass, for each thread to have one of them.
        const u32 part = (results / C::kBatch + blocks - 1) / blocks * C::kBatch;
        first = min(blockIdx.x * part, results);
        last = min(first + part, results);
    } else if (!arrived_last(block, at<u32>(block, op.sums), blocks)) {
        last = 0;
    }
    join_steps<C, F, Op>(block, op, units, steps, first, last);
}
