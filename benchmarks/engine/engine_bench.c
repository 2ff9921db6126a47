/*
 * Times the portable engine beside the machine's own multiply-add peak.
 *
 *   engine_bench LIBRARY ROUNDS CASE...
 *
 * A case is a comma-separated list, for instance "sq=4196,skv=4196,d=128,dt=bf16,causal=1". All
 * cases run once per round, each next to a measurement of the peak, with vectors as wide as the
 * case's kernel has them; the figures are medians over rounds of per-round ratios, so that a noisy
 * machine disturbs both sides alike.
 *
 * Keys: b h hkv sq skv s(=sq=skv) d dv dt(fp32|bf16|fp16) causal(0|1|2) layout(bhsd|bshd)
 *       mask(none|pad|padf|full) keep(keys left by pad masks) threads isa
 *       lib(another build of the engine, to compare with)
 *       clock(wall|cpu)   cpu: the thread's own time, with threads=1 only; blind to other load
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* setenv, RUSAGE */
#endif

#include "mfa_ffi.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CASES = 32, MAX_ROUNDS = 400 };

typedef struct {
    const char *name;
    uint32_t b, h, hkv, sq, skv, d, dv, keep, threads;
    bool cpu_time;
    mfa_error_t (*attention)(mfa_context_t, const mfa_portable_args_t *);
    mfa_context_t context;
    int precision, causal, bshd, mask;
    char isa[16];
    mfa_portable_args_t args;
    double seconds[MAX_ROUNDS], peak[MAX_ROUNDS];
    long extra_kib;
} bench_case;

static clockid_t clock_used = CLOCK_MONOTONIC;

static double now(void)
{
    struct timespec t;
    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the peak: independent chains in assembly, which no compiler can fold ---- */

enum { PEAK_STEPS = 600000 };

static bool wide; /* 512 bits: as wide as the kernel that is measured beside it */

/* Runs the chains; returns the operations done. */
static double peak_kernel(void)
{
#if defined(__x86_64__)
    long steps = PEAK_STEPS;
#define LOOP(CHAIN)                                                                                \
    __asm__ volatile("1:\n" CHAIN(0) CHAIN(1) CHAIN(2) CHAIN(3) CHAIN(4) CHAIN(5) CHAIN(6)         \
                         CHAIN(7) CHAIN(8) CHAIN(9) CHAIN(10) CHAIN(11) CHAIN(12)                  \
                             CHAIN(13) "sub $1, %0\n"                                              \
                                       "jnz 1b\n"                                                  \
                                       "vzeroupper\n"                                              \
                     : "+r"(steps)                                                                 \
                     :                                                                             \
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",     \
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "cc")
#define CHAIN_256(n) "vfmadd231ps %%ymm" #n ", %%ymm" #n ", %%ymm" #n "\n"
#define CHAIN_512(n) "vfmadd231ps %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n"
    if (wide) {
        LOOP(CHAIN_512);
        return 14.0 * 16 * 2 * PEAK_STEPS;
    }
    LOOP(CHAIN_256);
    return 14.0 * 8 * 2 * PEAK_STEPS;
#elif defined(__aarch64__)
    long steps = PEAK_STEPS;
    __asm__ volatile("1:\n"
#define CHAIN(n) "fmla v" #n ".4s, v" #n ".4s, v" #n ".4s\n"
                     CHAIN(0) CHAIN(1) CHAIN(2) CHAIN(3) CHAIN(4) CHAIN(5) CHAIN(6) CHAIN(7)
                         CHAIN(8) CHAIN(9) CHAIN(10) CHAIN(11) CHAIN(12) CHAIN(13) CHAIN(14)
                             CHAIN(15) "subs %0, %0, #1\n"
                                       "b.ne 1b\n"
                     : "+r"(steps)
                     :
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11",
                       "v12", "v13", "v14", "v15", "cc");
    return 16.0 * 4 * 2 * PEAK_STEPS;
#else
    return 0;
#endif
}

/* Whether the engine computes a case with vectors of 512 bits. */
static bool computes_wide(const char *isa)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && (!isa[0] || !strncmp(isa, "avx512", 6));
#else
    return isa && false;
#endif
}

static pthread_barrier_t peak_start;

static double peak_rate(void)
{
    double start = now();
    double operations = peak_kernel();
    return operations / (now() - start) * 1e-9;
}

static void *peak_thread(void *rate)
{
    pthread_barrier_wait(&peak_start);
    *(double *)rate = peak_rate();
    return NULL;
}

/* GFLOP/s of `threads` threads together. */
static double measure_peak(unsigned threads)
{
    pthread_t thread[64];
    double rate[64], total = 0;
    if (threads == 1)
        return peak_rate();
    pthread_barrier_init(&peak_start, NULL, threads);
    for (unsigned i = 0; i < threads; i++)
        pthread_create(&thread[i], NULL, peak_thread, &rate[i]);
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        total += rate[i];
    }
    pthread_barrier_destroy(&peak_start);
    return total;
}

/* ---- cases ---- */

/* The engine in `path`; returns the threads that it would use. */
static unsigned open_engine(bench_case *c, const char *path)
{
    mfa_error_t (*create)(mfa_context_t *), (*describe)(char *, size_t);
    char text[256];
    void *library = dlopen(path, RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    *(void **)&create = dlsym(library, "mfa_create_context");
    *(void **)&describe = dlsym(library, "mfa_portable_describe");
    *(void **)&c->attention = dlsym(library, "mfa_portable_attention");
    if (!create || !describe || !c->attention || create(&c->context) ||
        describe(text, sizeof text)) {
        fprintf(stderr, "%s is no portable engine, or its environment is wrong\n", path);
        exit(2);
    }
    const char *threads = strstr(text, "threads=");
    return threads ? (unsigned)atoi(threads + 8) : 1;
}

static void parse(bench_case *c, const char *text)
{
    char copy[256], *rest = NULL;
    memset(c, 0, sizeof *c);
    c->name = text;
    c->b = 1;
    c->h = 24;
    c->d = 128;
    c->sq = c->skv = 1124;
    c->precision = MFA_PRECISION_FP32;
    snprintf(copy, sizeof copy, "%s", text);
    for (char *item = strtok_r(copy, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        char *value = strchr(item, '=');
        if (!value) {
            fprintf(stderr, "'%s' is not key=value\n", item);
            exit(2);
        }
        *value++ = '\0';
        uint32_t number = (uint32_t)strtoul(value, NULL, 10);
        if (!strcmp(item, "b"))
            c->b = number;
        else if (!strcmp(item, "h"))
            c->h = number;
        else if (!strcmp(item, "hkv"))
            c->hkv = number;
        else if (!strcmp(item, "sq"))
            c->sq = number;
        else if (!strcmp(item, "skv"))
            c->skv = number;
        else if (!strcmp(item, "s"))
            c->sq = c->skv = number;
        else if (!strcmp(item, "d"))
            c->d = number;
        else if (!strcmp(item, "dv"))
            c->dv = number;
        else if (!strcmp(item, "causal"))
            c->causal = (int)number;
        else if (!strcmp(item, "keep"))
            c->keep = number;
        else if (!strcmp(item, "threads"))
            c->threads = number;
        else if (!strcmp(item, "layout"))
            c->bshd = !strcmp(value, "bshd");
        else if (!strcmp(item, "lib"))
            open_engine(c, value);
        else if (!strcmp(item, "clock"))
            c->cpu_time = !strcmp(value, "cpu");
        else if (!strcmp(item, "isa"))
            snprintf(c->isa, sizeof c->isa, "%s", value);
        else if (!strcmp(item, "dt"))
            c->precision = !strcmp(value, "bf16")   ? MFA_PRECISION_BF16
                           : !strcmp(value, "fp16") ? MFA_PRECISION_FP16
                                                    : MFA_PRECISION_FP32;
        else if (!strcmp(item, "mask"))
            c->mask = !strcmp(value, "pad")    ? 1
                      : !strcmp(value, "padf") ? 2
                      : !strcmp(value, "full") ? 3
                                               : 0;
        else {
            fprintf(stderr, "unknown key '%s'\n", item);
            exit(2);
        }
    }
    c->hkv = c->hkv ? c->hkv : c->h;
    c->dv = c->dv ? c->dv : c->d;
    c->keep = c->keep ? c->keep : c->skv;
    if (c->cpu_time && c->threads != 1) {
        fprintf(stderr, "clock=cpu needs threads=1\n");
        exit(2);
    }
}

static void *filled(uint64_t count, int precision)
{
    uint64_t state = 88172645463325252u;
    size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    unsigned char *data = malloc(count * size);
    for (uint64_t i = 0; i < count; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        float value = (float)(state >> 40) / (1 << 23) - 1.0f;
        if (precision == MFA_PRECISION_FP32) {
            memcpy(data + 4 * i, &value, 4);
        } else if (precision == MFA_PRECISION_BF16) {
            memcpy(data + 2 * i, (unsigned char *)&value + 2, 2);
        } else {
            uint16_t half = (uint16_t)(0x3000 + (state >> 52)); /* 0.125 .. 0.25 and around */
            memcpy(data + 2 * i, &half, 2);
        }
    }
    return data;
}

static void lay_out(int64_t stride[3], const bench_case *c, uint32_t heads, uint32_t rows,
                    uint32_t d)
{
    stride[2] = c->bshd ? (int64_t)heads * d : d;
    stride[1] = c->bshd ? d : (int64_t)rows * d;
    stride[0] = (int64_t)heads * rows * d;
}

static void prepare(bench_case *c)
{
    mfa_portable_args_t *a = &c->args;
    size_t size = c->precision == MFA_PRECISION_FP32 ? 4 : 2;
    uint64_t q = (uint64_t)c->b * c->h * c->sq * c->d, k = (uint64_t)c->b * c->hkv * c->skv * c->d;
    uint64_t v = (uint64_t)c->b * c->hkv * c->skv * c->dv,
             o = (uint64_t)c->b * c->h * c->sq * c->dv;
    a->struct_bytes = sizeof *a;
    a->batch = c->b;
    a->heads_q = c->h;
    a->heads_kv = c->hkv;
    a->seq_q = c->sq;
    a->seq_kv = c->skv;
    a->head_dim = c->d;
    a->value_dim = c->dv;
    a->q = filled(q, c->precision);
    a->k = filled(k, c->precision);
    a->v = filled(v, c->precision);
    a->out = calloc(o, size);
    a->q_bytes = q * size;
    a->k_bytes = k * size;
    a->v_bytes = v * size;
    a->out_bytes = o * size;
    memset(a->out, 1, a->out_bytes);
    lay_out(a->q_strides, c, c->h, c->sq, c->d);
    lay_out(a->k_strides, c, c->hkv, c->skv, c->d);
    lay_out(a->v_strides, c, c->hkv, c->skv, c->dv);
    lay_out(a->out_strides, c, c->h, c->sq, c->dv);
    a->input_precision = a->output_precision = c->precision;
    a->scale = 0.0883883f;
    a->causal = c->causal;
    a->max_threads = c->threads;
    if (c->mask) {
        uint64_t count = (c->mask == 3 ? c->sq : 1) * (uint64_t)c->skv;
        float *bias = malloc(count * 4);
        unsigned char *keep = malloc(count);
        for (uint64_t i = 0; i < count; i++) {
            keep[i] = i % c->skv < c->keep;
            bias[i] = c->mask == 3 ? (float)(i % 7) * 0.1f : keep[i] ? 0.0f : -1e9f;
        }
        a->mask = c->mask == 1 ? (void *)keep : (void *)bias;
        a->mask_bytes = c->mask == 1 ? count : count * 4;
        a->mask_type = c->mask == 1 ? MFA_MASK_TYPE_BOOL : MFA_MASK_TYPE_ADDITIVE;
        a->mask_scalar_type = c->mask == 1 ? MFA_MASK_SCALAR_BYTE : MFA_MASK_SCALAR_FP32;
        a->mask_strides[3] = 1;
        a->mask_strides[2] = c->mask == 3 ? c->skv : 0;
    }
}

static double run_case(const bench_case *c)
{
    if (c->isa[0])
        setenv("QWEN_MFA_ISA", c->isa, 1);
    double start = now();
    mfa_error_t error = c->attention(c->context, &c->args);
    double seconds = now() - start;
    if (c->isa[0])
        unsetenv("QWEN_MFA_ISA");
    if (error) {
        fprintf(stderr, "%s: error %d\n", c->name, error);
        exit(1);
    }
    return seconds;
}

static long peak_kib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *values, int count, double at)
{
    double sorted[MAX_ROUNDS];
    memcpy(sorted, values, (size_t)count * sizeof *values);
    qsort(sorted, (size_t)count, sizeof *sorted, ascending);
    return sorted[(int)(at * (count - 1) + 0.5)];
}

int main(int count, char **argument)
{
    static bench_case cases[MAX_CASES];
    unsigned threads = 1;
    if (count < 4 || count - 3 > MAX_CASES) {
        fprintf(stderr, "usage: engine_bench LIBRARY ROUNDS CASE...\n");
        return 2;
    }
    int rounds = atoi(argument[2]), number = count - 3;
    if (rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "rounds: 1 to %d\n", MAX_ROUNDS);
        return 2;
    }
    for (int i = 0; i < number; i++) {
        parse(&cases[i], argument[i + 3]);
        if (!cases[i].attention)
            threads = open_engine(&cases[i], argument[1]);
        prepare(&cases[i]);
    }
    for (int i = 0; i < number; i++) { /* warm-up; ascending sizes show each one's peak memory */
        long before = peak_kib();
        run_case(&cases[i]);
        cases[i].extra_kib = peak_kib() - before;
    }
    for (int r = 0; r < rounds; r++)
        for (int i = 0; i < number; i++) {
            unsigned used = cases[i].threads ? cases[i].threads : threads;
            clock_used = cases[i].cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
            wide = computes_wide(cases[i].isa);
            double before = measure_peak(used);
            cases[i].seconds[r] = run_case(&cases[i]);
            double after = measure_peak(used);
            cases[i].peak[r] = before > after ? before : after;
        }
    printf("%-44s %10s %9s %8s %7s %7s %7s %7s %9s\n", "case", "median ms", "GFLOP/s", "peak",
           "of peak", "q25", "q75", "x first", "extra MiB");
    for (int i = 0; i < number; i++) {
        const bench_case *c = &cases[i];
        double flops = 2.0 * c->b * c->h * c->sq * (double)c->skv * (c->d + c->dv);
        double share[MAX_ROUNDS], ratio[MAX_ROUNDS];
        for (int r = 0; r < rounds; r++) {
            share[r] = flops / c->seconds[r] * 1e-9 / c->peak[r];
            ratio[r] = c->seconds[r] / cases[0].seconds[r];
        }
        double median = quantile(c->seconds, rounds, 0.5);
        printf("%-44s %10.3f %9.1f %8.1f %7.3f %7.3f %7.3f %7.3f %9.1f\n", c->name, median * 1e3,
               flops / median * 1e-9, quantile(c->peak, rounds, 0.5), quantile(share, rounds, 0.5),
               quantile(share, rounds, 0.25), quantile(share, rounds, 0.75),
               quantile(ratio, rounds, 0.5), (double)c->extra_kib / 1024);
    }
    return 0;
}
