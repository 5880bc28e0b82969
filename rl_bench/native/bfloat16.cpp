// Convolutions of channels-last images in bfloat16, as sums of products of small matrices, by the CPU's
// matrix unit where it has one.
//
// Rows of the left matrices are images, columns of the right ones filters; a product is over the channels
// of one pixel under the kernel, and each output is the sum over these pixels. For gradients of kernels the
// product is over images, and the sum over outputs. Layers that follow each other are computed for a
// group of images, so that what lies between them stays in the cache.

#include "passes.h"
#include "sums.h"

namespace {

thread_local Scratch<Bf16> between[2];  // of a group, behind even and odd layers
thread_local Scratch<float> gradients;

template <typename Visit>
void for_groups(int images, int rows, int threads, Visit visit) {
    in_shares(ceil_div(images, rows), threads, [&](int first, int last, int thread) {
        Unit unit;
        for (int g = first; g < last; ++g)
            visit(Group{g * rows, std::min(rows, images - g * rows), rows}, unit, thread);
    });
}

// Of a group's outputs, in images as in groups.
size_t place_of(const Shape& s, const Group& g) { return g.first * s.out_image(); }

INLINE float scale_of(const Shape& s) { return s.bytes ? 1.0f / 255.0f : 1.0f; }

// What the threads found, whose sums lie `apart`, becomes a layer's gradients.
void write_gradients(const Shape& s, const Layer<Bf16>& layer, const float* sums, size_t apart,
                     int threads) {
    const auto sum_at = [=](size_t at) {
        float sum = 0.0f;
        for (int thread = 0; thread < threads; ++thread) sum += sums[thread * apart + at];
        return sum;
    };
    for (int o = 0; o < s.out_channels; ++o) layer.dbias[o] = sum_at(s.weights() + o);
    in_shares(s.out_channels, threads, [&](int first, int last, int) {
        for (int o = first; o < last; ++o)
            for (int tap = 0; tap < s.taps; ++tap) {
                const size_t at = ((size_t)tap * s.out_channels + o) * s.depth;
                float* to = layer.dkernel + ((size_t)o * s.taps + tap) * s.values;
                for (int c = 0; c < s.values; ++c) to[c] = scale_of(s) * sum_at(at + c);
            }
    });
}

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
// those of the layers before it, which lie in groups [pixels, 32, O].
extern "C" void bf16_convolve(const Layer<Bf16>* layers, int32_t count, int32_t images,
                              const void* pixels, const Bf16* added, int32_t threads) {
    const auto shapes = plans_of<Shape>(layers, count);
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
    const auto shapes = plans_of<Shape>(layers, count);
    const Sums all(shapes, threads, gradients);
    for_groups(images, GROUP, threads, [&](const Group& g, Unit& unit, int thread) {
        const Shape& last = shapes[count - 1];
        const Bf16* outputs = layers[count - 1].relu ? layers[count - 1].outputs : nullptr;
        Bf16* behind = between[(count - 1) % 2].of(GROUP * last.out_image());
        fill_blocks(g, last.out_pixels(), last.out_channels, gradient, behind,
                    [&](Bf16x16 x, size_t at) {
                        return outputs ? where_positive(load_as<Bf16x16>(outputs + at), x) : x;
                    });
        const Bf16* first = source_of(shapes[0], g, pixels);
        for (int l = count - 1; l >= 0; --l) {
            const Shape& s = shapes[l];
            const Bf16* source = l ? layers[l - 1].outputs + place_of(shapes[l - 1], g) : first;
            float* du = all.of(l, thread);
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
    for (int l = 0; l < count; ++l)
        write_gradients(shapes[l], layers[l], all.of(l), all.apart(), threads);
}
