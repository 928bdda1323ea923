// Decode passes of 1 to 8 rows: an interpreter of ops (ops.cuh), one block an SM.
//
// decode_bN runs ops first..last of a list, `passes` times over, or until all rows have ended
// (choose.cuh). Resident, all blocks go through the list together, with a barrier where an op reads
// what others wrote; otherwise a launch is one op and its end is the barrier. A kernel that stays does
// job after job from the desk (desk.cuh), as if each were a resident launch. All ways run the same
// code, so their results are the same.
//
// Kernels are compiled for one program on one card, when its model is loaded (crates/gpu,
// specialize.rs): all sizes are known then, loops have constant lengths, and a model's few types of
// weights are all that there is code for. Without such a program kernels run any: in emulation.
#pragma once

#include "attention.cuh"
#include "choose.cuh"
#include "embed.cuh"
#include "matvec.cuh"

// The ops that a kernel knows: number and type of each. A kernel for one program brings its own.
#ifndef FOR_VARIANTS
#define FOR_VARIANTS(CASE)    \
    CASE(kEmbed, EmbedOp)     \
    CASE(kMatvec, MatvecOp)   \
    CASE(kGatedMatvec, GatedMatvecOp) \
    CASE(kAttention, AttentionOp) \
    CASE(kNorm, NormOp)       \
    CASE(kSample, SampleOp)
#endif

// Does `what`<Format> for an op's weights: of the one format of an op that is known when it is compiled.
#define FOR_FORMAT(Op, op, WHAT)                 \
    if constexpr (Op::kKnown) {                  \
        WHAT(typename Op::Format)                \
    } else {                                     \
        FOR_TYPE(op.type, WHAT)                  \
    }

// The same for what an op's keys and values are in the cache.
#define FOR_KV(Op, op, WHAT)                     \
    if constexpr (Op::kKnown) {                  \
        WHAT(KvFormat<Op::kv_type>)              \
    } else if (op.kv_type == kInt8Kv) {          \
        WHAT(KvFormat<kInt8Kv>)                  \
    } else {                                     \
        WHAT(KvFormat<kHalfKv>)                  \
    }

// kHeads: that attention takes at a time
template <u32 kHeads, class C, class Op>
DEVICE void run(Block<C>& block, const Op& op, bool resident, const Host& host) {
    if constexpr (Op::kKind == kMatvec) {
#define MATVEC(F) matvec<C, F, Op>(block, op, resident);
        FOR_FORMAT(Op, op, MATVEC)
#undef MATVEC
    } else if constexpr (Op::kKind == kAttention) {
#define ATTENTION(Kv) attention<C, Kv, kHeads, Op>(block, op, resident);
        FOR_KV(Op, op, ATTENTION)
#undef ATTENTION
    } else {
        await(block, op.flags, resident);
        if constexpr (Op::kKind == kEmbed) {
#define EMBED(F) embed_rows<C, F, Op>(block, op);
            FOR_FORMAT(Op, op, EMBED)
#undef EMBED
            turn_angles(block, op);
        } else if constexpr (Op::kKind == kNorm) {
            norm_rows(block, op);
        } else {
            choose(block, op, host);
        }
    }
}

// Whether an op is a call: what it needs of registers is then no burden to the others, whose state would
// go to memory that is far after each barrier. Ops of one or two rows that need few are not worth one.
template <class C, class Op>
DEVICE constexpr bool is_called() {
    if constexpr (C::kBatch > 2 || !Op::kKnown) {
        return true;
    } else if constexpr (Op::kKind == kMatvec) {
        return Op::Format::kWords + Op::Format::kHigh > 4 || Op::Format::kHalves > 1 ||
               Op::Format::kSuperBytes > 0;
    } else if constexpr (Op::kKind == kAttention) {
        return Op::key_dim > 64;
    } else {
        return false;
    }
}

// Returns what the barrier's target is then.
template <u32 kHeads, class C, class Op>
DEVICE_CALLED u32 run_called(Block<C> block, const Op* op, bool resident, Host host) {
    assume_shared(op);
    assume_shared(block.shared);
    run<kHeads>(block, *op, resident, host);
    return block.grid.target;
}

template <u32 kHeads, class C, class Op>
DEVICE void run_or_call(Block<C>& block, const Op& op, bool resident, const Host& host) {
    if constexpr (is_called<C, Op>()) {
        block.grid.target = run_called<kHeads>(block, &op, resident, host);
    } else {
        run<kHeads>(block, op, resident, host);
    }
}

template <class C, class Op>
DEVICE void run_any(Block<C>& block, const Op& op, bool resident, const Host& host) {
    if constexpr (Op::kKind == kAttention) {
        if constexpr (may_pair<C, Op>()) {
            if (pairs_heads(*block.shared, op)) {
                run_or_call<kPair>(block, op, resident, host);
                return;
            }
        }
    }
    run_or_call<1>(block, op, resident, host);
}

// Op word 0 is the number of the variant, where a program's are known, else the kind.
template <class C>
DEVICE void run_op(Block<C>& block, const u32* op, bool resident, const Host& host) {
    switch (op[0]) {
#define CASE(number, Op)                                                                    \
    case number:                                                                            \
        run_any(block, static_cast<const Op&>(*reinterpret_cast<const Op::Words*>(op)),     \
                resident, host);                                                            \
        break;
        FOR_VARIANTS(CASE)
#undef CASE
        default:
            break;
    }
}

// The rows of a pass that the host has described. By all blocks.
template <class C>
DEVICE void read_pass(const Block<C>& block, const Pass* pass) {
    Shared<C>& shared = *block.shared;
    if (threadIdx.x < kPassRows) {
        const uint4 row = load_words_shared_by_blocks_16(pass->row + threadIdx.x);
        shared.rows[threadIdx.x] = {row.x, row.y, row.z, row.w};
    }
    if (threadIdx.x == 0) {
        shared.row_count = load_word_shared_by_blocks(&pass->rows);
        begin_rows(shared);
    }
}

// The next job, by all blocks; false if there is none, and the kernel is to leave.
template <class C>
DEVICE bool begin_job(Block<C>& block, Pass* pass, u32* desk) {
    Shared<C>& shared = *block.shared;
    if (blockIdx.x == 0 && threadIdx.x < kLanes) {
        take_job(desk, pass, shared.job, C::kBatch, &shared.beat);
    }
    Grid<C>::announce(block.grid);
    Grid<C>::await(block.grid, &shared.failed);
    read_pass(block, pass);
    if (threadIdx.x == 0) {
        shared.passes = load_word_shared_by_blocks(&pass->passes);
        shared.sequence = load_word_shared_by_blocks(&pass->sequence);
        shared.job = load_word_shared_by_blocks(&pass->job);
    }
    block.pass = 0;
    __syncthreads();
    return shared.row_count != 0 && shared.failed == 0;
}

// passes: 0: the kernel stays, and the desk has its jobs, of which `taken` was the last
// barrier: [counter, the counter's value at the launch, whether waiting for it has failed]
// chosen: as SampleOp's
template <class C>
DEVICE void decode(u8* arena, Place ops, u32 first, u32 last, Place pass_place, u32 passes,
                   Place barrier, Place chosen, const Host& host, u32 taken) {
    STATIC_SHARED(Shared<C>, memory, 1);
    Shared<C>& shared = *memory;
    const bool resident = last - first > 1, stays = passes == 0;
    Block<C> block = {arena, memory, {nullptr, 0, kMostPolls}, nullptr, 0, 0};
    if (resident) {
        block.grid.counter = at<u32>(block, barrier);
        block.grid.target = load_word_shared_by_blocks(at<u32>(block, barrier) + 1);
    }
    const u32* list = at<u32>(block, ops);
    Pass* pass = at<Pass>(block, pass_place);
    block.next = list + u64{first} * kOpWords;
    load_next(block);
    if (threadIdx.x == 0) {
        shared.failed = 0;
        shared.passes = passes;
        shared.job = stays ? taken : 0;
        shared.beat = 0;
    }
    if (!stays) {
        read_pass(block, pass);
    }
    __syncthreads();
    // Of a launch without jobs the first pass is described, as if by a job.
    for (bool described = !stays;; ++block.pass) {
        if (!described && !begin_job(block, pass, host.desk)) {
            break;
        }
        for (u32 i = first; i < last; ++i) {
            const u32* op = shared.ops[block.turn];
            block.turn ^= 1;
            block.next = list + u64{i + 1 < last ? i + 1 : first} * kOpWords;
            run_op(block, op, resident, host);
            if (resident && op[1] & kAnnounce) {
                Grid<C>::announce(block.grid, C::kReadsMarks && (op[1] & kOpen) != 0);
            } else {
                __syncthreads();
            }
        }
        if (!stays && block.pass + 1 == shared.passes) {
            break;
        }
        Grid<C>::await(block.grid, &shared.failed);
        if (stays && shared.failed != 0) {
            break;
        }
        described = feed_rows(block, chosen, host.desk);
        if (!stays && !described) {
            break;
        }
    }
    if (threadIdx.x == 0 && shared.failed != 0) {
        at<u32>(block, barrier)[2] = 1;
    }
    if (stays && blockIdx.x == 0 && threadIdx.x == 0) {
        if (shared.failed != 0) {
            report_job(host.desk, shared.job, kStuck, block.pass);
        }
        tell_left(host.desk, shared.job);
    }
}

// The kernel for at most kBatch rows.
#define DECODE(kBatch)                                                                       \
    KERNEL LAUNCH_BOUNDS(Batch<kBatch>::kThreads, 1)                                         \
    decode_b##kBatch(u8* arena, Place ops, u32 first, u32 last, Place pass, u32 passes,      \
                     Place barrier, Place chosen, const u32* cancels, u32* desk, u32 taken) { \
        decode<Batch<kBatch>>(arena, ops, first, last, pass, passes, barrier, chosen,        \
                              Host{cancels, desk}, taken);                                   \
    }
