// A dense layer for acting, in float32: of few rows, with weights that come from far away at every step.
//
// They lie in panels [⌈O / PANEL⌉, 1 + inputs, PANEL], the bias first, and are read once from front to
// back, by each thread some of them; what is beyond O is zero.

#include <algorithm>
#include <cmath>

#include "matmul.h"
#include "threads.h"

namespace {

thread_local Scratch<float> products, outputs;

}  // namespace

// The size of the panels, in floats.
extern "C" int32_t dense_packed_size(int32_t inputs, int32_t outputs) {
    return ceil_div(outputs, PANEL) * PANEL * (1 + inputs);
}

// The panels of weights [O, inputs] and a bias [O].
extern "C" void dense_pack(const float* weights, const float* bias, int32_t inputs, int32_t outputs,
                           float* panels, int32_t threads) {
    in_shares(ceil_div(outputs, PANEL), threads, [&](int first, int last, int) {
        for (int panel = first; panel < last; ++panel)
            for (int j = 0; j < PANEL; ++j) {
                const int o = panel * PANEL + j;
                float* to = panels + (size_t)panel * PANEL * (1 + inputs) + j;
                to[0] = o < outputs ? bias[o] : 0.0f;
                for (int i = 0; i < inputs; ++i)
                    to[(size_t)(1 + i) * PANEL] =
                        o < outputs ? weights[(size_t)o * inputs + i] : 0.0f;
            }
    });
}

// `out` [rows, O] of x [rows, inputs], with a ReLU behind it on demand.
extern "C" void dense(const float* x, int32_t rows, int32_t inputs, int32_t outputs,
                      const float* panels, int32_t relu, float* out, int32_t threads) {
    const int count = ceil_div(outputs, PANEL);
    in_shares(count, std::min(threads, count), [&](int first, int last, int) {
        float* y = products.of((size_t)rows * PANEL);
        for (int panel = first; panel < last; ++panel) {
            const float* bias = panels + (size_t)panel * PANEL * (1 + inputs);
            columns<Order::ROWS_FIRST, 2, false>(rows, x, inputs, bias + PANEL, PANEL, y, PANEL, inputs);
            const int some = std::min(PANEL, outputs - panel * PANEL);
            for (int r = 0; r < rows; ++r) {
                float* row = y + r * PANEL;
                for (int j = 0; j < PANEL; j += W) {
                    const Vec sum = load(row + j) + load(bias + j);
                    store(row + j, relu ? where_positive(sum, sum) : sum);
                }
                std::memcpy(out + (size_t)r * outputs + panel * PANEL, row, some * sizeof(float));
            }
        }
    });
}

// Of features [rows, inputs], the layer for log-probabilities of actions, up to a constant, and behind them
// the value: the action that is likeliest with `noise` [rows, actions] added to its log-probability, that
// log-probability and the value, [rows] each. With Gumbel noise actions are distributed as the policy says.
extern "C" void act(const float* features, int32_t rows, int32_t inputs, int32_t actions,
                    const float* panels, const float* noise, int64_t* taken, float* log_probs,
                    float* values) {
    float* y = outputs.of((size_t)rows * (actions + 1));
    dense(features, rows, inputs, actions + 1, panels, false, y, 1);  // too little for more threads
    for (int r = 0; r < rows; ++r, y += actions + 1, noise += actions) {
        const float highest = *std::max_element(y, y + actions);
        float sum = 0.0f;
        for (int a = 0; a < actions; ++a) sum += std::exp(y[a] - highest);
        const float logarithm = highest + std::log(sum);
        int best = 0;
        for (int a = 1; a < actions; ++a)
            if (y[a] + noise[a] > y[best] + noise[best]) best = a;
        taken[r] = best;
        log_probs[r] = y[best] - logarithm;
        values[r] = y[actions];
    }
}
