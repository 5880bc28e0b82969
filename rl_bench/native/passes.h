// One convolution of one group of images, forward and back, by one thread.
#pragma once

#include "blocks.h"

namespace {

constexpr size_t BAND = 320000;  // values that wait for the products of kernels' gradients

thread_local Scratch<Bf16> sources, turned_gradients, paired_sources;
thread_local Scratch<Bf16> unpooled;  // outputs before a max-pool, or their gradients
thread_local Scratch<float> sums;
thread_local std::vector<Step> steps;

// Calls `part(first, blocks)` for two blocks, or one, of `count` values at a time.
template <typename Part>
INLINE void for_pairs(int count, Part part) {
    for (int at = 0; at < count; at += 2 * BLOCK) part(at, std::min(2, (count - at) / BLOCK));
}

INLINE void advance_right(ptrdiff_t by) {
    for (Step& step : steps) step.right += by;
}

// What a first layer's products are taken from: [pixels, rows, channels], or images for strips.
Bf16* source_of(const Shape& s, const Group& g, const Images& images) {
    Bf16* source = sources.of(g.rows * (s.strips ? s.wide_image() : s.image()));
    if (s.bytes)
        widen_images<uint8_t>(s, g, images, source);
    else if (s.strips)
        widen_images<Bf16>(s, g, images, source);
    else
        fill_blocks(g, s.pixels(), s.channels, images, source, [](Bf16x16 x, size_t, size_t) { return x; });
    return source;
}

// What another layer's products are taken from, where `passed` is what the layer before it passed on.
const Bf16* source_of(const Shape& s, int rows, const Bf16* passed) {
    if (!s.rectified) return passed;
    const size_t count = rows * s.image();
    Bf16* source = sources.of(count);
    for (size_t i = 0; i < count; i += BLOCK) {
        const Floats x = widened(load_as<Bf16x16>(passed + i));
        store_as(source + i, narrowed(rectified(x)));
    }
    return source;
}

// The products that outputs at one place are the sum of, from the first filters' on.
void list_products(const Shape& s, int rows, const Bf16* source, const Bf16* u, int y, int x) {
    steps.clear();
    const auto add = [&](int tap, const Bf16* left) {
        for (int c = 0; c < s.depth; c += s.chunk)
            steps.push_back({left + c, u + (ptrdiff_t)(tap * s.depth + c) * BLOCK});
    };
    if (s.strips)
        for (int i = 0; i < s.side; ++i) add(i, source + s.strip_at(y, x) + i * s.wide_row());
    else
        for_taps(s, y, x, [&](int tap, int row, int column) {
            add(tap, source + (ptrdiff_t)(row * s.width + column) * rows * s.depth);
        });
}

// Outputs of one pixel: products [rows, 16 blocks] with bias, ReLU and, unless null, what is to be added,
// [rows, channels].
INLINE void finish(const float* products, int blocks, const float* bias, bool relu,
                   const Bf16* added, int channels, Rows<Bf16> to) {
    for (int r = 0; r < to.count; ++r)
        for (int j = 0; j < blocks; ++j, products += BLOCK) {
            Floats y = load_as<Floats>(products) + load_as<Floats>(bias + j * BLOCK);
            if (added) y += widened(load_as<Bf16x16>(added + r * channels + j * BLOCK));
            store_as(to.first + r * to.apart + j * BLOCK, narrowed(relu ? rectified(y) : y));
        }
}

// `rows_at(pixel)` says where outputs go, and `done(y)` is told when a row of them is there; `added`
// [pixels, rows, channels] may be null.
template <typename Place, typename Done>
void convolve(Unit& unit, const Shape& s, const Layer<Bf16>& layer, int rows, const Bf16* source,
              const Bf16* added, Place rows_at, Done done) {
    const ptrdiff_t block = (ptrdiff_t)s.taps * s.depth * BLOCK;  // of U, for 16 filters
    const Layout by{s.source_row(), 2 * BLOCK, block, s.chunk / 2};
    float* products = sums.of(GROUP * 2 * BLOCK);
    for (int y = 0; y < s.out_height; ++y) {
        for (int x = 0; x < s.out_width; ++x) {
            list_products(s, rows, source, layer.u, y, x);
            const int pixel = y * s.out_width + x;
            const Rows<Bf16> to = rows_at(pixel);
            const Bf16* more = added ? added + (ptrdiff_t)pixel * rows * s.out_channels : nullptr;
            for_pairs(s.out_channels, [&](int o, int blocks) {
                unit.multiply(rows / BLOCK, blocks, steps.data(), steps.size(), by, products);
                finish(products, blocks, layer.bias + o, layer.relu, more ? more + o : nullptr,
                       s.out_channels, {to.first + o, to.apart, to.count});
                advance_right(blocks * block);
            });
        }
        done(y);
    }
}

// The same, with a max-pool where the layer has one. Of what comes before it only some rows are kept.
template <typename Place>
void forward(Unit& unit, const Shape& s, const Layer<Bf16>& layer, int rows, const Bf16* source,
             const Bf16* added, uint8_t* winners, Place rows_at) {
    if (!s.pooled) {
        convolve(unit, s, layer, rows, source, added, rows_at, [](int) {});
        return;
    }
    const ptrdiff_t pixel = (ptrdiff_t)rows * s.out_channels, row = s.out_width * pixel;
    Bf16* kept = unpooled.of(KEPT * row);
    const auto kept_at = [=](int y) { return kept + y % KEPT * row; };
    const auto into_kept = [=](int place) {
        Bf16* first = kept_at(place / s.out_width) + place % s.out_width * pixel;
        return Rows<Bf16>{first, s.out_channels, rows};
    };
    convolve(unit, s, layer, rows, source, added, into_kept, [=](int y) {
        if (!is_due(s, y)) return;
        const int first = y / 2 * s.passed_width();
        pool_row<Bf16>(s, y / 2, rows, kept_at, [=](int x) { return rows_at(first + x); },
                       winners ? winners + first * pixel : nullptr);
    });
}

void add_to_bias(const Shape& s, const Bf16* gradient, float* dbias) {
    constexpr int CHAINS = 4;  // of sums that need not wait for each other
    const size_t rows = (size_t)s.out_pixels() * GROUP;
    for (int o = 0; o < s.out_channels; o += BLOCK, gradient += BLOCK, dbias += BLOCK) {
        Floats kept[CHAINS] = {};
        for (size_t r = 0; r < rows; r += CHAINS)
            for (int i = 0; i < CHAINS; ++i)
                kept[i] += widened(load_as<Bf16x16>(gradient + (r + i) * s.out_channels));
        store_as(dbias, load_as<Floats>(dbias) + (kept[0] + kept[1]) + (kept[2] + kept[3]));
    }
}

// Some rows of outputs: their gradients in columns, [pixels, O, 32], and what they were computed from in
// pairs of images, [pixels, 16, depth, 2] or, for strips, [16, pixels, channels, 2].
struct Band {
    int start, stop;
    int first_row;        // of the image
    ptrdiff_t right_row;  // from one pair of images to the next
    const Bf16 *gradients, *sources;
};

Band band_of(const Shape& s, int start, int stop, const Bf16* source, const Bf16* gradient) {
    const ptrdiff_t each = GROUP * s.out_channels;
    const int outputs = (stop - start) * s.out_width;
    gradient += start * s.out_width * each;
    Bf16* turned = turned_gradients.of(outputs * each);
    for (int i = 0; i < outputs; ++i)
        turn_rows(gradient + i * each, s.out_channels, turned + i * each);
    const int above = s.strips ? 0 : s.padding, height = s.height + (s.strips ? 2 * s.padding : 0);
    const int first = std::max(start * s.step - above, 0);
    const int rows = std::min((stop - 1) * s.step - above + s.side, height) - first;
    if (s.strips) {
        const ptrdiff_t values = rows * s.wide_row() + LINE, apart = spread(2 * values);
        Bf16* pairs = paired_sources.of(GROUP / 2 * apart);
        source += first * s.wide_row();
        for (int p = 0; p < GROUP / 2; ++p, source += 2 * s.wide_image())
            pair_rows(source, source + s.wide_image(), values, pairs + p * apart);
        return {start, stop, first, apart, turned, pairs};
    }
    const ptrdiff_t pixel_rows = (ptrdiff_t)rows * s.width * GROUP;
    Bf16* pairs = paired_sources.of(pixel_rows * s.depth);
    source += (ptrdiff_t)first * s.width * GROUP * s.depth;
    for (ptrdiff_t r = 0; r < pixel_rows; r += 2)
        pair_rows(source + r * s.depth, source + (r + 1) * s.depth, s.depth, pairs + r * s.depth);
    return {start, stop, first, 2 * s.depth, turned, pairs};
}

// The products that the gradient of one tap is the sum of, from the first filters' and channels' on.
void list_products_of(int tap, const Shape& s, const Band& band) {
    steps.clear();
    const Bf16* gradient = band.gradients;
    for (int y = band.start; y < band.stop; ++y)
        for (int x = 0; x < s.out_width; ++x, gradient += s.out_channels * GROUP) {
            if (s.strips) {
                const ptrdiff_t at = s.strip_at(y, x) + (tap - band.first_row) * s.wide_row();
                steps.push_back({gradient, band.sources + 2 * at});
                continue;
            }
            const int row = y * s.step - s.padding + tap / s.side;
            const int column = x * s.step - s.padding + tap % s.side;
            if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
            const ptrdiff_t pixel = (ptrdiff_t)(row - band.first_row) * s.width + column;
            steps.push_back({gradient, band.sources + pixel * s.depth * GROUP});
        }
}

INLINE void add_block(const float* products, int rows, int width, float* to, int apart) {
    for (int i = 0; i < rows; ++i, to += apart)
        for (int j = 0; j < width; j += BLOCK, products += BLOCK)
            store_as(to + j, load_as<Floats>(to + j) + load_as<Floats>(products));
}

// Adds to `du` [taps, O, depth].
void add_to_kernel(Unit& unit, const Shape& s, const Bf16* source, const Bf16* gradient, float* du) {
    const int row = s.strips ? s.wide_row() : s.width * s.depth;
    const size_t values = GROUP * (s.out_width * s.out_channels + (size_t)s.step * row);
    const int bands = std::clamp<int>(values * s.out_height / BAND, 1, s.out_height);
    float* products = sums.of(GROUP * 2 * BLOCK);
    for (int b = 0; b < bands; ++b) {
        const Band band = band_of(s, begin_of(b, bands, s.out_height),
                                  begin_of(b + 1, bands, s.out_height), source, gradient);
        const Layout by{GROUP, band.right_row, 2 * BLOCK, GROUP / 2};
        for (int tap = 0; tap < s.taps; ++tap) {
            list_products_of(tap, s, band);
            for_pairs(s.out_channels, [&](int o, int high) {
                float* to = du + ((ptrdiff_t)tap * s.out_channels + o) * s.depth;
                for_pairs(s.depth, [&](int c, int wide) {
                    unit.multiply(high, wide, steps.data(), steps.size(), by, products);
                    add_block(products, high * BLOCK, wide * BLOCK, to + c, s.depth);
                    advance_right(wide * 2 * BLOCK);
                });
                advance_right(-2 * s.depth);
                for (Step& step : steps) step.left += high * BLOCK * GROUP;
            });
        }
    }
}

// Gradients of the images, which `rows_at(pixel)` has room for; 0 where `activated` [pixels, 32, channels],
// unless null, is not positive. `skipped`, which lies alike and may be null, is added to them: the gradient
// that passes the layers of a residual block by.
template <typename Place>
void into_images(Unit& unit, const Shape& s, const Bf16* u_transposed, const Bf16* gradient,
                 const Bf16* activated, const Bf16* skipped, Place rows_at) {
    const int chunk = Shape::chunk_of(s.out_channels);
    const ptrdiff_t block = (ptrdiff_t)s.taps * s.out_channels * BLOCK;
    const Layout by{s.out_channels, 2 * BLOCK, block, chunk / 2};
    float* products = sums.of(GROUP * 2 * BLOCK);
    for (int pixel = 0; pixel < s.pixels(); ++pixel) {
        steps.clear();
        for_outputs(s, pixel / s.width, pixel % s.width, [&](int tap, int y, int x) {
            const Bf16* left = gradient + (ptrdiff_t)(y * s.out_width + x) * GROUP * s.out_channels;
            for (int o = 0; o < s.out_channels; o += chunk)
                steps.push_back(
                    {left + o, u_transposed + (ptrdiff_t)(tap * s.out_channels + o) * BLOCK});
        });
        const Rows<Bf16> to = rows_at(pixel);
        const ptrdiff_t there = (ptrdiff_t)pixel * GROUP * s.channels;
        for_pairs(s.channels, [&](int c, int blocks) {
            unit.multiply(2, blocks, steps.data(), steps.size(), by, products);
            const float* from = products;
            for (int r = 0; r < to.count; ++r)
                for (int at = c; at < c + blocks * BLOCK; at += BLOCK, from += BLOCK) {
                    const ptrdiff_t place = there + r * s.channels + at;
                    Bf16x16 x = narrowed(load_as<Floats>(from));
                    if (activated) x = where_positive(load_as<Bf16x16>(activated + place), x);
                    if (skipped)
                        x = narrowed(widened(x) + widened(load_as<Bf16x16>(skipped + place)));
                    store_as(to.first + r * to.apart + at, x);
                }
            advance_right(blocks * block);
        });
    }
}

// Where pixels lie in a group, and in images one after the other.
auto in_group(Bf16* blocks, int rows, int channels) {
    return [=](int pixel) {
        return Rows<Bf16>{blocks + (ptrdiff_t)pixel * rows * channels, channels, rows};
    };
}

auto in_images(Bf16* images, const Group& g, int pixels, int channels) {
    const ptrdiff_t image = (ptrdiff_t)pixels * channels;
    return [=, first = images + g.first * image, count = g.images](int pixel) {
        return Rows<Bf16>{first + pixel * channels, image, count};
    };
}

}  // namespace
