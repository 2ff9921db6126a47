// How the host calls a kernel of a compiled source.
#pragma once
#include <cstddef>
#include <cstdint>

namespace software_metal
{
struct Triple {
    uint32_t x, y, z;
};

// Where a lane is. Threads of a threadgroup are numbered x first; 32 make a simdgroup.
struct Position {
    Triple group, thread, groups;
    Triple group_size, full_size;  // of this threadgroup, and of all but the last ones
    uint32_t index;
};

struct Function {
    const char *name;
    void (*run)(void *const *buffers, void *const *threadgroup, const Position *at);
    // Whether lanes can meet: if not, they run one after the other, without stacks of their own.
    bool meets;
};

// A function constant of the source: `required` unless the source asks whether it is defined.
struct Constant {
    int index;
    void *value;
    bool *defined;
    size_t size;
    bool required;
};
} // namespace software_metal
