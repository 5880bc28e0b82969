// Winograd's transforms. `Minimal<R>` makes M × M outputs of a kernel of R × R from T × T inputs.
//
// R = 2: the points 0, 1, -1 and infinity, so that transforms are additions. R = 3: two more, as four points
// would save less (2.25 times fewer products instead of 4); of points 0, ±a, ±b and infinity these lose about the
// least by rounding to bfloat16 what is multiplied, half as much as the usual 1 and 2.
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
    static constexpr float A = 0.625f, B = 1.5f, A2 = A * A, B2 = B * B;  // and all products are exact
    static constexpr float G0 = 1 / (A2 * B2), GA = 0.5f / (A2 * (A2 - B2)), GB = 0.5f / (B2 * (B2 - A2));

    INLINE void into_inputs(Vec x[T]) {
        Vec first = A2 * B2 * x[0] - (A2 + B2) * x[2] + x[4];
        Vec last = A2 * B2 * x[1] - (A2 + B2) * x[3] + x[5];
        Vec even = x[4] - B2 * x[2], odd = x[3] - B2 * x[1];
        Vec even2 = x[4] - A2 * x[2], odd2 = x[3] - A2 * x[1];
        x[0] = first, x[1] = even + A * odd, x[2] = even - A * odd;
        x[3] = even2 + B * odd2, x[4] = even2 - B * odd2, x[5] = last;
    }
    INLINE void from_inputs(Vec x[T]) {
        Vec sum = x[1] + x[2], difference = A * (x[1] - x[2]);
        Vec sum2 = x[3] + x[4], difference2 = B * (x[3] - x[4]);
        x[1] = A2 * B2 * x[5] - B2 * difference - A2 * difference2;
        x[2] = -(A2 + B2) * x[0] - B2 * sum - A2 * sum2;
        x[3] = difference + difference2 - (A2 + B2) * x[5];
        x[4] = x[0] + sum + sum2;
        x[0] = A2 * B2 * x[0];
    }
    INLINE void from_outputs(Vec x[T]) {
        Vec sum = x[1] + x[2], difference = A * (x[1] - x[2]);
        Vec sum2 = x[3] + x[4], difference2 = B * (x[3] - x[4]);
        x[0] += sum + sum2, x[1] = difference + difference2;
        x[2] = A2 * sum + B2 * sum2, x[3] = A2 * difference + B2 * difference2 + x[5];
    }
    INLINE void into_outputs(Vec x[T]) {
        Vec even = x[0] + A2 * x[2], odd = x[1] + A2 * x[3], last = x[3];
        Vec even2 = x[0] + B2 * x[2], odd2 = x[1] + B2 * x[3];
        x[1] = even + A * odd, x[2] = even - A * odd;
        x[3] = even2 + B * odd2, x[4] = even2 - B * odd2;
        x[5] = last;
    }
    template <typename V>
    INLINE void into_kernel(V x[T]) {
        V even = GA * x[0] + GA * A2 * x[2], odd = GA * A * x[1], last = x[2];
        V even2 = GB * x[0] + GB * B2 * x[2], odd2 = GB * B * x[1];
        x[0] = G0 * x[0], x[1] = even + odd, x[2] = even - odd;
        x[3] = even2 + odd2, x[4] = even2 - odd2, x[5] = last;
    }
    template <typename V>
    INLINE void from_kernel(V x[T]) {
        V sum = GA * (x[1] + x[2]), difference = GA * A * (x[1] - x[2]);
        V sum2 = GB * (x[3] + x[4]), difference2 = GB * B * (x[3] - x[4]);
        x[0] = G0 * x[0] + sum + sum2;
        x[1] = difference + difference2;
        x[2] = A2 * sum + B2 * sum2 + x[5];
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
