// Adam's step for all parameters of a network at once, after clipping the gradient by its norm.
//
// With g = gradient · min(1, max_norm / (‖gradient‖ + 1e-6)), for each value:
//   m += (1 − β₁)(g − m);  v += (1 − β₂)(g² − v);  x −= rate · m / (1 − β₁ᵗ) / (√v / √(1 − β₂ᵗ) + eps).
// Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1. adam.py calls `adam` once per minibatch. All
// values of all parameters are shared out evenly among threads, so a thread may begin in the middle of a
// parameter.

#include <algorithm>
#include <cmath>

#include "../common/threads.h"

// One parameter: four arrays of `size` floats in the same memory order. Mirrors AdamParameter in adam.py.
struct AdamParameter {
    float *values, *gradient, *first_moments, *second_moments;
    int64_t size;
};

// The scalars of a step, in the notation above; bias_correction1 is 1 / (1 − β₁ᵗ), root_bias_correction2 is
// 1 / √(1 − β₂ᵗ). Mirrors AdamSettings in adam.py.
struct AdamSettings {
    float max_norm, rate, one_minus_beta1, one_minus_beta2, eps, bias_correction1, root_bias_correction2;
};

namespace {

// Calls `visit(parameter, first, last, thread)` for each parameter that a thread has a share of: its values
// [first, last).
template <typename Visit>
void for_values(const AdamParameter* parameters, int count, int threads, Visit visit) {
    int64_t total = 0;
    for (int p = 0; p < count; ++p) total += parameters[p].size;
    parallel_ranges(total, threads, [&](int64_t first, int64_t last, int thread) {
        int64_t before = 0;
        for (const AdamParameter* p = parameters; p < parameters + count; before += p++->size) {
            const int64_t from = std::max<int64_t>(first - before, 0);
            const int64_t to = std::min(last - before, p->size);
            if (from < to) visit(*p, from, to, thread);
        }
    });
}

// Returns Σ x² of `count` values. Parts of PART values are summed in float32, which is accurate enough for
// so few, and the parts in float64.
double sum_of_squares(const float* x, int64_t count) {
    constexpr int64_t PART = 4096;
    double sum = 0.0;
    for (int64_t first = 0; first < count; first += PART) {
        const int64_t last = std::min(first + PART, count);
        Vec sums[4] = {};
        int64_t i = first;
        for (; i + 4 * VEC_FLOATS <= last; i += 4 * VEC_FLOATS)
            for (int j = 0; j < 4; ++j) {
                const Vec value = load(x + i + j * VEC_FLOATS);
                sums[j] += value * value;
            }
        const Vec all_four = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int j = 0; j < VEC_FLOATS; ++j) sum += all_four[j];
        for (; i < last; ++i) sum += (double)x[i] * x[i];
    }
    return sum;
}

}  // namespace

// Takes one step of all `count` parameters and returns the gradient's norm before clipping. Where the norm
// is not finite, nothing is changed.
extern "C" double adam(const AdamParameter* parameters, int32_t count, const AdamSettings* settings,
                       int32_t threads) {
    std::vector<double> sums(threads);
    for_values(parameters, count, threads, [&](const AdamParameter& p, int64_t from, int64_t to, int thread) {
        sums[thread] += sum_of_squares(p.gradient + from, to - from);
    });
    double squared = 0.0;
    for (const double sum : sums) squared += sum;
    const double norm = std::sqrt(squared);
    if (!std::isfinite(norm)) return norm;
    const float scale = std::min(1.0, settings->max_norm / (norm + 1e-6));
    const AdamSettings by = *settings;
    for_values(parameters, count, threads, [=](const AdamParameter& p, int64_t from, int64_t to, int) {
        // __restrict lets GCC vectorise the loop.
        float *__restrict values = p.values, *__restrict first = p.first_moments,
              *__restrict second = p.second_moments;
        const float* __restrict gradient = p.gradient;
        for (int64_t i = from; i < to; ++i) {
            const float g = scale * gradient[i];
            first[i] += by.one_minus_beta1 * (g - first[i]);
            second[i] += by.one_minus_beta2 * (g * g - second[i]);
            const float divisor = std::sqrt(second[i]) * by.root_bias_correction2 + by.eps;
            values[i] -= by.rate * by.bias_correction1 * first[i] / divisor;
        }
    });
    return norm;
}
