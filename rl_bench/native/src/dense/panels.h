// Packs operands of dense layers' products: right matrices in panels (../common/matmul.h), of floats or
// bf16 pairs.
//
// A right matrix [depth, width] becomes panels [⌈width / PANEL_WIDTH⌉, depth, PANEL_WIDTH]. With Value =
// Bf16Pair two neighbouring values along `depth`, which products sum over, form an element, and there are
// half as many rows. gradient.cpp calls both functions for each minibatch, with columns or rows shared out
// among threads.
#pragma once

#include <type_traits>
#include <utility>

#include "../common/matmul.h"

namespace {

// The number of values of a sum in one element of an operand.
template <typename Value>
constexpr int PAIR_SIZE = std::is_same_v<Value, Bf16Pair> ? 2 : 1;

// Writes VEC_FLOATS elements: floats from `one`, or pairs (one[i], other[i]).
INLINE void store_elements(float* to, Vec one, Vec) { store(to, one); }
INLINE void store_elements(Bf16Pair* to, Vec one, Vec other) { store_pairs(to, one, other); }

// Exchanges between `a` and `b` the elements whose index differs in bit S: a step of a transposition.
template <size_t S, size_t... L>
INLINE void exchange(Vec& a, Vec& b, std::index_sequence<L...>) {
    const Vec low = SHUFFLE(IntVec, a, b, (L & S ? VEC_FLOATS + L - S : L)...);
    b = SHUFFLE(IntVec, a, b, (L & S ? VEC_FLOATS + L : L + S)...);
    a = low;
}

// Transposes the VEC_FLOATS × VEC_FLOATS values of `x`, with steps S = 1, 2, 4 …
template <size_t S = 1>
INLINE void transpose(Vec (&x)[VEC_FLOATS]) {
    if constexpr (S < VEC_FLOATS) {
#pragma GCC unroll 16
        for (size_t i = 0; i < VEC_FLOATS; ++i)
            if (!(i & S)) exchange<S>(x[i], x[i + S], std::make_index_sequence<VEC_FLOATS>{});
        transpose<2 * S>(x);
    }
}

// Packs columns [first, last) of the right matrix [inputs, width] that is the transpose of `weights`
// [width, inputs]. `inputs` is a multiple of PAIR_SIZE · VEC_FLOATS; width, first and last are multiples of
// VEC_FLOATS.
template <typename Value>
void pack_transposed(const float* weights, int inputs, int width, int first, int last, Value* panels) {
    const int depth = inputs / PAIR_SIZE<Value>;
    for (int o = first; o < last; o += VEC_FLOATS)
        for (int k = 0; k < depth; k += VEC_FLOATS) {
            Vec x[VEC_FLOATS];
            for (int i = 0; i < VEC_FLOATS; ++i) {
                const float* from = weights + (size_t)(o + i) * inputs + k * PAIR_SIZE<Value>;
                Value row[VEC_FLOATS];
                for (int part = 0; part < PAIR_SIZE<Value>; ++part)
                    store_operand(row, part * VEC_FLOATS, load(from + part * VEC_FLOATS));
                x[i] = load(row);
            }
            transpose(x);
            for (int i = 0; i < VEC_FLOATS; ++i)
                store_as(panels + panel_offset(k + i, o, depth, width), x[i]);
        }
}

// Packs elements [first, last), of PAIR_SIZE rows each, of the right matrix `rows` [count, width]. A last
// row that is alone in its pair is paired with zeros. `width` is a multiple of VEC_FLOATS.
template <typename Value>
void pack_rows(const float* rows, int count, int width, int first, int last, Value* panels) {
    const int depth = ceil_div(count, PAIR_SIZE<Value>);
    for (int g = first; g < last; ++g) {
        const float* one = rows + (size_t)g * PAIR_SIZE<Value> * width;
        const bool alone = g * PAIR_SIZE<Value> + 1 >= count;
        for (int j = 0; j < width; j += VEC_FLOATS)
            store_elements(panels + panel_offset(g, j, depth, width), load(one + j),
                           alone ? Vec{} : load(one + (PAIR_SIZE<Value> - 1) * width + j));
    }
}

}  // namespace
