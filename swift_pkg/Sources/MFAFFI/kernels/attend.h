/*
 * One strip of queries against one block of keys, part of template.h: weights, then weights
 * times values.
 */

/* acc += queries times one tile of keys. */
MFA_INLINE void add_dots(const mfa_strip *s, unsigned tile, vf acc[MFA_MR][MFA_NV],
                         const int vectors, const bool paired)
{
    const unsigned steps = paired ? (s->head_dim + 1) / 2 : s->head_dim;
    const float *q = s->queries;
    const float *k = s->keys + (size_t)tile * s->head_dim * MFA_NR;
    for (const float *end = q + (size_t)steps * MFA_MR; q < end;) {
        const float *pause = q + steps_to((size_t)(end - q) / MFA_MR) * MFA_MR;
        prefetch_line(s->prefetch);
        for (; q < pause; q += MFA_MR, k += MFA_NR) {
            vf b[MFA_NV];
            prefetch_operand(k, MFA_NR);
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                b[j] = v_load(k + j * MFA_LANES);
            MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++) {
                vf a = v_set1(q[r]);
                MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                    acc[r][j] =
                        paired ? v_dot_pairs(a, b[j], acc[r][j]) : v_fma(a, b[j], acc[r][j]);
            }
        }
    }
}

/* Scores of a tile as masks leave them. */
MFA_INLINE void mask_scores(const mfa_strip *s, unsigned tile, vf acc[MFA_MR][MFA_NV],
                            const int vectors)
{
    if (!s->bias && !s->clipped)
        return;
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++) {
            const unsigned key = tile * MFA_NR + (unsigned)(j * MFA_LANES);
            if (s->bias)
                acc[r][j] = v_bias(acc[r][j], v_load(s->bias[r] + key));
            if (s->clipped)
                acc[r][j] = v_clip(acc[r][j], key, s->visible[r]);
        }
}

/* ---- a block whose maxima are not known yet: scores, their maxima, then weights ---- */

/* Scores of one key tile into the weights, and the lane-wise maxima of each row. */
MFA_INLINE void score_tile(const mfa_strip *s, unsigned tile, float *maxima, const int vectors,
                           const bool paired)
{
    vf acc[MFA_MR][MFA_NV];
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            acc[r][j] = v_set1(0.0f);
    add_dots(s, tile, acc, vectors, paired);
    if (paired)
        MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                acc[r][j] = v_mul(acc[r][j], v_set1(s->scale));
    mask_scores(s, tile, acc, vectors);
    float *weights = s->weights + tile * MFA_NR;
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++) {
        vf maximum = v_load(maxima + r * MFA_LANES);
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++) {
            maximum = v_max(acc[r][j], maximum);
            v_store(weights + r * MFA_MAX_KEY_BLOCK + j * MFA_LANES, acc[r][j]);
        }
        v_store(maxima + r * MFA_LANES, maximum);
    }
}

/* What the running maxima mean for this block: rows side by side, one lane each. */
typedef struct {
    float origin[MFA_MAX_MR]; /* what scores are measured from */
    float scale[MFA_MAX_MR];  /* of what was summed up before */
} row_factors;

MFA_INLINE void update_maxima(const mfa_strip *s, const float *maxima, row_factors *rows)
{
    float *running = s->state->maximum;
    for (int r = 0; r < MFA_MR; r++)
        rows->origin[r] = v_largest(v_load(maxima + r * MFA_LANES));
    for (int r = MFA_MR; r < MFA_MAX_MR; r++)
        rows->origin[r] = -INFINITY;
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r += MFA_LANES) {
        vf before = v_load(running + r);
        vf maximum = v_max(v_load(rows->origin + r), before);
        /* A row without keys so far: from a finite number, so that -inf - -inf does not arise. */
        vf origin = v_max(v_set1(-FLT_MAX), maximum);
        v_store(running + r, maximum);
        v_store(rows->origin + r, origin);
        v_store(rows->scale + r, exp2_vector(v_sub(before, origin)));
    }
    bool measured = true;
    for (int r = 0; r < MFA_MR; r++)
        measured &= running[r] >= -FLT_MAX && running[r] <= FLT_MAX;
    s->state->measured = measured;
}

/* Scores of a row, from key `key` on, to weights, from an origin or as they are; their sums. */
MFA_INLINE vf softmax_row(const mfa_strip *s, int row, unsigned key, const float *origin)
{
    float *weights = s->weights + row * MFA_MAX_KEY_BLOCK;
    const float *end = weights + mfa_padded_dim(s->keys_seen, MFA_LANES);
    vf total = v_set1(0.0f);
    for (weights += key; weights < end; weights += MFA_LANES) {
        vf score = v_load(weights);
        vf weight = exp2_vector(origin ? v_sub(score, v_set1(*origin)) : score);
        v_store(weights, weight);
        total = v_add(total, weight);
    }
    return total;
}

/*
 * One panel of the output: old output scaled, plus weights times values. The block is summed on
 * its own first: many short sums lose less than one long one.
 */
MFA_INLINE void weigh_panel(const mfa_strip *s, const float *values, float *output,
                            const float *scale, const int vectors)
{
    const int width = vectors * MFA_LANES;
    vf acc[MFA_MR][MFA_NV];
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            acc[r][j] = v_set1(0.0f);
    const float *weights = s->weights;
    for (const float *end = weights + s->keys_seen; weights < end;) {
        const float *pause = weights + steps_to((size_t)(end - weights));
        prefetch_line(s->prefetch);
        for (; weights < pause; weights++, values += width) {
            vf b[MFA_NV];
            prefetch_operand(values, width);
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                b[j] = v_load(values + j * MFA_LANES);
            MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++) {
                vf a = v_set1(weights[r * MFA_MAX_KEY_BLOCK]);
                MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                    acc[r][j] = v_fma(a, b[j], acc[r][j]);
            }
        }
    }
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++) {
            float *at = output + r * width + j * MFA_LANES;
            v_store(at, v_fma(v_load(at), v_set1(scale[r]), acc[r][j]));
        }
}

/* ---- a block measured from earlier maxima: weights at once ---- */

/*
 * Weights of one key tile, and lane-wise sums of them; without MFA_FUSES only scores. Where
 * exponentials of large numbers are not infinite, also the highest scores, behind the sums.
 */
MFA_INLINE void weigh_tile(const mfa_strip *s, unsigned tile, float *totals, const int vectors,
                           const bool paired)
{
    vf acc[MFA_MR][MFA_NV];
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            acc[r][j] = v_set1(paired ? 0.0f : -s->state->maximum[r]);
    add_dots(s, tile, acc, vectors, paired);
    if (paired)
        MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                acc[r][j] = v_fma(acc[r][j], v_set1(s->scale), v_set1(-s->state->maximum[r]));
    mask_scores(s, tile, acc, vectors);
    if (!MFA_SCALES) {
        vf highest = v_load(totals + MFA_MR * MFA_LANES);
        MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                highest = v_max(acc[r][j], highest);
        v_store(totals + MFA_MR * MFA_LANES, highest);
    }
    float *weights = s->weights + tile * MFA_NR;
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++, weights += MFA_MAX_KEY_BLOCK) {
        if (!MFA_FUSES) {
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                v_store(weights + j * MFA_LANES, acc[r][j]);
            continue;
        }
        vf total = v_set1(0.0f);
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++) {
            vf weight = exp2_vector(acc[r][j]);
            v_store(weights + j * MFA_LANES, weight);
            total = j ? v_add(total, weight) : weight;
        }
        MFA_IN_ORDER;
        v_store(totals + r * MFA_LANES, v_add(v_load(totals + r * MFA_LANES), total));
    }
}

/* ---- both ---- */

/* Tiles from `tile` on, of the former or the latter kind; the last may be narrower. */
MFA_INLINE void visit_tiles(const mfa_strip *s, unsigned tile, float *rows, const bool measured,
                            const bool paired)
{
    const unsigned whole = s->keys_seen / MFA_NR;
#define MFA_VISIT(vectors)                                                                         \
    (measured ? weigh_tile(s, tile, rows, vectors, paired)                                         \
              : score_tile(s, tile, rows, vectors, paired))
    for (; tile < whole; tile++)
        MFA_VISIT(MFA_NV);
    switch ((s->keys_seen % MFA_NR + MFA_LANES - 1) / MFA_LANES) {
#if MFA_NV > 3
    case 4: MFA_VISIT(4); break;
#endif
#if MFA_NV > 2
    case 3: MFA_VISIT(3); break;
#endif
    case 2: MFA_VISIT(2); break;
    case 1: MFA_VISIT(1); break;
    default: break;
    }
#undef MFA_VISIT
}

MFA_INLINE void visit(const mfa_strip *s, unsigned tile, float *rows, const bool measured)
{
#if MFA_PAIRS
    if (s->paired) {
        visit_tiles(s, tile, rows, measured, true);
        return;
    }
#endif
    visit_tiles(s, tile, rows, measured, false);
}

/* Weights of the first `keys` keys, measured from the highest score so far, theirs included. */
static void measure(const mfa_strip *all, unsigned keys, row_factors *rows)
{
    mfa_strip s = *all;
    float maxima[MFA_MR * MFA_LANES];
    for (int i = 0; i < MFA_MR * MFA_LANES; i++)
        maxima[i] = -INFINITY;
    s.keys_seen = keys;
    visit(&s, 0, maxima, false);
    update_maxima(&s, maxima, rows);
    float *sum = s.state->sum;
    for (int r = 0; r < MFA_MR; r++, sum += MFA_LANES) {
        vf total = softmax_row(&s, r, 0, &rows->origin[r]);
        v_store(sum, v_fma(v_load(sum), v_set1(rows->scale[r]), total));
    }
}

/*
 * Weights from tile `tile` on, measured from maxima that are known: any origin will do as long as
 * nothing overflows, as FlashAttention-4 observed. False where scores are so much higher that
 * weights get large: a lane's sum bounds every weight in it.
 */
static bool measure_on(const mfa_strip *s, unsigned tile)
{
    const float most = 16384.0f;
    float totals[(MFA_MR + 1) * MFA_LANES];
    memset(totals, 0, sizeof totals);
    visit(s, tile, totals, true);
    if (!MFA_SCALES && !(v_largest(v_load(totals + MFA_MR * MFA_LANES)) <= 14.0f))
        return false;
    for (int r = 0; r < MFA_MR && !MFA_FUSES; r++)
        v_store(totals + r * MFA_LANES, softmax_row(s, r, tile * MFA_NR, NULL));
    vf largest = v_set1(0.0f);
    for (int i = 0; i < MFA_MR * MFA_LANES; i += MFA_LANES)
        largest = v_max(v_load(totals + i), largest); /* NaN are passed over: they stay NaN */
    if (v_largest(largest) > most)
        return false;
    float *sum = s->state->sum;
    for (int i = 0; i < MFA_MR * MFA_LANES; i += MFA_LANES)
        v_store(sum + i, v_add(v_load(sum + i), v_load(totals + i)));
    return true;
}

static void weigh_block(const mfa_strip *s, row_factors *rows)
{
    if (s->state->measured) {
        for (int r = 0; r < MFA_MR; r++)
            rows->scale[r] = 1.0f;
        if (measure_on(s, 0))
            return;
    } else if (s->keys_seen > MFA_NR) { /* the first tile will nearly always do to measure from */
        const mfa_strip_state before = *s->state;
        measure(s, MFA_NR, rows);
        if (s->state->measured && measure_on(s, 1))
            return;
        *s->state = before;
    }
    measure(s, s->keys_seen, rows);
}

static void attend(const mfa_strip *s)
{
    row_factors rows;
    weigh_block(s, &rows);

    const unsigned padded = mfa_padded_dim(s->value_dim, MFA_LANES);
    const float *panel = s->values;
    float *output = s->output;
    unsigned column = 0;
    for (; column + MFA_NR <= padded; column += MFA_NR) {
        weigh_panel(s, panel + s->first * MFA_NR, output, rows.scale, MFA_NV);
        panel += s->panel_stride;
        output += MFA_MR * MFA_NR;
    }
    const float *values = panel + s->first * (padded - column);
    switch ((padded - column) / MFA_LANES) { /* the last, narrower panel */
#if MFA_NV > 3
    case 3: weigh_panel(s, values, output, rows.scale, 3); break;
#endif
#if MFA_NV > 2
    case 2: weigh_panel(s, values, output, rows.scale, 2); break;
#endif
    case 1: weigh_panel(s, values, output, rows.scale, 1); break;
    default: break;
    }
}
