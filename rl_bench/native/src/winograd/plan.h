// Sizes of one convolution that Winograd's filtering derives from its geometry, with the terms they are
// named by.
//
// Every function in this directory takes a `Plan`; the extern "C" functions in winograd.cpp make it from
// the ConvGeometry that Python passes. It decides how a layer is computed: by filtering or by the
// definition, from the image itself or from a copy, and in blocks of which size.
#pragma once

#include <algorithm>

#include "../common/conv_layer.h"
#include "transforms.h"

namespace {

// Returns the distance in floats between the matrices [rows, width] of two points. The 16 extra floats keep
// it from being a power of two: a tile's points are written together, and would compete for one cache set.
INLINE size_t plane_size(int rows, int width) { return (size_t)rows * width + 16; }

// Terms:
// - A cell is stride × stride neighbouring pixels taken as one, with stride² · channels values. In cells
//   every convolution has stride 1 and a kernel of R × R cells, R = 2 or 3.
// - A tile is T × T input cells from which M × M outputs are computed, M = T + 1 − R. Tiles overlap by R −
//   1 cells.
// - A point is one of the T² elements of a transformed tile. For each point there is one matrix product
//   Y[rows, O] = V[rows, depth] · U[depth, O], whose rows are tiles and whose depth is a cell's values.
// - A block is the set of tiles that are computed together, about a hundred: some tiles of one image, or
//   all tiles of a few images.
struct Plan : ConvGeometry {
    int pair_size;                          // values of a sum stored together: 1, or 2 as a Bf16Pair
    int points;                             // T²
    int tile_outputs, down, across, tiles;  // M; tiles per column, per row and per image
    int depth, lanes;                       // a cell's values, and these rounded up to 16
    int v_row, dv_row;                      // row strides of V and of its gradient
    int grid_height, grid_width;            // cells under the tiles, with padding
    int block_images, block_tiles;          // images per block, and tiles of each
    int image_rows, image_columns;          // cells that pixels fill, behind the padding
    bool gathered;                          // cells are copied before they are transformed
    bool filled;                            // pixels then fill the whole copy, without padding
    bool direct;                            // computed by the definition instead (direct.h)

    explicit Plan(const ConvGeometry& geometry) : ConvGeometry(geometry) {
        const int side = kernel_cells == 2 ? Minimal<2>::T : Minimal<3>::T;
        points = side * side, tile_outputs = side + 1 - kernel_cells;
        down = ceil_div(out_height, tile_outputs), across = ceil_div(out_width, tile_outputs);
        tiles = down * across;
        pair_size = bf16_products ? 2 : 1;
        depth = stride * stride * channels, lanes = ceil_div(depth, 16) * 16;
        v_row = padded_stride(lanes / pair_size), dv_row = padded_stride(lanes);
        grid_height = down * tile_outputs + kernel_cells - 1;
        grid_width = across * tile_outputs + kernel_cells - 1;
        image_rows = height / stride, image_columns = width / stride;
        gathered = uint8_images || stride * channels % VEC_FLOATS != 0;
        filled = !padding && image_rows == grid_height && image_columns == grid_width && depth == lanes;
        direct = stride == 1 && (uint8_images || channels % 16 != 0);
        // With about 96 rows a product does enough work to be worth fetching U for.
        block_images = std::max(96 / tiles, 1);
        block_tiles = block_images > 1 ? tiles : ceil_div(tiles, ceil_div(tiles, 96));
    }
    // Returns the number of elements, floats or pairs, that hold `count` values along a sum.
    int elements(int count) const { return ceil_div(count, pair_size); }
    // Sizes in values: an input image, the copy of its cells, its output before a pool.
    size_t image() const { return (size_t)height * width * channels; }
    size_t grid() const { return (size_t)grid_height * grid_width * lanes; }
    size_t out_image() const { return (size_t)out_height * out_width * out_channels; }
    // Sizes of a block's matrices of all points, in floats: V or its gradient, and Y or its gradient.
    size_t inputs() const { return points * plane_size(block_images * block_tiles, dv_row); }
    size_t outputs() const { return points * plane_size(block_images * block_tiles, out_channels); }
    // Returns the number of weights of one filter.
    int taps() const { return stride * kernel_cells * stride * kernel_cells * channels; }
    // Returns the size of the gradient of U, in floats.
    size_t weights() const {
        return direct ? (size_t)taps() * out_channels : points * plane_size(out_channels, lanes);
    }
    // Returns the values in a row of an image with its padding.
    size_t wide_row() const { return (size_t)(width + 2 * padding) * channels; }
};

}  // namespace
