// An emulated card's memory, which the other end of a pipe fills and reads: commands from standard
// input, a line each, and what they ask for to standard output.
//
//   arena BYTES        takes the memory, full of NaNs
//   guard FROM BYTES   nobody may touch these bytes any more
//   write FROM BYTES   followed by the bytes
//   read FROM BYTES    answers with the bytes
//
// All others are the program's own. tests/decode of crates/gpu is the other end.
#pragma once

#include <iostream>
#include <string>

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

// Does what it is told until there is no more; `run(arena, command)` does the program's commands.
template <class Run>
int serve(Run run) {
    std::ios::sync_with_stdio(false);
    Arena arena;
    std::string command;
    while (std::cin >> command) {
        const bool memory = command == "arena" || command == "guard" || command == "write" ||
                            command == "read";
        if (!memory) {
            run(arena, command);
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
        } else {
            std::cout.write(arena.at(from, bytes), length).flush();
        }
        if (!std::cin || !std::cout) {
            emulate::fail("the other end is gone");
        }
    }
    return 0;
}
