// How the plugin reaches the kernels of gated_rms_norm.cu: one call that chooses the kernel that fits.
#pragma once
#include <cstdint>
#include <cuda_runtime_api.h>

#ifdef _WIN32
#define PLUGIN_EXPORT extern "C" __declspec(dllexport)
#else
#define PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// x, gate, y: (rows, columns) on the device, packed; weight: (columns,). Returns the launch's error, 0 when it went out.
cudaError_t launchGatedRmsNorm(void const* x, void const* gate, void const* weight, void* y, int32_t rows,
                               int32_t columns, float epsilon, bool half, cudaStream_t stream) noexcept;
