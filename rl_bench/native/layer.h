// One convolution of some images, by one thread and in its own memory.
#pragma once

#include "images.h"
#include "matmul.h"
#include "pool.h"

namespace {

thread_local Scratch<uint8_t> byte_grids;
thread_local Scratch<float> grids;
thread_local Scratch<float> inputs, products;  // or pairs, as large
thread_local Scratch<Pair> paired_inputs, paired_products;
thread_local Scratch<float> unpooled;  // outputs before a max-pool, or gradients of outputs, of a few images

// Calls `block(start, stop, tile)` for some images at a time, or for some tiles of one.
template <typename Block>
INLINE void for_blocks(const Plan& p, int images, Block block) {
    const int blocks = ceil_div(images, p.block);  // of nearly equal size
    for (int b = 0; b < blocks; ++b)
        for (int tile = 0; tile < p.tiles; tile += p.chunk)
            block(begin_of(b, blocks, images), begin_of(b + 1, blocks, images), tile);
}

// Tiles of a block: the rows of its matrices.
INLINE int rows_of(const Plan& p, int start, int stop, int tile) {
    return (stop - start) * (std::min(tile + p.chunk, p.tiles) - tile);
}

// Calls for each image of a block with its part, a chunk of its tiles.
template <typename Image>
INLINE void for_images(const Plan& p, int start, int stop, int tile, Image image) {
    const int rows = rows_of(p, start, stop, tile), each = rows_of(p, 0, 1, tile);
    for (int n = start; n < stop; ++n)
        image(n, Part{tile, tile + each, rows, (n - start) * each});
}

// V of some tiles of an image whose cells need a copy, which its later tiles find again.
template <int R, typename Pixel, typename Value>
void transform_gathered(const Plan& p, const Part& part, const Pixel* image, Scratch<Pixel>& memory,
                        Value* v) {
    Pixel* grid = memory.of(p.grid());
    if (part.start == 0) {
        if (!p.filled) std::fill(grid, grid + p.grid(), Pixel{});
        gather(p, image, grid);
    }
    transform_inputs<R, false>(p, part, cells_apart(p, grid), v);
}

// V of a block, which lasts until the next one's.
template <int R, typename Value>
Value* inputs_of(const Plan& p, const Images& images, int start, int stop, int tile) {
    auto* v = reinterpret_cast<Value*>(inputs.of(p.inputs()));
    for_images(p, start, stop, tile, [&](int n, const Part& part) {
        if (p.bytes)
            transform_gathered<R>(p, part, images.at<uint8_t>(n), byte_grids, v);
        else if (p.gathered)
            transform_gathered<R>(p, part, images.at<float>(n), grids, v);
        else if (p.rectified)
            transform_inputs<R, true>(p, part, cells_within(p, images.at<float>(n)), v);
        else
            transform_inputs<R, false>(p, part, cells_within(p, images.at<float>(n)), v);
    });
    return v;
}

// Where an image of a block has its outputs before a max-pool.
INLINE float* unpooled_image(const Plan& p, int image) {
    return unpooled.of(p.block * p.out_image()) + image * p.out_image();
}

// The outputs of one image, pooled.
void pool(const Plan& p, const float* image, float* out, uint8_t* winners) {
    const ptrdiff_t row = (ptrdiff_t)p.passed_width() * p.out_channels;
    for (int y = 0; y < p.passed_height(); ++y, out += row, winners += winners ? row : 0)
        pool_row<float>(
            p, y, 1, [&](int from) { return image + (ptrdiff_t)from * p.out_width * p.out_channels; },
            [&](int x) { return Rows<float>{out + x * p.out_channels, 0, 1}; }, winners);
}

// `added`, unless null, is added before the ReLU; `winners` may be null too.
template <int R, typename Value>
void forward(const Plan& p, const Layer<float>& layer, int images, const Images& in, const float* added,
             float* out, uint8_t* winners) {
    for_blocks(p, images, [&](int start, int stop, int tile) {
        const int rows = rows_of(p, start, stop, tile), width = p.out_channels;
        const int depth = p.sums_of(p.depth);
        const Value* v = inputs_of<R, Value>(p, in, start, stop, tile);
        const auto* u = reinterpret_cast<const Value*>(layer.u);
        float* y = products.of(p.outputs());
        for (int k = 0; k < p.points; ++k)
            matmul_by_panels(rows, width, depth, v + k * plane_of(rows, p.row), p.row,
                             u + k * plane_of(depth, width), y + k * plane_of(rows, width), width);
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            const size_t at = n * p.out_image();
            float* to = p.pooled ? unpooled_image(p, n - start) : out + at;
            transform_outputs<R>(p, part, y, layer.bias, layer.relu, added ? added + at : nullptr, to);
        });
        if (p.pooled && tile + p.chunk >= p.tiles)
            for (int n = start; n < stop; ++n)
                pool(p, unpooled_image(p, n - start), out + n * p.passed_on(),
                     winners ? winners + n * p.passed_on() : nullptr);
    });
}

// What a layer's backward pass starts from, of some images.
struct Behind {
    const float* gradient;   // of what was passed on
    const float* activated;  // the outputs where a ReLU came behind, else null
    const uint8_t* winners;  // where they were pooled, else null
};

// Adds to a point's gradient of U, transposed [O, lanes], what its rows say, V [rows, lanes] and the gradients of
// their products [rows, O].
void add_to_kernel(const Plan& p, int rows, const float* v, const float* dy, float* du_transposed) {
    matmul<Order::COLUMNS_FIRST, true>(p.out_channels, p.lanes, rows, dy, p.out_channels, v, p.row,
                                       du_transposed, p.lanes);
}

// The same of pairs: along rows, as these are summed up.
void add_to_kernel(const Plan& p, int rows, const Pair* v, const Pair* dy, float* du_transposed) {
    const int pairs = p.sums_of(rows), width = p.out_channels;
    Pair* left = paired_products.of(pairs * width);
    Pair* right = paired_inputs.of(pairs * p.lanes);
    pair_rows(dy, p.sums_of(width), rows, width, left);
    pair_rows(v, p.row, rows, p.lanes, right);
    matmul<Order::COLUMNS_FIRST, true>(width, p.lanes, pairs, left, width, right, p.lanes, du_transposed,
                                       p.lanes);
}

// Adds to `du_transposed` and `dbias`; writes `dimages` unless null, and into them `skipped`, unless null: the
// gradient that passes the layers of a residual block by.
template <int R, typename Value>
void backward(const Plan& p, const Layer<float>& layer, int images, const Images& in,
              const Behind& behind, float* du_transposed, float* dbias, const float* skipped,
              float* dimages) {
    for_blocks(p, images, [&](int start, int stop, int tile) {
        if (p.pooled && tile == 0)
            for (int n = start; n < stop; ++n)
                unpool(p, 1, behind.gradient + n * p.passed_on(), behind.winners + n * p.passed_on(),
                       unpooled_image(p, n - start));
        const int rows = rows_of(p, start, stop, tile), width = p.out_channels;
        const int depth = p.sums_of(width);
        const Value* v = inputs_of<R, Value>(p, in, start, stop, tile);
        auto* dy = reinterpret_cast<Value*>(products.of(p.outputs()));
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            const size_t at = n * p.out_image();
            untransform_outputs<R>(p, part, p.pooled ? unpooled_image(p, n - start) : behind.gradient + at,
                                   behind.activated ? behind.activated + at : nullptr, dy, dbias);
        });
        for (int k = 0; k < p.points; ++k)
            add_to_kernel(p, rows, v + k * plane_of(rows, p.row), dy + k * plane_of(rows, depth),
                          du_transposed + k * plane_of(width, p.lanes));
        if (!dimages) return;
        const auto* u_transposed = reinterpret_cast<const Value*>(layer.u_transposed);
        float* dv = inputs.of(p.inputs());  // V is not needed any more
        for (int k = 0; k < p.points; ++k)
            matmul_by_panels(rows, p.depth, depth, dy + k * plane_of(rows, depth), depth,
                             u_transposed + k * plane_of(depth, p.depth),
                             dv + k * plane_of(rows, p.drow), p.drow);
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            float* image = dimages + n * p.image();
            if (part.start == 0) std::fill_n(image, p.image(), 0.0f);
            untransform_inputs<R>(p, part, dv, cells_within(p, image));
            if (part.stop < p.tiles) return;
            if (p.rectified) rectify(in.at<float>(n), image, p.image());
            if (skipped) add(skipped + n * p.image(), image, p.image());
        });
    });
}

}  // namespace
