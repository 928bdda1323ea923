// Runs the gemm kernels in emulation: cases from standard input, results to standard output.
//
// A case is a line of numbers (see Case) and the bytes of the planes of one or two matrices, x, bias and
// other; its result is y of each matrix, all of it. tests/gemm of crates/gpu is the other end.
#define M40_EMULATE
#include "../device.cuh"

#include "../gemm.cu"

#include <string>

#include "buffer.h"

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
    u32 tile, m, rows, cols, x_stride, y_stride, splits, matrices, flags;
    float softcap;
    u64 plane_bytes, high, scales, tops, supers;
};

std::istream& operator>>(std::istream& in, Case& c) {
    return in >> c.kernel >> c.tile >> c.m >> c.rows >> c.cols >> c.x_stride >> c.y_stride >>
           c.splits >> c.matrices >> c.flags >> c.softcap >> c.plane_bytes >> c.high >> c.scales >>
           c.tops >> c.supers;
}

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
    const u64 outputs = u64{c.m} * c.y_stride, part = u64{c.m} * ((c.rows + 3) / 4 * 4);
    Buffer<u8> planes(c.plane_bytes), second(c.plane_bytes);
    Buffer<float> x(u64{c.m} * c.x_stride), bias(c.rows);
    Buffer<float> other(outputs), y(outputs), y_of_second(outputs);
    Buffer<float> partials(c.splits > 1 ? c.matrices * c.splits * part : 1);
    planes.read();
    if (c.matrices > 1) {
        second.read();
    }
    x.read();
    bias.read();
    (c.flags & kGemmInPlace ? y : other).read();
    if (c.flags & kGemmInPlace) {
        std::memcpy(y_of_second.data(), y.data(), outputs * sizeof(float));
    }
    const u32 tiles = (c.m + c.tile - 1) / c.tile * ((c.rows + 127) / 128);
    emulate::run(tiles * c.splits * c.matrices, 2 * c.tile, 0, [&] {
        kernel->run(planes.data(), c.high, c.scales, c.tops, c.supers, c.rows, c.cols, x.data(),
                    c.x_stride, c.m, y.data(), c.y_stride, bias.data(), other.data(), c.flags,
                    c.softcap, partials.data(), c.splits, second.data());
    });
    for (u32 matrix = 0; matrix < c.matrices; ++matrix) {
        Buffer<float>& to = matrix == 0 ? y : y_of_second;
        if (c.splits > 1) {
            emulate::run(2, 64, 0, [&] {
                gemm_sum(partials.data() + matrix * c.splits * part, c.splits, c.rows, c.m,
                         to.data(), c.y_stride, bias.data(), other.data(), c.flags, c.softcap);
            });
        }
        to.write();
    }
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
