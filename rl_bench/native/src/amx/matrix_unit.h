// Sums of products of small bf16 matrices with float32 results: by the CPU's matrix unit (AMX), or in plain
// vectors.
//
// C[16 M, 16 N] = Σ over steps of A[16 M, 2 pairs] B[2 pairs, 16 N], M and N each 1 or 2. AMX keeps the
// four 16 × 16 blocks of C in tile registers over all steps. B must lie as the instructions want it: for
// each pair of rows one row of memory with the pair's two values side by side, column by column: [pairs,
// 16, 2] for 16 columns. Each thread that computes holds one `MatrixUnit`. Without AMX the same sums are
// computed by vectors: slowly, but so that the callers can be tested anywhere.
// Source: Intel, "Architecture Instruction Set Extensions Programming Reference": LDTILECFG, TILELOADD,
// TDPBF16PS.
#pragma once

#include "../common/bfloat16.h"

#if defined __AMX_TILE__ && defined __AMX_BF16__
#define HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int BLOCK = 16;  // rows and columns of an AMX tile of floats

// One product of a sum: addresses of its matrices A and B.
struct ProductStep {
    const Bf16 *left, *right;
};

// The memory layout that all products of a sum share; strides are counted in values.
struct OperandLayout {
    ptrdiff_t left_row, right_row;  // from a row of A to the next, and from a pair of rows of B to the next
    ptrdiff_t right_block;          // from 16 columns of B to the next 16
    int pairs;                      // pairs of values that one step sums over: 8 or 16
};

namespace {

constexpr int VECTOR_SUMS = 4;  // Floatx16 that stay in registers

// Sixteen columns of one pair of rows of B, as floats.
struct RightPair {
    Floatx16 even, odd;
    explicit RightPair(const Bf16* from) {
        const Uint32x16 pairs = load_as<Uint32x16>(from);
        even = (Floatx16)(pairs << 16), odd = (Floatx16)(pairs & 0xffff0000);
    }
};

// Returns sum + pair[0] · right.even + pair[1] · right.odd.
INLINE Floatx16 add_products(Floatx16 sum, const Bf16* pair, const RightPair& right) {
    const uint32_t both = load_as<uint32_t>(pair), bits[2] = {both << 16, both & 0xffff0000};
    const float even = load_as<float>(bits), odd = load_as<float>(bits + 1);
    return sum + even * right.even + odd * right.odd;
}

// Computes `sums` [16 M, 16 N] of `count` steps without AMX.
template <int M, int N>
void multiply_by_vectors(const ProductStep* steps, int count, const OperandLayout& by, float* sums) {
    constexpr int ROWS_AT_ONCE = VECTOR_SUMS / N;
    for (int first = 0; first < M * BLOCK; first += ROWS_AT_ONCE) {
        Floatx16 kept[ROWS_AT_ONCE][N] = {};
        for (const ProductStep* step = steps; step < steps + count; ++step) {
            const Bf16* left = step->left + first * by.left_row;
            for (int k = 0; k < by.pairs; ++k)
#pragma GCC unroll 2
                for (int j = 0; j < N; ++j) {
                    const RightPair right(step->right + j * by.right_block + k * by.right_row);
#pragma GCC unroll 16
                    for (int i = 0; i < ROWS_AT_ONCE; ++i)
                        kept[i][j] = add_products(kept[i][j], left + i * by.left_row + 2 * k, right);
                }
        }
        for (int i = 0; i < ROWS_AT_ONCE; ++i)
            for (int j = 0; j < N; ++j) store_as(sums + (first + i) * N * BLOCK + j * BLOCK, kept[i][j]);
    }
}

#ifdef HAS_AMX
// Returns whether this process may use AMX, after asking Linux for it: without permission tile instructions
// fault.
INLINE bool request_amx() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
    return granted;
}

// The operand of LDTILECFG: the shapes of the eight tile registers.
struct TileConfig {
    uint8_t palette = 1, start = 0, none[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0 to 3 hold blocks of C, 4 and 5 those of A, 6 and 7 those of B.
    explicit constexpr TileConfig(int pairs) {
        for (int tile = 0; tile < 8; ++tile) {
            row_bytes[tile] = tile == 4 || tile == 5 ? 4 * pairs : 4 * BLOCK;
            rows[tile] = tile < 6 ? BLOCK : pairs;
        }
    }
};

alignas(64) constexpr TileConfig CONFIG_8_PAIRS(8), CONFIG_16_PAIRS(16);

// Computes `sums` [16 M, 16 N] of `count` steps with AMX; the tiles are configured for by.pairs.
template <int M, int N>
void multiply_by_amx(const ProductStep* steps, int count, const OperandLayout& by, float* sums) {
    constexpr long VALUE = sizeof(Bf16), ROW = N * BLOCK * sizeof(float);
    const long left_row = by.left_row * VALUE, right_row = by.right_row * VALUE;
    // GCC does not know what memory tile loads read; this makes it finish earlier writes first.
    asm volatile("" ::: "memory");
    _tile_zero(0);
    if constexpr (M == 2) _tile_zero(1);
    if constexpr (N == 2) _tile_zero(2);
    if constexpr (M == 2 && N == 2) _tile_zero(3);
    for (const ProductStep* step = steps; step < steps + count; ++step) {
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

// One thread's matrix unit. It configures the tiles when needed, and releases them at its end.
class MatrixUnit {
#ifdef HAS_AMX
    const bool has_amx = request_amx();
    int configured_pairs = 0;

  public:
    ~MatrixUnit() {
        // Otherwise Linux saves 8 KiB of tiles whenever it switches the thread.
        if (configured_pairs) _tile_release();
    }

  private:
#endif
    template <int M, int N>
    void multiply(const ProductStep* steps, int count, const OperandLayout& by, float* sums) {
#ifdef HAS_AMX
        if (has_amx) return multiply_by_amx<M, N>(steps, count, by, sums);
#endif
        multiply_by_vectors<M, N>(steps, count, by, sums);
    }

  public:
    // Computes `sums` [16 m, 16 n] of `count` products, zeros if there are none; m and n are 1 or 2.
    void multiply(int m, int n, const ProductStep* steps, int count, const OperandLayout& by, float* sums) {
#ifdef HAS_AMX
        if (has_amx && configured_pairs != by.pairs) {
            configured_pairs = by.pairs;
            _tile_loadconfig(configured_pairs == 8 ? &CONFIG_8_PAIRS : &CONFIG_16_PAIRS);
        }
#endif
        if (m == 1)
            n == 1 ? multiply<1, 1>(steps, count, by, sums) : multiply<1, 2>(steps, count, by, sums);
        else
            n == 1 ? multiply<2, 1>(steps, count, by, sums) : multiply<2, 2>(steps, count, by, sums);
    }
};

}  // namespace
