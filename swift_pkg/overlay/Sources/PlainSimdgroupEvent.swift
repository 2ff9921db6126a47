/// `metal::simdgroup_event` in plain Metal: no private intrinsic, no inline assembly.
///
/// Put before a generated source, it defines the include guard of upstream's header of the same
/// name, so the preprocessor drops that one. The lanes of the calling simdgroup copy the elements in
/// turn; a lane finds its place among the active ones by an exclusive prefix sum of 1, and `wait`
/// only has to order the copies of its own simdgroup. The tests compile this very text as C++.
let plainSimdgroupEvent = #"""
#ifndef __METAL_SIMDGROUP_EVENT
#define __METAL_SIMDGROUP_EVENT

#include <metal_stdlib>

namespace metal
{
  enum class simdgroup_async_copy_clamp_mode {
    clamp_to_zero = 0,
    clamp_to_edge = 1
  };

  struct simdgroup_event {
    METAL_FUNC simdgroup_event() thread {}

    // 1-D, device to threadgroup.
    template <typename T>
    METAL_FUNC void async_copy(
      threadgroup T *dst, const device T *src, ulong n_elements
    ) thread {
      const ulong lanes = lane_count();
      for (ulong i = lane_rank(); i < n_elements; i += lanes) {
        dst[i] = src[i];
      }
    }

    // 1-D, threadgroup to device.
    template <typename T>
    METAL_FUNC void async_copy(
      device T *dst, const threadgroup T *src, ulong n_elements
    ) thread {
      const ulong lanes = lane_count();
      for (ulong i = lane_rank(); i < n_elements; i += lanes) {
        dst[i] = src[i];
      }
    }

    // 2-D, device to threadgroup. Tiles are (columns, rows); what the source tile does not cover of
    // the destination tile is filled, and nothing outside the source tile is read.
    template <typename T>
    METAL_FUNC void async_copy(
      threadgroup T *dst,
      ushort dst_elements_per_row,
      ushort2 dst_tile_dimensions,
      const device T *src,
      uint src_elements_per_row,
      ushort2 src_tile_dimensions,
      bool transpose_matrix = false,
      simdgroup_async_copy_clamp_mode clamp_mode =
        simdgroup_async_copy_clamp_mode::clamp_to_zero
    ) thread {
      const tile_walk tile(dst_tile_dimensions, transpose_matrix);
      const uint columns = transpose_matrix ? src_tile_dimensions.y : src_tile_dimensions.x;
      const uint rows = transpose_matrix ? src_tile_dimensions.x : src_tile_dimensions.y;
      const bool to_edge = clamp_mode == simdgroup_async_copy_clamp_mode::clamp_to_edge
        && columns > 0 && rows > 0;

      uint x = tile.x;
      uint y = tile.y;
      while (y < tile.rows) {
        const uint from_x = to_edge && x >= columns ? columns - 1 : x;
        const uint from_y = to_edge && y >= rows ? rows - 1 : y;
        T value = T(0);
        if (from_x < columns && from_y < rows) {
          value = src[ulong(from_y) * src_elements_per_row + from_x];
        }
        dst[y * dst_elements_per_row + x] = value;
        tile.advance(x, y);
      }
    }

    // 2-D, threadgroup to device. Only what both tiles cover is written.
    template <typename T>
    METAL_FUNC void async_copy(
      device T *dst,
      uint dst_elements_per_row,
      ushort2 dst_tile_dimensions,
      const threadgroup T *src,
      ushort src_elements_per_row,
      ushort2 src_tile_dimensions,
      bool transpose_matrix = false
    ) thread {
      const ushort2 both = ushort2(
        min(dst_tile_dimensions.x, src_tile_dimensions.x),
        min(dst_tile_dimensions.y, src_tile_dimensions.y));
      const tile_walk tile(both, transpose_matrix);

      uint x = tile.x;
      uint y = tile.y;
      while (y < tile.rows) {
        dst[ulong(y) * dst_elements_per_row + x] = src[y * src_elements_per_row + x];
        tile.advance(x, y);
      }
    }

    METAL_FUNC static void wait(int, thread simdgroup_event *) {
      simdgroup_barrier(mem_flags::mem_threadgroup);
      simdgroup_barrier(mem_flags::mem_device);
    }

  private:
    METAL_FUNC static uint lane_rank() {
      return simd_prefix_exclusive_sum(uint(1));
    }

    METAL_FUNC static uint lane_count() {
      return simd_sum(uint(1));
    }

    // One lane's way through a tile, row by row, in steps of the number of lanes: neighbouring lanes
    // touch neighbouring elements, and there is no division but the first two.
    struct tile_walk {
      uint columns;
      uint rows;
      uint x;
      uint y;
      uint step_x;
      uint step_y;

      METAL_FUNC tile_walk(ushort2 dimensions, bool transpose_matrix) thread {
        columns = transpose_matrix ? dimensions.y : dimensions.x;
        rows = transpose_matrix ? dimensions.x : dimensions.y;
        const uint rank = lane_rank();
        const uint lanes = lane_count();
        if (columns == 0) {
          rows = 0;
        }
        const uint divisor = columns == 0 ? 1 : columns;
        x = rank % divisor;
        y = rank / divisor;
        step_x = lanes % divisor;
        step_y = lanes / divisor;
      }

      METAL_FUNC void advance(thread uint &column, thread uint &row) const thread {
        column += step_x;
        row += step_y;
        if (column >= columns) {
          column -= columns;
          row += 1;
        }
      }
    };
  };
} // namespace metal

#endif // __METAL_SIMDGROUP_EVENT

"""#
