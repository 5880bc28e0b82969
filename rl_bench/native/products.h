// Sums of products of small matrices in bfloat16, added up in float32: by a CPU's matrix unit (AMX) or, to
// say what that does, in floats.
#pragma once

#include "bfloat16.h"

#if defined __AMX_TILE__ && defined __AMX_BF16__
#define HAS_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int BLOCK = 16;  // rows, or columns, that are computed together; a tile's

// One product of a sum. Left: rows of `2 * pairs` values. Right: for each pair of these a row in which
// the pair's two values lie side by side, column by column.
struct Step {
    const Bf16 *left, *right;
};

// What all products of a sum have alike; strides are counted in values.
struct Layout {
    ptrdiff_t left_row, right_row;
    ptrdiff_t right_block;  // from 16 columns to the next
    int pairs;              // 8 or 16
};

namespace {

constexpr int SUMS = 4;  // that fit into registers

struct Right {
    Floats even, odd;
    explicit Right(const Bf16* from) {
        const Words pairs = load_as<Words>(from);
        even = (Floats)(pairs << 16), odd = (Floats)(pairs & 0xffff0000);
    }
};

INLINE Floats with_products(Floats sum, const Bf16* pair, const Right& right) {
    const uint32_t both = load_as<uint32_t>(pair), bits[2] = {both << 16, both & 0xffff0000};
    const float even = load_as<float>(bits), odd = load_as<float>(bits + 1);
    return sum + even * right.even + odd * right.odd;
}

// `sums` [16 M, 16 N]
template <int M, int N>
void multiply_in_floats(const Step* steps, int count, const Layout& by, float* sums) {
    constexpr int ROWS_AT_ONCE = SUMS / N;
    for (int first = 0; first < M * BLOCK; first += ROWS_AT_ONCE) {
        Floats kept[ROWS_AT_ONCE][N] = {};
        for (const Step* step = steps; step < steps + count; ++step) {
            const Bf16* left = step->left + first * by.left_row;
            for (int k = 0; k < by.pairs; ++k)
#pragma GCC unroll 2
                for (int j = 0; j < N; ++j) {
                    const Right right(step->right + j * by.right_block + k * by.right_row);
#pragma GCC unroll 16
                    for (int i = 0; i < ROWS_AT_ONCE; ++i)
                        kept[i][j] = with_products(kept[i][j], left + i * by.left_row + 2 * k, right);
                }
        }
        for (int i = 0; i < ROWS_AT_ONCE; ++i)
            for (int j = 0; j < N; ++j) store_as(sums + (first + i) * N * BLOCK + j * BLOCK, kept[i][j]);
    }
}

#ifdef HAS_TILES
// Linux lets a process use the matrix unit once it has asked to.
INLINE bool may_use_tiles() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return granted;
}

struct TileShapes {  // as `ldtilecfg` wants it
    uint8_t palette = 1, start = 0, none[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0 to 3 hold sums, 4 and 5 left matrices, 6 and 7 right ones.
    explicit constexpr TileShapes(int pairs) {
        for (int tile = 0; tile < 8; ++tile) {
            row_bytes[tile] = tile == 4 || tile == 5 ? 4 * pairs : 4 * BLOCK;
            rows[tile] = tile < 6 ? BLOCK : pairs;
        }
    }
};

alignas(64) constexpr TileShapes HALF_DEEP(8), DEEP(16);

template <int M, int N>
void multiply_by_tiles(const Step* steps, int count, const Layout& by, float* sums) {
    constexpr long VALUE = sizeof(Bf16), ROW = N * BLOCK * sizeof(float);
    const long left_row = by.left_row * VALUE, right_row = by.right_row * VALUE;
    // What the compiler is not told that these instructions read must have been written before.
    asm volatile("" ::: "memory");
    _tile_zero(0);
    if constexpr (M == 2) _tile_zero(1);
    if constexpr (N == 2) _tile_zero(2);
    if constexpr (M == 2 && N == 2) _tile_zero(3);
    for (const Step* step = steps; step < steps + count; ++step) {
        _tile_loadd(6, step->right, right_row);
        _tile_loadd(4, step->left, left_row);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (M == 2) {
            _tile_loadd(5, step->left + BLOCK * by.left_row, left_row);
            _tile_dpbf16ps(1, 5, 6);
        }
        if constexpr (N == 2) {
            _tile_loadd(7, step->right + by.right_block, right_row);
            _tile_dpbf16ps(2, 4, 7);
            if constexpr (M == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, ROW);
    if constexpr (M == 2) _tile_stored(1, sums + BLOCK * N * BLOCK, ROW);
    if constexpr (N == 2) _tile_stored(2, sums + BLOCK, ROW);
    if constexpr (M == 2 && N == 2) _tile_stored(3, sums + BLOCK * N * BLOCK + BLOCK, ROW);
}
#endif

// A thread's matrix unit, for as long as this lives.
class Unit {
#ifdef HAS_TILES
    const bool tiles = may_use_tiles();
    int pairs = 0;  // that tiles are shaped for

  public:
    ~Unit() {
        if (pairs) _tile_release();  // a thread without is switched faster
    }

  private:
#endif
    template <int M, int N>
    void multiply(const Step* steps, int count, const Layout& by, float* sums) {
#ifdef HAS_TILES
        if (tiles) return multiply_by_tiles<M, N>(steps, count, by, sums);
#endif
        multiply_in_floats<M, N>(steps, count, by, sums);
    }

  public:
    // The sum of `count` products, perhaps none, of M × N blocks: `sums` [16 M, 16 N]; each 1 or 2.
    void multiply(int m, int n, const Step* steps, int count, const Layout& by, float* sums) {
#ifdef HAS_TILES
        if (tiles && pairs != by.pairs) {
            pairs = by.pairs;
            _tile_loadconfig(pairs == 8 ? &HALF_DEEP : &DEEP);
        }
#endif
        if (m == 1)
            n == 1 ? multiply<1, 1>(steps, count, by, sums) : multiply<1, 2>(steps, count, by, sums);
        else
            n == 1 ? multiply<2, 1>(steps, count, by, sums) : multiply<2, 2>(steps, count, by, sums);
    }
};

}  // namespace
