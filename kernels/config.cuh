// Sizes that tuning chooses; nothing here changes a result beyond its rounding.
#pragma once

#include "device.cuh"

// Columns of a group, which one lane handles at a time, and floats it takes in shared memory: 4 more,
// so that lanes reading 16 bytes of consecutive groups hit different banks, and to hold its sums.
enum : u32 { kGroup = 32, kGroupFloats = kGroup + 4 };

// Threads of a decode block, of which each SM has one, with all of its registers: barriers across 24
// blocks are faster than across 48, and activations are staged once an SM.
enum : u32 { kDecodeThreads = 512, kDecodeWarps = kDecodeThreads / kLanes };

// Polls of the barrier, some seconds, after which a block no longer waits: a launch that is not all
// resident ends with an error, not never.
enum : u32 { kMostPolls = 1u << 22 };

// Floats that a decode block has for activations and for whatever an op needs, and groups that a warp
// of a matvec takes in a step.
enum : u32 { kPoolFloats = 11680, kStepGroups = 8 };

// Groups of columns staged at once, for so many rows, beside `others` floats: whole steps.
DEVICE constexpr u32 staged_groups(u32 rows, u32 others) {
    return (kPoolFloats - others) / (rows * kGroupFloats) / kStepGroups * kStepGroups;
}
