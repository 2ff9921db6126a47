/* Advanced SIMD of AArch64: tiles of 6 x 16. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static bool usable(void) { return true; /* part of every AArch64 processor */ }

#define MFA_ISA neon
#define MFA_ISA_NAME "neon"
#include "../simd/neon.h"
#include "template.h"

#else
typedef int mfa_no_neon_here; /* an empty translation unit is not ISO C */
#endif
