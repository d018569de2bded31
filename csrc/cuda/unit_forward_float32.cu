#include "cuda/unit_forward.cuh"

template void bunit::gpu::launch_unit_forward<float>(const UnitForwardCall&, const Tiling&,
                                                     const Runs&, unsigned, size_t, cudaStream_t);
