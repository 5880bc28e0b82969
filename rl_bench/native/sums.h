// What threads add up for the gradients of layers that follow each other.
#pragma once

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "threads.h"

// What follows from each layer's geometry.
template <typename Plan, typename Value>
std::vector<Plan> plans_of(const Layer<Value>* layers, int count) {
    std::vector<Plan> plans;
    for (int l = 0; l < count; ++l) plans.emplace_back(layers[l].geometry);
    return plans;
}

// Zeros at first; of each thread, and in it of each layer, for its weights and then its biases.
class Sums {
    std::vector<size_t> places{0};  // of layers within a thread's
    float* first;

  public:
    template <typename Plan>
    Sums(const std::vector<Plan>& plans, int threads, Scratch<float>& memory) {
        for (const Plan& p : plans) places.push_back(places.back() + p.weights() + p.out_channels);
        first = memory.of(threads * apart());
        in_shares(threads, threads, [&](int, int, int thread) {
            std::fill_n(of(0, thread), apart(), 0.0f);
        });
    }
    size_t apart() const { return places.back(); }  // from one thread's to the next one's
    float* of(int layer, int thread = 0) const { return first + thread * apart() + places[layer]; }
};
