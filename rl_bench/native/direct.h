// A first layer of stride 1, by the definition: its few channels leave Winograd's filtering little to save,
// and its many pixels much to transform.
//
// Of frames, what lies under one row of the kernel is side by side in memory, and begins for the next output
// a pixel further on: the rows of a left matrix that overlap. The kernel is U [rows, side · channels, O].
#pragma once

#include "layer.h"

namespace {

thread_local Scratch<float> wide_images;

// The image in floats, with its padding around it: [height + 2 · padding, (width + 2 · padding) · channels].
template <typename Pixel>
const float* widen(const Plan& p, const Pixel* image) {
    const size_t row = (size_t)p.width * p.channels, wide = p.wide_row();
    const size_t count = (p.height + 2 * p.padding) * wide;
    float* to = wide_images.of(count);
    if (p.padding) std::fill_n(to, count, 0.0f);
    float* first = to + p.padding * (wide + p.channels);
    for (int y = 0; y < p.height; ++y, image += row, first += wide) {
        size_t i = 0;
        for (; i + W <= row; i += W) store(first + i, load(image + i));
        for (; i < row; ++i) first[i] = image[i];
    }
    return to;
}

const float* widened_image(const Plan& p, const Images& images, int n) {
    return p.bytes ? widen(p, images.at<uint8_t>(n)) : widen(p, images.at<float>(n));
}

// Outputs of M pixels beside each other, and of N vectors of filters.
template <int M, int N>
INLINE void convolve_pixels(const Plan& p, const float* image, const float* u, const float* bias, bool relu,
                            float* to) {
    const int width = p.out_channels, across = p.channels, taps = p.kernel * p.channels;
    Vec sums[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sums[m][n] = load(bias + n * W);
    for (int i = 0; i < p.kernel; ++i, image += p.wide_row())
        for (int k = 0; k < taps; ++k, u += width) {
            Vec row[N];
#pragma GCC unroll 2
            for (int n = 0; n < N; ++n) row[n] = load(u + n * W);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
                for (int n = 0; n < N; ++n) sums[m][n] += all(image[m * across + k]) * row[n];
        }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n)
            store(to + m * width + n * W, relu ? where_positive(sums[m][n], sums[m][n]) : sums[m][n]);
}

// The same for a number of pixels that is not known before.
template <int N, int M = ROWS>
INLINE void convolve_some(int pixels, const Plan& p, const float* image, const float* u,
                          const float* bias, bool relu, float* to) {
    if constexpr (M > 0) {
        if (pixels == M)
            convolve_pixels<M, N>(p, image, u, bias, relu, to);
        else
            convolve_some<N, M - 1>(pixels, p, image, u, bias, relu, to);
    }
}

template <int N>
void convolve_row(const Plan& p, const float* image, const float* u, const float* bias, bool relu,
                  float* to) {
    const int parts = ceil_div(p.out_width, ROWS);  // of nearly equal length
    for (int part = 0; part < parts; ++part) {
        const int x = begin_of(part, parts, p.out_width), end = begin_of(part + 1, parts, p.out_width);
        convolve_some<N>(end - x, p, image + x * p.channels, u, bias, relu, to + x * p.out_channels);
    }
}

void forward_directly(const Plan& p, const Layer<float>& layer, int images, const Images& in,
                      const float*, float* out, uint8_t* winners) {
    const int width = p.out_channels;
    const size_t row = (size_t)p.out_width * width, passed = (size_t)p.passed_width() * width;
    float* kept = p.pooled ? unpooled.of(KEPT * row) : nullptr;
    const auto kept_at = [=](int y) { return kept + y % KEPT * row; };
    for (int n = 0; n < images; ++n, out += p.passed_on()) {
        const float* image = widened_image(p, in, n);
        for (int y = 0; y < p.out_height; ++y) {
            float* to = p.pooled ? kept_at(y) : out + y * row;
            const float* from = image + y * p.wide_row();
            int o = 0;
            for (; o + 2 * W <= width; o += 2 * W)
                convolve_row<2>(p, from, layer.u + o, layer.bias + o, layer.relu, to + o);
            if (o < width) convolve_row<1>(p, from, layer.u + o, layer.bias + o, layer.relu, to + o);
            if (!p.pooled || !is_due(p, y)) continue;
            const size_t at = y / 2 * passed;
            pool_row<float>(p, y / 2, 1, kept_at,
                            [=](int x) { return Rows<float>{out + at + x * width, 0, 1}; },
                            winners ? winners + n * p.passed_on() + at : nullptr);
        }
    }
}

// Adds to `du` [rows, side · channels, O] and `dbias`; a first layer's images have no gradient.
void backward_directly(const Plan& p, const Layer<float>&, int images, const Images& in,
                       const Behind& behind, float* du, float* dbias, const float*, float*) {
    const int width = p.out_channels, taps = p.kernel * p.channels;
    const size_t row = (size_t)p.out_width * width;
    float* of_image = unpooled.of(p.out_image());
    for (int n = 0; n < images; ++n) {
        const float* image = widened_image(p, in, n);
        const float* gradient = behind.gradient + n * p.passed_on();
        if (p.pooled) {
            unpool(p, 1, gradient, behind.winners + n * p.passed_on(), of_image);
            gradient = of_image;
        } else if (behind.activated) {
            std::copy_n(gradient, p.out_image(), of_image);
            rectify(behind.activated + n * p.out_image(), of_image, p.out_image());
            gradient = of_image;
        }
        for (int y = 0; y < p.out_height; ++y, gradient += row) {
            for (int i = 0; i < p.kernel; ++i)
                matmul<Order::COLUMNS_FIRST, true>(taps, width, p.out_width, image + (y + i) * p.wide_row(),
                                                   p.channels, gradient, width, du + i * taps * width,
                                                   width);
            for (int o = 0; o < width; o += W) {
                Vec sum = {};
                for (int x = 0; x < p.out_width; ++x) sum += load(gradient + x * width + o);
                store(dbias + o, load(dbias + o) + sum);
            }
        }
    }
}

}  // namespace
