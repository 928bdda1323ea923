// Tiles of y = x * W^T: how they are cut, how weights and activations come into shared memory, and
// what becomes of the products.
#pragma once

#include "planes.cuh"

// A block makes kRows rows of x times kColumns rows of W, and each of its threads 8 x 8 of them. It
// goes through the columns of both in steps of kPairs eighths of groups: with kPairs = 2 the same
// eighth of two neighbouring groups, so that two lanes read a whole sector of weights.
template <u32 kTile>
struct GemmCut {
    static constexpr u32 kRows = kTile;     // of x
    static constexpr u32 kColumns = 128;    // rows of W
    static constexpr u32 kThreads = kRows * kColumns / 64;
    static constexpr u32 kPairs = kTile == 128 || kTile == 32 ? 2 : 1;
    static constexpr u32 kStep = 8 * kPairs;
    static constexpr u32 kFeed = kColumns * kPairs / kThreads;  // rows of W that a thread unpacks
    static constexpr u32 kBlocks = kTile == 128 ? 2 : kTile == 64 ? 4 : kTile == 32 ? 6 : 12;
    // 4 more, so that what a warp stores along columns hits different banks.
    static constexpr u32 kRowStride = kRows + 4, kColumnStride = kColumns + 4;
    // The order of multiplications, and whether a step has its barrier behind the loads of the next
    // one or behind its stores: what left the fewest conflicts of register banks on the M40.
    static constexpr bool kRowByRow = kPairs == 2, kBarrierFirst = kTile == 128;
    // Whether blocks may be of a second matrix. In larger tiles a start of weights that is in registers
    // brings conflicts of their banks.
    static constexpr bool kSecond = kTile <= 32;
    // Threads of a warp along rows and along columns.
    static constexpr u32 kHigh = kRows < 32 ? kRows / 8 : 4, kWide = kLanes / kHigh;
};

// A number that the compiler keeps, in place of computing it anew wherever it is used; and 16 bytes
// of shared memory, which the compiler splits into pieces when it sees what becomes of them.
#ifdef M40_EMULATE
DEVICE u32 opaque(u32 x) { return x; }
DEVICE float4 load_staged_16(const void* p) { return emulate::aligned<float4>(p); }
#else
DEVICE u32 opaque(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}
DEVICE float4 load_staged_16(const void* p) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(p)))
                 : "memory");
    return v;
}
#endif

struct GemmArgs {
    Planes weights;      // [rows, cols]
    const float* x;      // [m][x_stride]
    u32 x_stride, m;
    float* y;            // [m][y_stride]
    u32 y_stride;
    const float* bias;   // [rows]
    const float* other;  // [m][y_stride]
    u32 flags;           // kGemmBias.. combined
    float softcap;
};

// What becomes of a product before it is y; `other` may be any buffer if no flag needs it.
enum : u32 {
    kGemmBias = 1,        // + bias
    kGemmResidual = 2,    // + other
    kGemmSilu = 4,        // * silu(other)
    kGemmGelu = 8,        // * gelu(other)
    kGemmSoftcap = 16,    // softcap * tanh(it / softcap)
    kGemmInPlace = 32,    // `other` is y
};

// x * sigmoid(x), or 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), which is x * sigmoid too.
DEVICE float gate(float x, bool gelu) {
    constexpr float kLog2E = 1.44269504f;
    const float u = x * (gelu ? fmaf(0.0713548163f * x, x, 1.59576912f) : 1.0f);
    return x * reciprocal_approx(1.0f + exp2_approx(-kLog2E * u));
}

DEVICE float soften(float x, float cap) {
    constexpr float kLog2E = 1.44269504f;
    // tanh u = 1 - 2 / (e^(2u) + 1)
    const float u = x * reciprocal_approx(cap);
    return cap * (1.0f - 2.0f * reciprocal_approx(exp2_approx(2.0f * kLog2E * u) + 1.0f));
}

// A quad of y on its way: elements `column`.. of row `row`, four or as many as there are.
struct Quad {
    u32 row, column;
    float bias[4], others[4];  // if flags need them

    // Loads what is beside the products.
    DEVICE_MEMBER Quad begin(const GemmArgs& args, u32 row, u32 column) {
        Quad quad = {row, column, {}, {}};
        const u32 last = last_of(args, quad);
        if (args.flags & kGemmBias) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                quad.bias[i] = as_float(load_weights_4(args.bias + column + min(i, last)));
            }
        }
        if (args.flags & (kGemmResidual | kGemmSilu | kGemmGelu)) {
            const float* from = (args.flags & kGemmInPlace ? args.y : args.other) + at(args, quad);
            float4 other;
            if (is_whole(args, quad)) {
                other = *reinterpret_cast<const float4*>(from);
            } else {
                other = {from[0], from[min(1u, last)], from[min(2u, last)], from[last]};
            }
            quad.others[0] = other.x;
            quad.others[1] = other.y;
            quad.others[2] = other.z;
            quad.others[3] = other.w;
        }
        return quad;
    }

    // Makes y of the products, and stores it.
    DEVICE_MEMBER float4 finish(const Quad& quad, const GemmArgs& args, float4 v) {
        const u32 flags = args.flags;
        float values[4] = {v.x, v.y, v.z, v.w};
        if (flags & kGemmBias) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                values[i] += quad.bias[i];
            }
        }
        if (flags & (kGemmResidual | kGemmSilu | kGemmGelu)) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const float gated = values[i] * gate(quad.others[i], flags & kGemmGelu);
                values[i] = flags & kGemmResidual ? values[i] + quad.others[i] : gated;
            }
        }
        if (flags & kGemmSoftcap) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                values[i] = soften(values[i], args.softcap);
            }
        }
        float* y = args.y + at(args, quad);
        const float4 made = {values[0], values[1], values[2], values[3]};
        if (is_whole(args, quad)) {
            *reinterpret_cast<float4*>(y) = made;
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (i <= last_of(args, quad)) {
                    y[i] = values[i];
                }
            }
        }
        return made;
    }

  private:
    DEVICE_MEMBER u32 last_of(const GemmArgs& args, const Quad& quad) {
        return min(args.weights.rows - 1 - quad.column, 3u);
    }
    DEVICE_MEMBER bool is_whole(const GemmArgs& args, const Quad& quad) {
        return quad.column + 4 <= args.weights.rows && args.y_stride % 4 == 0;
    }
    DEVICE_MEMBER u64 at(const GemmArgs& args, const Quad& quad) {
        return u64{quad.row} * args.y_stride + quad.column;
    }
};

// A quad of y of its products; of what is not in y nothing.
DEVICE void finish_quad(const GemmArgs& args, u32 row, u32 column, float4 v) {
    if (row < args.m && column < args.weights.rows) {
        Quad::finish(Quad::begin(args, row, column), args, v);
    }
}

// Weights of kRows consecutive rows on their way from planes to floats, an eighth of a group at a
// time. For one row it loads just that and its scale, which takes the fewest registers; for several
// rows it loads 16 bytes of each (of F32: 32) at once, and scales once for a group.
template <class F, u32 kRows>
struct Feed {
    static constexpr u32 kParts = F::kWords < 4 ? 1 : F::kWords / 4;  // of a group
    static constexpr u32 kPartBytes = F::kWords < 4 ? 4 * F::kWords : 16;
    static constexpr u32 kPartsHeld = F::kWords == 32 ? 2 : 1;
    static constexpr bool kHolds = kRows > 1;
    // Whether just the byte of one half is loaded of scales that have one for each.
    static constexpr bool kOneHalf = !kHolds && F::kHalves == 2 && !F::kTwelve;
    // That are loaded at once; and of these in words, at least one.
    static constexpr u32 kEighthsHeld = !kHolds ? 1 : F::kWords <= 4 ? 4 : F::kWords == 8 ? 2 : 1;
    static constexpr u32 kHeldBytes = kHolds ? kPartBytes : F::kWords < 4 ? 4 : F::kWords % 32;

    Tile<F, kRows> tile;  // the next eighth first
    float scale[F::kHalves][kRows], minimum[F::kHalves][kRows];
    u32 row;  // the first one

    // row: any; those beyond the last quad give that quad's weights
    DEVICE_MEMBER Feed begin(const Planes& planes, u32 row) {
        Feed feed = {};
        feed.row = opaque(min(row / 4, (planes.rows - 1) / 4) * 4 + row % 4);
        return feed;
    }

    // Starts loading what `unpack` of this eighth needs. A group beyond the last has zeros, but of
    // plain numbers what the last one has.
    DEVICE_MEMBER void load(Feed& feed, const Planes& planes, u32 group, u32 eighth) {
        const u32 groups = (planes.cols + kGroup - 1) / kGroup;
        group = min(group, groups - 1);
        if (eighth % kEighthsHeld == 0) {
            // F::kWords bytes are an eighth; of two bytes, the word that they are in is loaded.
            const u32 byte = F::kWords < 4 ? eighth / 2 * 4 : eighth * F::kWords;
            const u32 part = byte / kPartBytes;
            const u8* start = planes.start + byte % kPartBytes +
                              u64{(feed.row * kParts + part) * groups + group} * kPartBytes;
#pragma unroll
            for (u32 r = 0; r < kRows; ++r) {
#pragma unroll
                for (u32 held = 0; held < kPartsHeld; ++held) {
                    const u32 step = (r * kParts + held) * groups * kPartBytes;
                    load_packed<kPartsHeld == 2 ? 16 : kHeldBytes>(start + step,
                                                                   &feed.tile.quants[r][4 * held]);
                }
            }
        }
        if (!kHolds || eighth == 0) {
            load_rest(feed, planes, group, eighth);
        }
    }

    // The eighth's weights of its rows, columns in order.
    DEVICE_MEMBER void unpack(Feed& feed, const Planes& planes, u32 group, u32 eighth,
                              float (&weights)[kRows][8]) {
        const bool beyond = group * kGroup >= planes.cols;
        if constexpr (!kHolds) {
            turn(feed.tile, eighth);
            if (F::kHalves == 2 && !kOneHalf && eighth >= 2) {
                scales(feed, 1, beyond, 0);
            } else {
                scales(feed, 0, beyond, 0);
            }
        } else if (eighth == 0) {
#pragma unroll
            for (u32 half = 0; half < F::kHalves; ++half) {
                scales(feed, half, beyond, half);
            }
        } else if (F::kHalves == 2 && eighth == 2) {
#pragma unroll
            for (u32 r = 0; r < kRows; ++r) {
                feed.scale[0][r] = feed.scale[F::kHalves - 1][r];
                feed.minimum[0][r] = feed.minimum[F::kHalves - 1][r];
            }
        }
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
            F::weights8(feed.tile, r, 0, weights[r]);
            if constexpr (F::kScaled) {
#pragma unroll
                for (u32 i = 0; i < 8; ++i) {
                    weights[r][i] = scaled(weights[r][i], i, feed.scale[0][r], feed.minimum[0][r]);
                }
            }
        }
        if constexpr (kHolds) {
            drop_eighth(feed.tile, eighth);
        }
    }

  private:
    // High bits and scales of a group; high bits of the eighth alone if the feed holds no more.
    DEVICE_MEMBER void load_rest(Feed& feed, const Planes& planes, u32 group, u32 eighth) {
        const u32 groups = (planes.cols + kGroup - 1) / kGroup;
        const u32 lane = kRows == 4 ? 0 : feed.row % 4;
        const u32 of_row = feed.row * groups + group, of_quad = feed.row / 4 * groups + group;
        constexpr u32 kHighBytes = !kHolds && F::kHigh == 2 ? 4 : 4 * F::kHigh;
        const u32 byte = kHighBytes < 4 * F::kHigh ? eighth / 2 * 4 : 0;
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
            load_packed<kHighBytes>(planes.start + planes.high + byte +
                                        u64{of_row + r * groups} * (4 * F::kHigh),
                                    feed.tile.high[r]);
        }
        const u8* scales = planes.start + planes.scales +
                           u64{of_quad * 4 + lane} * F::kScaleBytes;
        load_packed<kOneHalf ? 1 : kRows * F::kScaleBytes>(
            kOneHalf ? scales + eighth / 2 : scales, feed.tile.scales);
        if constexpr (F::kTwelve) {
            const u32 tops = load_weights_2(planes.start + planes.tops + u64{of_quad} * 2);
            feed.tile.tops = tops >> (4 * lane);
        }
        load_packed<kRows * F::kSuperBytes>(
            planes.start + planes.supers + u64{of_quad / 8 * 4 + lane} * F::kSuperBytes,
            feed.tile.supers);
    }

    // Scales of a half of the group; zeros beyond the last one.
    DEVICE_MEMBER void scales(Feed& feed, u32 half, bool beyond, u32 to) {
        if constexpr (F::kScaled) {
#pragma unroll
            for (u32 r = 0; r < kRows; ++r) {
                float scale, minimum = 0.0f;
                F::scale_min(feed.tile, r, half, scale, minimum);
                feed.scale[to][r] = beyond ? 0.0f : scale;
                feed.minimum[to][r] = beyond ? 0.0f : minimum;
            }
        }
    }

    // scale * q + min, of power + q. A scale that is one f16 leaves room in 24 bits for its product
    // with power and zero, which then rounds to nothing when added up with the weight.
    DEVICE_MEMBER float scaled(float f, u32 column, float scale, float min) {
        const float power = F::power(column) + F::kZero;
        if constexpr (F::kSuperBytes == 0 && !F::kHasMin) {
            return fmaf(scale, f, -(power * scale));
        } else if constexpr (F::kHasMin) {
            return fmaf(scale, f - power, min);
        } else {
            return scale * (f - power);
        }
    }

    // Turns the words of an eighth so that its bits lie where those of the first one do: bytes by
    // the place of its own in the word, high bits also by that of its word.
    DEVICE_MEMBER void turn(Tile<F, kRows>& tile, u32 eighth) {
        if constexpr (F::kWords == 2) {
            tile.quants[0][0] = rotate_left(tile.quants[0][0], eighth % 2 * 16);
            tile.high[0][0] = rotate_left(tile.high[0][0], eighth % 2 * 16 + eighth / 2);
        } else {
            tile.high[0][0] = rotate_left(tile.high[0][0], F::kHigh == 2 ? eighth % 2 * 2 : eighth);
        }
    }

    // Moves the tile on, so that what is taken next lies where the first eighth does.
    DEVICE_MEMBER void drop_eighth(Tile<F, kRows>& tile, u32 eighth) {
#pragma unroll
        for (u32 r = 0; r < kRows; ++r) {
            if constexpr (F::kWords == 2) {
                const u32 word = tile.quants[r][0];
                tile.quants[r][0] =
                    eighth % 2 == 0 ? permute(word, word, 0x1032) : tile.quants[r][1];
                if constexpr (F::kHigh == 1) {
                    // Columns two bytes on; those of the second word have their bits one lower.
                    tile.high[r][0] = rotate_left(tile.high[r][0], 16 + eighth % 2);
                }
            } else if constexpr (kEighthsHeld > 1) {
                constexpr u32 kWords = F::kWords / 4, kHeld = kWords * kEighthsHeld;
#pragma unroll
                for (u32 i = 0; i + kWords < kHeld; ++i) {
                    tile.quants[r][i] = tile.quants[r][i + kWords];
                }
                if constexpr (F::kHigh == 1) {
                    tile.high[r][0] = rotate_left(tile.high[r][0], 1);
                } else if constexpr (F::kHigh == 2) {
                    tile.high[r][0] = eighth % 2 == 0 ? rotate_left(tile.high[r][0], 2)
                                                      : tile.high[r][1];
                }
            }
        }
    }
};

// Where in a step quad `quad` of the eighth of its first or second group lies, in quads: such that
// stores of lanes with different quads (of one group) or groups (of two) hit different banks.
template <u32 kPairs>
DEVICE constexpr u32 step_quad(u32 of_pair, u32 quad) {
    return of_pair + kPairs * quad;
}

// The rows of x on their way to shared memory: two threads take a row, each the whole eighth of one
// of two groups, or half of that of one.
template <class Cut>
struct Activations {
    static constexpr u32 kQuads = Cut::kPairs;  // that a thread takes
    u32 start;  // the thread's first quad, in x
    u32 at;     // and in a step
    float4 held[kQuads];

    // row: any; those beyond the last one give that one
    DEVICE_MEMBER Activations begin(const GemmArgs& args, u32 row) {
        const u32 half = threadIdx.x % 2;
        Activations activations = {};
        activations.start = opaque(min(row, args.m - 1) * args.x_stride + first_column());
        activations.at = (half * (4 * Cut::kRowStride) + threadIdx.x / 2);
        return activations;
    }

    DEVICE_MEMBER u32 first_column() { return threadIdx.x % 2 * (kQuads == 2 ? u32{kGroup} : 4u); }

    // Beyond the last column lie zeros if kZeros, else any finite numbers: then their weights are
    // zeros.
    template <bool kZeros>
    DEVICE_MEMBER void load(Activations& activations, const GemmArgs& args, u32 column) {
        const float* x = args.x + (activations.start + column);
        const u32 cols = args.weights.cols;
        column += first_column();
        if (!kZeros) {
            if (column < cols) {
#pragma unroll
                for (u32 i = 0; i < kQuads; ++i) {
                    activations.held[i] = *reinterpret_cast<const float4*>(x + 4 * i);
                }
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < kQuads; ++i) {
                float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
                if (column + 4 * i < cols) {
                    v = *reinterpret_cast<const float4*>(x + 4 * i);
                }
                if (column + 4 * i + 4 > cols) {
                    v.y = column + 4 * i + 1 < cols ? v.y : 0.0f;
                    v.z = column + 4 * i + 2 < cols ? v.z : 0.0f;
                    v.w = column + 4 * i + 3 < cols ? v.w : 0.0f;
                }
                activations.held[i] = v;
            }
        }
    }

    // staged: [kStep][kRowStride], shared
    DEVICE_MEMBER void store(const Activations& activations, float* staged) {
        constexpr u32 kStride = Cut::kRowStride;
        float* column = staged + activations.at;
#pragma unroll
        for (u32 i = 0; i < kQuads; ++i) {
            column[0] = activations.held[i].x;
            column[kStride] = activations.held[i].y;
            column[2 * kStride] = activations.held[i].z;
            column[3 * kStride] = activations.held[i].w;
            column += step_quad<Cut::kPairs>(0, 1) * 4 * kStride;
        }
    }
};

// kCount consecutive floats, aligned to as many.
template <u32 kCount>
DEVICE void store_row(float* out, const float (&values)[kCount][8], u32 i) {
    if constexpr (kCount == 1) {
        *out = values[0][i];
    } else if constexpr (kCount == 2) {
        *reinterpret_cast<float2*>(out) = {values[0][i], values[1][i]};
    } else {
        *reinterpret_cast<float4*>(out) = {values[0][i], values[1][i], values[2][i], values[3][i]};
    }
}
