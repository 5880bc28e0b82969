// The kernel of a convolution in the form that products want, and the way back for its gradient.
#pragma once

#include "geometry.h"

namespace {

// Places of a run of floats: in the kernel, from its first tap on, and in a matrix of each point.
struct Places {
    size_t tap, matrix;
};

// Taps that become channels of a cell, filter by filter: calls `vector(places)` for whole vectors and
// `single(places)` for the rest. Matrices are [O, row].
template <typename Vector, typename Single>
INLINE void along_channels(const Plan& p, int row, Vector vector, Single single) {
    const int segment = p.step * p.channels, size = p.kernel * p.step;
    for (int o = 0; o < p.out_channels; ++o)
        for (int part = 0; part < p.step; ++part) {
            const size_t tap = ((size_t)o * size + part) * size * p.channels;
            const size_t place = (size_t)o * row + part * segment;
            int e = 0;
            for (; e + W <= segment; e += W) vector({tap + e, place + e});
            for (; e < segment; ++e) single({tap + e, place + e});
        }
}

// The same filters beside each other, of a kernel [size, size, channels, O]. Matrices are [depth, O].
template <typename Vector>
INLINE void along_filters(const Plan& p, Vector vector) {
    const int segment = p.step * p.channels, size = p.kernel * p.step;
    for (int d = 0; d < p.depth; ++d) {
        const size_t tap = ((size_t)d / segment * size * p.channels + d % segment) * p.out_channels;
        for (int o = 0; o < p.out_channels; o += W) vector({tap + o, (size_t)d * p.out_channels + o});
    }
}

// Where tap (i, j) of a cell's lies, from the first one on.
INLINE size_t tap_at(const Plan& p, int i, int j) {
    const size_t segment = p.step * p.channels;
    return i * p.step * p.kernel * segment + j * segment;
}

INLINE float loaded(const float* from, float) { return *from; }
INLINE Vec loaded(const float* from, Vec) { return load(from); }
INLINE void stored(float* to, float value) { *to = value; }
INLINE void stored(float* to, Vec value) { store(to, value); }

// [rows, columns] → [columns, rows].
void transpose(const float* from, int rows, int columns, float* to) {
    constexpr int TILE = 16;
    for (int i = 0; i < rows; i += TILE)
        for (int j = 0; j < columns; j += TILE)
            for (int a = i; a < std::min(i + TILE, rows); ++a)
                for (int b = j; b < std::min(j + TILE, columns); ++b)
                    to[(size_t)b * rows + a] = from[(size_t)a * columns + b];
}

// Kernel → U [points, depth, O] and, unless null, U with its last two axes exchanged; `turned` is for the
// kernel as [size, size, channels, O].
template <int R>
void transform_kernel(const Plan& p, const float* kernel, float scale, float* turned, float* u,
                      float* u_transposed) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_of(p.depth, p.out_channels);
    const auto some = [&](auto kind, const float* taps, int spread, float* to) {
        decltype(kind) x[T][T] = {};
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j)
                x[i][j] = scale * loaded(taps + tap_at(p, i, j) * spread, kind);
        both_ways<Minimal<R>::template into_kernel<decltype(kind)>>(x);
        for (int i = 0; i < T; ++i)
            for (int j = 0; j < T; ++j) stored(to + (T * i + j) * plane, x[i][j]);
    };
    transpose(kernel, p.out_channels, p.taps(), turned);
    along_filters(p, [&](Places at) { some(Vec{}, turned + at.tap, p.out_channels, u + at.matrix); });
    if (!u_transposed) return;
    along_channels(
        p, p.depth,
        [&](Places at) { some(Vec{}, kernel + at.tap, 1, u_transposed + at.matrix); },
        [&](Places at) { some(0.0f, kernel + at.tap, 1, u_transposed + at.matrix); });
}

// The transpose: gradient of U, as [points, O, lanes] → gradient of the kernel.
template <int R>
void untransform_kernel(const Plan& p, const float* du_transposed, float scale, float* dkernel) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_of(p.out_channels, p.lanes);
    const auto some = [&](auto kind, Places at) {
        decltype(kind) x[T][T];
        for (int i = 0; i < T; ++i)
            for (int j = 0; j < T; ++j)
                x[i][j] = loaded(du_transposed + (T * i + j) * plane + at.matrix, kind);
        both_ways<Minimal<R>::template from_kernel<decltype(kind)>>(x);
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j)
                stored(dkernel + at.tap + tap_at(p, i, j), scale * x[i][j]);
    };
    along_channels(
        p, p.lanes, [&](Places at) { some(Vec{}, at); }, [&](Places at) { some(0.0f, at); });
}

}  // namespace
