// Work shared out among threads, those of torch's own OpenMP.
#pragma once

#include "vectors.h"

// Calls `share(first, last, thread)` in every thread for its part of `count`.
template <typename Count, typename Share>
static void in_shares(Count count, int threads, Share share) {
    const auto call = [&](int thread) {
        share(begin_of(thread, threads, count), begin_of(thread + 1, threads, count), thread);
    };
    if (threads == 1) {
        call(0);
        return;
    }
    // Without a clause for their number: with one, GNU's OpenMP ends and starts threads where it changes.
#pragma omp parallel for schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) call(thread);
}
