// Numbers of 16 bits that are the upper half of a float, sixteen at a time.
#pragma once

#include "vectors.h"

typedef uint16_t Bf16;
typedef Bf16 Halves __attribute__((vector_size(32)));    // 16 of them
typedef float Floats __attribute__((vector_size(64)));   // as many, whatever the CPU's vectors hold
typedef uint32_t Words __attribute__((vector_size(64)));

template <typename Vector, typename Value>
INLINE Vector load_as(const Value* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename Vector, typename Value>
INLINE void store_as(Value* to, Vector value) {
    std::memcpy(to, &value, sizeof value);
}

INLINE Words words_of(Halves x) {
#ifdef __AVX512F__
    return (Words)_mm512_cvtepu16_epi32((__m256i)x);  // the compiler takes four instructions
#else
    return __builtin_convertvector(x, Words);
#endif
}

INLINE Floats widened(Halves x) { return (Floats)(words_of(x) << 16); }

// Two values side by side, sixteen times.
INLINE Words paired(Halves first, Halves second) { return words_of(first) | words_of(second) << 16; }

// To the nearest, and to the even one of two; what is not a number stays.
INLINE Halves narrowed(Floats x) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
    const Words bits = (Words)x, odd = bits >> 16 & 1;
    const Words nearest = bits + 0x7fff + odd, quiet = bits | 0x400000;
    const Words number = (Words)(x == x);
    return __builtin_convertvector(((nearest & number) | (quiet & ~number)) >> 16, Halves);
#endif
}

// Bytes are exact.
INLINE Halves halves_of(const uint8_t* bytes) {
    float values[16];
    for (int i = 0; i < 16; i += W) store(values + i, load(bytes + i));
    return narrowed(load_as<Floats>(values));
}

// A ReLU; what is not a number stays, to be noticed later.
INLINE Floats rectified(Floats x) { return (Floats)(~(Words)(x <= 0.0f) & (Words)x); }

typedef int16_t SignedHalves __attribute__((vector_size(32)));

// `value`, but 0 where `mask` is 0 or below.
INLINE Halves where_positive(Halves mask, Halves value) {
    return value & (Halves)((SignedHalves)mask > 0);
}

// a0 b0 a1 b1 … a7 b7, and a8 b8 … a15 b15.
INLINE void interleave(Halves a, Halves b, Halves& first, Halves& second) {
    typedef Halves H;
    first = __builtin_shuffle(a, b, H{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    second = __builtin_shuffle(a, b, H{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}

// 16 × 16 values, rows to columns: four times, each row is interleaved with the one eight further on.
INLINE void transpose(const Bf16* from, ptrdiff_t from_row, Bf16* to, ptrdiff_t to_row) {
    Halves x[16], y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = load_as<Halves>(from + i * from_row);
#pragma GCC unroll 2
    for (int round = 0; round < 2; ++round) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) interleave(x[i], x[i + 8], y[2 * i], y[2 * i + 1]);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) interleave(y[i], y[i + 8], x[2 * i], x[2 * i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store_as(to + i * to_row, x[i]);
}
