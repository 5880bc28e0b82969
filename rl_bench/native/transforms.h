// Winograd's transforms. `Minimal<R>` makes M × M outputs of a kernel of R × R from T × T inputs.
//
// R = 2: the points 0, 1, -1 and infinity, so that transforms are additions. R = 3: 2 and -2 too, as four
// points would save less (2.25 times fewer products instead of 4).
#pragma once

#include "vectors.h"

namespace {

template <int R>
struct Minimal;

// One dimension of the transforms each; x is changed in place.
template <>
struct Minimal<2> {
    static constexpr int T = 4, M = 3;

    INLINE void into_inputs(Vec x[T]) {  // Bᵀ
        Vec a = x[0] - x[2], b = x[1] + x[2], c = x[2] - x[1], d = x[1] - x[3];
        x[0] = a, x[1] = b, x[2] = c, x[3] = d;
    }
    INLINE void from_inputs(Vec x[T]) {  // B
        Vec b = x[1] - x[2] + x[3], c = x[1] + x[2] - x[0];
        x[1] = b, x[2] = c, x[3] = -x[3];
    }
    INLINE void from_outputs(Vec x[T]) {  // Aᵀ: the first M are left
        Vec sum = x[1] + x[2], difference = x[1] - x[2];
        x[0] += sum, x[1] = difference, x[2] = sum - x[3];
    }
    INLINE void into_outputs(Vec x[T]) {  // A: from the first M
        Vec even = x[0] + x[2], odd = x[1], last = x[2];
        x[1] = even + odd, x[2] = even - odd, x[3] = -last;
    }
    template <typename V>
    INLINE void into_kernel(V x[T]) {  // G: from the first R
        V even = x[0], odd = x[1];
        x[1] = 0.5f * (even + odd), x[2] = 0.5f * (even - odd), x[3] = odd;
    }
    template <typename V>
    INLINE void from_kernel(V x[T]) {  // Gᵀ: the first R are left
        x[0] += 0.5f * (x[1] + x[2]);
        x[1] = 0.5f * (x[1] - x[2]) + x[3];
    }
};

template <>
struct Minimal<3> {
    static constexpr int T = 6, M = 4;

    INLINE void into_inputs(Vec x[T]) {
        Vec first = 4.0f * x[0] - 5.0f * x[2] + x[4], last = 4.0f * x[1] - 5.0f * x[3] + x[5];
        Vec even = x[4] - 4.0f * x[2], odd = x[3] - 4.0f * x[1];
        Vec even2 = x[4] - x[2], odd2 = 2.0f * (x[3] - x[1]);
        x[0] = first, x[1] = even + odd, x[2] = even - odd;
        x[3] = even2 + odd2, x[4] = even2 - odd2, x[5] = last;
    }
    INLINE void from_inputs(Vec x[T]) {
        Vec sum = x[1] + x[2], difference = x[1] - x[2];
        Vec sum2 = x[3] + x[4], difference2 = x[3] - x[4];
        x[1] = 4.0f * (x[5] - difference) - 2.0f * difference2;
        x[2] = -5.0f * x[0] - 4.0f * sum - sum2;
        x[3] = difference + 2.0f * difference2 - 5.0f * x[5];
        x[4] = x[0] + sum + sum2;
        x[0] = 4.0f * x[0];
    }
    INLINE void from_outputs(Vec x[T]) {
        Vec sum = x[1] + x[2], difference = x[1] - x[2];
        Vec sum2 = x[3] + x[4], difference2 = x[3] - x[4];
        x[0] += sum + sum2, x[1] = difference + 2.0f * difference2;
        x[2] = sum + 4.0f * sum2, x[3] = difference + 8.0f * difference2 + x[5];
    }
    INLINE void into_outputs(Vec x[T]) {
        Vec even = x[0] + x[2], odd = x[1] + x[3], last = x[3];
        Vec even2 = x[0] + 4.0f * x[2], odd2 = 2.0f * x[1] + 8.0f * x[3];
        x[1] = even + odd, x[2] = even - odd, x[3] = even2 + odd2, x[4] = even2 - odd2;
        x[5] = last;
    }
    template <typename V>
    INLINE void into_kernel(V x[T]) {
        V even = (-1.0f / 6) * (x[0] + x[2]), odd = (-1.0f / 6) * x[1], last = x[2];
        V even2 = (1.0f / 24) * x[0] + (1.0f / 6) * x[2], odd2 = (1.0f / 12) * x[1];
        x[0] = 0.25f * x[0], x[1] = even + odd, x[2] = even - odd;
        x[3] = even2 + odd2, x[4] = even2 - odd2, x[5] = last;
    }
    template <typename V>
    INLINE void from_kernel(V x[T]) {
        V sum = (-1.0f / 6) * (x[1] + x[2]), difference = (-1.0f / 6) * (x[1] - x[2]);
        V sum2 = x[3] + x[4], difference2 = x[3] - x[4];
        x[0] = 0.25f * x[0] + sum + (1.0f / 24) * sum2;
        x[1] = difference + (1.0f / 12) * difference2;
        x[2] = sum + (1.0f / 6) * sum2 + x[5];
    }
};

template <auto ALONG, typename V, int T>
INLINE void both_ways(V (&x)[T][T]) {
#pragma GCC unroll 6
    for (int i = 0; i < T; ++i) ALONG(x[i]);
#pragma GCC unroll 6
    for (int j = 0; j < T; ++j) {
        V column[T];
#pragma GCC unroll 6
        for (int i = 0; i < T; ++i) column[i] = x[i][j];
        ALONG(column);
#pragma GCC unroll 6
        for (int i = 0; i < T; ++i) x[i][j] = column[i];
    }
}

}  // namespace
