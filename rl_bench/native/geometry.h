// What a convolution is given, and what follows from it.
#pragma once

#include <algorithm>

#include "vectors.h"

struct Geometry {
    int32_t images, height, width, channels;  // of the input [images, height, width, channels]
    int32_t step, padding, kernel;            // kernel in cells, 2 or 3
    int32_t out_height, out_width, out_channels;
    int32_t bytes;  // whether the input is uint8 instead of float; pixels then count as bytes / 255
    int32_t threads;
};

namespace {

// What follows from the geometry. Cells are the pixels of the convolution of stride 1.
struct Plan : Geometry {
    int made, down, across, tiles;        // outputs per tile and side; tiles per image
    int depth, lanes;                     // a cell's channels, and those in whole vectors
    int grid_height, grid_width;          // cells under the tiles
    int block, chunk;                     // images at a time, and tiles of each
    bool direct;                          // whether the input itself is the grid
    bool bordered;                        // whether pixels leave a part of the grid free

    explicit Plan(const Geometry& given) : Geometry(given) {
        made = 5 - kernel;
        down = ceil_div(out_height, made), across = ceil_div(out_width, made);
        tiles = down * across;
        depth = step * step * channels, lanes = ceil_div(depth, W) * W;
        grid_height = down * made + kernel - 1, grid_width = across * made + kernel - 1;
        direct = step == 1 && padding == 0 && !bytes && lanes == depth && grid_height == height &&
                 grid_width == width;
        bordered = padding > 0 || lanes != depth || height / step < grid_height ||
                   width / step < grid_width;
        // Enough rows for the products that U is worth fetching, few enough to stay in the cache.
        block = std::clamp(96 / tiles, 1, 32);
        chunk = block > 1 ? tiles : ceil_div(tiles, ceil_div(tiles, 96));
    }
    size_t image() const { return (size_t)height * width * channels; }
    size_t grid() const { return (size_t)grid_height * grid_width * lanes; }
    size_t out_image() const { return (size_t)out_height * out_width * out_channels; }
    size_t inputs() const { return (size_t)16 * block * chunk * lanes; }
    size_t outputs() const { return (size_t)16 * block * chunk * out_channels; }
    size_t weights() const { return (size_t)16 * lanes * out_channels; }
};

}  // namespace
