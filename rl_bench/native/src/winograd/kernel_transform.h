// Transforms kernels into Winograd's matrices U, and gradients of U back into gradients of kernels.
//
// U = G g Gᵀ for each channel of a cell and each filter; point p of all of them forms the matrix U[p]. A
// kernel g lies in memory as [O, rows, columns, channels]. U is written in panels (matmul.h), of floats or,
// for bf16 products, of pairs along the dimension that the product sums over:
//   `transform_kernel`: U [points, depth, O], for the forward pass;
//   `transform_kernel_transposed`: U [points, O, depth], for the gradient of the input;
//   `untransform_kernel`: gradient of U [points, O, lanes] → gradient of the kernel.
// winograd.cpp calls them once per layer and minibatch; threads share out filters or channels.
#pragma once

#include <type_traits>

#include "../common/matmul.h"
#include "plan.h"

namespace {

// The place of a vector of weights, or of a single one.
struct WeightPlace {
    size_t offset;        // in the kernel, of the first of the cells' taps
    int filter, channel;  // row and column in a matrix [O, depth]
};

// Visits filters `first`, `first` + `each`, … below `last`, and all channels of a cell: calls
// `vector(place)` for whole vectors of channels and `single(place)` for the rest. It goes panel by panel,
// as the matrices of all points are written at the same time.
template <typename Vector, typename Single>
INLINE void for_weights(const Plan& p, int first, int last, int each, Vector vector, Single single) {
    const int segment = p.stride * p.channels, size = p.kernel_cells * p.stride;
    for (int part = 0; part < p.stride; ++part)
        for (int start = 0; start < segment; start += PANEL_WIDTH)
            for (int o = first; o < last; o += each) {
                const size_t tap = ((size_t)o * size + part) * size * p.channels;
                const int stop = std::min(start + PANEL_WIDTH, segment);
                int e = start;
                for (; e + VEC_FLOATS <= stop; e += VEC_FLOATS) vector({tap + e, o, part * segment + e});
                for (; e < stop; ++e) single({tap + e, o, part * segment + e});
            }
}

// Returns the distance in the kernel from cell (0, 0) to cell (i, j), for one and the same channel of a
// cell.
INLINE size_t tap_offset(const Plan& p, int i, int j) {
    const size_t segment = p.stride * p.channels;
    return i * p.stride * p.kernel_cells * segment + j * segment;
}

// Read and write a single float or a vector; the type of the last argument decides.
INLINE float read(const float* from, float) { return *from; }
INLINE Vec read(const float* from, Vec) { return load(from); }
INLINE void write(float* to, float value) { *to = value; }
INLINE void write(float* to, Vec value) { store(to, value); }

// Transposes floats: `to` [columns, rows] ← `from` [rows, columns].
void transpose(const float* from, int rows, int columns, float* to) {
    constexpr int TILE = 16;
    for (int i = 0; i < rows; i += TILE)
        for (int j = 0; j < columns; j += TILE)
            for (int a = i; a < std::min(i + TILE, rows); ++a)
                for (int b = j; b < std::min(j + TILE, columns); ++b)
                    to[(size_t)b * rows + a] = from[(size_t)a * columns + b];
}

// Transforms the R × R cells' taps of one channel (or a vector of them): x [T, T] = G (scale · taps) Gᵀ.
// Neighbouring values of the kernel are `spread` floats apart in `taps`.
template <int R, typename V, int T = Minimal<R>::T>
INLINE void transform_taps(const Plan& p, const float* taps, int spread, float scale, V (&x)[T][T]) {
    for (int i = 0; i < R; ++i)
        for (int j = 0; j < R; ++j) x[i][j] = scale * read(taps + tap_offset(p, i, j) * spread, V{});
    transform_2d<Minimal<R>::template kernel_to_points<V>>(x);
}

// Transforms `taps` and writes their points to `to`, `plane` elements apart. If Value is Bf16Pair, the
// points of `second` become the second values of the pairs, or zeros if it is null.
template <int R, typename V, typename Value>
INLINE void write_points(const Plan& p, const float* taps, const float* second, int spread, float scale,
                         Value* to, size_t plane) {
    constexpr int T = Minimal<R>::T;
    V x[T][T] = {}, y[T][T] = {};
    transform_taps<R>(p, taps, spread, scale, x);
    if (second) transform_taps<R>(p, second, spread, scale, y);
    for (int i = 0; i < T; ++i)
        for (int j = 0; j < T; ++j)
            if constexpr (std::is_same_v<Value, Bf16Pair>)
                store_pairs(to + (T * i + j) * plane, x[i][j], y[i][j]);
            else
                write(to + (T * i + j) * plane, x[i][j]);
}

// Fills rows [first, last), filters or pairs of filters, of `u_transposed` [points, O, depth] in panels
// from `kernel` [O, rows, columns, channels], multiplied by `scale`.
template <int R, typename Value>
void transform_kernel_transposed(const Plan& p, int first, int last, const float* kernel, float scale,
                                 Value* u_transposed) {
    const int rows = p.elements(p.out_channels);
    const auto transform = [&](auto width, WeightPlace at) {  // `width`: a float or a Vec
        const float* taps = kernel + at.offset;
        write_points<R, decltype(width)>(
            p, taps, p.bf16_products ? taps + p.taps() : nullptr, 1, scale,
            u_transposed + panel_offset(at.filter / p.pair_size, at.channel, rows, p.depth),
            plane_size(rows, p.depth));
    };
    for_weights(
        p, first * p.pair_size, last * p.pair_size, p.pair_size,
        [&](WeightPlace at) { transform(Vec{}, at); }, [&](WeightPlace at) { transform(0.0f, at); });
}

// Fills rows [first, last), channels of cells or pairs of them, of `u` [points, depth, O] in panels.
// `kernel` is the transposed one, [rows, columns, channels, O], so that vectors run over filters.
template <int R, typename Value>
void transform_kernel(const Plan& p, int first, int last, const float* kernel, float scale, Value* u) {
    const int segment = p.stride * p.channels, size = p.kernel_cells * p.stride, width = p.out_channels;
    const int rows = p.elements(p.depth);
    const auto taps_of = [=](int d) {
        return kernel + (size_t)(d / segment * size * p.channels + d % segment) * width;
    };
    for (int start = 0; start < width; start += PANEL_WIDTH)
        for (int row = first; row < last; ++row) {
            const int d = row * p.pair_size;
            const bool both = p.bf16_products && d + 1 < p.depth;
            for (int o = start; o < std::min(start + PANEL_WIDTH, width); o += VEC_FLOATS)
                write_points<R, Vec>(p, taps_of(d) + o, both ? taps_of(d + 1) + o : nullptr, width, scale,
                                     u + panel_offset(row, o, rows, width), plane_size(rows, width));
        }
}

// Computes the gradient of filters [first, last): dkernel [O, rows, columns, channels] = or, with `add`, +=
// scale · Gᵀ dU G, where dU [points, O, lanes] is the sum over threads of `du`, which lie `thread_stride`
// floats apart.
template <int R>
void untransform_kernel(const Plan& p, int first, int last, const float* du, size_t thread_stride,
                        int threads, float scale, bool add, float* dkernel) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_size(p.out_channels, p.lanes);
    const auto untransform = [&](auto width, WeightPlace at) {
        const size_t from = (size_t)at.filter * p.lanes + at.channel;
        decltype(width) x[T][T] = {};
        for (int thread = 0; thread < threads; ++thread)
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j)
                    x[i][j] += read(du + thread * thread_stride + (T * i + j) * plane + from, width);
        transform_2d<Minimal<R>::template points_to_kernel<decltype(width)>>(x);
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j) {
                float* to = dkernel + at.offset + tap_offset(p, i, j);
                write(to, add ? read(to, width) + scale * x[i][j] : scale * x[i][j]);
            }
    };
    for_weights(
        p, first, last, 1, [&](WeightPlace at) { untransform(Vec{}, at); },
        [&](WeightPlace at) { untransform(0.0f, at); });
}

}  // namespace
