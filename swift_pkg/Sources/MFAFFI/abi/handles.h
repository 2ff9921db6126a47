/* What the opaque handles point to. */
#ifndef MFA_HANDLES_H
#define MFA_HANDLES_H

#include "../driver/problem.h"
#include "../driver/workspace.h"
#include "../include/mfa_ffi.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Catches handles of the wrong kind and, mostly, handles already destroyed. */
enum { MFA_CONTEXT_MAGIC = 0x4d464143, MFA_BUFFER_MAGIC = 0x4d464142 };

typedef struct {
    uint32_t magic;
    mfa_workspace workspace;
    _Atomic double seconds; /* of the last call: contexts are shared between threads */
} mfa_context_object;

typedef struct {
    uint32_t magic;
    bool owned, strided;
    void *data;
    size_t bytes;
    int64_t shape[4], stride[4]; /* only when strided; leading sizes filled with 1 */
} mfa_buffer_object;

mfa_context_object *mfa_context_of(void *handle); /* null for whatever is no context */
mfa_buffer_object *mfa_buffer_of(void *handle);   /* null for whatever is no buffer */

double mfa_seconds_now(void); /* monotonic */

/* Runs a problem with a floating-point state of our own, and keeps its time in the context. */
mfa_error_t mfa_run(mfa_context_object *context, const mfa_problem *problem);

#endif
