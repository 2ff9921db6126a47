#include "fastest.h"

#include "../include/mfa_ffi.h"
#include "../simd/scalar.h"
#include "engine.h"
#include "floats.h"

#include <stdlib.h>
#include <time.h>

enum { QUERIES = 128, KEYS = 256, DIM = 128, ROUNDS = 5 };

static const double CLEARLY = 0.9; /* of the time of the set that is preferred */

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static mfa_operand rows(unsigned char *data, size_t first, size_t count, int precision)
{
    const size_t size = mfa_precision_size(precision);
    mfa_operand x = {data + first * DIM * size, count * DIM * size, {0, 0, DIM, 1}, precision};
    return x;
}

/* Queries, keys, values and results, one after the other. */
static mfa_problem problem_in(unsigned char *data, int precision)
{
    mfa_problem p = {
        .batch = 1,
        .heads_q = 1,
        .heads_kv = 1,
        .seq_q = QUERIES,
        .seq_kv = KEYS,
        .head_dim = DIM,
        .value_dim = DIM,
        .q = rows(data, 0, QUERIES, precision),
        .k = rows(data, QUERIES, KEYS, precision),
        .v = rows(data, QUERIES + KEYS, KEYS, precision),
        .out = rows(data, QUERIES + 2 * KEYS, QUERIES, precision),
        .scale = 0.1f,
        .max_threads = 1,
    };
    return p;
}

static void fill(unsigned char *data, int precision)
{
    uint32_t state = 1;
    for (size_t i = 0; i < (size_t)(QUERIES + 2 * KEYS) * DIM; i++) {
        state = state * 1664525u + 1013904223u;
        const float value = (float)(state >> 8) * 0x1p-23f - 1.0f;
        const uint16_t half = mfa_to_bf16(value);
        if (precision == MFA_PRECISION_FP32)
            memcpy(data + 4 * i, &value, sizeof value);
        else
            memcpy(data + 2 * i, &half, sizeof half);
    }
}

const mfa_kernels *mfa_fastest(const mfa_kernels *const candidates[], unsigned count, int precision)
{
    double best[MFA_MAX_CANDIDATES];
    unsigned char *data = count > 1 ? malloc((size_t)(2 * QUERIES + 2 * KEYS) * DIM * 4) : NULL;
    if (!data)
        return candidates[0];
    fill(data, precision);
    const mfa_problem problem = problem_in(data, precision);
    const mfa_float_state before = mfa_floats_enter();
    mfa_workspace workspace;
    mfa_workspace_init(&workspace);
    /* Interleaved, and of each the shortest time: what disturbs only makes it longer. */
    for (unsigned round = 0; round < ROUNDS; round++)
        for (unsigned i = 0; i < count; i++) {
            const double start = seconds_now();
            const int error = mfa_engine_run_alone(&problem, candidates[i], &workspace);
            const double seconds = error ? 1e9 : seconds_now() - start;
            if (round == 0 || seconds < best[i])
                best[i] = seconds;
        }
    mfa_workspace_free(&workspace);
    mfa_floats_leave(before);
    free(data);
    unsigned chosen = 0;
    for (unsigned i = 1; i < count; i++)
        if (best[i] < CLEARLY * best[0] && best[i] < best[chosen])
            chosen = i;
    return candidates[chosen];
}
