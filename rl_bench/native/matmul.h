// Products of small matrices that lie in the cache, one tile of the result in registers at a time.
#pragma once

#include "vectors.h"

// C[ROWS × N·W] = or += A[·, K] B[K, ·]. A(i, k) is a[i * a_row + k * a_step], which also reads a
// transposed A; B and C are row-major.
template <int M, int N>
INLINE void tile(const float* a, int a_row, int a_step, const float* b, int b_row, float* c,
                 int c_row, int depth, bool add) {
    Vec sums[M][N];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) sums[i][j] = add ? load(c + i * c_row + j * W) : Vec{};
    for (int k = 0; k < depth; ++k) {
        Vec row[N];
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) row[j] = load(b + (size_t)k * b_row + j * W);
#pragma GCC unroll 16
        for (int i = 0; i < M; ++i) {
            Vec factor = all(a[i * a_row + k * a_step]);
#pragma GCC unroll 2
            for (int j = 0; j < N; ++j) sums[i][j] += factor * row[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < N; ++j) store(c + i * c_row + j * W, sums[i][j]);
}

template <int N, int M = ROWS>
INLINE void rows_of_tile(int rows, const float* a, int a_row, int a_step, const float* b, int b_row,
                         float* c, int c_row, int depth, bool add) {
    if constexpr (M > 0) {
        if (rows == M)
            tile<M, N>(a, a_row, a_step, b, b_row, c, c_row, depth, add);
        else
            rows_of_tile<N, M - 1>(rows, a, a_row, a_step, b, b_row, c, c_row, depth, add);
    }
}

template <int N>
static void columns(int rows, const float* a, int a_row, int a_step, const float* b, int b_row,
                    float* c, int c_row, int depth, bool add) {
    const int tiles = ceil_div(rows, ROWS);  // of nearly equal heights
    for (int t = 0; t < tiles; ++t) {
        const int start = rows * t / tiles, stop = rows * (t + 1) / tiles;
        rows_of_tile<N>(stop - start, a + start * a_row, a_row, a_step, b, b_row,
                        c + (size_t)start * c_row, c_row, depth, add);
    }
}

// C[rows, width] = or += A[rows, depth] B[depth, width]; `width` is a multiple of W.
static void matmul(int rows, int width, int depth, const float* a, int a_row, int a_step,
                   const float* b, float* c, bool add) {
    int j = 0;
    for (; j + 2 * W <= width; j += 2 * W)
        columns<2>(rows, a, a_row, a_step, b + j, width, c + j, width, depth, add);
    if (j < width) columns<1>(rows, a, a_row, a_step, b + j, width, c + j, width, depth, add);
}
