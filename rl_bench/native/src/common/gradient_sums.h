// Buffers in which each thread sums up its share of the gradients of kernels and biases.
//
// One contiguous block per thread holds, for each layer in turn, the gradient of the packed kernel and then
// that of the bias. The backward functions of winograd/ and amx/ add to them for their groups of images,
// and add the threads' blocks up at the end, in the order of threads, so that results do not depend on
// timing.
#pragma once

#include <algorithm>
#include <vector>

#include "conv_layer.h"
#include "threads.h"

// Returns a Plan for each of `count` layers, made from its geometry.
template <typename Plan, typename Value>
std::vector<Plan> make_plans(const ConvLayer<Value>* layers, int count) {
    std::vector<Plan> plans;
    for (int l = 0; l < count; ++l) plans.emplace_back(layers[l].geometry);
    return plans;
}

// Hands out each thread's sums, layer by layer.
class GradientSums {
    std::vector<size_t> offsets{0};  // of each layer within a thread's block; at the end, the block's size
    float* first;

  public:
    // Takes blocks for `threads` threads from `memory`; each thread sets its own to zero.
    template <typename Plan>
    GradientSums(const std::vector<Plan>& plans, int threads, Scratch<float>& memory) {
        for (const Plan& p : plans) offsets.push_back(offsets.back() + p.weights() + p.out_channels);
        first = memory.get(threads * thread_stride());
        parallel_ranges(threads, threads, [&](int, int, int thread) {
            std::fill_n(at(0, thread), thread_stride(), 0.0f);
        });
    }
    // Returns the distance between the blocks of two threads, in floats.
    size_t thread_stride() const { return offsets.back(); }
    // Returns the sums of `layer` in the block of `thread`: weights() floats, then out_channels for the
    // bias.
    float* at(int layer, int thread = 0) const { return first + thread * thread_stride() + offsets[layer]; }
};
