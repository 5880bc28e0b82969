// Pairs of numbers in bfloat16 for products whose sums are float32: two of what is summed up, side by side.
// A CPU with AVX512-BF16 multiplies twice as many of them as of floats at a time.
#pragma once

#include "bfloat16.h"

struct Pair {
    Bf16 first, second;
};

typedef uint32_t WordVec __attribute__((vector_size(4 * W)));

INLINE Vec load(const Pair* from) { return load_as<Vec>(from); }

INLINE Vec all(Pair pair) { return (Vec)(load_as<uint32_t>(&pair) - WordVec{}); }

INLINE Vec with_product(Vec sum, Vec a, Vec b, float) { return sum + a * b; }

INLINE Vec with_product(Vec sum, Vec a, Vec b, Pair) {
#if defined __AVX512BF16__ && defined __AVX512F__
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const WordVec x = (WordVec)a, y = (WordVec)b;
    sum += (Vec)(x << 16) * (Vec)(y << 16);
    return sum + (Vec)(x & 0xffff0000) * (Vec)(y & 0xffff0000);
#endif
}

// Values `at` a place of a row that is summed up along.
INLINE void put(float* row, int at, Vec x) { store(row + at, x); }

INLINE void put(Pair* row, int at, Vec x) {
    Floats values{};
    std::memcpy(&values, &x, sizeof x);
    const Bf16x16 halves = narrowed(values);
    std::memcpy(&row->first + at, &halves, W * sizeof(Bf16));
}

// Pairs of vectors, or of single values.
INLINE void store_pairs(Pair* to, Vec first, Vec second) {
    Floats x{}, y{};
    std::memcpy(&x, &first, sizeof first);
    std::memcpy(&y, &second, sizeof second);
    const Words pairs = paired(narrowed(x), narrowed(y));
    std::memcpy(to, &pairs, W * sizeof(Pair));
}

INLINE void store_pairs(Pair* to, float first, float second) {
    *to = {narrowed(Floats{first})[0], narrowed(Floats{second})[0]};
}

// Rows [rows, width], → pairs of them, [⌈rows / 2⌉, width], the last one's with zeros where it is alone. `width` is
// a multiple of 16.
INLINE void pair_rows(const float* from, int rows, int width, Pair* to) {
    for (int r = 0; r < rows; r += 2, from += 2 * width, to += width)
        for (int j = 0; j < width; j += 16) {
            const Bf16x16 one = narrowed(load_as<Floats>(from + j));
            const Bf16x16 other = r + 1 < rows ? narrowed(load_as<Floats>(from + width + j)) : Bf16x16{};
            store_as(to + j, paired(one, other));
        }
}

// The same, of rows that are pairs along themselves and lie `from_row` apart.
INLINE void pair_rows(const Pair* from, ptrdiff_t from_row, int rows, int width, Pair* to) {
    for (int r = 0; r < rows; r += 2, from += 2 * from_row, to += width)
        for (int j = 0; j < width; j += 16) {
            const auto one = load_as<Bf16x16>(&from->first + j);
            const auto other = r + 1 < rows ? load_as<Bf16x16>(&from[from_row].first + j) : Bf16x16{};
            store_as(to + j, paired(one, other));
        }
}
