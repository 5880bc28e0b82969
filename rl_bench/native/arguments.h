// What Python says of a convolution, and what it is of.
#pragma once

#include <cstddef>
#include <cstdint>

struct Geometry {
    int32_t height, width, channels;  // of an image
    int32_t step, padding, kernel;    // kernel in cells, 2 or 3
    int32_t out_height, out_width, out_channels;
    int32_t bytes;  // whether the input is uint8; pixels then count as bytes / 255
    int32_t halves;     // whether float32's products are taken of bfloat16
    int32_t rectified;  // whether a ReLU comes before the convolution
    int32_t pooled;     // whether a max-pool comes behind it (pool.h)

    // What the next layer takes.
    int passed_height() const { return pooled ? (out_height + 1) / 2 : out_height; }
    int passed_width() const { return pooled ? (out_width + 1) / 2 : out_width; }
    size_t passed_on() const { return (size_t)passed_height() * passed_width() * out_channels; }
};

// Images one after the other, from `start` on; or of these the `chosen` ones.
struct Images {
    const void* first;
    size_t size;  // of an image, in values
    const int64_t* chosen = nullptr;
    size_t start = 0;

    template <typename Value>
    const Value* at(size_t n) const {
        return static_cast<const Value*>(first) + (chosen ? chosen[start + n] : start + n) * size;
    }
};

// A convolution that takes the outputs of the one before it, in numbers of the kind `Value`.
template <typename Value>
struct Layer {
    Geometry geometry;
    int32_t relu;         // whether one comes behind it
    int32_t residual;     // whether what the layer before it takes is added to its outputs
    const Value* u;       // the kernel as it was packed
    const Value* u_transposed;
    const float* bias;    // [O]
    Value* outputs;       // of all images, pooled; for acting, the last layer's alone
    uint8_t* winners;     // the pool's, for learning: which of the nine pixels each output is
    float* dkernel;       // [O, rows, columns, channels]
    float* dbias;         // [O]
};
