#include "launch.h"

#include <algorithm>

#include "gated_rms_norm.cu"

namespace {

template <typename T>
using Kernel = void (*)(T const*, T const*, T const*, T*, int, int, int, int, float);

bool packed(void const* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

template <typename T>
cudaError_t launch(Kernel<T> const (&kernels)[4], void const* x, void const* gate, void const* weight, void* y,
                   int32_t rows, int32_t columns, float epsilon, cudaStream_t stream) {
    int32_t const lanes = 16 / sizeof(T), packs = columns / lanes;
    bool const wide = columns % lanes == 0 && packs <= 4 * 512 && packed(x) && packed(gate) && packed(weight) && packed(y);
    // As many packs a thread as keep the block near 256 threads: 1, 2 or 4; the fourth kernel takes anything.
    int32_t const choice = !wide ? 3 : packs <= 256 ? 0 : packs <= 512 ? 1 : 2;
    int32_t const steps = choice == 3 ? 4 : 1 << choice;
    int32_t const work = wide ? packs : columns;
    int32_t const threads = std::min(1024, ((work + steps - 1) / steps + 31) / 32 * 32);
    kernels[choice]<<<std::min(rows, 1 << 30), threads, 0, stream>>>(
        static_cast<T const*>(x), static_cast<T const*>(gate), static_cast<T const*>(weight), static_cast<T*>(y), rows,
        columns, columns, columns, epsilon);
    return cudaGetLastError();
}

}  // namespace

cudaError_t launchGatedRmsNorm(void const* x, void const* gate, void const* weight, void* y, int32_t rows,
                               int32_t columns, float epsilon, bool half, cudaStream_t stream) noexcept {
    if (rows == 0 || columns == 0) return cudaSuccess;  // a launch of no blocks is an error
    static Kernel<float> const floats[] = {gated_rms_norm_float_1, gated_rms_norm_float_2, gated_rms_norm_float_4,
                                           gated_rms_norm_float_any};
    static Kernel<__half> const halves[] = {gated_rms_norm_half_1, gated_rms_norm_half_2, gated_rms_norm_half_4,
                                            gated_rms_norm_half_any};
    return half ? launch(halves, x, gate, weight, y, rows, columns, epsilon, stream)
                : launch(floats, x, gate, weight, y, rows, columns, epsilon, stream);
}
