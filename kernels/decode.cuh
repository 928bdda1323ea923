// Decode passes of 1 to 8 rows: an interpreter of ops (ops.cuh), one block an SM.
//
// decode_bN runs ops first..last of a list, `passes` times over, or until all rows have ended
// (choose.cuh). Resident, all blocks go through the list together, with a barrier where an op reads
// what others wrote; otherwise a launch is one op and its end is the barrier. Both ways run the same
// code, so their results are the same.
//
// Each decode_bN is a file of its own, so that they are compiled side by side.
#pragma once

#include "attention.cuh"
#include "choose.cuh"
#include "embed.cuh"
#include "matvec.cuh"

// A pass as the host, or the pass before, describes it.
struct Pass {
    u32 rows;
    u32 unused[3];
    Row row[kPassRows];
};

template <u32 kBatch>
DEVICE void run_matvec(Block& block, const MatvecOp& op, bool resident) {
#define MATVEC(F) matvec<F, kBatch>(block, op, resident);
    FOR_TYPE(op.type, MATVEC)
#undef MATVEC
}

DEVICE void run_embed(const Block& block, const EmbedOp& op) {
#define EMBED(F) embed_rows<F>(block, op);
    FOR_TYPE(op.type, EMBED)
#undef EMBED
    turn_angles(block, op);
}

template <u32 kBatch>
DEVICE void run_op(Block& block, const u32* op, bool resident, const u32* cancels) {
    if (op[0] == kMatvec) {
        run_matvec<kBatch>(block, *reinterpret_cast<const MatvecOp*>(op), resident);
        return;
    }
    if (op[0] == kAttention) {
        attention(block, *reinterpret_cast<const AttentionOp*>(op), resident);
        return;
    }
    await(block, op[1], resident);
    if (op[0] == kEmbed) {
        run_embed(block, *reinterpret_cast<const EmbedOp*>(op));
    } else if (op[0] == kNorm) {
        norm_rows(block, *reinterpret_cast<const NormOp*>(op));
    } else if (op[0] == kSample) {
        choose(block, *reinterpret_cast<const SampleOp*>(op), cancels);
    }
}

// barrier: [counter, the counter's value at the launch, whether waiting for it has failed]
// chosen: as SampleOp's
// cancels: [slots], in the host's memory: a sequence ends once its word is its Ending's ticket
template <u32 kBatch>
DEVICE void decode(u8* arena, Place ops, u32 first, u32 last, Place pass_place, u32 passes,
                   Place barrier, Place chosen, const u32* cancels) {
    STATIC_SHARED(Shared, memory, 1);
    Shared& shared = *memory;
    const bool resident = last - first > 1;
    Block block = {arena, memory, {nullptr, 0, kMostPolls}, nullptr, 0, 0};
    if (resident) {
        block.grid.counter = Block::at<u32>(block, barrier);
        block.grid.target = load_word_shared_by_blocks(Block::at<u32>(block, barrier) + 1);
    }
    const u32* list = Block::at<u32>(block, ops);
    const Pass* pass = Block::at<Pass>(block, pass_place);
    block.next = list + u64{first} * kOpWords;
    load_next(block);
    if (threadIdx.x < kPassRows) {
        const uint4 row = load_words_shared_by_blocks_16(pass->row + threadIdx.x);
        shared.rows[threadIdx.x] = {row.x, row.y, row.z, row.w};
    }
    if (threadIdx.x == 0) {
        shared.row_count = load_word_shared_by_blocks(&pass->rows);
        shared.failed = 0;
        begin_rows(shared);
    }
    __syncthreads();
    for (; block.pass < passes; ++block.pass) {
        for (u32 i = first; i < last; ++i) {
            const u32* op = shared.ops[block.turn];
            block.turn ^= 1;
            block.next = list + u64{i + 1 < last ? i + 1 : first} * kOpWords;
            run_op<kBatch>(block, op, resident, cancels);
            if (resident && op[1] & kAnnounce) {
                Grid::announce(block.grid);
            } else {
                __syncthreads();
            }
        }
        if (block.pass + 1 < passes) {
            Grid::await(block.grid, &shared.failed);
            if (!feed_rows(block, chosen)) {
                break;
            }
        }
    }
    if (threadIdx.x == 0 && shared.failed != 0) {
        Block::at<u32>(block, barrier)[2] = 1;
    }
}

// The kernel for at most kBatch rows.
#define DECODE(kBatch)                                                                       \
    KERNEL LAUNCH_BOUNDS(kDecodeThreads, 1)                                                  \
    decode_b##kBatch(u8* arena, Place ops, u32 first, u32 last, Place pass, u32 passes,      \
                     Place barrier, Place chosen, const u32* cancels) {                      \
        decode<kBatch>(arena, ops, first, last, pass, passes, barrier, chosen, cancels);     \
    }
