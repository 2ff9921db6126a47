#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity */
#endif

#include "cpu.h"

#include "../include/mfa_ffi.h"
#include "fastest.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

/* ---- instruction sets ---- */

static const mfa_kernels *const all_kernels[] = {
#if defined(__x86_64__)
    &mfa_kernels_amx,     &mfa_kernels_avx512, &mfa_kernels_avx512bf16, &mfa_kernels_avx2,
#elif defined(__aarch64__)
    &mfa_kernels_neon,
#endif
    &mfa_kernels_generic,
};
enum { KERNEL_COUNT = sizeof all_kernels / sizeof *all_kernels };

/*
 * What is best is measured, once per process and precision; the order above is that of preference.
 * Plain C is for machines that have nothing else.
 */
static const mfa_kernels *fastest_for(int precision)
{
    const mfa_kernels *usable[KERNEL_COUNT];
    unsigned count = 0;
    for (int i = 0; i < KERNEL_COUNT; i++) {
        const mfa_kernels *k = all_kernels[i];
        /* These are about BF16, and otherwise as AVX-512 is. */
        const bool same = precision != MFA_PRECISION_BF16 && (k->tiles || k->pairs);
        if (!same && k->usable() && (count == 0 || k != &mfa_kernels_generic))
            usable[count++] = k;
    }
    return mfa_fastest(usable, count, precision);
}

static const mfa_kernels *fastest, *fastest_bf16;
static pthread_once_t fastest_once = PTHREAD_ONCE_INIT;

static void find_fastest(void)
{
    fastest = fastest_for(MFA_PRECISION_FP32);
    fastest_bf16 = fastest_for(MFA_PRECISION_BF16);
}

static const mfa_kernels *usable_by_name(const char *name)
{
    for (int i = 0; i < KERNEL_COUNT; i++)
        if (strcmp(all_kernels[i]->name, name) == 0 && all_kernels[i]->usable())
            return all_kernels[i];
    return NULL;
}

static void list_usable(char *text, size_t size)
{
    text[0] = '\0';
    for (int i = 0; i < KERNEL_COUNT; i++) {
        size_t used = strlen(text);
        if (all_kernels[i]->usable())
            snprintf(text + used, size - used, "%s%s", used ? "," : "", all_kernels[i]->name);
    }
}

const char *mfa_cpu_features(void)
{
#if defined(__x86_64__)
    return mfa_kernels_amx.usable()          ? "sse2,avx2,fma,f16c,avx512f,avx512bf16,amx_bf16"
           : mfa_kernels_avx512bf16.usable() ? "sse2,avx2,fma,f16c,avx512f,avx512bf16"
           : mfa_kernels_avx512.usable()     ? "sse2,avx2,fma,f16c,avx512f"
           : mfa_kernels_avx2.usable()       ? "sse2,avx2,fma,f16c"
                                             : "sse2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "none";
#endif
}

/* ---- cgroup quota ---- */

static bool read_line(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    bool read = fgets(line, size, file) != NULL;
    fclose(file);
    return read;
}

static unsigned cpus_of(long long quota, long long period)
{
    if (quota <= 0 || period <= 0)
        return 0;
    long long cpus = quota / period;
    return cpus < 1 ? 1 : cpus > MFA_MAX_THREADS ? MFA_MAX_THREADS : (unsigned)cpus;
}

/* Paths are long and threads' stacks may be small: one allocation holds them all. */
typedef struct {
    char line[PATH_MAX], top[PATH_MAX], folder[PATH_MAX], file[PATH_MAX + 32];
} path_buffers;

/* The quota set on one group folder: 0 when it sets none. */
static unsigned quota_of(path_buffers *b)
{
    char line[64], period_line[64];
    long long quota, period;
    snprintf(b->file, sizeof b->file, "%s/cpu.max", b->folder);
    if (read_line(b->file, line, sizeof line))
        return sscanf(line, "%lld %lld", &quota, &period) == 2 ? cpus_of(quota, period) : 0;
    snprintf(b->file, sizeof b->file, "%s/cpu.cfs_quota_us", b->folder);
    if (!read_line(b->file, line, sizeof line) || sscanf(line, "%lld", &quota) != 1)
        return 0;
    snprintf(b->file, sizeof b->file, "%s/cpu.cfs_period_us", b->folder);
    if (!read_line(b->file, period_line, sizeof period_line) ||
        sscanf(period_line, "%lld", &period) != 1)
        return 0;
    return cpus_of(quota, period);
}

static unsigned smaller_limit(unsigned a, unsigned b)
{
    return a == 0 ? b : b == 0 || a < b ? a : b;
}

/* The tightest quota from the group `path` below the top up to the top itself. */
static unsigned quota_along(path_buffers *b, const char *path)
{
    unsigned cpus = 0;
    int length = snprintf(b->folder, sizeof b->folder, "%s%s", b->top, path);
    if (length < 0 || (size_t)length >= sizeof b->folder)
        return 0;
    for (size_t shortest = strlen(b->top);;) {
        cpus = smaller_limit(cpus, quota_of(b));
        char *slash = strrchr(b->folder, '/');
        if (!slash || (size_t)(slash - b->folder) < shortest)
            return cpus;
        *slash = '\0';
    }
}

static bool lists_cpu(char *controllers)
{
    char *rest = NULL;
    for (char *name = strtok_r(controllers, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
        if (strcmp(name, "cpu") == 0)
            return true;
    return false;
}

/* The quotas that one line, hierarchy:controllers:path, leads to. */
static unsigned quota_of_line(path_buffers *b, const char *root)
{
    char controllers[256];
    b->line[strcspn(b->line, "\n")] = '\0';
    char *first = strchr(b->line, ':');
    char *second = first ? strchr(first + 1, ':') : NULL;
    if (!second)
        return 0;
    *second = '\0';
    snprintf(controllers, sizeof controllers, "%s", first + 1);
    if (controllers[0] == '\0') { /* the unified hierarchy */
        snprintf(b->top, sizeof b->top, "%s", root);
        return quota_along(b, second + 1);
    }
    if (!lists_cpu(controllers))
        return 0;
    snprintf(b->top, sizeof b->top, "%s/%s", root, first + 1);
    unsigned cpus = quota_along(b, second + 1);
    snprintf(b->top, sizeof b->top, "%s/cpu", root); /* it may carry the bare controller's name */
    return smaller_limit(cpus, quota_along(b, second + 1));
}

unsigned mfa_cgroup_cpus(const char *membership, const char *root)
{
    unsigned cpus = 0;
    path_buffers *b = malloc(sizeof *b);
    FILE *file = b ? fopen(membership, "r") : NULL;
    while (file && fgets(b->line, sizeof b->line, file))
        cpus = smaller_limit(cpus, quota_of_line(b, root));
    if (file)
        fclose(file);
    free(b);
    return cpus;
}

/* ---- threads ---- */

static unsigned quota_cpus; /* read once: files are slow beside a small attention */
static pthread_once_t quota_once = PTHREAD_ONCE_INIT;

static void read_quota(void)
{
    quota_cpus = mfa_cgroup_cpus("/proc/self/cgroup", "/sys/fs/cgroup");
}

static unsigned allowed_cpus(void)
{
    long cpus = 0;
#if defined(__linux__)
    cpu_set_t set; /* prefetched for on each call: affinity may change; this costs no file access */
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        cpus = CPU_COUNT(&set);
#endif
    if (cpus < 1)
        cpus = sysconf(_SC_NPROCESSORS_ONLN);
    pthread_once(&quota_once, read_quota);
    cpus = cpus < 1 ? 1 : cpus > MFA_MAX_THREADS ? MFA_MAX_THREADS : cpus;
    return smaller_limit((unsigned)cpus, quota_cpus);
}

/*
 * What the environment asks for, read once, when the library is loaded: getenv beside a thread that
 * changes the environment can crash, and calls come from threads that hold no lock of the host.
 */
static struct {
    char threads[32], isa[32];
} environment;

static void read_variable(const char *name, char *text, size_t size)
{
    const char *value = getenv(name);
    snprintf(text, size, "%s", value ? value : "");
}

__attribute__((constructor)) static void read_environment(void)
{
    read_variable("QWEN_MFA_NUM_THREADS", environment.threads, sizeof environment.threads);
    read_variable("QWEN_MFA_ISA", environment.isa, sizeof environment.isa);
}

static bool threads_wanted(mfa_setup *setup)
{
    setup->threads = allowed_cpus();
    const char *text = environment.threads;
    if (!*text)
        return true;
    char *end;
    errno = 0;
    long wanted = strtol(text, &end, 10);
    if (*end || errno || wanted < 1 || text[0] < '0' || text[0] > '9') {
        snprintf(setup->error, sizeof setup->error,
                 "QWEN_MFA_NUM_THREADS=%.20s is not a whole number above 0: change or unset it",
                 text);
        return false;
    }
    if ((unsigned long)wanted < setup->threads)
        setup->threads = (unsigned)wanted;
    return true;
}

static bool kernels_wanted(mfa_setup *setup)
{
    const char *name = environment.isa;
    if (!*name) {
        pthread_once(&fastest_once, find_fastest);
        setup->kernels = fastest;
        setup->bf16 = fastest_bf16;
        return true;
    }
    setup->kernels = setup->bf16 = usable_by_name(name);
    if (setup->kernels)
        return true;
    char usable[64];
    list_usable(usable, sizeof usable);
    snprintf(setup->error, sizeof setup->error,
             "QWEN_MFA_ISA=%.20s cannot be used on this machine: set one of %s, or unset it", name,
             usable);
    return false;
}

bool mfa_setup_read(mfa_setup *setup)
{
    setup->kernels = NULL;
    setup->error[0] = '\0';
    if (threads_wanted(setup) && kernels_wanted(setup))
        return true;
    setup->kernels = NULL;
    return false;
}
