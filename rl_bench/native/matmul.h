// Products of small matrices that lie in the cache, one tile of the result in registers at a time.
#pragma once

#include <algorithm>

#include "pairs.h"

// How the left matrix lies in memory: row by row, or column by column. What is known when this is
// compiled needs no register, of which the inner loop has none to spare.
enum class Order { ROWS_FIRST, COLUMNS_FIRST };

// C[M × N·W] = or += A[M, depth] B[depth, N·W]. `a_stride` lies between rows of A, or between columns;
// B and C lie row by row. A and B are floats, or pairs along what is summed up, whose number depth is then.
template <Order ORDER, int M, int N, bool ADD, typename Value>
INLINE void tile(const Value* a, ptrdiff_t a_stride, const Value* b, ptrdiff_t b_row, float* c,
                 ptrdiff_t c_row, ptrdiff_t depth) {
    Vec sums[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) sums[i][j] = ADD ? load(c + i * c_row + j * W) : Vec{};
    for (ptrdiff_t k = 0; k < depth; ++k) {
        Vec row[N];
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) row[j] = load(b + k * b_row + j * W);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            Vec factor = all(ORDER == Order::ROWS_FIRST ? a[i * a_stride + k] : a[k * a_stride + i]);
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) sums[i][j] = with_product(sums[i][j], factor, row[j], Value{});
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) store(c + i * c_row + j * W, sums[i][j]);
}

template <Order ORDER, int N, bool ADD, int M = ROWS, typename Value>
INLINE void tile_of(int rows, const Value* a, ptrdiff_t a_stride, const Value* b, ptrdiff_t b_row,
                    float* c, ptrdiff_t c_row, ptrdiff_t depth) {
    if constexpr (M > 0) {
        if (rows == M)
            tile<ORDER, M, N, ADD>(a, a_stride, b, b_row, c, c_row, depth);
        else
            tile_of<ORDER, N, ADD, M - 1>(rows, a, a_stride, b, b_row, c, c_row, depth);
    }
}

template <Order ORDER, int N, bool ADD, typename Value>
static void columns(int rows, const Value* a, ptrdiff_t a_stride, const Value* b, ptrdiff_t b_row,
                    float* c, ptrdiff_t c_row, ptrdiff_t depth) {
    const int tiles = ceil_div(rows, ROWS);  // of nearly equal heights
    for (int t = 0; t < tiles; ++t) {
        const ptrdiff_t start = begin_of(t, tiles, rows), stop = begin_of(t + 1, tiles, rows);
        tile_of<ORDER, N, ADD>(stop - start, a + start * (ORDER == Order::ROWS_FIRST ? a_stride : 1),
                               a_stride, b, b_row, c + start * c_row, c_row, depth);
    }
}

constexpr int PANEL = 2 * W;  // columns of B that are read together

// C[rows, width] = or += A[rows, depth] B[depth, width]; `width` is a multiple of W. B and C lie row by row,
// `b_row` and `c_row` apart.
template <Order ORDER, bool ADD, typename Value>
static void matmul(int rows, int width, int depth, const Value* a, ptrdiff_t a_stride, const Value* b,
                   ptrdiff_t b_row, float* c, ptrdiff_t c_row) {
    int j = 0;
    for (; j + PANEL <= width; j += PANEL)
        columns<ORDER, 2, ADD>(rows, a, a_stride, b + j, b_row, c + j, c_row, depth);
    if (j < width) columns<ORDER, 1, ADD>(rows, a, a_stride, b + j, b_row, c + j, c_row, depth);
}

// Where an element of B lies if it is in panels: [⌈width / PANEL⌉, depth, PANEL], of which the last may have W
// columns. What is read together then fills the first cache evenly.
INLINE size_t panel_at(int row, int column, int depth, int width) {
    const int first = column / PANEL * PANEL;
    return (size_t)first * depth + row * std::min(PANEL, width - first) + column - first;
}

// C = A B with B in panels.
template <typename Value>
static void matmul_by_panels(int rows, int width, int depth, const Value* a, ptrdiff_t a_row,
                             const Value* panels, float* c, ptrdiff_t c_row) {
    for (int j = 0; j < width; j += PANEL) {
        const Value* b = panels + (size_t)j * depth;
        if (j + PANEL <= width)
            columns<Order::ROWS_FIRST, 2, false>(rows, a, a_row, b, PANEL, c + j, c_row, depth);
        else
            columns<Order::ROWS_FIRST, 1, false>(rows, a, a_row, b, W, c + j, c_row, depth);
    }
}
