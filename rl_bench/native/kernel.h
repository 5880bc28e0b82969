// The kernel of a convolution in the form that products want, and the way back for its gradient.
#pragma once

#include <type_traits>

#include "geometry.h"
#include "matmul.h"

namespace {

// Where a float or a vector lies: in the kernel, of the first tap, and in the matrix of each point.
struct Places {
    size_t tap;
    int filter, channel;  // of a cell's
};

// Taps that become channels of a cell, of every `each`th of some filters: calls `vector(places)` for whole vectors
// and `single(places)` for the rest, panel by panel, as so many points' matrices are written at the same time.
template <typename Vector, typename Single>
INLINE void along_channels(const Plan& p, int first, int last, int each, Vector vector, Single single) {
    const int segment = p.step * p.channels, size = p.kernel * p.step;
    for (int part = 0; part < p.step; ++part)
        for (int start = 0; start < segment; start += PANEL)
            for (int o = first; o < last; o += each) {
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

// The taps of a cell's channel, `spread` apart, → its points.
template <int R, typename V, int T = Minimal<R>::T>
INLINE void transform_taps(const Plan& p, const float* taps, int spread, float scale, V (&x)[T][T]) {
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < R; ++j) x[i][j] = scale * loaded(taps + tap_at(p, i, j) * spread, V{});
    both_ways<Minimal<R>::template into_kernel<V>>(x);
}

// Of a place along what products sum up, or of two if these are pairs, the second of which may be missing:
// their taps → their points, a plane apart.
template <int R, typename V, typename Value>
INLINE void transform_places(const Plan& p, const float* taps, const float* second, int spread, float scale,
                             Value* to, size_t plane) {
    constexpr int T = Minimal<R>::T;
    V x[T][T] = {}, y[T][T] = {};
    transform_taps<R>(p, taps, spread, scale, x);
    if (second) transform_taps<R>(p, second, spread, scale, y);
    for (int i = 0; i < T; ++i)
        for (int j = 0; j < T; ++j)
            if constexpr (std::is_same_v<Value, Pair>)
                store_pairs(to + (T * i + j) * plane, x[i][j], y[i][j]);
            else
                stored(to + (T * i + j) * plane, x[i][j]);
}

// Kernel → the transpose of U, [points, O, depth], in panels; of it, some filters, or pairs of filters.
template <int R, typename Value>
void transform_kernel(const Plan& p, int first, int last, const float* kernel, float scale,
                      Value* u_transposed) {
    const int rows = p.sums_of(p.out_channels);
    const auto some = [&](auto kind, Places at) {
        const float* taps = kernel + at.tap;
        transform_places<R, decltype(kind)>(
            p, taps, p.halves ? taps + p.taps() : nullptr, 1, scale,
            u_transposed + panel_at(at.filter / p.per, at.channel, rows, p.depth), plane_of(rows, p.depth));
    };
    along_channels(
        p, first * p.per, last * p.per, p.per, [&](Places at) { some(Vec{}, at); },
        [&](Places at) { some(0.0f, at); });
}

// Kernel [size, size, channels, O] → U [points, depth, O], in panels; of it, some channels of cells, or pairs.
template <int R, typename Value>
void turn_kernel(const Plan& p, int first, int last, const float* kernel, float scale, Value* u) {
    const int segment = p.step * p.channels, size = p.kernel * p.step, width = p.out_channels;
    const int rows = p.sums_of(p.depth);
    const auto taps_of = [=](int d) {
        return kernel + (size_t)(d / segment * size * p.channels + d % segment) * width;
    };
    for (int start = 0; start < width; start += PANEL)
        for (int row = first; row < last; ++row) {
            const int d = row * p.per;
            const bool both = p.halves && d + 1 < p.depth;
            for (int o = start; o < std::min(start + PANEL, width); o += W)
                transform_places<R, Vec>(p, taps_of(d) + o, both ? taps_of(d + 1) + o : nullptr, width,
                                         scale, u + panel_at(row, o, rows, width), plane_of(rows, width));
        }
}

// The transpose: gradient of U, as [points, O, lanes], the sum of all threads', which lie `apart` → gradient
// of the kernel, `added` to what is there on demand; of it, some filters.
template <int R>
void untransform_kernel(const Plan& p, int first, int last, const float* du_transposed,
                        size_t apart, int threads, float scale, bool added, float* dkernel) {
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
            for (int j = 0; j < R; ++j) {
                float* to = dkernel + at.tap + tap_at(p, i, j);
                stored(to, added ? loaded(to, kind) + scale * x[i][j] : scale * x[i][j]);
            }
    };
    along_channels(
        p, first, last, 1, [&](Places at) { some(Vec{}, at); },
        [&](Places at) { some(0.0f, at); });
}

}  // namespace
