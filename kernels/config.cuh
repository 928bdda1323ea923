// Sizes that tuning chooses; nothing here changes a result beyond its rounding.
#pragma once

#include "device.cuh"

// Columns of a group, which one lane handles at a time, and floats it takes in shared memory: 4 more,
// so that lanes reading 16 bytes of consecutive groups hit different banks, and to hold its sums.
enum : u32 { kGroup = 32, kGroupFloats = kGroup + 4 };

// Threads of a block of the matvec kernels, at most.
enum : u32 { kMatvecThreads = 256 };

// Loads of 16 bytes of activations that a thread has in flight while staging them.
enum : u32 { kStageAhead = 4 };

// How the matvec kernel of a format for kBatch rows of activations is cut.
//
// More rows of weights at once share each activation read from shared memory, until accumulators
// (rows * batch, twice) and the weights loaded ahead fill the registers. For 1 and 2 rows of
// activations memory is the limit: two blocks on an SM with four loads of 16 bytes ahead a thread
// (32 KB in flight) saturate it. For more, arithmetic and shared memory are: one block with all the
// registers was up to 1.4 times as fast as two (NOTES.md).
template <class Format, u32 kBatch>
struct MatvecCut {
    static constexpr u32 kBlocks = kBatch <= 2 ? 2 : 1;         // that an SM must have room for
    static constexpr u32 kWordsAhead = kBatch <= 2 ? 16 : 32;   // weights that a lane loads ahead
    static constexpr u32 kFit = kWordsAhead / (Format::kWords + Format::kHigh);
    static constexpr u32 kRows = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
};
