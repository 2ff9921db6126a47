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
 *       mask(none|pad|padf|full|one) keep(keys left by pad masks; one: each query sees one key)
 *       data(normal|spread|rising|inf|nan)  spread: q times 80; rising: scores rise with the keys
 *       threads isa
 *       lib(another build of the engine, to compare with)
 *       clock(wall|cpu)   cpu: the thread's own time, with threads=1 only; blind to other load
 *
 * A peak that is below what a kernel reached was not the peak: such a case ends in an error.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* setenv, mkstemps, RUSAGE */
#endif

#include "mfa_ffi.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CASES = 32, MAX_ROUNDS = 400 };

static const char *const DATA[] = {"normal", "spread", "rising", "inf", "nan"};
enum { NORMAL, SPREAD, RISING, INFINITE, NANS, DATA_COUNT };

/* Of which unit: that of the kernel that is measured beside it. */
typedef enum { PEAK_256, PEAK_512, PEAK_TILES } peak_kind;

typedef struct {
    const char *name;
    uint32_t b, h, hkv, sq, skv, d, dv, keep, threads;
    bool cpu_time;
    mfa_error_t (*attention)(mfa_context_t, const mfa_portable_args_t *);
    mfa_context_t context;
    int precision, causal, bshd, mask, data;
    char isa[16], path[256];
    peak_kind peak_of;
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

static peak_kind kind_measured;

#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxbf16intrin.h>)
#define HAS_TILES 1
#endif
#endif

#if defined(HAS_TILES)
/* Six tiles of sums, each of 16 x 16 products of 16 pairs a step. */
static double peak_tiles(void)
{
    enum { STEPS = PEAK_STEPS / 4 };
    uint16_t ones[16 * 32];
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 16 * 32; i++)
        ones[i] = 0x3f80;
    for (int i = 0; i < 8; i++) {
        shape.bytes[i] = 64;
        shape.rows[i] = 16;
    }
    long steps = STEPS;
    __asm__ volatile("ldtilecfg %1\n"
                     "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n"
                     "tilezero %%tmm3\n tilezero %%tmm4\n tilezero %%tmm5\n"
                     "tileloadd (%2, %3, 1), %%tmm6\n"
                     "tileloadd (%2, %3, 1), %%tmm7\n"
                     "1:\n"
                     "tdpbf16ps %%tmm7, %%tmm6, %%tmm0\n tdpbf16ps %%tmm7, %%tmm6, %%tmm1\n"
                     "tdpbf16ps %%tmm7, %%tmm6, %%tmm2\n tdpbf16ps %%tmm7, %%tmm6, %%tmm3\n"
                     "tdpbf16ps %%tmm7, %%tmm6, %%tmm4\n tdpbf16ps %%tmm7, %%tmm6, %%tmm5\n"
                     "sub $1, %0\n"
                     "jnz 1b\n"
                     "tilerelease\n"
                     : "+r"(steps)
                     : "m"(shape), "r"(ones), "r"(64L)
                     : "cc", "memory");
    return 6.0 * 16 * 16 * 32 * 2 * STEPS;
}
#endif

/*
 * Runs the chains; returns the operations done. Every chain is x = x * 0.5 + 0.5 from x = 1: always
 * normal, whatever the registers held before.
 */
static double peak_kernel(void)
{
#if defined(__x86_64__)
    static const float one = 1.0f, half = 0.5f;
    long steps = PEAK_STEPS;
#define TIMES_14(X, V)                                                                             \
    X(V, 0)                                                                                        \
    X(V, 1)                                                                                        \
    X(V, 2)                                                                                        \
    X(V, 3) X(V, 4) X(V, 5) X(V, 6) X(V, 7) X(V, 8) X(V, 9) X(V, 10) X(V, 11) X(V, 12) X(V, 13)
#define START(V, n) "vbroadcastss %1, %%" V #n "\n"
#define CHAIN(V, n) "vfmadd213ps %%" V "14, %%" V "14, %%" V #n "\n"
#define LOOP(V)                                                                                    \
    __asm__ volatile(TIMES_14(START, V) "vbroadcastss %2, %%" V "14\n"                             \
                                        "1:\n" TIMES_14(CHAIN, V) "sub $1, %0\n"                   \
                                                                  "jnz 1b\n"                       \
                                                                  "vzeroupper\n"                   \
                     : "+r"(steps)                                                                 \
                     : "m"(one), "m"(half)                                                         \
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",     \
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "cc")
#if defined(HAS_TILES)
    if (kind_measured == PEAK_TILES)
        return peak_tiles();
#endif
    if (kind_measured == PEAK_512) {
        LOOP("zmm");
        return 14.0 * 16 * 2 * PEAK_STEPS;
    }
    LOOP("ymm");
    return 14.0 * 8 * 2 * PEAK_STEPS;
#elif defined(__aarch64__)
    long steps = PEAK_STEPS;
    __asm__ volatile("fmov v16.4s, #1.0\n"
                     "fmov v17.4s, #0.5\n"
#define START(n) "fmov v" #n ".4s, #1.0\n"
#define CHAIN(n) "fmla v" #n ".4s, v16.4s, v17.4s\n" /* x = x + 0.5 */
                     START(0) START(1) START(2) START(3) START(4) START(5) START(6) START(7)
                         START(8) START(9) START(10) START(11) START(12) START(13) START(14)
                             START(15) "1:\n" CHAIN(0) CHAIN(1) CHAIN(2) CHAIN(3) CHAIN(4) CHAIN(5)
                                 CHAIN(6) CHAIN(7) CHAIN(8) CHAIN(9) CHAIN(10) CHAIN(11) CHAIN(12)
                                     CHAIN(13) CHAIN(14) CHAIN(15) "subs %0, %0, #1\n"
                                                                   "b.ne 1b\n"
                     : "+r"(steps)
                     :
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11",
                       "v12", "v13", "v14", "v15", "v16", "v17", "cc");
    return 16.0 * 4 * 2 * PEAK_STEPS;
#else
    return 0;
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

/* A copy of the library: the engine reads its environment once, so each setting has its own. */
static void *open_copy(const char *path)
{
    char copy[] = "/tmp/engine-XXXXXX.so", buffer[1 << 16];
    int to = mkstemps(copy, 3);
    FILE *from = fopen(path, "rb");
    if (to < 0 || !from) {
        perror(path);
        exit(2);
    }
    for (size_t got; (got = fread(buffer, 1, sizeof buffer, from)) > 0;)
        if (write(to, buffer, got) != (ssize_t)got)
            exit(2);
    fclose(from);
    close(to);
    void *library = dlopen(copy, RTLD_NOW);
    unlink(copy);
    return library;
}

static peak_kind peak_of(const char *isa)
{
    return !strncmp(isa, "amx", 3) ? PEAK_TILES : !strncmp(isa, "avx512", 6) ? PEAK_512 : PEAK_256;
}

/* Opens the case's engine; returns the threads that it would use. */
static unsigned open_engine(bench_case *c)
{
    mfa_error_t (*create)(mfa_context_t *), (*describe)(char *, size_t);
    char text[256], isa[16] = "";
    if (c->isa[0])
        setenv("QWEN_MFA_ISA", c->isa, 1);
    void *library = open_copy(c->path);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    *(void **)&create = dlsym(library, "mfa_create_context");
    *(void **)&describe = dlsym(library, "mfa_portable_describe");
    *(void **)&c->attention = dlsym(library, "mfa_portable_attention");
    if (!create || !describe || !c->attention || create(&c->context) ||
        describe(text, sizeof text)) {
        fprintf(stderr, "%s is no portable engine, or its environment is wrong\n", c->path);
        exit(2);
    }
    if (c->isa[0])
        unsetenv("QWEN_MFA_ISA");
    const char *name = strstr(text, c->precision == MFA_PRECISION_BF16 ? "bf16=" : "isa=");
    if (!name)
        name = strstr(text, "isa=");
    sscanf(strchr(name, '=') + 1, "%15[^ ]", isa);
    c->peak_of = peak_of(isa);
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
            snprintf(c->path, sizeof c->path, "%s", value);
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
                      : !strcmp(value, "one")  ? 4
                                               : 0;
        else if (!strcmp(item, "data"))
            for (c->data = 0; c->data < DATA_COUNT && strcmp(DATA[c->data], value); c->data++)
                ;
        else {
            fprintf(stderr, "unknown key '%s'\n", item);
            exit(2);
        }
    }
    c->hkv = c->hkv ? c->hkv : c->h;
    c->dv = c->dv ? c->dv : c->d;
    c->keep = c->keep ? c->keep : c->skv;
    if (c->data == DATA_COUNT || (c->data && c->precision == MFA_PRECISION_FP16)) {
        fprintf(stderr, "%s: no such data\n", text);
        exit(2);
    }
    if (c->cpu_time && c->threads != 1) {
        fprintf(stderr, "clock=cpu needs threads=1\n");
        exit(2);
    }
}

static void put(unsigned char *data, uint64_t i, int precision, float value)
{
    if (precision == MFA_PRECISION_FP32)
        memcpy(data + 4 * i, &value, 4);
    else if (precision == MFA_PRECISION_BF16)
        memcpy(data + 2 * i, (unsigned char *)&value + 2, 2);
}

/* What real inputs may hold, besides numbers that are all alike. */
static void disturb(bench_case *c, unsigned char *q, unsigned char *k)
{
    const uint64_t queries = (uint64_t)c->b * c->h * c->sq, keys = (uint64_t)c->b * c->hkv * c->skv;
    uint64_t state = 88172645463325252u;
    for (uint64_t i = 0; c->data == SPREAD && i < queries * c->d; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        put(q, i, c->precision, 80.0f * ((float)(state >> 40) / (1 << 23) - 1.0f));
    }
    for (uint64_t i = 0; c->data == RISING && i < queries; i++)
        put(q, i * c->d, c->precision, 16.0f);
    for (uint64_t i = 0; c->data == RISING && i < keys; i++)
        put(k, i * c->d, c->precision, (float)(i % c->skv));
    for (uint64_t i = 0; c->data >= INFINITE && i < keys; i += 97)
        put(k, i * c->d, c->precision, c->data == INFINITE ? (float)INFINITY : (float)NAN);
}

static void *filled(uint64_t count, int precision)
{
    uint64_t state = 88172645463325252u;
    size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    unsigned char *data = malloc(count * size);
    for (uint64_t i = 0; i < count; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        float value = (float)(state >> 40) / (1 << 23) - 1.0f;
        put(data, i, precision, value);
        if (precision == MFA_PRECISION_FP16) {
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
    disturb(c, (unsigned char *)(uintptr_t)a->q, (unsigned char *)(uintptr_t)a->k);
    lay_out(a->q_strides, c, c->h, c->sq, c->d);
    lay_out(a->k_strides, c, c->hkv, c->skv, c->d);
    lay_out(a->v_strides, c, c->hkv, c->skv, c->dv);
    lay_out(a->out_strides, c, c->h, c->sq, c->dv);
    a->input_precision = a->output_precision = c->precision;
    a->scale = 0.0883883f;
    a->causal = c->causal;
    a->max_threads = c->threads;
    if (c->mask) {
        uint64_t count = (c->mask >= 3 ? c->sq : 1) * (uint64_t)c->skv;
        float *bias = malloc(count * 4);
        unsigned char *keep = malloc(count);
        for (uint64_t i = 0; i < count; i++) {
            keep[i] = i % c->skv < c->keep;
            bias[i] = c->mask == 3   ? (float)(i % 7) * 0.1f
                      : c->mask == 4 ? (i % c->skv == i / c->skv * 7 % c->skv ? 0.0f : -INFINITY)
                      : keep[i]      ? 0.0f
                                     : -1e9f;
        }
        a->mask = c->mask == 1 ? (void *)keep : (void *)bias;
        a->mask_bytes = c->mask == 1 ? count : count * 4;
        a->mask_type = c->mask == 1 ? MFA_MASK_TYPE_BOOL : MFA_MASK_TYPE_ADDITIVE;
        a->mask_scalar_type = c->mask == 1 ? MFA_MASK_SCALAR_BYTE : MFA_MASK_SCALAR_FP32;
        a->mask_strides[3] = 1;
        a->mask_strides[2] = c->mask >= 3 ? c->skv : 0;
    }
}

static double run_case(const bench_case *c)
{
    double start = now();
    mfa_error_t error = c->attention(c->context, &c->args);
    double seconds = now() - start;
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
    int rounds = atoi(argument[2]), number = count - 3, wrong = 0;
    if (rounds < 1 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "rounds: 1 to %d\n", MAX_ROUNDS);
        return 2;
    }
    for (int i = 0; i < number; i++) {
        parse(&cases[i], argument[i + 3]);
        if (!cases[i].path[0])
            snprintf(cases[i].path, sizeof cases[i].path, "%s", argument[1]);
        threads = open_engine(&cases[i]);
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
            kind_measured = cases[i].peak_of;
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
        /* Where keys are hidden, less is done than is counted. */
        bool all = !c->causal && (c->mask == 0 || c->mask == 3);
        if (all && quantile(share, rounds, 0.5) > 1.0) {
            fprintf(stderr, "%s: faster than the peak that was measured: that was not the peak\n",
                    c->name);
            wrong = 1;
        }
    }
    return wrong;
}
