// Matrix operands in bfloat16 for products on vector units, with sums in float32.
//
// Two values that are adjacent along the summed dimension form a `Bf16Pair`: a matrix A[M, K] of values
// becomes A[M, K / 2] of pairs, B[K, N] becomes B[K / 2, N]. A CPU with AVX512-BF16 multiplies and adds
// sixteen pairs in one instruction, twice as many products as with floats; elsewhere the halves are widened
// and multiplied one after the other. The functions are overloaded for float and Bf16Pair, so that
// matmul.h, Winograd and the dense kernels are written once for both.
#pragma once

#include "bfloat16.h"

// Two values that are adjacent along the dimension which a product sums over.
struct Bf16Pair {
    Bf16 first, second;
};

typedef uint32_t Uint32Vec __attribute__((vector_size(4 * VEC_FLOATS)));

// Reads VEC_FLOATS pairs, as the bits of a Vec.
INLINE Vec load(const Bf16Pair* from) { return load_as<Vec>(from); }

// Returns a Vec with the bits of `pair` in every element.
INLINE Vec broadcast(Bf16Pair pair) { return (Vec)(load_as<uint32_t>(&pair) - Uint32Vec{}); }

// Returns sum + a · b for floats. The last argument only selects the overload.
INLINE Vec multiply_add(Vec sum, Vec a, Vec b, float) { return sum + a * b; }

// Returns sum + a.first · b.first + a.second · b.second for vectors of pairs.
INLINE Vec multiply_add(Vec sum, Vec a, Vec b, Bf16Pair) {
#if defined __AVX512BF16__ && defined __AVX512F__
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const Uint32Vec x = (Uint32Vec)a, y = (Uint32Vec)b;
    sum += (Vec)(x << 16) * (Vec)(y << 16);
    return sum + (Vec)(x & 0xffff0000) * (Vec)(y & 0xffff0000);
#endif
}

// Writes `x` to values `at` … of an operand's `row`, which the products sum along.
INLINE void store_operand(float* row, int at, Vec x) { store(row + at, x); }

// Rounds `x` to bfloat16 and writes it to values `at` … of `row`, whose neighbouring values are pairs.
INLINE void store_operand(Bf16Pair* row, int at, Vec x) {
    Floatx16 values{};
    std::memcpy(&values, &x, sizeof x);
    const Bf16x16 rounded = to_bf16(values);
    std::memcpy(&row->first + at, &rounded, VEC_FLOATS * sizeof(Bf16));
}

// Writes VEC_FLOATS pairs: `to[i]` = (first[i], second[i]), rounded to bfloat16.
INLINE void store_pairs(Bf16Pair* to, Vec first, Vec second) {
    Floatx16 x{}, y{};
    std::memcpy(&x, &first, sizeof first);
    std::memcpy(&y, &second, sizeof second);
    const Uint32x16 pairs = pack_pairs(to_bf16(x), to_bf16(y));
    std::memcpy(to, &pairs, VEC_FLOATS * sizeof(Bf16Pair));
}

// Writes one pair, rounded to bfloat16.
INLINE void store_pairs(Bf16Pair* to, float first, float second) {
    *to = {to_bf16(Floatx16{first})[0], to_bf16(Floatx16{second})[0]};
}

// Pairs neighbouring rows: `to` [⌈rows / 2⌉, width] of pairs ← `from` [rows, width] of floats. A last odd
// row is paired with zeros. `width` is a multiple of 16.
INLINE void pair_rows(const float* from, int rows, int width, Bf16Pair* to) {
    for (int r = 0; r < rows; r += 2, from += 2 * width, to += width)
        for (int j = 0; j < width; j += 16) {
            const Bf16x16 one = to_bf16(load_as<Floatx16>(from + j));
            const Bf16x16 other = r + 1 < rows ? to_bf16(load_as<Floatx16>(from + width + j)) : Bf16x16{};
            store_as(to + j, pack_pairs(one, other));
        }
}

// Pairs neighbouring rows of values that are stored as pairs along the rows: `to` [⌈rows / 2⌉, width] ←
// `from` [rows, width values], rows `from_row` pairs apart. It turns operands that were summed along
// columns into operands that are summed along rows.
INLINE void pair_rows(const Bf16Pair* from, ptrdiff_t from_row, int rows, int width, Bf16Pair* to) {
    for (int r = 0; r < rows; r += 2, from += 2 * from_row, to += width)
        for (int j = 0; j < width; j += 16) {
            const auto one = load_as<Bf16x16>(&from->first + j);
            const auto other = r + 1 < rows ? load_as<Bf16x16>(&from[from_row].first + j) : Bf16x16{};
            store_as(to + j, pack_pairs(one, other));
        }
}
