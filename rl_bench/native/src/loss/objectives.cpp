// PPO's clipped loss and IMPALA's V-trace loss of a minibatch, for discrete actions, with their gradients.
//
// loss = policy_loss + value_coef · value_loss + entropy_coef · entropy_loss, each a mean over rows;
// agents/ and ops/ define the terms. Inputs are normalised log-probabilities `policy` [rows, A] and
// `values` [rows] of the present network, and arrays of the recorded batch, read at `indices`.
// terms.row_weight, a factor of all gradients, contains the division by the number of rows. loss.py calls
// the extern "C" functions once per minibatch. Threads share out rows (PPO) or unrolls (IMPALA).
// Sources: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; Espeholt et al. 2018 (arXiv 1802.01561).

#include <algorithm>
#include <cmath>

#include "../common/threads.h"

// Means over all rows, mirrored by LossMeans in loss.py. Those of rho are V-trace's only.
struct LossMeans {
    double policy_loss = 0, value_loss = 0, entropy_loss = 0, approx_kl = 0, clip_fraction = 0,
           rho_mean = 0, rho_clip_fraction = 0;
};

// Clip ranges (infinity: none), coefficients, the weight of one row's gradient, and the mean and spread
// that normalise PPO's advantages: (advantage − mean) / spread. Mirrored by LossTerms in loss.py.
struct LossTerms {
    float clip_range, value_clip_range, value_coef, entropy_coef, row_weight, mean, spread;
};

namespace {

// Adds the value term ½ max(error², clipped error²) to `loss` and returns its weighted gradient with
// respect to `value`. The clipped error is that of a value which moved by at most value_clip_range from the
// recorded `old`.
float value_gradient(float value, float target, float old, const LossTerms& terms, double& loss) {
    const float move = value - old, range = terms.value_clip_range;
    const float clipped = old + std::max(std::min(move, range), -range);
    const float error = value - target, clipped_error = clipped - target;
    // Written so that NaN reaches the loss: where a comparison with it fails, the clipped error is taken.
    const bool unclipped = std::isinf(range) || std::abs(move) <= range
                           || clipped_error * clipped_error <= error * error;
    const float larger = unclipped ? error : clipped_error;
    loss += 0.5 * larger * larger;
    return unclipped ? terms.value_coef * terms.row_weight * error : 0.0f;
}

// Returns whether `action` is in 0 … actions − 1. Memory of the batch that was never written may hold
// anything.
bool is_valid(int64_t action, int actions) { return action >= 0 && action < actions; }

// Writes `gradient` [A] of one row with respect to the log-probabilities `policy` [A]: the entropy's, and
// `action_gradient` for the recorded `action`. Adds Σ π log π to `entropy_loss`.
void policy_gradient(const float* policy, int actions, int64_t action, float action_gradient,
                     const LossTerms& terms, double& entropy_loss, float* gradient) {
    float sum = 0.0f;
    for (int a = 0; a < actions; ++a) {
        const float probability = std::exp(policy[a]);
        sum += probability * policy[a];
        gradient[a] = terms.row_weight * terms.entropy_coef * probability * (policy[a] + 1.0f);
    }
    gradient[action] += action_gradient;
    entropy_loss += sum;
}

// Returns the means over `rows` rows of what `visit(first, last, sums)` adds up for each thread's range of
// 0 … `count`.
template <typename Visit>
LossMeans mean_over(int count, int rows, int threads, Visit visit) {
    std::vector<LossMeans> found(threads);
    parallel_ranges(count, threads, [&](int first, int last, int thread) {
        LossMeans sums;  // on the thread's own stack: neighbours in `found` would share cache lines
        visit(first, last, sums);
        found[thread] = sums;
    });
    LossMeans all;
    for (double LossMeans::*term : {&LossMeans::policy_loss, &LossMeans::value_loss, &LossMeans::entropy_loss,
                                    &LossMeans::approx_kl, &LossMeans::clip_fraction, &LossMeans::rho_mean,
                                    &LossMeans::rho_clip_fraction}) {
        for (const LossMeans& one : found) all.*term += one.*term;
        all.*term /= rows;
    }
    return all;
}

}  // namespace

// Computes PPO's loss for `indices` [rows] of the recorded batch, of `policy` [rows, A] and `values`
// [rows]. Fills `policy_gradients` [rows, A], `value_gradients` [rows] and `means`. An invalid action makes
// the policy loss NaN.
extern "C" void clipped_objective(
    const float* policy, const float* values, int32_t rows, int32_t actions, const int64_t* indices,
    const int64_t* recorded_actions, const float* old_log_probs, const float* advantages,
    const float* returns, const float* old_values, const LossTerms* loss_terms, float* policy_gradients,
    float* value_gradients, LossMeans* means, int32_t threads) {
    const LossTerms& terms = *loss_terms;
    const float range = terms.clip_range;
    *means = mean_over(rows, rows, threads, [&](int first, int last, LossMeans& sums) {
        for (int i = first; i < last; ++i) {
            const float* p = policy + (int64_t)i * actions;
            const int64_t row = indices[i], action = recorded_actions[row];
            if (!is_valid(action, actions)) {
                sums.policy_loss = NAN;
                continue;
            }
            const float advantage = (advantages[row] - terms.mean) / terms.spread;
            const float log_ratio = p[action] - old_log_probs[row], ratio = std::exp(log_ratio);
            const float clipped_ratio = std::min(std::max(ratio, 1.0f - range), 1.0f + range);
            const float plain = ratio * advantage, clipped = clipped_ratio * advantage;
            const bool has_gradient = plain < clipped || ratio == clipped_ratio;
            sums.policy_loss -= clipped <= plain ? clipped : plain;
            sums.approx_kl += (ratio - 1.0f) - log_ratio;
            sums.clip_fraction += std::abs(ratio - 1.0f) > range;
            policy_gradient(p, actions, action, has_gradient ? -terms.row_weight * plain : 0.0f, terms,
                            sums.entropy_loss, policy_gradients + (int64_t)i * actions);
            value_gradients[i] = value_gradient(values[i], returns[row], old_values[row], terms,
                                                sums.value_loss);
        }
    });
}

// The discount and the limits of V-trace's ratios. Mirrored by VTraceSettings in loss.py.
struct VTraceSettings {
    float gamma, clip_rho, clip_c, clip_pg_rho, trace_lambda;
};

// Computes IMPALA's loss for `indices` [steps + 1, unrolls] of the recorded trajectory, of `policy` [steps
// + 1, unrolls, A] and `values` [steps + 1, unrolls]. Values of the last step only bootstrap; the
// gradients, `policy_gradients` [steps, unrolls, A] and `value_gradients` [steps, unrolls], leave that step
// out. An invalid action makes the policy loss NaN.
extern "C" void vtrace_objective(
    const float* policy, const float* values, int32_t steps, int32_t unrolls, int32_t actions,
    const int64_t* indices, const int64_t* recorded_actions, const float* old_log_probs, const float* rewards,
    const bool* terminated, const bool* truncated, const float* final_values, const float* old_values,
    const LossTerms* loss_terms, const VTraceSettings* vtrace, float* policy_gradients,
    float* value_gradients, LossMeans* means, int32_t threads) {
    const VTraceSettings& by = *vtrace;
    const LossTerms& terms = *loss_terms;
    const int rows = steps * unrolls;
    *means = mean_over(unrolls, rows, threads, [&](int first, int last, LossMeans& sums) {
        for (int u = first; u < last; ++u) {
            // Of the step after this one, going back in time: target − value, and the target.
            float correction = 0.0f, next_target = values[rows + u];
            for (int i = rows - unrolls + u; i >= 0; i -= unrolls) {
                const float* p = policy + (int64_t)i * actions;
                const int64_t row = indices[i], action = recorded_actions[row];
                if (!is_valid(action, actions)) {
                    sums.policy_loss = NAN;
                    continue;
                }
                const float log_rho = p[action] - old_log_probs[row], rho = std::exp(log_rho);
                const float discount = terminated[row] ? 0.0f : by.gamma;
                const bool cut = truncated[row];
                const float next_value = cut ? final_values[row] : values[i + unrolls];
                const float delta =
                    std::min(rho, by.clip_rho) * (rewards[row] + discount * next_value - values[i]);
                const float trace = cut ? 0.0f : discount * by.trace_lambda * std::min(rho, by.clip_c);
                correction = delta + trace * correction;
                const float target = values[i] + correction;
                const float bootstrap = cut ? final_values[row] : next_target;
                const float advantage = std::min(rho, by.clip_pg_rho)
                                        * (rewards[row] + discount * bootstrap - values[i]);
                next_target = target;

                // Where the policy has moved beyond the clip range already, the row has no policy gradient.
                const bool beyond = (advantage > 0 && rho > 1.0f + terms.clip_range)
                                    || (advantage < 0 && rho < 1.0f - terms.clip_range);
                const float used_advantage = beyond ? 0.0f : advantage;
                sums.policy_loss -= p[action] * used_advantage;
                sums.approx_kl += (rho - 1.0f) - log_rho;
                sums.clip_fraction += beyond;
                sums.rho_mean += rho;
                sums.rho_clip_fraction += rho > by.clip_rho;
                policy_gradient(p, actions, action, -terms.row_weight * used_advantage, terms,
                                sums.entropy_loss, policy_gradients + (int64_t)i * actions);
                value_gradients[i] =
                    value_gradient(values[i], target, old_values[row], terms, sums.value_loss);
            }
        }
    });
}
