/* The portable engine's own entry points. */
#include "../include/mfa_ffi.h"

#include "../driver/cpu.h"
#include "handles.h"
#include "../driver/problem.h"

#include <stdio.h>
#include <string.h>

static mfa_operand operand(const void *data, uint64_t bytes, const int64_t stride[3],
                           int32_t precision)
{
    mfa_operand x = {
        (unsigned char *)(uintptr_t)data, bytes, {stride[0], stride[1], stride[2], 1}, precision};
    return x;
}

/* Nothing beyond the struct that this library knows is read: its size has to be exactly that. */
static bool known_struct(const mfa_portable_args_t *args)
{
    uint32_t bytes;
    memcpy(&bytes, &args->struct_bytes, sizeof bytes);
    return bytes == sizeof *args;
}

mfa_error_t mfa_portable_attention(mfa_context_t context, const mfa_portable_args_t *args)
{
    mfa_context_object *object = mfa_context_of(context);
    if (!object || !args || !known_struct(args))
        return MFA_ERROR_INVALID_ARGS;
    const int64_t *ms = args->mask_strides;
    mfa_problem problem = {
        .batch = args->batch,
        .heads_q = args->heads_q,
        .heads_kv = args->heads_kv,
        .seq_q = args->seq_q,
        .seq_kv = args->seq_kv,
        .head_dim = args->head_dim,
        .value_dim = args->value_dim,
        .q = operand(args->q, args->q_bytes, args->q_strides, args->input_precision),
        .k = operand(args->k, args->k_bytes, args->k_strides, args->input_precision),
        .v = operand(args->v, args->v_bytes, args->v_strides, args->input_precision),
        .out = operand(args->out, args->out_bytes, args->out_strides, args->output_precision),
        .mask = {args->mask,
                 args->mask_bytes,
                 {ms[0], ms[1], ms[2], ms[3]},
                 args->mask_type,
                 args->mask_scalar_type},
        .sinks = args->sinks,
        .scale = args->scale,
        .causal = args->causal,
        .empty_rows = args->empty_rows,
        .max_threads = args->max_threads,
    };
    return mfa_run(object, &problem);
}

mfa_error_t mfa_portable_describe(char *text, size_t size)
{
    mfa_setup setup;
    bool good = mfa_setup_read(&setup);
    char line[256];
    int length = snprintf(line, sizeof line, "abi=%d isa=%s bf16=%s threads=%u features=%s%s%s%s",
                          MFA_PORTABLE_ABI, good ? setup.kernels->name : "none",
                          good ? setup.bf16->name : "none", setup.threads, mfa_cpu_features(),
                          good ? "" : " error=\"", setup.error, good ? "" : "\"");
    if (length >= (int)sizeof line)
        length = (int)sizeof line - 1; /* cut short: 256 suffice, the header says */
    if (!text || length < 0 || (size_t)length >= size)
        return MFA_ERROR_INVALID_ARGS;
    memcpy(text, line, (size_t)length + 1);
    return MFA_SUCCESS;
}
