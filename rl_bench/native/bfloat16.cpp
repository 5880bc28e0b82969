// Convolutions of channels-last images in bfloat16, as sums of products of small matrices, by the CPU's
// matrix unit where it has one.
//
// Rows of the left matrices are images, columns of the right ones filters; a product is over the channels
// of one pixel under the kernel, and each output is the sum over these pixels. For gradients of kernels the
// product is over images, and the sum over outputs. Layers that follow each other are computed for a
// group of images, so that what lies between them stays in the cache.

#include "blocks.h"
#include "threads.h"

namespace {

constexpr size_t BAND = 320000;  // values that wait for the products of kernels' gradients

thread_local Scratch<Bf16> sources, turned_gradients, paired_sources;
thread_local Scratch<Bf16> between[2];  // of a group, behind even and odd layers
thread_local Scratch<float> sums, gradients;
thread_local std::vector<Step> steps;

std::vector<Shape> shapes_of(const Layer<Bf16>* layers, int count) {
    std::vector<Shape> shapes;
    for (int l = 0; l < count; ++l) shapes.emplace_back(layers[l].geometry);
    return shapes;
}

template <typename Visit>
void for_groups(int images, int rows, int threads, Visit visit) {
    in_shares(ceil_div(images, rows), threads, [&](int first, int last, int thread) {
        Unit unit;
        for (int g = first; g < last; ++g)
            visit(Group{g * rows, std::min(rows, images - g * rows), rows}, unit, thread);
    });
}

// Calls `part(first, blocks)` for one or two blocks of `count` values at a time.
template <typename Part>
INLINE void for_blocks(int count, Part part) {
    for (int at = 0; at < count; at += 2 * BLOCK) part(at, std::min(2, (count - at) / BLOCK));
}

INLINE void advance_right(ptrdiff_t by) {
    for (Step& step : steps) step.right += by;
}

// What a first layer's products are taken from: [pixels, rows, channels], or images for strips.
Bf16* source_of(const Shape& s, const Group& g, const void* images) {
    const auto* halves = static_cast<const Bf16*>(images);
    Bf16* source = sources.of(g.rows * (s.strips ? s.wide_image() : s.image()));
    if (s.bytes)
        widen_images(s, g, static_cast<const uint8_t*>(images), source);
    else if (s.strips)
        widen_images(s, g, halves, source);
    else if (s.rectified)
        fill_blocks(g, s.pixels(), s.channels, halves, source,
                    [](Halves x, size_t) { return narrowed(rectified(widened(x))); });
    else
        fill_blocks(g, s.pixels(), s.channels, halves, source, [](Halves x, size_t) { return x; });
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

// Outputs of one pixel: products [rows, 16 blocks] with bias, ReLU and, unless null, what is to be added.
INLINE void finish(const float* products, int blocks, const float* bias, bool relu,
                   const Bf16* added, Rows to) {
    for (int r = 0; r < to.count; ++r)
        for (int j = 0; j < blocks; ++j, products += BLOCK) {
            const ptrdiff_t at = r * to.apart + j * BLOCK;
            Floats y = load_as<Floats>(products) + load_as<Floats>(bias + j * BLOCK);
            if (added) y += widened(load_as<Halves>(added + at));
            store_as(to.first + at, narrowed(relu ? rectified(y) : y));
        }
}

// `rows_at(pixel)` says where outputs go; `added` lies as they do.
template <typename Place>
void forward(Unit& unit, const Shape& s, const Layer<Bf16>& layer, int rows, const Bf16* source,
             const Bf16* added, Place rows_at) {
    const ptrdiff_t block = (ptrdiff_t)s.taps * s.depth * BLOCK;  // of U, for 16 filters
    const Layout by{s.source_row(), 2 * BLOCK, block, s.chunk / 2};
    float* products = sums.of(GROUP * 2 * BLOCK);
    for (int y = 0; y < s.out_height; ++y)
        for (int x = 0; x < s.out_width; ++x) {
            list_products(s, rows, source, layer.u, y, x);
            const Rows to = rows_at(y * s.out_width + x);
            const Bf16* more = added ? added + (to.first - rows_at(0).first) : nullptr;
            for_blocks(s.out_channels, [&](int o, int blocks) {
                unit.multiply(rows / BLOCK, blocks, steps.data(), steps.size(), by, products);
                finish(products, blocks, layer.bias + o, layer.relu, more ? more + o : nullptr,
                       {to.first + o, to.apart, to.count});
                advance_right(blocks * block);
            });
        }
}

void add_to_bias(const Shape& s, const Bf16* gradient, float* dbias) {
    constexpr int CHAINS = 4;  // of sums that need not wait for each other
    const size_t rows = (size_t)s.out_pixels() * GROUP;
    for (int o = 0; o < s.out_channels; o += BLOCK, gradient += BLOCK, dbias += BLOCK) {
        Floats kept[CHAINS] = {};
        for (size_t r = 0; r < rows; r += CHAINS)
            for (int i = 0; i < CHAINS; ++i)
                kept[i] += widened(load_as<Halves>(gradient + (r + i) * s.out_channels));
        store_as(dbias, load_as<Floats>(dbias) + (kept[0] + kept[1]) + (kept[2] + kept[3]));
    }
}

// Some rows of outputs: their gradients in columns, [pixels, O, 32], and what they were computed from in
// pairs of images, [pixels, 16, depth, 2] or, for strips, [16, pixels, channels, 2].
struct Band {
    int start, stop, first_row;  // the latter of the image
    ptrdiff_t right_row;
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
void list_products(const Shape& s, const Band& band, int tap) {
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
            list_products(s, band, tap);
            for_blocks(s.out_channels, [&](int o, int high) {
                float* to = du + ((ptrdiff_t)tap * s.out_channels + o) * s.depth;
                for_blocks(s.depth, [&](int c, int wide) {
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
// unless null, is not positive.
template <typename Place>
void into_images(Unit& unit, const Shape& s, const Bf16* u_transposed, const Bf16* gradient,
                 const Bf16* activated, Place rows_at) {
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
        const Rows to = rows_at(pixel);
        const ptrdiff_t mask = (ptrdiff_t)pixel * GROUP * s.channels;
        for_blocks(s.channels, [&](int c, int blocks) {
            unit.multiply(2, blocks, steps.data(), steps.size(), by, products);
            const float* from = products;
            for (int r = 0; r < to.count; ++r)
                for (int at = c; at < c + blocks * BLOCK; at += BLOCK, from += BLOCK) {
                    Halves x = narrowed(load_as<Floats>(from));
                    if (activated)
                        x = where_positive(
                            load_as<Halves>(activated + mask + r * s.channels + at), x);
                    store_as(to.first + r * to.apart + at, x);
                }
            advance_right(blocks * block);
        });
    }
}

// Where pixels lie in a group, and in images one after the other.
auto in_group(Bf16* blocks, int rows, int channels) {
    return [=](int pixel) {
        return Rows{blocks + (ptrdiff_t)pixel * rows * channels, channels, rows};
    };
}

auto in_images(Bf16* images, const Group& g, int pixels, int channels) {
    const ptrdiff_t image = (ptrdiff_t)pixels * channels;
    return [=, first = images + g.first * image, count = g.images](int pixel) {
        return Rows{first + pixel * channels, image, count};
    };
}

// Of a group's outputs, in images as in groups.
size_t place_of(const Shape& s, const Group& g) { return g.first * s.out_image(); }

INLINE float scale_of(const Shape& s) { return s.bytes ? 1.0f / 255.0f : 1.0f; }

}  // namespace

// The size of U and of its transpose, in values.
extern "C" int32_t bf16_packed_size(const Geometry* geometry) { return Shape(*geometry).weights(); }

// U [O / 16, taps, depth / 2, 16, 2] of a kernel: 16 filters side by side, channels in pairs. Or,
// `turned`, [channels / 16, taps, O / 2, 16, 2], which gradients of images need.
extern "C" void bf16_pack_kernel(const Geometry* geometry, const float* kernel, Bf16* u,
                                 int32_t turned, int32_t threads) {
    const Shape s(*geometry);
    const size_t filter = (size_t)s.taps * s.values;
    if (turned) {
        in_shares(s.taps, threads, [&](int first, int last, int) {
            for (int tap = first; tap < last; ++tap)
                for (int c = 0; c < s.channels; c += BLOCK)
                    for (int o = 0; o < s.out_channels; o += 2) {
                        const float* from = kernel + o * filter + tap * s.values + c;
                        const Halves one = narrowed(load_as<Floats>(from));
                        const Halves other = narrowed(load_as<Floats>(from + filter));
                        store_as(u + ((size_t)c * s.taps + tap * BLOCK) * s.out_channels + o * BLOCK,
                                 paired(one, other));
                    }
        });
        return;
    }
    const float scale = scale_of(s);
    in_shares(s.out_channels, threads, [&](int first, int last, int) {
        for (int o = first; o < last; ++o)
            for (int tap = 0; tap < s.taps; ++tap) {
                const float* from = kernel + o * filter + tap * s.values;
                Bf16* to = u + ((size_t)o / BLOCK * s.taps + tap) * s.depth * BLOCK + o % BLOCK * 2;
                for (int c = 0; c < s.depth; c += BLOCK, to += BLOCK * BLOCK) {
                    float values[BLOCK] = {};
                    for (int i = 0; i < std::min(s.values - c, BLOCK); ++i)
                        values[i] = scale * from[c + i];
                    Bf16 halves[BLOCK];
                    store_as(halves, narrowed(load_as<Floats>(values)));
                    for (int i = 0; i < BLOCK; i += 2)
                        std::memcpy(to + i * BLOCK, halves + i, 2 * sizeof(Bf16));
                }
            }
    });
}

// Fills the outputs [images, out_height, out_width, O] of the last of `count` layers and, for learning,
// those of the layers before it, which lie in groups [pixels, 32, O].
extern "C" void bf16_convolve(const Layer<Bf16>* layers, int32_t count, int32_t images,
                              const void* pixels, const Bf16* added, int32_t threads) {
    const auto shapes = shapes_of(layers, count);
    const bool learns = count > 1 && layers[0].outputs;
    // For acting, groups may be smaller, so that every thread has one.
    const int rows = learns || images > BLOCK * threads ? GROUP : BLOCK;
    for_groups(images, rows, threads, [&](const Group& g, Unit& unit, int) {
        const Bf16* source = source_of(shapes[0], g, pixels);
        for (int l = 0; l + 1 < count; ++l) {
            const Shape& s = shapes[l];
            Bf16* out = learns ? layers[l].outputs + place_of(s, g)
                               : between[l % 2].of(rows * s.out_image());
            forward(unit, s, layers[l], rows, source, nullptr, in_group(out, rows, s.out_channels));
            source = out;
        }
        const Shape& s = shapes[count - 1];
        forward(unit, s, layers[count - 1], rows, source, added ? added + place_of(s, g) : nullptr,
                in_images(layers[count - 1].outputs, g, s.out_pixels(), s.out_channels));
    });
}

// Gradients of kernels and biases and, unless null, of the images, of the `gradient` of the last outputs.
extern "C" void bf16_convolve_backward(const Layer<Bf16>* layers, int32_t count, int32_t images,
                                       const void* pixels, const Bf16* gradient, Bf16* dimages,
                                       int32_t threads) {
    const auto shapes = shapes_of(layers, count);
    std::vector<size_t> places{0};  // of each layer's sums within a thread's
    for (const Shape& s : shapes) places.push_back(places.back() + s.weights() + s.out_channels);
    float* all = gradients.of(threads * places.back());
    in_shares(threads, threads, [&](int, int, int thread) {
        std::fill_n(all + thread * places.back(), places.back(), 0.0f);
    });
    for_groups(images, GROUP, threads, [&](const Group& g, Unit& unit, int thread) {
        const Shape& last = shapes[count - 1];
        const Bf16* outputs = layers[count - 1].relu ? layers[count - 1].outputs : nullptr;
        Bf16* behind = between[(count - 1) % 2].of(GROUP * last.out_image());
        fill_blocks(g, last.out_pixels(), last.out_channels, gradient, behind,
                    [&](Halves x, size_t at) {
                        return outputs ? where_positive(load_as<Halves>(outputs + at), x) : x;
                    });
        const Bf16* first = source_of(shapes[0], g, pixels);
        for (int l = count - 1; l >= 0; --l) {
            const Shape& s = shapes[l];
            const Bf16* source = l ? layers[l - 1].outputs + place_of(shapes[l - 1], g) : first;
            float* du = all + thread * places.back() + places[l];
            add_to_bias(s, behind, du + s.weights());
            add_to_kernel(unit, s, source, behind, du);
            if (l) {
                Bf16* before = between[(l - 1) % 2].of(GROUP * s.image());
                into_images(unit, s, layers[l].u_transposed, behind,
                            layers[l - 1].relu ? source : nullptr,
                            in_group(before, GROUP, s.channels));
                behind = before;
            } else if (dimages) {
                into_images(unit, s, layers[l].u_transposed, behind, s.rectified ? source : nullptr,
                            in_images(dimages, g, s.pixels(), s.channels));
            }
        }
    });
    for (int l = 0; l < count; ++l) {
        const Shape& s = shapes[l];
        const float* du = all + places[l];
        const auto sum_at = [&](size_t at) {
            float sum = 0.0f;
            for (int thread = 0; thread < threads; ++thread) sum += du[thread * places.back() + at];
            return sum;
        };
        for (int o = 0; o < s.out_channels; ++o) layers[l].dbias[o] = sum_at(s.weights() + o);
        in_shares(s.out_channels, threads, [&](int some, int stop, int) {
            for (int o = some; o < stop; ++o)
                for (int tap = 0; tap < s.taps; ++tap) {
                    const size_t at = ((size_t)tap * s.out_channels + o) * s.depth;
                    float* to = layers[l].dkernel + ((size_t)o * s.taps + tap) * s.values;
                    for (int c = 0; c < s.values; ++c) to[c] = scale_of(s) * sum_at(at + c);
                }
        });
    }
}
