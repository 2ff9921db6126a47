/* Every check that stands between a caller's numbers and the first byte read or written. */
#include "problem.h"

/* Bytes from element 0 to the end of the last one; false on overflow or a negative stride. */
static bool span_of(const int64_t stride[4], const uint32_t size[4], size_t element,
                    uint64_t *bytes)
{
    uint64_t last = 0;
    for (int axis = 0; axis < 4; axis++) {
        uint64_t reach;
        if (stride[axis] < 0)
            return false;
        if (size[axis] == 0) {
            *bytes = 0;
            return true;
        }
        if (__builtin_mul_overflow((uint64_t)stride[axis], (uint64_t)size[axis] - 1, &reach) ||
            __builtin_add_overflow(last, reach, &last))
            return false;
    }
    return !__builtin_add_overflow(last, (uint64_t)1, &last) &&
           !__builtin_mul_overflow(last, (uint64_t)element, bytes) && *bytes <= PTRDIFF_MAX;
}

static bool fits(const void *data, uint64_t available, uint64_t needed)
{
    if (needed == 0)
        return true;
    return data != NULL && needed <= available && (uintptr_t)data <= UINTPTR_MAX - needed;
}

/* No two elements share memory: each stride steps over all that smaller strides reach. */
static bool elements_distinct(const int64_t stride[4], const uint32_t size[4])
{
    uint64_t reach = 0;
    bool used[4] = {false, false, false, false};
    for (int round = 0; round < 4; round++) {
        int next = -1;
        for (int axis = 0; axis < 4; axis++)
            if (!used[axis] && size[axis] > 1 && (next < 0 || stride[axis] < stride[next]))
                next = axis;
        if (next < 0)
            return true;
        if ((uint64_t)stride[next] <= reach)
            return false;
        reach += (uint64_t)stride[next] * (size[next] - 1);
        used[next] = true;
    }
    return true;
}

typedef struct {
    const void *data;
    uint64_t bytes;
} byte_range;

static bool overlap(byte_range a, byte_range b)
{
    uintptr_t a_first = (uintptr_t)a.data, b_first = (uintptr_t)b.data;
    return a.bytes && b.bytes && a_first < b_first + b.bytes && b_first < a_first + a.bytes;
}

static bool codes_valid(const mfa_problem *p)
{
    size_t input = mfa_precision_size(p->q.precision);
    return input && mfa_precision_size(p->out.precision) && p->causal >= MFA_CAUSAL_NONE &&
           p->causal <= MFA_CAUSAL_BOTTOM_RIGHT &&
           (p->empty_rows == MFA_EMPTY_ROW_ZERO || p->empty_rows == MFA_EMPTY_ROW_MEAN) &&
           p->mask.type >= MFA_MASK_TYPE_NONE && p->mask.type <= MFA_MASK_TYPE_ADDITIVE &&
           (p->mask.type == MFA_MASK_TYPE_NONE || mfa_mask_scalar_size(p->mask.scalar));
}

static bool sizes_valid(const mfa_problem *p)
{
    if (p->head_dim < 1 || p->head_dim > MFA_MAX_HEAD_DIM || p->value_dim < 1 ||
        p->value_dim > MFA_MAX_HEAD_DIM)
        return false;
    return p->heads_kv ? p->heads_q % p->heads_kv == 0 : p->heads_q == 0;
}

static bool operand_span(const mfa_operand *x, const uint32_t size[4], byte_range *range)
{
    range->data = x->data;
    return span_of(x->stride, size, mfa_precision_size(x->precision), &range->bytes) &&
           fits(x->data, x->bytes, range->bytes);
}

bool mfa_problem_valid(const mfa_problem *p)
{
    if (!codes_valid(p) || !sizes_valid(p))
        return false;
    const uint32_t q_size[4] = {p->batch, p->heads_q, p->seq_q, p->head_dim};
    const uint32_t k_size[4] = {p->batch, p->heads_kv, p->seq_kv, p->head_dim};
    const uint32_t v_size[4] = {p->batch, p->heads_kv, p->seq_kv, p->value_dim};
    const uint32_t out_size[4] = {p->batch, p->heads_q, p->seq_q, p->value_dim};
    const uint32_t mask_size[4] = {p->batch, p->heads_q, p->seq_q, p->seq_kv};

    byte_range out, input[5] = {{NULL, 0}, {NULL, 0}, {NULL, 0}, {NULL, 0}, {NULL, 0}};
    if (!operand_span(&p->q, q_size, &input[0]) || !operand_span(&p->k, k_size, &input[1]) ||
        !operand_span(&p->v, v_size, &input[2]) || !operand_span(&p->out, out_size, &out))
        return false;
    if (out.bytes && !elements_distinct(p->out.stride, out_size))
        return false;
    if (p->mask.type != MFA_MASK_TYPE_NONE) {
        input[3].data = p->mask.data;
        if (!span_of(p->mask.stride, mask_size, mfa_mask_scalar_size(p->mask.scalar),
                     &input[3].bytes) ||
            !fits(p->mask.data, p->mask.bytes, input[3].bytes))
            return false;
    }
    if (p->sinks) {
        input[4].data = p->sinks;
        input[4].bytes = (uint64_t)p->heads_q * sizeof(float);
    }
    for (int i = 0; i < 5; i++)
        if (overlap(out, input[i]))
            return false;
    return true;
}
