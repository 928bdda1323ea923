// Runs the sampling kernels in emulation: cases from standard input, results to standard output.
//
// A case is a line, then bytes. tests/sample of crates/gpu is the other end.
//   rows ROWS THREADS VOCAB STRIDE STEPS ACCEPT ARENA CHOICES
//     the arena's ARENA bytes, slots [ROWS] u32, logits [STEPS][ROWS][STRIDE] f32: the kernel is
//     launched STEPS times. Results: chosen [STEPS][ROWS], then the arena.
//   maxima ROWS THREADS COUNT
//     maxima [ROWS][COUNT]. Results: chosen [ROWS].
#define M40_EMULATE
#include "../device.cuh"

#include "../sample.cu"

#include <string>

#include "buffer.h"

namespace {

void run_rows() {
    u32 rows, threads, vocab, stride, steps, accept;
    u64 arena_bytes;
    Place choices;
    std::cin >> rows >> threads >> vocab >> stride >> steps >> accept >> arena_bytes >> choices;
    std::cin.ignore(1);
    Buffer<u8> arena(arena_bytes);
    Buffer<u32> slots(rows);
    Buffer<float> logits(u64{rows} * stride);
    Buffer<Chosen> chosen(rows);
    arena.read();
    slots.read();
    for (u32 step = 0; step < steps; ++step) {
        logits.read();
        emulate::run(rows, threads, 0, [&] {
            sample_rows(arena.data(), logits.data(), vocab, stride, slots.data(), choices,
                        chosen.data(), accept);
        });
        chosen.write();
    }
    arena.write();
}

void run_maxima() {
    u32 rows, threads, count;
    std::cin >> rows >> threads >> count;
    std::cin.ignore(1);
    Buffer<Maximum> maxima(u64{rows} * count);
    Buffer<Chosen> chosen(rows);
    maxima.read();
    emulate::run(rows, threads, 0,
                 [&] { sample_rows_from_maxima(maxima.data(), count, chosen.data()); });
    chosen.write();
}

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    std::string kind;
    while (std::cin >> kind) {
        if (kind == "rows") {
            run_rows();
        } else if (kind == "maxima") {
            run_maxima();
        } else {
            emulate::fail("no such case");
        }
    }
    std::cout.flush();
    return std::cout ? 0 : 1;
}
