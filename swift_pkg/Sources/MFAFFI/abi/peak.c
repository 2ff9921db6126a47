/*
 * The machine's multiply-add peak, to measure the engine against.
 *
 * Chains of fused multiply-adds in assembly, independent of each other and more of them than
 * latency times throughput of any current core needs (12); a compiler would fold plain C ones. For
 * BF16 inputs also chains of products of pairs, and tiles of them, where the processor has those.
 */
#include "../include/mfa_ffi.h"

#include "../driver/cpu.h"
#include "../driver/threads.h"
#include "handles.h"

#include <stdatomic.h>
#include <string.h>

enum { STEPS = 400000, MAX_LOOPS = 4 };

typedef double (*peak_loop)(void); /* returns the operations done */

#if defined(__x86_64__)

/* From x = 1, x = x * 0.5 + 0.5: always normal, whatever the registers held before. */
/* clang-format off */
#define TIMES_14(X, V)                                                                             \
    X(V, 0)                                                                                        \
    X(V, 1)                                                                                        \
    X(V, 2) X(V, 3) X(V, 4) X(V, 5) X(V, 6) X(V, 7) X(V, 8) X(V, 9) X(V, 10) X(V, 11) X(V, 12)     \
        X(V, 13)
#define START(V, n) "vbroadcastss %1, %%" V #n "\n"
#define CHAIN(V, n) "vfmadd213ps %%" V "14, %%" V "14, %%" V #n "\n"
#define LOOP(V)                                                                                    \
    static const float one = 1.0f, half = 0.5f;                                                    \
    long steps = STEPS;                                                                            \
    __asm__ volatile(TIMES_14(START, V) "vbroadcastss %2, %%" V "14\n"                             \
                                        "1:\n" TIMES_14(CHAIN, V) "sub $1, %0\n"                   \
                                                                  "jnz 1b\n"                       \
                                                                  "vzeroupper\n"                   \
                     : "+r"(steps)                                                                 \
                     : "m"(one), "m"(half)                                                         \
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",     \
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "cc")
/* clang-format on */

static double peak_avx2(void)
{
    LOOP("ymm");
    return 14.0 * 8 * 2 * STEPS;
}

static double peak_avx512(void)
{
    LOOP("zmm");
    return 14.0 * 16 * 2 * STEPS;
}

/* x = x + 0 * 0 + 0 * 0, from x = 1. */
static double peak_pairs(void)
{
    static const float one = 1.0f, zero = 0.0f;
    long steps = STEPS;
    /* clang-format off */
#define PAIRS(V, n) "vdpbf16ps %%" V "14, %%" V "14, %%" V #n "\n"
    /* clang-format on */
    __asm__ volatile(TIMES_14(START, "zmm") "vbroadcastss %2, %%zmm14\n"
                                            "1:\n" TIMES_14(PAIRS, "zmm") "sub $1, %0\n"
                                                                          "jnz 1b\n"
                                                                          "vzeroupper\n"
                     : "+r"(steps)
                     : "m"(one), "m"(zero)
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "cc");
    return 14.0 * 32 * 2 * STEPS;
}

#if MFA_HAS_TILES
/* Six tiles of sums, to which each step adds 16 x 16 products of 32 ones. */
static double peak_tiles(void)
{
    enum { TILE_STEPS = STEPS / 8 };
    uint16_t ones[16 * 32];
    long steps = TILE_STEPS;
    mfa_tile_state before;
    for (int i = 0; i < 16 * 32; i++)
        ones[i] = 0x3f80;
    mfa_kernels_amx.enter(&before);
    __asm__ volatile("tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n"
                     "tilezero %%tmm3\n tilezero %%tmm4\n tilezero %%tmm5\n"
                     "tileloadd (%1, %2, 1), %%tmm6\n"
                     "tileloadd (%1, %2, 1), %%tmm7\n"
                     "1:\n"
                     "tdpbf16ps %%tmm7, %%tmm6, %%tmm0\n tdpbf16ps %%tmm7, %%tmm6, %%tmm1\n"
                     "tdpbf16ps %%tmm7, %%tmm6, %%tmm2\n tdpbf16ps %%tmm7, %%tmm6, %%tmm3\n"
                     "tdpbf16ps %%tmm7, %%tmm6, %%tmm4\n tdpbf16ps %%tmm7, %%tmm6, %%tmm5\n"
                     "sub $1, %0\n"
                     "jnz 1b\n"
                     : "+r"(steps)
                     : "r"(ones), "r"(64L)
                     : "cc", "memory");
    mfa_kernels_amx.leave(&before);
    return 6.0 * 16 * 16 * 32 * 2 * TILE_STEPS;
}
#endif

static unsigned loops(int precision, peak_loop found[MAX_LOOPS])
{
    const char *features = mfa_cpu_features();
    const bool bf16 = precision == MFA_PRECISION_BF16;
    unsigned count = 0;
    if (strstr(features, "fma"))
        found[count++] = peak_avx2;
    if (strstr(features, "avx512f"))
        found[count++] = peak_avx512;
    if (bf16 && mfa_kernels_avx512bf16.usable())
        found[count++] = peak_pairs;
#if MFA_HAS_TILES
    if (bf16 && mfa_kernels_amx.usable())
        found[count++] = peak_tiles;
#endif
    return count;
}

#elif defined(__aarch64__)

/* From x = 1, x = x + 1 * 0.5: always normal. */
static double peak_neon(void)
{
    long steps = STEPS;
    __asm__ volatile("fmov v24.4s, #1.0\n"
                     "fmov v25.4s, #0.5\n"
#define START(n) "fmov v" #n ".4s, #1.0\n"
#define CHAIN(n) "fmla v" #n ".4s, v24.4s, v25.4s\n"
#define TIMES_16(X)                                                                                \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)
                     TIMES_16(START) "1:\n" TIMES_16(CHAIN) "subs %0, %0, #1\n"
                                                            "b.ne 1b\n"
                     : "+r"(steps)
                     :
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19",
                       "v20", "v21", "v22", "v23", "v24", "v25", "cc");
    return 16.0 * 4 * 2 * STEPS;
}

static unsigned loops(int precision, peak_loop found[MAX_LOOPS])
{
    (void)precision;
    found[0] = peak_neon;
    return 1;
}

#else

static unsigned loops(int precision, peak_loop found[MAX_LOOPS])
{
    (void)precision;
    (void)found;
    return 0;
}

#endif

typedef struct {
    peak_loop loop;
    _Atomic unsigned long done;  /* loops finished, by all threads together */
    _Atomic unsigned long started; /* loops begun */
    unsigned long limit;
} peak_job;

static void run(void *argument, unsigned index)
{
    peak_job *job = argument;
    (void)index;
    while (atomic_fetch_add(&job->started, 1) < job->limit) {
        job->loop();
        atomic_fetch_add(&job->done, 1);
    }
}

mfa_error_t mfa_portable_peak_of(int32_t input_precision, uint32_t max_threads,
                                 double *flops_per_second)
{
    mfa_setup setup;
    peak_loop found[MAX_LOOPS];
    if (!flops_per_second || !mfa_precision_size(input_precision) || !mfa_setup_read(&setup))
        return MFA_ERROR_INVALID_ARGS;
    unsigned count = loops(input_precision, found);
    if (count == 0)
        return MFA_ERROR_DEVICE_NOT_SUPPORTED;
    unsigned threads = setup.threads;
    if (max_threads && max_threads < threads)
        threads = max_threads;
    double best = 0;
    for (unsigned i = 0; i < count; i++) {
        double operations = found[i](); /* warm: clocks rise, and it tells what one loop does */
        /* Several loops a thread, so that a late start and an early end weigh little. */
        peak_job job = {.loop = found[i], .limit = 8UL * threads};
        double start = mfa_seconds_now();
        mfa_pool_run(run, &job, threads, setup.threads);
        double rate = operations * (double)atomic_load(&job.done) / (mfa_seconds_now() - start);
        if (rate > best)
            best = rate;
    }
    *flops_per_second = best;
    return MFA_SUCCESS;
}
