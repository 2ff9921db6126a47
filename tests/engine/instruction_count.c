/*
 * One small attention on one thread, for counting its instructions:
 *
 *   instruction_count SEQ_Q SEQ_KV HEAD_DIM PRECISION CAUSAL
 */
#include "one_head.h"

#include <stdio.h>
#include <stdlib.h>

static unsigned char *values(uint64_t bytes)
{
    unsigned char *data = malloc(bytes);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = (i & 1) ? 0x3e : (unsigned char)(i * 37); /* small, finite in every format */
    return data;
}

int main(int count, char **argument)
{
    if (count != 6) {
        fprintf(stderr, "usage: instruction_count SEQ_Q SEQ_KV HEAD_DIM PRECISION CAUSAL\n");
        return 2;
    }
    uint32_t sq = (uint32_t)atoi(argument[1]), skv = (uint32_t)atoi(argument[2]);
    uint32_t d = (uint32_t)atoi(argument[3]);
    int precision = atoi(argument[4]);
    mfa_portable_args_t a = one_head(sq, skv, d, precision);
    unsigned char *q = values(a.q_bytes), *k = values(a.k_bytes), *v = values(a.v_bytes);
    a.q = q;
    a.k = k;
    a.v = v;
    a.out = malloc(a.out_bytes);
    a.output_precision = precision;
    a.scale = 0.1f;
    a.causal = atoi(argument[5]);
    a.max_threads = 1;
    mfa_context_t context = NULL;
    if (mfa_create_context(&context) || mfa_portable_attention(context, &a))
        return 1;
    mfa_destroy_context(context);
    free(q);
    free(k);
    free(v);
    free(a.out);
    return 0;
}
