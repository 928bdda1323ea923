// Runs the decode kernels in emulation; the commands are those of arena.h and
//
//   run ROWS BLOCKS OPS FIRST LAST PASS PASSES BARRIER CHOSEN CANCELS TAKEN
//   cancel FROM POLLS VALUE
//   desk FILE
//
// the kernel for ROWS rows on BLOCKS blocks, with its arguments, places all; and, once the word at
// this byte of the arena has been polled so often, the host writes this value there; and
// a file that is the desk, which another process sees as well.
#include "decode/kernels.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "arena.h"

namespace {

u32* desk = nullptr;

Kernel* kernel_for(u32 rows) {
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

void launch(Arena& arena) {
    u32 rows, blocks, first, last, passes, taken;
    Place ops, pass, barrier, chosen, cancels;
    if (!(std::cin >> rows >> blocks >> ops >> first >> last >> pass >> passes >> barrier >>
          chosen >> cancels >> taken)) {
        emulate::fail("no such launch");
    }
    Kernel* const kernel = kernel_for(rows);
    const u32* words = reinterpret_cast<u32*>(arena.start() + u64{cancels} * 16);
    emulate::run(blocks, rows <= 2 ? Batch<1>::kThreads : Batch<8>::kThreads, 0, [&] {
        kernel(arena.start(), ops, first, last, pass, passes, barrier, chosen, words, desk, taken);
    });
}

void open_desk() {
    constexpr std::size_t kBytes = 4 * (kDeskRing + kPassesAtOnce * kPassRows * 4);
    std::string name;
    std::cin >> name;
    const int file = open(name.c_str(), O_RDWR);
    void* words = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || words == MAP_FAILED) {
        emulate::fail("no such desk");
    }
    desk = static_cast<u32*>(words);
}

void cancel(Arena& arena) {
    u64 from;
    u32 polls, value;
    if (!(std::cin >> from >> polls >> value)) {
        emulate::fail("no such word");
    }
    char* word = arena.at(from, sizeof(value));
    emulate::host = [=](const u32* polled) mutable {
        if (static_cast<const void*>(polled) == word && polls-- == 0) {
            std::memcpy(word, &value, sizeof(value));
        }
    };
}

void serve_command(Arena& arena, const std::string& command) {
    if (command == "run") {
        launch(arena);
    } else if (command == "cancel") {
        cancel(arena);
    } else if (command == "desk") {
        open_desk();
    } else {
        emulate::fail("no such command");
    }
}

}  // namespace

int main() { return serve(serve_command); }
