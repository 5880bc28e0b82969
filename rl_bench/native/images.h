// Images of a convolution in the form that products want, its outputs, and the way back for gradients.
#pragma once

#include "geometry.h"

namespace {

// A row of pixels that lies within the cells: `segment` floats of each cell, one cell after the other.
struct Row {
    float* cells;
    int first, count, segment;
};

INLINE Row row_of_cells(const Plan& p, float* grid, int y) {
    const int padded = y + p.padding, i = padded / p.step, part = padded % p.step;
    const int segment = p.step * p.channels;
    // Beyond the last tile nothing is looked at.
    if (i >= p.grid_height) return {nullptr, 0, 0, segment};
    float* cells = grid + (size_t)i * p.grid_width * p.lanes + part * segment;
    return {cells, p.padding, std::min(p.width / p.step, p.grid_width - p.padding), segment};
}

// A call of memcpy would take longer than these few floats.
INLINE void copy(float* to, const float* from, int count) {
    if (count == 12) {  // frames in colour with a stride of 4; of a size that is known
        std::memcpy(to, from, 12 * sizeof(float));
        return;
    }
    int i = 0;
    for (; i + W <= count; i += W) store(to + i, load(from + i));
    for (; i + 4 <= count; i += 4) std::memcpy(to + i, from + i, 4 * sizeof(float));
    for (; i < count; ++i) to[i] = from[i];
}

// One image as cells, zero around it; `pixels` holds a row.
template <typename Pixel>
void gather(const Plan& p, const Pixel* image, float* grid, float* pixels) {
    const int row_size = p.width * p.channels;
    for (int y = 0; y < p.height; ++y, image += row_size) {
        Row row = row_of_cells(p, grid, y);
        if (!row.cells) break;
        const float* from;
        if constexpr (sizeof(Pixel) == 1) {
            for (int x = 0; x < row_size; ++x) pixels[x] = image[x];
            from = pixels;
        } else {
            from = image;
        }
        for (int j = 0; j < row.count; ++j)
            copy(row.cells + (size_t)(row.first + j) * p.lanes, from + j * row.segment,
                 row.segment);
    }
}

// The other way round, for gradients.
void scatter(const Plan& p, float* grid, float* image) {
    const int row_size = p.width * p.channels;
    for (int y = 0; y < p.height; ++y, image += row_size) {
        Row row = row_of_cells(p, grid, y);
        const int covered = row.cells ? row.count * row.segment : 0;
        for (int j = 0; j < (row.cells ? row.count : 0); ++j)
            copy(image + j * row.segment, row.cells + (size_t)(row.first + j) * p.lanes,
                 row.segment);
        std::fill(image + covered, image + row_size, 0.0f);
    }
}

// Some tiles of an image, and where they lie in matrices of [points, rows, …].
struct Part {
    int start, stop, rows, first;
};

// The tiles of one image's cells, transformed, into V [points, rows, lanes].
template <int R>
void transform_inputs(const Plan& p, const Part& part, const float* grid, float* v) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const size_t plane = plane_of(part.rows, p.lanes), below = (size_t)p.grid_width * p.lanes;
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const float* from = grid + y * below + (size_t)x * p.lanes;
        float* to = v + (size_t)(part.first + t - part.start) * p.lanes;
        for (int c = 0; c < p.lanes; c += W) {
            Vec d[T][T];
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) d[i][j] = load(from + i * below + j * p.lanes + c);
            both_ways<Minimal<R>::into_inputs>(d);
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) store(to + (T * i + j) * plane + c, d[i][j]);
        }
    }
}

// The transpose: adds what the tiles say about each cell.
template <int R>
void untransform_inputs(const Plan& p, const Part& part, const float* v, float* grid) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const size_t plane = plane_of(part.rows, p.lanes), below = (size_t)p.grid_width * p.lanes;
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        float* to = grid + y * below + (size_t)x * p.lanes;
        const float* from = v + (size_t)(part.first + t - part.start) * p.lanes;
        for (int c = 0; c < p.lanes; c += W) {
            Vec d[T][T];
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) d[i][j] = load(from + (T * i + j) * plane + c);
            both_ways<Minimal<R>::from_inputs>(d);
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) {
                    float* cell = to + i * below + j * p.lanes + c;
                    store(cell, load(cell) + d[i][j]);
                }
        }
    }
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

// Products [points, rows, O] → outputs of one image, with bias and ReLU.
template <int R>
void transform_outputs(const Plan& p, const Part& part, const float* products, const float* bias,
                       bool relu, float* image) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const int width = p.out_channels;
    const size_t plane = plane_of(part.rows, width);
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const float* from = products + (size_t)(part.first + t - part.start) * width;
        prefetch_outputs<R, true>(p, t + 2, image);
        float* to = image + ((size_t)y * p.out_width + x) * width;
        for (int o = 0; o < width; o += W) {
            Vec d[T][T];
            for (int i = 0; i < T; ++i)
                for (int j = 0; j < T; ++j) d[i][j] = load(from + (T * i + j) * plane + o);
            both_ways<Minimal<R>::from_outputs>(d);
            const Vec shift = load(bias + o);
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < M; ++j) {
                    Vec value = d[i][j] + shift;
                    if (relu) value = where_positive(value, value);
                    if (i < high && j < wide)
                        store(to + ((size_t)i * p.out_width + j) * width + o, value);
                }
        }
    }
}

// The gradient of one image's outputs → that of its products; adds up the bias's. `activated` holds
// the outputs where a ReLU came behind, else it is null.
template <int R>
void untransform_outputs(const Plan& p, const Part& part, const float* gradient,
                         const float* activated, float* products, float* bias) {
    constexpr int T = Minimal<R>::T, M = Minimal<R>::M;
    const int width = p.out_channels;
    const size_t plane = plane_of(part.rows, width);
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const size_t place = ((size_t)y * p.out_width + x) * width;
        prefetch_outputs<R, false>(p, t + 2, gradient);
        if (activated) prefetch_outputs<R, false>(p, t + 2, activated);
        float* to = products + (size_t)(part.first + t - part.start) * width;
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
                for (int j = 0; j < T; ++j) store(to + (T * i + j) * plane + o, d[i][j]);
        }
    }
}

}  // namespace
