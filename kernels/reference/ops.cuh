// Ops of decode passes as kernels of a program have them, for a card of 24 SMs: a product of each type
// of weights, and attention. kernels/inspect-sm52 looks at their machine code; nothing runs them.
#pragma once

#define M40_BLOCKS 24
#include "decode.cuh"

// 4096 x 4096, normed rows times a matrix.
template <class F, u32 kType>
struct ReferenceProduct : MatvecOp {
    typedef F Format;
    static constexpr bool kKnown = true;
    static constexpr u32 type = kType, rows = 4096, cols = 4096;
    static constexpr u32 first_block = 0, blocks = M40_BLOCKS;
    static constexpr u32 prologue = kRmsNorm, activation = kNoActivation;
    static constexpr u32 x_stride = 4096, y_stride = 4096, residual_stride = 4096, gate_stride = 0;
    static constexpr float eps = 1e-5f, block_eps = 0.0f, softcap = 0.0f;
    static constexpr Place up = kNowhere, block = kNowhere, block_gain = kNowhere;
    static constexpr Place stream = kNowhere, bias = kNowhere, maxima = kNowhere, gate = kNowhere;
};

// 32 query heads and 8 heads of keys and values, of 128.
struct ReferenceAttention : AttentionOp {
    static constexpr bool kKnown = true;
    static constexpr u32 heads = 32, kv_heads = 8;
    static constexpr u32 key_dim = 128, value_dim = 128, pairs = 64, interleaved = 0, window = 0;
    static constexpr u32 q_stride = 6144, k_stride = 6144, v_stride = 6144, out_stride = 4096;
    static constexpr u32 page_places = 8192, kv_type = kHalfKv, chunks = 32;
    static constexpr float scale = 0.088388348f, softcap = 0.0f, norm_eps = 0.0f;
    static constexpr Place q_gain = kNowhere, k_gain = kNowhere, sinks = kNowhere;
};

// The same over keys and values of int8.
struct ReferenceInt8Attention : ReferenceAttention {
    static constexpr u32 page_places = 4224, kv_type = kInt8Kv;
};

// One op of a resident launch.
template <class C, class Op>
DEVICE void run_alone(u8* arena, const u32* words) {
    STATIC_SHARED(Shared<C>, memory, 1);
    Block<C> block = {arena, memory, {reinterpret_cast<u32*>(arena), 0, kMostPolls}, words, 0, 0};
    load_next(block);
    __syncthreads();
    const u32* op = memory->ops[block.turn];
    block.turn ^= 1;
    run<1>(block, static_cast<const Op&>(*reinterpret_cast<const typename Op::Words*>(op)), true, Host{});
    Grid<C>::announce(block.grid);
}

#define REFERENCE(number, Format, kBatch)                                                     \
    KERNEL LAUNCH_BOUNDS(Batch<kBatch>::kThreads, 1)                                          \
    decode_b##kBatch##_##Format(u8* arena, const u32* words) {                                \
        run_alone<Batch<kBatch>, ReferenceProduct<Format, number>>(arena, words);             \
    }

#define REFERENCES(kBatch)                                                                    \
    FOR_TYPES(REFERENCE, kBatch)                                                              \
    KERNEL LAUNCH_BOUNDS(Batch<kBatch>::kThreads, 1)                                          \
    decode_b##kBatch##_attention(u8* arena, const u32* words) {                               \
        run_alone<Batch<kBatch>, ReferenceAttention>(arena, words);                           \
    }                                                                                         \
    KERNEL LAUNCH_BOUNDS(Batch<kBatch>::kThreads, 1)                                          \
    decode_b##kBatch##_attention_int8(u8* arena, const u32* words) {                          \
        run_alone<Batch<kBatch>, ReferenceInt8Attention>(arena, words);                       \
    }
