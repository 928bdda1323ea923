// What a sequence keeps on the device to have its next tokens chosen, and what changes it.
#pragma once

#include "ops.cuh"

// How the next tokens of a sequence are chosen, and how far it is; crates/gpu/src/choice.rs has the
// same fields. Typical sampling is not among them: the host samples those sequences.
struct alignas(16) Choice {
    u64 seed;
    u64 position;               // tokens accepted so far, the prompt's included
    u64 top_p;                  // of 2^64; all ones: keep all
    u32 top_k;                  // 0: keep all
    float min_p_log;            // ln(min_p); -inf: keep all
    u32 greedy;                 // 1: the largest logit, and the fields above do not matter
    float inverse_temperature;  // > 0, finite
    float repeat, presence, frequency;
    Place biases;               // [bias_count] SampleBias, each token once
    Place window;               // [window_length] SampleSeen: a ring of the latest tokens
    u32 bias_count;
    u32 window_length;          // 0: no penalties
    u32 window_next;            // the entry that the next token takes
    u32 unused[2];
};
static_assert(sizeof(Choice) == 80, "choice.rs");

// A constant as a function: as a variable it would be stored in the module.
DEVICE constexpr u64 sample_top_p_off() { return ~u64{0}; }

struct alignas(8) SampleBias {
    u32 token;
    float bias;  // -inf: a ban
};

// A token of the window. The count of a token is at its latest entry, earlier ones have 0: so the
// entry that leaves the window never takes the count with it.
struct alignas(8) SampleSeen {
    u32 token;  // 0xffffffff: none yet
    u32 count;  // of entries with this token, or 0
};

// The largest of some logits of a row.
struct alignas(8) Maximum {
    float value;  // -inf: none
    u32 row;      // of the matrix that made the logits: the token
};

// A token, and the probability it was drawn with: 1 if greedy, 0 if no logit was usable.
struct alignas(8) Chosen {
    u32 token;
    float probability;
};

// Adds the biases to a row's logits, then takes the penalties off, each once a token.
DEVICE void sample_adjust(const u8* arena, float* logits, u32 vocab,
                          const volatile Choice& choice) {
    const u8* biases = arena + u64{choice.biases} * 16;
    for (u32 i = threadIdx.x; i < choice.bias_count; i += blockDim.x) {
        const u32 token = load_word_shared_by_blocks(biases + u64{i} * 8);
        if (token < vocab) {
            const float bias = as_float(load_word_shared_by_blocks(biases + u64{i} * 8 + 4));
            logits[token] = load_shared_by_blocks(logits + token) + bias;
        }
    }
    __syncthreads();
    const u8* window = arena + u64{choice.window} * 16;
    for (u32 i = threadIdx.x; i < choice.window_length; i += blockDim.x) {
        const u32 token = load_word_shared_by_blocks(window + u64{i} * 8);
        const u32 count = load_word_shared_by_blocks(window + u64{i} * 8 + 4);
        if (count > 0 && token < vocab) {
            float x = load_shared_by_blocks(logits + token);
            x = x > 0.0f ? x / choice.repeat : rounded_product(x, choice.repeat);
            x = x - choice.presence;
            logits[token] = x - rounded_product(float(count), choice.frequency);
        }
    }
    __syncthreads();
}

// Appends a token to the sequence, by a whole block: the draw after it is another one, and
// penalties know of it. shared: a word of shared memory
DEVICE void accept_token(u8* arena, Choice* choice, u32 token, u32* shared) {
    u8* window = arena + u64{load_word_shared_by_blocks(&choice->window)} * 16;
    const u32 length = load_word_shared_by_blocks(&choice->window_length);
    const u32 next = load_word_shared_by_blocks(&choice->window_next);
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared = 0;
    }
    __syncthreads();
    if (length > 0) {
        const u32 oldest = load_word_shared_by_blocks(window + u64{next} * 8);
        for (u32 i = threadIdx.x; i < length; i += blockDim.x) {
            u8* at = window + u64{i} * 8;
            const u32 seen = load_word_shared_by_blocks(at);
            u32 count = load_word_shared_by_blocks(at + 4);
            if (count == 0 || (seen != oldest && seen != token)) {
                continue;
            }
            count -= seen == oldest;
            if (seen == token) {
                *shared = count;
                count = 0;
            }
            *reinterpret_cast<u32*>(at + 4) = count;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        const u32 low = load_word_shared_by_blocks(&choice->position);
        const u32 high = load_word_shared_by_blocks(reinterpret_cast<u8*>(&choice->position) + 4);
        choice->position = (u64{high} << 32 | low) + 1;
        if (length > 0) {
            SampleSeen* entry = reinterpret_cast<SampleSeen*>(window) + next;
            entry->token = token;
            entry->count = *shared + 1;
            choice->window_next = next + 1 == length ? 0 : next + 1;
        }
    }
    __syncthreads();
}

// 64 random bits for (seed, position): Philox4x32-10, as crates/sched/src/sampler/philox.rs. The
// uniform number is the first 53 of them.
DEVICE u64 sample_random(u64 seed, u64 position) {
    u32 c0 = u32(position), c1 = u32(position >> 32), c2 = 0, c3 = 0;
    u32 k0 = u32(seed), k1 = u32(seed >> 32);
#pragma unroll 1
    for (u32 round = 0; round < 10; ++round) {
        const u64 a = u64{0xD2511F53u} * c0, b = u64{0xCD9E8D57u} * c2;
        c0 = u32(b >> 32) ^ c1 ^ k0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ k1;
        c3 = u32(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return u64{c0} << 32 | c1;
}

// Whether the largest of unchanged logits is asked for: then sample_greedy_from_maxima does.
DEVICE bool takes_largest(const Choice* state) {
    return load_word_shared_by_blocks(&state->greedy) != 0 &&
           load_word_shared_by_blocks(&state->bias_count) == 0 &&
           load_word_shared_by_blocks(&state->window_length) == 0;
}
