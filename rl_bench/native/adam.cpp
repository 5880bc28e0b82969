// Clipping by the norm of the gradient, and Adam's step, by all threads over all parameters.

#include <algorithm>
#include <cmath>

#include "threads.h"

// A parameter's values and what belongs to each of them, alike in memory.
struct Parameter {
    float *values, *gradient, *first_moments, *second_moments;
    int64_t size;
};

// New: what a gradient weighs in the moments, 1 − β. Corrections: what moments are multiplied by because they began at
// zero, 1 / (1 − β₁ᵗ) and, for the root of the second one, 1 / √(1 − β₂ᵗ).
struct Settings {
    float max_norm, rate, first_new, second_new, eps, correction, root_correction;
};

namespace {

// Calls `visit(parameter, first, last, thread)` for each thread's part of all values.
template <typename Visit>
void for_values(const Parameter* parameters, int count, int threads, Visit visit) {
    int64_t total = 0;
    for (int p = 0; p < count; ++p) total += parameters[p].size;
    in_shares(total, threads, [&](int64_t first, int64_t last, int thread) {
        int64_t before = 0;
        for (const Parameter* p = parameters; p < parameters + count; before += p++->size) {
            const int64_t from = std::max<int64_t>(first - before, 0);
            const int64_t to = std::min(last - before, p->size);
            if (from < to) visit(*p, from, to, thread);
        }
    });
}

double sum_of_squares(const float* x, int64_t count) {
    constexpr int64_t PART = 4096;  // that single precision adds up well
    double sum = 0.0;
    for (int64_t first = 0; first < count; first += PART) {
        const int64_t last = std::min(first + PART, count);
        Vec sums[4] = {};
        int64_t i = first;
        for (; i + 4 * W <= last; i += 4 * W)
            for (int j = 0; j < 4; ++j) {
                const Vec value = load(x + i + j * W);
                sums[j] += value * value;
            }
        const Vec all_four = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int j = 0; j < W; ++j) sum += all_four[j];
        for (; i < last; ++i) sum += (double)x[i] * x[i];
    }
    return sum;
}

}  // namespace

// Adam's step along the gradient, clipped to `max_norm`; returns the gradient's norm, and leaves everything
// as it is where that is not finite.
extern "C" double adam(const Parameter* parameters, int32_t count, const Settings* settings, int32_t threads) {
    std::vector<double> sums(threads);
    for_values(parameters, count, threads, [&](const Parameter& p, int64_t from, int64_t to, int thread) {
        sums[thread] += sum_of_squares(p.gradient + from, to - from);
    });
    double squared = 0.0;
    for (const double sum : sums) squared += sum;
    const double norm = std::sqrt(squared);
    if (!std::isfinite(norm)) return norm;
    const float scale = std::min(1.0, settings->max_norm / (norm + 1e-6));
    const Settings by = *settings;
    for_values(parameters, count, threads, [=](const Parameter& p, int64_t from, int64_t to, int) {
        float *__restrict values = p.values, *__restrict first = p.first_moments,
              *__restrict second = p.second_moments;
        const float* __restrict gradient = p.gradient;
        for (int64_t i = from; i < to; ++i) {
            const float g = scale * gradient[i];
            first[i] += by.first_new * (g - first[i]);
            second[i] += by.second_new * (g * g - second[i]);
            const float divisor = std::sqrt(second[i]) * by.root_correction + by.eps;
            values[i] -= by.rate * by.correction * first[i] / divisor;
        }
    });
    return norm;
}
