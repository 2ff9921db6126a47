/* Attention masks: reading them as biases in units of log2, the exponent's base in the engine. */
#ifndef MFA_MASK_H
#define MFA_MASK_H

#include <stddef.h>
#include <stdint.h>

#define MFA_LOG2E 1.44269504088896340736f

typedef struct {
    const unsigned char *data;
    uint64_t bytes;
    int64_t stride[4]; /* elements over batch, query head, query, key */
    int type, scalar;  /* mfa_mask_type_t, mfa_mask_scalar_t */
} mfa_mask;

/* What a run of biases contains; a run may have several of these. */
enum {
    MFA_BIAS_ZERO = 1,    /* keys that attend unchanged */
    MFA_BIAS_REMOVED = 2, /* keys with -inf */
    MFA_BIAS_OTHER = 4    /* anything else */
};

size_t mfa_mask_scalar_size(int scalar); /* bytes; 0 for an unknown code */

/* Writes `count` biases of query `row` from key `first` on; returns MFA_BIAS_* flags. */
unsigned mfa_mask_biases(const mfa_mask *mask, size_t batch, size_t head, size_t row, size_t first,
                         size_t count, float *biases);

#endif
