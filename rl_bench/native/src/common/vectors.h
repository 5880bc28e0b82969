// Vectors of floats as wide as the CPU has them, and small helpers that every kernel uses.
//
// `Vec` is a GCC vector type: arithmetic on it becomes AVX2, AVX-512 or NEON instructions, as the
// compiler's flags say. Comparisons give IntVec with all bits set where true. Values are passed in
// registers, as every helper is inlined. Loads and stores need no alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int VEC_FLOATS = 16;  // floats in a Vec
constexpr int TILE_ROWS = 12;   // rows of a matrix product that are kept in registers (matmul.h)
#else
constexpr int VEC_FLOATS = 8;
constexpr int TILE_ROWS = 6;
#endif

typedef float Vec __attribute__((vector_size(4 * VEC_FLOATS)));
typedef int32_t IntVec __attribute__((vector_size(4 * VEC_FLOATS)));

#define INLINE static inline __attribute__((always_inline))

// Reads a vector of type `Vector` from `from`, which may be unaligned.
template <typename Vector, typename Value>
INLINE Vector load_as(const Value* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Writes `value` to `to`, which may be unaligned.
template <typename Vector, typename Value>
INLINE void store_as(Value* to, Vector value) {
    std::memcpy(to, &value, sizeof value);
}

// Reads VEC_FLOATS floats.
INLINE Vec load(const float* from) { return load_as<Vec>(from); }

// Reads VEC_FLOATS bytes and converts them to floats 0 to 255. GCC's own conversion goes byte by byte.
INLINE Vec load(const uint8_t* from) {
#if defined __AVX512F__
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined __AVX2__
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    Vec value;
    for (int i = 0; i < VEC_FLOATS; ++i) value[i] = from[i];
    return value;
#endif
}

// Writes VEC_FLOATS floats.
INLINE void store(float* to, Vec value) { store_as(to, value); }

// Returns a Vec with `value` in every element.
INLINE Vec broadcast(float value) { return value - Vec{}; }

// Returns `value` with 0 where `mask` is 0 or below. NaN in `mask` keeps the value, so that NaN in an
// activation is passed on and can be noticed in the loss.
INLINE Vec where_positive(Vec mask, Vec value) { return (Vec)(~(mask <= 0.0f) & (IntVec)value); }

// Returns ⌈a / b⌉ of positive numbers.
INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Returns a row stride for rows of `count` values. Rows a power of two apart would compete for the same few
// sets of a cache, so a multiple of 64 is enlarged by 16.
INLINE int padded_stride(int count) { return count % 64 == 0 ? count + 16 : count; }

// Returns the first index of part number `part` when `count` items are cut into `parts` nearly equal parts.
template <typename Count>
Count part_begin(int part, int parts, Count count) {
    return (int64_t)count * part / parts;
}

// A buffer that grows on demand and is aligned to cache lines. Every instance is thread_local, so that
// memory is kept from call to call; a caller may lend its own to other threads by pointer.
template <typename Value>
class Scratch {
    static constexpr size_t LINE = 64 / sizeof(Value);
    std::vector<Value> memory;

  public:
    // Returns memory for `count` values, zero when it is new. Growing it invalidates earlier pointers.
    Value* get(size_t count) {
        if (memory.size() < count + LINE) memory.assign(count + LINE, Value{});
        auto address = reinterpret_cast<uintptr_t>(memory.data());
        return memory.data() + (64 - address % 64) % 64 / sizeof(Value);
    }
};
