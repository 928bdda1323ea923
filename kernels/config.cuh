// Sizes that tuning chooses; nothing here changes a result beyond its rounding.
#pragma once

#include "device.cuh"

// Columns of a group, which one lane handles at a time, and floats it takes in shared memory: 4 more,
// so that lanes reading 16 bytes of consecutive groups hit different banks, and to hold its sums.
enum : u32 { kGroup = 32, kGroupFloats = kGroup + 4 };

// Threads of a block of the matvec kernels at most, and blocks that an SM must have room for: 128
// registers a thread.
enum : u32 { kMatvecThreads = 256, kMatvecBlocks = 2 };

// Weight words that a lane loads ahead at most. 16 words (four loads of 16 bytes) in 512 threads are
// 32 KB a SM in flight, which saturates memory; more only delays what else must be loaded.
enum : u32 { kMatvecWordsAhead = 16 };

// Rows a warp works on at once. More rows share each activation read from shared memory, until
// accumulators (rows * batch, twice) and weights ahead fill the registers.
template <class Format, u32 kBatch>
struct MatvecRows {
    static constexpr u32 kByWords = kMatvecWordsAhead / Format::kWords;
    static constexpr u32 kByBatch = kBatch <= 4 ? 4 : 2;
    static constexpr u32 kLess = kByWords < kByBatch ? kByWords : kByBatch;
    static constexpr u32 kRows = kLess == 0 ? 1 : kLess;
};
