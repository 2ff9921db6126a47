// What the stand-in of <metal_stdlib> asks of the run time: operations in which lanes meet.
#pragma once
#include <cstddef>

namespace software_metal
{
// Flags are those of metal::mem_flags.
void threadgroup_barrier(int flags);
void simdgroup_barrier(int flags);
float shuffle_xor(float value, unsigned mask);
float broadcast(float value, unsigned lane);
unsigned sum(unsigned value);
unsigned prefix_sum(unsigned value);
// One lane's two elements of each 8x8 matrix: d = a b + c, in FP32.
void multiply_accumulate(const float (&a)[2], const float (&b)[2], const float (&c)[2],
                         float (&d)[2]);
// Called where an access is not aligned as its type must be. Does not return.
[[noreturn]] void misaligned(size_t address, size_t size);
} // namespace software_metal
