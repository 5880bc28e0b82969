// PPO's and IMPALA's losses of a minibatch for policies over discrete actions, and their gradients in
// closed form. What each term means is said where it is defined: agents/ppo.py, agents/impala.py, ops/.

#include <algorithm>
#include <cmath>

#include "threads.h"

// Means over all rows; those of ρ are V-trace's alone.
struct Means {
    double policy_loss = 0, value_loss = 0, entropy_loss = 0, approx_kl = 0, clip_fraction = 0,
           rho_mean = 0, rho_clip_fraction = 0;
};

// Clip ranges (infinity: none), what the terms weigh, what one row weighs in the whole, and how many times
// `spread` PPO's advantages lie from `mean`.
struct Terms {
    float clip_range, value_clip_range, value_coef, entropy_coef, row_weight, mean, spread;
};

namespace {

// Adds the value's term; returns its gradient.
float value_gradient(float value, float target, float old, const Terms& terms, double& loss) {
    const float move = value - old, range = terms.value_clip_range;
    const float clipped = old + std::max(std::min(move, range), -range);
    const float error = value - target, clipped_error = clipped - target;
    // What is not a number stays: of two, `clipped` is taken where the comparison fails.
    const bool plain = std::isinf(range) || std::abs(move) <= range
                       || clipped_error * clipped_error <= error * error;
    const float larger = plain ? error : clipped_error;
    loss += 0.5 * larger * larger;
    return plain ? terms.value_coef * terms.row_weight * error : 0.0f;
}

// What was never written is not read or written by.
bool exists(int64_t action, int actions) { return action >= 0 && action < actions; }

// Adds the entropy of normalised log-probabilities [actions]; writes their gradient, `of_action` for the
// action taken.
void policy_gradient(const float* policy, int actions, int64_t action, float of_action,
                     const Terms& terms, double& entropy_loss, float* gradient) {
    float sum = 0.0f;
    for (int a = 0; a < actions; ++a) {
        const float probability = std::exp(policy[a]);
        sum += probability * policy[a];
        gradient[a] = terms.row_weight * terms.entropy_coef * probability * (policy[a] + 1.0f);
    }
    gradient[action] += of_action;
    entropy_loss += sum;
}

// The means of what `visit(first, last, sums)` adds up of `count` parts, `rows` in all.
template <typename Visit>
Means means_of(int count, int rows, int threads, Visit visit) {
    std::vector<Means> found(threads);
    in_shares(count, threads, [&](int first, int last, int thread) {
        Means sums;  // of its own, as neighbours in memory slow each other down
        visit(first, last, sums);
        found[thread] = sums;
    });
    Means all;
    for (double Means::*term : {&Means::policy_loss, &Means::value_loss, &Means::entropy_loss,
                                &Means::approx_kl, &Means::clip_fraction, &Means::rho_mean,
                                &Means::rho_clip_fraction}) {
        for (const Means& one : found) all.*term += one.*term;
        all.*term /= rows;
    }
    return all;
}

}  // namespace

// PPO's, of the `chosen` [rows] of what was recorded: policies [rows, actions], values [rows].
extern "C" void clipped_objective(
    const float* policy, const float* values, int32_t rows, int32_t actions, const int64_t* chosen,
    const int64_t* all_taken, const float* old_log_probs, const float* advantages, const float* returns,
    const float* old_values, const Terms* all_terms, float* policy_gradients, float* value_gradients,
    Means* means, int32_t threads) {
    const Terms& terms = *all_terms;
    const float range = terms.clip_range;
    *means = means_of(rows, rows, threads, [&](int first, int last, Means& sums) {
        for (int i = first; i < last; ++i) {
            const float* p = policy + (int64_t)i * actions;
            const int64_t row = chosen[i], taken = all_taken[row];
            if (!exists(taken, actions)) {
                sums.policy_loss = NAN;
                continue;
            }
            const float advantage = (advantages[row] - terms.mean) / terms.spread;
            const float log_ratio = p[taken] - old_log_probs[row], ratio = std::exp(log_ratio);
            const float held = std::min(std::max(ratio, 1.0f - range), 1.0f + range);
            const float plain = ratio * advantage, clipped = held * advantage;
            const bool moves = plain < clipped || ratio == held;
            sums.policy_loss -= clipped <= plain ? clipped : plain;
            sums.approx_kl += (ratio - 1.0f) - log_ratio;
            sums.clip_fraction += std::abs(ratio - 1.0f) > range;
            policy_gradient(p, actions, taken, moves ? -terms.row_weight * plain : 0.0f, terms,
                            sums.entropy_loss, policy_gradients + (int64_t)i * actions);
            value_gradients[i] = value_gradient(values[i], returns[row], old_values[row], terms,
                                                sums.value_loss);
        }
    });
}

// What V-trace clips ratios to, and how it discounts.
struct VTraceSettings {
    float gamma, clip_rho, clip_c, clip_pg_rho, trace_lambda;
};

// IMPALA's, of the rows of what was recorded that are `chosen` [steps + 1, unrolls]: policies [steps + 1, unrolls,
// actions], values [steps + 1, unrolls]. Nobody acted on the last observations, whose values bootstrap, and which
// have no gradients.
extern "C" void vtrace_objective(
    const float* policy, const float* values, int32_t steps, int32_t unrolls, int32_t actions,
    const int64_t* chosen, const int64_t* all_taken, const float* old_log_probs, const float* rewards,
    const bool* terminated, const bool* truncated, const float* final_values, const float* old_values,
    const Terms* all_terms, const VTraceSettings* vtrace, float* policy_gradients, float* value_gradients, Means* means,
    int32_t threads) {
    const VTraceSettings& by = *vtrace;
    const Terms& terms = *all_terms;
    const int rows = steps * unrolls;
    *means = means_of(unrolls, rows, threads, [&](int first, int last, Means& sums) {
        for (int u = first; u < last; ++u) {
            float correction = 0.0f, next_target = values[rows + u];  // v − V behind this step, and v
            for (int i = rows - unrolls + u; i >= 0; i -= unrolls) {
                const float* p = policy + (int64_t)i * actions;
                const int64_t row = chosen[i], taken = all_taken[row];
                if (!exists(taken, actions)) {
                    sums.policy_loss = NAN;
                    continue;
                }
                const float log_rho = p[taken] - old_log_probs[row], rho = std::exp(log_rho);
                const float discount = terminated[row] ? 0.0f : by.gamma;
                const bool cut = truncated[row];
                const float next_value = cut ? final_values[row] : values[i + unrolls];
                const float delta =
                    std::min(rho, by.clip_rho) * (rewards[row] + discount * next_value - values[i]);
                const float trace = cut ? 0.0f : discount * by.trace_lambda * std::min(rho, by.clip_c);
                correction = delta + trace * correction;
                const float target = values[i] + correction;
                const float behind = cut ? final_values[row] : next_target;
                const float advantage = std::min(rho, by.clip_pg_rho)
                                        * (rewards[row] + discount * behind - values[i]);
                next_target = target;

                const bool beyond = (advantage > 0 && rho > 1.0f + terms.clip_range)
                                    || (advantage < 0 && rho < 1.0f - terms.clip_range);
                const float followed = beyond ? 0.0f : advantage;
                sums.policy_loss -= p[taken] * followed;
                sums.approx_kl += (rho - 1.0f) - log_rho;
                sums.clip_fraction += beyond;
                sums.rho_mean += rho;
                sums.rho_clip_fraction += rho > by.clip_rho;
                policy_gradient(p, actions, taken, -terms.row_weight * followed, terms, sums.entropy_loss,
                                policy_gradients + (int64_t)i * actions);
                value_gradients[i] =
                    value_gradient(values[i], target, old_values[row], terms, sums.value_loss);
            }
        }
    });
}
