// Convolution by the definition, for first layers of stride 1, forward and back.
//
// Winograd's filtering does not pay for them: their few channels leave little to save, and their many
// pixels much to transform. y[i, j, o] = bias[o] + Σ x[i + a, j + b, c] · k[o, a, b, c]. The image is
// converted to floats with its padding around it, [height + 2 · padding, (width + 2 · padding) · channels].
// There the values under one row of the kernel are contiguous, and those of the next output begin
// `channels` further on: the rows of a left matrix that overlap. The kernel is packed as U [kernel rows,
// side · channels, O]. One thread computes one image at a time, row by row, in tiles of TILE_ROWS pixels
// and two vectors of filters as in matmul.h.
#pragma once

#include "layer.h"

namespace {

thread_local Scratch<float> padded_images;

// Returns `image` [height, width, channels] as floats with its padding around it.
template <typename Pixel>
const float* pad(const Plan& p, const Pixel* image) {
    const size_t row = (size_t)p.width * p.channels, wide = p.wide_row();
    const size_t count = (p.height + 2 * p.padding) * wide;
    float* to = padded_images.get(count);
    if (p.padding) std::fill_n(to, count, 0.0f);
    float* first = to + p.padding * (wide + p.channels);
    for (int y = 0; y < p.height; ++y, image += row, first += wide) {
        size_t i = 0;
        for (; i + VEC_FLOATS <= row; i += VEC_FLOATS) store(first + i, load(image + i));
        for (; i < row; ++i) first[i] = image[i];
    }
    return to;
}

// Returns image `n` of a batch, padded.
const float* padded_image(const Plan& p, const ImageBatch& images, int n) {
    return p.uint8_images ? pad(p, images.at<uint8_t>(n)) : pad(p, images.at<float>(n));
}

// Computes the outputs `to` of M neighbouring pixels for N vectors of filters. `image` points at the values
// under the first pixel, `u` and `bias` at the first filter.
template <int M, int N>
INLINE void convolve_pixels(const Plan& p, const float* image, const float* u, const float* bias, bool relu,
                            float* to) {
    const int width = p.out_channels, across = p.channels, taps = p.kernel_cells * p.channels;
    Vec sums[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sums[m][n] = load(bias + n * VEC_FLOATS);
    for (int i = 0; i < p.kernel_cells; ++i, image += p.wide_row())
        for (int k = 0; k < taps; ++k, u += width) {
            Vec row[N];
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) row[n] = load(u + n * VEC_FLOATS);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int n = 0; n < N; ++n) sums[m][n] += broadcast(image[m * across + k]) * row[n];
        }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n)
            store(to + m * width + n * VEC_FLOATS,
                  relu ? where_positive(sums[m][n], sums[m][n]) : sums[m][n]);
}

// Calls `convolve_pixels` with the number of `pixels`, at most M, as a template parameter.
template <int N, int M = TILE_ROWS>
INLINE void convolve_some(int pixels, const Plan& p, const float* image, const float* u,
                          const float* bias, bool relu, float* to) {
    if constexpr (M > 0) {
        if (pixels == M)
            convolve_pixels<M, N>(p, image, u, bias, relu, to);
        else
            convolve_some<N, M - 1>(pixels, p, image, u, bias, relu, to);
    }
}

// Computes one row of outputs `to` [out_width, O] for N vectors of filters; `image` points at the row's
// first values.
template <int N>
void convolve_row(const Plan& p, const float* image, const float* u, const float* bias, bool relu,
                  float* to) {
    const int parts = ceil_div(p.out_width, TILE_ROWS);  // of nearly equal length
    for (int part = 0; part < parts; ++part) {
        const int x = part_begin(part, parts, p.out_width), end = part_begin(part + 1, parts, p.out_width);
        convolve_some<N>(end - x, p, image + x * p.channels, u, bias, relu, to + x * p.out_channels);
    }
}

// Computes the layer's outputs `out` [images, next_height, next_width, O], like `forward` of layer.h. The
// residual argument is ignored, as a first layer has none.
void forward_directly(const Plan& p, const ConvLayer<float>& layer, int images, const ImageBatch& in,
                      const float*, float* out, uint8_t* argmax) {
    const int width = p.out_channels;
    const size_t row = (size_t)p.out_width * width, pooled_row = (size_t)p.next_width() * width;
    float* ring = p.pooled ? unpooled.get(RING_ROWS * row) : nullptr;
    const auto ring_row = [=](int y) { return ring + y % RING_ROWS * row; };
    for (int n = 0; n < images; ++n, out += p.next_size()) {
        const float* image = padded_image(p, in, n);
        for (int y = 0; y < p.out_height; ++y) {
            float* to = p.pooled ? ring_row(y) : out + y * row;
            const float* from = image + y * p.wide_row();
            int o = 0;
            for (; o + 2 * VEC_FLOATS <= width; o += 2 * VEC_FLOATS)
                convolve_row<2>(p, from, layer.packed_kernel + o, layer.bias + o, layer.relu, to + o);
            if (o < width)
                convolve_row<1>(p, from, layer.packed_kernel + o, layer.bias + o, layer.relu, to + o);
            if (!p.pooled || !pool_row_complete(p, y)) continue;
            const size_t at = y / 2 * pooled_row;
            pool_row<float>(p, y / 2, 1, ring_row,
                            [=](int x) { return PixelRows<float>{out + at + x * width, 0, 1}; },
                            argmax ? argmax + n * p.next_size() + at : nullptr);
        }
    }
}

// Adds the layer's gradients to `du` [kernel rows, side · channels, O] and `dbias` [O], like `backward` of
// layer.h. The other arguments are ignored: a first layer's images need no gradient.
void backward_directly(const Plan& p, const ConvLayer<float>&, int images, const ImageBatch& in,
                       const OutputGradient& out, float* du, float* dbias, const float*, float*) {
    const int width = p.out_channels, taps = p.kernel_cells * p.channels;
    const size_t row = (size_t)p.out_width * width;
    float* doutput = unpooled.get(p.out_image());  // gradient of one image before its pool or ReLU
    for (int n = 0; n < images; ++n) {
        const float* image = padded_image(p, in, n);
        const float* gradient = out.gradient + n * p.next_size();
        if (p.pooled) {
            unpool(p, 1, gradient, out.argmax + n * p.next_size(), doutput);
            gradient = doutput;
        } else if (out.activated) {
            std::copy_n(gradient, p.out_image(), doutput);
            relu_gradient(out.activated + n * p.out_image(), doutput, p.out_image());
            gradient = doutput;
        }
        for (int y = 0; y < p.out_height; ++y, gradient += row) {
            for (int i = 0; i < p.kernel_cells; ++i)
                matmul<Order::COLUMN_MAJOR, true>(taps, width, p.out_width, image + (y + i) * p.wide_row(),
                                                  p.channels, gradient, width, du + i * taps * width,
                                                  width);
            for (int o = 0; o < width; o += VEC_FLOATS) {
                Vec sum = {};
                for (int x = 0; x < p.out_width; ++x) sum += load(gradient + x * width + o);
                store(dbias + o, load(dbias + o) + sum);
            }
        }
    }
}

}  // namespace
