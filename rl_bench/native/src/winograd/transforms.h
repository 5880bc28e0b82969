// Winograd's minimal filtering F(M, R) in one dimension, and its application along rows and columns of a
// tile.
//
// M outputs y of a kernel g of R taps are computed from T = M + R − 1 inputs d with T products:
//   y = Aᵀ [(G g) ⊙ (Bᵀ d)]; in two dimensions Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A.
// Source: Lavin and Gray 2016 (arXiv 1509.09308), section 4. The backward pass applies the transposes. R =
// 2 has M = 3 and interpolates at 0, 1, −1 and ∞, so that transforms are additions. R = 3 has M = 4 and
// needs 4 times fewer products than the definition (2.25 times with M = 2). Its points are 0, ±5/8, ±3/2
// and ∞: of all 0, ±a, ±b, ∞ they lose about the least when transformed values are rounded to bfloat16,
// half as much as the usual ±1, ±2.
#pragma once

#include "../common/vectors.h"

namespace {

// The transforms for a kernel of R taps. Each changes x in place. The names say what x is turned into or
// from: inputs d, outputs y or the kernel g, on one side, and the T points on the other.
template <int R>
struct Minimal;

// F(3, 2): interpolation at 0, 1, −1 and ∞.
template <>
struct Minimal<2> {
    static constexpr int T = 4, M = 3;

    // Applies Bᵀ to T inputs.
    INLINE void inputs_to_points(Vec x[T]) {
        Vec a = x[0] - x[2], b = x[1] + x[2], c = x[2] - x[1], d = x[1] - x[3];
        x[0] = a, x[1] = b, x[2] = c, x[3] = d;
    }
    // Applies B to T gradients of points.
    INLINE void points_to_inputs(Vec x[T]) {
        Vec b = x[1] - x[2] + x[3], c = x[1] + x[2] - x[0];
        x[1] = b, x[2] = c, x[3] = -x[3];
    }
    // Applies Aᵀ to T products; the first M elements are the outputs.
    INLINE void points_to_outputs(Vec x[T]) {
        Vec sum = x[1] + x[2], difference = x[1] - x[2];
        x[0] += sum, x[1] = difference, x[2] = sum - x[3];
    }
    // Applies A to gradients of outputs in the first M elements.
    INLINE void outputs_to_points(Vec x[T]) {
        Vec even = x[0] + x[2], odd = x[1], last = x[2];
        x[1] = even + odd, x[2] = even - odd, x[3] = -last;
    }
    // Applies G to taps in the first R elements.
    template <typename V>
    INLINE void kernel_to_points(V x[T]) {
        V even = x[0], odd = x[1];
        x[1] = 0.5f * (even + odd), x[2] = 0.5f * (even - odd), x[3] = odd;
    }
    // Applies Gᵀ to T gradients of points; the first R elements are those of the taps.
    template <typename V>
    INLINE void points_to_kernel(V x[T]) {
        x[0] += 0.5f * (x[1] + x[2]);
        x[1] = 0.5f * (x[1] - x[2]) + x[3];
    }
};

// F(4, 3): interpolation at 0, ±A, ±B and ∞.
template <>
struct Minimal<3> {
    static constexpr int T = 6, M = 4;
    // The points ±A and ±B, whose squares and products are exact in float32, and the rows of G: G0 for
    // point 0, GA for ±A, GB for ±B.
    static constexpr float A = 0.625f, B = 1.5f, A2 = A * A, B2 = B * B;
    static constexpr float G0 = 1 / (A2 * B2), GA = 0.5f / (A2 * (A2 - B2)), GB = 0.5f / (B2 * (B2 - A2));

    // Applies Bᵀ to T inputs.
    INLINE void inputs_to_points(Vec x[T]) {
        Vec first = A2 * B2 * x[0] - (A2 + B2) * x[2] + x[4];
        Vec last = A2 * B2 * x[1] - (A2 + B2) * x[3] + x[5];
        Vec even = x[4] - B2 * x[2], odd = x[3] - B2 * x[1];
        Vec even2 = x[4] - A2 * x[2], odd2 = x[3] - A2 * x[1];
        x[0] = first, x[1] = even + A * odd, x[2] = even - A * odd;
        x[3] = even2 + B * odd2, x[4] = even2 - B * odd2, x[5] = last;
    }
    // Applies B to T gradients of points.
    INLINE void points_to_inputs(Vec x[T]) {
        Vec sum = x[1] + x[2], difference = A * (x[1] - x[2]);
        Vec sum2 = x[3] + x[4], difference2 = B * (x[3] - x[4]);
        x[1] = A2 * B2 * x[5] - B2 * difference - A2 * difference2;
        x[2] = -(A2 + B2) * x[0] - B2 * sum - A2 * sum2;
        x[3] = difference + difference2 - (A2 + B2) * x[5];
        x[4] = x[0] + sum + sum2;
        x[0] = A2 * B2 * x[0];
    }
    // Applies Aᵀ to T products; the first M elements are the outputs.
    INLINE void points_to_outputs(Vec x[T]) {
        Vec sum = x[1] + x[2], difference = A * (x[1] - x[2]);
        Vec sum2 = x[3] + x[4], difference2 = B * (x[3] - x[4]);
        x[0] += sum + sum2, x[1] = difference + difference2;
        x[2] = A2 * sum + B2 * sum2, x[3] = A2 * difference + B2 * difference2 + x[5];
    }
    // Applies A to gradients of outputs in the first M elements.
    INLINE void outputs_to_points(Vec x[T]) {
        Vec even = x[0] + A2 * x[2], odd = x[1] + A2 * x[3], last = x[3];
        Vec even2 = x[0] + B2 * x[2], odd2 = x[1] + B2 * x[3];
        x[1] = even + A * odd, x[2] = even - A * odd;
        x[3] = even2 + B * odd2, x[4] = even2 - B * odd2;
        x[5] = last;
    }
    // Applies G to taps in the first R elements.
    template <typename V>
    INLINE void kernel_to_points(V x[T]) {
        V even = GA * x[0] + GA * A2 * x[2], odd = GA * A * x[1], last = x[2];
        V even2 = GB * x[0] + GB * B2 * x[2], odd2 = GB * B * x[1];
        x[0] = G0 * x[0], x[1] = even + odd, x[2] = even - odd;
        x[3] = even2 + odd2, x[4] = even2 - odd2, x[5] = last;
    }
    // Applies Gᵀ to T gradients of points; the first R elements are those of the taps.
    template <typename V>
    INLINE void points_to_kernel(V x[T]) {
        V sum = GA * (x[1] + x[2]), difference = GA * A * (x[1] - x[2]);
        V sum2 = GB * (x[3] + x[4]), difference2 = GB * B * (x[3] - x[4]);
        x[0] = G0 * x[0] + sum + sum2;
        x[1] = difference + difference2;
        x[2] = A2 * sum + B2 * sum2 + x[5];
    }
};

// Applies the one-dimensional TRANSFORM to the rows and then to the columns of `x` [T, T].
template <auto TRANSFORM, typename V, int T>
INLINE void transform_2d(V (&x)[T][T]) {
#pragma GCC unroll 6
    for (int i = 0; i < T; ++i) TRANSFORM(x[i]);
#pragma GCC unroll 6
    for (int j = 0; j < T; ++j) {
        V column[T];
#pragma GCC unroll 6
        for (int i = 0; i < T; ++i) column[i] = x[i][j];
        TRANSFORM(column);
#pragma GCC unroll 6
        for (int i = 0; i < T; ++i) x[i][j] = column[i];
    }
}

}  // namespace
