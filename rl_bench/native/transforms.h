// Winograd's transforms for the points 0, 1, -1 and infinity: additions, and halves for the kernel.
#pragma once

#include "vectors.h"

namespace {

// One dimension of the transforms; x are four vectors, changed in place.
INLINE void into_inputs(Vec x[4]) {  // Bᵀ
    Vec a = x[0] - x[2], b = x[1] + x[2], c = x[2] - x[1], d = x[1] - x[3];
    x[0] = a, x[1] = b, x[2] = c, x[3] = d;
}
INLINE void from_inputs(Vec x[4]) {  // B
    Vec b = x[1] - x[2] + x[3], c = x[1] + x[2] - x[0];
    x[1] = b, x[2] = c, x[3] = -x[3];
}
template <int M>
INLINE void from_outputs(Vec x[4]) {  // Aᵀ: of four, the first M are left
    Vec sum = x[1] + x[2], difference = x[1] - x[2], last = x[3];
    x[0] += sum;
    x[1] = M == 3 ? difference : difference - last;
    x[2] = sum - last;
}
template <int M>
INLINE void into_outputs(Vec x[4]) {  // A: from the first M
    Vec even = M == 3 ? x[0] + x[2] : x[0], odd = x[1], last = M == 3 ? x[2] : x[1];
    x[1] = even + odd, x[2] = even - odd, x[3] = -last;
}

template <int R, typename T>
INLINE void into_kernel(T x[4]) {  // G: from the first R; the points in the middle count half
    T even = R == 3 ? x[0] + x[2] : x[0], odd = x[1], last = R == 3 ? x[2] : x[1];
    x[1] = 0.5f * (even + odd), x[2] = 0.5f * (even - odd), x[3] = last;
}
template <int R, typename T>
INLINE void from_kernel(T x[4]) {  // Gᵀ: of four, the first R are left
    T even = 0.5f * (x[1] + x[2]), odd = 0.5f * (x[1] - x[2]), last = x[3];
    x[0] += even;
    x[1] = R == 3 ? odd : odd + last;
    x[2] = even + last;
}

template <auto ALONG, typename T>
INLINE void both_ways(T x[4][4]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) ALONG(x[i]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        T column[4] = {x[0][j], x[1][j], x[2][j], x[3][j]};
        ALONG(column);
        x[0][j] = column[0], x[1][j] = column[1], x[2][j] = column[2], x[3][j] = column[3];
    }
}

}  // namespace
