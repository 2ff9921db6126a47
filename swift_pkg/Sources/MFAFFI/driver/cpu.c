#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity */
#endif

#include "cpu.h"

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
    &mfa_kernels_avx512bf16,
    &mfa_kernels_avx512,
    &mfa_kernels_avx2,
#elif defined(__aarch64__)
    &mfa_kernels_neon,
#endif
    &mfa_kernels_generic,
};
enum { KERNEL_COUNT = sizeof all_kernels / sizeof *all_kernels };

static const mfa_kernels *fastest_usable(void)
{
    for (int i = 0; i < KERNEL_COUNT; i++)
        if (all_kernels[i]->usable())
            return all_kernels[i];
    return &mfa_kernels_generic;
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
    return mfa_kernels_avx512bf16.usable() ? "sse2,avx2,fma,f16c,avx512f,avx512bf16"
           : mfa_kernels_avx512.usable()   ? "sse2,avx2,fma,f16c,avx512f"
           : mfa_kernels_avx2.usable()     ? "sse2,avx2,fma,f16c"
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

/* The quota set on one group folder: 0 when it sets none. */
static unsigned quota_of(const char *folder)
{
    char path[PATH_MAX + 32], line[64], period_line[64];
    long long quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (read_line(path, line, sizeof line))
        return sscanf(line, "%lld %lld", &quota, &period) == 2 ? cpus_of(quota, period) : 0;
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lld", &quota) != 1)
        return 0;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (!read_line(path, period_line, sizeof period_line) ||
        sscanf(period_line, "%lld", &period) != 1)
        return 0;
    return cpus_of(quota, period);
}

static unsigned smaller_limit(unsigned a, unsigned b)
{
    return a == 0 ? b : b == 0 || a < b ? a : b;
}

/* The tightest quota from the group `path` below `top` up to `top` itself. */
static unsigned quota_along(const char *top, const char *path)
{
    char folder[PATH_MAX];
    unsigned cpus = 0;
    int length = snprintf(folder, sizeof folder, "%s%s", top, path);
    if (length < 0 || (size_t)length >= sizeof folder)
        return 0;
    for (size_t shortest = strlen(top);;) {
        cpus = smaller_limit(cpus, quota_of(folder));
        char *slash = strrchr(folder, '/');
        if (!slash || (size_t)(slash - folder) < shortest)
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

unsigned mfa_cgroup_cpus(const char *membership, const char *root)
{
    char line[PATH_MAX], top[PATH_MAX], controllers[256];
    unsigned cpus = 0;
    FILE *file = fopen(membership, "r");
    if (!file)
        return 0;
    while (fgets(line, sizeof line, file)) { /* hierarchy:controllers:path */
        line[strcspn(line, "\n")] = '\0';
        char *first = strchr(line, ':');
        char *second = first ? strchr(first + 1, ':') : NULL;
        if (!second)
            continue;
        *second = '\0';
        snprintf(controllers, sizeof controllers, "%s", first + 1);
        bool unified = controllers[0] == '\0';
        if (unified)
            snprintf(top, sizeof top, "%s", root);
        else if (lists_cpu(controllers))
            snprintf(top, sizeof top, "%s/%s", root, first + 1);
        else
            continue;
        cpus = smaller_limit(cpus, quota_along(top, second + 1));
        if (!unified) { /* the folder may carry the bare controller's name */
            snprintf(top, sizeof top, "%s/cpu", root);
            cpus = smaller_limit(cpus, quota_along(top, second + 1));
        }
    }
    fclose(file);
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

static bool threads_wanted(mfa_setup *setup)
{
    setup->threads = allowed_cpus();
    const char *text = getenv("QWEN_MFA_NUM_THREADS");
    if (!text || !*text)
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
    const char *name = getenv("QWEN_MFA_ISA");
    if (!name || !*name) {
        setup->kernels = fastest_usable();
        return true;
    }
    setup->kernels = usable_by_name(name);
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
