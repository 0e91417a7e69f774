// y[r][c] = weight[c] * v[r][c] / sqrt(mean over c of v[r][c]^2 + epsilon),   v = x * silu(gate)
//
// The gated RMS norm of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060). x, gate and y have `rows` rows of `columns`
// values; weight has `columns`. x and gate may be slices of a wider tensor: their rows begin x_stride and gate_stride
// values apart. Sums are kept in float whatever T is. One block computes one row at a time.
//
// This file knows neither Python nor TensorRT: PyCUDA compiles it in the lab, the plugin library includes it.
#include <cuda_fp16.h>

// x * silu(gate). The exact division costs so many instructions that in half precision they, not the memory, would
// set the pace; __fdividef is off by 2 units in the last place and gives the 0 that is wanted when the exponential overflows.
__device__ __forceinline__ float gated(float x, float gate) { return x * __fdividef(gate, 1.0f + __expf(-gate)); }

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(__half value) { return __half2float(value); }
__device__ __forceinline__ void store(float& place, float value) { place = value; }
__device__ __forceinline__ void store(__half& place, float value) { place = __float2half_rn(value); }

// Sixteen bytes, the widest load a thread has: 4 floats or 8 halves, the halves converted two at a time.
template <typename T> struct Pack;
template <> struct alignas(16) Pack<float> {
    float values[4];
    __device__ __forceinline__ void read(float (&into)[4]) const {
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) into[lane] = values[lane];
    }
    __device__ __forceinline__ void write(float const (&from)[4]) {
#pragma unroll
        for (int lane = 0; lane < 4; ++lane) values[lane] = from[lane];
    }
};
template <> struct alignas(16) Pack<__half> {
    __half2 values[4];
    __device__ __forceinline__ void read(float (&into)[8]) const {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            const float2 two = __half22float2(values[pair]);
            into[2 * pair] = two.x, into[2 * pair + 1] = two.y;
        }
    }
    __device__ __forceinline__ void write(float const (&from)[8]) {
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) values[pair] = __floats2half2_rn(from[2 * pair], from[2 * pair + 1]);
    }
};

// The sum over all threads of the block, in every thread. Warps first, by shuffles; then one warp sums the warps.
__device__ __forceinline__ float block_sum(float value) {
    __shared__ float of_warp[32];
    __syncthreads();  // of_warp may still be read for the row before
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = threadIdx.x % 32 < blockDim.x / 32 ? of_warp[threadIdx.x % 32] : 0.0f;
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// Every value is read once and waits in registers for the sum: STEPS packs a thread at most. Wants `columns`, the
// strides and all addresses to be multiples of 16 bytes, and columns <= STEPS * blockDim.x * (16 / sizeof(T)). With 96
// registers a thread no more than 512 threads fit; the launch bounds let the compiler count on it.
template <typename T, int STEPS>
__device__ void rows_in_registers(const T* x, const T* gate, const T* weight, T* y, int rows, int columns,
                                  int x_stride, int gate_stride, float epsilon) {
    constexpr int LANES = 16 / sizeof(T);
    const int packs = columns / LANES;
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const Pack<T>* x_row = reinterpret_cast<const Pack<T>*>(x + size_t(row) * x_stride);
        const Pack<T>* gate_row = reinterpret_cast<const Pack<T>*>(gate + size_t(row) * gate_stride);
        Pack<T>* y_row = reinterpret_cast<Pack<T>*>(y + size_t(row) * columns);
        Pack<T> a[STEPS], b[STEPS];
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {  // all loads are on their way before the first is used
            const int i = step * blockDim.x + threadIdx.x;
            if (i < packs) { a[step] = x_row[i]; b[step] = gate_row[i]; }
        }
        float v[STEPS][LANES], sum = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            float x_values[LANES] = {}, gate_values[LANES] = {};  // zeros beyond the row's end add nothing to the sum
            if (step * blockDim.x + threadIdx.x < packs) { a[step].read(x_values); b[step].read(gate_values); }
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane) {
                v[step][lane] = gated(x_values[lane], gate_values[lane]);
                sum += v[step][lane] * v[step][lane];
            }
        }
        const float scale = rsqrtf(block_sum(sum) / columns + epsilon);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const int i = step * blockDim.x + threadIdx.x;
            if (i >= packs) continue;
            float out[LANES];
            reinterpret_cast<const Pack<T>*>(weight)[i].read(out);
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane) out[lane] *= v[step][lane] * scale;
            y_row[i].write(out);
        }
    }
}

// Any number of columns, any address: one value at a time, and the row is read a second time (from the L2 cache).
template <typename T>
__device__ void rows_of_any_length(const T* x, const T* gate, const T* weight, T* y, int rows, int columns,
                                   int x_stride, int gate_stride, float epsilon) {
    for (int row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *x_row = x + size_t(row) * x_stride, *gate_row = gate + size_t(row) * gate_stride;
        T* y_row = y + size_t(row) * columns;
        float sum = 0.0f;
        for (int i = threadIdx.x; i < columns; i += blockDim.x) {
            const float v = gated(as_float(x_row[i]), as_float(gate_row[i]));
            sum += v * v;
        }
        const float scale = rsqrtf(block_sum(sum) / columns + epsilon);
        for (int i = threadIdx.x; i < columns; i += blockDim.x)
            store(y_row[i], gated(as_float(x_row[i]), as_float(gate_row[i])) * scale * as_float(weight[i]));
    }
}

#define KERNEL(NAME, T, THREADS, ...)                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(const T* x, const T* gate, const T* weight, T* y, int rows, int columns,       \
                                    int x_stride, int gate_stride, float epsilon) {                                \
        __VA_ARGS__(x, gate, weight, y, rows, columns, x_stride, gate_stride, epsilon);                            \
    }

KERNEL(gated_rms_norm_float_1, float, 512, rows_in_registers<float, 1>)
KERNEL(gated_rms_norm_float_2, float, 512, rows_in_registers<float, 2>)
KERNEL(gated_rms_norm_float_4, float, 512, rows_in_registers<float, 4>)
KERNEL(gated_rms_norm_float_any, float, 1024, rows_of_any_length<float>)
KERNEL(gated_rms_norm_half_1, __half, 512, rows_in_registers<__half, 1>)
KERNEL(gated_rms_norm_half_2, __half, 512, rows_in_registers<__half, 2>)
KERNEL(gated_rms_norm_half_4, __half, 512, rows_in_registers<__half, 4>)
KERNEL(gated_rms_norm_half_any, __half, 1024, rows_of_any_length<__half>)
