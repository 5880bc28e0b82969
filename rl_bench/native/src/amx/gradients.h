// Gradients of one AMX convolution for one group of images, by one thread.
//
// Gradient of the kernel: for each tap, dU[filters, depth] = Σ over outputs of dyᵀ[filters, images] ·
// A[images, depth]. Gradient of the images: for each input pixel, the sum over the outputs that read it of
// dy[images, filters] · Uᵀ[tap]. As in forward.h the operands of all products of one sum are listed in
// `steps`, for the first filters and channels, and moved on from block to block. Gradients of activations
// are [pixels, 32 images, channels], bf16; those of kernels and biases are summed up in float32. amx.cpp
// calls `add_bias_gradient`, `add_kernel_gradient` and `image_gradient` for each layer.
#pragma once

#include "forward.h"

namespace {

// Values of operands that are prepared at a time for the gradient of a kernel.
constexpr size_t BAND_VALUES = 320000;

// Adds `gradient` [out pixels, 32, O] of the convolution's outputs, summed over pixels and images, to
// `dbias` [O].
void add_bias_gradient(const Plan& p, const Bf16* gradient, float* dbias) {
    constexpr int CHAINS = 4;  // independent sums, as each addition takes several cycles
    const size_t rows = (size_t)p.out_pixels() * GROUP;
    for (int o = 0; o < p.out_channels; o += BLOCK, gradient += BLOCK, dbias += BLOCK) {
        Floatx16 kept[CHAINS] = {};
        for (size_t r = 0; r < rows; r += CHAINS)
            for (int i = 0; i < CHAINS; ++i)
                kept[i] += to_float(load_as<Bf16x16>(gradient + (r + i) * p.out_channels));
        store_as(dbias, load_as<Floatx16>(dbias) + (kept[0] + kept[1]) + (kept[2] + kept[3]));
    }
}

// Operands of the gradient of the kernel for output rows [start, stop): gradients of outputs [pixels, O, 32
// images], and inputs in pairs of images [input pixels, 16, depth, 2] or, for strips, [16, input values,
// 2].
struct Band {
    int start, stop;
    int first_row;        // of the input, in the image or, for strips, the padded image
    ptrdiff_t right_row;  // from one pair of images to the next
    const Bf16 *gradients, *sources;
};

// Prepares the band of output rows [start, stop) from the layer's `source` and `gradient` [out pixels, 32,
// O].
Band make_band(const Plan& p, int start, int stop, const Bf16* source, const Bf16* gradient) {
    const ptrdiff_t each = GROUP * p.out_channels;
    const int outputs = (stop - start) * p.out_width;
    gradient += start * p.out_width * each;
    Bf16* transposed = transposed_gradients.get(outputs * each);
    for (int i = 0; i < outputs; ++i)
        transpose_pixel(gradient + i * each, p.out_channels, transposed + i * each);
    const int above = p.strips ? 0 : p.padding, height = p.height + (p.strips ? 2 * p.padding : 0);
    const int first = std::max(start * p.stride - above, 0);
    const int rows = std::min((stop - 1) * p.stride - above + p.side, height) - first;
    if (p.strips) {
        const ptrdiff_t values = rows * p.padded_row() + LINE, pair_stride = odd_lines(2 * values);
        Bf16* pairs = paired_sources.get(GROUP / 2 * pair_stride);
        source += first * p.padded_row();
        for (int i = 0; i < GROUP / 2; ++i, source += 2 * p.padded_image())
            pair_rows(source, source + p.padded_image(), values, pairs + i * pair_stride);
        return {start, stop, first, pair_stride, transposed, pairs};
    }
    const ptrdiff_t pixel_rows = (ptrdiff_t)rows * p.width * GROUP;
    Bf16* pairs = paired_sources.get(pixel_rows * p.depth);
    source += (ptrdiff_t)first * p.width * GROUP * p.depth;
    for (ptrdiff_t r = 0; r < pixel_rows; r += 2)
        pair_rows(source + r * p.depth, source + (r + 1) * p.depth, p.depth, pairs + r * p.depth);
    return {start, stop, first, 2 * p.depth, transposed, pairs};
}

// Lists in `steps` the products that add up to the gradient of `tap`, for the first filters and channels.
void list_kernel_steps(int tap, const Plan& p, const Band& band) {
    steps.clear();
    const Bf16* gradient = band.gradients;
    for (int y = band.start; y < band.stop; ++y)
        for (int x = 0; x < p.out_width; ++x, gradient += p.out_channels * GROUP) {
            if (p.strips) {
                const ptrdiff_t at = p.strip_offset(y, x) + (tap - band.first_row) * p.padded_row();
                steps.push_back({gradient, band.sources + 2 * at});
                continue;
            }
            const int row = y * p.stride - p.padding + tap / p.side;
            const int column = x * p.stride - p.padding + tap % p.side;
            if (row < 0 || row >= p.height || column < 0 || column >= p.width) continue;
            const ptrdiff_t pixel = (ptrdiff_t)(row - band.first_row) * p.width + column;
            steps.push_back({gradient, band.sources + pixel * p.depth * GROUP});
        }
}

// Adds `products` [rows, width] to `to`, whose rows are `stride` floats apart.
INLINE void add_block(const float* products, int rows, int width, float* to, int stride) {
    for (int i = 0; i < rows; ++i, to += stride)
        for (int j = 0; j < width; j += BLOCK, products += BLOCK)
            store_as(to + j, load_as<Floatx16>(to + j) + load_as<Floatx16>(products));
}

// Adds the gradient of the kernel to `du` [taps, O, depth], from the layer's `source` and `gradient` [out
// pixels, 32, O]. Output rows are processed in bands of about BAND_VALUES, so that their operands stay in
// the cache.
void add_kernel_gradient(MatrixUnit& unit, const Plan& p, const Bf16* source, const Bf16* gradient,
                         float* du) {
    const int row = p.strips ? p.padded_row() : p.width * p.depth;
    const size_t values = GROUP * (p.out_width * p.out_channels + (size_t)p.stride * row);
    const int bands = std::clamp<int>(values * p.out_height / BAND_VALUES, 1, p.out_height);
    float* products = sums.get(GROUP * 2 * BLOCK);
    for (int b = 0; b < bands; ++b) {
        const Band band = make_band(p, part_begin(b, bands, p.out_height),
                                    part_begin(b + 1, bands, p.out_height), source, gradient);
        const OperandLayout by{GROUP, band.right_row, 2 * BLOCK, GROUP / 2};
        for (int tap = 0; tap < p.taps; ++tap) {
            list_kernel_steps(tap, p, band);
            for_block_pairs(p.out_channels, [&](int o, int high) {
                float* to = du + ((ptrdiff_t)tap * p.out_channels + o) * p.depth;
                for_block_pairs(p.depth, [&](int c, int wide) {
                    unit.multiply(high, wide, steps.data(), steps.size(), by, products);
                    add_block(products, high * BLOCK, wide * BLOCK, to + c, p.depth);
                    advance_right(wide * 2 * BLOCK);
                });
                advance_right(-2 * p.depth);
                for (ProductStep& step : steps) step.left += high * BLOCK * GROUP;
            });
        }
    }
}

// Computes the gradient of the images from `gradient` [out pixels, 32, O] and writes it where
// `rows_at(pixel)` says. It is 0 where `activated` [pixels, 32, channels], the input behind its ReLU, is
// not positive. `skip_gradient`, like activated, is added: the gradient that reaches the images through a
// residual connection. Both may be null.
template <typename RowsAt>
void image_gradient(MatrixUnit& unit, const Plan& p, const Bf16* u_transposed, const Bf16* gradient,
                    const Bf16* activated, const Bf16* skip_gradient, RowsAt rows_at) {
    const int chunk = Plan::chunk_size(p.out_channels);
    const ptrdiff_t block = (ptrdiff_t)p.taps * p.out_channels * BLOCK;
    const OperandLayout by{p.out_channels, 2 * BLOCK, block, chunk / 2};
    float* products = sums.get(GROUP * 2 * BLOCK);
    for (int pixel = 0; pixel < p.pixels(); ++pixel) {
        steps.clear();
        for_outputs(p, pixel / p.width, pixel % p.width, [&](int tap, int y, int x) {
            const Bf16* left = gradient + (ptrdiff_t)(y * p.out_width + x) * GROUP * p.out_channels;
            for (int o = 0; o < p.out_channels; o += chunk)
                steps.push_back(
                    {left + o, u_transposed + (ptrdiff_t)(tap * p.out_channels + o) * BLOCK});
        });
        const PixelRows<Bf16> to = rows_at(pixel);
        const ptrdiff_t there = (ptrdiff_t)pixel * GROUP * p.channels;
        for_block_pairs(p.channels, [&](int c, int blocks) {
            unit.multiply(2, blocks, steps.data(), steps.size(), by, products);
            const float* from = products;
            for (int r = 0; r < to.count; ++r)
                for (int at = c; at < c + blocks * BLOCK; at += BLOCK, from += BLOCK) {
                    const ptrdiff_t place = there + r * p.channels + at;
                    Bf16x16 x = to_bf16(load_as<Floatx16>(from));
                    if (activated) x = where_positive(load_as<Bf16x16>(activated + place), x);
                    if (skip_gradient)
                        x = to_bf16(to_float(x) + to_float(load_as<Bf16x16>(skip_gradient + place)));
                    store_as(to.first + r * to.stride + at, x);
                }
            advance_right(blocks * block);
        });
    }
}

}  // namespace
