// Matrices in the form that products want them in: right ones in panels (matmul.h), left ones with rows that do not
// crowd in the caches; of floats, or of pairs along what is summed up.
#pragma once

#include <type_traits>
#include <utility>

#include "matmul.h"

namespace {

template <typename Value>
constexpr int PER = std::is_same_v<Value, Pair> ? 2 : 1;  // values along a sum that lie together

INLINE void put_group(float* to, Vec one, Vec) { store(to, one); }
INLINE void put_group(Pair* to, Vec one, Vec other) { store_pairs(to, one, other); }

template <size_t S, size_t... L>
INLINE void exchange(Vec& a, Vec& b, std::index_sequence<L...>) {
    const Vec low = SHUFFLE(IntVec, a, b, (L & S ? W + L - S : L)...);
    b = SHUFFLE(IntVec, a, b, (L & S ? W + L : L + S)...);
    a = low;
}

// W × W values, rows to columns.
template <size_t S = 1>
INLINE void transpose(Vec (&x)[W]) {
    if constexpr (S < W) {
#pragma GCC unroll 16
        for (size_t i = 0; i < W; ++i)
            if (!(i & S)) exchange<S>(x[i], x[i + S], std::make_index_sequence<W>{});
        transpose<2 * S>(x);
    }
}

// Columns [first, last) of the right matrix whose columns are `weights` [width, inputs], in panels of
// [⌈inputs / PER⌉, width]. `inputs` is a multiple of PER · W, the others are of W.
template <typename Value>
void turn_into_panels(const float* weights, int inputs, int width, int first, int last, Value* panels) {
    const int depth = inputs / PER<Value>;
    for (int o = first; o < last; o += W)
        for (int k = 0; k < depth; k += W) {
            Vec x[W];
            for (int i = 0; i < W; ++i) {
                const float* from = weights + (size_t)(o + i) * inputs + k * PER<Value>;
                Value row[W];
                for (int part = 0; part < PER<Value>; ++part) put(row, part * W, load(from + part * W));
                x[i] = load(row);
            }
            transpose(x);
            for (int i = 0; i < W; ++i) store_as(panels + panel_at(k + i, o, depth, width), x[i]);
        }
}

// Groups [first, last) of PER rows of the right matrix `rows` [count, width], in panels. `width` is a multiple of W.
template <typename Value>
void put_into_panels(const float* rows, int count, int width, int first, int last, Value* panels) {
    const int depth = ceil_div(count, PER<Value>);
    for (int g = first; g < last; ++g) {
        const float* one = rows + (size_t)g * PER<Value> * width;
        const bool alone = g * PER<Value> + 1 >= count;
        for (int j = 0; j < width; j += W)
            put_group(panels + panel_at(g, j, depth, width), load(one + j),
                      alone ? Vec{} : load(one + (PER<Value> - 1) * width + j));
    }
}

}  // namespace
