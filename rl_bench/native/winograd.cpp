// Convolutions of channels-last images in float32, by Winograd's minimal filtering.
//
// A kernel of 3 × 3 gives 4 × 4 outputs of each 6 × 6 inputs with 36 products per pair of channels instead
// of 144, one of 2 × 2 gives 3 × 3 outputs of each 4 × 4 inputs with 16 instead of 36. A strided convolution
// becomes one of stride 1 by taking `step` × `step` pixels for one cell with step² times the channels.
// Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308);
// the gradients are the transposed transforms.
//
// Works on about a hundred tiles at a time, of several images or of a part of one.
// U [points, cells' channels, O] is the transformed kernel, which lies in memory as O, rows, columns,
// channels; points are the products of a tile.

#include "images.h"
#include "kernel.h"
#include "matmul.h"
#include "threads.h"

namespace {

thread_local Scratch grids, gradient_grids, rows_of_pixels, inputs, products;
thread_local Scratch kernels, weight_gradients, bias_gradients;

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
template <int R>
float* inputs_of(const Plan& p, const void* images, int start, int stop, int tile) {
    float* v = inputs.of(p.inputs());
    for_images(p, start, stop, tile, [&](int n, const Part& part) {
        // Chunks of one image share its copy; a block of several has one chunk of each.
        const bool kept = tile > 0 && !p.direct;
        const float* cells = kept ? grids.of(p.grid()) : cells_of(p, images, n);
        transform_inputs<R>(p, part, cells, v);
    });
    return v;
}

// Calls for each block and chunk, of which every thread has its share, and says which is the thread's first.
template <typename Block>
void for_blocks(const Plan& p, Block block) {
    in_shares(p.images, p.threads, [&](int first, int last, int thread) {
        for (int start = first; start < last; start += p.block)
            for (int tile = 0; tile < p.tiles; tile += p.chunk)
                block(start, std::min(start + p.block, last), tile, thread,
                      start == first && tile == 0);
    });
}

template <int R>
void forward(const Plan& p, const void* images, const float* u, const float* bias, bool relu,
             float* out) {
    for_blocks(p, [&](int start, int stop, int tile, int, bool) {
        const float* v = inputs_of<R>(p, images, start, stop, tile);
        float* y = products.of(p.outputs());
        const int rows = (stop - start) * (std::min(tile + p.chunk, p.tiles) - tile);
        for (int k = 0; k < p.points; ++k)
            matmul<Order::ROWS_FIRST, false>(
                rows, p.out_channels, p.depth, v + k * plane_of(rows, p.lanes), p.lanes,
                u + k * plane_of(p.depth, p.out_channels), y + k * plane_of(rows, p.out_channels));
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            transform_outputs<R>(p, part, y, bias, relu, out + n * p.out_image());
        });
    });
}

template <int R>
void backward(const Plan& p, const float* gradient, const float* activated, const void* images,
              const float* u_transposed, float* du_transposed, float* dbias, float* dimages) {
    for_blocks(p, [&](int start, int stop, int tile, int thread, bool first) {
        const int width = p.out_channels;
        float* du = du_transposed + thread * p.weights();
        if (first) std::fill_n(dbias + thread * width, width, 0.0f);
        const int rows = (stop - start) * (std::min(tile + p.chunk, p.tiles) - tile);
        const float* v = inputs_of<R>(p, images, start, stop, tile);
        float* dy = products.of(p.outputs());
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            const size_t at = n * p.out_image();
            untransform_outputs<R>(p, part, gradient + at, activated ? activated + at : nullptr,
                                   dy, dbias + thread * width);
        });
        const auto add = first ? matmul<Order::COLUMNS_FIRST, false>
                               : matmul<Order::COLUMNS_FIRST, true>;
        for (int k = 0; k < p.points; ++k)
            add(width, p.lanes, rows, dy + k * plane_of(rows, width), width,
                v + k * plane_of(rows, p.lanes), du + k * plane_of(width, p.lanes));
        if (!dimages) return;
        float* dv = inputs.of(p.inputs());  // V is not needed any more
        for (int k = 0; k < p.points; ++k)
            matmul<Order::ROWS_FIRST, false>(
                rows, p.depth, width, dy + k * plane_of(rows, width), width,
                u_transposed + k * plane_of(width, p.depth), dv + k * plane_of(rows, p.lanes));
        for_images(p, start, stop, tile, [&](int n, const Part& part) {
            float* image = dimages + n * p.image();
            float* grid = p.direct ? image : gradient_grids.of(p.grid());
            if (tile == 0) std::fill(grid, grid + p.grid(), 0.0f);
            untransform_inputs<R>(p, part, dv, grid);
            if (!p.direct && part.stop == p.tiles) scatter(p, grid, image);
        });
    });
}

INLINE float scale_of(const Plan& p) { return p.bytes ? 1.0f / 255.0f : 1.0f; }

}  // namespace

// The size of U and of its transpose, in floats.
extern "C" int32_t winograd_size(const Geometry* geometry) {
    const Plan p(*geometry);
    return p.points * plane_of(p.depth, p.out_channels);
}

// U [points, depth, O] of a kernel and, unless null, the same as [points, O, depth], which gradients of
// images need.
extern "C" void winograd_kernel(const Geometry* geometry, const float* kernel, float* u,
                                float* u_transposed) {
    const Plan p(*geometry);
    float* turned = kernels.of((size_t)p.taps() * p.out_channels);
    transpose(kernel, p.out_channels, p.taps(), turned);
    in_shares(p.depth, p.threads, [&](int first, int last, int) {
        (p.kernel == 2 ? turn_kernel<2> : turn_kernel<3>)(p, first, last, turned, scale_of(p), u);
    });
    if (!u_transposed) return;
    in_shares(p.out_channels, p.threads, [&](int first, int last, int) {
        (p.kernel == 2 ? transform_kernel<2> : transform_kernel<3>)(p, first, last, kernel,
                                                                    scale_of(p), u_transposed);
    });
}

// out [images, out_height, out_width, O] of U and bias [O].
extern "C" void winograd_forward(const Geometry* geometry, const void* images, const float* u,
                                 const float* bias, int32_t relu, float* out) {
    const Plan p(*geometry);
    (p.kernel == 2 ? forward<2> : forward<3>)(p, images, u, bias, relu, out);
}

// Gradients of kernel and bias and, unless null, of the images.
extern "C" void winograd_backward(const Geometry* geometry, const float* gradient,
                                  const float* activated, const void* images,
                                  const float* u_transposed, float* dkernel, float* dbias,
                                  float* dimages) {
    const Plan p(*geometry);
    float* du_transposed = weight_gradients.of(p.threads * p.weights());
    float* biases = bias_gradients.of((size_t)p.threads * p.out_channels);
    (p.kernel == 2 ? backward<2> : backward<3>)(p, gradient, activated, images, u_transposed,
                                                du_transposed, biases, dimages);
    std::fill_n(dbias, p.out_channels, 0.0f);
    for (int thread = 0; thread < p.threads; ++thread)
        for (int o = 0; o < p.out_channels; ++o) dbias[o] += biases[thread * p.out_channels + o];
    in_shares(p.out_channels, p.threads, [&](int first, int last, int) {
        (p.kernel == 2 ? untransform_kernel<2> : untransform_kernel<3>)(
            p, first, last, du_transposed, scale_of(p), dkernel);
    });
}
