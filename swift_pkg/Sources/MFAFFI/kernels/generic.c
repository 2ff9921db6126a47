/* Plain C over the compilers' vector extension: runs wherever the library does. Tiles of 4 x 8. */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../simd/scalar.h"

static bool usable(void) { return true; }

#define MFA_ISA generic
#define MFA_ISA_NAME "generic"
#include "../simd/generic.h"
#include "template.h"
