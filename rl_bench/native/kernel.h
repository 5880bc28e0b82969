// The kernel of a convolution in the form that products want, and the way back for its gradient.
#pragma once

#include "geometry.h"
#include "matmul.h"

namespace {

// Where a float or a vector lies: in the kernel, of the first tap, and in the matrix of each point.
struct Places {
    size_t tap;
    int filter, channel;  // of a cell's
};

// Taps that become channels of a cell, of some filters: calls `vector(places)` for whole vectors and
// `single(places)` for the rest, panel by panel, as so many points' matrices are written at the same time.
template <typename Vector, typename Single>
INLINE void along_channels(const Plan& p, int first, int last, Vector vector, Single single) {
    const int segment = p.step * p.channels, size = p.kernel * p.step;
    for (int part = 0; part < p.step; ++part)
        for (int start = 0; start < segment; start += PANEL)
            for (int o = first; o < last; ++o) {
                const size_t tap = ((size_t)o * size + part) * size * p.channels;
                const int stop = std::min(start + PANEL, segment);
                int e = start;
                for (; e + W <= stop; e += W) vector({tap + e, o, part * segment + e});
                for (; e < stop; ++e) single({tap + e, o, part * segment + e});
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

// The taps of a cell's channel, `spread` apart, → its points, a plane apart.
template <int R, typename V>
INLINE void transform_taps(const Plan& p, const float* taps, int spread, float scale, float* to) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_of(p.depth, p.out_channels);
    V x[T][T] = {};
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < R; ++j) x[i][j] = scale * loaded(taps + tap_at(p, i, j) * spread, V{});
    both_ways<Minimal<R>::template into_kernel<V>>(x);
    for (int i = 0; i < T; ++i)
        for (int j = 0; j < T; ++j) stored(to + (T * i + j) * plane, x[i][j]);
}

// Kernel → the transpose of U, [points, O, depth], in panels; of it, some filters.
template <int R>
void transform_kernel(const Plan& p, int first, int last, const float* kernel, float scale,
                      float* u_transposed) {
    const auto some = [&](auto kind, Places at) {
        const size_t to = panel_at(at.filter, at.channel, p.out_channels, p.depth);
        transform_taps<R, decltype(kind)>(p, kernel + at.tap, 1, scale, u_transposed + to);
    };
    along_channels(
        p, first, last, [&](Places at) { some(Vec{}, at); },
        [&](Places at) { some(0.0f, at); });
}

// Kernel [size, size, channels, O] → U [points, depth, O], in panels; of it, some channels of cells.
template <int R>
void turn_kernel(const Plan& p, int first, int last, const float* kernel, float scale, float* u) {
    const int segment = p.step * p.channels, size = p.kernel * p.step, width = p.out_channels;
    for (int start = 0; start < width; start += PANEL)
        for (int d = first; d < last; ++d) {
            const size_t tap = (size_t)(d / segment * size * p.channels + d % segment) * width;
            for (int o = start; o < std::min(start + PANEL, width); o += W)
                transform_taps<R, Vec>(p, kernel + tap + o, width, scale,
                                       u + panel_at(d, o, p.depth, width));
        }
}

// A point's matrix [depth, width] in panels → pairs along its depth, in panels.
INLINE void pair_panels(const float* from, int depth, int width, Pair* to) {
    for (int start = 0; start < width; start += PANEL) {
        const int some = std::min(PANEL, width - start);
        pair_rows(from, depth, some, to);
        from += (size_t)depth * some, to += (size_t)ceil_div(depth, 2) * some;
    }
}

// The transpose: gradient of U, as [points, O, lanes], the sum of all threads', which lie `apart` → gradient
// of the kernel; of it, some filters.
template <int R>
void untransform_kernel(const Plan& p, int first, int last, const float* du_transposed,
                        size_t apart, int threads, float scale, float* dkernel) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_of(p.out_channels, p.lanes);
    const auto some = [&](auto kind, Places at) {
        const size_t from = (size_t)at.filter * p.lanes + at.channel;
        decltype(kind) x[T][T] = {};
        for (int thread = 0; thread < threads; ++thread)
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j)
                    x[i][j] += loaded(du_transposed + thread * apart + (T * i + j) * plane + from,
                                      kind);
        both_ways<Minimal<R>::template from_kernel<decltype(kind)>>(x);
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j)
                stored(dkernel + at.tap + tap_at(p, i, j), scale * x[i][j]);
    };
    along_channels(
        p, first, last, [&](Places at) { some(Vec{}, at); },
        [&](Places at) { some(0.0f, at); });
}

}  // namespace
