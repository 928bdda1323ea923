// Runs the decode kernels in emulation; the commands are those of arena.h and
//
//   run ROWS BLOCKS OPS FIRST LAST PASS PASSES BARRIER CHOSEN
//
// the kernel for ROWS rows on BLOCKS blocks, with its arguments.
#define M40_EMULATE
#include "../device.cuh"

// Of one program, if there is a file that describes it; else of any.
#ifdef M40_PROGRAM
#include M40_PROGRAM
#else
#include "../decode.cuh"
#endif

DECODE(1)
DECODE(2)
DECODE(4)
DECODE(8)

#include "arena.h"

namespace {

using Kernel = decltype(&decode_b1);

Kernel kernel_for(u32 rows) {
    switch (rows) {
        case 1:
            return decode_b1;
        case 2:
            return decode_b2;
        case 4:
            return decode_b4;
        case 8:
            return decode_b8;
        default:
            emulate::fail("no kernel for so many rows");
    }
}

void launch(Arena& arena, const std::string& command) {
    u32 rows, blocks, first, last, passes;
    Place ops, pass, barrier, chosen;
    if (command != "run" || !(std::cin >> rows >> blocks >> ops >> first >> last >> pass >>
                              passes >> barrier >> chosen)) {
        emulate::fail("no such command");
    }
    const Kernel kernel = kernel_for(rows);
    emulate::run(blocks, rows <= 2 ? Batch<1>::kThreads : Batch<8>::kThreads, 0, [&] {
        kernel(arena.start(), ops, first, last, pass, passes, barrier, chosen);
    });
}

}  // namespace

int main() { return serve(launch); }
