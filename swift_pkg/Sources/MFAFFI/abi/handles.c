/* Contexts, buffers and the small utilities of the interface. */
#include "../include/mfa_ffi.h"

#include "../driver/cpu.h"
#include "../driver/floats.h"
#include "handles.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

mfa_context_object *mfa_context_of(void *handle)
{
    mfa_context_object *context = handle;
    return context && context->magic == MFA_CONTEXT_MAGIC ? context : NULL;
}

mfa_buffer_object *mfa_buffer_of(void *handle)
{
    mfa_buffer_object *buffer = handle;
    return buffer && buffer->magic == MFA_BUFFER_MAGIC ? buffer : NULL;
}

double mfa_seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

mfa_error_t mfa_run(mfa_context_object *context, const mfa_problem *problem)
{
    const mfa_float_state before = mfa_floats_enter();
    const double start = mfa_seconds_now();
    mfa_error_t error = mfa_engine_run(problem, &context->workspace);
    if (error == MFA_SUCCESS)
        atomic_store(&context->seconds, mfa_seconds_now() - start);
    mfa_floats_leave(before);
    return error;
}

mfa_error_t mfa_create_context(mfa_context_t *context)
{
    mfa_setup setup;
    if (!context || !mfa_setup_read(&setup))
        return MFA_ERROR_INVALID_ARGS;
    mfa_context_object *object = malloc(sizeof *object);
    if (!object)
        return MFA_ERROR_MEMORY_ALLOCATION;
    object->magic = MFA_CONTEXT_MAGIC;
    mfa_workspace_init(&object->workspace);
    atomic_init(&object->seconds, 0.0);
    *context = object;
    return MFA_SUCCESS;
}

void mfa_destroy_context(mfa_context_t context)
{
    mfa_context_object *object = mfa_context_of(context);
    if (object) {
        object->magic = 0;
        mfa_workspace_free(&object->workspace);
        free(object);
    }
}

static mfa_buffer_object *new_buffer(void *data, size_t bytes, bool owned)
{
    mfa_buffer_object *object = calloc(1, sizeof *object);
    if (object) {
        object->magic = MFA_BUFFER_MAGIC;
        object->data = data;
        object->bytes = bytes;
        object->owned = owned;
    }
    return object;
}

mfa_error_t mfa_create_buffer(mfa_context_t context, size_t size_bytes, mfa_buffer_t *buffer)
{
    if (!mfa_context_of(context) || !buffer || size_bytes == 0)
        return MFA_ERROR_INVALID_ARGS;
    if (size_bytes > PTRDIFF_MAX - 64)
        return MFA_ERROR_MEMORY_ALLOCATION;
    void *data = NULL;
    if (posix_memalign(&data, 64, size_bytes) != 0)
        return MFA_ERROR_MEMORY_ALLOCATION;
    mfa_buffer_object *object = new_buffer(data, size_bytes, true);
    if (!object) {
        free(data);
        return MFA_ERROR_MEMORY_ALLOCATION;
    }
    memset(data, 0, size_bytes);
    *buffer = object;
    return MFA_SUCCESS;
}

mfa_error_t mfa_buffer_from_ptr(mfa_context_t context, void *data_ptr, size_t size_bytes,
                                mfa_buffer_t *buffer)
{
    if (!mfa_context_of(context) || !data_ptr || size_bytes == 0 || !buffer)
        return MFA_ERROR_INVALID_ARGS;
    mfa_buffer_object *object = new_buffer(data_ptr, size_bytes, false);
    if (!object)
        return MFA_ERROR_MEMORY_ALLOCATION;
    *buffer = object;
    return MFA_SUCCESS;
}

mfa_error_t mfa_buffer_from_ptr_with_strides(mfa_context_t context, void *data_ptr,
                                             size_t size_bytes, const int64_t *shape,
                                             const int64_t *strides, uint32_t ndim,
                                             mfa_buffer_t *buffer)
{
    if (!shape || !strides || ndim < 1 || ndim > 4)
        return MFA_ERROR_INVALID_ARGS;
    for (uint32_t axis = 0; axis < ndim; axis++)
        if (shape[axis] < 1 || shape[axis] > UINT32_MAX || strides[axis] < 0)
            return MFA_ERROR_INVALID_ARGS;
    mfa_buffer_t made = NULL;
    mfa_error_t error = mfa_buffer_from_ptr(context, data_ptr, size_bytes, buffer ? &made : NULL);
    if (error != MFA_SUCCESS)
        return error;
    mfa_buffer_object *object = made;
    object->strided = true;
    for (uint32_t axis = 0; axis < 4; axis++) {
        bool given = axis + ndim >= 4;
        object->shape[axis] = given ? shape[axis + ndim - 4] : 1;
        object->stride[axis] = given ? strides[axis + ndim - 4] : 0;
    }
    *buffer = object;
    return MFA_SUCCESS;
}

void *mfa_buffer_contents(mfa_buffer_t buffer)
{
    mfa_buffer_object *object = mfa_buffer_of(buffer);
    return object ? object->data : NULL;
}

void mfa_destroy_buffer(mfa_buffer_t buffer)
{
    mfa_buffer_object *object = mfa_buffer_of(buffer);
    if (object) {
        object->magic = 0;
        if (object->owned)
            free(object->data);
        free(object);
    }
}

const char *mfa_error_string(mfa_error_t error)
{
    static const char *const text[] = {
        "success",
        "invalid arguments",
        "memory allocation failed",
        "not supported: needs a Metal device, or is not part of the portable engine",
        "kernel compilation failed",
        "execution failed",
    };
    bool known = error >= 0 && (size_t)error < sizeof text / sizeof *text;
    return strdup(known ? text[error] : "unknown error code");
}

bool mfa_is_device_supported(void) { return true; }

void mfa_get_version(int *major, int *minor, int *patch)
{
    if (major)
        *major = 1;
    if (minor)
        *minor = 0;
    if (patch)
        *patch = 0;
}

double mfa_get_gpu_latency(mfa_context_t context)
{
    mfa_context_object *object = mfa_context_of(context);
    return object ? atomic_load(&object->seconds) : 0.0;
}
