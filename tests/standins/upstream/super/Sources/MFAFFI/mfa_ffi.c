#include "mfa_ffi.h"
