// Convolutions of channels-last images in bfloat16, as sums of products of small matrices, by the CPU's
// matrix unit. Where it has none, winograd.cpp is faster in bfloat16 too.
//
// Rows of the left matrices are images, columns of the right ones filters; a product is over the channels
// of one pixel under the kernel, and each output is the sum over these pixels. For gradients of kernels the
// product is over images, and the sum over outputs. Layers that follow each other are computed for a
// group of images, so that what lies between them stays in the cache.

#include "passes.h"
#include "sums.h"

namespace {

thread_local Scratch<Bf16> between[3];  // of a group, behind layers in turn
thread_local Scratch<float> gradients;

template <typename Visit>
void for_groups(int images, int rows, int threads, Visit visit) {
    in_shares(ceil_div(images, rows), threads, [&](int first, int last, int thread) {
        Unit unit;
        for (int g = first; g < last; ++g)
            visit(Group{g * rows, std::min(rows, images - g * rows), rows}, unit, thread);
    });
}

// Of what a layer passes on for a group, in images as in groups.
size_t place_of(const Shape& s, const Group& g) { return g.first * s.passed_on(); }

uint8_t* winners_of(const Shape& s, const Group& g, const Layer<Bf16>& layer) {
    return layer.winners ? layer.winners + place_of(s, g) : nullptr;
}

INLINE float scale_of(const Shape& s) { return s.bytes ? 1.0f / 255.0f : 1.0f; }

// What the threads found, whose sums lie `apart`, becomes a layer's gradients, or is `added` to them.
void write_gradients(const Shape& s, const Layer<Bf16>& layer, const float* sums, size_t apart,
                     bool added, int threads) {
    const auto sum_at = [=](size_t at) {
        float sum = 0.0f;
        for (int thread = 0; thread < threads; ++thread) sum += sums[thread * apart + at];
        return sum;
    };
    const auto put = [=](float* to, float sum) { *to = added ? *to + sum : sum; };
    for (int o = 0; o < s.out_channels; ++o) put(layer.dbias + o, sum_at(s.weights() + o));
    in_shares(s.out_channels, threads, [&](int first, int last, int) {
        for (int o = first; o < last; ++o)
            for (int tap = 0; tap < s.taps; ++tap) {
                const size_t at = ((size_t)tap * s.out_channels + o) * s.depth;
                float* to = layer.dkernel + ((size_t)o * s.taps + tap) * s.values;
                for (int c = 0; c < s.values; ++c) put(to + c, scale_of(s) * sum_at(at + c));
            }
    });
}

}  // namespace

// Whether the CPU has a matrix unit that this process may use.
extern "C" int32_t bf16_has_tiles() {
#ifdef HAS_TILES
    return may_use_tiles();
#else
    return false;
#endif
}

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
                        const Bf16x16 one = narrowed(load_as<Floats>(from));
                        const Bf16x16 other = narrowed(load_as<Floats>(from + filter));
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
// those of the layers before it, which lie in groups [pixels, 32, O]. The images are the `chosen` ones of `pixels` or,
// where that is null, the first.
extern "C" void bf16_convolve(const Layer<Bf16>* layers, int32_t count, int32_t images,
                              const void* pixels, const int64_t* chosen, int32_t threads) {
    const auto shapes = plans_of<Shape>(layers, count);
    const Images in{pixels, shapes[0].image(), chosen};
    const bool learns = (count > 1 && layers[0].outputs) || layers[0].winners;
    // For acting, groups may be smaller, so that every thread has one.
    const int rows = learns || images > BLOCK * threads ? GROUP : BLOCK;
    for_groups(images, rows, threads, [&](const Group& g, Unit& unit, int) {
        const Bf16 *passed = nullptr, *before = nullptr;  // by the layer before, and by that before it
        for (int l = 0; l < count; ++l) {
            const Shape& s = shapes[l];
            const Bf16* source =
                l ? source_of(s, rows, passed) : source_of(s, g, in);
            const Bf16* added = layers[l].residual ? before : nullptr;
            uint8_t* winners = winners_of(s, g, layers[l]);
            if (l + 1 == count) {
                forward(unit, s, layers[l], rows, source, added, winners,
                        in_images(layers[l].outputs, g, s.passed_pixels(), s.out_channels));
                return;
            }
            Bf16* out = learns ? layers[l].outputs + place_of(s, g)
                               : between[l % 3].of(rows * s.passed_on());
            forward(unit, s, layers[l], rows, source, added, winners,
                    in_group(out, rows, s.out_channels));
            before = passed, passed = out;
        }
    });
}

// Gradients of kernels and biases, `added` to what is there on demand, and, unless null, of the images, of the
// `gradient` of the last outputs.
extern "C" void bf16_convolve_backward(const Layer<Bf16>* layers, int32_t count, int32_t images,
                                       const void* pixels, const int64_t* chosen, const Bf16* gradient,
                                       Bf16* dimages, int32_t added, int32_t threads) {
    const auto shapes = plans_of<Shape>(layers, count);
    const Images in{pixels, shapes[0].image(), chosen};
    const Sums all(shapes, threads, gradients);
    for_groups(images, GROUP, threads, [&](const Group& g, Unit& unit, int thread) {
        const Shape& last = shapes[count - 1];
        const Bf16* activated = layers[count - 1].relu ? layers[count - 1].outputs : nullptr;
        Bf16* behind = between[(count - 1) % 3].of(GROUP * last.passed_on());
        const size_t size = last.passed_on();
        fill_blocks(g, last.passed_pixels(), last.out_channels, {gradient, size}, behind,
                    [&](Bf16x16 x, size_t image, size_t at) {
                        if (!activated) return x;
                        return where_positive(load_as<Bf16x16>(activated + image * size + at), x);
                    });
        const Bf16* skipped = nullptr;  // the gradient behind a residual block, in its second layer
        for (int l = count - 1; l >= 0; --l) {
            const Shape& s = shapes[l];
            const Bf16* outputs = behind;  // their gradient
            if (s.pooled) {
                Bf16* whole = unpooled.of(GROUP * s.out_image());
                unpool(s, GROUP, behind, winners_of(s, g, layers[l]), whole);
                outputs = whole;
            }
            const Bf16* source =
                l ? source_of(s, GROUP, layers[l - 1].outputs + place_of(shapes[l - 1], g))
                  : source_of(s, g, in);
            float* du = all.of(l, thread);
            add_to_bias(s, outputs, du + s.weights());
            add_to_kernel(unit, s, source, outputs, du);
            if (!l) {
                if (dimages)
                    into_images(unit, s, layers[l].u_transposed, outputs, nullptr, nullptr,
                                in_images(dimages, g, s.pixels(), s.channels));
                return;
            }
            Bf16* before = between[(l - 1) % 3].of(GROUP * s.image());
            into_images(unit, s, layers[l].u_transposed, outputs,
                        layers[l - 1].relu || s.rectified ? source : nullptr, skipped,
                        in_group(before, GROUP, s.channels));
            skipped = layers[l].residual ? behind : nullptr;
            behind = before;
        }
    });
    for (int l = 0; l < count; ++l)
        write_gradients(shapes[l], layers[l], all.of(l), all.apart(), added, threads);
}
