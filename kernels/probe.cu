// Proves that a device runs this image's code and returns right answers, before any model is
// trusted to it: a checksum of a buffer that the host can compute too (m40_cuda::checksum).

enum : unsigned { kThreads = 256 };  // threads a block; the host launches exactly this many

// A 32-bit finaliser: every bit of a word reaches every bit of its share of the sum.
__device__ __forceinline__ unsigned mix(unsigned x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    return x;
}

// sum[0] += the sum of mix(words[i] ^ mix(i)) over i in 0..n, modulo 2^32, so that neither the
// order of blocks nor their number changes it. words: [n] u32; sum: [1] u32, zeroed by the host.
extern "C" __global__ void __launch_bounds__(kThreads)
m40_probe(const unsigned* words, unsigned n, unsigned* sum) {
    __shared__ unsigned partial[kThreads];
    unsigned mine = 0;
    const unsigned step = gridDim.x * kThreads;
    for (unsigned long long i = blockIdx.x * kThreads + threadIdx.x; i < n; i += step) {
        mine += mix(words[i] ^ mix(static_cast<unsigned>(i)));
    }
    partial[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            partial[threadIdx.x] += partial[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        atomicAdd(sum, partial[0]);
    }
}
