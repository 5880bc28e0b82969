// Convolutions of channels-last images in float32 by Winograd's minimal filtering, forward and back.
//
// A kernel of 3 × 3 gives 4 × 4 outputs of 6 × 6 inputs with 36 products per pair of channels instead of
// 144; one of 2 × 2 gives 3 × 3 outputs of 4 × 4 inputs with 16 instead of 36. A strided convolution has
// stride 1 in cells of stride × stride pixels (plan.h has the terms). First layers of stride 1 are computed
// by the definition (direct.h). Products may be taken of bfloat16 (../common/bf16_pairs.h). convolution.py
// calls the extern "C" functions. Threads share out images; each takes a few at a time through all layers,
// so that what one layer writes is still in the cache when the next one reads it.
// Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308).

#include "direct.h"
#include "kernel_transform.h"
#include "../common/gradient_sums.h"

namespace {

thread_local Scratch<float> activations[3];       // of a group, behind layers l, l + 1 and l + 2 in turn
thread_local Scratch<float> kernels, gradients;   // a transposed kernel; the threads' GradientSums

// Calls `group(first, images, thread)` for groups of a few images; each thread has its share of all images.
template <typename Group>
void for_groups(const std::vector<Plan>& plans, int images, int threads, Group group) {
    constexpr size_t GROUP_FLOATS = 90000;  // in the largest activation between two layers; measured
    size_t largest = 1;
    for (size_t l = 1; l < plans.size(); ++l) largest = std::max(largest, plans[l].image());
    const int most = plans.size() > 1 ? std::max<int>(GROUP_FLOATS / largest, 1) : images;
    parallel_ranges(images, threads, [&](int first, int last, int thread) {
        const int share = last - first;
        const int groups = std::min(std::max((share + most / 2) / most, 1), share);
        for (int g = 0; g < groups; ++g) {
            const int start = part_begin(g, groups, share), stop = part_begin(g + 1, groups, share);
            group(first + start, stop - start, thread);
        }
    });
}

// Returns `from` + `offset`, or null if `from` is.
template <typename Value>
Value* offset_or_null(Value* from, size_t offset) {
    return from ? from + offset : nullptr;
}

// Returns the function that computes layer `p` forward, for its kernel size and float or bf16 products.
auto forward_function(const Plan& p) {
    if (p.direct) return forward_directly;
    if (p.bf16_products) return p.kernel_cells == 2 ? forward<2, Bf16Pair> : forward<3, Bf16Pair>;
    return p.kernel_cells == 2 ? forward<2, float> : forward<3, float>;
}

// Returns the function that computes the gradients of layer `p`.
auto backward_function(const Plan& p) {
    if (p.direct) return backward_directly;
    if (p.bf16_products) return p.kernel_cells == 2 ? backward<2, Bf16Pair> : backward<3, Bf16Pair>;
    return p.kernel_cells == 2 ? backward<2, float> : backward<3, float>;
}

// Returns the factor of the kernel that stands for the division of bytes by 255.
INLINE float kernel_scale(const Plan& p) { return p.uint8_images ? 1.0f / 255.0f : 1.0f; }

// Transforms `kernel` [O, rows, columns, channels] into `u` [points, depth, O] or, `transposed`, [points,
// O, depth].
template <typename Value>
void pack(const Plan& p, const float* kernel, float* u, bool transposed, int threads) {
    auto* to = reinterpret_cast<Value*>(u);
    if (transposed) {
        const auto transform = p.kernel_cells == 2 ? transform_kernel_transposed<2, Value>
                                                   : transform_kernel_transposed<3, Value>;
        parallel_ranges(p.elements(p.out_channels), threads, [&](int first, int last, int) {
            transform(p, first, last, kernel, kernel_scale(p), to);
        });
        return;
    }
    float* columns = kernels.get((size_t)p.taps() * p.out_channels);
    transpose(kernel, p.out_channels, p.taps(), columns);
    const auto transform = p.kernel_cells == 2 ? transform_kernel<2, Value> : transform_kernel<3, Value>;
    parallel_ranges(p.elements(p.depth), threads, [&](int first, int last, int) {
        transform(p, first, last, columns, kernel_scale(p), to);
    });
}

}  // namespace

// Returns the size of a packed kernel and of its transpose, in floats.
extern "C" int32_t winograd_packed_size(const ConvGeometry* geometry) {
    const Plan p(*geometry);
    return p.direct ? p.weights() : p.points * plane_size(p.elements(p.depth), p.out_channels);
}

// Packs `kernel` [O, rows, columns, channels]: `u` becomes U [points, depth, O] or, `transposed`, [points,
// O, depth] for gradients of images, in panels (matmul.h) of floats or bf16 pairs. For first layers of
// stride 1 it becomes [rows, side · channels, O]; their images have no gradient.
extern "C" void winograd_pack_kernel(const ConvGeometry* geometry, const float* kernel, float* u,
                                     int32_t transposed, int32_t threads) {
    const Plan p(*geometry);
    if (p.direct) {
        transpose(kernel, p.out_channels, p.taps(), u);
        scale(kernel_scale(p), p.weights(), u);
        return;
    }
    p.bf16_products ? pack<Bf16Pair>(p, kernel, u, transposed, threads)
                    : pack<float>(p, kernel, u, transposed, threads);
}

// Computes `count` consecutive layers on `images` images: those of `pixels` at `indices` [images] or, if
// that is null, the first. Fills the outputs of the last layer, and of those before it that have memory for
// them.
extern "C" void winograd_convolve(const ConvLayer<float>* layers, int32_t count, int32_t images,
                                  const void* pixels, const int64_t* indices, int32_t threads) {
    const auto plans = make_plans<Plan>(layers, count);
    for_groups(plans, images, threads, [&](int first, int some, int) {
        ImageBatch in{pixels, plans[0].image(), indices, (size_t)first};
        const float* previous_input = nullptr;  // of the layer before, for residual connections
        for (int l = 0; l < count; ++l) {
            const Plan& p = plans[l];
            const size_t at = first * p.next_size();
            float* out = offset_or_null(layers[l].outputs, at);
            if (!out) out = activations[l % 3].get(some * p.next_size());
            forward_function(p)(p, layers[l], some, in, layers[l].residual ? previous_input : nullptr, out,
                                offset_or_null(layers[l].pool_argmax, at));
            previous_input = static_cast<const float*>(in.first), in = {out, p.next_size()};
        }
    });
}

// Computes the gradients of kernels and biases, and of the images unless `dimages` is null, from `gradient`
// of the last layer's outputs. With `add_gradients` those of kernels and biases are added to what is there.
// The other arguments are those of `winograd_convolve`, which has run for these images; `images` may be
// smaller.
extern "C" void winograd_convolve_backward(const ConvLayer<float>* layers, int32_t count, int32_t images,
                                           const void* pixels, const int64_t* indices, const float* gradient,
                                           float* dimages, int32_t add_gradients, int32_t threads) {
    const auto plans = make_plans<Plan>(layers, count);
    threads = std::min(threads, images);
    const GradientSums sums(plans, threads, gradients);
    for_groups(plans, images, threads, [&](int first, int some, int thread) {
        const float* doutputs = gradient + first * plans[count - 1].next_size();
        const float* skip_gradient = nullptr;  // behind a residual block, while its first layer is computed
        for (int l = count - 1; l >= 0; --l) {
            const Plan& p = plans[l];
            const ImageBatch in{l ? layers[l - 1].outputs : pixels, p.image(), l ? nullptr : indices,
                                (size_t)first};
            float* dinputs = l ? activations[l % 3].get(some * p.image())
                               : offset_or_null(dimages, first * p.image());
            float* du = sums.at(l, thread);
            const size_t at = first * p.next_size();
            const float* activated = layers[l].relu ? layers[l].outputs + at : nullptr;
            backward_function(p)(p, layers[l], some, in,
                                 {doutputs, activated, offset_or_null(layers[l].pool_argmax, at)}, du,
                                 du + p.weights(), skip_gradient, dinputs);
            skip_gradient = layers[l].residual ? doutputs : nullptr;
            doutputs = dinputs;
        }
    });
    // Add the threads' sums up, layer by layer.
    for (int l = 0; l < count; ++l) {
        const Plan& p = plans[l];
        float* du = sums.at(l);
        if (!add_gradients) std::fill_n(layers[l].dbias, p.out_channels, 0.0f);
        for (int thread = 0; thread < threads; ++thread)
            for (int o = 0; o < p.out_channels; ++o)
                layers[l].dbias[o] += du[thread * sums.thread_stride() + p.weights() + o];
        if (p.direct) {
            for (int thread = 1; thread < threads; ++thread)
                add(sums.at(l, thread), du, p.weights());
            scale(kernel_scale(p), p.weights(), du);
            float* transposed = add_gradients ? kernels.get(p.weights()) : layers[l].dkernel;
            transpose(du, p.taps(), p.out_channels, transposed);
            if (add_gradients) add(transposed, layers[l].dkernel, p.weights());
            continue;
        }
        parallel_ranges(p.out_channels, threads, [&](int some, int stop, int) {
            (p.kernel_cells == 2 ? untransform_kernel<2> : untransform_kernel<3>)(
                p, some, stop, du, sums.thread_stride(), threads, kernel_scale(p), add_gradients,
                layers[l].dkernel);
        });
    }
}
