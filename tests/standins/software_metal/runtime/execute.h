// What the host gives for one dispatch, and what the checker is told while it runs.
#pragma once
#include <cstddef>
#include <cstdint>

#include "software_metal_entry.h"

namespace software_metal
{
constexpr int slots = 31, simd = 32, most_lanes = 1024;

enum class Kind : uint32_t { none, device, constant };

struct Buffer {
    void *pointer;  // of element 0; the buffer begins `offset` bytes before
    uint64_t offset, length;
    Kind kind;
    uint32_t uninitialised;  // nothing has written it: a read of what no lane wrote is a finding
};

struct Dispatch {
    Buffer buffers[slots];
    uint64_t threadgroup_bytes[slots];
    Triple threads;  // of the grid
    Triple group;    // of a threadgroup; the last ones may be smaller
};

// The running lane; simdgroup -1 where none runs.
int current_simdgroup();
int current_lane();
// Whether the running kernel's lanes have stacks of their own, or run on the host's.
bool lanes_have_stacks();

[[noreturn]] void end(const char *what);

// Barriers that each simdgroup has passed: any, and those that order one kind of memory.
struct Epochs {
    uint32_t barriers, device, threadgroup;
};
extern Epochs group_epochs, simd_epochs[most_lanes / simd];
extern uint32_t group_number;

// The checker (check.cpp); absent.cpp where kernels are compiled without it.
void check_begin(const Dispatch &dispatch, void *const *threadgroup);
void check_group(void *const *threadgroup, const uint64_t *bytes);
void check_end();
} // namespace software_metal
