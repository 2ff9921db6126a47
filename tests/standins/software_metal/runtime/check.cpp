// A memory checker for kernels, on the hooks that the compiler writes for ThreadSanitizer.
//
// For each byte of each buffer it remembers who wrote it and who read it last, and behind which
// barriers. Findings are not errors of the run, which goes on: they are written when it ends.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "execute.h"
#include "lanes.h"

extern "C" {
// The linker's own names for where this very library begins and ends.
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace software_metal
{
namespace
{
struct Mark {
    uint32_t group, barriers, ordered, simd_ordered;
    uint16_t thread;  // 1 and up
};

struct Cell {
    Mark write, read;
    uint32_t readers;  // simdgroups, behind the last barrier that orders this memory
    bool many, written;
};

struct Region {
    std::string name;
    uintptr_t low, high;
    Kind kind;
    bool shared, uninitialised;
    std::vector<Cell> cells;
};

// How far outside a buffer an access is still called one of it.
constexpr uintptr_t near = 4096;

std::vector<Region> regions;
std::map<std::pair<std::string, uintptr_t>, long> findings;
const Dispatch *running = nullptr;

void report(const std::string &text, void *place)
{
    findings[{text, uintptr_t(place) - uintptr_t(__ehdr_start) - 1}]++;
}

void write_findings()
{
    const char *path = getenv("SOFTWARE_METAL_FINDINGS");
    FILE *file = path && *path ? fopen(path, "a") : stderr;
    if (!file)
        file = stderr;
    // Text, offset of the instruction in this library, and how often.
    for (const auto &[where, count] : findings)
        fprintf(file, "%s\t0x%lx\t%ld\n", where.first.c_str(), (unsigned long)where.second, count);
    if (file != stderr)
        fclose(file);
}

// A read is told at the end; a write to memory of others would spoil what comes after it.
void outside(const std::string &text, bool writes, void *place)
{
    report(text, place);
    if (!writes)
        return;
    write_findings();
    end(text.c_str());
}

uint32_t ordered(const Epochs &epochs, const Region &region)
{
    return region.shared ? epochs.threadgroup : epochs.device;
}

// Whether an access now and an earlier one are in no order, as a word that says which.
const char *conflict(const Mark &then, const Mark &now, bool shared)
{
    if (!then.thread)
        return nullptr;
    if (then.group != now.group)
        return shared ? nullptr : "race between threadgroups";
    if (then.thread == now.thread)
        return nullptr;
    const bool together = (then.thread - 1) / simd == (now.thread - 1) / simd;
    if (together)
        return then.simd_ordered == now.simd_ordered ? "race inside a simdgroup" : nullptr;
    if (then.barriers == now.barriers)
        return "race between simdgroups";
    if (then.ordered == now.ordered)
        return "ordered by a barrier for other memory only";
    return nullptr;
}

void touch(Region &region, uintptr_t at, unsigned size, bool writes, void *place)
{
    const int simdgroup = current_simdgroup();
    const unsigned thread = unsigned(simdgroup * simd + current_lane());
    const Epochs &mine = simd_epochs[simdgroup];
    const Mark now{group_number, group_epochs.barriers, ordered(group_epochs, region),
                   ordered(mine, region), uint16_t(thread + 1)};
    bool unwritten = false;
    const char *wrong = nullptr;
    for (unsigned i = 0; i < size; i++) {
        Cell &cell = region.cells[at - region.low + i];
        if (!writes && region.uninitialised && !cell.written)
            unwritten = true;
        if (const char *found = conflict(cell.write, now, region.shared))
            wrong = found;
        if (writes) {
            Mark read = cell.read;
            const uint32_t others = cell.readers & ~(1u << simdgroup);
            // Of several readers, one of another simdgroup, or of another lane, if there is one.
            if (read.group == now.group && read.ordered == now.ordered && others)
                read.thread = uint16_t(__builtin_ctz(others) * simd + 1);
            else if (cell.many && read.thread == now.thread)
                read.thread = uint16_t(((read.thread - 1) ^ 1) + 1);
            if (const char *found = conflict(read, now, region.shared))
                wrong = found;
            cell.write = now;
            cell.written = true;
        } else {
            const bool same = cell.read.group == now.group && cell.read.ordered == now.ordered;
            cell.many = cell.read.thread && cell.read.group == now.group &&
                        cell.read.simd_ordered == now.simd_ordered &&
                        (cell.many || cell.read.thread != now.thread);
            cell.readers = (same ? cell.readers : 0) | 1u << simdgroup;
            cell.read = now;
        }
    }
    const std::string what = std::string(writes ? "write of " : "read of ") + region.name;
    if (unwritten)
        report("uninitialised: " + what, place);
    if (wrong)
        report(std::string(wrong) + ": " + what, place);
    if (writes && region.kind == Kind::constant)
        report("constant memory: " + what, place);
}

void access(const void *pointer, unsigned size, bool writes, void *place)
{
    if (!running || current_simdgroup() < 0)
        return;
    const uintptr_t at = uintptr_t(pointer);
    for (Region &region : regions) {
        if (at + size <= region.low || at >= region.high)
            continue;
        const char *verb = writes ? "write of " : "read of ";
        if (at < region.low || at + size > region.high)
            return outside(std::string("out of bounds: ") + verb + region.name, writes, place);
        if (size && at % size)
            report("misaligned: " + std::string(verb) + region.name + ", " + std::to_string(size) +
                       " bytes",
                   place);
        return touch(region, at, size, writes, place);
    }
    if (on_a_stack(pointer))
        return;
    if (at >= uintptr_t(__ehdr_start) && at < uintptr_t(_end))
        return;
    // Lanes that cannot meet run on the host's stack, below this very function's callers.
    const uintptr_t here = uintptr_t(__builtin_frame_address(0));
    if (!lanes_have_stacks() && at > here && at < here + (1 << 16))
        return;
    const char *verb = writes ? "write of " : "read of ";
    for (const Region &region : regions)
        if (at + near > region.low && at < region.high + near)
            return outside(std::string("out of bounds: ") + verb + region.name, writes, place);
    outside(std::string("outside every buffer: a ") + (writes ? "write" : "read"), writes, place);
}

void add(std::string name, const void *low, uint64_t size, Kind kind, bool shared, bool un)
{
    Region region{name, uintptr_t(low), uintptr_t(low) + size, kind, shared, un, {}};
    region.cells.resize(size);
    regions.push_back(std::move(region));
}
} // namespace

void check_begin(const Dispatch &dispatch, void *const *)
{
    regions.clear();
    findings.clear();
    running = &dispatch;
    for (int i = 0; i < slots; i++) {
        const Buffer &b = dispatch.buffers[i];
        if (b.kind == Kind::none)
            continue;
        // One buffer may be bound at several places: one shadow for it.
        const char *low = static_cast<const char *>(b.pointer) - b.offset;
        bool known = false;
        for (Region &region : regions)
            known |= region.low == uintptr_t(low);
        if (!known)
            add("buffer " + std::to_string(i), low, b.length, b.kind, false, b.uninitialised != 0);
    }
}

void check_group(void *const *threadgroup, const uint64_t *bytes)
{
    std::erase_if(regions, [](const Region &region) { return region.shared; });
    for (int i = 0; i < slots; i++)
        if (bytes[i])
            add("threadgroup memory " + std::to_string(i), threadgroup[i], bytes[i], Kind::device,
                true, true);
}

void check_end()
{
    running = nullptr;
    write_findings();
}
} // namespace software_metal

using software_metal::access;
#define HOOKS(size)                                                                                \
    extern "C" void __tsan_read##size(void *p)                                                     \
    {                                                                                              \
        access(p, size, false, __builtin_return_address(0));                                       \
    }                                                                                              \
    extern "C" void __tsan_write##size(void *p)                                                    \
    {                                                                                              \
        access(p, size, true, __builtin_return_address(0));                                        \
    }                                                                                              \
    extern "C" void __tsan_unaligned_read##size(void *p)                                           \
    {                                                                                              \
        access(p, size, false, __builtin_return_address(0));                                       \
    }                                                                                              \
    extern "C" void __tsan_unaligned_write##size(void *p)                                          \
    {                                                                                              \
        access(p, size, true, __builtin_return_address(0));                                        \
    }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void *__tsan_memset(void *to, int value, size_t size)
{
    for (size_t i = 0; i < size; i++)
        access(static_cast<char *>(to) + i, 1, true, __builtin_return_address(0));
    return memset(to, value, size);
}
extern "C" void *__tsan_memcpy(void *to, const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        access(static_cast<const char *>(from) + i, 1, false, __builtin_return_address(0));
        access(static_cast<char *>(to) + i, 1, true, __builtin_return_address(0));
    }
    return memcpy(to, from, size);
}
extern "C" void *__tsan_memmove(void *to, const void *from, size_t size)
{
    return __tsan_memcpy(to, from, size);
}
