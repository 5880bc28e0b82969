// Dense layers to be learned from, and the last ones, policy and value, as one.
//
// Outputs [rows, O] are x [rows, inputs] times the transpose of weights [O, inputs]; a gradient of outputs gives
// that of x times the weights, and that of weights by x. Products are of floats, or of pairs in bfloat16 (pairs.h).

#include <algorithm>
#include <cmath>

#include "panels.h"
#include "threads.h"

namespace {

// Of floats or, as large, of pairs.
thread_local Scratch<float> right_weights, right_x, left_rows, left_gradients, grouped_gradients;
thread_local Scratch<float> bias_sums, last_weights, last_outputs, last_gradients;

// y [rows, y_row] = x [rows, inputs] times panels of `width` columns.
template <typename Value>
void multiply(const float* x, int rows, int inputs, int width, const Value* panels, float* y, int y_row) {
    const int depth = inputs / PER<Value>;
    const ptrdiff_t row = apart(depth);
    auto* left = reinterpret_cast<Value*>(left_rows.of(rows * row));
    for (int r = 0; r < rows; ++r, x += inputs)
        for (int i = 0; i < inputs; i += W) put(left + r * row, i, load(x + i));
    matmul_by_panels(rows, width, depth, left, row, panels, y, y_row);
}

template <typename Value>
void forward(const float* x, int rows, int inputs, int outputs, const float* weights, const float* bias,
             float* out, int threads) {
    auto* panels = reinterpret_cast<Value*>(right_weights.of((size_t)inputs / PER<Value> * outputs));
    in_shares(outputs / W, threads, [&](int first, int last, int) {
        turn_into_panels(weights, inputs, outputs, first * W, last * W, panels);
    });
    in_shares(rows, threads, [&](int first, int last, int) {
        float* y = out + (size_t)first * outputs;
        multiply(x + (size_t)first * inputs, last - first, inputs, outputs, panels, y, outputs);
        for (int r = first; r < last; ++r, y += outputs)
            for (int j = 0; j < outputs; j += W) {
                const Vec sum = load(y + j) + load(bias + j);
                store(y + j, where_positive(sum, sum));
            }
    });
}

// What a layer's gradients are found from: that of its outputs [rows, width], which counts where `activated`, unless
// null, is positive.
struct Behind {
    const float *gradient, *activated;
    int width;

    Vec at(int r, int j) const {
        const size_t place = (size_t)r * width + j;
        return activated ? where_positive(load(activated + place), load(gradient + place)) : load(gradient + place);
    }
};

// Where gradients of weights and bias go, or are added to what is there.
struct Gradients {
    float *weights, *bias;
    bool add;
};

// Of the first `outputs` of as many as gradients are wide, a multiple of W.
template <typename Value>
void backward(const float* x, int rows, int inputs, int outputs, const float* weights, const Behind& behind,
              float* dx, const Gradients& to, int threads) {
    const int width = behind.width, groups = ceil_div(rows, PER<Value>), depth = width / PER<Value>;
    const ptrdiff_t row = apart(depth), group = apart(width);
    auto* of_weights = reinterpret_cast<Value*>(right_weights.of((size_t)depth * inputs));
    auto* of_x = reinterpret_cast<Value*>(right_x.of((size_t)groups * inputs));
    auto* in_rows = reinterpret_cast<Value*>(left_gradients.of(rows * row));
    auto* in_groups = reinterpret_cast<Value*>(grouped_gradients.of(groups * group));
    float* sums = bias_sums.of((size_t)threads * width);
    in_shares(groups, threads, [&](int first, int last, int thread) {
        put_into_panels(x, rows, inputs, first, last, of_x);
        float* sum = sums + (size_t)thread * width;
        std::fill_n(sum, width, 0.0f);
        for (int g = first; g < last; ++g) {
            const int r = g * PER<Value>;
            const bool alone = PER<Value> == 1 || r + 1 == rows;
            for (int j = 0; j < width; j += W) {
                const Vec one = behind.at(r, j), other = alone ? Vec{} : behind.at(r + 1, j);
                put(in_rows + r * row, j, one);
                if (!alone) put(in_rows + (r + 1) * row, j, other);
                put_group(in_groups + g * group + j, one, other);
                store(sum + j, load(sum + j) + one + other);
            }
        }
        put_into_panels(weights, width, inputs, begin_of(thread, threads, depth),
                        begin_of(thread + 1, threads, depth), of_weights);
    });
    in_shares(inputs / PANEL, threads, [&](int start, int stop, int thread) {
        for (int j = start * PANEL; j < stop * PANEL; j += PANEL)
            (to.add ? columns<Order::COLUMNS_FIRST, 2, true, Value> : columns<Order::COLUMNS_FIRST, 2, false, Value>)(
                outputs, in_groups, group, of_x + (size_t)j * groups, PANEL, to.weights + j, inputs, groups);
        const int first = begin_of(thread, threads, rows), last = begin_of(thread + 1, threads, rows);
        matmul_by_panels(last - first, inputs, depth, in_rows + first * row, row, of_weights,
                         dx + (size_t)first * inputs, inputs);
    });
    for (int o = 0; o < outputs; ++o) {
        if (!to.add) to.bias[o] = 0.0f;
        for (int thread = 0; thread < threads; ++thread) to.bias[o] += sums[(size_t)thread * width + o];
    }
}

// The last layers' weights as one's [width, inputs], and behind them the bias [width]: logits, value, zeros. Biases
// may be null.
const float* as_one(int inputs, int actions, const float* policy_weights, const float* policy_bias,
                    const float* value_weights, const float* value_bias, int width) {
    const size_t size = (size_t)width * inputs;
    float* weights = last_weights.of(size + width);
    std::fill_n(weights, size + width, 0.0f);
    std::copy_n(policy_weights, (size_t)actions * inputs, weights);
    std::copy_n(value_weights, inputs, weights + (size_t)actions * inputs);
    if (policy_bias) std::copy_n(policy_bias, actions, weights + size);
    if (value_bias) weights[size + actions] = *value_bias;
    return weights;
}

}  // namespace

// `out` [rows, O] of x [rows, inputs], with a ReLU behind it. `inputs` is a multiple of 32, O of 16.
extern "C" void dense_learn(const float* x, int32_t rows, int32_t inputs, int32_t outputs, int32_t halves,
                            const float* weights, const float* bias, float* out, int32_t threads) {
    (halves ? forward<Pair> : forward<float>)(x, rows, inputs, outputs, weights, bias, out, threads);
}

// Gradients of x, weights and bias, the last two added to what is there on demand, of that of the outputs, which are
// `activated`.
extern "C" void dense_learn_backward(const float* x, int32_t rows, int32_t inputs, int32_t outputs, int32_t halves,
                                     const float* weights, const float* activated, const float* gradient,
                                     float* dx, float* dweights, float* dbias, int32_t add, int32_t threads) {
    (halves ? backward<Pair> : backward<float>)(x, rows, inputs, outputs, weights, {gradient, activated, outputs},
                                                dx, {dweights, dbias, (bool)add}, threads);
}

// Log-probabilities of actions [rows, actions] and values [rows] of features [rows, inputs].
extern "C" void heads_learn(const float* features, int32_t rows, int32_t inputs, int32_t actions,
                            const float* policy_weights, const float* policy_bias, const float* value_weights,
                            const float* value_bias, float* policy, float* values, int32_t threads) {
    const int width = ceil_div(actions + 1, W) * W;
    const float* weights = as_one(inputs, actions, policy_weights, policy_bias, value_weights, value_bias, width);
    const float* bias = weights + (size_t)width * inputs;
    float* panels = right_weights.of((size_t)width * inputs);
    turn_into_panels(weights, inputs, width, 0, width, panels);
    in_shares(rows, threads, [&](int first, int last, int) {
        float* y = last_outputs.of((size_t)(last - first) * width);
        multiply(features + (size_t)first * inputs, last - first, inputs, width, panels, y, width);
        for (int r = first; r < last; ++r, y += width) {
            for (int j = 0; j <= actions; ++j) y[j] += bias[j];
            const float highest = *std::max_element(y, y + actions);
            float sum = 0.0f;
            for (int a = 0; a < actions; ++a) sum += std::exp(y[a] - highest);
            const float logarithm = highest + std::log(sum);
            for (int a = 0; a < actions; ++a) policy[(size_t)r * actions + a] = y[a] - logarithm;
            values[r] = y[actions];
        }
    });
}

// Gradients of features, and of weights [actions + 1, inputs] and biases of both layers, the value's last, which are
// added to what is there on demand.
extern "C" void heads_learn_backward(const float* features, int32_t rows, int32_t inputs, int32_t actions,
                                     const float* policy_weights, const float* value_weights,
                                     const float* policy, const float* dpolicy, const float* dvalues,
                                     float* dfeatures, float* dweights, float* dbias, int32_t add, int32_t threads) {
    const int width = ceil_div(actions + 1, W) * W;
    const float* weights = as_one(inputs, actions, policy_weights, nullptr, value_weights, nullptr, width);
    float* gradient = last_gradients.of((size_t)rows * width);
    in_shares(rows, threads, [&](int first, int last, int) {
        for (int r = first; r < last; ++r) {
            const float *p = policy + (size_t)r * actions, *dp = dpolicy + (size_t)r * actions;
            float *to = gradient + (size_t)r * width, sum = 0.0f;
            for (int a = 0; a < actions; ++a) sum += dp[a];
            for (int a = 0; a < actions; ++a) to[a] = dp[a] - std::exp(p[a]) * sum;
            to[actions] = dvalues[r];
            std::fill(to + actions + 1, to + width, 0.0f);
        }
    });
    backward<float>(features, rows, inputs, actions + 1, weights, {gradient, nullptr, width}, dfeatures,
                    {dweights, dbias, (bool)add}, threads);
}
