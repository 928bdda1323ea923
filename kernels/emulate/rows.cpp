// Runs the kernels of rows.cu in emulation: launches from standard input, what they wrote to
// standard output.
//
// A launch is a line, "KERNEL GRID THREADS SHARED COUNT", then COUNT arguments, one a line, and the
// bytes of all buffers in order:
//   s BITS     a number, its bits as a decimal
//   r BYTES    a buffer that is read
//   w BYTES    a buffer that is written; its bytes afterwards are output
//   a INDEX    the same buffer as argument INDEX
// crates/gpu/tests/rows is the other end.
#define M40_EMULATE
#include "../device.cuh"

#include "../rows.cu"

#include <iostream>
#include <string>
#include <tuple>
#include <utility>

namespace {

// Memory as a GPU gives it, with nothing after its end.
struct Buffer {
    void* memory = nullptr;
    std::vector<char> original;  // what a buffer that is only read must still hold
    u64 bytes = 0;
    bool written = false;
};

struct Argument {
    char kind = 0;
    u64 value = 0;
    Buffer buffer;
};

template <class T>
T argument(const Argument& from) {
    if constexpr (std::is_pointer_v<T>) {
        if (from.kind == 's') {
            emulate::fail("a number where the kernel takes a buffer");
        }
        return static_cast<T>(from.buffer.memory);
    } else {
        if (from.kind != 's') {
            emulate::fail("a buffer where the kernel takes a number");
        }
        T value;
        std::memcpy(&value, &from.value, sizeof(T));
        return value;
    }
}

template <class... T, std::size_t... kIndex>
void call(void (*kernel)(T...), const std::vector<Argument>& from, std::index_sequence<kIndex...>) {
    kernel(argument<T>(from[kIndex])...);
}

template <class... T>
std::function<void(const std::vector<Argument>&)> callable(void (*kernel)(T...)) {
    return [kernel](const std::vector<Argument>& from) {
        if (from.size() != sizeof...(T)) {
            emulate::fail("the kernel takes another number of arguments");
        }
        call(kernel, from, std::index_sequence_for<T...>());
    };
}

#define KERNEL_OF(name) {#name, callable(name)}
const std::map<std::string, std::function<void(const std::vector<Argument>&)>> kKernels = {
    KERNEL_OF(rows_embed_f32),      KERNEL_OF(rows_embed_f16),      KERNEL_OF(rows_embed_bf16),
    KERNEL_OF(rows_embed_q4_0),     KERNEL_OF(rows_embed_q4_1),     KERNEL_OF(rows_embed_q5_0),
    KERNEL_OF(rows_embed_q5_1),     KERNEL_OF(rows_embed_q8_0),     KERNEL_OF(rows_embed_q2_k),
    KERNEL_OF(rows_embed_q3_k),     KERNEL_OF(rows_embed_q4_k),     KERNEL_OF(rows_embed_q5_k),
    KERNEL_OF(rows_embed_q6_k),     KERNEL_OF(rows_embed_iq4_nl),   KERNEL_OF(rows_embed_iq4_xs),
    KERNEL_OF(rows_embed_mxfp4),    KERNEL_OF(rows_gather),         KERNEL_OF(rows_rms_norm),
    KERNEL_OF(rows_angles),         KERNEL_OF(rows_heads),          KERNEL_OF(rows_kv_append), KERNEL_OF(rows_kv_append_int8),
    KERNEL_OF(rows_attention_d64),  KERNEL_OF(rows_attention_d128), KERNEL_OF(rows_attention_d256),
    KERNEL_OF(rows_attention_d512), KERNEL_OF(rows_attention_d1024), KERNEL_OF(rows_softcap),
    KERNEL_OF(rows_gate),           KERNEL_OF(rows_sum_norm),
    KERNEL_OF(rows_sum_gate),       KERNEL_OF(rows_sum_heads),
    KERNEL_OF(rows_attention_d64_int8), KERNEL_OF(rows_attention_d128_int8),
    KERNEL_OF(rows_attention_d256_int8), KERNEL_OF(rows_attention_d512_int8),
    KERNEL_OF(rows_attention_d1024_int8),
    KERNEL_OF(rows_attention_single_d64), KERNEL_OF(rows_attention_single_d128),
    KERNEL_OF(rows_attention_single_d64_int8), KERNEL_OF(rows_attention_single_d128_int8),
};

void read_buffer(Argument& into) {
    Buffer& buffer = into.buffer;
    buffer.bytes = into.value;
    buffer.written = into.kind == 'w';
    if (posix_memalign(&buffer.memory, 256, buffer.bytes) != 0 ||
        !std::cin.read(static_cast<char*>(buffer.memory), static_cast<long>(buffer.bytes))) {
        emulate::fail("a launch ends early");
    }
    if (!buffer.written) {
        const char* bytes = static_cast<const char*>(buffer.memory);
        buffer.original.assign(bytes, bytes + buffer.bytes);
    }
}

void launch(const std::string& kernel) {
    u32 grid = 0, threads = 0, shared = 0, count = 0;
    std::cin >> grid >> threads >> shared >> count;
    std::vector<Argument> arguments(count);
    for (Argument& argument : arguments) {
        std::cin >> argument.kind >> argument.value;
    }
    std::cin.ignore(1);
    for (Argument& argument : arguments) {
        if (argument.kind == 'r' || argument.kind == 'w') {
            read_buffer(argument);
        } else if (argument.kind == 'a') {
            argument.buffer.memory = arguments.at(argument.value).buffer.memory;
        }
    }
    const auto found = kKernels.find(kernel);
    if (found == kKernels.end()) {
        emulate::fail("no such kernel");
    }
    emulate::run(grid, threads, shared, [&] { found->second(arguments); });
    for (Argument& argument : arguments) {
        if (argument.kind != 'r' && argument.kind != 'w') {
            continue;
        }
        const Buffer& buffer = argument.buffer;
        if (buffer.written) {
            std::cout.write(static_cast<const char*>(buffer.memory),
                            static_cast<long>(buffer.bytes));
        } else if (std::memcmp(buffer.memory, buffer.original.data(), buffer.bytes) != 0) {
            emulate::fail("a buffer was written that is only to be read");
        }
        std::free(argument.buffer.memory);
    }
}

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    std::string kernel;
    while (std::cin >> kernel) {
        launch(kernel);
    }
    std::cout.flush();
    return std::cout ? 0 : 1;
}
