// Sizes that tuning chooses; nothing here changes a result beyond its rounding.
#pragma once

#include "device.cuh"

// Columns of a group, which one lane handles at a time, and floats it takes in shared memory: 4 more,
// so that lanes reading 16 bytes of consecutive groups hit different banks, and to hold its sums.
enum : u32 { kGroup = 32, kGroupFloats = kGroup + 4 };

// Groups of a step of a decode pass: one for each lane.
enum : u32 { kStepGroups = kLanes };

// Columns that a norm on the way into a matvec may have, in groups.
enum : u32 { kNormGroups = 256 };

// Polls of the barrier, some seconds, after which a block no longer waits: a launch that is not all
// resident ends with an error, not never.
enum : u32 { kMostPolls = 1u << 22 };

// How a decode kernel for up to kRows rows is cut. Each SM has one block, with all of its registers:
// barriers across 24 blocks are faster than across 48, and activations are staged once an SM. Rows
// share what is read of weights, which takes registers, so with many of them threads are fewer.
template <u32 kRows>
struct Batch {
    static constexpr u32 kBatch = kRows;
    static constexpr u32 kThreads = kRows <= 2 ? 512 : 256, kWarps = kThreads / kLanes;
    // Sums of squares of groups of normed rows, and floats for activations and whatever an op needs.
    static constexpr u32 kSquares = kRows * kNormGroups, kPool = 12096 - kSquares;
    // Steps of all rows that fit into the pool.
    static constexpr u32 kSteps = kPool / (kRows * kStepGroups * kGroupFloats);
    // Whether readers look at marks (marks.cuh). Passes of many rows would lose more by it than fences take.
    static constexpr bool kReadsMarks = kRows <= 2;
    // Items of staging that a thread has on their way.
    static constexpr u32 kItems = kRows <= 2 ? 2 : 3;
};

// Blocks of the grid, where they are known when a kernel is compiled; else 0.
#ifdef M40_BLOCKS
constexpr u32 kBlocks = M40_BLOCKS;
#else
constexpr u32 kBlocks = 0;
#endif

DEVICE u32 grid_blocks() { return kBlocks != 0 ? kBlocks : gridDim.x; }
