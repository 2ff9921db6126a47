// Our simdgroup_event, compiled as C++, against a reference, with the memory around every tile
// unmapped. plain_event.h is the text of the overlay's Swift constant.

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "plain_event.h"

using metal::simdgroup_async_copy_clamp_mode;
using metal::simdgroup_event;

static const size_t page = 4096;
static long checked = 0;

[[noreturn]] static void fail(const char *what, int a = 0, int b = 0, int c = 0, int d = 0)
{
    printf("FAILED: %s (%d %d %d %d)\n", what, a, b, c, d);
    exit(1);
}

// Where a matrix lies in memory. `packed_end` and `packed_start` put it against an unmapped page;
// `page_rows` ends every row at an unmapped page, so that one element too many is a crash.
enum class Layout { packed_end, packed_start, page_rows };

template <typename T> struct Matrix {
    uint columns, rows, stride;
    T *data;
    size_t count;  // from the first element to the last one

    Matrix(uint columns, uint rows, uint stride, Layout layout)
        : columns(columns), rows(rows), stride(stride)
    {
        const bool empty = columns == 0 || rows == 0;
        count = empty ? 0 : size_t(rows - 1) * stride + columns;
        const size_t pages = (count * sizeof(T) + page - 1) / page + 1;
        size_ = (pages + 2) * page;
        base_ = static_cast<char *>(
            mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED)
            fail("mmap");
        char *start = base_ + page;
        if (layout == Layout::page_rows) {
            if (stride * sizeof(T) != 2 * page)
                fail("page_rows needs a stride of two pages");
            for (uint y = 0; count > 0 && y < rows; ++y) {
                mprotect(start + y * 2 * page, page, PROT_READ | PROT_WRITE);
            }
            data = reinterpret_cast<T *>(start + page - columns * sizeof(T));
        } else {
            mprotect(start, pages * page, PROT_READ | PROT_WRITE);
            data = reinterpret_cast<T *>(
                layout == Layout::packed_start ? start : start + pages * page - count * sizeof(T));
        }
        gaps_ = layout != Layout::page_rows;
    }

    Matrix(const Matrix &) = delete;
    ~Matrix() { munmap(base_, size_); }

    T &at(uint x, uint y) { return data[size_t(y) * stride + x]; }

    // Elements that may be read and written: with unmapped gaps only those of the tile itself.
    template <typename F> void each(F visit)
    {
        if (count == 0)
            return;
        for (uint y = 0; y < rows; ++y) {
            const uint width = gaps_ && y + 1 < rows ? stride : columns;
            for (uint x = 0; x < width; ++x)
                visit(at(x, y), x, y);
        }
    }

  private:
    char *base_;
    size_t size_;
    bool gaps_;
};

template <typename F> static void all_lanes(F body, bool backwards)
{
    for (uint i = 0; i < shim::lanes; ++i) {
        shim::lane = backwards ? shim::lanes - 1 - i : i;
        body();
    }
}

template <typename T> static device T *in_device(T *p) { return (device T *)p; }
template <typename T> static threadgroup T *in_threadgroup(T *p) { return (threadgroup T *)p; }

static ushort2 tile_argument(uint columns, uint rows, bool transpose)
{
    return transpose ? ushort2(rows, columns) : ushort2(columns, rows);
}

struct Case {
    uint dst_columns, dst_rows, src_columns, src_rows;
    uint dst_extra, src_extra;  // stride minus columns
    bool transpose, store, to_edge, backwards;
    Layout dst_layout, src_layout;
};

template <typename T> static uint stride_of(uint columns, uint extra, Layout layout)
{
    return layout == Layout::page_rows ? 2 * page / sizeof(T) : columns + extra;
}

template <typename T> static T value_at(uint x, uint y) { return T(1 + (x * 7 + y * 31) % 199); }

template <typename T> static void copy(const Case &c, Matrix<T> &dst, Matrix<T> &src)
{
    simdgroup_event event;
    const ushort2 dst_tile = tile_argument(c.dst_columns, c.dst_rows, c.transpose);
    const ushort2 src_tile = tile_argument(c.src_columns, c.src_rows, c.transpose);
    if (c.store) {
        event.async_copy(in_device(dst.data), uint(dst.stride), dst_tile,
                         (const threadgroup T *)in_threadgroup(src.data), ushort(src.stride),
                         src_tile, c.transpose);
    } else if (c.to_edge) {
        event.async_copy(in_threadgroup(dst.data), ushort(dst.stride), dst_tile,
                         (const device T *)in_device(src.data), uint(src.stride), src_tile,
                         c.transpose, simdgroup_async_copy_clamp_mode::clamp_to_edge);
    } else {
        event.async_copy(in_threadgroup(dst.data), ushort(dst.stride), dst_tile,
                         (const device T *)in_device(src.data), uint(src.stride), src_tile,
                         c.transpose);
    }
    simdgroup_event::wait(1, &event);
}

// What must be at (x, y) of the destination tile afterwards; nullopt-like flag for "untouched".
template <typename T> static bool expected(const Case &c, uint x, uint y, T &value)
{
    if (x >= c.dst_columns || y >= c.dst_rows)
        return false;
    const bool inside = x < c.src_columns && y < c.src_rows;
    if (inside) {
        value = value_at<T>(x, y);
        return true;
    }
    if (c.store)
        return false;
    if (c.to_edge && c.src_columns > 0 && c.src_rows > 0) {
        value = value_at<T>(x < c.src_columns ? x : c.src_columns - 1,
                            y < c.src_rows ? y : c.src_rows - 1);
    } else {
        value = T(0);
    }
    return true;
}

template <typename T> static void check(const Case &c)
{
    Matrix<T> src(c.src_columns, c.src_rows, stride_of<T>(c.src_columns, c.src_extra, c.src_layout),
                  c.src_layout);
    Matrix<T> dst(c.dst_columns, c.dst_rows, stride_of<T>(c.dst_columns, c.dst_extra, c.dst_layout),
                  c.dst_layout);
    src.each([](T &element, uint x, uint y) { element = value_at<T>(x, y); });
    const T canary = T(251);
    dst.each([&](T &element, uint, uint) { element = canary; });
    all_lanes([&] { copy<T>(c, dst, src); }, c.backwards);
    dst.each([&](T &element, uint x, uint y) {
        T wanted = canary;
        expected(c, x, y, wanted);
        if (element != wanted)
            fail("value", x, y, int(element), int(wanted));
    });
    src.each([](T &element, uint x, uint y) {
        if (element != value_at<T>(x, y))
            fail("the source was written", x, y);
    });
    ++checked;
}

// Every element is written by exactly one lane.
template <typename T> static void check_once(const Case &c)
{
    Matrix<T> src(c.src_columns, c.src_rows, c.src_columns + c.src_extra, Layout::packed_end);
    Matrix<T> dst(c.dst_columns, c.dst_rows, c.dst_columns + c.dst_extra, Layout::packed_end);
    src.each([](T &element, uint x, uint y) { element = value_at<T>(x, y); });
    std::vector<int> writes(dst.count);
    for (shim::lane = 0; shim::lane < shim::lanes; ++shim::lane) {
        dst.each([](T &element, uint, uint) { element = T(251); });
        copy<T>(c, dst, src);
        dst.each([&](T &element, uint x, uint y) {
            writes[size_t(y) * dst.stride + x] += element != T(251);
        });
    }
    dst.each([&](T &, uint x, uint y) {
        T ignored;
        const int wanted = expected(c, x, y, ignored);
        if (writes[size_t(y) * dst.stride + x] != wanted) {
            fail("writes of one element", x, y, writes[size_t(y) * dst.stride + x], wanted);
        }
    });
    ++checked;
}

template <typename T> static void tiles()
{
    const uint sizes[] = {0, 1, 3, 8, 16, 24, 31, 32, 33, 40, 64, 80, 96, 128, 160};
    for (uint columns : sizes) {
        for (uint rows : sizes) {
            const uint less_columns[] = {columns, columns / 2, columns ? columns - 1 : 0, 0};
            const uint less_rows[] = {rows, rows / 2, rows ? rows - 1 : 0, 0};
            for (int flags = 0; flags < 8; ++flags) {
                const bool transpose = flags & 1, store = flags & 2, to_edge = flags & 4;
                if (store && to_edge)
                    continue;
                for (int margin = 0; margin < 4; ++margin) {
                    Case c = {columns,
                              rows,
                              less_columns[margin],
                              less_rows[(margin + flags) % 4],
                              uint(margin),
                              uint(5 * (flags % 3)),
                              transpose,
                              store,
                              to_edge,
                              bool((columns + rows + margin) & 1),
                              Layout::packed_end,
                              Layout::packed_end};
                    check<T>(c);
                    c.dst_layout = c.src_layout = Layout::packed_start;
                    check<T>(c);
                    // The other way round: a source tile that is larger than the destination's.
                    Case larger = c;
                    larger.src_columns = columns;
                    larger.src_rows = rows;
                    larger.dst_columns = c.src_columns;
                    larger.dst_rows = c.src_rows;
                    check<T>(larger);
                    if (columns * sizeof(T) <= page && rows <= 40) {
                        c.dst_layout = c.src_layout = Layout::page_rows;
                        check<T>(c);
                        c.dst_layout = Layout::packed_end;
                        check<T>(c);
                    }
                    if (columns <= 40 && rows <= 40)
                        check_once<T>(c);
                }
            }
        }
    }
}

template <typename T> static void lines()
{
    for (uint count : {0u, 1u, 31u, 32u, 33u, 64u, 1000u}) {
        for (Layout layout : {Layout::packed_end, Layout::packed_start}) {
            Matrix<T> a(count, 1, count, layout), b(count, 1, count, layout),
                c(count, 1, count, layout);
            a.each([](T &element, uint x, uint) { element = value_at<T>(x, 0); });
            simdgroup_event event;
            all_lanes(
                [&] {
                    event.async_copy(in_threadgroup(b.data), (const device T *)in_device(a.data),
                                     ulong(count));
                },
                false);
            all_lanes(
                [&] {
                    event.async_copy(in_device(c.data),
                                     (const threadgroup T *)in_threadgroup(b.data), ulong(count));
                },
                true);
            c.each([](T &element, uint x, uint) {
                if (element != value_at<T>(x, 0))
                    fail("1-D value", x);
            });
            ++checked;
        }
    }
}

int main()
{
    // Both memories are ordered before a copy counts as done.
    simdgroup_event event;
    simdgroup_event::wait(1, &event);
    if (shim::barriers[1] == 0 || shim::barriers[2] == 0)
        fail("wait orders nothing");
    lines<float>();
    lines<uint16_t>();
    tiles<float>();
    tiles<uint16_t>();
    tiles<uint8_t>();
    printf("checked %ld\n", checked);
}
