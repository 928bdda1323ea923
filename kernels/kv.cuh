// How the KV cache keeps the elements of a head (KvType, ops.cuh): as loaded, as floats, and on their
// way into the cache.
#pragma once

#include "ops.cuh"

// A format gives each element as `number`, without its scale, and as a `field` in place, which is less
// work: with multiplicands grown by kGrowth,
//   sum(number * x) = sum(field * x * kGrowth) * kShrinkage - kZero * sum(x).
template <u32 kType>
struct KvFormat;

template <>
struct KvFormat<kHalfKv> {
    typedef u16 Element;
    typedef uint4 Eight;
    static constexpr bool kScaled = false;

    DEVICE_MEMBER void load_if(bool wanted, const Eight* p, Eight& to) {
        load_words_shared_by_blocks_16_if(wanted, p, to);
    }
    DEVICE_MEMBER float number(u32 word, u32 place) {
        return place == 0 ? half_to_float(word) : half_to_float_high(word);
    }
    DEVICE_MEMBER void fields(const Eight& from, float (&to)[8]) {
        const u32 words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            to[i] = number(words[i / 2], i % 2);
        }
    }
};

// Integers in -127..=127, which lie 128 too high; of a token each head of keys, and of values, has a
// scale: its largest magnitude / 127.
template <>
struct KvFormat<kInt8Kv> {
    typedef u8 Element;
    typedef uint2 Eight;
    static constexpr bool kScaled = true;
    static constexpr float kZero = 128.0f;
    // 2^100, and 2^(141 - 100): products of fields with numbers of up to 2^27 are ordinary floats.
    static constexpr float kGrowth = 1.2676506e30f, kShrinkage = 2.1990233e12f;

    DEVICE_MEMBER void load_if(bool wanted, const Eight* p, Eight& to) {
        load_words_shared_by_blocks_8_if(wanted, p, to);
    }
    // A byte at bit 8 of 2^15 is what 2^15 is larger by; both steps are exact, and at full rate, which
    // conversions are not.
    DEVICE_MEMBER float number(u32 word, u32 place) {
        return as_float(permute(word, 0x47000000, 0x7504 | place << 4)) - (32768.0f + 128.0f);
    }
    // A byte at bit 8 of nothing is a subnormal float, so many times 2^-141, which FFMA multiplies with
    // like any other.
    DEVICE_MEMBER void fields(const Eight& from, float (&to)[8]) {
        const u32 words[2] = {from.x, from.y};
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            to[i] = as_float(permute(words[i / 4], 0, 0x4404 | i % 4 << 4));
        }
    }
};

// How a head's elements become integers. The host rounds in the same way (crates/cpu, kv.rs).
struct Quantiser {
    float scale, inverse;

    // Of a head, by a warp that sees all of it.
    DEVICE_MEMBER Quantiser of(const float* head, u32 dim) {
        // Bits of magnitudes are in their order, NaN above all: what is no number makes no numbers.
        u32 bits = 0;
#pragma unroll 4
        for (u32 d = threadIdx.x % kLanes; d < dim; d += kLanes) {
            bits = max(bits, as_bits(head[d]) & 0x7fffffffu);
        }
#pragma unroll
        for (u32 mask = kLanes / 2; mask > 0; mask /= 2) {
            bits = max(bits, __shfl_xor_sync(kAllLanes, bits, mask));
        }
        const float largest = as_float(bits), infinity = as_float(0x7f800000);
        return {largest < infinity ? largest * (1.0f / 127.0f) : as_float(0x7fc00000),
                largest > 0.0f ? 127.0f / largest : 0.0f};
    }

    // 128 too high. In 1.5 * 2^23 and more the last place is 1, so that sums are rounded to integers.
    DEVICE_MEMBER u8 byte(const Quantiser& by, float x) {
        return static_cast<u8>(as_bits(rounded_product(x, by.inverse) + (12582912.0f + 128.0f)));
    }
};
