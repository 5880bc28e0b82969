// Images in groups: the values of one pixel lie together, image by image, and are the rows of a product.
// So no product wastes rows on the edges of an image, and none needs a copy of the pixels under a kernel.
#pragma once

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "pool.h"
#include "products.h"

constexpr int GROUP = 32;  // images; two blocks of rows
constexpr int LINE = 32;   // values in a line of a cache, and the most that a product takes of an image

// So many values or some more, that rows of matrices, if they lie that far apart, do not crowd into the
// same few places of a cache.
INLINE ptrdiff_t spread(ptrdiff_t count) { return (ceil_div(count, LINE) | 1) * LINE; }

// A product takes the channels of one pixel under the kernel, if there are enough to take. Of frames, which
// have three, it takes a strip: what lies under one row of the kernel, side by side in memory. A kernel of
// 8 × 8 has 64 pixels of 3 values each, or 8 strips of 24.
struct Shape : Geometry {
    int side;     // of the kernel, in pixels
    bool strips;
    int taps;     // pixels, or strips, under the kernel
    int values;   // of each image there, and
    int depth;    // these in whole chunks; in a strip, zeros of the kernel meet those beyond its end
    int chunk;    // what a product takes of these
    explicit Shape(const Geometry& given) : Geometry(given) {
        side = kernel * step;
        strips = bytes || channels % BLOCK != 0;
        taps = strips ? side : side * side;
        values = strips ? side * channels : channels;
        depth = strips ? ceil_div(values, LINE) * LINE : channels;
        chunk = chunk_of(depth);
    }
    static int chunk_of(int count) { return count % LINE == 0 ? LINE : BLOCK; }
    int pixels() const { return height * width; }
    int out_pixels() const { return out_height * out_width; }
    int passed_pixels() const { return passed_height() * passed_width(); }
    size_t image() const { return (size_t)pixels() * channels; }
    size_t out_image() const { return (size_t)out_pixels() * out_channels; }
    size_t weights() const { return (size_t)taps * out_channels * depth; }
    // Images for strips are widened to bfloat16, with their padding around them and zeros behind.
    int wide_row() const { return (width + 2 * padding) * channels; }
    // Behind them is what a strip's end, or a pair of rows', may read too much.
    ptrdiff_t wide_image() const { return spread((height + 2 * padding) * wide_row() + LINE + BLOCK); }
    // Where a product's rows, which are images, lie.
    ptrdiff_t source_row() const { return strips ? wide_image() : depth; }
    ptrdiff_t strip_at(int y, int x) const {
        return (ptrdiff_t)y * step * wide_row() + x * step * channels;
    }
};

struct Group {
    int first, images, rows;  // rows beyond the images are computed, but mean nothing
};

namespace {

// Calls `tap(index, y, x)` with the pixels under the kernel that the image has.
template <typename Tap>
INLINE void for_taps(const Shape& s, int y, int x, Tap tap) {
    for (int i = 0; i < s.side; ++i) {
        const int row = y * s.step - s.padding + i;
        if (row < 0 || row >= s.height) continue;
        for (int j = 0; j < s.side; ++j) {
            const int column = x * s.step - s.padding + j;
            if (column >= 0 && column < s.width) tap(i * s.side + j, row, column);
        }
    }
}

// The same from the pixel's side: the outputs that it has a part in.
template <typename Tap>
INLINE void for_outputs(const Shape& s, int row, int column, Tap tap) {
    for (int i = 0; i < s.side; ++i) {
        const int y = row + s.padding - i;
        if (y < 0 || y % s.step || y / s.step >= s.out_height) continue;
        for (int j = 0; j < s.side; ++j) {
            const int x = column + s.padding - j;
            if (x < 0 || x % s.step || x / s.step >= s.out_width) continue;
            tap(i * s.side + j, y / s.step, x / s.step);
        }
    }
}

INLINE void widen_row(const uint8_t* from, int count, Bf16* to) {
    int at = 0;
    for (; at + BLOCK <= count; at += BLOCK) store_as(to + at, bf16_of(from + at));
    uint8_t rest[BLOCK] = {};
    std::memcpy(rest, from + at, count - at);
    const Bf16x16 last = bf16_of(rest);
    std::memcpy(to + at, &last, (count - at) * sizeof(Bf16));
}

INLINE void widen_row(const Bf16* from, int count, Bf16* to) {
    std::memcpy(to, from, count * sizeof(Bf16));
}

// `wide` [rows, height, width, channels], with the padding
template <typename Pixel>
void widen_images(const Shape& s, const Group& g, const Images& images, Bf16* wide) {
    const int row = s.width * s.channels;
    for (int r = 0; r < g.rows; ++r, wide += s.wide_image()) {
        if (s.padding || r >= g.images) std::fill_n(wide, s.wide_image(), 0);
        if (r >= g.images) continue;
        const Pixel* from = images.at<Pixel>(g.first + r);
        Bf16* to = wide + s.padding * (s.wide_row() + s.channels);
        for (int i = 0; i < s.height; ++i, from += row, to += s.wide_row())
            widen_row(from, row, to);
        const size_t all = (size_t)(s.height + 2 * s.padding) * s.wide_row();
        std::fill(wide + all, wide + s.wide_image(), 0);
    }
}

// Pixels of a group: `blocks` [pixels, rows, channels] ← images [height, width, channels], changed by
// `value(image's, image, place in it)`; zero for rows without an image.
template <typename Value>
INLINE void fill_blocks(const Group& g, int pixels, int channels, const Images& images, Bf16* blocks,
                        Value value) {
    for (int r = 0; r < g.rows; ++r)
        for (int pixel = 0; pixel < pixels; ++pixel)
            for (int c = 0; c < channels; c += BLOCK) {
                const size_t at = (size_t)pixel * channels + c;
                Bf16x16 x = {};
                if (r < g.images) x = value(load_as<Bf16x16>(images.at<Bf16>(g.first + r) + at), g.first + r, at);
                store_as(blocks + ((size_t)pixel * g.rows + r) * channels + c, x);
            }
}

// Two rows value by value: `pairs` [count, 2]; reads and writes whole blocks.
INLINE void pair_rows(const Bf16* first, const Bf16* second, ptrdiff_t count, Bf16* pairs) {
    for (ptrdiff_t i = 0; i < count; i += BLOCK)
        store_as(pairs + 2 * i, paired(load_as<Bf16x16>(first + i), load_as<Bf16x16>(second + i)));
}

// `columns` [count, 32] ← `rows` [32, count]
INLINE void turn_rows(const Bf16* rows, int count, Bf16* columns) {
    for (int r = 0; r < GROUP; r += BLOCK)
        for (int c = 0; c < count; c += BLOCK)
            transpose(rows + r * count + c, count, columns + c * GROUP + r, GROUP);
}

}  // namespace
