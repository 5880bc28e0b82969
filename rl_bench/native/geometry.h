// What follows from the geometry of a convolution for its tiles.
#pragma once

#include <algorithm>

#include "arguments.h"
#include "transforms.h"

namespace {

// Floats from one point's matrix [rows, width] to the next one's. What is written together would crowd into
// the same few places of a cache, if it lay a power of two apart.
INLINE size_t plane_of(int rows, int width) { return (size_t)rows * width + 16; }

// What follows from the geometry. Cells are the pixels of the convolution of stride 1.
struct Plan : Geometry {
    int per;                              // values along a sum that lie together: 1, or a pair
    int points;                           // products per tile and pair of channels
    int made, down, across, tiles;        // outputs per tile and side; tiles per image
    int depth, lanes;                     // a cell's channels, and those in whole vectors
    int row, drow;                        // from one cell's to the next one's, and for gradients
    int grid_height, grid_width;          // cells under the tiles
    int block, chunk;                     // images at a time, and tiles of each
    int above, beside;                    // cells that pixels fill, from the padding on
    bool gathered;                        // whether cells are looked at in a copy of the image
    bool filled;                          // and pixels fill all of it
    bool direct;                          // whether products are those of the definition (direct.h)

    explicit Plan(const Geometry& given) : Geometry(given) {
        const int side = kernel == 2 ? Minimal<2>::T : Minimal<3>::T;
        points = side * side, made = side + 1 - kernel;
        down = ceil_div(out_height, made), across = ceil_div(out_width, made);
        tiles = down * across;
        per = halves ? 2 : 1;
        depth = step * step * channels, lanes = ceil_div(depth, 16) * 16;
        row = apart(lanes / per), drow = apart(lanes);
        grid_height = down * made + kernel - 1, grid_width = across * made + kernel - 1;
        above = height / step, beside = width / step;
        gathered = bytes || step * channels % W != 0;
        filled = !padding && above == grid_height && beside == grid_width && depth == lanes;
        direct = step == 1 && (bytes || channels % 16 != 0);
        // Enough rows for the products that U is worth fetching.
        block = std::max(96 / tiles, 1);
        chunk = block > 1 ? tiles : ceil_div(tiles, ceil_div(tiles, 96));
    }
    int sums_of(int count) const { return ceil_div(count, per); }  // products that so many values take
    size_t image() const { return (size_t)height * width * channels; }
    size_t grid() const { return (size_t)grid_height * grid_width * lanes; }
    size_t out_image() const { return (size_t)out_height * out_width * out_channels; }
    size_t inputs() const { return points * plane_of(block * chunk, drow); }
    size_t outputs() const { return points * plane_of(block * chunk, out_channels); }
    int taps() const { return step * kernel * step * kernel * channels; }  // of a filter
    size_t weights() const {
        return direct ? (size_t)taps() * out_channels : points * plane_of(out_channels, lanes);
    }
    size_t wide_row() const { return (size_t)(width + 2 * padding) * channels; }
};

}  // namespace
