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

/* ---- scores to weights ---- */

/* What happens to the rows of a strip in a block. */
typedef struct {
    float base[MFA_MAX_MR];  /* what scores are measured from: a row's origin, or 0 */
    float scale[MFA_MAX_MR]; /* of what was summed up before */
    float totals[MFA_MR * MFA_LANES]; /* lane-wise sums of weights, per row */
    float highest[MFA_LANES];         /* scores of all rows, lane-wise */
} block_rows;

/*
 * Scores start from minus the origin, which loses least; unless that is unknown, or so large that
 * the difference to a new origin could not be told. At first it may be a sink, far from all scores.
 */
MFA_INLINE void find_bases(const mfa_strip *s, block_rows *rows, const bool first)
{
    const float largest = 0x1p20f;
    const bool scored = !(first && s->state->fresh);
    bool measured = true;
    for (int r = 0; r < MFA_MR; r++) {
        const float origin = s->state->origin[r];
        const bool good = scored && origin >= -largest && origin <= largest;
        rows->base[r] = good ? origin : 0.0f;
        measured &= good;
    }
    s->state->measured = measured;
}

/* Scores of one key tile, measured from the rows' bases. */
MFA_INLINE void tile_scores(const mfa_strip *s, unsigned tile, const block_rows *rows,
                            vf acc[MFA_MR][MFA_NV], const int vectors, const bool paired)
{
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            acc[r][j] = v_set1(paired ? 0.0f : -rows->base[r]);
    add_dots(s, tile, acc, vectors, paired);
    if (paired)
        MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++)
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                acc[r][j] = v_fma(acc[r][j], v_set1(s->scale), v_set1(-rows->base[r]));
    mask_scores(s, tile, acc, vectors);
}

/*
 * One key tile: weights, and lane-wise sums of them, if `converts` and no score lies far above its
 * row's origin. Otherwise scores are left where weights should be, and the answer is false.
 */
MFA_INLINE bool weigh_tile(const mfa_strip *s, unsigned tile, block_rows *rows, const int vectors,
                           const bool paired, const bool converts)
{
    vf acc[MFA_MR][MFA_NV];
    tile_scores(s, tile, rows, acc, vectors, paired);
    vf highest = converts ? v_set1(-INFINITY) : v_load(rows->highest);
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++) /* NaN are passed over: they stay NaN */
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
            highest = v_max(acc[r][j], highest);
    float *weights = s->weights + tile * MFA_NR;
    if (!converts || v_largest(highest) > MFA_RISE) {
        if (!converts)
            v_store(rows->highest, highest);
        MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++, weights += MFA_MAX_KEY_BLOCK)
            MFA_UNROLL_FOR (int j = 0; j < vectors; j++)
                v_store(weights + j * MFA_LANES, acc[r][j]);
        return false;
    }
    float *totals = rows->totals;
    MFA_UNROLL_FOR (int r = 0; r < MFA_MR; r++, weights += MFA_MAX_KEY_BLOCK) {
        vf total = v_set1(0.0f);
        MFA_UNROLL_FOR (int j = 0; j < vectors; j++) {
            vf weight = v_mul(exp2_vector(acc[r][j]), v_set1(s->shrink));
            v_store(weights + j * MFA_LANES, weight);
            total = j ? v_add(total, weight) : weight;
        }
        MFA_IN_ORDER;
        v_store(totals + r * MFA_LANES, v_add(v_load(totals + r * MFA_LANES), total));
    }
    return true;
}

/*
 * Tiles from `tile` on; the last may be narrower. Returns the key from which on scores are left
 * to be made weights.
 */
MFA_INLINE unsigned visit_tiles(const mfa_strip *s, unsigned tile, block_rows *rows, bool converts,
                                const bool paired)
{
    const unsigned whole = s->keys_seen / MFA_NR;
#define MFA_WEIGH(vectors)                                                                         \
    do {                                                                                           \
        if (MFA_FUSES && converts) {                                                               \
            if (weigh_tile(s, tile, rows, vectors, paired, true))                                  \
                first += (vectors) * MFA_LANES;                                                    \
            else                                                                                   \
                converts = false;                                                                  \
        } else {                                                                                   \
            weigh_tile(s, tile, rows, vectors, paired, false);                                     \
        }                                                                                          \
    } while (0)
    unsigned first = tile * MFA_NR;
    for (; tile < whole; tile++)
        MFA_WEIGH(MFA_NV);
    switch ((s->keys_seen % MFA_NR + MFA_LANES - 1) / MFA_LANES) {
#if MFA_NV > 3
    case 4: MFA_WEIGH(4); break;
#endif
#if MFA_NV > 2
    case 3: MFA_WEIGH(3); break;
#endif
    case 2: MFA_WEIGH(2); break;
    case 1: MFA_WEIGH(1); break;
    default: break;
    }
#undef MFA_WEIGH
    return first;
}

MFA_INLINE unsigned visit(const mfa_strip *s, unsigned tile, block_rows *rows, bool converts)
{
#if MFA_PAIRS
    if (s->paired)
        return visit_tiles(s, tile, rows, converts, true);
#endif
    return visit_tiles(s, tile, rows, converts, false);
}

MFA_INLINE void multiply(float *at, const float *end, vf factor)
{
    for (; at < end; at += MFA_LANES)
        v_store(at, v_mul(v_load(at), factor));
}

/* Scores of a row from key `first` on, less `offset`, to weights; their lane-wise sums. */
MFA_INLINE vf softmax_row(const mfa_strip *s, int row, unsigned first, unsigned end, float offset)
{
    float *weights = s->weights + row * MFA_MAX_KEY_BLOCK;
    const float *stop = weights + end;
    vf total = v_set1(0.0f);
    for (weights += first; weights < stop; weights += MFA_LANES) {
        vf weight = exp2_vector(v_sub(v_load(weights), v_set1(offset)));
        weight = v_mul(weight, v_set1(s->shrink));
        v_store(weights, weight);
        total = v_add(total, weight);
    }
    return total;
}

MFA_INLINE float largest_score(const mfa_strip *s, int row, unsigned first, unsigned end)
{
    const float *scores = s->weights + row * MFA_MAX_KEY_BLOCK;
    vf largest = v_set1(-INFINITY);
    for (; first < end; first += MFA_LANES)
        largest = v_max(v_load(scores + first), largest);
    return v_largest(largest);
}

/*
 * Moves a row's origin where scores from key `first` on lie far above it, or where it was unknown;
 * what was weighed before is brought along. Whatever the scores are, no product is done again.
 * Returns what to take from the scores.
 */
MFA_INLINE float move_origin(const mfa_strip *s, int r, unsigned first, unsigned end,
                             block_rows *rows)
{
    const float origin = s->state->origin[r];
    const float stays = origin > -INFINITY ? origin - rows->base[r] : 0.0f;
    const bool known = origin > -INFINITY;
    const float largest = largest_score(s, r, first, end);
    const float top = rows->base[r] + largest;
    /* Also false for NaN. */
    if (!(top > -INFINITY) || (known && top <= origin + MFA_RISE))
        return stays;
    s->state->origin[r] = top;
    if (!known)
        return largest;
    float factor[MFA_LANES];
    v_store(factor, exp2_vector(v_set1(origin - s->state->origin[r])));
    float *weights = s->weights + r * MFA_MAX_KEY_BLOCK;
    multiply(weights, weights + first, v_set1(*factor));
    multiply(rows->totals + r * MFA_LANES, rows->totals + (r + 1) * MFA_LANES, v_set1(*factor));
    rows->scale[r] *= *factor;
    return largest;
}

/* Makes weights of the scores from key `first` on. */
static void settle(const mfa_strip *s, unsigned first, unsigned end, block_rows *rows)
{
    const bool stays = s->state->measured && !(v_largest(v_load(rows->highest)) > MFA_RISE);
    for (int r = 0; r < MFA_MR; r++) {
        /* Where it stays, every base is the row's origin. */
        const float offset = MFA_FUSES || !stays ? move_origin(s, r, first, end, rows) : 0.0f;
        float *totals = rows->totals + r * MFA_LANES;
        vf total = softmax_row(s, r, first, end, offset);
        v_store(totals, v_add(v_load(totals), total));
    }
}

static void weigh_block(const mfa_strip *s, block_rows *rows)
{
    const unsigned end = mfa_padded_dim(s->keys_seen, MFA_LANES);
    unsigned tile = 0;
    for (int r = 0; r < MFA_MR; r++)
        rows->scale[r] = 1.0f;
    for (int i = 0; i < MFA_MR * MFA_LANES; i++)
        rows->totals[i] = 0.0f;
    v_store(rows->highest, v_set1(-INFINITY));
    find_bases(s, rows, true);
    if (!s->state->measured && end > MFA_NR) {
        /* The first tile's highest score will nearly always do to measure from. */
        mfa_strip one = *s;
        one.keys_seen = MFA_NR;
        visit(&one, 0, rows, false);
        settle(s, 0, MFA_NR, rows);
        find_bases(s, rows, false);
        v_store(rows->highest, v_set1(-INFINITY));
        tile = 1;
    }
    const unsigned first = visit(s, tile, rows, s->state->measured);
    if (first < end) {
        settle(s, first, end, rows);
        find_bases(s, rows, false);
    }
    float *sum = s->state->sum;
    for (int r = 0; r < MFA_MR; r++, sum += MFA_LANES)
        v_store(sum,
                v_fma(v_load(sum), v_set1(rows->scale[r]), v_load(rows->totals + r * MFA_LANES)));
}

/* ---- weights times values ---- */

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
            v_store(at,
                    s->state->fresh ? acc[r][j] : v_fma(v_load(at), v_set1(scale[r]), acc[r][j]));
        }
}

static void attend(const mfa_strip *s)
{
    block_rows rows;
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
