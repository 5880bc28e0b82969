// The structs that Python passes to convolution kernels; both kernel families, winograd/ and amx/, read
// them.
//
// `ConvGeometry` and `ConvLayer` mirror ctypes structures in conv_plan.py and convolution.py, field by
// field. Images are channels-last: [N, height, width, channels], contiguous. A layer computes, in this
// order: a ReLU of its input (`rectified`), the convolution, the bias, the addition of an earlier
// activation (`residual`), a ReLU (`relu`), a max-pool (`pooled`). C++ only borrows the arrays; Python
// keeps them alive.
#pragma once

#include <cstddef>
#include <cstdint>

// The sizes of one convolution. Flags are 0 or 1.
struct ConvGeometry {
    int32_t height, width, channels;                // of an input image
    int32_t stride, padding;                        // in pixels
    int32_t kernel_cells;                           // the kernel's side divided by the stride: 2 or 3
    int32_t out_height, out_width, out_channels;    // of the convolution's output, before a pool
    int32_t uint8_images;                           // the input is uint8; a pixel counts as byte / 255
    int32_t bf16_products;                          // float32 operands are rounded to bfloat16 for products
    int32_t rectified;                              // a ReLU is applied to the input
    int32_t pooled;                                 // a max-pool follows (max_pool.h)

    // Return the size of the layer's final output, after the pool, which the next layer reads.
    int next_height() const { return pooled ? (out_height + 1) / 2 : out_height; }
    int next_width() const { return pooled ? (out_width + 1) / 2 : out_width; }
    size_t next_size() const { return (size_t)next_height() * next_width() * out_channels; }  // in values
};

// Images in memory: image n is number `start` + n or, if there are `indices`, number indices[start + n].
struct ImageBatch {
    const void* first;
    size_t size;  // of an image, in values
    const int64_t* indices = nullptr;
    size_t start = 0;

    // Returns the address of image `n`, whose values are of type Value.
    template <typename Value>
    const Value* at(size_t n) const {
        return static_cast<const Value*>(first) + (indices ? indices[start + n] : start + n) * size;
    }
};

// One layer of a sequence, with activations and packed kernels of type Value: float or Bf16.
template <typename Value>
struct ConvLayer {
    ConvGeometry geometry;
    int32_t relu;                    // a ReLU follows
    int32_t residual;                // the input of the layer before is added to the output
    const Value* packed_kernel;      // as the `…_pack_kernel` function of the kernel family wrote it
    const Value* packed_transposed;  // with channels and filters exchanged, for the input's gradient; or null
    const float* bias;               // [O]
    Value* outputs;                  // after the pool; null where they need not be kept (inference)
    uint8_t* pool_argmax;            // like outputs: which of 9 pixels each maximum is; null for inference
    float* dkernel;                  // gradient [O, kernel rows, kernel columns, channels]
    float* dbias;                    // gradient [O]
};
