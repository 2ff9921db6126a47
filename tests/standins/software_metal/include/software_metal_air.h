// Upstream's private intrinsics. Apple documents none of them: what is here is what their names,
// their operands and upstream's use of them say. Included after a source that declares them.
//
// The 32 lanes of a simdgroup share a copy. A tile is (columns, rows); what the source tile does
// not cover of a threadgroup tile becomes zero (the only clamp mode that upstream passes), and
// nothing outside the source tile is read. An event is nothing: a copy is done when it returns, and
// waiting orders the simdgroup's lanes.
#pragma once

namespace software_metal
{
template <typename Destination, typename Source>
static inline void copy_tile(ulong size, Destination to, ulong to_row, ulong columns, ulong rows,
                             Source from, ulong from_row, ulong from_columns, ulong from_rows)
{
    for (ulong i = prefix_sum(1); i < columns * rows; i += 32) {
        const ulong x = i % columns, y = i / columns;
        const bool inside = x < from_columns && y < from_rows;
        for (ulong byte = 0; byte < size; byte++)
            to[(y * to_row + x) * size + byte] =
                inside ? from[(y * from_row + x) * size + byte] : 0;
    }
}
} // namespace software_metal

thread _simdgroup_event_t *__metal_simdgroup_async_copy_1d(ulong size, ulong, threadgroup void *to,
                                                           const device void *from, ulong count)
{
    software_metal::copy_tile(size, (threadgroup char *)to, count, count, 1,
                              (const device char *)from, count, count, 1);
    return nullptr;
}

thread _simdgroup_event_t *__metal_simdgroup_async_copy_1d(ulong size, ulong, device void *to,
                                                           const threadgroup void *from,
                                                           ulong count)
{
    software_metal::copy_tile(size, (device char *)to, count, count, 1,
                              (const threadgroup char *)from, count, count, 1);
    return nullptr;
}

thread _simdgroup_event_t *__metal_simdgroup_async_copy_2d(ulong size, ulong, threadgroup void *to,
                                                           ulong to_row, ulong, ulong2 to_tile,
                                                           const device void *from, ulong from_row,
                                                           ulong, ulong2 from_tile, long2, int)
{
    software_metal::copy_tile(size, (threadgroup char *)to, to_row, to_tile.x, to_tile.y,
                              (const device char *)from, from_row, from_tile.x, from_tile.y);
    return nullptr;
}

thread _simdgroup_event_t *__metal_simdgroup_async_copy_2d(ulong size, ulong, device void *to,
                                                           ulong to_row, ulong, ulong2 to_tile,
                                                           const threadgroup void *from,
                                                           ulong from_row, ulong, ulong2 from_tile,
                                                           long2, int)
{
    software_metal::copy_tile(size, (device char *)to, to_row, metal::min(to_tile.x, from_tile.x),
                              metal::min(to_tile.y, from_tile.y), (const threadgroup char *)from,
                              from_row, from_tile.x, from_tile.y);
    return nullptr;
}

void __metal_wait_simdgroup_events(int, thread _simdgroup_event_t **)
{
    software_metal::simdgroup_barrier(3);
}
