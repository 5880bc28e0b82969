// The kernel of a convolution in the form that products want, and the way back for its gradient.
#pragma once

#include "geometry.h"

namespace {

// A run of floats of each tap that become channels of a cell: calls `vector(at)` for whole vectors and
// `single(at)` for the rest, at the places of a tap's first float in the kernel and of the cell's channel
// in a matrix [O, row].
template <typename Vector, typename Single>
INLINE void along_kernel(const Plan& p, int row, Vector vector, Single single) {
    const int segment = p.step * p.channels, size = p.kernel * p.step;
    for (int o = 0; o < p.out_channels; ++o)
        for (int part = 0; part < p.step; ++part) {
            const size_t tap = ((size_t)o * size + part) * size * p.channels;
            const size_t place = (size_t)o * row + part * segment;
            int e = 0;
            for (; e + W <= segment; e += W) vector(tap + e, place + e);
            for (; e < segment; ++e) single(tap + e, place + e);
        }
}

// Where tap (i, j) lies, from the first one on.
INLINE size_t tap_at(const Plan& p, int i, int j) {
    const size_t segment = p.step * p.channels;
    return i * p.step * p.kernel * segment + j * segment;
}

INLINE float loaded(const float* from, float) { return *from; }
INLINE Vec loaded(const float* from, Vec) { return load(from); }
INLINE void stored(float* to, float value) { *to = value; }
INLINE void stored(float* to, Vec value) { store(to, value); }

// Kernel → U with its last two axes exchanged, [points, O, depth].
template <int R>
void transform_kernel(const Plan& p, const float* kernel, float scale, float* u_transposed) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = (size_t)p.out_channels * p.depth;
    auto some = [&](auto kind, size_t tap, size_t place) {
        decltype(kind) x[T][T] = {};
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j)
                x[i][j] = scale * loaded(kernel + tap + tap_at(p, i, j), kind);
        both_ways<Minimal<R>::template into_kernel<decltype(kind)>>(x);
        for (int i = 0; i < T; ++i)
            for (int j = 0; j < T; ++j) stored(u_transposed + (T * i + j) * plane + place, x[i][j]);
    };
    along_kernel(
        p, p.depth, [&](size_t tap, size_t place) { some(Vec{}, tap, place); },
        [&](size_t tap, size_t place) { some(0.0f, tap, place); });
}

// The transpose: gradient of U, as [points, O, lanes] → gradient of the kernel.
template <int R>
void untransform_kernel(const Plan& p, const float* du_transposed, float scale, float* dkernel) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = (size_t)p.out_channels * p.lanes;
    auto some = [&](auto kind, size_t tap, size_t place) {
        decltype(kind) x[T][T];
        for (int i = 0; i < T; ++i)
            for (int j = 0; j < T; ++j)
                x[i][j] = loaded(du_transposed + (T * i + j) * plane + place, kind);
        both_ways<Minimal<R>::template from_kernel<decltype(kind)>>(x);
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j)
                stored(dkernel + tap + tap_at(p, i, j), scale * x[i][j]);
    };
    along_kernel(
        p, p.lanes, [&](size_t tap, size_t place) { some(Vec{}, tap, place); },
        [&](size_t tap, size_t place) { some(0.0f, tap, place); });
}

// [points, rows, columns] → [points, columns, rows].
void exchange(int points, const float* from, int rows, int columns, float* to) {
    constexpr int TILE = 16;
    for (int k = 0; k < points; ++k, from += rows * columns, to += rows * columns)
        for (int i = 0; i < rows; i += TILE)
            for (int j = 0; j < columns; j += TILE)
                for (int a = i; a < std::min(i + TILE, rows); ++a)
                    for (int b = j; b < std::min(j + TILE, columns); ++b)
                        to[b * rows + a] = from[a * columns + b];
}

}  // namespace
