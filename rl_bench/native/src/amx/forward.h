// AMX convolution of one layer for one group of images, forward, by one thread.
//
// For each output pixel, C[images, filters] = Σ over taps of A[images, depth] · U[tap][depth, filters]. The
// operands of all products of one sum are listed in `steps`, for the first filters; MatrixUnit adds the
// products up; then the right operands are moved on to the next 16 or 32 filters. Activations of a group
// are [pixels, images, channels] (image_groups.h). Sums are float32; everything stored is bf16. amx.cpp
// calls `first_layer_source` or `later_layer_source`, and then `forward`.
#pragma once

#include "image_groups.h"

namespace {

thread_local Scratch<Bf16> sources;  // inputs as products read them
thread_local Scratch<Bf16> transposed_gradients, paired_sources;  // used in gradients.h
thread_local Scratch<Bf16> unpooled;  // outputs before a max-pool, or their gradients
thread_local Scratch<float> sums;     // results of one MatrixUnit::multiply
thread_local std::vector<ProductStep> steps;

// Calls `visit(first, blocks)` for `count` values, two blocks of 16 at a time, or one at the end.
template <typename Visit>
INLINE void for_block_pairs(int count, Visit visit) {
    for (int at = 0; at < count; at += 2 * BLOCK) visit(at, std::min(2, (count - at) / BLOCK));
}

// Moves the right operands of all steps on by `offset` values.
INLINE void advance_right(ptrdiff_t offset) {
    for (ProductStep& step : steps) step.right += offset;
}

// Returns a first layer's input as products read it: padded images for strips, else [pixels, rows,
// channels].
Bf16* first_layer_source(const Plan& p, const Group& g, const ImageBatch& images) {
    Bf16* source = sources.get(g.rows * (p.strips ? p.padded_image() : p.image()));
    if (p.uint8_images)
        pad_images<uint8_t>(p, g, images, source);
    else if (p.strips)
        pad_images<Bf16>(p, g, images, source);
    else
        interleave_images(g, p.pixels(), p.channels, images, source,
                          [](Bf16x16 x, size_t, size_t) { return x; });
    return source;
}

// Returns a later layer's input as products read it: `input` [pixels, rows, channels], behind a ReLU if the
// layer has one.
const Bf16* later_layer_source(const Plan& p, int rows, const Bf16* input) {
    if (!p.rectified) return input;
    const size_t count = rows * p.image();
    Bf16* source = sources.get(count);
    for (size_t i = 0; i < count; i += BLOCK) {
        const Floatx16 x = to_float(load_as<Bf16x16>(input + i));
        store_as(source + i, to_bf16(apply_relu(x)));
    }
    return source;
}

// Lists in `steps` the products that add up to output (y, x), for the first filters of `u`.
void list_forward_steps(const Plan& p, int rows, const Bf16* source, const Bf16* u, int y, int x) {
    steps.clear();
    const auto add = [&](int tap, const Bf16* left) {
        for (int c = 0; c < p.depth; c += p.chunk)
            steps.push_back({left + c, u + (ptrdiff_t)(tap * p.depth + c) * BLOCK});
    };
    if (p.strips)
        for (int i = 0; i < p.side; ++i) add(i, source + p.strip_offset(y, x) + i * p.padded_row());
    else
        for_inputs(p, y, x, [&](int tap, int row, int column) {
            add(tap, source + (ptrdiff_t)(row * p.width + column) * rows * p.depth);
        });
}

// Writes the outputs `to` of one pixel: `products` [rows, 16 · blocks] plus `bias`, plus `residual` [rows,
// channels] unless it is null, behind a ReLU if `relu`.
INLINE void write_outputs(const float* products, int blocks, const float* bias, bool relu,
                          const Bf16* residual, int channels, PixelRows<Bf16> to) {
    for (int r = 0; r < to.count; ++r)
        for (int j = 0; j < blocks; ++j, products += BLOCK) {
            Floatx16 y = load_as<Floatx16>(products) + load_as<Floatx16>(bias + j * BLOCK);
            if (residual) y += to_float(load_as<Bf16x16>(residual + r * channels + j * BLOCK));
            store_as(to.first + r * to.stride + j * BLOCK, to_bf16(relu ? apply_relu(y) : y));
        }
}

// Computes the layer's convolution. `rows_at(pixel)` returns where an output pixel goes, as PixelRows;
// `row_done(y)` is called after each row of outputs. `residual` [out pixels, rows, O] may be null.
template <typename RowsAt, typename RowDone>
void convolve(MatrixUnit& unit, const Plan& p, const ConvLayer<Bf16>& layer, int rows, const Bf16* source,
              const Bf16* residual, RowsAt rows_at, RowDone row_done) {
    const ptrdiff_t block = (ptrdiff_t)p.taps * p.depth * BLOCK;  // of U, for 16 filters
    const OperandLayout by{p.source_row(), 2 * BLOCK, block, p.chunk / 2};
    float* products = sums.get(GROUP * 2 * BLOCK);
    for (int y = 0; y < p.out_height; ++y) {
        for (int x = 0; x < p.out_width; ++x) {
            list_forward_steps(p, rows, source, layer.packed_kernel, y, x);
            const int pixel = y * p.out_width + x;
            const PixelRows<Bf16> to = rows_at(pixel);
            const Bf16* more = residual ? residual + (ptrdiff_t)pixel * rows * p.out_channels : nullptr;
            for_block_pairs(p.out_channels, [&](int o, int blocks) {
                unit.multiply(rows / BLOCK, blocks, steps.data(), steps.size(), by, products);
                write_outputs(products, blocks, layer.bias + o, layer.relu, more ? more + o : nullptr,
                              p.out_channels, {to.first + o, to.stride, to.count});
                advance_right(blocks * block);
            });
        }
        row_done(y);
    }
}

// Computes the layer with its max-pool, if any. Convolution outputs before a pool are kept in a ring of
// RING_ROWS rows. `rows_at(pixel)` returns where a final output pixel goes. `argmax` [next pixels, rows, O]
// may be null.
template <typename RowsAt>
void forward(MatrixUnit& unit, const Plan& p, const ConvLayer<Bf16>& layer, int rows, const Bf16* source,
             const Bf16* residual, uint8_t* argmax, RowsAt rows_at) {
    if (!p.pooled) {
        convolve(unit, p, layer, rows, source, residual, rows_at, [](int) {});
        return;
    }
    const ptrdiff_t pixel = (ptrdiff_t)rows * p.out_channels, row = p.out_width * pixel;
    Bf16* ring = unpooled.get(RING_ROWS * row);
    const auto ring_row = [=](int y) { return ring + y % RING_ROWS * row; };
    const auto into_ring = [=](int place) {
        Bf16* first = ring_row(place / p.out_width) + place % p.out_width * pixel;
        return PixelRows<Bf16>{first, p.out_channels, rows};
    };
    convolve(unit, p, layer, rows, source, residual, into_ring, [=](int y) {
        if (!pool_row_complete(p, y)) return;
        const int first = y / 2 * p.next_width();
        pool_row<Bf16>(p, y / 2, rows, ring_row, [=](int x) { return rows_at(first + x); },
                       argmax ? argmax + first * pixel : nullptr);
    });
}

// Returns a function of a pixel's number that gives its place in a group's `activations` [pixels, rows,
// channels].
auto in_group(Bf16* activations, int rows, int channels) {
    return [=](int pixel) {
        return PixelRows<Bf16>{activations + (ptrdiff_t)pixel * rows * channels, channels, rows};
    };
}

// Returns a function of a pixel's number that gives its place in `images` [N, pixels, channels], of which
// group `g` is part.
auto in_images(Bf16* images, const Group& g, int pixels, int channels) {
    const ptrdiff_t image = (ptrdiff_t)pixels * channels;
    return [=, first = images + g.first * image, count = g.images](int pixel) {
        return PixelRows<Bf16>{first + pixel * channels, image, count};
    };
}

}  // namespace
