/*
 * A tile unit: AMX, of which tests have a stand-in. Linux is asked for permission, once per
 * process; where it refuses, there is none.
 */
#include <cpuid.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The processor has tiles, and the system saves them. */
static bool has_tiles(void)
{
    enum { OSXSAVE = 1 << 27, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, TILE_STATE = 3 << 17 };
    unsigned a, b, c, d, enabled, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE))
        return false;
    __asm__ volatile("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    return (enabled & TILE_STATE) == TILE_STATE && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           (d & AMX_BF16) && (d & AMX_TILE);
}

static bool may_use_tiles(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, of asm/prctl.h */
    return has_tiles() && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#define TILE_SHAPES_STORE(to) __asm__ volatile("sttilecfg %0" : "=m"(*(to)))
#define TILE_SHAPES_LOAD(from) __asm__ volatile("ldtilecfg %0" : : "m"(*(from)))
#define TILE_ZERO(to) __asm__ volatile("tilezero %%tmm" #to::)
#define TILE_LOAD(to, at, step)                                                                    \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #to : : "r"(at), "r"((size_t)(step)) : "memory")
#define TILE_STORE(from, at, step)                                                                 \
    __asm__ volatile("tilestored %%tmm" #from ", (%0,%1,1)"                                        \
                     :                                                                             \
                     : "r"(at), "r"((size_t)(step))                                                \
                     : "memory")
/* sums += a times b: of rows of pairs and columns of pairs. */
#define TILE_DOT(sums, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums::)
