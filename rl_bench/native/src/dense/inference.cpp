// Dense layers for acting, and the sampling of actions: y = x Wᵀ + b, with a ReLU on demand.
//
// There are few rows, and the weights come from far away at every step, as the environments evict them from
// the caches. They are packed once per block of steps in panels [⌈O / PANEL_WIDTH⌉, 1 + inputs,
// PANEL_WIDTH]: the bias, then the weights of PANEL_WIDTH outputs; columns beyond O are zero. With bf16
// products the weights are pairs, [1 + ⌈inputs / 2⌉, PANEL_WIDTH] in a panel (../common/bf16_pairs.h). Each
// thread computes some panels for all rows, reading them once from front to back. dense.py calls the extern
// "C" functions.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../common/matmul.h"
#include "../common/threads.h"

namespace {

thread_local Scratch<float> products, outputs, panel_columns;
thread_local Scratch<Bf16Pair> pairs;

// Returns the number of rows in a panel: the bias and the weights, of floats or of pairs.
INLINE size_t panel_rows(int inputs, int bf16_products) {
    return 1 + (bf16_products ? ceil_div(inputs, 2) : inputs);
}

// Returns the left operand for float products: `x` [rows, inputs] itself.
const float* left_operand(const float* x, int, int, float) { return x; }

// Returns the left operand for bf16 products: x as pairs, [rows, ⌈inputs / 2⌉].
const Bf16Pair* left_operand(const float* x, int rows, int inputs, Bf16Pair) {
    const int depth = ceil_div(inputs, 2);
    Bf16Pair* to = pairs.get((size_t)rows * depth + VEC_FLOATS);
    for (int r = 0; r < rows; ++r, x += inputs) {
        Bf16Pair* row = to + (size_t)r * depth;
        int i = 0;
        for (; i + VEC_FLOATS <= inputs; i += VEC_FLOATS) store_operand(row, i, load(x + i));
        if (i == inputs) continue;
        float rest[VEC_FLOATS] = {};
        std::copy(x + i, x + inputs, rest);
        // Its zeros reach into the next row, which is written later, or beyond the last row.
        store_operand(row, i, load(rest));
    }
    return to;
}

// Computes `out` [rows, O] of `x` [rows, inputs].
template <typename Value>
void apply(const float* x, int rows, int inputs, int outputs, const float* panels, bool relu, float* out,
           int threads) {
    const bool bf16_products = std::is_same_v<Value, Bf16Pair>;
    const int count = ceil_div(outputs, PANEL_WIDTH), depth = panel_rows(inputs, bf16_products) - 1;
    parallel_ranges(count, std::min(threads, count), [&](int first, int last, int) {
        const Value* left = left_operand(x, rows, inputs, Value{});
        float* y = products.get((size_t)rows * PANEL_WIDTH);
        for (int panel = first; panel < last; ++panel) {
            const float* bias = panels + (size_t)panel * PANEL_WIDTH * (1 + depth);
            multiply_columns<Order::ROW_MAJOR, 2, false>(
                rows, left, depth, reinterpret_cast<const Value*>(bias + PANEL_WIDTH), PANEL_WIDTH, y,
                PANEL_WIDTH, depth);
            const int some = std::min(PANEL_WIDTH, outputs - panel * PANEL_WIDTH);
            for (int r = 0; r < rows; ++r) {
                float* row = y + r * PANEL_WIDTH;
                for (int j = 0; j < PANEL_WIDTH; j += VEC_FLOATS) {
                    const Vec sum = load(row + j) + load(bias + j);
                    store(row + j, relu ? where_positive(sum, sum) : sum);
                }
                std::memcpy(out + (size_t)r * outputs + panel * PANEL_WIDTH, row, some * sizeof(float));
            }
        }
    });
}

}  // namespace

// Returns the size of the packed weights and bias, in floats.
extern "C" int32_t dense_packed_size(int32_t inputs, int32_t outputs, int32_t bf16_products) {
    return ceil_div(outputs, PANEL_WIDTH) * PANEL_WIDTH * panel_rows(inputs, bf16_products);
}

// Packs `weights` [O, inputs] and `bias` [O] into `panels`.
extern "C" void dense_pack(const float* weights, const float* bias, int32_t inputs, int32_t outputs,
                           int32_t bf16_products, float* panels, int32_t threads) {
    parallel_ranges(ceil_div(outputs, PANEL_WIDTH), threads, [&](int first, int last, int) {
        for (int panel = first; panel < last; ++panel) {
            float* start = panels + (size_t)panel * PANEL_WIDTH * panel_rows(inputs, bf16_products);
            float* columns =
                bf16_products ? panel_columns.get((size_t)inputs * PANEL_WIDTH) : start + PANEL_WIDTH;
            for (int j = 0; j < PANEL_WIDTH; ++j) {
                const int o = panel * PANEL_WIDTH + j;
                start[j] = o < outputs ? bias[o] : 0.0f;
                for (int i = 0; i < inputs; ++i)
                    columns[(size_t)i * PANEL_WIDTH + j] =
                        o < outputs ? weights[(size_t)o * inputs + i] : 0.0f;
            }
            if (bf16_products)
                pair_rows(columns, inputs, PANEL_WIDTH, reinterpret_cast<Bf16Pair*>(start + PANEL_WIDTH));
        }
    });
}

// Computes `out` [rows, O] of `x` [rows, inputs] with packed `panels`, behind a ReLU if `relu`.
extern "C" void dense(const float* x, int32_t rows, int32_t inputs, int32_t outputs, int32_t bf16_products,
                      const float* panels, int32_t relu, float* out, int32_t threads) {
    (bf16_products ? apply<Bf16Pair> : apply<float>)(x, rows, inputs, outputs, panels, relu, out, threads);
}

// Samples an action for each row of `features` [rows, inputs]. The layer in `panels` gives A unnormalised
// log-probabilities and, behind them, the value. The action is the one with the largest log-probability
// plus `noise` [rows, A]; with Gumbel noise actions follow the policy's distribution. Fills `sampled`, its
// `log_probs` and `values`, [rows] each. One thread does it all, as there is too little work for more.
extern "C" void act(const float* features, int32_t rows, int32_t inputs, int32_t actions,
                    const float* panels, const float* noise, int64_t* sampled, float* log_probs,
                    float* values) {
    float* y = outputs.get((size_t)rows * (actions + 1));
    apply<float>(features, rows, inputs, actions + 1, panels, false, y, 1);
    for (int r = 0; r < rows; ++r, y += actions + 1, noise += actions) {
        const float highest = *std::max_element(y, y + actions);
        float sum = 0.0f;
        for (int a = 0; a < actions; ++a) sum += std::exp(y[a] - highest);
        const float log_sum = highest + std::log(sum);
        int best = 0;
        for (int a = 1; a < actions; ++a)
            if (y[a] + noise[a] > y[best] + noise[best]) best = a;
        sampled[r] = best;
        log_probs[r] = y[best] - log_sum;
        values[r] = y[actions];
    }
}
