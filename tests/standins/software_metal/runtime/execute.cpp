// Runs a grid: threadgroups one after the other, lanes in turn until each meets the others.
//
// All lanes of a simdgroup meet in a collective, all lanes of a threadgroup in its barrier. Where
// Metal leaves undefined what happens when some do not come, the process ends with a sentence.
#include "execute.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>

#include "lanes.h"
#include "software_metal.h"

extern "C" const software_metal::Function software_metal_functions[];

namespace software_metal
{
Epochs group_epochs, simd_epochs[most_lanes / simd];
uint32_t group_number;

namespace
{
enum class Meeting : uint8_t { none, barrier, shuffle, broadcast, sum, prefix, product };
const char *const names[] = {"no operation",    "simdgroup_barrier", "simd_shuffle_xor",
                             "simd_broadcast",  "simd_sum",          "simd_prefix_exclusive_sum",
                             "a matrix product"};

struct Lane {
    Context context;
    Position at;
    uint16_t simdgroup, number, next;  // next: the lane of its simdgroup that runs after it
    bool returned;
};

// Two, used in turn: a lane that is late still reads the last one while others fill the next.
struct alignas(64) Table {
    float a[8][8], b[8][8], c[8][8], d[8][8];
    float values[simd];
    unsigned numbers[simd];
    Meeting kind;
};

struct Simdgroup {
    unsigned arrived, waiting, phase;
    unsigned lanes, live;
    uint16_t resume;  // the lane to go on with
    Table tables[2];
};

Lane lanes[most_lanes];
Simdgroup simdgroups[most_lanes / simd];
unsigned lane_count, simdgroup_count, live, waiting, generation;
uint16_t simdgroup_order[most_lanes / simd];
Lane *current = nullptr;
Context host;
const Function *function;
void *const *buffers_of_run;
void *const *threadgroup_of_run;

// ---- schedules

struct Schedule {
    bool reversed = false;
    uint32_t seed = 0;  // 0: not shuffled
    uint32_t state = 0;

    uint32_t random()
    {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state;
    }

    template <typename T> void arrange(T *order, unsigned count)
    {
        for (unsigned i = 0; i < count; i++)
            order[i] = T(reversed ? count - 1 - i : i);
        if (seed)
            for (unsigned i = count; i-- > 1;)
                std::swap(order[i], order[random() % (i + 1)]);
    }
} schedule;

void read_schedule()
{
    schedule = {};
    const char *word = getenv("SOFTWARE_METAL_SCHEDULE");
    if (!word || !*word || !strcmp(word, "forward"))
        return;
    schedule.reversed = !strcmp(word, "reversed");
    if (schedule.reversed)
        return;
    const char *number = strncmp(word, "shuffled:", 9) ? nullptr : word + 9;
    schedule.seed = number ? uint32_t(strtoul(number, nullptr, 10)) : 0;
    if (!schedule.seed) {
        fprintf(stderr,
                "software Metal: SOFTWARE_METAL_SCHEDULE=%s is none of forward, reversed, "
                "shuffled:<number above 0>\n",
                word);
        abort();
    }
    schedule.state = schedule.seed * 2654435761u + 1;
}

// ---- who runs next

[[noreturn]] void endf(const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    end(text);
}

inline void go(Lane *to)
{
    if (to == current)
        return;
    Lane *from = current;
    current = to;
    switch_to(from->context, to->context);
}

// A simdgroup that can go on, or null.
Lane *another(unsigned simdgroup)
{
    unsigned at = 0;
    while (simdgroup_order[at] != simdgroup)
        at++;
    for (unsigned i = 1; i <= simdgroup_count; i++) {
        Simdgroup &other = simdgroups[simdgroup_order[(at + i) % simdgroup_count]];
        if (other.live && other.waiting < other.live)
            return &lanes[other.resume];
    }
    return nullptr;
}

// Leave the processor until something that this lane waits for may have happened.
inline void leave()
{
    Simdgroup &mine = simdgroups[current->simdgroup];
    if (mine.waiting < mine.live) {
        go(&lanes[current->next]);
        return;
    }
    mine.resume = uint16_t(current - lanes);
    Lane *to = another(current->simdgroup);
    if (!to)
        end("a barrier that not every simdgroup reaches");
    go(to);
}

template <typename Put, typename Finish> inline Table &meet(Meeting kind, Put put, Finish finish)
{
    if (!function->meets)
        end("an operation of a simdgroup in a kernel that seemed to have none");
    Simdgroup &mine = simdgroups[current->simdgroup];
    const unsigned phase = mine.phase;
    Table &table = mine.tables[phase & 1];
    if (mine.waiting)
        endf("divergence: %s, while others of the simdgroup are at a threadgroup_barrier",
             names[int(kind)]);
    if (mine.live != simd)
        endf("divergence: %s, with %u of 32 lanes", names[int(kind)], mine.live);
    if (mine.arrived == 0)
        table.kind = kind;
    else if (table.kind != kind)
        endf("divergence: %s, while others of the simdgroup are at %s", names[int(kind)],
             names[int(table.kind)]);
    put(table);
    if (++mine.arrived == simd) {
        finish(table);
        mine.arrived = 0;
        mine.phase = phase + 1;
        // A shuffled schedule lets another simdgroup run here now and then.
        if (schedule.seed && schedule.random() % 16 == 0) {
            mine.resume = uint16_t(current - lanes);
            if (Lane *to = another(current->simdgroup))
                go(to);
        }
    } else {
        while (mine.phase == phase)
            leave();
    }
    return table;
}

// Which elements of an 8x8 matrix a lane holds: row, and the first of two columns.
inline unsigned row(unsigned lane) { return lane / 16 * 4 + lane / 2 % 4; }
inline unsigned column(unsigned lane) { return (lane / 8 % 2) * 4 + lane % 2 * 2; }

void multiply(Table &t)
{
    for (int i = 0; i < 8; i++) {
        float sums[8];
        for (int j = 0; j < 8; j++)
            sums[j] = t.c[i][j];
        for (int k = 0; k < 8; k++)
            for (int j = 0; j < 8; j++)
                sums[j] = __builtin_fmaf(t.a[i][k], t.b[k][j], sums[j]);
        for (int j = 0; j < 8; j++)
            t.d[i][j] = sums[j];
    }
}

void pass_barrier()
{
    for (unsigned i = 0; i < simdgroup_count; i++)
        simdgroups[i].waiting = 0;
    waiting = 0;
    generation++;
}

void order(Epochs &epochs, int flags)
{
    epochs.barriers++;
    if (flags & 1)
        epochs.device++;
    if (flags & 2)
        epochs.threadgroup++;
}

void run_lane()
{
    function->run(buffers_of_run, threadgroup_of_run, &current->at);
    Lane *done = current;
    Simdgroup &mine = simdgroups[done->simdgroup];
    if (mine.arrived || mine.waiting)
        end("divergence: a lane returns while others wait for it");
    done->returned = true;
    mine.live--;
    live--;
    Lane *to = nullptr;
    if (mine.live) {
        // Unlinked, so that `next` always leads to one that lives.
        Lane *before = &lanes[done->next];
        while (&lanes[before->next] != done)
            before = &lanes[before->next];
        before->next = done->next;
        to = &lanes[done->next];
    } else if (live) {
        to = another(done->simdgroup);
        if (!to)
            end("a threadgroup_barrier that lanes which have returned never reach");
    }
    current = to;
    if (to)
        _longjmp(to->context.registers, 1);
    _longjmp(host.registers, 1);
}

// ---- a grid

Triple edge(Triple group, const Dispatch &d)
{
    const auto size = [](uint32_t index, uint32_t whole, uint32_t all) {
        const uint32_t left = all - index * whole;
        return left < whole ? left : whole;
    };
    return {size(group.x, d.group.x, d.threads.x), size(group.y, d.group.y, d.threads.y),
            size(group.z, d.group.z, d.threads.z)};
}

void place(unsigned index, Triple group, Triple groups, Triple size, Triple full, Position &at)
{
    at.index = index;
    at.group = group;
    at.groups = groups;
    at.group_size = size;
    at.full_size = full;
    at.thread = {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

void run_alone(Triple group, Triple groups, Triple size, Triple full)
{
    current = &lanes[0];
    for (unsigned i = 0; i < size.x * size.y * size.z; i++) {
        current->simdgroup = uint16_t(i / simd);
        current->number = uint16_t(i % simd);
        place(i, group, groups, size, full, current->at);
        function->run(buffers_of_run, threadgroup_of_run, &current->at);
    }
    current = nullptr;
}

void run_together(Triple group, Triple groups, Triple size, Triple full)
{
    lane_count = live = size.x * size.y * size.z;
    simdgroup_count = (lane_count + simd - 1) / simd;
    waiting = 0;
    generation++;
    schedule.arrange(simdgroup_order, simdgroup_count);
    for (unsigned s = 0; s < simdgroup_count; s++) {
        const unsigned first = s * simd;
        const unsigned count = lane_count - first < simd ? lane_count - first : simd;
        uint16_t turn[simd];
        schedule.arrange(turn, count);
        Simdgroup &simdgroup = simdgroups[s];
        simdgroup.arrived = simdgroup.waiting = simdgroup.phase = 0;
        simdgroup.lanes = simdgroup.live = count;
        simdgroup.resume = uint16_t(first + turn[0]);
        for (unsigned i = 0; i < count; i++) {
            Lane &lane = lanes[first + turn[i]];
            lane.next = uint16_t(first + turn[(i + 1) % count]);
            lane.simdgroup = uint16_t(s);
            lane.number = turn[i];
            lane.returned = false;
            place(first + turn[i], group, groups, size, full, lane.at);
            prepare(lane.context, first + turn[i], run_lane);
        }
    }
    current = &lanes[simdgroups[simdgroup_order[0]].resume];
    switch_to(host, current->context);
    current = nullptr;
}

// Memory that nobody wrote holds NaN, or zeros on request: both must give the same.
int poison()
{
    const char *word = getenv("SOFTWARE_METAL_POISON");
    return word && !strcmp(word, "zero") ? 0 : 0xff;
}
} // namespace

int current_simdgroup() { return current ? current->simdgroup : -1; }
int current_lane() { return current ? current->number : -1; }
bool lanes_have_stacks() { return function && function->meets; }

void end(const char *what)
{
    fprintf(stderr, "software Metal: %s", what);
    if (function)
        fprintf(stderr, " (%s", function->name);
    if (current) {
        const Triple &g = current->at.group;
        fprintf(stderr, ", threadgroup %u %u %u, simdgroup %d, lane %d", g.x, g.y, g.z,
                current->simdgroup, current->number);
    }
    fprintf(stderr, function ? ")\n" : "\n");
    abort();
}

void misaligned(size_t address, size_t size)
{
    endf("misaligned: an access of %zu bytes at an address that is %zu beyond a multiple", size,
         address % size);
}

void multiply_accumulate(const float (&a)[2], const float (&b)[2], const float (&c)[2],
                         float (&d)[2])
{
    const unsigned r = row(current->number);
    const unsigned k = column(current->number);
    Table &t = meet(
        Meeting::product,
        [&](Table &t) {
            for (int i = 0; i < 2; i++) {
                t.a[r][k + i] = a[i];
                t.b[r][k + i] = b[i];
                t.c[r][k + i] = c[i];
            }
        },
        multiply);
    d[0] = t.d[r][k];
    d[1] = t.d[r][k + 1];
}

float shuffle_xor(float value, unsigned mask)
{
    const auto put = [&](Table &t) { t.values[current->number] = value; };
    return meet(Meeting::shuffle, put, [](Table &) {}).values[(current->number ^ mask) % simd];
}

float broadcast(float value, unsigned lane)
{
    const auto put = [&](Table &t) { t.values[current->number] = value; };
    return meet(Meeting::broadcast, put, [](Table &) {}).values[lane % simd];
}

unsigned sum(unsigned value)
{
    const auto put = [&](Table &t) { t.numbers[current->number] = value; };
    const auto add = [](Table &t) {
        t.numbers[0] = std::accumulate(t.numbers, t.numbers + simd, 0u);
    };
    return meet(Meeting::sum, put, add).numbers[0];
}

unsigned prefix_sum(unsigned value)
{
    const auto put = [&](Table &t) { t.numbers[current->number] = value; };
    const auto add = [](Table &t) {
        std::exclusive_scan(t.numbers, t.numbers + simd, t.numbers, 0u);
    };
    return meet(Meeting::prefix, put, add).numbers[current->number];
}

void simdgroup_barrier(int flags)
{
    meet(
        Meeting::barrier, [](Table &) {},
        [flags](Table &) { order(simd_epochs[current->simdgroup], flags); });
}

void threadgroup_barrier(int flags)
{
    if (!function->meets)
        end("a barrier in a kernel that seemed to have none");
    Simdgroup &mine = simdgroups[current->simdgroup];
    if (mine.arrived)
        endf("divergence: threadgroup_barrier, while others of the simdgroup are at %s",
             names[int(mine.tables[mine.phase & 1].kind)]);
    if (live != lane_count)
        end("a threadgroup_barrier that lanes which have returned never reach");
    mine.waiting++;
    const unsigned mark = generation;
    if (++waiting == live) {
        pass_barrier();
        order(group_epochs, flags);
        for (unsigned i = 0; i < simdgroup_count; i++)
            order(simd_epochs[i], flags);
    } else {
        while (generation == mark)
            leave();
    }
}
} // namespace software_metal

// Run `name` over the grid. 0, or 1 where there is no such function, 2 where the grid is not one.
extern "C" __attribute__((visibility("default"))) int
software_metal_dispatch(const char *name, const software_metal::Dispatch *dispatch)
{
    using namespace software_metal;
    const Dispatch &d = *dispatch;
    function = software_metal_functions;
    while (function->name && strcmp(function->name, name))
        function++;
    if (!function->name)
        return 1;
    const uint64_t lanes_of_group = uint64_t(d.group.x) * d.group.y * d.group.z;
    if (!lanes_of_group || lanes_of_group > most_lanes)
        return 2;

    void *pointers[slots], *memory[slots];
    for (int i = 0; i < slots; i++) {
        pointers[i] = d.buffers[i].kind == Kind::none ? nullptr : d.buffers[i].pointer;
        memory[i] = d.threadgroup_bytes[i]
                        ? aligned_alloc(128, (d.threadgroup_bytes[i] + 127) / 128 * 128)
                        : nullptr;
    }
    buffers_of_run = pointers;
    threadgroup_of_run = memory;
    read_schedule();
    check_begin(d, memory);

    const auto count = [](uint32_t all, uint32_t whole) { return (all + whole - 1) / whole; };
    const Triple groups = {count(d.threads.x, d.group.x), count(d.threads.y, d.group.y),
                           count(d.threads.z, d.group.z)};
    const uint64_t all = uint64_t(groups.x) * groups.y * groups.z;
    uint32_t *turn = static_cast<uint32_t *>(malloc((all + 1) * sizeof *turn));
    schedule.arrange(turn, unsigned(all));
    for (uint64_t i = 0; i < all; i++) {
        const Triple group = {turn[i] % groups.x, turn[i] / groups.x % groups.y,
                              turn[i] / groups.x / groups.y};
        for (int k = 0; k < slots; k++)
            if (memory[k])
                memset(memory[k], poison(), d.threadgroup_bytes[k]);
        group_number = turn[i] + 1;
        order(group_epochs, 3);
        for (Epochs &epochs : simd_epochs)
            order(epochs, 3);
        check_group(memory, d.threadgroup_bytes);
        const Triple size = edge(group, d);
        if (function->meets)
            run_together(group, groups, size, d.group);
        else
            run_alone(group, groups, size, d.group);
    }
    free(turn);
    check_end();
    for (void *each : memory)
        free(each);
    function = nullptr;
    return 0;
}
