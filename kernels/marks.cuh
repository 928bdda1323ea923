// Marks: the last bit of each number that products and attention write, another one than that of the
// number before in its place. A reader sees by it whether the number that it means has arrived, and else
// reads again; so a barrier between the two needs no fence, which waits for all writes to arrive. Which
// barriers those are is for crates/gpu to say (lower/marks.rs).
#pragma once

#include "block.cuh"

// The number with the mark of what an op with these flags writes.
DEVICE float marked(float value, u32 flags) {
    return as_float((as_bits(value) & ~1u) | (flags & kMark) / kMark);
}

// What numbers of an input must have.
struct Wanted {
    u32 mark;
    u32 mask;  // 0: anything

    template <class C>
    DEVICE_MEMBER Wanted of(u32 flags, u32 input) {
        const u32 mask = flags / kMarkedInput >> 2 * input & 1;
        return {flags / kInputMark >> 2 * input & 1, C::kReadsMarks ? mask : 0};
    }
};

// Whether the number is still the one before.
DEVICE bool is_old(float x, const Wanted& wanted) {
    return ((as_bits(x) ^ wanted.mark) & wanted.mask) != 0;
}

// Whether one of them is.
DEVICE bool is_old(const float4& a, const float4& b, const Wanted& wanted) {
    const u32 m = wanted.mark;
    const u32 first = (as_bits(a.x) ^ m) | (as_bits(a.y) ^ m) | (as_bits(a.z) ^ m);
    const u32 second = (as_bits(b.x) ^ m) | (as_bits(b.y) ^ m) | (as_bits(b.z) ^ m);
    const u32 rest = (as_bits(a.w) ^ m) | (as_bits(b.w) ^ m);
    return ((first | second | rest) & wanted.mask) != 0;
}

// Whether to look once more after so many times. False once waiting has failed.
template <class C>
DEVICE bool looks_again(Shared<C>& shared, u32& polls) {
    const bool again = shared.failed == 0 && ++polls <= kMostPolls;
    if (!again) {
        shared.failed = 1;
    }
    look_again();
    return again;
}

// Loads, and once more while `load` says that something was old; mostly not.
template <class C, class Load>
DEVICE void load_marked(Shared<C>& shared, Load load) {
    const bool old = load();
    if constexpr (C::kReadsMarks) {
        if (old) {
            for (u32 polls = 0; looks_again(shared, polls) && load();) {
            }
        }
    }
}
