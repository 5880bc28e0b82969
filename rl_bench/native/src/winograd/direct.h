// Convolution by the definition, for first layers of stride 1, forward and back.
//
// Winograd's filtering does not pay for them: their few channels leave little to save, and their many
// pixels much to transform. y[i, j, o] = bias[o] + Σ x[i + a, j + b, c] · k[o, a, b, c], where x is the
// padded image: floats [height + 2 · padding, (width + 2 · padding) · channels]. Bytes are read as 0 to 255:
// the kernel is packed already divided by 255, and winograd.cpp scales `du` likewise. All is computed in
// float32. As the stride is 1, kernel_cells is the kernel's side. O is a multiple of VEC_FLOATS.
// There the values under one row of the kernel are contiguous, and those of the next output begin
// `channels` further on: the rows of a left matrix that overlap. The kernel is packed as U [kernel rows,
// side · channels, O]. One thread computes one image at a time, row by row, in tiles of TILE_ROWS pixels
// and two vectors of filters as in matmul.h.
#pragma once

#include "layer.h"

namespace {

thread_local Scratch<float> padded_images;

// Returns `image` [height, width, channels] as floats, bytes as 0 to 255, with zeros around it: [height + 2 ·
// padding, wide_row()], in the calling thread's buffer until the next call.
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

// Computes the outputs of M neighbouring pixels for N · VEC_FLOATS of the O filters; pixel m's go to `to` +
// m · O. `image` points into the padded image, at the first value under the first pixel; one pixel further
// is `channels` floats on. `u` [kernel rows, side · channels, O] and `bias` begin at the first filter.
template <int M, int N>
INLINE void convolve_pixels(const Plan& p, const float* image, const float* u, const float* bias, bool relu,
                            float* to) {
    const int filters = p.out_channels, across = p.channels, row_values = p.kernel_cells * p.channels;
    Vec sums[M][N];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
        for (int n = 0; n < N; ++n) sums[m][n] = load(bias + n * VEC_FLOATS);
    for (int i = 0; i < p.kernel_cells; ++i, image += p.wide_row())
        for (int k = 0; k < row_values; ++k, u += filters) {
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
            store(to + m * filters + n * VEC_FLOATS,
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

// Computes N · VEC_FLOATS of the O filters of one output row; pixels of `to` are O apart. `image` is the row
// of the padded image under the kernel's first row.
template <int N>
void convolve_row(const Plan& p, const float* image, const float* u, const float* bias, bool relu,
                  float* to) {
    const int parts = ceil_div(p.out_width, TILE_ROWS);  // of nearly equal length
    for (int part = 0; part < parts; ++part) {
        const int x = part_begin(part, parts, p.out_width), end = part_begin(part + 1, parts, p.out_width);
        convolve_some<N>(end - x, p, image + x * p.channels, u, bias, relu, to + x * p.out_channels);
    }
}

// Computes the layer's outputs `out` [images, next_height, next_width, O], like `forward` of layer.h. Row by
// row: straight into `out`, or into a ring of RING_ROWS rows that `pool_row` reads as soon as it can. A first
// layer has no residual input, so that argument is ignored, and no ReLU before it.
void forward_directly(const Plan& p, const ConvLayer<float>& layer, int images, const ImageBatch& in,
                      const float*, float* out, uint8_t* argmax) {
    const int filters = p.out_channels;
    const size_t row = (size_t)p.out_width * filters, pooled_row = (size_t)p.next_width() * filters;
    float* ring = p.pooled ? unpooled.get(RING_ROWS * row) : nullptr;
    const auto ring_row = [=](int y) { return ring + y % RING_ROWS * row; };
    for (int n = 0; n < images; ++n, out += p.next_size()) {
        const float* image = padded_image(p, in, n);
        for (int y = 0; y < p.out_height; ++y) {
            float* to = p.pooled ? ring_row(y) : out + y * row;
            const float* from = image + y * p.wide_row();
            int o = 0;
            for (; o + 2 * VEC_FLOATS <= filters; o += 2 * VEC_FLOATS)
                convolve_row<2>(p, from, layer.packed_kernel + o, layer.bias + o, layer.relu, to + o);
            if (o < filters)
                convolve_row<1>(p, from, layer.packed_kernel + o, layer.bias + o, layer.relu, to + o);
            if (!p.pooled || !pool_row_complete(p, y)) continue;
            const size_t at = y / 2 * pooled_row;
            pool_row<float>(p, y / 2, 1, ring_row,
                            // One row for each pixel, so that its stride is not used.
                            [=](int x) { return PixelRows<float>{out + at + x * filters, 0, 1}; },
                            argmax ? argmax + n * p.next_size() + at : nullptr);
        }
    }
}

// Adds the layer's gradients to `du` [kernel rows, side · channels, O], the layout of the packed kernel and
// not transposed as in layer.h, and to `dbias` [O]. The other arguments are ignored: a first layer's images
// need no gradient. A layer has a pool or a ReLU, never both (conv_plan.py, `_check`).
void backward_directly(const Plan& p, const ConvLayer<float>&, int images, const ImageBatch& in,
                       const OutputGradient& out, float* du, float* dbias, const float*, float*) {
    const int filters = p.out_channels, row_values = p.kernel_cells * p.channels;
    const size_t row = (size_t)p.out_width * filters;
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
            // du[i] [side · channels, O] += Pᵀ dy: column x of Pᵀ is the patch under pixel x. Patches
            // overlap, `channels` floats apart, hence a column-major left matrix with that stride.
            for (int i = 0; i < p.kernel_cells; ++i)
                matmul<Order::COLUMN_MAJOR, true>(row_values, filters, p.out_width,
                                                  image + (y + i) * p.wide_row(), p.channels, gradient,
                                                  filters, du + i * row_values * filters, filters);
            for (int o = 0; o < filters; o += VEC_FLOATS) {
                Vec sum = {};
                for (int x = 0; x < p.out_width; ++x) sum += load(gradient + x * filters + o);
                store(dbias + o, load(dbias + o) + sum);
            }
        }
    }
}

}  // namespace
