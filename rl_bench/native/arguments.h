// What Python says of a convolution.
#pragma once

#include <cstdint>

struct Geometry {
    int32_t height, width, channels;  // of an image
    int32_t step, padding, kernel;    // kernel in cells, 2 or 3
    int32_t out_height, out_width, out_channels;
    int32_t bytes;  // whether the input is uint8 ; pixels then count as bytes / 255
    int32_t rectified;  // whether a ReLU comes before the convolution
};

// A convolution that takes the outputs of the one before it, in numbers of the kind `Value`.
template <typename Value>
struct Layer {
    Geometry geometry;
    int32_t relu;         // whether one comes behind it
    const Value* u;       // the kernel as it was packed
    const Value* u_transposed;
    const float* bias;    // [O]
    Value* outputs;       // of all images; for acting, the last layer's alone
    float* dkernel;       // [O, rows, columns, channels]
    float* dbias;         // [O]
};
