// Numbers of 16 bits that are the upper half of a float, sixteen at a time.
#pragma once

#include "vectors.h"

typedef uint16_t Bf16;
typedef Bf16 Bf16x16 __attribute__((vector_size(32)));    // 16 of them
typedef float Floats __attribute__((vector_size(64)));   // as many, whatever the CPU's vectors hold
typedef uint32_t Words __attribute__((vector_size(64)));

INLINE Words words_of(Bf16x16 x) {
#ifdef __AVX512F__
    return (Words)_mm512_cvtepu16_epi32((__m256i)x);  // the compiler takes four instructions
#else
    return __builtin_convertvector(x, Words);
#endif
}

INLINE Floats widened(Bf16x16 x) { return (Floats)(words_of(x) << 16); }

// Two values side by side, sixteen times.
INLINE Words paired(Bf16x16 first, Bf16x16 second) { return words_of(first) | words_of(second) << 16; }

// To the nearest, and to the even one of two; what is not a number stays.
INLINE Bf16x16 narrowed(Floats x) {
#ifdef __AVX512BF16__
    return (Bf16x16)_mm512_cvtneps_pbh((__m512)x);
#else
    const Words bits = (Words)x, odd = bits >> 16 & 1;
    const Words nearest = bits + 0x7fff + odd, quiet = bits | 0x400000;
    const Words number = (Words)(x == x);
    return __builtin_convertvector(((nearest & number) | (quiet & ~number)) >> 16, Bf16x16);
#endif
}

// Bytes are exact.
INLINE Bf16x16 bf16_of(const uint8_t* bytes) {
    float values[16];
    for (int i = 0; i < 16; i += W) store(values + i, load(bytes + i));
    return narrowed(load_as<Floats>(values));
}

// A ReLU; what is not a number stays, to be noticed later.
INLINE Floats rectified(Floats x) {
#ifdef __AVX512F__
    return (Floats)_mm512_max_ps(__m512{}, (__m512)x);  // of NaN and a number, the second
#else
    return (Floats)(~(Words)(x <= 0.0f) & (Words)x);
#endif
}

typedef int16_t Int16x16 __attribute__((vector_size(32)));

// `value`, but 0 where `mask` is 0 or below.
INLINE Bf16x16 where_positive(Bf16x16 mask, Bf16x16 value) {
    return value & (Bf16x16)((Int16x16)mask > 0);
}

#if defined __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(Mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE  // GCC before 12
#define SHUFFLE(Mask, a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

// Of both halves of a and b, a0 b0 … a3 b3, and a4 b4 … a7 b7: one instruction each.
INLINE void interleave(Bf16x16 a, Bf16x16 b, Bf16x16& first, Bf16x16& second) {
    first = SHUFFLE(Bf16x16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27);
    second = SHUFFLE(Bf16x16, a, b, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Eight values from each of two places.
INLINE Bf16x16 halves(const Bf16* first, const Bf16* second) {
#ifdef __AVX2__
    const __m256i one = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)first));
    return (Bf16x16)_mm256_inserti128_si256(one, _mm_loadu_si128((const __m128i*)second), 1);
#else
    Bf16x16 both;
    std::memcpy(&both, first, sizeof both / 2);
    std::memcpy((Bf16*)&both + 8, second, sizeof both / 2);
    return both;
#endif
}

// 16 × 16 values, rows to columns, in two times eight columns: rows i and i + 8 lie in the halves of a
// vector, and three times each vector is interleaved with the one four further on. (Across halves, vectors
// of 16 would take three times as many cycles by llvm-mca.)
INLINE void transpose(const Bf16* from, ptrdiff_t from_row, Bf16* to, ptrdiff_t to_row) {
#pragma GCC unroll 2
    for (int column = 0; column < 16; column += 8) {
        Bf16x16 x[8], y[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
            x[i] = halves(from + i * from_row + column, from + (i + 8) * from_row + column);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) interleave(x[i], x[i + 4], y[2 * i], y[2 * i + 1]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) interleave(y[i], y[i + 4], x[2 * i], x[2 * i + 1]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) interleave(x[i], x[i + 4], y[2 * i], y[2 * i + 1]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) store_as(to + (column + i) * to_row, y[i]);
    }
}
