/*
 * A STAND-IN for a faulty native library: the portable engine behind one entry point that can be
 * made to fail. QWEN_MFA_FAULT names the fault; without it, the engine is passed through. Each
 * fault is one that attention kernels and drivers have been seen to have.
 *
 * The engine is compiled with its entry point renamed to faulty_passed_on.
 */
#include "mfa_ffi.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

mfa_error_t faulty_passed_on(mfa_context_t context, const mfa_portable_args_t *args);

enum { BOOL = 1, ADDITIVE = 2 };
enum { MAX_SEEN = 4096 };

static const char *fault_of_now;

static int is(const char *fault) { return fault_of_now && strcmp(fault_of_now, fault) == 0; }

static size_t size_of(int32_t precision) { return precision == 2 ? 4 : 2; }

static unsigned char *out_row(const mfa_portable_args_t *a, size_t b, size_t h, size_t row)
{
    size_t at = b * (size_t)a->out_strides[0] + h * (size_t)a->out_strides[1] +
                row * (size_t)a->out_strides[2];
    return (unsigned char *)a->out + at * size_of(a->output_precision);
}

static void each_row(const mfa_portable_args_t *a,
                     void (*act)(const mfa_portable_args_t *, size_t h, size_t row,
                                 unsigned char *data, size_t bytes))
{
    size_t bytes = a->value_dim * size_of(a->output_precision);
    for (size_t b = 0; b < a->batch; b++)
        for (size_t h = 0; h < a->heads_q; h++)
            for (size_t row = 0; row < a->seq_q; row++)
                act(a, h, row, out_row(a, b, h, row), bytes);
}

/* ---- faults after the computation ---- */

static void keep_first_head(const mfa_portable_args_t *a, size_t h, size_t row, unsigned char *data,
                            size_t bytes)
{
    (void)a, (void)row;
    if (h > 0)
        memset(data, 0, bytes);
}

static void lose_last_row(const mfa_portable_args_t *a, size_t h, size_t row, unsigned char *data,
                          size_t bytes)
{
    (void)h;
    if (row + 1 == a->seq_q && a->seq_q > 500)
        memset(data, 0, bytes);
}

static void poison_last_row(const mfa_portable_args_t *a, size_t h, size_t row, unsigned char *data,
                            size_t bytes)
{
    (void)h;
    if (row + 1 == a->seq_q)
        memset(data, 0xFF, bytes); /* NaN in every format */
}

static void drop_low_bits(const mfa_portable_args_t *a, size_t h, size_t row, unsigned char *data,
                          size_t bytes)
{
    (void)h, (void)row;
    /* Half the precision of the output's format. */
    for (size_t i = 0; i < bytes; i += size_of(a->output_precision)) {
        data[i] = 0;
        if (a->output_precision == 2)
            data[i + 1] &= 0xF0;
    }
}

/* ---- faults before it ---- */

static float element(const void *data, size_t at, int32_t scalar)
{
    uint32_t bits;
    if (scalar == 3)
        return ((const float *)data)[at];
    if (scalar == 1)
        return (float)((const _Float16 *)data)[at];
    bits = (uint32_t)((const uint16_t *)data)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* A dense copy of the mask, [batch, heads, rows, keys], with the fault in it. */
static void *wrong_mask(mfa_portable_args_t *a)
{
    size_t size[4] = {a->batch, a->heads_q, a->seq_q, a->seq_kv}, count = 1;
    for (int i = 0; i < 4; i++)
        count *= size[i];
    int is_bool = a->mask_type == BOOL;
    size_t bytes = count * (is_bool ? 1 : 4);
    unsigned char *copy = malloc(bytes);
    for (size_t i = 0; i < count; i++) {
        size_t place[4], rest = i, at = 0;
        for (int axis = 3; axis >= 0; axis--) {
            place[axis] = rest % size[axis];
            rest /= size[axis];
            at += place[axis] * (size_t)a->mask_strides[axis];
        }
        if (is_bool)
            copy[i] = !((const unsigned char *)a->mask)[at];
        else
            ((float *)copy)[i] = element(a->mask, at, a->mask_scalar_type) * a->scale;
    }
    a->mask = copy;
    a->mask_bytes = bytes;
    a->mask_scalar_type = is_bool ? a->mask_scalar_type : 3;
    a->mask_strides[3] = 1;
    for (int i = 2; i >= 0; i--)
        a->mask_strides[i] = a->mask_strides[i + 1] * (int64_t)size[i + 1];
    return copy;
}

static void dense(int64_t strides[3], uint32_t heads, uint32_t rows, uint32_t dim)
{
    strides[2] = dim;
    strides[1] = (int64_t)rows * dim;
    strides[0] = strides[1] * heads;
}

/* ---- memory of earlier calls ---- */

static uint32_t seen[MAX_SEEN][2];
static size_t seen_count;
static unsigned char *kept;
static size_t kept_bytes;

static int is_first_of_its_lengths(const mfa_portable_args_t *a)
{
    for (size_t i = 0; i < seen_count; i++)
        if (seen[i][0] == a->seq_q && seen[i][1] == a->seq_kv)
            return 0;
    if (seen_count < MAX_SEEN) {
        seen[seen_count][0] = a->seq_q;
        seen[seen_count++][1] = a->seq_kv;
    }
    return 1;
}

static void give_what_was_kept(const mfa_portable_args_t *a)
{
    if (kept && kept_bytes == a->out_bytes) {
        memcpy(a->out, kept, kept_bytes);
        return;
    }
    free(kept);
    kept = malloc(a->out_bytes);
    kept_bytes = a->out_bytes;
    memcpy(kept, a->out, kept_bytes);
}

static void after(const mfa_portable_args_t *a)
{
    if (is("first-head-only"))
        each_row(a, keep_first_head);
    else if (is("last-row-of-long-inputs"))
        each_row(a, lose_last_row);
    else if (is("nan"))
        each_row(a, poison_last_row);
    else if (is("half-precision"))
        each_row(a, drop_low_bits);
    else if (is("stale"))
        give_what_was_kept(a);
    else if (is("first-call") && is_first_of_its_lengths(a))
        each_row(a, drop_low_bits);
    else if (is("output-overrun"))
        memset((unsigned char *)a->out + a->out_bytes, 0, 64);
    else if (is("inputs-changed"))
        memset((void *)(uintptr_t)a->k, 0, 16);
    else if (is("slow"))
        usleep(60000);
}

mfa_error_t mfa_portable_attention(mfa_context_t context, const mfa_portable_args_t *args)
{
    mfa_portable_args_t a = *args;
    void *mask = NULL;
    fault_of_now = getenv("QWEN_MFA_FAULT");
    if (is("abort"))
        abort();
    while (is("hang"))
        sleep(1);
    if (is("device-lost"))
        return 5;
    if (is("causal-corner") && a.causal == 2)
        a.causal = 1;
    if (is("k-offset"))
        dense(a.k_strides, a.heads_kv, a.seq_q, a.head_dim);
    if (is("strides-ignored"))
        dense(a.q_strides, a.heads_q, a.seq_q, a.head_dim);
    if (is("kv-heads-not-shared")) /* grouped-query attention: keys of the wrong head */
        a.k_strides[1] = 0;
    if (is("scale-baked-in")) {
        static float first;
        a.scale = first = first == 0.0f ? a.scale : first;
    }
    if ((is("mask-scaled") && a.mask_type == ADDITIVE) ||
        (is("mask-inverted") && a.mask_type == BOOL))
        mask = wrong_mask(&a);
    mfa_error_t error = faulty_passed_on(context, &a);
    free(mask);
    if (error == 0)
        after(args);
    return error;
}
