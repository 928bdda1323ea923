// Sines and cosines of rotary position embeddings.
#pragma once

#include "device.cuh"

// cos and sin of position * inverse_frequency radians, to about 1e-7 at any position.
//
// The product is made in f64, exactly up to position 2^29, and reduced there to an eighth of a turn
// around zero, as an f32 product loses hundredths of a turn at positions in the thousands. The
// series, up to the terms that an f32 can hold, need no library function, and so no local memory.
DEVICE float2 turn(u32 position, float inverse_frequency) {
    // pi/2, and what an f64 of it lacks.
    constexpr double kQuarter = 1.57079632679489661923, kQuarterRest = 6.12323399573676603587e-17;
    constexpr double kQuarters = 0.63661977236758134308;  // 2/pi
    const double angle = static_cast<double>(position) * static_cast<double>(inverse_frequency);
    // Nearest whole number: 1.5 * 2^52 leaves no bits behind the point.
    constexpr double kWhole = 6755399441055744.0;
    const double quarters = fma(angle, kQuarters, kWhole) - kWhole;
    const double rest = fma(-quarters, kQuarterRest, fma(-quarters, kQuarter, angle));
    const u32 quarter = static_cast<u32>(static_cast<long long>(quarters)) % 4;

    const float x = static_cast<float>(rest), square = x * x;
    float sine = fmaf(square, 2.75573192e-6f, -1.98412698e-4f);
    sine = fmaf(sine, square, 8.33333333e-3f);
    sine = fmaf(sine, square, -1.66666667e-1f);
    sine = fmaf(sine * square, x, x);
    float cosine = fmaf(square, -2.75573192e-7f, 2.48015873e-5f);
    cosine = fmaf(cosine, square, -1.38888889e-3f);
    cosine = fmaf(cosine, square, 4.16666667e-2f);
    cosine = fmaf(cosine, square, -0.5f);
    cosine = fmaf(cosine, square, 1.0f);

    const float across = quarter % 2 == 0 ? cosine : sine, up = quarter % 2 == 0 ? sine : cosine;
    float2 v;
    v.x = quarter == 1 || quarter == 2 ? -across : across;
    v.y = quarter >= 2 ? -up : up;
    return v;
}
