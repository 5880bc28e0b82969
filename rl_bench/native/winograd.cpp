// Convolutions of channels-last images in float32, by Winograd's minimal filtering; on demand with products of
// pairs of bfloat16 (pairs.h).
//
// A kernel of 3 × 3 gives 4 × 4 outputs of each 6 × 6 inputs with 36 products per pair of channels instead
// of 144, one of 2 × 2 gives 3 × 3 outputs of each 4 × 4 inputs with 16 instead of 36. A strided convolution
// becomes one of stride 1 by taking `step` × `step` pixels for one cell with step² times the channels.
// Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv 1509.09308);
// the gradients are the transposed transforms.
//
// Layers that follow each other are computed for a group of images at a time, so that what one writes is
// still in the cache when the next one reads it; each works on about a hundred tiles at a time.
// First layers of stride 1 are computed by the definition (direct.h). Else
// U [points, cells' channels, O] is the transformed kernel, which lies in memory as O, rows, columns,
// channels; points are the products of a tile.

#include "direct.h"
#include "kernel.h"
#include "sums.h"

namespace {

thread_local Scratch<float> between[3];  // of a group, behind layers in turn
thread_local Scratch<float> kernels, gradients;

// Calls `group(first, images, thread)` for a few images at a time, of which every thread has its share.
template <typename Group>
void for_groups(const std::vector<Plan>& plans, int images, int threads, Group group) {
    constexpr size_t FLOATS = 90000;  // of the largest between two layers; measured
    size_t largest = 1;
    for (size_t l = 1; l < plans.size(); ++l) largest = std::max(largest, plans[l].image());
    const int most = plans.size() > 1 ? std::max<int>(FLOATS / largest, 1) : images;
    in_shares(images, threads, [&](int first, int last, int thread) {
        const int share = last - first;
        const int groups = std::min(std::max((share + most / 2) / most, 1), share);
        for (int g = 0; g < groups; ++g) {
            const int start = begin_of(g, groups, share), stop = begin_of(g + 1, groups, share);
            group(first + start, stop - start, thread);
        }
    });
}

template <typename Value>
Value* at_or_null(Value* from, size_t place) {
    return from ? from + place : nullptr;
}

auto forward_of(const Plan& p) {
    if (p.direct) return forward_directly;
    if (p.halves) return p.kernel == 2 ? forward<2, Pair> : forward<3, Pair>;
    return p.kernel == 2 ? forward<2, float> : forward<3, float>;
}

auto backward_of(const Plan& p) {
    if (p.direct) return backward_directly;
    if (p.halves) return p.kernel == 2 ? backward<2, Pair> : backward<3, Pair>;
    return p.kernel == 2 ? backward<2, float> : backward<3, float>;
}

INLINE float scale_of(const Plan& p) { return p.bytes ? 1.0f / 255.0f : 1.0f; }

template <typename Value>
void pack(const Plan& p, const float* kernel, float* u, bool turned, int threads) {
    auto* to = reinterpret_cast<Value*>(u);
    if (turned) {
        const auto transform = p.kernel == 2 ? transform_kernel<2, Value> : transform_kernel<3, Value>;
        in_shares(p.sums_of(p.out_channels), threads,
                  [&](int first, int last, int) { transform(p, first, last, kernel, scale_of(p), to); });
        return;
    }
    float* columns = kernels.of((size_t)p.taps() * p.out_channels);
    transpose(kernel, p.out_channels, p.taps(), columns);
    const auto transform = p.kernel == 2 ? turn_kernel<2, Value> : turn_kernel<3, Value>;
    in_shares(p.sums_of(p.depth), threads,
              [&](int first, int last, int) { transform(p, first, last, columns, scale_of(p), to); });
}

}  // namespace

// The size of U and of its transpose, in floats.
extern "C" int32_t winograd_packed_size(const Geometry* geometry) {
    const Plan p(*geometry);
    return p.direct ? p.weights() : p.points * plane_of(p.sums_of(p.depth), p.out_channels);
}

// U [points, depth, O] of a kernel or, `turned`, the same as [points, O, depth], which gradients of
// images need; both in panels (matmul.h), perhaps of pairs. Of a first layer of stride 1 [rows, side · channels, O];
// its images have no gradient.
extern "C" void winograd_pack_kernel(const Geometry* geometry, const float* kernel, float* u, int32_t turned,
                            int32_t threads) {
    const Plan p(*geometry);
    if (p.direct) {
        transpose(kernel, p.out_channels, p.taps(), u);
        scale(scale_of(p), p.weights(), u);
        return;
    }
    p.halves ? pack<Pair>(p, kernel, u, turned, threads) : pack<float>(p, kernel, u, turned, threads);
}

// Fills the outputs of the last of `count` layers, and of those before it that have room for them. The images are
// the `chosen` ones of `pixels` or, where that is null, the first.
extern "C" void winograd_convolve(const Layer<float>* layers, int32_t count, int32_t images,
                                  const void* pixels, const int64_t* chosen, int32_t threads) {
    const auto plans = plans_of<Plan>(layers, count);
    for_groups(plans, images, threads, [&](int first, int some, int) {
        Images in{pixels, plans[0].image(), chosen, (size_t)first};
        const float* before = nullptr;  // what the layer before took
        for (int l = 0; l < count; ++l) {
            const Plan& p = plans[l];
            const size_t at = first * p.passed_on();
            float* out = at_or_null(layers[l].outputs, at);
            if (!out) out = between[l % 3].of(some * p.passed_on());
            forward_of(p)(p, layers[l], some, in, layers[l].residual ? before : nullptr, out,
                          at_or_null(layers[l].winners, at));
            before = static_cast<const float*>(in.first), in = {out, p.passed_on()};
        }
    });
}

// Gradients of kernels and biases, `added` to what is there on demand, and, unless null, of the images, of the
// `gradient` of the last outputs.
extern "C" void winograd_convolve_backward(const Layer<float>* layers, int32_t count, int32_t images,
                                  const void* pixels, const int64_t* chosen, const float* gradient,
                                  float* dimages, int32_t added, int32_t threads) {
    const auto plans = plans_of<Plan>(layers, count);
    threads = std::min(threads, images);
    const Sums sums(plans, threads, gradients);
    for_groups(plans, images, threads, [&](int first, int some, int thread) {
        const float* behind = gradient + first * plans[count - 1].passed_on();
        const float* skipped = nullptr;  // the gradient behind a residual block, in its second layer
        for (int l = count - 1; l >= 0; --l) {
            const Plan& p = plans[l];
            const Images in{l ? layers[l - 1].outputs : pixels, p.image(), l ? nullptr : chosen,
                            (size_t)first};
            float* before = l ? between[l % 3].of(some * p.image())
                              : at_or_null(dimages, first * p.image());
            float* du = sums.of(l, thread);
            const size_t at = first * p.passed_on();
            const float* activated = layers[l].relu ? layers[l].outputs + at : nullptr;
            backward_of(p)(p, layers[l], some, in,
                           {behind, activated, at_or_null(layers[l].winners, at)}, du,
                           du + p.weights(), skipped, before);
            skipped = layers[l].residual ? behind : nullptr;
            behind = before;
        }
    });
    for (int l = 0; l < count; ++l) {
        const Plan& p = plans[l];
        float* du = sums.of(l);
        if (!added) std::fill_n(layers[l].dbias, p.out_channels, 0.0f);
        for (int thread = 0; thread < threads; ++thread)
            for (int o = 0; o < p.out_channels; ++o)
                layers[l].dbias[o] += du[thread * sums.apart() + p.weights() + o];
        if (p.direct) {
            for (int thread = 1; thread < threads; ++thread)
                add(sums.of(l, thread), du, p.weights());
            scale(scale_of(p), p.weights(), du);
            float* turned = added ? kernels.of(p.weights()) : layers[l].dkernel;
            transpose(du, p.taps(), p.out_channels, turned);
            if (added) add(turned, layers[l].dkernel, p.weights());
            continue;
        }
        in_shares(p.out_channels, threads, [&](int some, int stop, int) {
            (p.kernel == 2 ? untransform_kernel<2> : untransform_kernel<3>)(
                p, some, stop, du, sums.apart(), threads, scale_of(p), added, layers[l].dkernel);
        });
    }
}
