// The next tokens of many rows: of wide passes, and for tests.

#include "next.cuh"

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

// What becomes of each row of a wide pass, a block a row: as the sample op of decode passes, and rows
// that go on are there for the next pass. One that has ended has its pages nowhere from then on, as
// have rows that never were; nothing is written for those but that they have ended.
// arena: where places count from; rows: [gridDim.x]; ran: [gridDim.x], passes since the host wrote the
// rows; logits: [gridDim.x][stride], stride a multiple of 4, may be changed; choices, endings: places of
// [slots] Choice and Ending; cancels: [slots] words of the host; nexts: [passes][gridDim.x]
KERNEL LAUNCH_BOUNDS(kSampleThreads, 1)
rows_choose(u8* arena, Row* rows, u32* ran, float* logits, u32 vocab, u32 stride, Place choices,
            Place endings, const u32* cancels, Next* nexts) {
    STATIC_SHARED(SampleScratch, scratch, 1);
    const Row row = rows[blockIdx.x];
    logits += u64{blockIdx.x} * stride;
    Next next = {0, 0.0f, kEnded, 0};
    if (row.pages != kNowhere) {
        const Slots slots = {reinterpret_cast<Choice*>(arena + u64{choices} * 16),
                             reinterpret_cast<Ending*>(arena + u64{endings} * 16), cancels};
        next = next_of_row(arena, slots, row.slot, logits, vocab, scratch, [&] {
            float mine;
            const u64 rank = sample_largest_rank(logits, vocab, mine, scratch);
            return rank != 0 ? Chosen{~u32(rank), 1.0f} : Chosen{0, 0.0f};
        });
    }
    if (threadIdx.x == 0) {
        nexts[u64{ran[blockIdx.x]++} * gridDim.x + blockIdx.x] = next;
        if (next.end == kGoesOn) {
            rows[blockIdx.x].token = next.token;
            rows[blockIdx.x].position = row.position + 1;
        } else {
            rows[blockIdx.x].pages = kNowhere;
        }
    }
}
