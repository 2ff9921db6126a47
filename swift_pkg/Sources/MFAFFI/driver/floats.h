/*
 * The floating-point state that the kernels count on, whatever the caller's is: nearest rounding,
 * no traps, and denormals taken for zero. Weights far below a row's largest are denormal, each
 * costs Intel processors over a hundred cycles, and none can change a result.
 */
#ifndef MFA_FLOATS_H
#define MFA_FLOATS_H

#include <stdint.h>

typedef struct {
    uint64_t control, flags;
} mfa_float_state;

/* Sets this thread's state; returns the one before, for mfa_floats_leave to put back exactly. */
static inline mfa_float_state mfa_floats_enter(void)
{
    mfa_float_state before = {0, 0};
#if defined(__x86_64__)
    enum { TRAPS_MASKED = 0x1f80, FLUSH_TO_ZERO = 0x8000, DENORMALS_ARE_ZERO = 0x40 };
    before.control = __builtin_ia32_stmxcsr(); /* the flags are part of it */
    __builtin_ia32_ldmxcsr(TRAPS_MASKED | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
#elif defined(__aarch64__)
    const uint64_t flush_to_zero = 1 << 24;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before.control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(before.flags));
    __asm__ volatile("msr fpcr, %0" : : "r"(flush_to_zero));
#endif
    return before;
}

static inline void mfa_floats_leave(mfa_float_state before)
{
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr((unsigned)before.control);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(before.control));
    __asm__ volatile("msr fpsr, %0" : : "r"(before.flags));
#else
    (void)before;
#endif
}

#endif
