// Runs the gemm kernels in emulation: cases from standard input, results to standard output.
//
// A case is a line of numbers (see Case) and the bytes of the planes, x, bias and other; its result
// is y, all of it. tests/gemm of crates/gpu is the other end.
#define M40_EMULATE
#include "../device.cuh"

#include "../gemm.cu"

#include <iostream>
#include <string>

namespace {

struct Kernel {
    const char* name;
    decltype(&gemm_f32_m16) run;
};

#define KERNELS(name)                                                                  \
    {#name "_m16", gemm_##name##_m16}, {#name "_m32", gemm_##name##_m32},              \
        {#name "_m64", gemm_##name##_m64}, {#name "_m128", gemm_##name##_m128}

const Kernel kKernels[] = {
    KERNELS(f32),  KERNELS(f16),  KERNELS(bf16), KERNELS(q4_0), KERNELS(q4_1),   KERNELS(q5_0),
    KERNELS(q5_1), KERNELS(q8_0), KERNELS(q2_k), KERNELS(q3_k), KERNELS(q4_k),   KERNELS(q5_k),
    KERNELS(q6_k), KERNELS(iq4_nl), KERNELS(iq4_xs), KERNELS(mxfp4),
};

struct Case {
    std::string kernel;  // type_mTILE
    u32 tile, m, rows, cols, x_stride, y_stride, splits, flags;
    float softcap;
    u64 plane_bytes, high, scales, tops, supers;
};

std::istream& operator>>(std::istream& in, Case& c) {
    return in >> c.kernel >> c.tile >> c.m >> c.rows >> c.cols >> c.x_stride >> c.y_stride >>
           c.splits >> c.flags >> c.softcap >> c.plane_bytes >> c.high >> c.scales >> c.tops >>
           c.supers;
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
    const u64 y_bytes = u64{c.m} * c.y_stride * 4;
    Buffer planes(c.plane_bytes), x(u64{c.m} * c.x_stride * 4), bias(u64{c.rows} * 4);
    Buffer other(y_bytes), y(y_bytes), partials(c.splits * y_bytes);
    planes.read();
    x.read();
    bias.read();
    (c.flags & kGemmInPlace ? y : other).read();
    const u32 tiles = (c.m + c.tile - 1) / c.tile * ((c.rows + 127) / 128);
    emulate::run(tiles * c.splits, 2 * c.tile, 0, [&] {
        kernel->run(planes.bytes(), c.high, c.scales, c.tops, c.supers, c.rows, c.cols, x.floats(),
                    c.x_stride, c.m, y.floats(), c.y_stride, bias.floats(), other.floats(), c.flags,
                    c.softcap, partials.floats(), c.splits);
    });
    if (c.splits > 1) {
        emulate::run(2, 64, 0, [&] {
            gemm_sum(partials.floats(), c.splits, c.rows, c.m, y.floats(), c.y_stride,
                     bias.floats(), other.floats(), c.flags, c.softcap);
        });
    }
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
