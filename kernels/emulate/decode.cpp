// Runs the decode kernels in emulation, on an arena that the other end of the pipe fills: commands
// from standard input, a line each, and what they ask for to standard output.
//
//   arena BYTES            takes the memory of a card, full of NaNs
//   guard FROM BYTES       nobody may touch these bytes any more
//   write FROM BYTES       followed by the bytes
//   run ROWS BLOCKS OPS FIRST LAST PASS PASSES BARRIER CHOSEN
//                          the kernel for ROWS rows on BLOCKS blocks, with its arguments
//   read FROM BYTES        answers with the bytes
//
// tests/decode of crates/gpu is the other end.
#define M40_EMULATE
#include "../device.cuh"

#include "../decode.cu"

#include <iostream>
#include <string>

namespace {

class Arena {
  public:
    Arena() = default;
    ~Arena() { std::free(memory_); }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    void take(u64 bytes) {
        if (memory_ != nullptr || posix_memalign(&memory_, 256, bytes) != 0) {
            emulate::fail("one arena, of memory that there is");
        }
        bytes_ = bytes;
        std::memset(memory_, 0xff, bytes);
    }

    u8* start() { return static_cast<u8*>(memory_); }

    // Within the arena, whoever asks.
    char* at(u64 from, u64 bytes) {
        if (from > bytes_ || bytes > bytes_ - from) {
            emulate::fail("beyond the arena");
        }
        return static_cast<char*>(memory_) + from;
    }

  private:
    void* memory_ = nullptr;
    u64 bytes_ = 0;
};

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

void run(Arena& arena) {
    u32 rows, blocks, first, last, passes;
    Place ops, pass, barrier, chosen;
    if (!(std::cin >> rows >> blocks >> ops >> first >> last >> pass >> passes >> barrier >>
          chosen)) {
        emulate::fail("an incomplete command");
    }
    const Kernel kernel = kernel_for(rows);
    emulate::run(blocks, kDecodeThreads, 0, [&] {
        kernel(arena.start(), ops, first, last, pass, passes, barrier, chosen);
    });
}

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    Arena arena;
    std::string command;
    while (std::cin >> command) {
        if (command == "run") {
            run(arena);
            continue;
        }
        u64 from = 0, bytes = 0;
        if (command != "arena") {
            std::cin >> from;
        }
        std::cin >> bytes;
        std::cin.ignore(1);
        const auto length = static_cast<std::streamsize>(bytes);
        if (command == "arena") {
            arena.take(bytes);
        } else if (command == "guard") {
#if EMULATE_ASAN
            ASAN_POISON_MEMORY_REGION(arena.at(from, bytes), bytes);
#endif
        } else if (command == "write") {
            std::cin.read(arena.at(from, bytes), length);
        } else if (command == "read") {
            std::cout.write(arena.at(from, bytes), length).flush();
        } else {
            emulate::fail("no such command");
        }
        if (!std::cin || !std::cout) {
            emulate::fail("the other end is gone");
        }
    }
    return 0;
}
