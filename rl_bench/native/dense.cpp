// A dense layer for acting: of few rows, with weights that come from far away at every step.
//
// They lie in panels [⌈O / PANEL⌉, 1 + inputs, PANEL], the bias first, and are read once from front to
// back, by each thread some of them; what is beyond O is zero. Behind the bias they may be pairs of bfloat16
// (pairs.h), [1 + ⌈inputs / 2⌉, PANEL] in a panel.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "matmul.h"
#include "threads.h"

namespace {

thread_local Scratch<float> products, outputs, columns_of_panel;
thread_local Scratch<Pair> pairs;

// Rows of a panel.
INLINE size_t panel_rows(int inputs, int halves) { return 1 + (halves ? ceil_div(inputs, 2) : inputs); }

// What products take of x: x itself,
const float* left_of(const float* x, int, int, float) { return x; }

// or pairs of its columns.
const Pair* left_of(const float* x, int rows, int inputs, Pair) {
    const int depth = ceil_div(inputs, 2);
    Pair* to = pairs.of((size_t)rows * depth + W);
    for (int r = 0; r < rows; ++r, x += inputs) {
        Pair* row = to + (size_t)r * depth;
        int i = 0;
        for (; i + W <= inputs; i += W) put(row, i, load(x + i));
        if (i == inputs) continue;
        float rest[W] = {};
        std::copy(x + i, x + inputs, rest);
        put(row, i, load(rest));  // what is beyond is written again, or not looked at
    }
    return to;
}

template <typename Value>
void apply(const float* x, int rows, int inputs, int outputs, const float* panels, bool relu, float* out,
           int threads) {
    const bool halves = std::is_same_v<Value, Pair>;
    const int count = ceil_div(outputs, PANEL), depth = panel_rows(inputs, halves) - 1;
    in_shares(count, std::min(threads, count), [&](int first, int last, int) {
        const Value* left = left_of(x, rows, inputs, Value{});
        float* y = products.of((size_t)rows * PANEL);
        for (int panel = first; panel < last; ++panel) {
            const float* bias = panels + (size_t)panel * PANEL * (1 + depth);
            columns<Order::ROWS_FIRST, 2, false>(
                rows, left, depth, reinterpret_cast<const Value*>(bias + PANEL), PANEL, y, PANEL, depth);
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

}  // namespace

// The size of the panels, in floats.
extern "C" int32_t dense_packed_size(int32_t inputs, int32_t outputs, int32_t halves) {
    return ceil_div(outputs, PANEL) * PANEL * panel_rows(inputs, halves);
}

// The panels of weights [O, inputs] and a bias [O].
extern "C" void dense_pack(const float* weights, const float* bias, int32_t inputs, int32_t outputs,
                           int32_t halves, float* panels, int32_t threads) {
    in_shares(ceil_div(outputs, PANEL), threads, [&](int first, int last, int) {
        for (int panel = first; panel < last; ++panel) {
            float* start = panels + (size_t)panel * PANEL * panel_rows(inputs, halves);
            float* whole = halves ? columns_of_panel.of((size_t)inputs * PANEL) : start + PANEL;
            for (int j = 0; j < PANEL; ++j) {
                const int o = panel * PANEL + j;
                start[j] = o < outputs ? bias[o] : 0.0f;
                for (int i = 0; i < inputs; ++i)
                    whole[(size_t)i * PANEL + j] =
                        o < outputs ? weights[(size_t)o * inputs + i] : 0.0f;
            }
            if (halves) pair_rows(whole, inputs, PANEL, reinterpret_cast<Pair*>(start + PANEL));
        }
    });
}

// `out` [rows, O] of x [rows, inputs], with a ReLU behind it on demand.
extern "C" void dense(const float* x, int32_t rows, int32_t inputs, int32_t outputs, int32_t halves,
                      const float* panels, int32_t relu, float* out, int32_t threads) {
    (halves ? apply<Pair> : apply<float>)(x, rows, inputs, outputs, panels, relu, out, threads);
}

// Of features [rows, inputs], the layer for log-probabilities of actions, up to a constant, and behind them
// the value: the action that is likeliest with `noise` [rows, actions] added to its log-probability, that
// log-probability and the value, [rows] each. With Gumbel noise actions are distributed as the policy says.
extern "C" void act(const float* features, int32_t rows, int32_t inputs, int32_t actions,
                    const float* panels, const float* noise, int64_t* taken, float* log_probs,
                    float* values) {
    float* y = outputs.of((size_t)rows * (actions + 1));
    apply<float>(features, rows, inputs, actions + 1, panels, false, y, 1);  // too little for more threads
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
