// Weights in planes (README.md): loading a group of some rows, and making floats of it.
//
// A format gives each weight of a group as a float f = power + q, power depending on the column
// alone, and a scale s and minimum m with weight = s * (q - kZero) + m. Then
//   sum(weight * x) = s * (sum(f * x) - sum((power + kZero) * x)) + m * sum(x),
// where both sums over x are the activations' alone: they are staged beside them (staging.cuh).
#pragma once

#include "config.cuh"

// A matrix of weights, [rows, cols], in planes.
struct Planes {
    const u8* start;  // where the first plane, of quants, starts
    u64 high, scales, tops, supers;  // where the other planes start, bytes from there
    u32 rows, cols;
};

// What a format has, in the terms of README.md.
template <u32 words, u32 high, u32 scale_bytes, bool twelve, u32 super_bytes>
struct Shape {
    static constexpr u32 kWords = words;            // 32-bit words of quants of a group
    static constexpr u32 kHigh = high;              // high words of a group
    static constexpr u32 kScaleBytes = scale_bytes; // of a group, in the plane of scales
    static constexpr bool kTwelve = twelve;         // has a plane of tops
    static constexpr u32 kSuperBytes = super_bytes; // of a super-group
    static constexpr u32 kHalves = 1;  // parts of a group with a scale each
    static constexpr u32 kZero = 0;
    static constexpr bool kHasMin = false;
    static constexpr bool kScaled = true;
};

DEVICE constexpr u32 words_for(u32 bytes) { return bytes == 0 ? 1 : (bytes + 3) / 4; }

// One group of kRows consecutive rows, as loaded.
template <class F, u32 kRows>
struct Tile {
    u32 quants[kRows][F::kWords];
    u32 high[kRows][F::kHigh == 0 ? 1 : F::kHigh];
    u32 scales[words_for(kRows * F::kScaleBytes)];  // rows packed
    u32 tops;
    u32 supers[words_for(kRows * F::kSuperBytes)];  // rows packed

    // A copy, made here and now.
    DEVICE_MEMBER Tile taken(const Tile& from) {
        Tile to = {};
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
#pragma unroll
            for (u32 i = 0; i < F::kWords; ++i) {
                to.quants[r][i] = copied(from.quants[r][i]);
            }
#pragma unroll
            for (u32 i = 0; i < F::kHigh; ++i) {
                to.high[r][i] = copied(from.high[r][i]);
            }
        }
#pragma unroll
        for (u32 i = 0; F::kScaleBytes > 0 && i < words_for(kRows * F::kScaleBytes); ++i) {
            to.scales[i] = copied(from.scales[i]);
        }
        if constexpr (F::kTwelve) {
            to.tops = copied(from.tops);
        }
#pragma unroll
        for (u32 i = 0; F::kSuperBytes > 0 && i < words_for(kRows * F::kSuperBytes); ++i) {
            to.supers[i] = copied(from.supers[i]);
        }
        return to;
    }
};

// kBytes bytes (0, 1, 2, 4, 8 or 16) into words.
template <u32 kBytes>
DEVICE void load_packed(const u8* p, u32* words) {
    if constexpr (kBytes == 1) {
        words[0] = load_weights_1(p);
    } else if constexpr (kBytes == 2) {
        words[0] = load_weights_2(p);
    } else if constexpr (kBytes == 4) {
        words[0] = load_weights_4(p);
    } else if constexpr (kBytes == 8) {
        const uint2 v = load_weights_8(p);
        words[0] = v.x;
        words[1] = v.y;
    } else if constexpr (kBytes == 16) {
        const uint4 v = load_weights_16(p);
        words[0] = v.x;
        words[1] = v.y;
        words[2] = v.z;
        words[3] = v.w;
    }
}

// The same, if `wanted`; else the words stay as they are. No branch: it would wait for loads before it.
template <u32 kBytes>
DEVICE void load_if(bool wanted, const u8* p, u32* words) {
    if constexpr (kBytes == 1) {
        load_weights_1_if(wanted, p, words[0]);
    } else if constexpr (kBytes == 2) {
        load_weights_2_if(wanted, p, words[0]);
    } else if constexpr (kBytes == 4) {
        load_weights_4_if(wanted, p, words[0]);
    } else if constexpr (kBytes == 8) {
        load_weights_8_if(wanted, p, words[0], words[1]);
    } else if constexpr (kBytes == 16) {
        load_weights_16_if(wanted, p, words[0], words[1], words[2], words[3]);
    }
}

// Where a lane reads: a group of kRows rows. kRows is 1, 2 or 4 and divides the first row.
//
// Addresses are stepped, not computed from row and group, as a 64-bit product is many instructions.
template <class F, u32 kRows>
struct Cursor {
    static constexpr u32 kParts = F::kWords < 4 ? 1 : F::kWords / 4;
    static constexpr u32 kPartBytes = F::kWords < 4 ? 4 * F::kWords : 16;

    const u8 *quants, *high, *scales, *tops, *supers;
    u32 groups;  // of a row
    u32 lane;    // the first row, within its quad

    DEVICE_MEMBER Cursor at(const Planes& planes, u32 row, u32 group) {
        const u32 groups = (planes.cols + kGroup - 1) / kGroup;
        const u32 quad = row / 4, lane = row % 4;
        const u64 of_row = u64{row} * groups, of_quad = u64{quad} * groups + group;
        const u64 super = u64{quad} * (planes.cols / 256) + group / 8;
        return {
            planes.start + (of_row * kParts + group) * kPartBytes,
            planes.start + planes.high + (of_row + group) * (4 * F::kHigh),
            planes.start + planes.scales + (of_quad * 4 + lane) * F::kScaleBytes,
            planes.start + planes.tops + of_quad * 2,
            planes.start + planes.supers + (super * 4 + lane) * F::kSuperBytes,
            groups,
            lane,
        };
    }

    // So many quads of rows and groups further on, or back; groups in eights.
    DEVICE_MEMBER void move(Cursor& cursor, int quads, int eights) {
        move_either(cursor, true, quads, eights, 0);
    }

    // If `far`, so many quads and eights of groups further on; else so many eights.
    DEVICE_MEMBER void move_either(Cursor& cursor, bool far, int quads, int eights, int near) {
        const int of_quad = static_cast<int>(cursor.groups), groups = quads * of_quad + eights * 8;
        constexpr int kRow = int{kParts} * int{kPartBytes}, kHigh = int{4 * F::kHigh};
        constexpr int kScales = int{4 * F::kScaleBytes}, kSupers = int{4 * F::kSuperBytes};
        cursor.quants += far ? quads * 4 * of_quad * kRow + eights * 8 * int{kPartBytes}
                             : near * 8 * int{kPartBytes};
        cursor.high += far ? (quads * 4 * of_quad + eights * 8) * kHigh : near * 8 * kHigh;
        cursor.scales += far ? groups * kScales : near * 8 * kScales;
        cursor.tops += far ? groups * 2 : near * 16;
        cursor.supers += far ? (quads * (of_quad / 8) + eights) * kSupers : near * kSupers;
    }

    // Loads the group, if it is `wanted`; else the tile keeps what it has. `behind`: bytes from this
    // matrix to the one that is read
    DEVICE_MEMBER void load(const Cursor& cursor, Tile<F, kRows>& tile, bool wanted = true,
                            long long behind = 0) {
        // 32 bits: enough for rows of 2^26 columns.
        const u32 part_step = cursor.groups * kPartBytes, high_step = cursor.groups * 4 * F::kHigh;
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
#pragma unroll
            for (u32 part = 0; part < kParts; ++part) {
                load_if<kPartBytes>(wanted,
                                    cursor.quants + behind + (r * kParts + part) * part_step,
                                    &tile.quants[r][4 * part]);
            }
            if constexpr (F::kHigh > 0) {
                load_if<4 * F::kHigh>(wanted, cursor.high + behind + r * high_step, tile.high[r]);
            }
        }
        if constexpr (F::kScaleBytes > 0) {
            load_if<kRows * F::kScaleBytes>(wanted, cursor.scales + behind, tile.scales);
        }
        if constexpr (F::kTwelve) {
            load_if<2>(wanted, cursor.tops + behind, &tile.tops);
        }
        if constexpr (F::kSuperBytes > 0) {
            load_if<kRows * F::kSuperBytes>(wanted, cursor.supers + behind, tile.supers);
        }
    }

    // A loaded tile, made ready: the bits of all rows of the quad were loaded.
    DEVICE_MEMBER Tile<F, kRows> settled(const Cursor& cursor, Tile<F, kRows> tile) {
        if constexpr (F::kTwelve && kRows < 4) {
            tile.tops >>= 4 * cursor.lane;
        }
        return tile;
    }
};

// Field `i` of kBytes bytes in packed words; bits above it are undefined for 2 bytes.
template <u32 kBytes>
DEVICE u32 packed(const u32* words, u32 i) {
    if constexpr (kBytes == 4) {
        return words[i];
    } else if constexpr (kBytes == 2) {
        return words[i / 2] >> (16 * (i % 2));
    } else {
        return words[i / 4] >> (8 * (i % 4)) & 0xff;
    }
}
// The f16 that is field `i` of 2 bytes.
DEVICE float packed_half(const u32* words, u32 i) {
    return i % 2 == 0 ? half_to_float(words[i / 2]) : half_to_float_high(words[i / 2]);
}

// The 12 bits of row `r`.
template <class F, u32 kRows>
DEVICE u32 twelve_bits(const Tile<F, kRows>& tile, u32 r) {
    return packed<1>(tile.scales, r) | (tile.tops >> (4 * r) & 15) << 8;
}

// The word rotated by whole bytes so that byte `byte` comes to where byte 2 is.
DEVICE u32 bring(u32 word, u32 byte) {
    return byte == 2 ? word : permute(word, word, byte == 0 ? 0x1032 : byte == 1 ? 0x2103 : 0x0321);
}

// The float 2^(23 - low_bit) + q of the field q of `bits` bits from bit `low_bit` on.
DEVICE float field(u32 word, u32 low_bit, u32 bits) {
    return as_float(masked_or(word, ((1u << bits) - 1) << low_bit, (127 + 23 - low_bit) << 23));
}

// All formats with bit fields of kLow bits in `quants` and kHigh bits above, at most one byte.
//
// weights8(tile, r, eighth, f): columns 8 * eighth.. of row r, as f[0..8].
// power(column): what each f has too much.
template <u32 kLow, u32 kHigh>
struct Fields {
    static constexpr u32 kSlots = 8 / kLow;    // fields of a byte
    static constexpr u32 kPerWord = 32 / kLow; // columns of a word
    DEVICE_MEMBER constexpr u32 low_bit(u32 slot) { return 23 - kHigh - kLow * (slot + 1); }
    DEVICE_MEMBER constexpr float power(u32 column) {
        return float(1u << (23 - low_bit(column % kSlots)));
    }

    // The places of the low bits of slots 0, 2.., in all bytes: where those of the others' high
    // bits come from the high word too.
    DEVICE_MEMBER constexpr u32 even_slots() {
        u32 mask = 0;
        for (u32 slot = 0; slot < kSlots; slot += 2) {
            for (u32 byte = 0; byte < 4; ++byte) {
                for (u32 bit = 0; bit < kLow; ++bit) {
                    mask |= 1u << ((low_bit(slot) + bit + 8 * byte) % 32);
                }
            }
        }
        return mask;
    }

    template <class Tile>
    DEVICE_MEMBER void weights8(const Tile& tile, u32 r, u32 eighth, float (&f)[8]) {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const u32 column = 8 * eighth + i, slot = column % kSlots;
            const u32 byte = column % kPerWord / kSlots;
            f[i] = field(bring(joined(tile, r, column / kPerWord, slot % 2 == 0), byte),
                         low_bit(slot), kLow + kHigh);
        }
    }

    // Brings the next eighth of a group to where the first one is.
    static constexpr bool kRolls = kLow >= 4;
    template <class Tile>
    DEVICE_MEMBER void roll(Tile& tile, u32 r, u32 eighth) {
        constexpr u32 kStep = kLow / 4, kWords = kLow;
#pragma unroll
        for (u32 i = 0; i + kStep < kWords; ++i) {
            tile.quants[r][i] = tile.quants[r][i + kStep];
        }
        if constexpr (kHigh > 0) {
            constexpr u32 kWordsPerHigh = kLow / kHigh;
            const u32 turned = rotate_left(tile.high[r][0], kHigh);
            tile.high[r][0] = kHigh == 1 || (eighth + 1) % kWordsPerHigh != 0 ? turned
                                                                              : tile.high[r][kHigh - 1];
        }
    }

    // A word of low bits with the high bits of its even (or odd) slots in place.
    template <class Tile>
    DEVICE_MEMBER u32 joined(const Tile& tile, u32 r, u32 word, bool even) {
        const u32 low = tile.quants[r][word];
        if constexpr (kHigh == 0) {
            return low;
        } else {
            constexpr u32 kWordsPerHigh = kLow / kHigh;
            const u32 high = rotate_left(tile.high[r][word / kWordsPerHigh],
                                         kHigh * (word % kWordsPerHigh));
            return select_bits(even ? even_slots() : ~even_slots(), low, high);
        }
    }
};

// Values that four bits select, as bytes `offset + value`, each table 16 bytes.
//
// PRMT looks up 8 entries; bit 3 of a selector makes it spread the top bit of the entry instead,
// which is 0 in all tables: so one lookup answers selectors below 8, and one with bit 3 flipped the
// others, with zeros from the wrong one.
DEVICE u32 look_up(u32 selectors, u32 low0, u32 low1, u32 high0, u32 high1) {
    return permute(low0, low1, selectors) | permute(high0, high1, selectors ^ 0x8888);
}

struct F32 : Shape<32, 0, 0, false, 0> {
    static constexpr bool kScaled = false, kRolls = false;
    DEVICE_MEMBER constexpr float power(u32) { return 0; }
    template <class Tile>
    DEVICE_MEMBER void weights8(const Tile& tile, u32 r, u32 eighth, float (&f)[8]) {
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            f[i] = as_float(tile.quants[r][8 * eighth + i]);
        }
    }
};

// Numbers of 16 bits, which need no scale.
struct Plain16 : Shape<16, 0, 0, false, 0> {
    static constexpr bool kScaled = false, kRolls = true;
    template <class Tile>
    DEVICE_MEMBER void roll(Tile& tile, u32 r, u32) {
#pragma unroll
        for (u32 i = 0; i < 12; ++i) {
            tile.quants[r][i] = tile.quants[r][i + 4];
        }
    }
    DEVICE_MEMBER constexpr float power(u32) { return 0; }
};

struct F16 : Plain16 {
    template <class Tile>
    DEVICE_MEMBER void weights8(const Tile& tile, u32 r, u32 eighth, float (&f)[8]) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            f[2 * i] = half_to_float(tile.quants[r][4 * eighth + i]);
            f[2 * i + 1] = half_to_float_high(tile.quants[r][4 * eighth + i]);
        }
    }
};

struct BF16 : Plain16 {
    template <class Tile>
    DEVICE_MEMBER void weights8(const Tile& tile, u32 r, u32 eighth, float (&f)[8]) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            // A permutation, as a shift runs at half its rate.
            f[2 * i] = as_float(permute(tile.quants[r][4 * eighth + i], 0, 0x1044));
            f[2 * i + 1] = as_float(tile.quants[r][4 * eighth + i] & 0xffff0000);
        }
    }
};

// scale_min(tile, r, half, s, m): the scale and minimum of a half of row r.

struct Q4_0 : Shape<4, 0, 2, false, 0>, Fields<4, 0> {
    static constexpr u32 kZero = 8;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float&) {
        s = packed_half(tile.scales, r);
    }
};

struct Q4_1 : Shape<4, 0, 4, false, 0>, Fields<4, 0> {
    static constexpr bool kHasMin = true;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float& m) {
        s = half_to_float(tile.scales[r]);
        m = half_to_float_high(tile.scales[r]);
    }
};

struct Q5_0 : Shape<4, 1, 2, false, 0>, Fields<4, 1> {
    static constexpr u32 kZero = 16;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float&) {
        s = packed_half(tile.scales, r);
    }
};

struct Q5_1 : Shape<4, 1, 4, false, 0>, Fields<4, 1> {
    static constexpr bool kHasMin = true;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float& m) {
        s = half_to_float(tile.scales[r]);
        m = half_to_float_high(tile.scales[r]);
    }
};

struct Q8_0 : Shape<8, 0, 2, false, 0>, Fields<8, 0> {
    static constexpr u32 kZero = 128;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float&) {
        s = packed_half(tile.scales, r);
    }
};

struct Q2_K : Shape<2, 0, 2, false, 4>, Fields<2, 0> {
    static constexpr u32 kHalves = 2;
    static constexpr bool kHasMin = true;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32 half, float& s, float& m) {
        const u32 bits = packed<1>(tile.scales, 2 * r + half);
        s = half_to_float(tile.supers[r]) * static_cast<float>(bits & 15);
        m = -half_to_float_high(tile.supers[r]) * static_cast<float>(bits >> 4);
    }
};

struct Q3_K : Shape<2, 1, 1, true, 2>, Fields<2, 1> {
    static constexpr u32 kHalves = 2;
    static constexpr u32 kZero = 4;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32 half, float& s, float&) {
        const u32 scale = twelve_bits(tile, r) >> (6 * half) & 63;
        s = packed_half(tile.supers, r) * static_cast<float>(static_cast<int>(scale) - 32);
    }
};

// Scale and minimum of Q4_K and Q5_K.
template <class Tile>
DEVICE void k_scale_min(const Tile& tile, u32 r, float& s, float& m) {
    const u32 bits = twelve_bits(tile, r);
    s = half_to_float(tile.supers[r]) * static_cast<float>(bits & 63);
    m = -half_to_float_high(tile.supers[r]) * static_cast<float>(bits >> 6);
}

struct Q4_K : Shape<4, 0, 1, true, 4>, Fields<4, 0> {
    static constexpr bool kHasMin = true;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float& m) {
        k_scale_min(tile, r, s, m);
    }
};

struct Q5_K : Shape<4, 1, 1, true, 4>, Fields<4, 1> {
    static constexpr bool kHasMin = true;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float& m) {
        k_scale_min(tile, r, s, m);
    }
};

struct Q6_K : Shape<4, 2, 2, false, 2>, Fields<4, 2> {
    static constexpr u32 kHalves = 2;
    static constexpr u32 kZero = 32;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32 half, float& s, float&) {
        const u32 scale = packed<1>(tile.scales, 2 * r + half);
        s = packed_half(tile.supers, r) * static_cast<float>(static_cast<signed char>(scale));
    }
};

// Levels -127 to 113 of IQ4_NL and IQ4_XS, plus 128.
struct Iq4Levels {
    static constexpr bool kRolls = false;
    static constexpr u32 kZero = 128;
    DEVICE_MEMBER constexpr float power(u32) { return 32768; }
    template <class Tile>
    DEVICE_MEMBER void weights8(const Tile& tile, u32 r, u32 eighth, float (&f)[8]) {
        const u32 word = tile.quants[r][eighth];
#pragma unroll
        for (u32 i = 0; i < 8; i += 4) {
            const u32 selectors = i == 0 ? word : permute(word, 0, 0x4432);
            // Levels from 8 on have their 128 added apart, as a table's top bits must be 0: by a
            // lookup of 64, doubled.
            const u32 top = look_up(selectors, 0, 0, 0x40404040, 0x40404040);
            const u32 rest = look_up(selectors, 0x3f2d1801, 0x766a5d4f, 0x26190d01, 0x71594535);
            const u32 bytes = rest | (top + top);
            f[i] = as_float(permute(bytes, 0x47000000, 0x7604));
            f[i + 1] = as_float(permute(bytes, 0x47000000, 0x7614));
            f[i + 2] = as_float(permute(bytes, 0x47000000, 0x7624));
            f[i + 3] = as_float(permute(bytes, 0x47000000, 0x7634));
        }
    }
};

struct IQ4_NL : Shape<4, 0, 2, false, 0>, Iq4Levels {
    static constexpr u32 kZero = Iq4Levels::kZero;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float&) {
        s = packed_half(tile.scales, r);
    }
};

struct IQ4_XS : Shape<4, 0, 1, false, 2>, Iq4Levels {
    static constexpr u32 kZero = Iq4Levels::kZero;
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float&) {
        const u32 scale = packed<1>(tile.scales, r);
        s = packed_half(tile.supers, r) * static_cast<float>(static_cast<int>(scale) - 32);
    }
};

// Doubled values -12 to 12, plus 12: seven bits, which fit at the top of the mantissa.
struct MXFP4 : Shape<4, 0, 1, false, 0> {
    static constexpr bool kRolls = false;
    static constexpr u32 kZero = 12;
    DEVICE_MEMBER constexpr float power(u32) { return 128; }
    template <class Tile>
    DEVICE_MEMBER void weights8(const Tile& tile, u32 r, u32 eighth, float (&f)[8]) {
        const u32 word = tile.quants[r][eighth];
#pragma unroll
        for (u32 i = 0; i < 8; i += 4) {
            const u32 selectors = i == 0 ? word : permute(word, 0, 0x4432);
            const u32 bytes = look_up(selectors, 0x0f0e0d0c, 0x18141210, 0x090a0b0c, 0x00040608);
            f[i] = as_float(permute(bytes, 0x43000000, 0x7044));
            f[i + 1] = as_float(permute(bytes, 0x43000000, 0x7144));
            f[i + 2] = as_float(permute(bytes, 0x43000000, 0x7244));
            f[i + 3] = as_float(permute(bytes, 0x43000000, 0x7344));
        }
    }
    template <class Tile>
    DEVICE_MEMBER void scale_min(const Tile& tile, u32 r, u32, float& s, float&) {
        // Half of 2^(e - 127), as the values are doubled; the two smallest are subnormal.
        const u32 e = packed<1>(tile.scales, r);
        s = as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    }
};

// Does `what`(Format) for the format of a type.
#define FOR_TYPE(type, what)        \
    switch (type) {                 \
        FOR_TYPES(FOR_TYPE_CASE, what) \
        default:                    \
            break;                  \
    }
#define FOR_TYPE_CASE(number, Format, what) \
    case number: {                          \
        what(Format)                        \
    } break;
#ifndef FOR_TYPES
#define FOR_TYPES(CASE, what)    \
    CASE(kF32, F32, what)        \
    CASE(kF16, F16, what)        \
    CASE(kBF16, BF16, what)      \
    CASE(kQ4_0, Q4_0, what)      \
    CASE(kQ4_1, Q4_1, what)      \
    CASE(kQ5_0, Q5_0, what)      \
    CASE(kQ5_1, Q5_1, what)      \
    CASE(kQ8_0, Q8_0, what)      \
    CASE(kQ2_K, Q2_K, what)      \
    CASE(kQ3_K, Q3_K, what)      \
    CASE(kQ4_K, Q4_K, what)      \
    CASE(kQ5_K, Q5_K, what)      \
    CASE(kQ6_K, Q6_K, what)      \
    CASE(kIQ4_NL, IQ4_NL, what)  \
    CASE(kIQ4_XS, IQ4_XS, what)  \
    CASE(kMXFP4, MXFP4, what)
#endif
