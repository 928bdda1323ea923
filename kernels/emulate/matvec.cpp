// Runs the matvec kernels in emulation: cases from standard input, results to standard output.
//
// A case is a line of numbers (see Case) and the bytes of the planes, x, bias and residual, the last
// two if there are any; its result is y. tests/emulation of crates/repack is the other end.
#define M40_EMULATE
#include "../device.cuh"

#include "../matvec.cu"

#include <iostream>
#include <string>

namespace {

struct Kernel {
    const char* name;
    decltype(&matvec_f32_b1) run;
};

#define KERNELS(name)                                                                  \
    {#name "_b1", matvec_##name##_b1}, {#name "_b2", matvec_##name##_b2},              \
        {#name "_b4", matvec_##name##_b4}, {#name "_b8", matvec_##name##_b8}

const Kernel kKernels[] = {
    KERNELS(f32),  KERNELS(f16),  KERNELS(bf16), KERNELS(q4_0), KERNELS(q4_1),   KERNELS(q5_0),
    KERNELS(q5_1), KERNELS(q8_0), KERNELS(q2_k), KERNELS(q3_k), KERNELS(q4_k),   KERNELS(q5_k),
    KERNELS(q6_k), KERNELS(iq4_nl), KERNELS(iq4_xs), KERNELS(mxfp4),
};

struct Case {
    std::string kernel;  // type_bN
    u32 grid, threads;
    u32 rows, cols, batch, chunk;
    u64 plane_bytes, high, scales, tops, supers;
    bool bias, residual, in_place;
};

std::istream& operator>>(std::istream& in, Case& c) {
    return in >> c.kernel >> c.grid >> c.threads >> c.rows >> c.cols >> c.batch >> c.chunk >>
           c.plane_bytes >> c.high >> c.scales >> c.tops >> c.supers >> c.bias >> c.residual >>
           c.in_place;
}

// Memory as a GPU gives it, with nothing after its end.
class Buffer {
  public:
    explicit Buffer(u64 bytes) : bytes_(bytes) {
        if (posix_memalign(&memory_, 256, bytes) != 0) {
            emulate::fail("out of memory");
        }
        std::memset(memory_, 0xff, bytes);
    }
    ~Buffer() { std::free(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void read() {
        if (!std::cin.read(static_cast<char*>(memory_), static_cast<std::streamsize>(bytes_))) {
            emulate::fail("a case ends early");
        }
    }
    void write() const {
        std::cout.write(static_cast<char*>(memory_), static_cast<std::streamsize>(bytes_));
    }
    float* floats() { return static_cast<float*>(memory_); }
    u8* bytes() { return static_cast<u8*>(memory_); }

  private:
    void* memory_ = nullptr;
    u64 bytes_;
};

void run(const Case& c) {
    const Kernel* kernel = nullptr;
    for (const Kernel& candidate : kKernels) {
        if (c.kernel == candidate.name) {
            kernel = &candidate;
        }
    }
    if (kernel == nullptr) {
        emulate::fail("no such kernel");
    }
    const u32 kernel_batch = static_cast<u32>(c.kernel.back() - '0');
    Buffer planes(c.plane_bytes), x(u64{c.batch} * c.cols * 4), y(u64{c.batch} * c.rows * 4);
    Buffer bias(u64{c.rows} * 4), residual(u64{c.batch} * c.rows * 4);
    planes.read();
    x.read();
    if (c.bias) {
        bias.read();
    }
    if (c.residual) {
        (c.in_place ? y : residual).read();
    }
    u32 adds = 0;
    if (c.bias) {
        adds |= kAddBias;
    }
    if (c.residual) {
        adds |= c.in_place ? kAddToOutput : kAddResidual;
    }
    const std::size_t shared = std::size_t{kernel_batch} * c.chunk * kGroupFloats * 4;
    emulate::run(c.grid, c.threads, shared, [&] {
        kernel->run(planes.bytes(), c.high, c.scales, c.tops, c.supers, c.rows, c.cols, x.floats(),
                    y.floats(), bias.floats(), residual.floats(), c.batch, c.chunk, adds);
    });
    y.write();
}

}  // namespace

int main() {
    std::ios::sync_with_stdio(false);
    Case c;
    while (std::cin >> c) {
        std::cin.ignore(1);
        run(c);
    }
    std::cout.flush();
    return std::cout ? 0 : 1;
}
