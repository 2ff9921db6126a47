/* AMX: BF16 products in tiles of 16 x 16 sums, for strips of 32 x 32. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* syscall */
#endif

#include "kernels.h"

#if MFA_HAS_TILES

#include <immintrin.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(MFA_STAND_IN_FOR_AMX)
#include MFA_STAND_IN_FOR_AMX
#else
#include "../simd/amx.h"
#endif

static bool find_out(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && may_use_tiles();
}

static bool usable(void)
{
    static atomic_int known; /* 0: not yet; a system call is dear beside a small attention */
    int found = atomic_load_explicit(&known, memory_order_relaxed);
    if (found == 0) {
        found = find_out() ? 1 : -1;
        atomic_store_explicit(&known, found, memory_order_relaxed);
    }
    return found > 0;
}

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512bf16,avx2,fma,f16c"))),                 \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512bf16,avx2,fma,f16c")
#endif

#define MFA_ISA amx
#define MFA_ISA_NAME "amx"
#define MFA_PAIRS 1
#define MFA_TILES 1
#define MFA_ROUNDS_TO_BF16
#define MFA_MR 32
#include "../simd/avx512.h"

/* The low half of each lane: the high half of a's; the high half: that of b's. */
V_INLINE vf v_high_halves(vf a, vf b)
{
    return _mm512_castsi512_ps(_mm512_mask_blend_epi16(
        0xaaaaaaaau, _mm512_srli_epi32(_mm512_castps_si512(a), 16), _mm512_castps_si512(b)));
}

/* 16 pairs of BF16 numbers, one of each row. */
V_INLINE vf v_load_pairs(const unsigned char *a, const unsigned char *b)
{
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)a));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)b));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

/* Rounds to the precision of BF16, halves away from 0. A NaN may come out as anything. */
V_INLINE vf v_rounded_up(vf v)
{
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000)));
}

V_INLINE vf v_without_low(vf v)
{
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32((int)0xffff0000u)));
}

V_INLINE vf v_minus(vf v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }

#include "template.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#elif defined(__x86_64__)

static bool usable(void) { return false; } /* this system or compiler has no tiles */

const mfa_kernels mfa_kernels_amx = {.name = "amx", .usable = usable};

#else
typedef int mfa_no_amx_here; /* an empty translation unit is not ISO C */
#endif
