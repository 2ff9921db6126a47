/*
 * One strip of queries against one block of keys where products come from a tile unit, part of
 * template.h in place of attend.h. All scores of the block first, then weights, then weights times
 * values.
 *
 * The unit multiplies BF16 only. Rounding weights to that would double the error of a result, so
 * each is the sum of two: the next BF16 number towards 0, and what is left, rounded, so that the
 * sum is off by 2^-16 of itself at most. What is left is never
 * 0 where the weight is not, nor negative: times an infinite value, the sum of both is infinite.
 */

enum {
    SIDE = 16,           /* rows of a tile, and its columns of 32 bits */
    ROW = MFA_NR,        /* floats of a row of scores: those of one key tile */
    ROW_BYTES = ROW * 4, /* 16 pairs each of the weights and of what rounding left, afterwards */
    TILE_FLOATS = MFA_MR * ROW, /* scores of a strip with one key tile */
};

static void enter(mfa_tile_state *before)
{
    static const mfa_tile_state whole = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
        .rows = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE},
    };
    TILE_SHAPES_STORE(before);
    TILE_SHAPES_LOAD(&whole);
}

/* Without a palette, the registers are given back: switching to another thread is cheap again. */
static void leave(const mfa_tile_state *before) { TILE_SHAPES_LOAD(before); }

/* ---- scores ---- */

static void score_tile(const mfa_strip *s, unsigned tile)
{
    const unsigned chunks = (s->head_dim + 2 * SIDE - 1) / (2 * SIDE);
    const float *q = s->queries, *k = s->keys + (size_t)tile * chunks * SIDE * MFA_NR;
    float *scores = s->weights + (size_t)tile * TILE_FLOATS;
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (unsigned i = 0; i < chunks; i++, q += MFA_MR * SIDE, k += SIDE * MFA_NR) {
        TILE_LOAD(4, q, 64);
        TILE_LOAD(6, k, MFA_NR * 4);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, k + SIDE, MFA_NR * 4);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, q + SIDE * SIDE, 64);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
        prefetch_line(s->prefetch);
        prefetch_line(s->prefetch);
    }
    TILE_STORE(0, scores, ROW_BYTES);
    TILE_STORE(1, scores + SIDE, ROW_BYTES);
    TILE_STORE(2, scores + SIDE * ROW, ROW_BYTES);
    TILE_STORE(3, scores + SIDE * ROW + SIDE, ROW_BYTES);
}

/* What scores are measured from: subtracted with the scaling, or after it. */
typedef struct {
    float with, after;
} base;

/* Far from 0, a product not rounded yet could lie far above the largest that was. */
MFA_INLINE base base_of(float origin)
{
    const float far = 0x1p20f;
    if (!(origin > -INFINITY))
        return (base){0.0f, 0.0f}; /* no key so far: all weights are 0; or NaN */
    return origin >= -far && origin <= far ? (base){origin, 0.0f} : (base){0.0f, origin};
}

/* 16 products of row `row` with keys from `key` on, to scores as masks leave them. */
MFA_INLINE vf scores_of(const mfa_strip *s, const float *products, int row, unsigned key, base from,
                        const bool plain)
{
    vf score = v_fma(v_load(products), v_set1(s->scale), v_set1(-from.with));
    if (plain)
        return score;
    if (s->bias)
        score = v_bias(score, v_load(s->bias[row] + key));
    if (s->clipped)
        score = v_clip(score, key, s->visible[row]);
    return v_sub(score, v_set1(from.after));
}

/* ---- weights ---- */

/* The largest score of a row; `rising`: it is that of the largest product. */
MFA_INLINE float largest_in(const mfa_strip *s, int row, unsigned end, const bool rising)
{
    const base zero = {0.0f, 0.0f};
    const float *products = s->weights + row * ROW;
    vf largest[2] = {v_set1(-INFINITY), v_set1(-INFINITY)};
    for (unsigned key = 0; key < end; key += ROW, products += TILE_FLOATS)
        MFA_UNROLL_FOR (int j = 0; j < 2; j++) {
            const unsigned first = key + (unsigned)j * SIDE;
            const float *at = products + j * SIDE;
            if (first < end)
                largest[j] = v_max(rising ? v_load(at) : scores_of(s, at, row, first, zero, false),
                                   largest[j]);
        }
    const float found = v_largest(v_max(largest[0], largest[1]));
    return rising ? found * s->scale : found;
}

/* A row's origin after this block; what was summed up before is brought along. */
static void move_origin(const mfa_strip *s, int row, float largest)
{
    const float before = s->state->origin[row];
    const bool known = before > -INFINITY;
    /* Also false for NaN. */
    if (!(largest > -INFINITY) || (known && largest <= before + MFA_RISE))
        return;
    s->state->origin[row] = largest;
    if (!known)
        return;
    const vf factor = exp2_vector(v_set1(before - largest));
    float *sum = s->state->sum + row * MFA_LANES;
    v_store(sum, v_mul(v_load(sum), factor));
    if (s->state->fresh)
        return;
    const unsigned padded = mfa_padded_dim(s->value_dim, MFA_LANES);
    for (unsigned column = 0; column < padded; column += MFA_NR) {
        const unsigned width = padded - column < MFA_NR ? padded - column : MFA_NR;
        float *output = s->output + (size_t)MFA_MR * column + (size_t)row * width;
        for (unsigned i = 0; i < width; i += MFA_LANES)
            v_store(output + i, v_mul(v_load(output + i), factor));
    }
}

/* Products of a row to weights in place: pairs of them, then pairs of what rounding left. */
MFA_INLINE void weigh_row(const mfa_strip *s, int row, unsigned end, base from, const bool plain)
{
    const vf shrink = v_set1(s->shrink), more = v_set1(1.0f + 0x1p-20f);
    float *at = s->weights + row * ROW;
    vf total = v_set1(0.0f);
    for (unsigned key = 0; key < end; key += ROW, at += TILE_FLOATS) {
        vf weight[2], near[2], left[2];
        MFA_UNROLL_FOR (int j = 0; j < 2; j++) {
            const unsigned first = key + (unsigned)j * SIDE;
            weight[j] = v_set1(0.0f);
            if (first < end)
                weight[j] = v_mul(exp2_vector(scores_of(s, at + j * SIDE, row, first, from, plain)),
                                  shrink);
            total = v_add(total, weight[j]); /* here NaN survive, whatever rounding makes of them */
            near[j] = v_without_low(weight[j]);
            left[j] = v_rounded_up(v_fma(weight[j], more, v_minus(near[j])));
        }
        v_store(at, v_high_halves(near[0], near[1]));
        v_store(at + SIDE, v_high_halves(left[0], left[1]));
    }
    float *sum = s->state->sum + row * MFA_LANES;
    v_store(sum, v_fma(total, more, v_load(sum)));
}

static void weigh_rows(const mfa_strip *s, unsigned end)
{
    const bool plain = !s->bias && !s->clipped;
    float largest[MFA_MR];
    for (int row = 0; row < MFA_MR; row++)
        largest[row] = plain && s->scale > 0.0f ? largest_in(s, row, end, true)
                                                : largest_in(s, row, end, false);
    for (int row = 0; row < MFA_MR; row++)
        move_origin(s, row, largest[row]);
    for (int row = 0; row < MFA_MR; row++) {
        const base from = base_of(s->state->origin[row]);
        if (plain && from.after == 0.0f)
            weigh_row(s, row, end, from, true);
        else
            weigh_row(s, row, end, from, false);
    }
}

/* ---- weights times values ---- */

/* One panel of the output, of one or two tiles side by side. */
MFA_INLINE void weigh_panel(const mfa_strip *s, const float *values, float *output, unsigned tiles,
                            const bool two)
{
    const unsigned width = two ? 2 * SIDE : SIDE, bytes = width * 4;
    const float *weights = s->weights;
    if (s->state->fresh) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, output, bytes);
        TILE_LOAD(2, output + SIDE * width, bytes);
        if (two) {
            TILE_LOAD(1, output + SIDE, bytes);
            TILE_LOAD(3, output + SIDE * width + SIDE, bytes);
        }
    }
    for (unsigned i = 0; i < tiles; i++, weights += TILE_FLOATS, values += SIDE * width) {
        TILE_LOAD(4, weights, ROW_BYTES);
        TILE_LOAD(6, values, bytes);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(5, weights + SIDE * ROW, ROW_BYTES);
        TILE_DOT(2, 5, 6);
        if (two) {
            TILE_LOAD(7, values + SIDE, bytes);
            TILE_DOT(1, 4, 7);
            TILE_DOT(3, 5, 7);
        }
        prefetch_line(s->prefetch);
        prefetch_line(s->prefetch);
        TILE_LOAD(4, weights + SIDE, ROW_BYTES);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(5, weights + SIDE * ROW + SIDE, ROW_BYTES);
        TILE_DOT(2, 5, 6);
        if (two) {
            TILE_DOT(1, 4, 7);
            TILE_DOT(3, 5, 7);
        }
    }
    TILE_STORE(0, output, bytes);
    TILE_STORE(2, output + SIDE * width, bytes);
    if (two) {
        TILE_STORE(1, output + SIDE, bytes);
        TILE_STORE(3, output + SIDE * width + SIDE, bytes);
    }
}

static void attend(const mfa_strip *s)
{
    const unsigned end = mfa_padded_dim(s->keys_seen, MFA_LANES), tiles = (end + ROW - 1) / ROW;
    for (unsigned tile = 0; tile < tiles; tile++)
        score_tile(s, tile);
    weigh_rows(s, end);

    const unsigned padded = mfa_padded_dim(s->value_dim, MFA_LANES);
    const float *panel = s->values;
    float *output = s->output;
    unsigned column = 0;
    for (; column + MFA_NR <= padded; column += MFA_NR) {
        weigh_panel(s, panel + s->first / 2 * MFA_NR, output, tiles, true);
        panel += s->panel_stride;
        output += MFA_MR * MFA_NR;
    }
    if (column < padded)
        weigh_panel(s, panel + s->first / 2 * SIDE, output, tiles, false);
}
