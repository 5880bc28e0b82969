// A CPU's instructions for bfloat16, in plain C++: so that the code for them can be tested on CPUs that have
// none. To be included before everything else, with UNIT defined: 0 for a CPU without, 1 for one that has
// AMX. As these do, but that they take denormals for zero.
//
// Source: Intel's "Architecture Instruction Set Extensions Programming Reference", LDTILECFG, TILELOADD,
// TILESTORED, TDPBF16PS.
#pragma once

#include <immintrin.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

typedef float Sixteen __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

template <typename To, typename From>
inline To as(const From& from) {
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

struct Tile {
    int rows, row_bytes;
    uint8_t memory[16][64];

    // The processor raises an exception where a tile was not set up.
    void check() const {
        if (!rows || !row_bytes) std::abort();
    }
    void zero() { std::memset(memory, 0, sizeof memory); }
    void load(const void* from, long stride) {
        check();
        zero();
        for (int i = 0; i < rows; ++i)
            std::memcpy(memory[i], static_cast<const char*>(from) + i * stride, row_bytes);
    }
    void store(void* to, long stride) const {
        check();
        for (int i = 0; i < rows; ++i)
            std::memcpy(static_cast<char*>(to) + i * stride, memory[i], row_bytes);
    }
};

inline thread_local Tile tiles[8];

inline void configure(const void* from) {
    struct { uint8_t palette, start, none[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } shapes;
    static_assert(sizeof shapes == 64);
    std::memcpy(&shapes, from, sizeof shapes);
    if (shapes.palette != 1 || shapes.start != 0) std::abort();
    for (int i = 0; i < 8; ++i) {
        if (shapes.rows[i] > 16 || shapes.row_bytes[i] > 64) std::abort();
        tiles[i].zero();
        tiles[i].rows = shapes.rows[i], tiles[i].row_bytes = shapes.row_bytes[i];
    }
}

inline void multiply(int into, int left, int right) {
    Tile &c = tiles[into], &a = tiles[left], &b = tiles[right];
    const int pairs = a.row_bytes / 4;
    if (c.rows != a.rows || b.rows != pairs || b.row_bytes != c.row_bytes) std::abort();
    for (int m = 0; m < a.rows; ++m) {
        Sixteen even = {}, odd = {};  // added up apart
        for (int k = 0; k < pairs; ++k) {
            const Words left = as<uint32_t>(a.memory[m][4 * k]) - Words{}, right = as<Words>(b.memory[k]);
            even += (Sixteen)(left << 16) * (Sixteen)(right << 16);
            odd += (Sixteen)(left & 0xffff0000) * (Sixteen)(right & 0xffff0000);
        }
        const Sixteen sum = as<Sixteen>(c.memory[m]) + (even + odd);
        std::memcpy(c.memory[m], &sum, sizeof sum);
    }
}

inline long granted(...) { return 0; }

inline void release() {
    for (Tile& tile : tiles) tile.rows = tile.row_bytes = 0;
}

}  // namespace emulated

#undef __AVX512BF16__
#undef __AMX_TILE__
#undef __AMX_BF16__

#if UNIT == 1
#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define syscall emulated::granted
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated::configure
#define _tile_release emulated::release
#define _tile_zero(tile) emulated::tiles[tile].zero()
#define _tile_loadd(tile, from, stride) emulated::tiles[tile].load(from, stride)
#define _tile_stored(tile, to, stride) emulated::tiles[tile].store(to, stride)
#define _tile_dpbf16ps emulated::multiply
#endif
