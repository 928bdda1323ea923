// Memory for one case, which comes from standard input and goes to standard output.
#pragma once

#include <iostream>

// As a GPU gives it, with nothing after its end; full of NaNs.
template <class T>
class Buffer {
  public:
    explicit Buffer(u64 count) : bytes_(count * sizeof(T)) {
        if (posix_memalign(&memory_, 256, bytes_) != 0) {
            emulate::fail("out of memory");
        }
        std::memset(memory_, 0xff, bytes_);
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
    T* data() { return static_cast<T*>(memory_); }

  private:
    void* memory_ = nullptr;
    u64 bytes_;
};
