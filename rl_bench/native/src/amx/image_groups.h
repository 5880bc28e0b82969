// Activations of a group of images interleaved for AMX, and the sizes of a layer that follow from it.
//
// A group is 32 images (or 16, in inference). Its activations lie as [pixels, images, channels]: the values
// of one pixel are contiguous, image by image, and are the rows of a matrix product. So no product wastes
// rows at the edges of an image, and none needs a copy of the pixels under the kernel (no im2col). A tap is
// what one product takes of each image: the channels of one pixel under the kernel. First layers have too
// few channels for that. Their tap is a strip: the values under one row of the kernel, contiguous in an
// image that is not interleaved. A kernel of 8 × 8 × 3 has 8 strips of 24 values, not 64 taps of 3.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/conv_layer.h"
#include "../common/max_pool.h"
#include "matrix_unit.h"

constexpr int GROUP = 32;  // images in a group, two AMX tiles of rows; as in convolution.py
constexpr int LINE = 32;   // bf16 values in a cache line, and the most that a product sums over

// Returns a stride of at least `count` values, an odd number of cache lines: rows a power of two apart
// would compete for the same few sets of a cache.
INLINE ptrdiff_t odd_lines(ptrdiff_t count) { return (ceil_div(count, LINE) | 1) * LINE; }

// Sizes of one convolution that the AMX kernels derive from its geometry.
struct Plan : ConvGeometry {
    int side;     // the kernel's side in pixels
    bool strips;  // taps are strips instead of pixels
    int taps;     // taps per filter
    int values;   // values per tap and image
    int depth;    // values rounded up to whole products; the kernel is zero beyond a strip's end
    int chunk;    // values that one product sums over: 16 or 32
    explicit Plan(const ConvGeometry& geometry) : ConvGeometry(geometry) {
        side = kernel_cells * stride;
        strips = uint8_images || channels % BLOCK != 0;
        taps = strips ? side : side * side;
        values = strips ? side * channels : channels;
        depth = strips ? ceil_div(values, LINE) * LINE : channels;
        chunk = chunk_size(depth);
    }
    static int chunk_size(int count) { return count % LINE == 0 ? LINE : BLOCK; }
    // Sizes of one image: in pixels, before and behind the convolution and behind the pool, and in values.
    int pixels() const { return height * width; }
    int out_pixels() const { return out_height * out_width; }
    int next_pixels() const { return next_height() * next_width(); }
    size_t image() const { return (size_t)pixels() * channels; }
    size_t out_image() const { return (size_t)out_pixels() * out_channels; }
    // Returns the size of a packed kernel or of its gradient, in values.
    size_t weights() const { return (size_t)taps * out_channels * depth; }
    // Images for strips are converted to bf16 with their padding: the values in a row, and the stride
    // between images. Behind an image there are zeros, which the end of a last strip, or of a pair of rows,
    // reads.
    int padded_row() const { return (width + 2 * padding) * channels; }
    ptrdiff_t padded_image() const { return odd_lines((height + 2 * padding) * padded_row() + LINE + BLOCK); }
    // Returns the distance between the rows of a left matrix, which are images.
    ptrdiff_t source_row() const { return strips ? padded_image() : depth; }
    // Returns the offset in a padded image of the first strip under the kernel for output (y, x).
    ptrdiff_t strip_offset(int y, int x) const {
        return (ptrdiff_t)y * stride * padded_row() + x * stride * channels;
    }
};

// Images [first, first + images), interleaved in `rows` rows. Rows beyond `images` are computed and
// ignored.
struct Group {
    int first, images, rows;
};

namespace {

// Calls `visit(tap, row, column)` for the input pixels under the kernel of output (y, x), without padding.
template <typename Visit>
INLINE void for_inputs(const Plan& p, int y, int x, Visit visit) {
    for (int i = 0; i < p.side; ++i) {
        const int row = y * p.stride - p.padding + i;
        if (row < 0 || row >= p.height) continue;
        for (int j = 0; j < p.side; ++j) {
            const int column = x * p.stride - p.padding + j;
            if (column >= 0 && column < p.width) visit(i * p.side + j, row, column);
        }
    }
}

// Calls `visit(tap, y, x)` for the outputs that read input pixel (row, column).
template <typename Visit>
INLINE void for_outputs(const Plan& p, int row, int column, Visit visit) {
    for (int i = 0; i < p.side; ++i) {
        const int y = row + p.padding - i;
        if (y < 0 || y % p.stride || y / p.stride >= p.out_height) continue;
        for (int j = 0; j < p.side; ++j) {
            const int x = column + p.padding - j;
            if (x < 0 || x % p.stride || x / p.stride >= p.out_width) continue;
            visit(i * p.side + j, y / p.stride, x / p.stride);
        }
    }
}

// Converts `count` bytes to bf16.
INLINE void convert_row(const uint8_t* from, int count, Bf16* to) {
    int at = 0;
    for (; at + BLOCK <= count; at += BLOCK) store_as(to + at, bytes_to_bf16(from + at));
    uint8_t rest[BLOCK] = {};
    std::memcpy(rest, from + at, count - at);
    const Bf16x16 last = bytes_to_bf16(rest);
    std::memcpy(to + at, &last, (count - at) * sizeof(Bf16));
}

// Copies `count` values.
INLINE void convert_row(const Bf16* from, int count, Bf16* to) {
    std::memcpy(to, from, count * sizeof(Bf16));
}

// Converts a group's images to bf16 with their padding: `padded` [rows, height + 2 · padding, padded_row].
// Rows without an image are zero.
template <typename Pixel>
void pad_images(const Plan& p, const Group& g, const ImageBatch& images, Bf16* padded) {
    const int row = p.width * p.channels;
    for (int r = 0; r < g.rows; ++r, padded += p.padded_image()) {
        if (p.padding || r >= g.images) std::fill_n(padded, p.padded_image(), 0);
        if (r >= g.images) continue;
        const Pixel* from = images.at<Pixel>(g.first + r);
        Bf16* to = padded + p.padding * (p.padded_row() + p.channels);
        for (int i = 0; i < p.height; ++i, from += row, to += p.padded_row())
            convert_row(from, row, to);
        const size_t all = (size_t)(p.height + 2 * p.padding) * p.padded_row();
        std::fill(padded + all, padded + p.padded_image(), 0);
    }
}

// Interleaves a group's images: `to` [pixels, rows, channels] ← images [pixels, channels]. `change(x,
// image, offset)` is applied to each sixteen values x at `offset` of number `image`. Rows without an image
// are zero.
template <typename Change>
INLINE void interleave_images(const Group& g, int pixels, int channels, const ImageBatch& images, Bf16* to,
                              Change change) {
    for (int r = 0; r < g.rows; ++r)
        for (int pixel = 0; pixel < pixels; ++pixel)
            for (int c = 0; c < channels; c += BLOCK) {
                const size_t at = (size_t)pixel * channels + c;
                Bf16x16 x = {};
                if (r < g.images)
                    x = change(load_as<Bf16x16>(images.at<Bf16>(g.first + r) + at), g.first + r, at);
                store_as(to + ((size_t)pixel * g.rows + r) * channels + c, x);
            }
}

// Pairs two rows value by value: `pairs` [count, 2] ← `first`, `second` [count]. It reads and writes whole
// blocks of 16.
INLINE void pair_rows(const Bf16* first, const Bf16* second, ptrdiff_t count, Bf16* pairs) {
    for (ptrdiff_t i = 0; i < count; i += BLOCK)
        store_as(pairs + 2 * i, pack_pairs(load_as<Bf16x16>(first + i), load_as<Bf16x16>(second + i)));
}

// Transposes one pixel of a group: `columns` [count, 32] ← `rows` [32, count]; count is a multiple of 16.
INLINE void transpose_pixel(const Bf16* rows, int count, Bf16* columns) {
    for (int r = 0; r < GROUP; r += BLOCK)
        for (int c = 0; c < count; c += BLOCK)
            transpose_16x16(rows + r * count + c, count, columns + c * GROUP + r, GROUP);
}

}  // namespace
