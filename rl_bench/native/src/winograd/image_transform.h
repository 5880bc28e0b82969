// Transforms images into Winograd's matrices V, products into outputs, and the gradients of both back.
//
// V = Bᵀ d B for each tile d of T × T cells and each value of a cell; point p of all tiles of a block forms
// the matrix V[p] [rows, lanes]. Products Y [points, rows, O] become outputs Aᵀ Y A. Consecutive points'
// matrices are `plane_size` apart. The backward pass applies the transposes: outputs' gradients dY → A dY
// Aᵀ, and gradients of V → gradients of cells, which overlapping tiles add up. Vectors run over channels.
// layer.h calls these functions per image of a block, in one thread.
#pragma once

#include <type_traits>

#include "../common/bf16_pairs.h"
#include "plan.h"

namespace {

// Copies `count` values, a cell's run of channels. A call of memcpy would take longer than the few there
// are. `more` says that 4 values behind them may be read as well, and that their places in `to` are written
// later.
template <typename Pixel>
INLINE void copy(Pixel* to, const Pixel* from, int count, bool more) {
    if (count == 12) {  // RGB frames with a stride of 4; a constant size is inlined
        if (more)
            std::memcpy(to, from, 16 * sizeof(Pixel));  // 16 bytes are one instruction
        else
            std::memcpy(to, from, 12 * sizeof(Pixel));
        return;
    }
    int i = 0;
    for (; i + 4 <= count; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(Pixel));
    for (; i < count; ++i) to[i] = from[i];
}

// The cells under an image's tiles: in the image itself, or in a copy in which each cell's values are
// contiguous. Cells outside `top` … `right` are padding and count as zero; there is no memory for them.
template <typename Pixel>
struct Cells {
    Pixel* first;                  // the cell (top, left)
    ptrdiff_t down, across;        // from a cell to its neighbours
    ptrdiff_t run_stride;          // from one run of a cell's values to the next: a row of the image
    int runs, run;                 // the number of runs, and the values in each
    int top, bottom, left, right;  // which cells there are, counted from the first tile's corner
};

// Describes the cells of a float `image` that needs no copy.
template <typename Pixel>
INLINE Cells<Pixel> cells_of_image(const Plan& p, Pixel* image) {
    const ptrdiff_t row = (ptrdiff_t)p.width * p.channels, run = p.stride * p.channels;
    return {image, p.stride * row, run, row, p.stride, (int)run,
            p.padding, p.padding + p.image_rows, p.padding, p.padding + p.image_columns};
}

// Describes the cells of a copy, `grid` [grid_height, grid_width, lanes], which `gather` fills.
template <typename Pixel>
INLINE Cells<const Pixel> cells_of_grid(const Plan& p, const Pixel* grid) {
    return {grid, (ptrdiff_t)p.grid_width * p.lanes, p.lanes, 0, 1, p.lanes,
            0, p.grid_height, 0, p.grid_width};
}

// Copies the cells of `image` to `grid` [grid_height, grid_width, lanes], each with its values side by
// side. Padding and unused lanes are not written; the caller has set them to zero.
template <typename Pixel>
void gather(const Plan& p, const Pixel* image, Pixel* grid) {
    const int run = p.stride * p.channels;
    const size_t row = (size_t)p.width * p.channels, below = (size_t)p.grid_width * p.lanes;
    for (int i = 0; i < p.image_rows; ++i)
        for (int part = 0; part < p.stride; ++part) {
            const Pixel* from = image + (i * p.stride + part) * row;
            Pixel* to = grid + (i + p.padding) * below + p.padding * p.lanes + part * run;
            const bool more = part + 1 < p.stride;
            for (int j = 0; j < p.image_columns; ++j, from += run, to += p.lanes) copy(to, from, run, more);
        }
}

// Tiles [start, stop) of an image. They are rows `first_row` … of a block's matrices, which have `rows`
// rows.
struct TileRange {
    int start, stop, rows, first_row;
};

// The cells of a tile that exist, counted from its corner; the others are padding.
struct Present {
    int top, bottom, left, right;
    bool holds(int i, int j) const { return i >= top && i < bottom && j >= left && j < right; }
};

// Calls `tile(t, corner, present, edge)` for each tile of a range. `corner` is the address of its first
// cell, even where that is padding. `edge` is a compile-time boolean: whether some cells are padding.
template <int R, typename Pixel, typename Tile>
INLINE void for_tiles(const Plan& p, const TileRange& range, const Cells<Pixel>& cells, Tile tile) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    for (int t = range.start; t < range.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const Present present{cells.top - y, cells.bottom - y, cells.left - x, cells.right - x};
        Pixel* corner = cells.first - present.top * cells.down - present.left * cells.across;
        if (present.holds(0, 0) && present.holds(T - 1, T - 1))
            tile(t, corner, present, std::false_type{});
        else
            tile(t, corner, present, std::true_type{});
    }
}

// Transforms the tiles of one image: `v` [points, rows, lanes] = Bᵀ d B, rows `v_row` apart. RECTIFIED
// applies a ReLU to the cells first.
template <int R, bool RECTIFIED, typename Pixel, typename Value>
void transform_inputs(const Plan& p, const TileRange& range, const Cells<Pixel>& cells, Value* v) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_size(range.rows, p.v_row);
    const ptrdiff_t down = cells.down, across = cells.across;  // copies, known to be constant
    for_tiles<R>(p, range, cells, [=, &p](int t, const Pixel* corner, Present present, auto edge) {
        Value* to = v + (size_t)(range.first_row + t - range.start) * p.v_row;
        int at = 0;
        for (int run = 0; run < cells.runs; ++run)
            for (int c = 0; c < cells.run; c += VEC_FLOATS, at += VEC_FLOATS) {
                const Pixel* from = corner + run * cells.run_stride + c;
                Vec d[T][T];
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) {
                        d[i][j] = Vec{};
                        if (edge && !present.holds(i, j)) continue;
                        d[i][j] = load(from + i * down + j * across);
                        if (RECTIFIED) d[i][j] = where_positive(d[i][j], d[i][j]);
                    }
                transform_2d<Minimal<R>::inputs_to_points>(d);
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) store_operand(to + (T * i + j) * plane, at, d[i][j]);
            }
    });
}

// Adds to the gradient of an image, `cells`, what its tiles contribute: B dV Bᵀ of `dv` [points, rows,
// lanes], rows `dv_row` apart.
template <int R>
void untransform_inputs(const Plan& p, const TileRange& range, const float* dv, const Cells<float>& cells) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_size(range.rows, p.dv_row);
    const ptrdiff_t down = cells.down, across = cells.across;
    for_tiles<R>(p, range, cells, [=, &p](int t, float* corner, Present present, auto edge) {
        const float* from = dv + (size_t)(range.first_row + t - range.start) * p.dv_row;
        for (int run = 0; run < cells.runs; ++run)
            for (int c = 0; c < cells.run; c += VEC_FLOATS, from += VEC_FLOATS) {
                float* to = corner + run * cells.run_stride + c;
                Vec d[T][T];
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) d[i][j] = load(from + (T * i + j) * plane);
                transform_2d<Minimal<R>::points_to_inputs>(d);
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) {
                        if (edge && !present.holds(i, j)) continue;
                        float* cell = to + i * down + j * across;
                        store(cell, load(cell) + d[i][j]);
                    }
            }
    });
}

// Prefetches the M × M outputs of tile `t` in `image`, to be written if WRITE. A tile's pixels are far
// apart in memory, in which the CPU's own prefetching sees no pattern.
template <int R, bool WRITE>
INLINE void prefetch_outputs(const Plan& p, int t, const float* image) {
    constexpr int M = Minimal<R>::M;
    if (t >= p.tiles) return;
    const int y = t / p.across * M, x = t % p.across * M;
    const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
    for (int i = 0; i < high; ++i) {
        const float* row = image + ((size_t)(y + i) * p.out_width + x) * p.out_channels;
        for (int at = 0; at < wide * p.out_channels; at += 16) __builtin_prefetch(row + at, WRITE);
    }
}

// Computes the outputs of a range of tiles: `image` [out_height, out_width, O] = Aᵀ Y A + bias, with
// `products` Y [points, rows, O]. Adds `residual` [out_height, out_width, O] unless it is null, and applies
// a ReLU if `relu`.
template <int R>
void transform_outputs(const Plan& p, const TileRange& range, const float* products, const float* bias,
                       bool relu, const float* residual, float* image) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const int width = p.out_channels;
    const size_t plane = plane_size(range.rows, width);
    for (int t = range.start; t < range.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const float* from = products + (size_t)(range.first_row + t - range.start) * width;
        prefetch_outputs<R, true>(p, t + 2, image);
        if (residual) prefetch_outputs<R, false>(p, t + 2, residual);
        const size_t place = ((size_t)y * p.out_width + x) * width;
        for (int o = 0; o < width; o += VEC_FLOATS) {
            Vec d[T][T];
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) d[i][j] = load(from + (T * i + j) * plane + o);
            transform_2d<Minimal<R>::points_to_outputs>(d);
            const Vec shift = load(bias + o);
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < M; ++j) {
                    if (i >= high || j >= wide) continue;
                    const size_t at = place + ((size_t)i * p.out_width + j) * width + o;
                    Vec value = d[i][j] + shift;
                    if (residual) value += load(residual + at);
                    if (relu) value = where_positive(value, value);
                    store(image + at, value);
                }
        }
    }
}

// Applies the gradient of a ReLU: sets `gradient` [count] to 0 where `values`, its input or its output, are
// 0 or below.
INLINE void relu_gradient(const float* values, float* gradient, size_t count) {
    for (size_t i = 0; i < count; i += VEC_FLOATS)
        store(gradient + i, where_positive(load(values + i), load(gradient + i)));
}

// Multiplies `values` [count] by `factor`.
INLINE void scale(float factor, size_t count, float* values) {
    for (size_t i = 0; i < count; ++i) values[i] *= factor;
}

// Adds `values` to `sums`, [count] each; count is a multiple of VEC_FLOATS.
INLINE void add(const float* values, float* sums, size_t count) {
    for (size_t i = 0; i < count; i += VEC_FLOATS) store(sums + i, load(sums + i) + load(values + i));
}

// Computes the gradient of the products of a range of tiles, `dproducts` [points, rows, O] = A dy Aᵀ, from
// `gradient` [out_height, out_width, O] of an image's outputs, and adds it up into `dbias` [O].
// `activated`, null without a ReLU, holds the outputs behind it; the gradient counts where they are
// positive.
template <int R, typename Value>
void untransform_outputs(const Plan& p, const TileRange& range, const float* gradient,
                         const float* activated, Value* dproducts, float* dbias) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const int width = p.out_channels;
    const size_t plane = plane_size(range.rows, p.elements(width));
    for (int t = range.start; t < range.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const size_t place = ((size_t)y * p.out_width + x) * width;
        prefetch_outputs<R, false>(p, t + 2, gradient);
        if (activated) prefetch_outputs<R, false>(p, t + 2, activated);
        Value* to = dproducts + (size_t)(range.first_row + t - range.start) * p.elements(width);
        for (int o = 0; o < width; o += VEC_FLOATS) {
            Vec d[T][T] = {}, sum = load(dbias + o);
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < M; ++j) {
                    if (i >= high || j >= wide) continue;
                    const size_t at = place + ((size_t)i * p.out_width + j) * width + o;
                    d[i][j] = load(gradient + at);
                    if (activated) d[i][j] = where_positive(load(activated + at), d[i][j]);
                    sum += d[i][j];
                }
            store(dbias + o, sum);
            transform_2d<Minimal<R>::outputs_to_points>(d);
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) store_operand(to + (T * i + j) * plane, o, d[i][j]);
        }
    }
}

}  // namespace
