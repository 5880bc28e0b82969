// Images of a convolution in the form that products want, its outputs, and the way back for gradients.
#pragma once

#include <type_traits>

#include "geometry.h"
#include "pairs.h"

namespace {

// A call of memcpy would take longer than these few channels. `more` says that a few behind them can be read, and
// where they go is written later.
template <typename Pixel>
INLINE void copy(Pixel* to, const Pixel* from, int count, bool more) {
    if (count == 12) {  // frames in colour with a stride of 4; of a size that is known
        if (more)
            std::memcpy(to, from, 16 * sizeof(Pixel));  // bytes in one piece
        else
            std::memcpy(to, from, 12 * sizeof(Pixel));
        return;
    }
    int i = 0;
    for (; i + 4 <= count; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(Pixel));
    for (; i < count; ++i) to[i] = from[i];
}

// The cells under the tiles: pixels of the image itself, or of a copy in which each cell lies by itself.
template <typename Pixel>
struct Cells {
    Pixel* first;              // the first that pixels fill
    ptrdiff_t down, across;    // from a cell to its neighbours
    ptrdiff_t part;            // from one run of a cell's channels to the next
    int parts, run;            // how many runs, and of how many channels
    int top, bottom, left, right;  // which cells there are; the others are zero
};

// Those of a float image that need no copy.
template <typename Pixel>
INLINE Cells<Pixel> cells_within(const Plan& p, Pixel* image) {
    const ptrdiff_t row = (ptrdiff_t)p.width * p.channels, run = p.step * p.channels;
    return {image, p.step * row, run, row, p.step, (int)run,
            p.padding, p.padding + p.above, p.padding, p.padding + p.beside};
}

// Those of a copy, which `gather` fills.
template <typename Pixel>
INLINE Cells<const Pixel> cells_apart(const Plan& p, const Pixel* grid) {
    return {grid, (ptrdiff_t)p.grid_width * p.lanes, p.lanes, 0, 1, p.lanes,
            0, p.grid_height, 0, p.grid_width};
}

// Fills a copy for the other images, in which a cell's few channels lie side by side, and which is zero.
template <typename Pixel>
void gather(const Plan& p, const Pixel* image, Pixel* grid) {
    const int run = p.step * p.channels;
    const size_t row = (size_t)p.width * p.channels, below = (size_t)p.grid_width * p.lanes;
    for (int i = 0; i < p.above; ++i)
        for (int part = 0; part < p.step; ++part) {
            const Pixel* from = image + (i * p.step + part) * row;
            Pixel* to = grid + (i + p.padding) * below + p.padding * p.lanes + part * run;
            const bool more = part + 1 < p.step;
            for (int j = 0; j < p.beside; ++j, from += run, to += p.lanes) copy(to, from, run, more);
        }
}

// Some tiles of an image, and where they lie in matrices of [points, rows, …].
struct Part {
    int start, stop, rows, first;
};

// Which of a tile's cells there are, counted from its corner.
struct Present {
    int top, bottom, left, right;
    bool holds(int i, int j) const { return i >= top && i < bottom && j >= left && j < right; }
};

// Calls `tile(t, corner, present, edge)` for tiles; `edge` says whether cells are missing.
template <int R, typename Pixel, typename Tile>
INLINE void for_tiles(const Plan& p, const Part& part, const Cells<Pixel>& cells, Tile tile) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const Present present{cells.top - y, cells.bottom - y, cells.left - x, cells.right - x};
        Pixel* corner = cells.first - present.top * cells.down - present.left * cells.across;
        if (present.holds(0, 0) && present.holds(T - 1, T - 1))
            tile(t, corner, present, std::false_type{});
        else
            tile(t, corner, present, std::true_type{});
    }
}

// The tiles of one image's cells, transformed, into V [points, rows, lanes], rows `row` apart.
template <int R, bool RECTIFIED, typename Pixel, typename Value>
void transform_inputs(const Plan& p, const Part& part, const Cells<Pixel>& cells, Value* v) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_of(part.rows, p.row);
    const ptrdiff_t down = cells.down, across = cells.across;  // known not to change
    for_tiles<R>(p, part, cells, [=, &p](int t, const Pixel* corner, Present present, auto edge) {
        Value* to = v + (size_t)(part.first + t - part.start) * p.row;
        int at = 0;
        for (int run = 0; run < cells.parts; ++run)
            for (int c = 0; c < cells.run; c += W, at += W) {
                const Pixel* from = corner + run * cells.part + c;
                Vec d[T][T];
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) {
                        d[i][j] = Vec{};
                        if (edge && !present.holds(i, j)) continue;
                        d[i][j] = load(from + i * down + j * across);
                        if (RECTIFIED) d[i][j] = where_positive(d[i][j], d[i][j]);
                    }
                both_ways<Minimal<R>::into_inputs>(d);
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) put(to + (T * i + j) * plane, at, d[i][j]);
            }
    });
}

// The transpose: adds what the tiles say about each cell.
template <int R>
void untransform_inputs(const Plan& p, const Part& part, const float* v,
                        const Cells<float>& cells) {
    constexpr int T = Minimal<R>::T;
    const size_t plane = plane_of(part.rows, p.drow);
    const ptrdiff_t down = cells.down, across = cells.across;
    for_tiles<R>(p, part, cells, [=, &p](int t, float* corner, Present present, auto edge) {
        const float* from = v + (size_t)(part.first + t - part.start) * p.drow;
        for (int run = 0; run < cells.parts; ++run)
            for (int c = 0; c < cells.run; c += W, from += W) {
                float* to = corner + run * cells.part + c;
                Vec d[T][T];
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) d[i][j] = load(from + (T * i + j) * plane);
                both_ways<Minimal<R>::from_inputs>(d);
                for (int i = 0; i < T; ++i)
                    for (int j = 0; j < T; ++j) {
                        if (edge && !present.holds(i, j)) continue;
                        float* cell = to + i * down + j * across;
                        store(cell, load(cell) + d[i][j]);
                    }
            }
    });
}

// Fetches the outputs of a tile before they are wanted: its pixels lie apart, in which the CPU's own
// prefetching sees no pattern.
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

// Products [points, rows, O] → outputs of one image, with bias, ReLU and, unless null, what is to be added.
template <int R>
void transform_outputs(const Plan& p, const Part& part, const float* products, const float* bias,
                       bool relu, const float* added, float* image) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const int width = p.out_channels;
    const size_t plane = plane_of(part.rows, width);
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const float* from = products + (size_t)(part.first + t - part.start) * width;
        prefetch_outputs<R, true>(p, t + 2, image);
        if (added) prefetch_outputs<R, false>(p, t + 2, added);
        const size_t place = ((size_t)y * p.out_width + x) * width;
        for (int o = 0; o < width; o += W) {
            Vec d[T][T];
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) d[i][j] = load(from + (T * i + j) * plane + o);
            both_ways<Minimal<R>::from_outputs>(d);
            const Vec shift = load(bias + o);
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < M; ++j) {
                    if (i >= high || j >= wide) continue;
                    const size_t at = place + ((size_t)i * p.out_width + j) * width + o;
                    Vec value = d[i][j] + shift;
                    if (added) value += load(added + at);
                    if (relu) value = where_positive(value, value);
                    store(image + at, value);
                }
        }
    }
}

// The gradient behind a ReLU of `values` → that before it.
INLINE void rectify(const float* values, float* gradient, size_t count) {
    for (size_t i = 0; i < count; i += W)
        store(gradient + i, where_positive(load(values + i), load(gradient + i)));
}

INLINE void scale(float factor, size_t count, float* values) {
    for (size_t i = 0; i < count; ++i) values[i] *= factor;
}

INLINE void add(const float* values, float* sums, size_t count) {
    for (size_t i = 0; i < count; i += W) store(sums + i, load(sums + i) + load(values + i));
}

// The gradient of one image's outputs → that of its products; adds up the bias's. `activated` holds
// the outputs where a ReLU came behind, else it is null.
template <int R, typename Value>
void untransform_outputs(const Plan& p, const Part& part, const float* gradient,
                         const float* activated, Value* products, float* bias) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const int width = p.out_channels;
    const size_t plane = plane_of(part.rows, p.sums_of(width));
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const size_t place = ((size_t)y * p.out_width + x) * width;
        prefetch_outputs<R, false>(p, t + 2, gradient);
        if (activated) prefetch_outputs<R, false>(p, t + 2, activated);
        Value* to = products + (size_t)(part.first + t - part.start) * p.sums_of(width);
        for (int o = 0; o < width; o += W) {
            Vec d[T][T] = {}, sum = load(bias + o);
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < M; ++j) {
                    if (i >= high || j >= wide) continue;
                    const size_t at = place + ((size_t)i * p.out_width + j) * width + o;
                    d[i][j] = load(gradient + at);
                    if (activated) d[i][j] = where_positive(load(activated + at), d[i][j]);
                    sum += d[i][j];
                }
            store(bias + o, sum);
            both_ways<Minimal<R>::into_outputs>(d);
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) put(to + (T * i + j) * plane, o, d[i][j]);
        }
    }
}

}  // namespace
