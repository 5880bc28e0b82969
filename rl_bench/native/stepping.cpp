// Environments behind gym3's C interface, stepped by the threads that compute.
#include <cstdint>

using Function = void (*)(void* environment);

struct Environments {
    Function act, observe;
    void** handles;
    int32_t count;
};

// Each acts on the action that it finds in its buffer, and fills its other buffers. Whichever thread is free
// takes the next one: to begin an episode takes many times as long as a step.
extern "C" void step_environments(const Environments* environments) {
    const auto [act, observe, handles, count] = *environments;
#pragma omp parallel for schedule(dynamic, 1)
    for (int32_t i = 0; i < count; ++i) {
        act(handles[i]);
        observe(handles[i]);
    }
}
