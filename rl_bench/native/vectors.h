// Vectors as wide as the CPU has them, in the compiler's own portable notation: what is written with
// them once becomes AVX2, AVX-512 or NEON instructions, by the flags it is compiled with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
constexpr int W = 16;          // floats in a vector
constexpr int ROWS = 12;       // rows of a tile of a matrix product that are kept in registers
#else
constexpr int W = 8;
constexpr int ROWS = 6;
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t IntVec __attribute__((vector_size(4 * W)));

#define INLINE static inline __attribute__((always_inline))

INLINE Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);  // may be unaligned
    return value;
}

INLINE void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

INLINE Vec all(float value) { return value - Vec{}; }

// `value`, but 0 where `mask` is 0 or below; what is not a number stays, to be noticed later.
INLINE Vec where_positive(Vec mask, Vec value) { return (Vec)(~(mask <= 0.0f) & (IntVec)value); }

INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Memory that a thread keeps between calls, aligned to whole cache lines.
class Scratch {
    std::vector<float> memory;

  public:
    float* of(size_t count) {
        if (memory.size() < count + 16) memory.assign(count + 16, 0.0f);
        auto address = reinterpret_cast<uintptr_t>(memory.data());
        return memory.data() + ((64 - address % 64) % 64) / sizeof(float);
    }
};
