// Conversions and vector operations on bfloat16, sixteen values at a time.
//
// A bfloat16 is the upper half of a float32: the same exponent, 7 instead of 23 bits of mantissa. Here it
// is stored as uint16_t. Sixteen of them fill half of an AVX-512 register; `Floatx16` holds as many floats
// on any CPU, where the compiler splits it into narrower registers if need be. Used by the AMX kernels, by
// Winograd and dense kernels with bf16 products (bf16_pairs.h), and by the max-pool.
#pragma once

#include "vectors.h"

typedef uint16_t Bf16;
typedef Bf16 Bf16x16 __attribute__((vector_size(32)));
typedef float Floatx16 __attribute__((vector_size(64)));
typedef uint32_t Uint32x16 __attribute__((vector_size(64)));

// Widens sixteen 16-bit values `x` to 32 bits.
INLINE Uint32x16 zero_extend(Bf16x16 x) {
#ifdef __AVX512F__
    return (Uint32x16)_mm512_cvtepu16_epi32((__m256i)x);  // one instruction, where GCC emits four
#else
    return __builtin_convertvector(x, Uint32x16);
#endif
}

// Converts bfloat16 `x` to float32, exactly.
INLINE Floatx16 to_float(Bf16x16 x) { return (Floatx16)(zero_extend(x) << 16); }

// Returns first[0] second[0] first[1] second[1] …, each pair in one 32-bit word, `first` in its lower half.
INLINE Uint32x16 pack_pairs(Bf16x16 first, Bf16x16 second) {
    return zero_extend(first) | zero_extend(second) << 16;
}

// Rounds float32 `x` to bfloat16, to nearest and ties to even. NaN stays NaN.
INLINE Bf16x16 to_bf16(Floatx16 x) {
#ifdef __AVX512BF16__
    return (Bf16x16)_mm512_cvtneps_pbh((__m512)x);
#else
    const Uint32x16 bits = (Uint32x16)x, odd = bits >> 16 & 1;
    const Uint32x16 nearest = bits + 0x7fff + odd, quiet = bits | 0x400000;
    const Uint32x16 number = (Uint32x16)(x == x);
    return __builtin_convertvector(((nearest & number) | (quiet & ~number)) >> 16, Bf16x16);
#endif
}

// Converts sixteen `bytes` to bfloat16, exactly.
INLINE Bf16x16 bytes_to_bf16(const uint8_t* bytes) {
    float values[16];
    for (int i = 0; i < 16; i += VEC_FLOATS) store(values + i, load(bytes + i));
    return to_bf16(load_as<Floatx16>(values));
}

// Applies a ReLU to `x`. NaN stays NaN, so that it can be noticed in the loss.
INLINE Floatx16 apply_relu(Floatx16 x) {
#ifdef __AVX512F__
    return (Floatx16)_mm512_max_ps(__m512{}, (__m512)x);  // max_ps returns its second operand for NaN
#else
    return (Floatx16)(~(Uint32x16)(x <= 0.0f) & (Uint32x16)x);
#endif
}

typedef int16_t Int16x16 __attribute__((vector_size(32)));

// Returns `value` with 0 where `mask` is 0 or below. As integers, bfloat16 values have the same signs.
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

// Interleaves a and b within each 128-bit half: `first` gets a0 b0 … a3 b3 of both halves, `second` a4 b4 …
// a7 b7. Each is one instruction (punpcklwd, punpckhwd).
INLINE void interleave(Bf16x16 a, Bf16x16 b, Bf16x16& first, Bf16x16& second) {
    first = SHUFFLE(Bf16x16, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27);
    second = SHUFFLE(Bf16x16, a, b, 4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Reads eight values from `first` into the lower half of a vector and eight from `second` into its upper
// half.
INLINE Bf16x16 load_two_halves(const Bf16* first, const Bf16* second) {
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

// Transposes 16 × 16 values: `to` [16, 16] ← `from` [16, 16], with row strides `to_row` and `from_row`.
//
// Eight columns are done at a time. Rows i and i + 8 are loaded into the halves of one vector; three rounds
// of interleaving vector i with vector i + 4 then transpose the 8 × 8 blocks in both halves. Shuffles
// across the halves would take three times as many cycles (by llvm-mca).
INLINE void transpose_16x16(const Bf16* from, ptrdiff_t from_row, Bf16* to, ptrdiff_t to_row) {
#pragma GCC unroll 2
    for (int column = 0; column < 16; column += 8) {
        Bf16x16 x[8], y[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i)
            x[i] = load_two_halves(from + i * from_row + column, from + (i + 8) * from_row + column);
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
