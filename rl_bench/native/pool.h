// The largest of 3 × 3 pixels around every second one, with a padding of 1, and the way back for gradients.
//
// Done where the convolution before it has just been, or will be next: the large outputs of that one are
// kept of a few images at most. For learning there is a byte for each of the pool's own instead. Of equal
// pixels the first one wins; what is not a number stays, to be noticed later.
#pragma once

#include <algorithm>
#include <type_traits>

#include "arguments.h"
#include "bfloat16.h"

namespace {

// Where the rows of one pixel lie, which are images of a group, or one image.
template <typename Value>
struct Rows {
    Value* first;
    ptrdiff_t apart;
    int count;
};

// As many values as are compared at a time.
INLINE Vec lanes_at(const float* from) { return load(from); }
INLINE Floats lanes_at(const Bf16* from) { return widened(load_as<Bf16x16>(from)); }
INLINE void put_lanes(float* to, Vec lanes) { store(to, lanes); }
INLINE void put_lanes(Bf16* to, Floats lanes) { store_as(to, narrowed(lanes)); }

template <typename Value>
using Lanes = decltype(lanes_at((const Value*)nullptr));
template <typename Value>
using Numbers = decltype(Lanes<Value>{} > Lanes<Value>{});
template <typename Value>
constexpr int AT_ONCE = sizeof(Lanes<Value>) / sizeof(float);

// Small numbers as bytes; the compiler's own conversion goes byte by byte.
template <typename Ints>
INLINE void put_bytes(uint8_t* to, Ints numbers) {
#if defined __AVX512F__
    static_assert(sizeof numbers == 64);
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)numbers));
#else
#ifdef __AVX2__
    if constexpr (sizeof numbers == 32) {
        const __m256i all = (__m256i)numbers;
        const __m128i low = _mm256_castsi256_si128(all), high = _mm256_extracti128_si256(all, 1);
        const __m128i shorts = _mm_packs_epi32(low, high);
        _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(shorts, shorts));
        return;
    }
#endif
    for (size_t i = 0; i < sizeof numbers / 4; ++i) to[i] = numbers[i];
#endif
}

template <typename Ints>
INLINE Ints bytes_at(const uint8_t* from) {
#if defined __AVX512F__
    static_assert(sizeof(Ints) == 64);
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#else
#ifdef __AVX2__
    if constexpr (sizeof(Ints) == 32)
        return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#endif
    Ints numbers;
    for (size_t i = 0; i < sizeof numbers / 4; ++i) numbers[i] = from[i];
    return numbers;
#endif
}

// As many rows of the convolution are kept; three are under the pool.
constexpr int KEPT = 4;

// Whether all is there for a row of the pool's, once row y of the convolution is.
INLINE bool is_due(const Geometry& g, int y) { return y % 2 || y + 1 == g.out_height; }

// One row of the pool's outputs, from those of the convolution, [width, rows, channels] each:
// `row_at(row)`. `out_at(x)` says where outputs go; `winners` [width, rows, channels] may be null.
template <typename Value, typename Row, typename Place>
INLINE void pool_row(const Geometry& g, int y, int rows, Row row_at, Place out_at, uint8_t* winners) {
    const ptrdiff_t pixel = (ptrdiff_t)rows * g.out_channels;
    const int top = std::max(2 * y - 1, 0), bottom = std::min(2 * y + 2, g.out_height);
    const auto pool = [&](int x, auto kept, auto edge) {
        const int left = edge ? std::max(2 * x - 1, 0) : 2 * x - 1;
        const int right = edge ? std::min(2 * x + 2, g.out_width) : left + 3;
        const int from_row = edge ? top : 2 * y - 1, to_row = edge ? bottom : from_row + 3;
        const Rows<Value> to = out_at(x);
        const Value* under[3] = {};
        for (int row = from_row; row < to_row; ++row)
            under[row - from_row] = row_at(row) + left * pixel;
        for (int r = 0; r < to.count; ++r)
            for (int c = 0; c < g.out_channels; c += AT_ONCE<Value>) {
                const ptrdiff_t at = (ptrdiff_t)r * g.out_channels + c;
                const int first = 3 * (from_row - 2 * y + 1) + left - 2 * x + 1;
                Lanes<Value> best = lanes_at(under[0] + at);
                Numbers<Value> winner = first - Numbers<Value>{};
#pragma GCC unroll 3
                for (int i = 0; i < to_row - from_row; ++i)
#pragma GCC unroll 3
                    for (int j = 0; j < right - left; ++j) {
                        const Lanes<Value> value = lanes_at(under[i] + j * pixel + at);
                        const Numbers<Value> wins = (value > best) | (value != value);
                        best = wins ? value : best;
                        if (kept) winner = wins ? first + 3 * i + j - Numbers<Value>{} : winner;
                    }
                put_lanes(to.first + r * to.apart + c, best);
                if (kept) put_bytes(winners + x * pixel + at, winner);
            }
    };
    for (int x = 0; x < g.passed_width(); ++x) {
        const bool edge = bottom - top < 3 || x == 0 || 2 * x + 2 > g.out_width;
        if (edge)
            winners ? pool(x, std::true_type{}, std::true_type{})
                    : pool(x, std::false_type{}, std::true_type{});
        else
            winners ? pool(x, std::true_type{}, std::false_type{})
                    : pool(x, std::false_type{}, std::false_type{});
    }
}

// The gradient of the pool's outputs → that of the convolution's; both are [pixels, rows, channels], as
// are the winners. Every second row and column lies under two windows.
template <typename Value>
void unpool(const Geometry& g, int rows, const Value* gradient, const uint8_t* winners,
            Value* outputs) {
    const int height = g.passed_height(), width = g.passed_width();
    const ptrdiff_t pixel = (ptrdiff_t)rows * g.out_channels;
    const ptrdiff_t below = width * pixel, out_row = g.out_width * pixel;
    const auto undo = [=](int y, int x, auto edge) {
        const bool window_below = !edge || y + 1 < height, window_beside = !edge || x + 1 < width;
        const bool row_below = !edge || 2 * y + 1 < g.out_height;
        const bool column_beside = !edge || 2 * x + 1 < g.out_width;
        const ptrdiff_t first = y * below + x * pixel;
        Value* to = outputs + 2 * y * out_row + 2 * x * pixel;
        for (ptrdiff_t c = 0; c < pixel; c += AT_ONCE<Value>, to += AT_ONCE<Value>) {
            Lanes<Value> here = {}, beside = {}, under = {}, across = {};
            const auto window = [&](ptrdiff_t at, auto part) {
                const Lanes<Value> all = lanes_at(gradient + at);
                const auto winner = bytes_at<Numbers<Value>>(winners + at);
                part([&](int one) { return (Lanes<Value>)((winner == one) & (Numbers<Value>)all); });
            };
            window(first + c, [&](auto of) { here = of(4), beside = of(5), under = of(7), across = of(8); });
            if (window_beside)
                window(first + pixel + c, [&](auto of) { beside += of(3), across += of(6); });
            if (window_below)
                window(first + below + c, [&](auto of) { under += of(1), across += of(2); });
            if (window_below && window_beside)
                window(first + below + pixel + c, [&](auto of) { across += of(0); });
            put_lanes(to, here);
            if (column_beside) put_lanes(to + pixel, beside);
            if (row_below) put_lanes(to + out_row, under);
            if (row_below && column_beside) put_lanes(to + out_row + pixel, across);
        }
    };
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            if (y + 1 == height || x + 1 == width)
                undo(y, x, std::true_type{});
            else
                undo(y, x, std::false_type{});
}

}  // namespace
