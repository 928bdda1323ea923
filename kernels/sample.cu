// The next tokens of many rows: for batches larger than a decode pass, and for tests.

#include "sample.cuh"

enum : u32 { kSampleThreads = 512 };

// A block a row, of a vocabulary up to 2^18.
// arena: where places count from; logits: [rows][stride], stride a multiple of 4; slots: [rows],
// which of `choices` is the row's, no two the same; choices: a place; chosen: [rows]; accept: 1:
// what is chosen is also accepted
KERNEL LAUNCH_BOUNDS(kSampleThreads, 2)
sample_rows(u8* arena, float* logits, u32 vocab, u32 stride, const u32* slots, Place choices,
            Chosen* chosen, u32 accept) {
    STATIC_SHARED(SampleScratch, scratch, 1);
    const u32 row = blockIdx.x;
    Choice* choice = reinterpret_cast<Choice*>(arena + u64{choices} * 16) + slots[row];
    const Chosen result = sample_row(arena, logits + u64{row} * stride, vocab, choice, scratch,
                                     chosen + row);
    if (accept != 0 && result.probability > 0.0f) {
        accept_token(arena, choice, result.token, &scratch->found);
    }
}

// A block a row, from the largest logits of its parts. maxima: [rows][count]; chosen: [rows]
KERNEL LAUNCH_BOUNDS(kSampleThreads, 2)
sample_rows_from_maxima(const Maximum* maxima, u32 count, Chosen* chosen) {
    STATIC_SHARED(SampleScratch, scratch, 1);
    sample_greedy_from_maxima(maxima + u64{blockIdx.x} * count, count, scratch,
                              chosen + blockIdx.x);
}
