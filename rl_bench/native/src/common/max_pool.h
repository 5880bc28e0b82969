// Max-pool of 3 × 3 pixels with stride 2 and padding 1, and its gradient.
//
// y[i, j] = max of x[2i − 1 … 2i + 1, 2j − 1 … 2j + 1], where x is the output of the convolution before it
// and pixels outside the image do not count. Of equal pixels the first wins; NaN wins, so that it can be
// noticed. Arrays are [pixels, rows, channels]: `rows` is 1 for Winograd, and the images of a group for
// AMX. The pool is computed right after the convolution's rows it needs, by the same thread, so that the
// large outputs of the convolution are never kept for more than a few rows or images. For the backward pass
// one byte per output says which of the nine pixels it came from.
#pragma once

#include <algorithm>
#include <type_traits>

#include "bfloat16.h"
#include "conv_layer.h"

namespace {

// The place of one pixel's rows: row r starts at first + r · stride; the first `count` rows are written.
template <typename Value>
struct PixelRows {
    Value* first;
    ptrdiff_t stride;
    int count;
};

// Read and write as many values as are compared at a time, converted to or from floats.
INLINE Vec load_floats(const float* from) { return load(from); }
INLINE Floatx16 load_floats(const Bf16* from) { return to_float(load_as<Bf16x16>(from)); }
INLINE void store_floats(float* to, Vec values) { store(to, values); }
INLINE void store_floats(Bf16* to, Floatx16 values) { store_as(to, to_bf16(values)); }

template <typename Value>
using FloatsOf = decltype(load_floats((const Value*)nullptr));  // the vector that load_floats returns
template <typename Value>
using IntsOf = decltype(FloatsOf<Value>{} > FloatsOf<Value>{});  // as many int32
template <typename Value>
constexpr int FLOATS_OF = sizeof(FloatsOf<Value>) / sizeof(float);

// Writes `numbers`, each 0 to 255, as bytes to `to`. GCC's own conversion goes byte by byte.
template <typename Ints>
INLINE void store_bytes(uint8_t* to, Ints numbers) {
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

// Reads bytes `from` as a vector of int32.
template <typename Ints>
INLINE Ints load_bytes(const uint8_t* from) {
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

// Rows of the convolution's output that callers keep in a ring buffer: the three under the pool, and one
// more, with which y % RING_ROWS is a mask.
constexpr int RING_ROWS = 4;

// Returns whether row y / 2 of the pool can be computed now that rows 0 … `y` of the convolution are there;
// true once for each row of the pool.
INLINE bool pool_row_complete(const ConvGeometry& g, int y) { return y % 2 || y + 1 == g.out_height; }

// Computes row `y` of the pool's output from rows of the convolution's output, each [out_width, rows,
// channels]. `row_at(i)` returns the address of convolution row i, `out_at(x)` the PixelRows of pooled
// pixel x; only its first `count` of the `rows` are written, in argmax too. `argmax` [next_width, rows,
// channels] gets the winner's place in its window, 3 · (row in window) + (column in window); it may be null.
// out_channels is a multiple of FLOATS_OF<Value>.
template <typename Value, typename RowAt, typename OutAt>
INLINE void pool_row(const ConvGeometry& g, int y, int rows, RowAt row_at, OutAt out_at, uint8_t* argmax) {
    const ptrdiff_t pixel = (ptrdiff_t)rows * g.out_channels;  // values of one pixel in all rows
    const int top = std::max(2 * y - 1, 0), bottom = std::min(2 * y + 2, g.out_height);
    // `keep` and `edge` are compile-time booleans: whether argmax is written, whether pixels are missing.
    const auto pool = [&](int x, auto keep, auto edge) {
        const int left = edge ? std::max(2 * x - 1, 0) : 2 * x - 1;
        const int right = edge ? std::min(2 * x + 2, g.out_width) : left + 3;
        const int from_row = edge ? top : 2 * y - 1, to_row = edge ? bottom : from_row + 3;
        const PixelRows<Value> to = out_at(x);
        // The leftmost pixel that exists in each row of the window that exists.
        const Value* under[3] = {};
        for (int row = from_row; row < to_row; ++row)
            under[row - from_row] = row_at(row) + left * pixel;
        for (int r = 0; r < to.count; ++r)
            for (int c = 0; c < g.out_channels; c += FLOATS_OF<Value>) {
                const ptrdiff_t at = (ptrdiff_t)r * g.out_channels + c;
                // The place of the first of them, above 0 at the top and left edges.
                const int first = 3 * (from_row - 2 * y + 1) + left - 2 * x + 1;
                FloatsOf<Value> best = load_floats(under[0] + at);
                IntsOf<Value> winner = first - IntsOf<Value>{};
#pragma GCC unroll 3
                for (int i = 0; i < to_row - from_row; ++i)
#pragma GCC unroll 3
                    for (int j = 0; j < right - left; ++j) {
                        const FloatsOf<Value> value = load_floats(under[i] + j * pixel + at);
                        const IntsOf<Value> wins = (value > best) | (value != value);
                        best = wins ? value : best;
                        if (keep) winner = wins ? first + 3 * i + j - IntsOf<Value>{} : winner;
                    }
                store_floats(to.first + r * to.stride + c, best);
                if (keep) store_bytes(argmax + x * pixel + at, winner);
            }
    };
    for (int x = 0; x < g.next_width(); ++x) {
        const bool edge = bottom - top < 3 || x == 0 || 2 * x + 2 > g.out_width;
        if (edge)
            argmax ? pool(x, std::true_type{}, std::true_type{})
                   : pool(x, std::false_type{}, std::true_type{});
        else
            argmax ? pool(x, std::true_type{}, std::false_type{})
                   : pool(x, std::false_type{}, std::false_type{});
    }
}

// Computes the gradient of the convolution's outputs, `doutputs` [out pixels, rows, channels], from
// `gradient` of the pool's outputs and their `argmax`, both [next pixels, rows, channels].
//
// For each pooled pixel (y, x) it writes the 2 × 2 outputs at (2y, 2x). Output (2y, 2x) lies under one
// window only, its right and lower neighbours under two, the diagonal one under four; the numbers 0 to 8
// below are their places in these windows. All of `doutputs` is written, so that it needs no zeros before.
template <typename Value>
void unpool(const ConvGeometry& g, int rows, const Value* gradient, const uint8_t* argmax, Value* doutputs) {
    const int height = g.next_height(), width = g.next_width();
    const ptrdiff_t pixel = (ptrdiff_t)rows * g.out_channels;
    const ptrdiff_t below = width * pixel, out_row = g.out_width * pixel;
    const auto undo = [=](int y, int x, auto edge) {
        const bool window_below = !edge || y + 1 < height, window_beside = !edge || x + 1 < width;
        const bool row_below = !edge || 2 * y + 1 < g.out_height;
        const bool column_beside = !edge || 2 * x + 1 < g.out_width;
        const ptrdiff_t first = y * below + x * pixel;
        Value* to = doutputs + 2 * y * out_row + 2 * x * pixel;
        for (ptrdiff_t c = 0; c < pixel; c += FLOATS_OF<Value>, to += FLOATS_OF<Value>) {
            FloatsOf<Value> here = {}, beside = {}, under = {}, diagonal = {};
            // Reads the gradient and the winner of the pooled pixel at `at`, and calls `visit(of)`, where
            // of(k) is that gradient where the winner is place k, else 0.
            const auto window = [&](ptrdiff_t at, auto visit) {
                const FloatsOf<Value> all = load_floats(gradient + at);
                const auto winner = load_bytes<IntsOf<Value>>(argmax + at);
                visit([&](int one) { return (FloatsOf<Value>)((winner == one) & (IntsOf<Value>)all); });
            };
            window(first + c,
                   [&](auto of) { here = of(4), beside = of(5), under = of(7), diagonal = of(8); });
            if (window_beside)
                window(first + pixel + c, [&](auto of) { beside += of(3), diagonal += of(6); });
            if (window_below)
                window(first + below + c, [&](auto of) { under += of(1), diagonal += of(2); });
            if (window_below && window_beside)
                window(first + below + pixel + c, [&](auto of) { diagonal += of(0); });
            store_floats(to, here);
            if (column_beside) store_floats(to + pixel, beside);
            if (row_below) store_floats(to + out_row, under);
            if (row_below && column_beside) store_floats(to + out_row + pixel, diagonal);
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
