// A small attention kernel of our own that uses what upstream's kernels use: products of 8x8
// matrices, copies in both directions, barriers, function constants, threadgroup memory, strides.
// ELEMENT, SCORE, APPLE9, LOW, D and SCALE are put before it. The tests run this very text.
let kernelText = #"""
using namespace metal;

constant uint R [[function_constant(0)]];
constant uint C [[function_constant(1)]];
constant bool CAUSAL [[function_constant(4)]];

#define ROWS 16
#define BLOCK 16

// One lane's two elements of an 8x8 matrix.
template <typename T>
struct tile {
  vec<T, 64> t;

  METAL_FUNC thread vec<T, 2> *elements() thread {
    return reinterpret_cast<thread vec<T, 2> *>(&t);
  }

  template <typename A>
  METAL_FUNC void add_product(tile<A> a, tile<float> b) thread {
    t = __metal_simdgroup_matrix_8x8_multiply_accumulate(a.t, b.t, t, vec<T, 64>());
  }
};

kernel void attention(
  device ELEMENT *Q [[buffer(0)]],
  device ELEMENT *K [[buffer(1)]],
  device ELEMENT *V [[buffer(2)]],
  device float *O [[buffer(3)]],
  device float *L [[buffer(4)]],
  constant int64_t *Q_strides [[buffer(5)]],
  constant int64_t *K_strides [[buffer(6)]],
  constant int64_t *V_strides [[buffer(7)]],
  constant uint &heads [[buffer(8)]],
  device float *bias [[buffer(12)]],
  threadgroup uchar *block [[threadgroup(0)]],
  uint3 gid [[threadgroup_position_in_grid]],
  ushort sidx [[simdgroup_index_in_threadgroup]],
  ushort lane [[thread_index_in_simdgroup]]
) {
  const uint Q_row = uint(Q_strides[2]);
  const uint K_row = uint(K_strides[2]);
  const uint V_row = uint(V_strides[2]);
  Q += gid.z * uint(Q_strides[0]) + gid.y * uint(Q_strides[1]);
  K += gid.z * uint(K_strides[0]) + gid.y * uint(K_strides[1]);
  V += gid.z * uint(V_strides[0]) + gid.y * uint(V_strides[1]);
  O += (gid.z * heads + gid.y) * R * D;
  L += (gid.z * heads + gid.y) * R;

  // Where the lane's two elements are: (column, row).
  const ushort2 at((lane / 8 % 2) * 4 + lane % 2 * 2, lane / 16 * 4 + lane / 2 % 4);
  const uint first = gid.x * ROWS;
  const uint row = first + sidx * 8 + at.y;
  const uint safe = min(row, R - 1);

  tile<float> q[D / 8];
  tile<float> o[D / 8];
#if APPLE9
  for (ushort d = 0; d < D / 8; d++) {
    // Pairs where rows are an even number of elements apart, as upstream.
    const device ELEMENT *from = (Q + safe * Q_row + d * 8 + at.x);
    vec<ELEMENT, 2> pair;
    if (Q_row % 2 == 0) {
      pair = *(const device vec<ELEMENT, 2> *)from;
    } else {
      pair[0] = from[0];
      pair[1] = from[1];
    }
    *(q[d].elements()) = vec<float, 2>(pair);
  }
#else
  threadgroup ELEMENT *queries = (threadgroup ELEMENT *)block;
  if (sidx == 0) {
    simdgroup_event event;
    event.async_copy(
      queries, D, ushort2(D, ROWS),
      Q + first * Q_row, Q_row, ushort2(D, min(uint(ROWS), R - first)));
    simdgroup_event::wait(1, &event);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup); // queries are here
  for (ushort d = 0; d < D / 8; d++) {
    vec<ELEMENT, 2> pair =
      *(const threadgroup vec<ELEMENT, 2> *)(queries + (sidx * 8 + at.y) * D + d * 8 + at.x);
    *(q[d].elements()) = vec<float, 2>(pair);
  }
#endif
  for (ushort d = 0; d < D / 8; d++) {
    *(o[d].elements()) = vec<float, 2>(0);
  }

  float m = -1e30;
  float l = 0.0;
  threadgroup ELEMENT *tile_of = (threadgroup ELEMENT *)block;
  for (uint c = 0; c < C; c += BLOCK) {
    const ushort columns = min(uint(BLOCK), C - c);

    threadgroup_barrier(mem_flags::mem_threadgroup); // the tile is free
    if (sidx == 0) {
      simdgroup_event event;
      event.async_copy(
        tile_of, D, ushort2(D, BLOCK), K + c * K_row, K_row, ushort2(D, columns));
      simdgroup_event::wait(1, &event);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup); // keys are here

    tile<SCORE> s[BLOCK / 8];
    float best = m;
    for (ushort b = 0; b < BLOCK / 8; b++) {
      *(s[b].elements()) = vec<SCORE, 2>(0);
      for (ushort d = 0; d < D / 8; d++) {
        tile<float> k;
        threadgroup ELEMENT *from = tile_of + (b * 8 + at.x) * D + d * 8 + at.y;
        *(k.elements()) = vec<float, 2>(float(from[0]), float(from[D]));
        s[b].add_product(q[d], k);
      }
      for (ushort i = 0; i < 2; i++) {
        const uint column = c + b * 8 + at.x + i;
        thread SCORE &score = (*(s[b].elements()))[i];
        if (bias != nullptr && column < C) {
          score += bias[((gid.z * heads + gid.y) * R + safe) * C + column];
        }
        if (column >= C || (CAUSAL && column > row)) {
          score = -1e30;
        }
        best = max(best, float(score));
      }
    }
    best = max(best, simd_shuffle_xor(best, 1));
    best = max(best, simd_shuffle_xor(best, 8));

    const float shrink = fast::exp2((m - best) * SCALE);
    m = best;
    float sum = 0.0;
    for (ushort b = 0; b < BLOCK / 8; b++) {
      for (ushort i = 0; i < 2; i++) {
        thread SCORE &weight = (*(s[b].elements()))[i];
        weight = fast::exp2((weight - m) * SCALE);
        sum += weight;
#if LOW
        weight = half(weight);
#endif
      }
    }
    sum += simd_shuffle_xor(sum, 1);
    sum += simd_shuffle_xor(sum, 8);
    l = l * shrink + sum;

    threadgroup_barrier(mem_flags::mem_threadgroup); // keys are read
    if (sidx == 0) {
      simdgroup_event event;
      event.async_copy(
        tile_of, D, ushort2(D, BLOCK), V + c * V_row, V_row, ushort2(D, columns));
      simdgroup_event::wait(1, &event);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup); // values are here

    for (ushort d = 0; d < D / 8; d++) {
      *(o[d].elements()) *= vec<float, 2>(shrink);
      for (ushort b = 0; b < BLOCK / 8; b++) {
        tile<float> v;
        threadgroup ELEMENT *from = tile_of + (b * 8 + at.y) * D + d * 8 + at.x;
        *(v.elements()) = vec<float, 2>(float(from[0]), float(from[1]));
        o[d].add_product(s[b], v);
      }
    }
  }

  threadgroup_barrier(mem_flags::mem_threadgroup); // values are read
  threadgroup float *result = (threadgroup float *)block;
  for (ushort d = 0; d < D / 8; d++) {
    *(o[d].elements()) *= vec<float, 2>(1 / l);
    *(threadgroup vec<float, 2>*)(result + (sidx * 8 + at.y) * D + d * 8 + at.x) = *(o[d].elements());
  }
  if (row < R && at.x == 0) {
    L[row] = m * SCALE + fast::log2(l);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup); // the result is whole
  if (sidx == 0) {
    simdgroup_event event;
    event.async_copy(
      O + first * D, D, ushort2(D, min(uint(ROWS), R - first)),
      result, D, ushort2(D, ROWS));
    simdgroup_event::wait(1, &event);
  }
}

"""#

/// `simdgroup_event` over the private intrinsics: the two forms that the kernel uses.
let eventText = #"""
#ifndef __METAL_SIMDGROUP_EVENT
#define __METAL_SIMDGROUP_EVENT
#include <metal_stdlib>

struct _simdgroup_event_t;
thread _simdgroup_event_t *__metal_simdgroup_async_copy_2d(
  ulong, ulong, threadgroup void *, ulong, ulong, ulong2, const device void *, ulong, ulong, ulong2,
  long2, int) __asm("air.simdgroup_async_copy_2d.p3i8.p1i8");
thread _simdgroup_event_t *__metal_simdgroup_async_copy_2d(
  ulong, ulong, device void *, ulong, ulong, ulong2, const threadgroup void *, ulong, ulong, ulong2,
  long2, int) __asm("air.simdgroup_async_copy_2d.p1i8.p3i8");
void __metal_wait_simdgroup_events(int, thread _simdgroup_event_t **)
  __asm("air.wait_simdgroup_events");

#pragma METAL internals : enable
namespace metal {
  struct simdgroup_event {
    METAL_FUNC simdgroup_event() thread {}

    template <typename T>
    METAL_FUNC void async_copy(
      threadgroup T *dst, ushort dst_row, ushort2 dst_tile,
      const device T *src, uint src_row, ushort2 src_tile
    ) thread {
      event = __metal_simdgroup_async_copy_2d(
        sizeof(T), alignof(T), (threadgroup void *)dst, dst_row, 1, ulong2(dst_tile),
        (const device void *)src, src_row, 1, ulong2(src_tile), long2(0), 0);
    }

    template <typename T>
    METAL_FUNC void async_copy(
      device T *dst, uint dst_row, ushort2 dst_tile,
      const threadgroup T *src, ushort src_row, ushort2 src_tile
    ) thread {
      event = __metal_simdgroup_async_copy_2d(
        sizeof(T), alignof(T), (device void *)dst, dst_row, 1, ulong2(dst_tile),
        (const threadgroup void *)src, src_row, 1, ulong2(src_tile), long2(0), 0);
    }

    METAL_FUNC static void wait(int count, thread simdgroup_event *events) {
      __metal_wait_simdgroup_events(count, reinterpret_cast<thread _simdgroup_event_t **>(events));
    }

  private:
    thread _simdgroup_event_t *event;
  };
}
#pragma METAL internals : disable
#endif // __METAL_SIMDGROUP_EVENT

"""#
