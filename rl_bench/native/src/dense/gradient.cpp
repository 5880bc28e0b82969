// Dense layers for learning, forward and back, and the last ones, policy and value, as one layer.
//
// Forward: y = relu(x Wᵀ + b), with x [rows, inputs] and W [O, inputs]. Backward, with dy [rows, O] the
// gradient of x Wᵀ + b, before the ReLU: dx = dy W, dW = dyᵀ x, db = Σ over rows of dy. Operands are packed anew for each minibatch
// (panels.h), as floats or as bf16 pairs along what a product sums over: inputs, outputs or rows. Threads
// share out rows of y and dx, and columns of dW. dense.py calls the extern "C" functions.

#include <algorithm>
#include <cmath>

#include "../common/threads.h"
#include "panels.h"

namespace {

// Packed operands, of floats or of pairs in place of floats. They belong to the calling thread, which lends
// them to the others by pointer; each thread has its own left_rows and heads_outputs.
thread_local Scratch<float> packed_weights, packed_x, left_rows, left_gradients, paired_gradients;
// Sums of the bias's gradient per thread; weights, outputs and gradients of the heads as one layer.
thread_local Scratch<float> bias_sums, heads_weights, heads_outputs, heads_gradients;

// Computes y [rows, width] = x [rows, inputs] times a matrix [inputs, width] in `panels` (panels.h), in one
// thread; rows of y are `y_row` floats apart. Copies x as a left operand first, its rows padded_stride apart
// and pairs along inputs. inputs is a multiple of the values in a vector of operands.
template <typename Value>
void multiply(const float* x, int rows, int inputs, int width, const Value* panels, float* y, int y_row) {
    const int depth = inputs / PAIR_SIZE<Value>;
    const ptrdiff_t row = padded_stride(depth);
    auto* left = reinterpret_cast<Value*>(left_rows.get(rows * row));
    for (int r = 0; r < rows; ++r, x += inputs)
        for (int i = 0; i < inputs; i += VEC_FLOATS) store_operand(left + r * row, i, load(x + i));
    matmul_panels(rows, width, depth, left, row, panels, y, y_row);
}

// Computes `out` [rows, O] = relu(x Wᵀ + b).
template <typename Value>
void forward(const float* x, int rows, int inputs, int outputs, const float* weights, const float* bias,
             float* out, int threads) {
    auto* panels = reinterpret_cast<Value*>(packed_weights.get((size_t)inputs / PAIR_SIZE<Value> * outputs));
    parallel_ranges(outputs / VEC_FLOATS, threads, [&](int first, int last, int) {
        pack_transposed(weights, inputs, outputs, first * VEC_FLOATS, last * VEC_FLOATS, panels);
    });
    parallel_ranges(rows, threads, [&](int first, int last, int) {
        float* y = out + (size_t)first * outputs;
        multiply(x + (size_t)first * inputs, last - first, inputs, outputs, panels, y, outputs);
        for (int r = first; r < last; ++r, y += outputs)
            for (int j = 0; j < outputs; j += VEC_FLOATS) {
                const Vec sum = load(y + j) + load(bias + j);
                store(y + j, where_positive(sum, sum));
            }
    });
}

// The gradient dy [rows, width] before the ReLU: `gradient` where `activated`, the ReLU's outputs, is
// positive. Without a ReLU activated is null. (OutputGradient of ../winograd/layer.h is another one.)
struct OutputGradient {
    const float *gradient, *activated;
    int width;

    // Returns dy[r, j … j + VEC_FLOATS).
    Vec at(int r, int j) const {
        const size_t place = (size_t)r * width + j;
        return activated ? where_positive(load(activated + place), load(gradient + place))
                         : load(gradient + place);
    }
};

// Memory for the gradients of weights and bias, which are added to what is there if `add`.
struct ParameterGradients {
    float *weights, *bias;
    bool add;
};

// Computes dx [rows, inputs], which is overwritten, and the gradients of weights [outputs, inputs] and bias
// [outputs]. `weights` has out.width ≥ outputs rows and `out` as many columns, a multiple of VEC_FLOATS;
// those beyond `outputs` are zero. Two rounds: threads pack operands, each some rows; then they multiply,
// each some columns of dW and some rows of dx. The caller adds the threads' sums of the bias up.
template <typename Value>
void backward(const float* x, int rows, int inputs, int outputs, const float* weights,
              const OutputGradient& out, float* dx, const ParameterGradients& to, int threads) {
    // Rows in units that a product takes at once: pairs of rows, or for floats the rows themselves.
    const int width = out.width, row_pairs = ceil_div(rows, PAIR_SIZE<Value>);
    const int depth = width / PAIR_SIZE<Value>;
    const ptrdiff_t row_stride = padded_stride(depth), pair_stride = padded_stride(width);
    auto* w_panels = reinterpret_cast<Value*>(packed_weights.get((size_t)depth * inputs));
    auto* x_panels = reinterpret_cast<Value*>(packed_x.get((size_t)row_pairs * inputs));
    // dy paired along outputs, for dx, and along rows, for dW (elements of PAIR_SIZE rows).
    auto* dy = reinterpret_cast<Value*>(left_gradients.get(rows * row_stride));
    auto* dy_by_rows = reinterpret_cast<Value*>(paired_gradients.get(row_pairs * pair_stride));
    float* sums = bias_sums.get((size_t)threads * width);
    // Pack x, dy in both ways and the weights; sum the bias's gradient up.
    parallel_ranges(row_pairs, threads, [&](int first, int last, int thread) {
        pack_rows(x, rows, inputs, first, last, x_panels);
        float* sum = sums + (size_t)thread * width;
        std::fill_n(sum, width, 0.0f);
        for (int g = first; g < last; ++g) {
            const int r = g * PAIR_SIZE<Value>;
            const bool alone = PAIR_SIZE<Value> == 1 || r + 1 == rows;
            for (int j = 0; j < width; j += VEC_FLOATS) {
                const Vec one = out.at(r, j), other = alone ? Vec{} : out.at(r + 1, j);
                store_operand(dy + r * row_stride, j, one);
                if (!alone) store_operand(dy + (r + 1) * row_stride, j, other);
                store_elements(dy_by_rows + g * pair_stride + j, one, other);
                store(sum + j, load(sum + j) + one + other);
            }
        }
        pack_rows(weights, width, inputs, part_begin(thread, threads, depth),
                  part_begin(thread + 1, threads, depth), w_panels);
    });
    // Multiply: each thread some columns of dW, then some rows of dx.
    parallel_ranges(inputs / PANEL_WIDTH, threads, [&](int start, int stop, int thread) {
        for (int j = start * PANEL_WIDTH; j < stop * PANEL_WIDTH; j += PANEL_WIDTH)
            (to.add ? multiply_columns<Order::COLUMN_MAJOR, 2, true, Value>
                    : multiply_columns<Order::COLUMN_MAJOR, 2, false, Value>)(
                outputs, dy_by_rows, pair_stride, x_panels + (size_t)j * row_pairs, PANEL_WIDTH,
                to.weights + j, inputs, row_pairs);
        const int first = part_begin(thread, threads, rows), last = part_begin(thread + 1, threads, rows);
        matmul_panels(last - first, inputs, depth, dy + first * row_stride, row_stride, w_panels,
                      dx + (size_t)first * inputs, inputs);
    });
    for (int o = 0; o < outputs; ++o) {
        if (!to.add) to.bias[o] = 0.0f;
        for (int thread = 0; thread < threads; ++thread) to.bias[o] += sums[(size_t)thread * width + o];
    }
}

// Returns the weights of policy and value as one layer's [width, inputs], followed by the biases [width]: A
// rows of logits, one of the value, zeros. Biases may be null.
const float* join_heads(int inputs, int actions, const float* policy_weights, const float* policy_bias,
                        const float* value_weights, const float* value_bias, int width) {
    const size_t size = (size_t)width * inputs;
    float* weights = heads_weights.get(size + width);
    std::fill_n(weights, size + width, 0.0f);
    std::copy_n(policy_weights, (size_t)actions * inputs, weights);
    std::copy_n(value_weights, inputs, weights + (size_t)actions * inputs);
    if (policy_bias) std::copy_n(policy_bias, actions, weights + size);
    if (value_bias) weights[size + actions] = *value_bias;
    return weights;
}

}  // namespace

// Computes `out` [rows, O] = relu(x Wᵀ + b) of `x` [rows, inputs]; inputs is a multiple of 32, O of 16.
extern "C" void dense_forward(const float* x, int32_t rows, int32_t inputs, int32_t outputs,
                              int32_t bf16_products, const float* weights, const float* bias, float* out,
                              int32_t threads) {
    (bf16_products ? forward<Bf16Pair> : forward<float>)(x, rows, inputs, outputs, weights, bias, out,
                                                         threads);
}

// Computes `dx` [rows, inputs], `dweights` [O, inputs] and `dbias` [O], the last two added to what is there
// if `add`, from `gradient` [rows, O] of the outputs, which are in `activated`. `x` [rows, inputs], `weights`
// [O, inputs]; sizes as in dense_forward.
extern "C" void dense_backward(const float* x, int32_t rows, int32_t inputs, int32_t outputs,
                               int32_t bf16_products, const float* weights, const float* activated,
                               const float* gradient, float* dx, float* dweights, float* dbias, int32_t add,
                               int32_t threads) {
    (bf16_products ? backward<Bf16Pair> : backward<float>)(x, rows, inputs, outputs, weights,
                                                           {gradient, activated, outputs}, dx,
                                                           {dweights, dbias, (bool)add}, threads);
}

// Computes log-probabilities `policy` [rows, A] and `values` [rows] of `features` [rows, inputs], with
// weights [A, inputs] and [inputs] and biases [A] and [1]: a linear layer, then logits − log Σ exp(logits).
// Always in float32; inputs is a multiple of 32.
extern "C" void heads_forward(const float* features, int32_t rows, int32_t inputs, int32_t actions,
                              const float* policy_weights, const float* policy_bias,
                              const float* value_weights, const float* value_bias, float* policy,
                              float* values, int32_t threads) {
    const int width = ceil_div(actions + 1, VEC_FLOATS) * VEC_FLOATS;
    const float* weights =
        join_heads(inputs, actions, policy_weights, policy_bias, value_weights, value_bias, width);
    const float* bias = weights + (size_t)width * inputs;
    float* panels = packed_weights.get((size_t)width * inputs);
    pack_transposed(weights, inputs, width, 0, width, panels);
    parallel_ranges(rows, threads, [&](int first, int last, int) {
        float* y = heads_outputs.get((size_t)(last - first) * width);
        multiply(features + (size_t)first * inputs, last - first, inputs, width, panels, y, width);
        for (int r = first; r < last; ++r, y += width) {
            for (int j = 0; j <= actions; ++j) y[j] += bias[j];
            const float highest = *std::max_element(y, y + actions);
            float sum = 0.0f;
            for (int a = 0; a < actions; ++a) sum += std::exp(y[a] - highest);
            const float log_sum = highest + std::log(sum);
            for (int a = 0; a < actions; ++a) policy[(size_t)r * actions + a] = y[a] - log_sum;
            values[r] = y[actions];
        }
    });
}

// Computes `dfeatures` [rows, inputs], `dweights` [A + 1, inputs] and `dbias` [A + 1], the value's row
// last, from the gradients `dpolicy` [rows, A] of log-probabilities and `dvalues` [rows]. `policy` are the
// log-probabilities that heads_forward gave. With `add` the
// last two are added to what is there. Through the normalisation the gradient of logit a is dpolicy[a] −
// π(a) Σ dpolicy, where π = exp(policy).
extern "C" void heads_backward(const float* features, int32_t rows, int32_t inputs, int32_t actions,
                               const float* policy_weights, const float* value_weights,
                               const float* policy, const float* dpolicy, const float* dvalues,
                               float* dfeatures, float* dweights, float* dbias, int32_t add,
                               int32_t threads) {
    const int width = ceil_div(actions + 1, VEC_FLOATS) * VEC_FLOATS;
    const float* weights =
        join_heads(inputs, actions, policy_weights, nullptr, value_weights, nullptr, width);
    float* gradient = heads_gradients.get((size_t)rows * width);
    parallel_ranges(rows, threads, [&](int first, int last, int) {
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
