// Convolutions of channels-last images in bfloat16 on the CPU's matrix unit (AMX), forward and back.
//
// They are computed by the definition, as sums of products of small matrices (forward.h, gradients.h): rows
// of the left matrices are images, columns of the right ones filters, and one product sums over the
// channels of one pixel under the kernel. For gradients of kernels a product sums over images. Sums are
// float32, everything that is stored is bfloat16. convolution.py calls the extern "C" functions; CPUs
// without AMX use winograd/ in bfloat16 too. Groups of 32 images (image_groups.h) are shared out among
// threads; each thread takes a group through all layers, so that what lies between them stays in the cache.

#include "gradients.h"
#include "../common/gradient_sums.h"

namespace {

thread_local Scratch<Bf16> activations[3];  // of a group, behind layers l, l + 1 and l + 2 in turn
thread_local Scratch<float> gradients;      // the threads' GradientSums

// Calls `visit(group, unit, thread)` for groups of `rows` images, shared out among threads.
template <typename Visit>
void for_groups(int images, int rows, int threads, Visit visit) {
    parallel_ranges(ceil_div(images, rows), threads, [&](int first, int last, int thread) {
        MatrixUnit unit;
        for (int g = first; g < last; ++g)
            visit(Group{g * rows, std::min(rows, images - g * rows), rows}, unit, thread);
    });
}

// Returns the offset of a group in a layer's outputs, which is the same in images and in groups.
size_t group_offset(const Plan& p, const Group& g) { return g.first * p.next_size(); }

// Returns a group's part of the layer's pool_argmax, or null without one.
uint8_t* group_argmax(const Plan& p, const Group& g, const ConvLayer<Bf16>& layer) {
    return layer.pool_argmax ? layer.pool_argmax + group_offset(p, g) : nullptr;
}

// Returns the factor of the kernel that stands for the division of bytes by 255.
INLINE float kernel_scale(const Plan& p) { return p.uint8_images ? 1.0f / 255.0f : 1.0f; }

// Writes the layer's dkernel and dbias, or adds to them: the sum of all threads' `sums`, `thread_stride`
// floats apart. It turns [taps, O, depth] into [O, rows, columns, channels].
void write_gradients(const Plan& p, const ConvLayer<Bf16>& layer, const float* sums, size_t thread_stride,
                     bool add, int threads) {
    const auto sum_at = [=](size_t at) {
        float sum = 0.0f;
        for (int thread = 0; thread < threads; ++thread) sum += sums[thread * thread_stride + at];
        return sum;
    };
    const auto put = [=](float* to, float sum) { *to = add ? *to + sum : sum; };
    for (int o = 0; o < p.out_channels; ++o) put(layer.dbias + o, sum_at(p.weights() + o));
    parallel_ranges(p.out_channels, threads, [&](int first, int last, int) {
        for (int o = first; o < last; ++o)
            for (int tap = 0; tap < p.taps; ++tap) {
                const size_t at = ((size_t)tap * p.out_channels + o) * p.depth;
                float* to = layer.dkernel + ((size_t)o * p.taps + tap) * p.values;
                for (int c = 0; c < p.values; ++c) put(to + c, kernel_scale(p) * sum_at(at + c));
            }
    });
}

}  // namespace

// Returns whether the CPU has AMX with bfloat16 and this process may use it.
extern "C" int32_t amx_available() {
#ifdef HAS_AMX
    return request_amx();
#else
    return false;
#endif
}

// Returns the size of a packed kernel and of its transpose, in values.
extern "C" int32_t amx_packed_size(const ConvGeometry* geometry) { return Plan(*geometry).weights(); }

// Packs `kernel` [O, rows, columns, channels]: `u` becomes [O / 16, taps, depth / 2, 16, 2], 16 filters
// side by side and channels in pairs; or, `transposed`, [channels / 16, taps, O / 2, 16, 2] for gradients
// of images.
extern "C" void amx_pack_kernel(const ConvGeometry* geometry, const float* kernel, Bf16* u,
                                int32_t transposed, int32_t threads) {
    const Plan p(*geometry);
    const size_t filter = (size_t)p.taps * p.values;
    if (transposed) {
        parallel_ranges(p.taps, threads, [&](int first, int last, int) {
            for (int tap = first; tap < last; ++tap)
                for (int c = 0; c < p.channels; c += BLOCK)
                    for (int o = 0; o < p.out_channels; o += 2) {
                        const float* from = kernel + o * filter + tap * p.values + c;
                        const Bf16x16 one = to_bf16(load_as<Floatx16>(from));
                        const Bf16x16 other = to_bf16(load_as<Floatx16>(from + filter));
                        store_as(u + ((size_t)c * p.taps + tap * BLOCK) * p.out_channels + o * BLOCK,
                                 pack_pairs(one, other));
                    }
        });
        return;
    }
    const float scale = kernel_scale(p);
    parallel_ranges(p.out_channels, threads, [&](int first, int last, int) {
        for (int o = first; o < last; ++o)
            for (int tap = 0; tap < p.taps; ++tap) {
                const float* from = kernel + o * filter + tap * p.values;
                Bf16* to = u + ((size_t)o / BLOCK * p.taps + tap) * p.depth * BLOCK + o % BLOCK * 2;
                for (int c = 0; c < p.depth; c += BLOCK, to += BLOCK * BLOCK) {
                    float values[BLOCK] = {};
                    for (int i = 0; i < std::min(p.values - c, BLOCK); ++i)
                        values[i] = scale * from[c + i];
                    Bf16 rounded[BLOCK];
                    store_as(rounded, to_bf16(load_as<Floatx16>(values)));
                    for (int i = 0; i < BLOCK; i += 2)
                        std::memcpy(to + i * BLOCK, rounded + i, 2 * sizeof(Bf16));
                }
            }
    });
}

// Computes `count` consecutive layers on `images` images: those of `pixels` at `indices` [images] or, if
// that is null, the first. Fills the outputs of the last layer, [images, next_height, next_width, O], and
// for learning also those of the layers before it, in groups [next pixels, 32, O].
extern "C" void amx_convolve(const ConvLayer<Bf16>* layers, int32_t count, int32_t images,
                             const void* pixels, const int64_t* indices, int32_t threads) {
    const auto plans = make_plans<Plan>(layers, count);
    const ImageBatch in{pixels, plans[0].image(), indices};
    const bool learns = (count > 1 && layers[0].outputs) || layers[0].pool_argmax;
    // In inference groups may be half as large, so that every thread has one.
    const int rows = learns || images > BLOCK * threads ? GROUP : BLOCK;
    for_groups(images, rows, threads, [&](const Group& g, MatrixUnit& unit, int) {
        const Bf16 *input = nullptr, *previous_input = nullptr;  // of this layer, and of the layer before
        for (int l = 0; l < count; ++l) {
            const Plan& p = plans[l];
            const Bf16* source =
                l ? later_layer_source(p, rows, input) : first_layer_source(p, g, in);
            const Bf16* residual = layers[l].residual ? previous_input : nullptr;
            uint8_t* argmax = group_argmax(p, g, layers[l]);
            if (l + 1 == count) {
                forward(unit, p, layers[l], rows, source, residual, argmax,
                        in_images(layers[l].outputs, g, p.next_pixels(), p.out_channels));
                return;
            }
            Bf16* out = learns ? layers[l].outputs + group_offset(p, g)
                               : activations[l % 3].get(rows * p.next_size());
            forward(unit, p, layers[l], rows, source, residual, argmax,
                    in_group(out, rows, p.out_channels));
            previous_input = input, input = out;
        }
    });
}

// Computes the gradients of kernels and biases, and of the images unless `dimages` is null, from `gradient`
// of the last layer's outputs. With `add` those of kernels and biases are added to what is there. The other
// arguments are those of `amx_convolve`, which has run for these images; `images` may be smaller.
extern "C" void amx_convolve_backward(const ConvLayer<Bf16>* layers, int32_t count, int32_t images,
                                      const void* pixels, const int64_t* indices, const Bf16* gradient,
                                      Bf16* dimages, int32_t add, int32_t threads) {
    const auto plans = make_plans<Plan>(layers, count);
    const ImageBatch in{pixels, plans[0].image(), indices};
    const GradientSums all(plans, threads, gradients);
    for_groups(images, GROUP, threads, [&](const Group& g, MatrixUnit& unit, int thread) {
        const Plan& last = plans[count - 1];
        const Bf16* activated = layers[count - 1].relu ? layers[count - 1].outputs : nullptr;
        // The gradient of a layer's final outputs, from the last layer to the first.
        Bf16* dnext = activations[(count - 1) % 3].get(GROUP * last.next_size());
        const size_t size = last.next_size();
        interleave_images(g, last.next_pixels(), last.out_channels, {gradient, size}, dnext,
                          [&](Bf16x16 x, size_t image, size_t at) {
                              if (!activated) return x;
                              return where_positive(load_as<Bf16x16>(activated + image * size + at), x);
                          });
        const Bf16* skip_gradient = nullptr;  // behind a residual block, while its first layer is computed
        for (int l = count - 1; l >= 0; --l) {
            const Plan& p = plans[l];
            const Bf16* doutputs = dnext;  // of the convolution's outputs, before a pool
            if (p.pooled) {
                Bf16* whole = unpooled.get(GROUP * p.out_image());
                unpool(p, GROUP, dnext, group_argmax(p, g, layers[l]), whole);
                doutputs = whole;
            }
            const Bf16* source =
                l ? later_layer_source(p, GROUP, layers[l - 1].outputs + group_offset(plans[l - 1], g))
                  : first_layer_source(p, g, in);
            float* du = all.at(l, thread);
            add_bias_gradient(p, doutputs, du + p.weights());
            add_kernel_gradient(unit, p, source, doutputs, du);
            if (!l) {
                if (dimages)
                    image_gradient(unit, p, layers[l].packed_transposed, doutputs, nullptr, nullptr,
                                   in_images(dimages, g, p.pixels(), p.channels));
                return;
            }
            Bf16* dinputs = activations[(l - 1) % 3].get(GROUP * p.image());
            image_gradient(unit, p, layers[l].packed_transposed, doutputs,
                           layers[l - 1].relu || p.rectified ? source : nullptr, skip_gradient,
                           in_group(dinputs, GROUP, p.channels));
            skip_gradient = layers[l].residual ? dnext : nullptr;
            dnext = dinputs;
        }
    });
    for (int l = 0; l < count; ++l)
        write_gradients(plans[l], layers[l], all.at(l), all.thread_stride(), add, threads);
}
