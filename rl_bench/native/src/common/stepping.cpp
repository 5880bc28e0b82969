// Steps environments behind gym3's C interface with the threads that also compute the network.
//
// `act` lets an environment perform the action in its buffer; `observe` makes it fill its buffers of
// rewards, frames and first flags. The buffers belong to the environments' creator. Called once per step by
// stepping.py. OpenMP hands environments out one at a time to whichever thread is free, since starting a
// new episode takes many times as long as a step.
#include <cstdint>

using Function = void (*)(void* environment);

// Mirrors `Environments` in stepping.py.
struct Environments {
    Function act, observe;
    void** handles;
    int32_t count;
};

// Calls act and observe for each of the `environments`, in any order and any thread.
extern "C" void step_environments(const Environments* environments) {
    const auto [act, observe, handles, count] = *environments;
#pragma omp parallel for schedule(dynamic, 1)
    for (int32_t i = 0; i < count; ++i) {
        act(handles[i]);
        observe(handles[i]);
    }
}
