// Splits loops among the threads of torch's own OpenMP.
//
// The library is loaded into a process that has torch's OpenMP runtime, and uses its threads. Every kernel
// divides its work statically: thread t gets the t-th of `threads` nearly equal ranges. Results may depend
// on the number of threads, as sums are split differently, but not on timing.
#pragma once

#include "vectors.h"

// Calls `work(first, last, thread)` in each of `threads` threads with its range of 0 … `count`.
template <typename Count, typename Work>
static void parallel_ranges(Count count, int threads, Work work) {
    const auto call = [&](int thread) {
        work(part_begin(thread, threads, count), part_begin(thread + 1, threads, count), thread);
    };
    if (threads == 1) {
        call(0);
        return;
    }
    // There is no num_threads clause: with one, GNU's OpenMP ends and starts threads where the number
    // changes.
#pragma omp parallel for schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) call(thread);
}
