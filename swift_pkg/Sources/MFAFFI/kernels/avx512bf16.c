/* AVX-512 F and DQ, and AVX512_BF16 for the scores of BF16 inputs: tiles of 12 x 32. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static bool usable(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bf16,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bf16,avx2,fma,f16c")
#endif

#define MFA_ISA avx512bf16
#define MFA_ISA_NAME "avx512bf16"
#define MFA_PAIRS 1
#define MFA_ROUNDS_TO_BF16
#include "../simd/avx512.h"

V_INLINE vf v_dot_pairs(vf a, vf b, vf c)
{
    return _mm512_dpbf16_ps(c, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

#include "template.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else
typedef int mfa_no_avx512bf16_here; /* an empty translation unit is not ISO C */
#endif
