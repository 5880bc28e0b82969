// Winograd's convolution of one layer for a few images, forward and back, by one thread in its own buffers.
//
// Forward, block by block: V = Bᵀ d B of all tiles; for each point Y = V U; outputs Aᵀ Y A + bias, then the
// pool. Backward: dY = A dy Aᵀ; for each point dUᵀ += dYᵀ V, and dV = dY Uᵀ; gradient of the images B dV
// Bᵀ, added up over tiles. The buffers below hold one block's matrices. winograd.cpp calls `forward` and
// `backward` for each group of images and each layer. Value is float, or Bf16Pair for bf16 products; sums
// and everything between layers are float32 in any case.
#pragma once

#include "../common/matmul.h"
#include "../common/max_pool.h"
#include "image_transform.h"

namespace {

thread_local Scratch<uint8_t> byte_grids;      // copies of the cells of a uint8 image
thread_local Scratch<float> grids;             // copies of the cells of a float image
thread_local Scratch<float> inputs, products;  // V and Y, or their gradients; of floats or of pairs
thread_local Scratch<Bf16Pair> row_paired_inputs, row_paired_products;  // V and dY paired along rows
thread_local Scratch<float> unpooled;  // outputs before a max-pool, or their gradients

// Calls `block(start, stop, tile)` for each block: images [start, stop), and their tiles from `tile` on.
template <typename Block>
INLINE void for_blocks(const Plan& p, int images, Block block) {
    const int blocks = ceil_div(images, p.block_images);  // of nearly equal size
    for (int b = 0; b < blocks; ++b)
        for (int tile = 0; tile < p.tiles; tile += p.block_tiles)
            block(part_begin(b, blocks, images), part_begin(b + 1, blocks, images), tile);
}

// Returns the number of tiles in a block, which is the number of rows of its matrices.
INLINE int block_rows(const Plan& p, int start, int stop, int tile) {
    return (stop - start) * (std::min(tile + p.block_tiles, p.tiles) - tile);
}

// Calls `image(n, range)` for each image of a block with its tiles.
template <typename Image>
INLINE void for_images(const Plan& p, int start, int stop, int tile, Image image) {
    const int rows = block_rows(p, start, stop, tile), each = block_rows(p, 0, 1, tile);
    for (int n = start; n < stop; ++n)
        image(n, TileRange{tile, tile + each, rows, (n - start) * each});
}

// Transforms a range of tiles of an image whose cells must be copied first. The copy is made with the
// image's first tile, and is still in `memory` for later ranges of it.
template <int R, typename Pixel, typename Value>
void transform_gathered(const Plan& p, const TileRange& range, const Pixel* image, Scratch<Pixel>& memory,
                        Value* v) {
    Pixel* grid = memory.get(p.grid());
    if (range.start == 0) {
        if (!p.filled) std::fill(grid, grid + p.grid(), Pixel{});
        gather(p, image, grid);
    }
    transform_inputs<R, false>(p, range, cells_of_grid(p, grid), v);
}

// Returns V [points, rows, lanes] of a block; the next block's overwrites it.
template <int R, typename Value>
Value* transform_block(const Plan& p, const ImageBatch& images, int start, int stop, int tile) {
    auto* v = reinterpret_cast<Value*>(inputs.get(p.inputs()));
    for_images(p, start, stop, tile, [&](int n, const TileRange& range) {
        if (p.uint8_images)
            transform_gathered<R>(p, range, images.at<uint8_t>(n), byte_grids, v);
        else if (p.gathered)
            transform_gathered<R>(p, range, images.at<float>(n), grids, v);
        else if (p.rectified)
            transform_inputs<R, true>(p, range, cells_of_image(p, images.at<float>(n)), v);
        else
            transform_inputs<R, false>(p, range, cells_of_image(p, images.at<float>(n)), v);
    });
    return v;
}

// Returns the buffer for the outputs before a max-pool of number `image` of a block's images.
INLINE float* unpooled_image(const Plan& p, int image) {
    return unpooled.get(p.block_images * p.out_image()) + image * p.out_image();
}

// Pools one image: `out` [next_height, next_width, O] ← `image` [out_height, out_width, O]. `argmax`, like
// out, may be null.
void pool(const Plan& p, const float* image, float* out, uint8_t* argmax) {
    const ptrdiff_t row = (ptrdiff_t)p.next_width() * p.out_channels;
    for (int y = 0; y < p.next_height(); ++y, out += row, argmax += argmax ? row : 0)
        pool_row<float>(
            p, y, 1, [&](int from) { return image + (ptrdiff_t)from * p.out_width * p.out_channels; },
            [&](int x) { return PixelRows<float>{out + x * p.out_channels, 0, 1}; }, argmax);
}

// Computes the layer's outputs `out` [images, next_height, next_width, O] of images `in`. `residual`, like
// the outputs of the convolution, is added before the ReLU; it and `argmax` may be null.
template <int R, typename Value>
void forward(const Plan& p, const ConvLayer<float>& layer, int images, const ImageBatch& in,
             const float* residual, float* out, uint8_t* argmax) {
    for_blocks(p, images, [&](int start, int stop, int tile) {
        const int rows = block_rows(p, start, stop, tile), width = p.out_channels;
        const int depth = p.elements(p.depth);
        const Value* v = transform_block<R, Value>(p, in, start, stop, tile);
        const auto* u = reinterpret_cast<const Value*>(layer.packed_kernel);
        float* y = products.get(p.outputs());
        for (int k = 0; k < p.points; ++k)
            matmul_panels(rows, width, depth, v + k * plane_size(rows, p.v_row), p.v_row,
                          u + k * plane_size(depth, width), y + k * plane_size(rows, width), width);
        for_images(p, start, stop, tile, [&](int n, const TileRange& range) {
            const size_t at = n * p.out_image();
            float* to = p.pooled ? unpooled_image(p, n - start) : out + at;
            transform_outputs<R>(p, range, y, layer.bias, layer.relu, residual ? residual + at : nullptr, to);
        });
        if (p.pooled && tile + p.block_tiles >= p.tiles)  // the images are complete
            for (int n = start; n < stop; ++n)
                pool(p, unpooled_image(p, n - start), out + n * p.next_size(),
                     argmax ? argmax + n * p.next_size() : nullptr);
    });
}

// The gradient that a layer's backward pass starts from, for some images.
struct OutputGradient {
    const float* gradient;   // of the layer's outputs, after the pool
    const float* activated;  // the outputs behind a ReLU, or null without one
    const uint8_t* argmax;   // of the pool, or null without one
};

// Adds to one point's gradient of U: `du_transposed` [O, lanes] += dyᵀ [O, rows] v [rows, lanes].
void add_kernel_gradient(const Plan& p, int rows, const float* v, const float* dy, float* du_transposed) {
    matmul<Order::COLUMN_MAJOR, true>(p.out_channels, p.lanes, rows, dy, p.out_channels, v, p.v_row,
                                      du_transposed, p.lanes);
}

// Adds the same for bf16 products. `v` and `dy` are paired along their columns; this sum runs over rows, so
// they are paired anew along these.
void add_kernel_gradient(const Plan& p, int rows, const Bf16Pair* v, const Bf16Pair* dy,
                         float* du_transposed) {
    const int pairs = p.elements(rows), width = p.out_channels;
    Bf16Pair* left = row_paired_products.get(pairs * width);
    Bf16Pair* right = row_paired_inputs.get(pairs * p.lanes);
    pair_rows(dy, p.elements(width), rows, width, left);
    pair_rows(v, p.v_row, rows, p.lanes, right);
    matmul<Order::COLUMN_MAJOR, true>(width, p.lanes, pairs, left, width, right, p.lanes, du_transposed,
                                      p.lanes);
}

// Computes the layer's gradients for images `in`. Adds to `du_transposed` [points, O, lanes] and `dbias`
// [O]; writes the gradient of the images to `dimages` unless it is null. `skip_gradient`, unless null, is
// added to that: the gradient that reaches the images through a residual connection.
template <int R, typename Value>
void backward(const Plan& p, const ConvLayer<float>& layer, int images, const ImageBatch& in,
              const OutputGradient& out, float* du_transposed, float* dbias, const float* skip_gradient,
              float* dimages) {
    for_blocks(p, images, [&](int start, int stop, int tile) {
        if (p.pooled && tile == 0)
            for (int n = start; n < stop; ++n)
                unpool(p, 1, out.gradient + n * p.next_size(), out.argmax + n * p.next_size(),
                       unpooled_image(p, n - start));
        const int rows = block_rows(p, start, stop, tile), width = p.out_channels;
        const int depth = p.elements(width);
        const Value* v = transform_block<R, Value>(p, in, start, stop, tile);
        auto* dy = reinterpret_cast<Value*>(products.get(p.outputs()));
        for_images(p, start, stop, tile, [&](int n, const TileRange& range) {
            const size_t at = n * p.out_image();
            untransform_outputs<R>(p, range, p.pooled ? unpooled_image(p, n - start) : out.gradient + at,
                                   out.activated ? out.activated + at : nullptr, dy, dbias);
        });
        for (int k = 0; k < p.points; ++k)
            add_kernel_gradient(p, rows, v + k * plane_size(rows, p.v_row), dy + k * plane_size(rows, depth),
                                du_transposed + k * plane_size(width, p.lanes));
        if (!dimages) return;
        const auto* u_transposed = reinterpret_cast<const Value*>(layer.packed_transposed);
        float* dv = inputs.get(p.inputs());  // overwrites V, which is not needed any more
        for (int k = 0; k < p.points; ++k)
            matmul_panels(rows, p.depth, depth, dy + k * plane_size(rows, depth), depth,
                          u_transposed + k * plane_size(depth, p.depth),
                          dv + k * plane_size(rows, p.dv_row), p.dv_row);
        for_images(p, start, stop, tile, [&](int n, const TileRange& range) {
            float* image = dimages + n * p.image();
            if (range.start == 0) std::fill_n(image, p.image(), 0.0f);
            untransform_inputs<R>(p, range, dv, cells_of_image(p, image));
            if (range.stop < p.tiles) return;
            if (p.rectified) relu_gradient(in.at<float>(n), image, p.image());
            if (skip_gradient) add(skip_gradient + n * p.image(), image, p.image());
        });
    });
}

}  // namespace
