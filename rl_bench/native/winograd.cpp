// Convolutions of channels-last images in float32, by Winograd's minimal filtering in 4 × 4 tiles.
//
// A kernel of r × r gives m × m outputs of each 4 × 4 inputs, m = 5 - r, with 16 products per pair of
// channels instead of m² r²: 2.25 times fewer for r = 2 and 3 alike. A strided convolution becomes one of
// stride 1 by taking `step` × `step` pixels for one cell with step² times the channels. The points are
// 0, 1, -1 and infinity, so that transforms are additions. Source: Lavin and Gray 2016, "Fast algorithms
// for convolutional neural networks" (arXiv 1509.09308); the gradients are the transposed transforms.
//
// Works on as many tiles at a time as fit in the cache of a core, of several images or of a part of one.
// U [16, cells' channels, O] is the transformed kernel, which lies in memory as O, rows, columns, channels.

#include <algorithm>

#include "matmul.h"

struct Geometry {
    int32_t images, height, width, channels;  // of the input [images, height, width, channels]
    int32_t step, padding, kernel;            // kernel in cells, 2 or 3
    int32_t out_height, out_width, out_channels;
    int32_t bytes;  // whether the input is uint8 instead of float; pixels then count as bytes / 255
    int32_t threads;
};

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

// What follows from the geometry. Cells are the pixels of the convolution of stride 1.
struct Plan : Geometry {
    int made, down, across, tiles;        // outputs per tile and side; tiles per image
    int depth, lanes;                     // a cell's channels, and those in whole vectors
    int grid_height, grid_width;          // cells under the tiles
    int block, chunk;                     // images at a time, and tiles of each
    bool direct;                          // whether the input itself is the grid
    bool bordered;                        // whether pixels leave a part of the grid free

    explicit Plan(const Geometry& given) : Geometry(given) {
        made = 5 - kernel;
        down = ceil_div(out_height, made), across = ceil_div(out_width, made);
        tiles = down * across;
        depth = step * step * channels, lanes = ceil_div(depth, W) * W;
        grid_height = down * made + kernel - 1, grid_width = across * made + kernel - 1;
        direct = step == 1 && padding == 0 && !bytes && lanes == depth && grid_height == height &&
                 grid_width == width;
        bordered = padding > 0 || lanes != depth || height / step < grid_height ||
                   width / step < grid_width;
        // Enough rows for the products that U is worth fetching, few enough to stay in the cache.
        block = std::clamp(96 / tiles, 1, std::clamp(images / std::max(threads, 1), 1, 32));
        chunk = block > 1 ? tiles : ceil_div(tiles, ceil_div(tiles, 96));
    }
    size_t image() const { return (size_t)height * width * channels; }
    size_t grid() const { return (size_t)grid_height * grid_width * lanes; }
    size_t out_image() const { return (size_t)out_height * out_width * out_channels; }
    size_t inputs() const { return (size_t)16 * block * chunk * lanes; }
    size_t outputs() const { return (size_t)16 * block * chunk * out_channels; }
    size_t weights() const { return (size_t)16 * lanes * out_channels; }
};

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

// Kernel → U with its last two axes exchanged, [16, O, depth].
template <int R>
void transform_kernel(const Plan& p, const float* kernel, float scale, float* u_transposed) {
    const size_t plane = (size_t)p.out_channels * p.depth;
    auto some = [&](auto kind, size_t tap, size_t place) {
        decltype(kind) x[4][4] = {};
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j)
                x[i][j] = scale * loaded(kernel + tap + tap_at(p, i, j), kind);
        both_ways<into_kernel<R, decltype(kind)>>(x);
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) stored(u_transposed + (4 * i + j) * plane + place, x[i][j]);
    };
    along_kernel(
        p, p.depth, [&](size_t tap, size_t place) { some(Vec{}, tap, place); },
        [&](size_t tap, size_t place) { some(0.0f, tap, place); });
}

// The transpose: gradient of U, as [16, O, lanes] → gradient of the kernel.
template <int R>
void untransform_kernel(const Plan& p, const float* du_transposed, float scale, float* dkernel) {
    const size_t plane = (size_t)p.out_channels * p.lanes;
    auto some = [&](auto kind, size_t tap, size_t place) {
        decltype(kind) x[4][4];
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j)
                x[i][j] = loaded(du_transposed + (4 * i + j) * plane + place, kind);
        both_ways<from_kernel<R, decltype(kind)>>(x);
        for (int i = 0; i < R; ++i)
            for (int j = 0; j < R; ++j)
                stored(dkernel + tap + tap_at(p, i, j), scale * x[i][j]);
    };
    along_kernel(
        p, p.lanes, [&](size_t tap, size_t place) { some(Vec{}, tap, place); },
        [&](size_t tap, size_t place) { some(0.0f, tap, place); });
}

// [16, rows, columns] → [16, columns, rows].
void exchange(const float* from, int rows, int columns, float* to) {
    constexpr int TILE = 16;
    for (int k = 0; k < 16; ++k, from += rows * columns, to += rows * columns)
        for (int i = 0; i < rows; i += TILE)
            for (int j = 0; j < columns; j += TILE)
                for (int a = i; a < std::min(i + TILE, rows); ++a)
                    for (int b = j; b < std::min(j + TILE, columns); ++b)
                        to[b * rows + a] = from[a * columns + b];
}

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
    int i = 0;
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

// Some tiles of an image, and where they lie in matrices of [16, rows, …].
struct Part {
    int start, stop, rows, first;
};

// The tiles of one image's cells, transformed, into V [16, rows, lanes].
void transform_inputs(const Plan& p, const Part& part, const float* grid, float* v) {
    const size_t plane = (size_t)part.rows * p.lanes, below = (size_t)p.grid_width * p.lanes;
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * p.made, x = t % p.across * p.made;
        const float* from = grid + y * below + (size_t)x * p.lanes;
        float* to = v + (size_t)(part.first + t - part.start) * p.lanes;
        for (int c = 0; c < p.lanes; c += W) {
            Vec d[4][4];
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) d[i][j] = load(from + i * below + j * p.lanes + c);
            both_ways<into_inputs>(d);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * plane + c, d[i][j]);
        }
    }
}

// The transpose: adds what the tiles say about each cell.
void untransform_inputs(const Plan& p, const Part& part, const float* v, float* grid) {
    const size_t plane = (size_t)part.rows * p.lanes, below = (size_t)p.grid_width * p.lanes;
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * p.made, x = t % p.across * p.made;
        float* to = grid + y * below + (size_t)x * p.lanes;
        const float* from = v + (size_t)(part.first + t - part.start) * p.lanes;
        for (int c = 0; c < p.lanes; c += W) {
            Vec d[4][4];
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) d[i][j] = load(from + (4 * i + j) * plane + c);
            both_ways<from_inputs>(d);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) {
                    float* cell = to + i * below + j * p.lanes + c;
                    store(cell, load(cell) + d[i][j]);
                }
        }
    }
}

// Products [16, rows, O] → outputs of one image, with bias and ReLU.
template <int M>
void transform_outputs(const Plan& p, const Part& part, const float* products, const float* bias,
                       bool relu, float* image) {
    const int width = p.out_channels;
    const size_t plane = (size_t)part.rows * width;
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const float* from = products + (size_t)(part.first + t - part.start) * width;
        float* to = image + ((size_t)y * p.out_width + x) * width;
        for (int o = 0; o < width; o += W) {
            Vec d[4][4];
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) d[i][j] = load(from + (4 * i + j) * plane + o);
            both_ways<from_outputs<M>>(d);
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
template <int M>
void untransform_outputs(const Plan& p, const Part& part, const float* gradient,
                         const float* activated, float* products, float* bias) {
    const int width = p.out_channels;
    const size_t plane = (size_t)part.rows * width;
    for (int t = part.start; t < part.stop; ++t) {
        const int y = t / p.across * M, x = t % p.across * M;
        const int high = std::min(M, p.out_height - y), wide = std::min(M, p.out_width - x);
        const size_t place = ((size_t)y * p.out_width + x) * width;
        float* to = products + (size_t)(part.first + t - part.start) * width;
        for (int o = 0; o < width; o += W) {
            Vec d[4][4] = {}, sum = load(bias + o);
            for (int i = 0; i < M; ++i)
                for (int j = 0; j < M; ++j) {
                    if (i >= high || j >= wide) continue;
                    const size_t at = place + ((size_t)i * p.out_width + j) * width + o;
                    d[i][j] = load(gradient + at);
                    if (activated) d[i][j] = where_positive(load(activated + at), d[i][j]);
                    sum += d[i][j];
                }
            store(bias + o, sum);
            both_ways<into_outputs<M>>(d);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * plane + o, d[i][j]);
        }
    }
}

thread_local Scratch grids, gradient_grids, rows_of_pixels, inputs, products;
thread_local Scratch weight_gradients, bias_gradients;

// Calls for each image of a block with its part, a chunk of its tiles.
template <typename Image>
INLINE void for_images(const Plan& p, int start, int stop, int tile, Image image) {
    const int last = std::min(tile + p.chunk, p.tiles), count = last - tile;
    for (int n = start; n < stop; ++n)
        image(n, Part{tile, last, (stop - start) * count, (n - start) * count});
}

// The cells of an image: the image itself, or a copy that lasts until the next one.
const float* cells_of(const Plan& p, const void* images, int n) {
    const auto* floats = static_cast<const float*>(images) + n * p.image();
    if (p.direct) return floats;
    float* cells = grids.of(p.grid());
    if (p.bordered) std::fill(cells, cells + p.grid(), 0.0f);
    if (p.bytes)
        gather(p, static_cast<const uint8_t*>(images) + n * p.image(), cells,
               rows_of_pixels.of(p.width * p.channels));
    else
        gather(p, floats, cells, nullptr);
    return cells;
}

// V of a chunk of the images from `start` to `stop`, in the thread's own memory.
float* inputs_of(const Plan& p, const void* images, int start, int stop, int tile) {
    float* v = inputs.of(p.inputs());
    for_images(p, start, stop, tile, [&](int n, const Part& part) {
        // Chunks of one image share its copy; a block of several has one chunk of each.
        const bool kept = tile > 0 && !p.direct;
        const float* cells = kept ? grids.of(p.grid()) : cells_of(p, images, n);
        transform_inputs(p, part, cells, v);
    });
    return v;
}

// Calls for each block and chunk, shared among threads, each of which calls `begin` first.
template <typename Begin, typename Block>
void for_blocks(const Plan& p, Begin begin, Block block) {
    const int blocks = ceil_div(p.images, p.block);
    auto some = [&](int first, int last, int thread) {
        begin(thread);
        for (int b = first; b < last; ++b)
            for (int tile = 0; tile < p.tiles; tile += p.chunk)
                block(b * p.block, std::min((b + 1) * p.block, p.images), tile, thread);
    };
    if (p.threads == 1) {
        some(0, blocks, 0);
        return;
    }
    // Without a clause for their number: with one, GNU's OpenMP ends and starts threads where it changes.
#pragma omp parallel for schedule(static, 1)
    for (int thread = 0; thread < p.threads; ++thread)
        some(blocks * thread / p.threads, blocks * (thread + 1) / p.threads, thread);
}

template <int M>
void forward(const Plan& p, const void* images, const float* u, const float* bias, bool relu,
             float* out) {
    for_blocks(p, [](int) {}, [&](int start, int stop, int tile, int) {
        const float* v = inputs_of(p, images, start, stop, tile);
        float* y = products.of(p.outputs());
        const int rows = (stop - start) * (std::min(tile + p.chunk, p.tiles) - tile);
        for (int k = 0; k < 16; ++k)
            matmul(rows, p.out_channels, p.depth, v + (size_t)k * rows * p.lanes, p.lanes, 1,
                   u + (size_t)k * p.depth * p.out_channels,
                   y + (size_t)k * rows * p.out_channels, false);
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            transform_outputs<M>(p, part, y, bias, relu, out + n * p.out_image());
        });
    });
}

template <int M>
void backward(const Plan& p, const float* gradient, const float* activated, const void* images,
              const float* u_transposed, float* du_transposed, float* dbias, float* dimages) {
    const auto begin = [&](int thread) {
        std::fill_n(du_transposed + thread * p.weights(), p.weights(), 0.0f);
        std::fill_n(dbias + thread * p.out_channels, p.out_channels, 0.0f);
    };
    for_blocks(p, begin, [&](int start, int stop, int tile, int thread) {
        const int width = p.out_channels;
        const int rows = (stop - start) * (std::min(tile + p.chunk, p.tiles) - tile);
        const float* v = inputs_of(p, images, start, stop, tile);
        float* dy = products.of(p.outputs());
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            const size_t at = n * p.out_image();
            untransform_outputs<M>(p, part, gradient + at, activated ? activated + at : nullptr,
                                   dy, dbias + thread * width);
        });
        for (int k = 0; k < 16; ++k)
            matmul(width, p.lanes, rows, dy + (size_t)k * rows * width, 1, width,
                   v + (size_t)k * rows * p.lanes,
                   du_transposed + thread * p.weights() + (size_t)k * width * p.lanes, true);
        if (!dimages) return;
        float* dv = inputs.of(p.inputs());  // V is not needed any more
        for (int k = 0; k < 16; ++k)
            matmul(rows, p.depth, width, dy + (size_t)k * rows * width, width, 1,
                   u_transposed + (size_t)k * width * p.depth,
                   dv + (size_t)k * rows * p.depth, false);
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            float* image = dimages + n * p.image();
            float* grid = p.direct ? image : gradient_grids.of(p.grid());
            if (tile == 0) std::fill(grid, grid + p.grid(), 0.0f);
            untransform_inputs(p, part, dv, grid);
            if (!p.direct && part.stop == p.tiles) scatter(p, grid, image);
        });
    });
    for (int thread = 1; thread < p.threads; ++thread)
        for (int o = 0; o < p.out_channels; ++o) dbias[o] += dbias[thread * p.out_channels + o];
    if (p.threads == 1) return;
    const int64_t count = p.weights();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i)
        for (int thread = 1; thread < p.threads; ++thread)
            du_transposed[i] += du_transposed[thread * count + i];
}

INLINE float scale_of(const Plan& p) { return p.bytes ? 1.0f / 255.0f : 1.0f; }

}  // namespace

// U [16, depth, O] of a kernel, and the same as [16, O, depth], which gradients of images need.
extern "C" void winograd_kernel(const Geometry* geometry, const float* kernel, float* u,
                                float* u_transposed) {
    const Plan p(*geometry);
    (p.kernel == 2 ? transform_kernel<2> : transform_kernel<3>)(p, kernel, scale_of(p),
                                                                u_transposed);
    exchange(u_transposed, p.out_channels, p.depth, u);
}

// out [images, out_height, out_width, O] of U and bias [O].
extern "C" void winograd_forward(const Geometry* geometry, const void* images, const float* u,
                                 const float* bias, int32_t relu, float* out) {
    const Plan p(*geometry);
    (p.kernel == 2 ? forward<3> : forward<2>)(p, images, u, bias, relu, out);
}

// Gradients of kernel and bias and, unless null, of the images.
extern "C" void winograd_backward(const Geometry* geometry, const float* gradient,
                                  const float* activated, const void* images,
                                  const float* u_transposed, float* dkernel, float* dbias,
                                  float* dimages) {
    const Plan p(*geometry);
    float* du_transposed = weight_gradients.of(p.threads * p.weights());
    float* biases = bias_gradients.of((size_t)p.threads * p.out_channels);
    (p.kernel == 2 ? backward<3> : backward<2>)(p, gradient, activated, images, u_transposed,
                                                du_transposed, biases, dimages);
    std::copy(biases, biases + p.out_channels, dbias);
    (p.kernel == 2 ? untransform_kernel<2> : untransform_kernel<3>)(p, du_transposed, scale_of(p),
                                                                    dkernel);
}
