/* A few query rows, part of template.h: keys and values are read where they are, once. */

enum { KEYS_AT_ONCE = 4, VECTORS_AT_ONCE = 8, ROWS_AHEAD = 16 };

/* The lines of a row that comes a little later, as the part `offset` of this one is read. */
MFA_INLINE void prefetch_row_part(const unsigned char *row, size_t step, size_t offset)
{
    if (offset % LINE == 0)
        __builtin_prefetch(row + ROWS_AHEAD * step + offset);
}

MFA_INLINE void dots_of(float *scores, const float *query, const unsigned char *keys, size_t step,
                        const int at_once, unsigned dim, const int precision)
{
    const size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    vf acc[KEYS_AT_ONCE];
    MFA_UNROLL_FOR (int k = 0; k < at_once; k++)
        acc[k] = v_set1(0.0f);
    unsigned d = 0;
    for (; d + MFA_LANES <= dim; d += MFA_LANES) {
        vf q = v_load(query + d);
        MFA_UNROLL_FOR (int k = 0; k < at_once; k++)
            prefetch_row_part(keys + (size_t)k * step, step, d * size);
        MFA_UNROLL_FOR (int k = 0; k < at_once; k++)
            acc[k] = v_fma(q, load_vector(keys + (size_t)k * step + d * size, precision), acc[k]);
    }
    MFA_UNROLL_FOR (int k = 0; k < at_once; k++) {
        float rest = 0.0f;
        for (unsigned i = d; i < dim; i++)
            rest += query[i] * load_element(keys + (size_t)k * step + i * size, precision);
        scores[k] = v_total(acc[k]) + rest;
    }
}

MFA_INLINE void dots_in(const mfa_decode *f, const int precision)
{
    unsigned key = 0;
    for (; key + KEYS_AT_ONCE <= f->count; key += KEYS_AT_ONCE)
        for (unsigned r = 0; r < f->rows; r++)
            dots_of(f->weights + r * MFA_MAX_KEY_BLOCK + key, f->queries + r * f->query_step,
                    f->keys + key * f->key_step, f->key_step, KEYS_AT_ONCE, f->head_dim, precision);
    for (; key < f->count; key++)
        for (unsigned r = 0; r < f->rows; r++)
            dots_of(f->weights + r * MFA_MAX_KEY_BLOCK + key, f->queries + r * f->query_step,
                    f->keys + key * f->key_step, f->key_step, 1, f->head_dim, precision);
}

static void decode_scores(const mfa_decode *f)
{
    switch (f->precision) {
    case MFA_PRECISION_FP16: dots_in(f, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: dots_in(f, MFA_PRECISION_BF16); break;
    default: dots_in(f, MFA_PRECISION_FP32); break;
    }
}

/* One row: biases, then scores to weights; origin, sum and output brought up to date. */
static void decode_softmax(const mfa_decode *f, unsigned row, unsigned visible, const float *bias)
{
    float *weights = f->weights + row * MFA_MAX_KEY_BLOCK;
    const unsigned padded = mfa_padded_dim(f->count, MFA_LANES);
    vf largest = v_set1(-INFINITY);
    for (unsigned i = 0; i < padded; i += MFA_LANES) {
        vf score = v_load(weights + i);
        if (bias)
            score = v_bias(score, v_load(bias + i));
        score = v_clip(score, i, visible);
        largest = v_max(score, largest);
        v_store(weights + i, score);
    }
    vf before = v_set1(f->origin[row]);
    vf highest = v_max(v_set1(v_largest(largest)), before);
    /* A row without keys so far: from a finite number, so that -inf - -inf does not arise. */
    vf origin = v_max(v_set1(-FLT_MAX), highest);
    vf factor = exp2_vector(v_sub(before, origin));
    vf total = v_set1(0.0f);
    for (unsigned i = 0; i < padded; i += MFA_LANES) {
        vf weight = v_mul(exp2_vector(v_sub(v_load(weights + i), origin)), v_set1(f->shrink));
        v_store(weights + i, weight);
        total = v_add(total, weight);
    }
    float lanes[MFA_LANES];
    v_store(lanes, highest);
    f->origin[row] = lanes[0];
    v_store(lanes, factor);
    f->sum[row] = f->sum[row] * lanes[0] + v_total(total);
    float *output = f->output + (size_t)row * f->output_step;
    for (unsigned i = 0; i < f->output_step; i += MFA_LANES)
        v_store(output + i, v_mul(v_load(output + i), factor));
}

MFA_INLINE void add_columns(const mfa_decode *f, unsigned row, unsigned column, const int vectors,
                            const int precision)
{
    const size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    const float *weights = f->weights + row * MFA_MAX_KEY_BLOCK;
    float *output = f->output + (size_t)row * f->output_step + column;
    const unsigned char *values = f->values + column * size;
    vf acc[VECTORS_AT_ONCE];
    MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
        acc[j] = v_set1(0.0f);
    for (unsigned key = 0; key < f->count; key++) {
        vf weight = v_set1(weights[key]);
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            prefetch_row_part(values, f->value_step, (size_t)j * MFA_LANES * size);
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            acc[j] = v_fma(weight, load_vector(values + (size_t)j * MFA_LANES * size, precision),
                           acc[j]);
        values += f->value_step;
    }
    MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
        v_store(output + j * MFA_LANES, v_add(v_load(output + j * MFA_LANES), acc[j]));
}

MFA_INLINE void values_in(const mfa_decode *f, const int precision)
{
    const size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    for (unsigned row = 0; row < f->rows; row++) {
        unsigned column = 0;
        for (; column + VECTORS_AT_ONCE * MFA_LANES <= f->value_dim;
             column += VECTORS_AT_ONCE * MFA_LANES)
            add_columns(f, row, column, VECTORS_AT_ONCE, precision);
        for (; column + MFA_LANES <= f->value_dim; column += MFA_LANES)
            add_columns(f, row, column, 1, precision);
        for (; column < f->value_dim; column++) {
            float *output = f->output + (size_t)row * f->output_step + column;
            for (unsigned key = 0; key < f->count; key++)
                *output += f->weights[row * MFA_MAX_KEY_BLOCK + key] *
                           load_element(f->values + key * f->value_step + column * size, precision);
        }
    }
}

static void decode_values(const mfa_decode *f)
{
    switch (f->precision) {
    case MFA_PRECISION_FP16: values_in(f, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: values_in(f, MFA_PRECISION_BF16); break;
    default: values_in(f, MFA_PRECISION_FP32); break;
    }
}
