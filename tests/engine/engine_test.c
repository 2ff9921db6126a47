/*
 * Random problems against the reference, for every instruction set asked for.
 *
 *   engine_test random SEED COUNT [PRECISION]  the extension, all of its arguments
 *   engine_test forward SEED COUNT   the published call
 *   engine_test special              infinities, NaN, empty rows, extreme masks
 *   engine_test permission           the system refuses the tile unit's state
 *   engine_test errors               whatever must be refused, with nothing written
 *   engine_test state                the caller's rounding, flags and small stack
 *   engine_test environment NAME     variable NAME asks for what cannot be had
 *   engine_test exit                 exit while a call is under way in another thread
 *   engine_test threads              concurrent callers, fork
 *   engine_test callers SEED COUNT   concurrent callers only, COUNT calls each
 *
 * Exits 0 when all holds; prints the first failures.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* setenv */
#endif

#include "one_head.h"
#include "reference.h"

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;
static mfa_context_t context;

static void fail(const char *what, const char *detail)
{
    if (failures++ < 10)
        fprintf(stderr, "FAILED: %s: %s\n", what, detail);
}

static void expect(bool holds, const char *what)
{
    if (!holds)
        fail("expectation", what);
}

/* ---- operands ---- */

typedef struct {
    unsigned char *memory; /* exactly the bytes that the layout needs: a sanitizer sees one more */
    uint64_t bytes;
    int64_t stride[3];
} tensor;

/* A random layout: dense BHSD or BSHD, gaps, or broadcast along an axis. */
static tensor tensor_of(const uint32_t size[4], int precision, bool broadcasts)
{
    tensor t;
    int64_t gap = chance(30) ? random_below(5) : 0;
    if (chance(50)) {
        t.stride[2] = size[3] + gap;
        t.stride[1] = t.stride[2] * size[2] + (chance(20) ? random_below(9) : 0);
        t.stride[0] = t.stride[1] * size[1];
    } else {
        t.stride[1] = size[3] + gap;
        t.stride[2] = t.stride[1] * size[1];
        t.stride[0] = t.stride[2] * size[2];
    }
    for (int axis = 0; axis < 3; axis++)
        if (broadcasts && chance(8))
            t.stride[axis] = 0;
    int64_t last = size[3] - 1;
    bool empty = false;
    for (int axis = 0; axis < 3; axis++) {
        last += t.stride[axis] * ((int64_t)size[axis] - 1);
        empty |= size[axis] == 0;
    }
    t.bytes = empty ? 0 : (uint64_t)(last + 1) * element_size(precision);
    t.memory = malloc(t.bytes ? t.bytes : 1);
    return t;
}

static void fill_normal(tensor *t, int precision, double spread)
{
    for (uint64_t i = 0; i < t->bytes / element_size(precision); i++)
        write_element(t->memory, (int64_t)i, precision, spread * random_normal());
}

/* ---- one problem ---- */

typedef struct {
    mfa_portable_args_t args;
    tensor q, k, v, out, mask;
    float *sinks;
} problem;

static void random_mask(problem *p)
{
    mfa_portable_args_t *a = &p->args;
    a->mask_type = (int32_t)random_below(3);
    a->mask_scalar_type = (int32_t)random_below(4);
    if (a->mask_type == MFA_MASK_TYPE_NONE)
        return;
    const uint32_t full[4] = {a->batch, a->heads_q, a->seq_q, a->seq_kv};
    int64_t stride = 1 + (chance(20) ? 1 : 0);
    bool keys_only = chance(40);
    for (int axis = 3; axis >= 0; axis--) {
        bool broadcast = chance(25) || (keys_only && axis < 3) || full[axis] == 0;
        a->mask_strides[axis] = broadcast ? 0 : stride;
        stride *= broadcast ? 1 : full[axis];
    }
    size_t size = a->mask_scalar_type == MFA_MASK_SCALAR_BYTE   ? 1
                  : a->mask_scalar_type == MFA_MASK_SCALAR_FP32 ? 4
                                                                : 2;
    p->mask.bytes = (uint64_t)stride * size;
    p->mask.memory = malloc(p->mask.bytes);
    uint32_t removed = chance(20) ? 100 : random_below(90);
    bool only_removes = chance(30);
    for (int64_t i = 0; i < stride; i++) {
        bool keep = !chance(removed);
        double value = a->mask_type == MFA_MASK_TYPE_BOOL ? (double)keep
                       : !keep                            ? -INFINITY
                       : only_removes                     ? 0
                                                          : 2 * random_normal();
        if (size == 1)
            p->mask.memory[i] = a->mask_type == MFA_MASK_TYPE_BOOL ? keep * (1 + random_below(255))
                                                                   : (unsigned char)random_below(9);
        else
            write_element(p->mask.memory, i,
                          a->mask_scalar_type == MFA_MASK_SCALAR_FP32   ? MFA_PRECISION_FP32
                          : a->mask_scalar_type == MFA_MASK_SCALAR_FP16 ? MFA_PRECISION_FP16
                                                                        : MFA_PRECISION_BF16,
                          value);
    }
    a->mask = p->mask.memory;
    a->mask_bytes = p->mask.bytes;
}

static uint32_t random_dim(void)
{
    static const uint32_t common[] = {1, 16, 24, 32, 40, 64, 72, 80, 96, 128, 160, 256};
    if (chance(3))
        return 200 + random_below(825);
    return chance(60) ? common[random_below(12)] : 1 + random_below(140);
}

static uint32_t random_length(void)
{
    static const uint32_t most[] = {1, 4, 20, 70, 300, 700};
    return chance(3) ? 0 : 1 + random_below(most[random_below(6)]);
}

static int wanted_precision = -1; /* of inputs; any when negative */

static problem random_problem(void)
{
    problem p;
    memset(&p, 0, sizeof p);
    mfa_portable_args_t *a = &p.args;
    a->struct_bytes = sizeof *a;
    a->batch = chance(2) ? 0 : 1 + random_below(3);
    a->heads_kv = 1 + random_below(3);
    a->heads_q = a->heads_kv * (chance(60) ? 1 : 1 + random_below(4));
    a->seq_q = random_length();
    a->seq_kv = random_length();
    if (chance(25)) { /* what threads pack for each other */
        a->seq_q = 60 + random_below(80);
        a->seq_kv = 600 + random_below(300);
    }
    a->head_dim = random_dim();
    a->value_dim = chance(70) ? a->head_dim : random_dim();
    a->input_precision = (int32_t)random_below(3);
    if (wanted_precision >= 0)
        a->input_precision = wanted_precision;
    a->output_precision = (int32_t)random_below(3);
    a->scale = (float)(chance(90) ? 1 / sqrt(a->head_dim) : 0.3 * random_normal());
    a->causal = chance(60) ? MFA_CAUSAL_NONE : (int32_t)random_below(3);
    a->empty_rows = (int32_t)random_below(2);
    a->max_threads = random_below(4);
    const uint32_t q_size[4] = {a->batch, a->heads_q, a->seq_q, a->head_dim};
    const uint32_t k_size[4] = {a->batch, a->heads_kv, a->seq_kv, a->head_dim};
    const uint32_t v_size[4] = {a->batch, a->heads_kv, a->seq_kv, a->value_dim};
    const uint32_t out_size[4] = {a->batch, a->heads_q, a->seq_q, a->value_dim};
    p.q = tensor_of(q_size, a->input_precision, true);
    p.k = tensor_of(k_size, a->input_precision, true);
    p.v = tensor_of(v_size, a->input_precision, true);
    p.out = tensor_of(out_size, a->output_precision, false);
    fill_normal(&p.q, a->input_precision, 1);
    fill_normal(&p.k, a->input_precision, 1);
    fill_normal(&p.v, a->input_precision, 1);
    a->q = p.q.memory;
    a->k = p.k.memory;
    a->v = p.v.memory;
    a->out = p.out.memory;
    a->q_bytes = p.q.bytes;
    a->k_bytes = p.k.bytes;
    a->v_bytes = p.v.bytes;
    a->out_bytes = p.out.bytes;
    memcpy(a->q_strides, p.q.stride, sizeof p.q.stride);
    memcpy(a->k_strides, p.k.stride, sizeof p.k.stride);
    memcpy(a->v_strides, p.v.stride, sizeof p.v.stride);
    memcpy(a->out_strides, p.out.stride, sizeof p.out.stride);
    random_mask(&p);
    if (chance(20)) {
        p.sinks = malloc(a->heads_q * sizeof(float));
        for (uint32_t h = 0; h < a->heads_q; h++)
            p.sinks[h] = chance(10) ? -INFINITY : (float)random_normal();
        a->sinks = p.sinks;
    }
    return p;
}

static void free_problem(problem *p)
{
    free(p->q.memory);
    free(p->k.memory);
    free(p->v.memory);
    free(p->out.memory);
    free(p->mask.memory);
    free(p->sinks);
}

static void describe_problem(const mfa_portable_args_t *a, char *text, size_t size)
{
    snprintf(text, size,
             "B%u H%u/%u Sq%u Skv%u D%u Dv%u in%d out%d mask%d/%d [%lld %lld %lld %lld] causal%d "
             "empty%d threads%u sinks%d scale%g",
             a->batch, a->heads_q, a->heads_kv, a->seq_q, a->seq_kv, a->head_dim, a->value_dim,
             a->input_precision, a->output_precision, a->mask_type, a->mask_scalar_type,
             (long long)a->mask_strides[0], (long long)a->mask_strides[1],
             (long long)a->mask_strides[2], (long long)a->mask_strides[3], a->causal, a->empty_rows,
             a->max_threads, a->sinks != NULL, (double)a->scale);
}

/*
 * What VCVTPS2PH and VCVTPH2PS do to denormal halves in the kernels' floating-point state: a
 * processor keeps them (Intel's manual: FTZ and DAZ are ignored), QEMU makes them zero.
 */
#ifdef EMULATOR_FLUSHES_HALVES
#define FLUSHED_HALF 0x1p-14
#else
#define FLUSHED_HALF 0.0
#endif

static bool has_tiles(void)
{
    char text[256];
    return mfa_portable_describe(text, sizeof text) == 0 && strstr(text, "bf16=amx ");
}

static double of_tiles; /* relative error of weights that are sums of two BF16 numbers */

/* Of scores of normal numbers; the largest are a few times that. */
static double score_deviation(const mfa_portable_args_t *a)
{
    return fabs((double)a->scale) * sqrt(a->head_dim);
}

/* Rounding of the output's format, plus FP32 arithmetic on the scores. */
static bool close_to(double got, double want, int precision, double deviation)
{
    if (isnan(want) || isnan(got))
        return isnan(want) && isnan(got);
    if (isinf(want))
        return got == want;
    double rounding = precision == MFA_PRECISION_BF16   ? 1.0 / 256
                      : precision == MFA_PRECISION_FP16 ? 1.0 / 2048
                                                        : 0;
    return fabs(got - want) <= FLUSHED_HALF + 2e-5 * fmax(1, deviation / 3) + of_tiles +
                                   (4e-6 + of_tiles + 1.004 * rounding) * fabs(want);
}

enum { CANARY = 0xa5 };

/* Compares every output element, and every byte between them with the canary. */
static void check_output(const mfa_portable_args_t *a, const char *what)
{
    double *scores = malloc((a->seq_kv + 1) * sizeof *scores);
    double *row = malloc(a->value_dim * sizeof *row);
    unsigned char *rest = malloc(a->out_bytes + 1);
    const size_t size = element_size(a->output_precision);
    memcpy(rest, a->out, a->out_bytes);
    for (uint32_t b = 0; b < a->batch; b++)
        for (uint32_t h = 0; h < a->heads_q; h++)
            for (uint32_t i = 0; i < a->seq_q; i++) {
                reference_row(a, b, h, i, scores, row);
                int64_t at = b * a->out_strides[0] + h * a->out_strides[1] + i * a->out_strides[2];
                for (uint32_t d = 0; d < a->value_dim; d++) {
                    double got = read_element(a->out, at + d, a->output_precision);
                    if (!close_to(got, row[d], a->output_precision, score_deviation(a))) {
                        char text[400];
                        int used =
                            snprintf(text, sizeof text, "(%u,%u,%u,%u) got %.9g want %.9g: ", b, h,
                                     i, d, got, row[d]);
                        describe_problem(a, text + used, sizeof text - (size_t)used);
                        fail(what, text);
                        goto done;
                    }
                }
                memset(rest + (size_t)at * size, CANARY, a->value_dim * size);
            }
    for (uint64_t i = 0; i < a->out_bytes; i++)
        if (rest[i] != CANARY) {
            fail(what, "bytes between the output rows were written");
            break;
        }
done:
    free(scores);
    free(row);
    free(rest);
}

static void run_random(uint64_t seed, long count)
{
    for (long i = 0; i < count; i++) {
        random_state = seed + (uint64_t)i * 7919;
        problem p = random_problem();
        memset(p.out.memory, CANARY, p.out.bytes);
        mfa_error_t error = mfa_portable_attention(context, &p.args);
        if (error) {
            char text[400];
            describe_problem(&p.args, text, sizeof text);
            fail("refused", text);
        } else {
            check_output(&p.args, "random");
        }
        free_problem(&p);
    }
}

/* ---- the published call ---- */

/* Stores a [B, H, S, D] tensor with its last two axes exchanged, as the transpose flags mean. */
static unsigned char *transposed(const unsigned char *from, const uint32_t size[4], size_t element)
{
    size_t heads = (size_t)size[0] * size[1], rows = size[2], columns = size[3];
    unsigned char *to = malloc(heads * rows * columns * element);
    for (size_t h = 0; h < heads; h++)
        for (size_t r = 0; r < rows; r++)
            for (size_t c = 0; c < columns; c++)
                memcpy(to + ((h * columns + c) * rows + r) * element,
                       from + ((h * rows + r) * columns + c) * element, element);
    return to;
}

typedef struct {
    unsigned char *plain, *stored;
    mfa_buffer_t buffer;
    bool flipped;
} stored_operand;

static stored_operand store_operand(const uint32_t size[4], int precision, bool zero)
{
    stored_operand s;
    size_t element = element_size(precision);
    size_t count = (size_t)size[0] * size[1] * size[2] * size[3];
    s.plain = malloc(count * element);
    for (size_t i = 0; i < count; i++)
        write_element(s.plain, (int64_t)i, precision, zero ? 0 : random_normal());
    s.flipped = chance(30);
    s.stored = s.flipped ? transposed(s.plain, size, element) : malloc(count * element);
    if (!s.flipped)
        memcpy(s.stored, s.plain, count * element);
    if (chance(40)) { /* the same dense layout, given as strides */
        int64_t shape[4] = {size[0], size[1], size[s.flipped ? 3 : 2], size[s.flipped ? 2 : 3]};
        int64_t strides[4] = {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
        expect(mfa_buffer_from_ptr_with_strides(context, s.stored, count * element, shape, strides,
                                                4, &s.buffer) == 0,
               "a strided buffer");
    } else {
        expect(mfa_buffer_from_ptr(context, s.stored, count * element, &s.buffer) == 0, "a buffer");
    }
    return s;
}

static void free_operand(stored_operand *s)
{
    mfa_destroy_buffer(s->buffer);
    free(s->plain);
    free(s->stored);
}

static void dense_strides(int64_t stride[3], uint32_t heads, uint32_t rows, uint32_t columns)
{
    stride[2] = columns;
    stride[1] = (int64_t)rows * columns;
    stride[0] = stride[1] * heads;
}

static void run_forward_once(void)
{
    problem p;
    memset(&p, 0, sizeof p);
    mfa_portable_args_t *a = &p.args;
    a->batch = 1 + random_below(2);
    a->heads_q = a->heads_kv = 1 + random_below(3);
    a->seq_q = 1 + random_below(90);
    a->seq_kv = 1 + random_below(90);
    a->head_dim = a->value_dim = 1 + random_below(80);
    a->input_precision = (int32_t)random_below(3);
    a->output_precision = (int32_t)random_below(3);
    a->scale = 0.2f;
    a->causal = chance(30) ? MFA_CAUSAL_TOP_LEFT : MFA_CAUSAL_NONE;
    random_mask(&p);
    const uint32_t q_size[4] = {a->batch, a->heads_q, a->seq_q, a->head_dim};
    const uint32_t kv_size[4] = {a->batch, a->heads_q, a->seq_kv, a->head_dim};
    stored_operand q = store_operand(q_size, a->input_precision, false);
    stored_operand k = store_operand(kv_size, a->input_precision, false);
    stored_operand v = store_operand(kv_size, a->input_precision, false);
    stored_operand out = store_operand(q_size, a->output_precision, true);
    a->q = q.plain;
    a->k = k.plain;
    a->v = v.plain;
    dense_strides(a->q_strides, a->heads_q, a->seq_q, a->head_dim);
    dense_strides(a->k_strides, a->heads_q, a->seq_kv, a->head_dim);
    dense_strides(a->v_strides, a->heads_q, a->seq_kv, a->head_dim);
    dense_strides(a->out_strides, a->heads_q, a->seq_q, a->head_dim);
    /* The mask's shape as seen by the call: leading sizes of 1 may be left out. */
    const uint32_t full[4] = {a->batch, a->heads_q, a->seq_q, a->seq_kv};
    int64_t shape[4];
    uint32_t skip = 0;
    for (int axis = 0; axis < 4; axis++)
        shape[axis] = a->mask_strides[axis] ? (int64_t)full[axis] : 1;
    while (skip < 3 && shape[skip] == 1 && chance(50))
        skip++;
    static const char *const names[3][2] = {
        {"fp16", "Float16"}, {"bf16", "BFloat16"}, {"fp32", "FLOAT32"}};
    mfa_error_t error;
    if (chance(30))
        error = mfa_attention_forward_str(
            context, q.buffer, k.buffer, v.buffer, out.buffer, a->batch, a->seq_q, a->seq_kv,
            a->heads_q, (uint16_t)a->head_dim, a->scale, a->causal != 0,
            names[a->input_precision][random_below(2)], NULL,
            names[a->output_precision][random_below(2)], q.flipped, k.flipped, v.flipped,
            out.flipped, a->mask, a->mask_bytes, shape + skip, a->mask_strides + skip, 4 - skip,
            a->mask_type, a->mask_scalar_type);
    else
        error = mfa_attention_forward(
            context, q.buffer, k.buffer, v.buffer, out.buffer, a->batch, a->seq_q, a->seq_kv,
            a->heads_q, (uint16_t)a->head_dim, a->scale, a->causal != 0, a->input_precision,
            (int)random_below(3), a->output_precision, q.flipped, k.flipped, v.flipped, out.flipped,
            a->mask, a->mask_bytes, shape + skip, a->mask_strides + skip, 4 - skip, a->mask_type,
            a->mask_scalar_type);
    if (error) {
        char text[400];
        describe_problem(a, text, sizeof text);
        fail("forward refused", text);
    } else {
        const uint32_t stored[4] = {q_size[0], q_size[1], q_size[3], q_size[2]};
        const unsigned char *result = mfa_buffer_contents(out.buffer);
        unsigned char *back =
            out.flipped ? transposed(result, stored, element_size(a->output_precision)) : NULL;
        a->out = back ? back : out.stored;
        a->out_bytes = 0; /* no gaps to look at */
        double *scores = malloc(a->seq_kv * sizeof *scores),
               *row = malloc(a->head_dim * sizeof *row);
        bool good = true;
        for (uint32_t i = 0; i < a->batch * a->heads_q * a->seq_q && good; i++) {
            uint32_t b = i / a->seq_q / a->heads_q, h = i / a->seq_q % a->heads_q;
            reference_row(a, b, h, i % a->seq_q, scores, row);
            for (uint32_t d = 0; d < a->head_dim && good; d++)
                good = close_to(
                    read_element(a->out, (int64_t)i * a->head_dim + d, a->output_precision), row[d],
                    a->output_precision, score_deviation(a));
        }
        if (!good) {
            char text[400];
            describe_problem(a, text, sizeof text);
            fail("forward", text);
        }
        expect(mfa_get_gpu_latency(context) > 0, "a latency after a call");
        free(scores);
        free(row);
        free(back);
    }
    free_operand(&q);
    free_operand(&k);
    free_operand(&v);
    free_operand(&out);
    free(p.mask.memory);
}

static void run_forward(uint64_t seed, long count)
{
    for (long i = 0; i < count; i++) {
        random_state = seed + (uint64_t)i * 104729;
        run_forward_once();
    }
}

/* ---- special values ---- */

enum { SPECIAL_ROWS = 50, SPECIAL_DIM = 24 };

typedef struct {
    mfa_portable_args_t args;
    float q[SPECIAL_ROWS * SPECIAL_DIM], k[SPECIAL_ROWS * SPECIAL_DIM],
        v[SPECIAL_ROWS * SPECIAL_DIM], out[SPECIAL_ROWS * SPECIAL_DIM], mask[SPECIAL_ROWS];
} special;

static special *new_special(void)
{
    special *s = calloc(1, sizeof *s);
    mfa_portable_args_t *a = &s->args;
    a->struct_bytes = sizeof *a;
    a->batch = a->heads_q = a->heads_kv = 1;
    a->seq_q = a->seq_kv = SPECIAL_ROWS;
    a->head_dim = a->value_dim = SPECIAL_DIM;
    a->q = s->q;
    a->k = s->k;
    a->v = s->v;
    a->out = s->out;
    a->q_bytes = a->k_bytes = a->v_bytes = a->out_bytes = sizeof s->q;
    a->q_strides[2] = a->k_strides[2] = a->v_strides[2] = a->out_strides[2] = SPECIAL_DIM;
    a->input_precision = a->output_precision = MFA_PRECISION_FP32;
    a->mask_scalar_type = MFA_MASK_SCALAR_FP32;
    a->mask_strides[3] = 1;
    a->mask_bytes = sizeof s->mask;
    a->scale = 0.2f;
    for (int i = 0; i < SPECIAL_ROWS * SPECIAL_DIM; i++) {
        s->q[i] = (float)random_normal();
        s->k[i] = (float)random_normal();
        s->v[i] = (float)random_normal();
    }
    return s;
}

static void attend_special(special *s, const char *what)
{
    memset(s->out, CANARY, sizeof s->out);
    if (mfa_portable_attention(context, &s->args))
        fail(what, "refused");
    else
        check_output(&s->args, what);
}

/* FP32 numbers rounded to BF16, in memory of their own. */
static void *rounded(const void *from, uint64_t *bytes)
{
    const uint64_t count = *bytes / 4;
    *bytes = count * 2;
    unsigned char *to = malloc(*bytes);
    for (uint64_t i = 0; i < count; i++)
        write_element(to, (int64_t)i, MFA_PRECISION_BF16,
                      read_element(from, (int64_t)i, MFA_PRECISION_FP32));
    return to;
}

/* As it is, and with inputs in BF16, which other kernels may take. */
static void run_special_case(special *s, const char *what)
{
    mfa_portable_args_t *a = &s->args;
    attend_special(s, what);
    void *q = rounded(a->q, &a->q_bytes), *k = rounded(a->k, &a->k_bytes);
    void *v = rounded(a->v, &a->v_bytes);
    a->q = q;
    a->k = k;
    a->v = v;
    a->input_precision = MFA_PRECISION_BF16;
    attend_special(s, what);
    free(q);
    free(k);
    free(v);
    free(s);
}

/* Scores that rise or fall with the key, by `slope` powers of two a key: see weigh_block. */
static void run_rising(double slope, int causal)
{
    enum { KEYS = 700 };
    special *s = new_special();
    float *k = calloc(KEYS * SPECIAL_DIM, sizeof *k), *v = calloc(KEYS * SPECIAL_DIM, sizeof *v);
    for (int i = 0; i < KEYS * SPECIAL_DIM; i++) {
        k[i] = i % SPECIAL_DIM ? (float)random_normal() : (float)(slope * (i / SPECIAL_DIM));
        v[i] = (float)random_normal();
    }
    for (int i = 0; i < SPECIAL_ROWS; i++)
        s->q[i * SPECIAL_DIM] = i % 4 ? (float)(i % 3 - 1) : 0.5f;
    s->args.seq_kv = KEYS;
    s->args.k = k;
    s->args.v = v;
    s->args.k_bytes = s->args.v_bytes = KEYS * SPECIAL_DIM * sizeof *k;
    s->args.scale = 0.6931472f;
    s->args.causal = causal;
    run_special_case(s, "scores that rise from block to block");
    free(k);
    free(v);
}

static void run_special(void)
{
    for (int causal = 0; causal < 3; causal++)
        for (int i = 0; i < 4; i++)
            run_rising((double[]){0.005, 0.02, 0.05, 0.1}[i], causal);
    static const uint32_t nan_bits[] = {0x7fc00000, 0x7f800001, 0x7fffffff, 0xffc00001};
    for (size_t i = 0; i < sizeof nan_bits / sizeof *nan_bits; i++) {
        special *s = new_special();
        memcpy(&s->q[7 * SPECIAL_DIM + 3], &nan_bits[i], 4);
        run_special_case(s, "a NaN in one query stays in its row");
        s = new_special();
        memcpy(&s->k[7 * SPECIAL_DIM + 3], &nan_bits[i], 4);
        run_special_case(s, "a NaN in one key reaches every row");
        s = new_special();
        memcpy(&s->k[47 * SPECIAL_DIM], &nan_bits[i], 4);
        s->args.causal = MFA_CAUSAL_TOP_LEFT;
        run_special_case(s, "a NaN in a key reaches the rows that see it");
        s = new_special();
        memcpy(&s->k[9 * SPECIAL_DIM], &nan_bits[i], 4);
        for (int j = 0; j < SPECIAL_ROWS; j++)
            s->mask[j] = j != 9;
        s->args.mask = s->mask;
        s->args.mask_type = MFA_MASK_TYPE_BOOL;
        run_special_case(s, "a NaN in a masked key reaches no row");
    }
    for (int few = 0; few < 2; few++) { /* both ways of the engine, with a mask row per query */
        special *s = new_special();
        unsigned char *mask = malloc(SPECIAL_ROWS * SPECIAL_ROWS);
        for (int i = 0; i < SPECIAL_ROWS * SPECIAL_ROWS; i++)
            mask[i] = i % SPECIAL_ROWS != 9;
        s->k[9 * SPECIAL_DIM] = NAN;
        s->args.seq_q = few ? 2 : SPECIAL_ROWS;
        s->args.mask = mask;
        s->args.mask_bytes = SPECIAL_ROWS * SPECIAL_ROWS;
        s->args.mask_strides[2] = SPECIAL_ROWS;
        s->args.mask_type = MFA_MASK_TYPE_BOOL;
        s->args.mask_scalar_type = MFA_MASK_SCALAR_BYTE;
        s->args.out_bytes = 4 * SPECIAL_DIM * s->args.seq_q;
        run_special_case(s, "a NaN in a key masked by row");
        free(mask);
    }
    special *s = new_special();
    s->k[5 * SPECIAL_DIM] = INFINITY;
    for (int i = 0; i < SPECIAL_ROWS; i++)
        s->q[i * SPECIAL_DIM] = i % 2 ? 1 : -1;
    run_special_case(s, "an infinite key");
    s = new_special();
    for (int i = 0; i < SPECIAL_ROWS; i++) {
        s->q[i * SPECIAL_DIM] = i % 2 ? 1 : -1;
        s->k[i * SPECIAL_DIM] = -INFINITY;
    }
    run_special_case(s, "keys that make all scores infinite");
    s = new_special();
    s->v[5 * SPECIAL_DIM + 3] = INFINITY;
    s->v[48 * SPECIAL_DIM + 20] = -INFINITY;
    run_special_case(s, "infinite values");
    s = new_special();
    for (int i = 0; i < SPECIAL_ROWS * SPECIAL_DIM; i++)
        s->q[i] *= 1e18f, s->k[i] *= 1e18f;
    run_special_case(s, "scores near the end of the range");
    for (int mode = 0; mode < 2; mode++) {
        s = new_special();
        s->args.mask = s->mask;
        s->args.mask_type = MFA_MASK_TYPE_BOOL;
        s->args.empty_rows = mode;
        run_special_case(s, "a bool mask that leaves nothing");
        s = new_special();
        for (int j = 0; j < SPECIAL_ROWS; j++)
            s->mask[j] = -INFINITY;
        s->args.mask = s->mask;
        s->args.mask_type = MFA_MASK_TYPE_ADDITIVE;
        s->args.empty_rows = mode;
        run_special_case(s, "an additive mask that leaves nothing");
        s = new_special();
        s->args.seq_q = SPECIAL_ROWS;
        s->args.seq_kv = 20;
        s->args.causal = MFA_CAUSAL_BOTTOM_RIGHT;
        s->args.empty_rows = mode;
        run_special_case(s, "bottom-right causal with rows before the first key");
    }
    s = new_special();
    for (int j = 0; j < SPECIAL_ROWS; j++)
        s->mask[j] = j % 3 ? -3.4028235e38f : 0;
    s->args.mask = s->mask;
    s->args.mask_type = MFA_MASK_TYPE_ADDITIVE;
    run_special_case(s, "the lowest finite bias");
    s = new_special();
    for (int j = 0; j < SPECIAL_ROWS; j++)
        s->mask[j] = -1e9f;
    s->args.mask = s->mask;
    s->args.mask_type = MFA_MASK_TYPE_ADDITIVE;
    memset(s->q, 0, sizeof s->q);
    run_special_case(s, "one large bias for all");
}

/* ---- what must be refused ---- */

static void refuse(special *s, const char *what)
{
    memset(s->out, CANARY, sizeof s->out);
    if (mfa_portable_attention(context, &s->args) != MFA_ERROR_INVALID_ARGS)
        fail("accepted", what);
    for (size_t i = 0; i < sizeof s->out; i++)
        if (((unsigned char *)s->out)[i] != CANARY) {
            fail("written", what);
            break;
        }
    free(s);
}

#define REFUSE(change)                                                                             \
    do {                                                                                           \
        special *s = new_special();                                                                \
        mfa_portable_args_t *a = &s->args;                                                         \
        change;                                                                                    \
        refuse(s, #change);                                                                        \
    } while (0)

static void refuse_portable(void)
{
    REFUSE(a->struct_bytes = 8);
    REFUSE(a->head_dim = 0);
    REFUSE(a->head_dim = 1025);
    REFUSE(a->value_dim = 0);
    REFUSE(a->value_dim = 2000);
    REFUSE(a->heads_q = 3; a->heads_kv = 2);
    REFUSE(a->heads_kv = 0);
    REFUSE(a->q = NULL);
    REFUSE(a->k = NULL);
    REFUSE(a->v = NULL);
    REFUSE(a->out = NULL);
    REFUSE(a->q_bytes--);
    REFUSE(a->k_bytes--);
    REFUSE(a->v_bytes--);
    REFUSE(a->out_bytes--);
    REFUSE(a->q_strides[2] = -1);
    REFUSE(a->k_strides[1] = -1);
    REFUSE(a->q_strides[2] = INT64_MAX);
    REFUSE(a->q_strides[2] = INT64_MAX / SPECIAL_ROWS);
    REFUSE(a->out_strides[2] = 0);
    REFUSE(a->out_strides[2] = SPECIAL_DIM - 1);
    REFUSE(a->batch = 2; a->out_strides[0] = 0);
    REFUSE(a->batch = UINT32_MAX; a->q_strides[0] = INT64_MAX);
    REFUSE(a->input_precision = 3);
    REFUSE(a->input_precision = -1);
    REFUSE(a->output_precision = 4);
    REFUSE(a->causal = 3);
    REFUSE(a->causal = -1);
    REFUSE(a->empty_rows = 2);
    REFUSE(a->mask_type = 3);
    REFUSE(a->mask_type = MFA_MASK_TYPE_BOOL);
    REFUSE(a->mask = s->mask; a->mask_type = 1; a->mask_scalar_type = 4);
    REFUSE(a->mask = s->mask; a->mask_type = 1; a->mask_bytes--);
    REFUSE(a->mask = s->mask; a->mask_type = 1; a->mask_strides[2] = -1);
    REFUSE(a->mask = s->mask; a->mask_type = 2; a->mask_strides[2] = INT64_MAX);
    REFUSE(a->out = s->q);
    REFUSE(a->out = s->k + 5; a->out_bytes = sizeof s->out - 20; a->seq_q--);
    REFUSE(a->out = s->v);
    REFUSE(a->mask = s->out; a->mask_type = 1);
    REFUSE(a->sinks = s->out + 7);
    special *s = new_special();
    expect(mfa_portable_attention(NULL, &s->args) == 1, "no context");
    expect(mfa_portable_attention(context, NULL) == 1, "no arguments");
    mfa_buffer_t buffer = NULL;
    expect(mfa_buffer_from_ptr(context, s->q, sizeof s->q, &buffer) == 0, "a buffer");
    expect(mfa_portable_attention(buffer, &s->args) == 1, "a buffer is no context");
    mfa_destroy_buffer(buffer);
    struct {
        mfa_portable_args_t args;
        uint64_t later;
    } grown = {s->args, 0};
    grown.args.struct_bytes = sizeof grown;
    expect(mfa_portable_attention(context, &grown.args) == 1, "a longer struct");
    s->args.struct_bytes = UINT32_MAX; /* nothing lies there: reading it would crash */
    expect(mfa_portable_attention(context, &s->args) == 1, "a struct longer than memory");
    s->args.struct_bytes = sizeof s->args;
    /* Far more keys than any memory holds, all the same one. */
    s->args.seq_kv = UINT32_MAX;
    s->args.k_strides[2] = s->args.v_strides[2] = 0;
    s->args.head_dim = s->args.value_dim = SPECIAL_DIM;
    expect(mfa_portable_attention(context, &s->args) == 2, "work memory that cannot be had");
    free(s);
}

/* Builds with sanitizers need more, in places of their own. */
static void bound_memory(rlim_t bytes)
{
#if !defined(MFA_NO_UNROLL)
    struct rlimit limit;
    expect(getrlimit(RLIMIT_AS, &limit) == 0, "a limit");
    limit.rlim_cur = bytes;
    expect(setrlimit(RLIMIT_AS, &limit) == 0, "another amount of address space");
#else
    (void)bytes;
#endif
}

/* A head's keys take 64 MiB packed: once, however many threads could have some of their own. */
static void attend_in_little_memory(void)
{
#if defined(__linux__)
    enum { ROWS = 24, KEYS = 65536, DIM = 128 };
    static float rows[ROWS * DIM], out[ROWS * DIM];
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    expect(file && fscanf(file, "%lu", &pages) == 1, "what is in use");
    if (file)
        fclose(file);
    mfa_portable_args_t a = one_head(ROWS, KEYS, DIM, MFA_PRECISION_FP32);
    a.q = a.k = a.v = rows;
    a.out = out;
    a.k_bytes = a.v_bytes = sizeof rows;
    a.k_strides[2] = a.v_strides[2] = 0; /* one key, many times */
    a.scale = 1.0f;
    bound_memory((rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)112 << 20));
    expect(mfa_portable_attention(context, &a) == 0, "a call in little memory");
#endif
}

static mfa_error_t forward(mfa_context_t c, mfa_buffer_t q, mfa_buffer_t out, uint32_t batch,
                           uint32_t rows, uint16_t dim, int precision, const int64_t *shape,
                           uint32_t ndim, int mask_type)
{
    static const unsigned char mask[64] = {1};
    static const int64_t strides[5] = {0, 0, 0, 1, 1};
    return mfa_attention_forward(c, q, q, q, out, batch, rows, rows, 1, dim, 1.0f, false, precision,
                                 2, 2, false, false, false, false, shape ? mask : NULL, sizeof mask,
                                 shape, shape ? strides : NULL, ndim, mask_type, 0);
}

static void refuse_forward(void)
{
    mfa_buffer_t in = NULL, out = NULL, small = NULL, bad = NULL;
    expect(mfa_create_buffer(context, 4 * 8 * 8, &in) == 0, "in");
    expect(mfa_create_buffer(context, 4 * 8 * 8, &out) == 0, "out");
    expect(mfa_create_buffer(context, 4 * 8 * 8 - 1, &small) == 0, "small");
    const int64_t good[4] = {1, 1, 1, 8}, wrong[4] = {1, 1, 1, 7}, five[5] = {1, 1, 1, 1, 8};
    expect(forward(context, in, out, 1, 8, 8, 2, NULL, 0, 0) == 0, "a good call");
    expect(forward(context, in, out, 1, 8, 8, 2, good, 4, 1) == 0, "a good mask");
    expect(forward(NULL, in, out, 1, 8, 8, 2, NULL, 0, 0) == 1, "null context");
    expect(forward(in, in, out, 1, 8, 8, 2, NULL, 0, 0) == 1, "wrong context");
    expect(forward(context, NULL, out, 1, 8, 8, 2, NULL, 0, 0) == 1, "null input");
    expect(forward(context, in, NULL, 1, 8, 8, 2, NULL, 0, 0) == 1, "null output");
    expect(forward(context, in, context, 1, 8, 8, 2, NULL, 0, 0) == 1, "a context is no buffer");
    expect(forward(context, in, in, 1, 8, 8, 2, NULL, 0, 0) == 1, "output over input");
    expect(forward(context, in, small, 1, 8, 8, 2, NULL, 0, 0) == 1, "small output");
    expect(forward(context, small, out, 1, 8, 8, 2, NULL, 0, 0) == 1, "small input");
    expect(forward(context, in, out, 0, 8, 8, 2, NULL, 0, 0) == 1, "batch 0");
    expect(forward(context, in, out, 1, 0, 8, 2, NULL, 0, 0) == 1, "rows 0");
    expect(forward(context, in, out, 1, 8, 0, 2, NULL, 0, 0) == 1, "head_dim 0");
    expect(forward(context, in, out, UINT32_MAX, UINT32_MAX, 65535, 2, NULL, 0, 0) == 1,
           "overflow");
    expect(forward(context, in, out, 1, 8, 8, 3, NULL, 0, 0) == 1, "int8");
    expect(forward(context, in, out, 1, 8, 8, 9, NULL, 0, 0) == 1, "unknown precision");
    expect(forward(context, in, out, 1, 8, 8, 2, wrong, 4, 1) == 1, "mask of a wrong size");
    expect(forward(context, in, out, 1, 8, 8, 2, five, 5, 1) == 1, "mask of five sizes");
    expect(forward(context, in, out, 1, 8, 8, 2, good, 0, 1) == 1, "mask of no sizes");
    expect(forward(context, in, out, 1, 8, 8, 2, NULL, 4, 1) == 1, "mask type without a mask");
    expect(forward(context, in, out, 1, 8, 8, 2, good, 4, 7) == 1, "unknown mask type");
    expect(mfa_attention_forward_str(context, in, in, in, out, 1, 8, 8, 1, 8, 1, false, "fp31",
                                     NULL, NULL, false, false, false, false, NULL, 0, NULL, NULL, 0,
                                     0, 0) == 1,
           "unknown name");
    int64_t shape[4] = {1, 1, 8, 8}, strides[4] = {64, 64, 8, 1};
    expect(mfa_buffer_from_ptr_with_strides(context, mfa_buffer_contents(in), 256, shape, strides,
                                            5, &bad) == 1 &&
               !bad,
           "five dimensions");
    strides[2] = -8;
    expect(mfa_buffer_from_ptr_with_strides(context, mfa_buffer_contents(in), 256, shape, strides,
                                            4, &bad) == 1,
           "negative stride");
    strides[2] = 8;
    shape[2] = 7;
    expect(mfa_buffer_from_ptr_with_strides(context, mfa_buffer_contents(in), 256, shape, strides,
                                            4, &bad) == 0,
           "seven rows");
    expect(forward(context, bad, out, 1, 8, 8, 2, NULL, 0, 0) == 1, "shape unlike the call's");
    mfa_destroy_buffer(bad);
    mfa_destroy_buffer(in);
    mfa_destroy_buffer(out);
    mfa_destroy_buffer(small);
}

static void refuse_rest(void)
{
    mfa_buffer_t buffer = NULL;
    float value = 0;
    expect(mfa_create_context(NULL) == 1, "context into null");
    expect(mfa_create_buffer(NULL, 8, &buffer) == 1, "buffer without context");
    expect(mfa_create_buffer(context, 0, &buffer) == 1, "buffer of 0 bytes");
    expect(mfa_create_buffer(context, 8, NULL) == 1, "buffer into null");
    expect(mfa_create_buffer(context, SIZE_MAX, &buffer) == 2, "buffer of all memory");
    expect(mfa_buffer_from_ptr(context, NULL, 8, &buffer) == 1, "null data");
    expect(mfa_buffer_from_ptr(context, &value, 4, NULL) == 1, "into null");
    expect(mfa_buffer_from_ptr_with_strides(context, &value, 4, NULL, NULL, 4, &buffer) == 1,
           "no shape");
    expect(mfa_buffer_from_mtl_buffer(context, &value, 4, &buffer) == 3, "a Metal buffer");
    expect(!buffer, "nothing written on failure");
    expect(!mfa_buffer_contents(NULL) && !mfa_buffer_contents(context), "contents of no buffer");
    mfa_destroy_buffer(NULL);
    mfa_destroy_context(NULL);
    mfa_mla_destroy_context(NULL);
    mfa_get_version(NULL, NULL, NULL);
    mfa_get_quantized_layout(MFA_QUANT_KERNEL_FORWARD, NULL);
    mfa_get_quantized_capabilities(NULL);
    expect(mfa_get_gpu_latency(NULL) == 0, "latency of nothing");
    expect(mfa_attention_backward(context, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                                  NULL, 1, 1, 1, 1, 1, 1, false, 2, 2, false, false, false,
                                  false) == 3,
           "backward");
    expect(mfa_mla_create_context(NULL) == 3, "MLA");
    mfa_quantized_layout_t layout;
    mfa_get_quantized_layout(MFA_QUANT_KERNEL_BACKWARD_QUERY, &layout);
    expect(layout.qData == -1 && layout.scratch1 == -1, "empty layout");
    for (int code = -2; code < 8; code++) {
        const char *text = mfa_error_string(code);
        expect(text && *text, "a text for every code");
        free((void *)(uintptr_t)text);
    }
    char text[256] = "x";
    expect(mfa_portable_describe(text, 5) == 1 && text[0] == 'x', "too small for the description");
    expect(mfa_portable_describe(NULL, 5) == 1, "description into null");
    expect(mfa_portable_describe(text, sizeof text) == 0, "the description");
}

/* The environment as it was when the program began asks for what cannot be had. */
static void refuse_environment(const char *name)
{
    char text[256];
    mfa_context_t other = NULL;
    expect(mfa_create_context(&other) == 1 && !other, "context in a bad environment");
    expect(mfa_portable_describe(text, sizeof text) == 0 && strstr(text, "isa=none") &&
               strstr(text, name),
           "the environment's fault, told");
}

/* What is set later is not looked at: getenv beside a thread that sets variables can crash. */
static void ignore_later_environment(void)
{
    char before[256], after[256];
    expect(mfa_portable_describe(before, sizeof before) == 0, "a description");
    const char *kept = getenv("QWEN_MFA_ISA");
    char *copy = kept ? strdup(kept) : NULL;
    setenv("QWEN_MFA_ISA", "xyzzy", 1);
    expect(mfa_portable_describe(after, sizeof after) == 0 && !strcmp(before, after),
           "the environment is read once");
    special *s = new_special();
    run_special_case(s, "a variable that was set later");
    if (copy)
        setenv("QWEN_MFA_ISA", copy, 1);
    else
        unsetenv("QWEN_MFA_ISA");
    free(copy);
}

/* ---- the processor's floating-point state ---- */

#if defined(__x86_64__)
static uint64_t float_state(void) { return __builtin_ia32_stmxcsr(); }
#elif defined(__aarch64__)
static uint64_t float_state(void)
{
    uint64_t control, flags;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(flags));
    return control << 32 | flags;
}
#else
static uint64_t float_state(void) { return 0; }
#endif

enum { STATE_ROWS = 500, STATE_DIM = 64, STATE_BYTES = STATE_ROWS * STATE_DIM * sizeof(float) };

static float state_input[STATE_ROWS * STATE_DIM];
static uint16_t state_halves[STATE_ROWS * STATE_DIM];
static int state_precision = MFA_PRECISION_FP32; /* of inputs; results are FP32 */

/* Many rows, so that helpers take part; or one, which goes another way. */
static void compute_rows(float *out, uint32_t rows)
{
    mfa_portable_args_t a = one_head(rows, STATE_ROWS, STATE_DIM, state_precision);
    a.q = a.k = a.v = state_input;
    if (state_precision == MFA_PRECISION_BF16)
        a.q = a.k = a.v = state_halves;
    a.out = out;
    a.scale = 1.0f;
    expect(mfa_portable_attention(context, &a) == 0, "a call");
}

static void keep_float_state(void)
{
    static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST};
    static float want[2][STATE_ROWS * STATE_DIM], got[STATE_ROWS * STATE_DIM];
    for (int i = 0; i < STATE_ROWS * STATE_DIM; i++) {
        state_input[i] = (float)random_normal();
        write_element(state_halves, i, MFA_PRECISION_BF16, (double)state_input[i]);
    }
    /* The first helpers start under a mode that is none of their business. */
    fesetround(FE_UPWARD);
    compute_rows(got, STATE_ROWS);
    fesetround(FE_TONEAREST);
    compute_rows(want[0], STATE_ROWS);
    compute_rows(want[1], 1);
    expect(!memcmp(want[0], got, STATE_BYTES), "the first caller's rounding stays its own");
    for (int i = 0; i < 4; i++)
        for (int one = 0; one < 2; one++) {
            fesetround(modes[i]);
            feclearexcept(FE_ALL_EXCEPT);
            const uint64_t before = float_state();
            compute_rows(got, one ? 1 : STATE_ROWS);
            expect(float_state() == before && fegetround() == modes[i],
                   "rounding, flags and modes are the caller's afterwards");
            fesetround(FE_TONEAREST);
            expect(!memcmp(want[one], got, one ? STATE_DIM * sizeof(float) : STATE_BYTES),
                   "results do not depend on the caller's rounding");
        }
}

/* ---- the tile unit ---- */

/* What shapes the caller's tiles have is the caller's again afterwards. */
static void keep_tiles(void)
{
#if defined(__x86_64__)
    static unsigned char mine[64] = {1}, after[64];
    static float out[STATE_ROWS * STATE_DIM];
    if (!has_tiles())
        return;
    mine[16] = 32; /* bytes of a row, and rows, of the first tile */
    mine[48] = 7;
    for (int used = 0; used < 2; used++) {
        mine[0] = (unsigned char)used;
        if (!used)
            mine[16] = mine[48] = 0;
        else
            mine[16] = 32, mine[48] = 7;
        __asm__ volatile("ldtilecfg %0" : : "m"(mine));
        compute_rows(out, STATE_ROWS);
        __asm__ volatile("sttilecfg %0" : "=m"(after));
        __asm__ volatile("tilerelease" ::);
        expect(!memcmp(mine, after, sizeof mine), "the caller's tiles keep their shapes");
    }
#endif
}

/* Linux refuses the tiles' state where a stack for signals could not hold it. */
static void refuse_tiles(void)
{
    expect(!has_tiles(), "no tiles without permission");
    run_random(3, 40);
}

/* ---- small stacks, and the end of the process ---- */

static void *call_on_a_small_stack(void *unused)
{
    static float out[STATE_ROWS * STATE_DIM];
    (void)unused;
    compute_rows(out, STATE_ROWS);
    compute_rows(out, 1);
    return NULL;
}

static void run_on_a_small_stack(void)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    expect(pthread_attr_setstacksize(&attributes, 16384) == 0, "a stack of 16 KiB");
    if (pthread_create(&thread, &attributes, call_on_a_small_stack, NULL) == 0)
        pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
}

/* A million queries against half a million keys: minutes, in tasks of a fraction of a second. */
static void *call_for_minutes(void *unused)
{
    enum { ROWS = 1 << 20, DIM = 16 };
    float *x = calloc((size_t)ROWS * DIM, sizeof *x);
    float *out = malloc((size_t)ROWS * DIM * sizeof *out);
    mfa_portable_args_t a = one_head(ROWS, ROWS / 2, DIM, MFA_PRECISION_FP32);
    (void)unused;
    a.q = a.k = a.v = x;
    a.out = out;
    a.k_strides[2] = a.v_strides[2] = 0; /* one key, half a million times */
    a.scale = 1.0f;
    mfa_portable_attention(context, &a);
    return NULL;
}

static void leave_during_a_call(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, call_for_minutes, NULL);
    usleep(500000);
    exit(0);
}

/* ---- no keys, a mask, and more units than are packed ahead: once waited for itself ---- */

static void run_without_keys(void)
{
    special *s = new_special();
    float out[3 * 6 * 9 * 4];
    s->args.batch = 3;
    s->args.heads_q = s->args.heads_kv = 6;
    s->args.seq_q = 9;
    s->args.seq_kv = 0;
    s->args.head_dim = s->args.value_dim = 4;
    s->args.mask = s->mask;
    s->args.mask_type = MFA_MASK_TYPE_ADDITIVE;
    memset(s->args.q_strides, 0, sizeof s->args.q_strides);
    memset(s->args.mask_strides, 0, sizeof s->args.mask_strides);
    s->args.out = out;
    s->args.out_bytes = sizeof out;
    s->args.out_strides[2] = 4;
    s->args.out_strides[1] = 4 * 9;
    s->args.out_strides[0] = 4 * 9 * 6;
    memset(out, 1, sizeof out);
    expect(mfa_portable_attention(context, &s->args) == 0, "no keys");
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        if (out[i] != 0.0f) {
            fail("no keys", "rows without keys are zeros");
            break;
        }
    free(s);
}

/* ---- values near the end of the range ---- */

static void run_large_values(uint32_t keys, uint32_t rows, int precision)
{
    enum { DIM = 16 };
    const double large = precision == MFA_PRECISION_FP32 ? (double)3.4e38f : 0x1.fep127;
    const size_t size = element_size(precision);
    unsigned char *v = malloc((size_t)keys * DIM * size), *q = calloc((size_t)rows * DIM, size);
    float *out = malloc((size_t)rows * DIM * sizeof *out);
    mfa_portable_args_t a = one_head(rows, keys, DIM, precision);
    for (uint32_t j = 0; j < keys * DIM; j++)
        write_element(v, j, precision, large);
    a.q = q;
    a.k = a.v = v;
    a.out = out;
    a.scale = 1.0f;
    expect(mfa_portable_attention(context, &a) == 0, "large values");
    for (uint32_t j = 0; j < rows * DIM; j++)
        if (!(fabs((double)out[j] / large - 1) < 1e-5)) {
            fail("values near the end of the range", "not finite, or wrong");
            break;
        }
    free(q);
    free(v);
    free(out);
}

static void run_all_large_values(void)
{
    static const uint32_t lengths[] = {3, 50, 700};
    for (int i = 0; i < 3; i++)
        for (uint32_t rows = 1; rows <= 50; rows += 49)
            for (int bf16 = 0; bf16 < 2; bf16++)
                run_large_values(lengths[i], rows, bf16 ? MFA_PRECISION_BF16 : MFA_PRECISION_FP32);
}

/* NaN, infinite, and finite ones that are no longer so in log2 units. */
static void run_sink(float sink, uint32_t rows, uint32_t keys, int precision)
{
    enum { DIM = 16 };
    mfa_portable_args_t a = one_head(rows, keys, DIM, precision);
    unsigned char *k = malloc(a.k_bytes), *q = malloc(a.q_bytes);
    for (uint32_t i = 0; i < keys * DIM; i++)
        write_element(k, i, precision, random_normal());
    for (uint32_t i = 0; i < rows * DIM; i++)
        write_element(q, i, precision, random_normal());
    a.q = q;
    a.k = a.v = k;
    a.sinks = &sink;
    a.out = malloc(a.out_bytes);
    a.scale = 0.25f;
    memset(a.out, CANARY, a.out_bytes);
    expect(mfa_portable_attention(context, &a) == 0, "an unusual sink");
    check_output(&a, "an unusual sink");
    free(a.out);
    free(q);
    free(k);
}

static void run_unusual_sinks(void)
{
    static const float sinks[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e4f, -1e4f};
    static const uint32_t keys[] = {20, 30, 100, 300, 700};
    for (int s = 0; s < 7; s++)
        for (int i = 0; i < 5; i++)
            for (uint32_t rows = 2; rows <= 50; rows += 48)
                for (int bf16 = 0; bf16 < 2; bf16++)
                    run_sink(sinks[s], rows, keys[i],
                             bf16 ? MFA_PRECISION_BF16 : MFA_PRECISION_FP32);
}

/* ---- threads ---- */

static pthread_mutex_t problems_mutex = PTHREAD_MUTEX_INITIALIZER;

static long calls_each = 12;

static void *many_calls(void *unused)
{
    (void)unused;
    for (long i = 0; i < calls_each; i++) {
        pthread_mutex_lock(&problems_mutex);
        problem p = random_problem();
        p.args.max_threads = 0;
        pthread_mutex_unlock(&problems_mutex);
        memset(p.out.memory, CANARY, p.out.bytes);
        mfa_error_t error = mfa_portable_attention(context, &p.args);
        pthread_mutex_lock(&problems_mutex);
        if (error)
            fail("threads", "refused");
        else
            check_output(&p.args, "threads");
        pthread_mutex_unlock(&problems_mutex);
        free_problem(&p);
    }
    return NULL;
}

static void run_threads(bool forks)
{
    enum { CALLERS = 6 };
    pthread_t thread[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        pthread_create(&thread[i], NULL, many_calls, NULL);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(thread[i], NULL);
    if (!forks)
        return;
    for (int round = 0; round < 3; round++) {
        pid_t child = fork();
        if (child == 0) {
            failures = 0;
            many_calls(NULL);
            exit(failures != 0);
        }
        int status = 1;
        waitpid(child, &status, 0);
        expect(status == 0, "attention after fork");
        many_calls(NULL);
    }
}

int main(int count, char **argument)
{
    const char *mode = count > 1 ? argument[1] : "";
    uint64_t seed = count > 2 ? strtoull(argument[2], NULL, 10) : 1;
    long cases = count > 3 ? strtol(argument[3], NULL, 10) : 100;
    char text[256];
    fill_half_values();
    if (strcmp(mode, "environment") == 0) {
        refuse_environment(count > 2 ? argument[2] : "");
        printf("%d failures\n", failures);
        return failures != 0;
    }
    if (strcmp(mode, "permission") == 0) {
        static unsigned char small[8192];
        stack_t stack;
        memset(&stack, 0, sizeof stack);
        stack.ss_sp = small;
        stack.ss_size = sizeof small;
        expect(sigaltstack(&stack, NULL) == 0, "a stack for signals");
    } else {
        mfa_portable_describe(text, sizeof text);
        of_tiles = has_tiles() ? 0x1p-16 : 0;
    }
    if (mfa_create_context(&context)) {
        fprintf(stderr, "no context: %s\n", text);
        return 2;
    }
    if (strcmp(mode, "random") == 0) {
        wanted_precision = count > 4 ? atoi(argument[4]) : -1;
        run_random(seed, cases);
    } else if (strcmp(mode, "forward") == 0) {
        run_forward(seed, cases);
    } else if (strcmp(mode, "special") == 0) {
        run_special();
        run_all_large_values();
        run_unusual_sinks();
        run_without_keys();
    } else if (strcmp(mode, "state") == 0) {
        keep_float_state();
        run_on_a_small_stack();
        state_precision = MFA_PRECISION_BF16;
        keep_float_state();
        run_on_a_small_stack();
        keep_tiles();
    } else if (strcmp(mode, "permission") == 0) {
        refuse_tiles();
        mfa_portable_describe(text, sizeof text);
    } else if (strcmp(mode, "errors") == 0) {
        attend_in_little_memory();
        bound_memory((rlim_t)64 << 30); /* so that a system that promises any amount does not */
        refuse_portable();
        refuse_forward();
        refuse_rest();
        ignore_later_environment();
    } else if (strcmp(mode, "exit") == 0) {
        leave_during_a_call();
    } else if (strcmp(mode, "threads") == 0) {
        run_threads(true);
    } else if (strcmp(mode, "callers") == 0) {
        calls_each = cases;
        run_threads(false); /* a thread sanitizer does not follow forks */
    } else {
        fprintf(stderr, "unknown mode '%s'\n", mode);
        return 2;
    }
    mfa_destroy_context(context);
    printf("%s: %s: %d failures\n", text, mode, failures);
    return failures != 0;
}
