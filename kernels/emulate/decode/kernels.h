// The decode kernels: of one program, if there is a file that describes it; else of any. Each is
// compiled by itself, as that takes minutes.
#pragma once

#define M40_EMULATE
#include "../../device.cuh"

#ifdef M40_PROGRAM
#include M40_PROGRAM
#else
#include "../../decode.cuh"
#endif

using Kernel = void(u8* arena, Place ops, u32 first, u32 last, Place pass, u32 passes,
                    Place barrier, Place chosen, const u32* cancels, u32* desk, u32 taken);

extern "C" {
Kernel decode_b1, decode_b2, decode_b4, decode_b8;
}
