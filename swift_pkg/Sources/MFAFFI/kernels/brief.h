/*
 * A strip of queries against few keys, all of them at once, part of template.h.
 *
 * Scores are computed with a query in each lane: keys are then read one number at a time from
 * where rows lie, and maxima and sums need no look across lanes. Weights come out as columns of
 * queries, as the second product wants them, and values are read as they are. Queries alone have
 * to be transposed; keys are copied, so that those of a tile lie at distances the compiler knows.
 */

enum {
    BRIEF_WIDTH = MFA_BRIEF_VECTORS * MFA_LANES, /* queries of a strip */
    BRIEF_DIMS = 32, /* of a part of a score */
    BRIEF_KEYS = MFA_FUSES ? 8 : 4,              /* keys of a tile; as many rows of results */
};

/* Vectors of a row, and as many of each row of its tile between them. */
MFA_INLINE void brief_spread_row(float *to, const mfa_source *from, unsigned row, const int as)
{
    const unsigned whole = in_vectors(from, as), step = BRIEF_KEYS * MFA_LANES;
    unsigned d = 0;
    for (; d < whole; d += MFA_LANES, to += step)
        v_store(to, row_vector(from, row, d, as));
    for (; d < from->length; d += MFA_LANES, to += step)
        v_store(to, row_elements(from, row, d, as));
}

static void brief_pack_keys(float *keys, const mfa_source *from)
{
    const unsigned padded = mfa_padded_dim(from->length, MFA_LANES);
    for (unsigned row = 0; row < from->count; row++) {
        const unsigned within = row % BRIEF_KEYS;
        float *to = keys + (size_t)(row - within) * padded + (size_t)within * MFA_LANES;
        switch (from->precision) {
        case MFA_PRECISION_FP16: brief_spread_row(to, from, row, MFA_PRECISION_FP16); break;
        case MFA_PRECISION_BF16: brief_spread_row(to, from, row, MFA_PRECISION_BF16); break;
        default: brief_spread_row(to, from, row, MFA_PRECISION_FP32); break;
        }
    }
}

static void brief_pack_values(float *values, const mfa_source *from)
{
    const unsigned padded = mfa_padded_dim(from->length, MFA_LANES);
    for (unsigned row = 0; row < from->count; row++, values += padded)
        switch (from->precision) {
        case MFA_PRECISION_FP16: copy_row(values, from, row, 0, padded, MFA_PRECISION_FP16); break;
        case MFA_PRECISION_BF16: copy_row(values, from, row, 0, padded, MFA_PRECISION_BF16); break;
        default: copy_row(values, from, row, 0, padded, MFA_PRECISION_FP32); break;
        }
}

/*
 * Adds to the scores of one or two tiles from key `key` on what dimensions from `first` on give; as
 * many accumulators either way. What stands in the last tile's unused places gives scores that
 * nobody reads.
 */
MFA_INLINE void brief_add_dots(const mfa_brief *s, unsigned key, unsigned first, const int tiles,
                               const int vectors)
{
    const size_t padded = mfa_padded_dim(s->head_dim, MFA_LANES);
    const unsigned end = s->head_dim - first < BRIEF_DIMS ? s->head_dim : first + BRIEF_DIMS;
    vf acc[2 * BRIEF_KEYS][MFA_BRIEF_VECTORS];
    MFA_UNROLL_FOR (int r = 0; r < tiles * BRIEF_KEYS; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            acc[r][j] = v_set1(0.0f);
    const float *q = s->queries + (size_t)first * BRIEF_WIDTH;
    for (size_t d = first; d < end; d += MFA_LANES) {
        const float *near = s->keys + key * padded + d * BRIEF_KEYS;
        const float *far = near + padded * BRIEF_KEYS;
        const float *stop = near + (end - d < MFA_LANES ? end - d : MFA_LANES);
        for (; near < stop; near++, far++, q += BRIEF_WIDTH) {
            vf b[MFA_BRIEF_VECTORS];
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                b[j] = v_load(q + j * MFA_LANES);
            MFA_UNROLL_FOR (int r = 0; r < tiles * BRIEF_KEYS; r++) {
                const float *k = r < BRIEF_KEYS ? near : far;
                vf a = v_set1(k[r % BRIEF_KEYS * MFA_LANES]);
                MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                    acc[r][j] = v_fma(a, b[j], acc[r][j]);
            }
        }
    }
    float *scores = s->weights + (size_t)key * BRIEF_WIDTH;
    MFA_UNROLL_FOR (int r = 0; r < tiles * BRIEF_KEYS; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++) {
            float *at = scores + r * BRIEF_WIDTH + j * MFA_LANES;
            v_store(at, first ? v_add(v_load(at), acc[r][j]) : acc[r][j]);
        }
}

/* Scores, summed up in parts: many short sums lose less than one long one. */
MFA_INLINE void brief_scores(const mfa_brief *s, unsigned key, const int tiles, const int vectors)
{
    for (unsigned first = 0; first < s->head_dim; first += BRIEF_DIMS)
        brief_add_dots(s, key, first, tiles, vectors);
}

/* Scores to weights; `origin` to factors of the results. */
MFA_INLINE void brief_softmax(const mfa_brief *s, unsigned column)
{
    float *weights = s->weights + column;
    const float *end = weights + (size_t)s->count * BRIEF_WIDTH;
    const vf before = v_load(s->origin + column);
    vf highest = before;
    for (const float *at = weights; at < end; at += BRIEF_WIDTH)
        highest = v_max(v_load(at), highest);
    /* A row whose scores are all -inf: from a finite number, so that -inf - -inf does not arise. */
    const vf origin = v_max(v_set1(-FLT_MAX), highest);
    vf total = v_mul(v_load(s->sum + column), exp2_vector(v_sub(before, origin)));
    for (float *at = weights; at < end; at += BRIEF_WIDTH) {
        vf weight = v_mul(exp2_vector(v_sub(v_load(at), origin)), v_set1(s->shrink));
        v_store(at, weight);
        total = v_add(total, weight);
    }
    v_store(s->sum + column, total);
}

MFA_INLINE void brief_store(const mfa_brief *s, unsigned row, unsigned column,
                            vf acc[BRIEF_KEYS][2], const int vectors, const int precision)
{
    const size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    const unsigned left = s->value_dim - column;
    for (unsigned r = 0; r < BRIEF_KEYS && row + r < s->rows; r++) {
        unsigned char *to = s->out[row + r] + column * size;
        const vf factor = v_set1(1.0f / s->sum[row + r]);
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++, to += MFA_LANES * size)
            store_results(to, v_mul(acc[r][j], factor), vectors == 1 ? left : MFA_LANES, precision);
    }
}

/* Results of a few rows, in one or two vectors of columns. */
MFA_INLINE void brief_values(const mfa_brief *s, unsigned row, unsigned column, const int vectors)
{
    vf acc[BRIEF_KEYS][2];
    MFA_UNROLL_FOR (int r = 0; r < BRIEF_KEYS; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            acc[r][j] = v_set1(0.0f);
    const float *w = s->weights + row, *v = s->values + column;
    for (const float *end = w + (size_t)s->count * BRIEF_WIDTH; w < end;
         w += BRIEF_WIDTH, v += s->value_step) {
        vf b[2];
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            b[j] = v_load(v + j * MFA_LANES);
        MFA_UNROLL_FOR (int r = 0; r < BRIEF_KEYS; r++) {
            vf a = v_set1(w[r]);
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                acc[r][j] = v_fma(a, b[j], acc[r][j]);
        }
    }
    switch (s->precision) {
    case MFA_PRECISION_FP16: brief_store(s, row, column, acc, vectors, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: brief_store(s, row, column, acc, vectors, MFA_PRECISION_BF16); break;
    default: brief_store(s, row, column, acc, vectors, MFA_PRECISION_FP32); break;
    }
}

static void brief_attend(const mfa_brief *s)
{
    unsigned key = 0;
    if (s->rows > MFA_LANES) {
        for (; key < s->count; key += BRIEF_KEYS)
            brief_scores(s, key, 1, 2);
        brief_softmax(s, MFA_LANES);
    } else {
        for (; key + BRIEF_KEYS < s->count; key += 2 * BRIEF_KEYS)
            brief_scores(s, key, 2, 1);
        if (key < s->count)
            brief_scores(s, key, 1, 1);
    }
    brief_softmax(s, 0);
    unsigned column = 0;
    for (; column + 2 * MFA_LANES <= s->value_dim; column += 2 * MFA_LANES)
        for (unsigned row = 0; row < s->rows; row += BRIEF_KEYS)
            brief_values(s, row, column, 2);
    for (; column < s->value_dim; column += MFA_LANES)
        for (unsigned row = 0; row < s->rows; row += BRIEF_KEYS)
            brief_values(s, row, column, 1);
}
