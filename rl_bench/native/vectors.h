// Vectors as wide as the CPU has them, in the compiler's own portable notation: what is written with
// them once becomes AVX2, AVX-512 or NEON instructions, by the flags it is compiled with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

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

template <typename Vector, typename Value>
INLINE Vector load_as(const Value* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);  // may be unaligned
    return value;
}

template <typename Vector, typename Value>
INLINE void store_as(Value* to, Vector value) {
    std::memcpy(to, &value, sizeof value);
}

INLINE Vec load(const float* from) { return load_as<Vec>(from); }

// Bytes become floats of the same value. The compiler's own conversion goes byte by byte.
INLINE Vec load(const uint8_t* from) {
#if defined __AVX512F__
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined __AVX2__
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    Vec value;
    for (int i = 0; i < W; ++i) value[i] = from[i];
    return value;
#endif
}

INLINE void store(float* to, Vec value) { store_as(to, value); }

INLINE Vec all(float value) { return value - Vec{}; }

// `value`, but 0 where `mask` is 0 or below; what is not a number stays, to be noticed later.
INLINE Vec where_positive(Vec mask, Vec value) { return (Vec)(~(mask <= 0.0f) & (IntVec)value); }

INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }

// From one row of a matrix to the next: a power of two apart, they would crowd into the same few places of a cache.
INLINE int apart(int count) { return count % 64 == 0 ? count + 16 : count; }

// Where the part `part` of `parts` nearly equal ones of `count` begins.
template <typename Count>
Count begin_of(int part, int parts, Count count) {
    return (int64_t)count * part / parts;
}

// Memory that a thread keeps between calls, aligned to whole cache lines.
template <typename Value>
class Scratch {
    static constexpr size_t LINE = 64 / sizeof(Value);
    std::vector<Value> memory;

  public:
    Value* of(size_t count) {
        if (memory.size() < count + LINE) memory.assign(count + LINE, Value{});
        auto address = reinterpret_cast<uintptr_t>(memory.data());
        return memory.data() + (64 - address % 64) % 64 / sizeof(Value);
    }
};
