// Products of small matrices that lie in the cache: C[rows, width] = or += A[rows, depth] B[depth, width].
//
// The result is computed in tiles of up to TILE_ROWS rows and two vectors of columns, which stay in
// registers while the loop runs over `depth`. A and B hold floats, or bf16 pairs along `depth`, which then
// counts pairs; C holds floats. B may lie row by row, or in panels of PANEL_WIDTH columns: a panel [depth,
// PANEL_WIDTH] is read from front to back, and fills the first-level cache evenly. Called by one thread at
// a time on its own memory: Winograd's products per point, and dense layers.
#pragma once

#include <algorithm>

#include "bf16_pairs.h"

// Memory order of A. It is a template parameter, as the inner loop has no register to spare for a second
// stride.
enum class Order { ROW_MAJOR, COLUMN_MAJOR };

// Computes one tile: C[M, N · VEC_FLOATS] = or += A[M, depth] B[depth, N · VEC_FLOATS]. `a_stride` is the
// distance between rows of A or, COLUMN_MAJOR, between its columns; `b_row` and `c_row` between rows of B
// and C.
template <Order ORDER, int M, int N, bool ADD, typename Value>
INLINE void multiply_tile(const Value* a, ptrdiff_t a_stride, const Value* b, ptrdiff_t b_row, float* c,
                          ptrdiff_t c_row, ptrdiff_t depth) {
    Vec sums[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) sums[i][j] = ADD ? load(c + i * c_row + j * VEC_FLOATS) : Vec{};
    for (ptrdiff_t k = 0; k < depth; ++k) {
        Vec row[N];
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) row[j] = load(b + k * b_row + j * VEC_FLOATS);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            Vec factor = broadcast(ORDER == Order::ROW_MAJOR ? a[i * a_stride + k] : a[k * a_stride + i]);
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) sums[i][j] = multiply_add(sums[i][j], factor, row[j], Value{});
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) store(c + i * c_row + j * VEC_FLOATS, sums[i][j]);
}

// Calls `multiply_tile` with the number of `rows`, at most M, as a template parameter.
template <Order ORDER, int N, bool ADD, int M = TILE_ROWS, typename Value>
INLINE void multiply_tile_rows(int rows, const Value* a, ptrdiff_t a_stride, const Value* b, ptrdiff_t b_row,
                               float* c, ptrdiff_t c_row, ptrdiff_t depth) {
    if constexpr (M > 0) {
        if (rows == M)
            multiply_tile<ORDER, M, N, ADD>(a, a_stride, b, b_row, c, c_row, depth);
        else
            multiply_tile_rows<ORDER, N, ADD, M - 1>(rows, a, a_stride, b, b_row, c, c_row, depth);
    }
}

// Multiplies all `rows` of A with N vectors of columns of B, in tiles of nearly equal height.
template <Order ORDER, int N, bool ADD, typename Value>
static void multiply_columns(int rows, const Value* a, ptrdiff_t a_stride, const Value* b, ptrdiff_t b_row,
                             float* c, ptrdiff_t c_row, ptrdiff_t depth) {
    const int tiles = ceil_div(rows, TILE_ROWS);
    for (int t = 0; t < tiles; ++t) {
        const ptrdiff_t start = part_begin(t, tiles, rows), stop = part_begin(t + 1, tiles, rows);
        const ptrdiff_t a_offset = start * (ORDER == Order::ROW_MAJOR ? a_stride : 1);
        multiply_tile_rows<ORDER, N, ADD>(stop - start, a + a_offset, a_stride, b, b_row, c + start * c_row,
                                          c_row, depth);
    }
}

constexpr int PANEL_WIDTH = 2 * VEC_FLOATS;  // columns of B that one tile reads

// Computes C[rows, width] = or += A[rows, depth] B[depth, width] with B row by row; `width` is a multiple
// of VEC_FLOATS.
template <Order ORDER, bool ADD, typename Value>
static void matmul(int rows, int width, int depth, const Value* a, ptrdiff_t a_stride, const Value* b,
                   ptrdiff_t b_row, float* c, ptrdiff_t c_row) {
    int j = 0;
    for (; j + PANEL_WIDTH <= width; j += PANEL_WIDTH)
        multiply_columns<ORDER, 2, ADD>(rows, a, a_stride, b + j, b_row, c + j, c_row, depth);
    if (j < width) multiply_columns<ORDER, 1, ADD>(rows, a, a_stride, b + j, b_row, c + j, c_row, depth);
}

// Returns the offset of B[row, column] in panels [⌈width / PANEL_WIDTH⌉, depth, PANEL_WIDTH], the last of
// which may be VEC_FLOATS wide.
INLINE size_t panel_offset(int row, int column, int depth, int width) {
    const int first = column / PANEL_WIDTH * PANEL_WIDTH;
    return (size_t)first * depth + row * std::min(PANEL_WIDTH, width - first) + column - first;
}

// Computes C[rows, width] = A[rows, depth] B[depth, width] with A row by row and B in `panels`.
template <typename Value>
static void matmul_panels(int rows, int width, int depth, const Value* a, ptrdiff_t a_row,
                          const Value* panels, float* c, ptrdiff_t c_row) {
    for (int j = 0; j < width; j += PANEL_WIDTH) {
        const Value* b = panels + (size_t)j * depth;
        if (j + PANEL_WIDTH <= width)
            multiply_columns<Order::ROW_MAJOR, 2, false>(rows, a, a_row, b, PANEL_WIDTH, c + j, c_row, depth);
        else
            multiply_columns<Order::ROW_MAJOR, 1, false>(rows, a, a_row, b, VEC_FLOATS, c + j, c_row, depth);
    }
}
