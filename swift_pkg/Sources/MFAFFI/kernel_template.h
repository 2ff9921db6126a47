/*
 * The kernels, written once over a small vector vocabulary. A kernel_<isa>.c defines it and then
 * includes this file:
 *
 *   MFA_ISA            suffix of the table's name       MFA_MR, MFA_NV   rows, vectors of a tile
 *   MFA_LANES          floats per vector                vf               vector of floats
 *   MFA_PREFETCH_STEPS steps of the inner loops between asking for memory and using it
 *   v_load v_store v_set1 v_add v_sub v_mul             as their names say; any alignment
 *   v_fma(a, b, c)     a * b + c
 *   v_max(a, b)        b when either is NaN
 *   v_largest(v), v_total(v)   the largest lane, the sum of the lanes
 *   v_bias(v, bias)    v + bias, and -infinity where the bias is, even for NaN
 *   v_clip(v, first, visible)  lanes at or beyond `visible` become -infinity
 *   v_load_bf16, v_load_fp16, v_store_bf16, v_store_fp16
 * and MFA_FUSES 1 where there are registers enough for a tile and an exponential; with MFA_SCALES 1
 *   v_fraction(v)      v - floor(v); 0 for infinities
 *   v_scale(a, b)      a * 2^floor(b)
 * or else
 *   v_exponent(t)      2^n for t = 1.5 * 2^23 + 127 + n, exactly 0 for n = -127
 * and, with MFA_PAIRS 1,
 *   v_dot_pairs(a, b, c)  c + products of the BF16 pairs in a and b, whose type is vf all the same
 */
#include "include/mfa_ffi.h"
#include "kernels.h"
#include "scalar.h"

#include <float.h>
#include <math.h>

#ifndef MFA_SCALES
#define MFA_SCALES 0
#endif
#ifndef MFA_FUSES
#define MFA_FUSES 0
#endif
#ifndef MFA_PAIRS
#define MFA_PAIRS 0
#define v_dot_pairs v_fma /* never reached */
#endif
#define MFA_NR (MFA_NV * MFA_LANES)
#define MFA_PASTE_(a, b) a##b
#define MFA_PASTE(a, b) MFA_PASTE_(a, b)
#define MFA_INLINE static inline __attribute__((always_inline))
#if defined(MFA_NO_UNROLL) /* sanitizers make unrolled loops take minutes to compile */
#define MFA_UNROLL
#elif defined(__clang__)
#define MFA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MFA_UNROLL _Pragma("GCC unroll 32")
#endif

/* Keeps the compiler from loading early what it then has to keep elsewhere. */
#define MFA_IN_ORDER __asm__ volatile("" ::: "memory")

/* ---- packing ---- */

MFA_INLINE float load_element(const unsigned char *at, int precision)
{
    switch (precision) {
    case MFA_PRECISION_FP16: return mfa_from_fp16(mfa_load_half_bits(at));
    case MFA_PRECISION_BF16: return mfa_from_bf16(mfa_load_half_bits(at));
    default: return mfa_load_float(at);
    }
}

MFA_INLINE vf load_vector(const unsigned char *at, int precision)
{
    switch (precision) {
    case MFA_PRECISION_FP16: return v_load_fp16(at);
    case MFA_PRECISION_BF16: return v_load_bf16(at);
    default: return v_load((const float *)(const void *)at);
    }
}

#include "transpose.h"

/* What is packed: floats, or pairs of BF16 as they are, which are moved as if they were floats. */
enum { MFA_AS_PAIRS = -1 };

/* A vector of a row, from element (or pair) `first` on. */
MFA_INLINE vf row_vector(const mfa_source *from, unsigned row, unsigned first, const int as)
{
    const unsigned char *at = from->rows[row];
    if (as == MFA_AS_PAIRS)
        return v_load((const float *)(const void *)at + first);
    return load_vector(at + (size_t)first * (as == MFA_PRECISION_FP32 ? 4 : 2), as);
}

/* The same where elements lie apart, or beyond the row's end, where zeros are taken. */
MFA_INLINE vf row_elements(const mfa_source *from, unsigned row, unsigned first, const int as)
{
    const unsigned each = as == MFA_AS_PAIRS ? 2 : 1, start = first * each;
    const size_t step = (size_t)from->stride * (as == MFA_PRECISION_FP32 ? 4 : 2);
    const unsigned char *at = from->rows[row] + start * step;
    float part[MFA_LANES] = {0};
    for (unsigned i = 0; i < MFA_LANES * each && start + i < from->length; i++, at += step) {
        if (as == MFA_AS_PAIRS)
            memcpy((unsigned char *)part + 2 * (size_t)i, at, 2);
        else
            part[i] = load_element(at, as);
    }
    return v_load(part);
}

/* How many elements (or pairs) of each row are whole vectors that can be loaded as such. */
MFA_INLINE unsigned in_vectors(const mfa_source *from, const int as)
{
    const unsigned length = as == MFA_AS_PAIRS ? from->length / 2 : from->length;
    return from->stride == 1 ? length / MFA_LANES * MFA_LANES : 0;
}

MFA_INLINE void store_columns(float *tile, unsigned width, vf v[MFA_LANES], unsigned columns,
                              float factor, const unsigned group, const int as)
{
    transpose(v);
    MFA_UNROLL for (unsigned i = 0; i < MFA_LANES; i++) {
        vf column = as == MFA_AS_PAIRS ? v[i] : v_mul(v[i], v_set1(factor));
        if (i < columns)
            memcpy(tile + (size_t)i * width, &column, group * sizeof(float));
    }
}

/* `count` rows from `first` on, and zeros up to `group`, to columns of as many floats. */
MFA_INLINE void pack_group(float *tile, unsigned width, const mfa_source *from, unsigned first,
                           float factor, const unsigned count, const unsigned group, const int as)
{
    const unsigned length = as == MFA_AS_PAIRS ? (from->length + 1) / 2 : from->length;
    const unsigned whole = in_vectors(from, as);
    vf v[MFA_LANES];
    unsigned d = 0;
    for (; d < whole; d += MFA_LANES) {
        MFA_UNROLL for (unsigned r = 0; r < MFA_LANES; r++)
            v[r] = r < count ? row_vector(from, first + r, d, as) : v_set1(0.0f);
        store_columns(tile + (size_t)d * width + first, width, v, MFA_LANES, factor, group, as);
    }
    for (; d < length; d += MFA_LANES) {
        for (unsigned r = 0; r < MFA_LANES; r++)
            v[r] = r < count ? row_elements(from, first + r, d, as) : v_set1(0.0f);
        store_columns(tile + (size_t)d * width + first, width, v, length - d, factor, group, as);
    }
}

MFA_INLINE void pack_rows(float *tile, unsigned width, const mfa_source *from, float factor,
                          const int as)
{
    for (unsigned first = 0; first < from->count; first += MFA_LANES) {
        const unsigned left = from->count - first;
        const bool wide = width - first >= MFA_LANES; /* or else the end of a strip of queries */
        const unsigned rest = MFA_MR % MFA_LANES;
        if (wide && left >= MFA_LANES)
            pack_group(tile, width, from, first, factor, MFA_LANES, MFA_LANES, as);
        else if (wide)
            pack_group(tile, width, from, first, factor, left, MFA_LANES, as);
        else if (left >= rest)
            pack_group(tile, width, from, first, factor, rest, rest, as);
        else
            pack_group(tile, width, from, first, factor, left, rest, as);
    }
}

static void pack_columns(float *tile, unsigned width, const mfa_source *from, float factor)
{
    switch (from->precision) {
    case MFA_PRECISION_FP16: pack_rows(tile, width, from, factor, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: pack_rows(tile, width, from, factor, MFA_PRECISION_BF16); break;
    default: pack_rows(tile, width, from, factor, MFA_PRECISION_FP32); break;
    }
}

#if MFA_PAIRS
static void pack_pairs(float *tile, unsigned width, const mfa_source *from)
{
    pack_rows(tile, width, from, 1.0f, MFA_AS_PAIRS);
}
#endif

/* Elements of row `row` from `column` on, as many vectors as fill up to `end`. */
MFA_INLINE void copy_row(float *to, const mfa_source *from, unsigned row, unsigned column,
                         unsigned end, const int as)
{
    const unsigned whole = in_vectors(from, as);
    for (; column < end; column += MFA_LANES, to += MFA_LANES)
        v_store(to, column < whole ? row_vector(from, row, column, as)
                                   : row_elements(from, row, column, as));
}

MFA_INLINE void pack_values(float *panels, size_t panel_stride, size_t first,
                            const mfa_source *from, const int as)
{
    const unsigned padded = mfa_padded_dim(from->length, MFA_LANES);
    const unsigned wide = in_vectors(from, as) / MFA_NR * MFA_NR;
    for (unsigned r = 0; r < from->count; r++) {
        float *panel = panels;
        unsigned column = 0;
        for (; column < wide; column += MFA_NR, panel += panel_stride)
            MFA_UNROLL for (unsigned i = 0; i < MFA_NR; i += MFA_LANES)
                v_store(panel + (first + r) * MFA_NR + i, row_vector(from, r, column + i, as));
        for (; column < padded; column += MFA_NR, panel += panel_stride) {
            const unsigned width = padded - column < MFA_NR ? padded - column : MFA_NR;
            copy_row(panel + (first + r) * width, from, r, column, column + width, as);
        }
    }
}

static void pack_panels(float *panels, size_t panel_stride, size_t first, const mfa_source *from)
{
    switch (from->precision) {
    case MFA_PRECISION_FP16: pack_values(panels, panel_stride, first, from, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: pack_values(panels, panel_stride, first, from, MFA_PRECISION_BF16); break;
    default: pack_values(panels, panel_stride, first, from, MFA_PRECISION_FP32); break;
    }
}

/* Written element by element: a row of few queries is short work. */
static void scale_row(float *row, const mfa_source *from, float factor)
{
    const size_t step = (size_t)from->stride * (from->precision == MFA_PRECISION_FP32 ? 4 : 2);
    for (unsigned i = 0; i < from->length; i++)
        row[i] = factor * load_element(from->rows[0] + i * step, from->precision);
}

/* ---- attention ---- */

/*
 * 2^x for x <= 0, relative error below 2^-22; for -infinity 0; NaN stays NaN. The polynomials are
 * minimax in relative error, exact at 0.
 */
MFA_INLINE vf exp2_vector(vf x)
{
#if MFA_SCALES
    vf fraction = v_fraction(x); /* of [0, 1) */
    vf p = v_set1(1.867131619234394e-3f);
    p = v_fma(p, fraction, v_set1(9.017025998584186e-3f));
    p = v_fma(p, fraction, v_set1(5.579991737572332e-2f));
    p = v_fma(p, fraction, v_set1(2.401644484232394e-1f));
    p = v_fma(p, fraction, v_set1(6.931513120384988e-1f));
    p = v_fma(p, fraction, v_set1(1.0f));
    return v_scale(p, x);
#else
    const vf magic = v_set1(12583039.0f); /* 1.5 * 2^23 + 127: adding it rounds to an integer */
    x = v_max(v_set1(-127.0f), x);
    vf shifted = v_add(x, magic);
    vf fraction = v_sub(x, v_sub(shifted, magic)); /* of [-0.5, 0.5] */
    vf p = v_set1(1.326472731307149e-3f);
    p = v_fma(p, fraction, v_set1(9.671512991189957e-3f));
    p = v_fma(p, fraction, v_set1(5.550733581185341e-2f));
    p = v_fma(p, fraction, v_set1(2.4022242426872253e-1f));
    p = v_fma(p, fraction, v_set1(6.931470036506653e-1f));
    p = v_fma(p, fraction, v_set1(1.0f));
    return v_mul(p, v_exponent(shifted)); /* a product, so that NaN survives */
#endif
}

enum { LINE = 64 }; /* bytes of a cache line, nearly everywhere */

/* Operands stream from the second-level cache: ask for what comes a few steps later. */
MFA_INLINE void prefetch_ahead(const float *at, const int floats)
{
    enum { STEPS = MFA_PREFETCH_STEPS };
    MFA_UNROLL for (int i = 0; i < floats; i += LINE / (int)sizeof *at)
        __builtin_prefetch(at + (size_t)STEPS * (size_t)floats + i);
}

/*
 * Packing and writing results would wait for memory otherwise. One line at a time: many at once
 * would hold up the operands, which come the same way.
 */
MFA_INLINE void ask_for_line(mfa_ahead *ahead)
{
    if (ahead->runs == 0)
        return;
    mfa_rows_ahead *run = &ahead->run[ahead->runs - 1];
    __builtin_prefetch(run->row + run->asked, 0, 2);
    run->asked += LINE;
    if (run->asked < run->bytes + LINE - 1) /* rows begin anywhere in a line */
        return;
    run->asked = 0;
    run->row += run->step;
    if (--run->rows == 0)
        ahead->runs--;
}

enum { STEPS_A_LINE = 16 };

MFA_INLINE size_t steps_to(size_t left)
{
    return left < STEPS_A_LINE ? left : STEPS_A_LINE;
}

/* acc += queries times one tile of keys. */
MFA_INLINE void add_dots(const mfa_strip *s, unsigned tile, vf acc[MFA_MR][MFA_NV],
                         const int vectors, const bool paired)
{
    const unsigned steps = paired ? (s->head_dim + 1) / 2 : s->head_dim;
    const float *q = s->queries;
    const float *k = s->keys + (size_t)tile * s->head_dim * MFA_NR;
    for (const float *end = q + (size_t)steps * MFA_MR; q < end;) {
        const float *pause = q + steps_to((size_t)(end - q) / MFA_MR) * MFA_MR;
        ask_for_line(s->ahead);
        for (; q < pause; q += MFA_MR, k += MFA_NR) {
            vf b[MFA_NV];
            prefetch_ahead(k, MFA_NR);
            MFA_UNROLL for (int j = 0; j < vectors; j++) b[j] = v_load(k + j * MFA_LANES);
            MFA_UNROLL for (int r = 0; r < MFA_MR; r++) {
                vf a = v_set1(q[r]);
                MFA_UNROLL for (int j = 0; j < vectors; j++)
                    acc[r][j] = paired ? v_dot_pairs(a, b[j], acc[r][j]) : v_fma(a, b[j], acc[r][j]);
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
    MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL for (int j = 0; j < vectors; j++) {
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
    MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL for (int j = 0; j < vectors; j++) acc[r][j] = v_set1(0.0f);
    add_dots(s, tile, acc, vectors, paired);
    if (paired)
        MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
            MFA_UNROLL for (int j = 0; j < vectors; j++)
                acc[r][j] = v_mul(acc[r][j], v_set1(s->scale));
    mask_scores(s, tile, acc, vectors);
    float *weights = s->weights + tile * MFA_NR;
    MFA_UNROLL for (int r = 0; r < MFA_MR; r++) {
        vf maximum = v_load(maxima + r * MFA_LANES);
        MFA_UNROLL for (int j = 0; j < vectors; j++) {
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
    MFA_UNROLL for (int r = 0; r < MFA_MR; r += MFA_LANES) {
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
MFA_INLINE vf soften_row(const mfa_strip *s, int row, unsigned key, const float *origin)
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
    MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL for (int j = 0; j < vectors; j++) acc[r][j] = v_set1(0.0f);
    const float *weights = s->weights;
    for (const float *end = weights + s->keys_seen; weights < end;) {
        const float *pause = weights + steps_to((size_t)(end - weights));
        ask_for_line(s->ahead);
        for (; weights < pause; weights++, values += width) {
            vf b[MFA_NV];
            prefetch_ahead(values, width);
            MFA_UNROLL for (int j = 0; j < vectors; j++) b[j] = v_load(values + j * MFA_LANES);
            MFA_UNROLL for (int r = 0; r < MFA_MR; r++) {
                vf a = v_set1(weights[r * MFA_MAX_KEY_BLOCK]);
                MFA_UNROLL for (int j = 0; j < vectors; j++)
                    acc[r][j] = v_fma(a, b[j], acc[r][j]);
            }
        }
    }
    MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL for (int j = 0; j < vectors; j++) {
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
    MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
        MFA_UNROLL for (int j = 0; j < vectors; j++)
            acc[r][j] = v_set1(paired ? 0.0f : -s->state->maximum[r]);
    add_dots(s, tile, acc, vectors, paired);
    if (paired)
        MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
            MFA_UNROLL for (int j = 0; j < vectors; j++)
                acc[r][j] = v_fma(acc[r][j], v_set1(s->scale), v_set1(-s->state->maximum[r]));
    mask_scores(s, tile, acc, vectors);
    if (!MFA_SCALES) {
        vf highest = v_load(totals + MFA_MR * MFA_LANES);
        MFA_UNROLL for (int r = 0; r < MFA_MR; r++)
            MFA_UNROLL for (int j = 0; j < vectors; j++) highest = v_max(acc[r][j], highest);
        v_store(totals + MFA_MR * MFA_LANES, highest);
    }
    float *weights = s->weights + tile * MFA_NR;
    MFA_UNROLL for (int r = 0; r < MFA_MR; r++, weights += MFA_MAX_KEY_BLOCK) {
        if (!MFA_FUSES) {
            MFA_UNROLL for (int j = 0; j < vectors; j++) v_store(weights + j * MFA_LANES, acc[r][j]);
            continue;
        }
        vf total = v_set1(0.0f);
        MFA_UNROLL for (int j = 0; j < vectors; j++) {
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
        vf total = soften_row(&s, r, 0, &rows->origin[r]);
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
        v_store(totals + r * MFA_LANES, soften_row(s, r, tile * MFA_NR, NULL));
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

/* ---- results ---- */

static float gather(float *plain, const float *output, const mfa_strip_state *state, unsigned row,
                    unsigned value_dim)
{
    const float sum = v_total(v_load(state->sum + row * MFA_LANES));
    const unsigned padded = mfa_padded_dim(value_dim, MFA_LANES);
    const vf factor = v_set1(1.0f / sum);
    for (unsigned column = 0; column < padded && sum != 0.0f; column += MFA_NR) {
        unsigned width = padded - column < MFA_NR ? padded - column : MFA_NR;
        const float *from = output + (size_t)MFA_MR * column + (size_t)row * width;
        for (unsigned i = 0; i < width; i += MFA_LANES)
            v_store(plain + column + i, v_mul(v_load(from + i), factor));
    }
    return sum;
}

static void store(unsigned char *to, const float *from, unsigned count, int precision)
{
    unsigned i = 0;
    if (precision == MFA_PRECISION_FP32) {
        memcpy(to, from, count * sizeof(float));
        return;
    }
    for (; i + MFA_LANES <= count; i += MFA_LANES) {
        if (precision == MFA_PRECISION_BF16)
            v_store_bf16(to + 2 * i, v_load(from + i));
        else
            v_store_fp16(to + 2 * i, v_load(from + i));
    }
    for (; i < count; i++) {
        uint16_t half =
            precision == MFA_PRECISION_BF16 ? mfa_to_bf16(from[i]) : mfa_to_fp16(from[i]);
        memcpy(to + 2 * i, &half, sizeof half);
    }
}

/* ---- few query rows: keys and values are read where they are, once ---- */

enum { KEYS_AT_ONCE = 4, VECTORS_AT_ONCE = 8, ROWS_AHEAD = 16 };

/* The lines of a row that comes a little later, as the part `offset` of this one is read. */
MFA_INLINE void ask_for_row_part(const unsigned char *row, size_t step, size_t offset)
{
    if (offset % LINE == 0)
        __builtin_prefetch(row + ROWS_AHEAD * step + offset);
}

MFA_INLINE void dots_of(float *scores, const float *query, const unsigned char *keys,
                        size_t step, const int at_once, unsigned dim, const int precision)
{
    const size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    vf acc[KEYS_AT_ONCE];
    MFA_UNROLL for (int k = 0; k < at_once; k++) acc[k] = v_set1(0.0f);
    unsigned d = 0;
    for (; d + MFA_LANES <= dim; d += MFA_LANES) {
        vf q = v_load(query + d);
        MFA_UNROLL for (int k = 0; k < at_once; k++)
            ask_for_row_part(keys + (size_t)k * step, step, d * size);
        MFA_UNROLL for (int k = 0; k < at_once; k++)
            acc[k] = v_fma(q, load_vector(keys + (size_t)k * step + d * size, precision), acc[k]);
    }
    MFA_UNROLL for (int k = 0; k < at_once; k++) {
        float rest = 0.0f;
        for (unsigned i = d; i < dim; i++)
            rest += query[i] * load_element(keys + (size_t)k * step + i * size, precision);
        scores[k] = v_total(acc[k]) + rest;
    }
}

MFA_INLINE void dots_in(const mfa_few *f, const int precision)
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

static void few_scores(const mfa_few *f)
{
    switch (f->precision) {
    case MFA_PRECISION_FP16: dots_in(f, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: dots_in(f, MFA_PRECISION_BF16); break;
    default: dots_in(f, MFA_PRECISION_FP32); break;
    }
}

/* One row: biases, then scores to weights; maximum, sum and output brought up to date. */
static void few_soften(const mfa_few *f, unsigned row, unsigned visible, const float *bias)
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
    vf before = v_set1(f->maximum[row]);
    vf maximum = v_max(v_set1(v_largest(largest)), before);
    vf origin = v_max(v_set1(-FLT_MAX), maximum);
    vf factor = exp2_vector(v_sub(before, origin));
    vf total = v_set1(0.0f);
    for (unsigned i = 0; i < padded; i += MFA_LANES) {
        vf weight = exp2_vector(v_sub(v_load(weights + i), origin));
        v_store(weights + i, weight);
        total = v_add(total, weight);
    }
    float lanes[MFA_LANES];
    v_store(lanes, maximum);
    f->maximum[row] = lanes[0];
    v_store(lanes, factor);
    f->sum[row] = f->sum[row] * lanes[0] + v_total(total);
    float *output = f->output + (size_t)row * f->output_step;
    for (unsigned i = 0; i < f->output_step; i += MFA_LANES)
        v_store(output + i, v_mul(v_load(output + i), factor));
}

MFA_INLINE void add_columns(const mfa_few *f, unsigned row, unsigned column, const int vectors,
                            const int precision)
{
    const size_t size = precision == MFA_PRECISION_FP32 ? 4 : 2;
    const float *weights = f->weights + row * MFA_MAX_KEY_BLOCK;
    float *output = f->output + (size_t)row * f->output_step + column;
    const unsigned char *values = f->values + column * size;
    vf acc[VECTORS_AT_ONCE];
    MFA_UNROLL for (int j = 0; j < vectors; j++) acc[j] = v_set1(0.0f);
    for (unsigned key = 0; key < f->count; key++) {
        vf weight = v_set1(weights[key]);
        MFA_UNROLL for (int j = 0; j < vectors; j++)
            ask_for_row_part(values, f->value_step, (size_t)j * MFA_LANES * size);
        MFA_UNROLL for (int j = 0; j < vectors; j++)
            acc[j] = v_fma(weight, load_vector(values + (size_t)j * MFA_LANES * size, precision),
                           acc[j]);
        values += f->value_step;
    }
    MFA_UNROLL for (int j = 0; j < vectors; j++)
        v_store(output + j * MFA_LANES, v_add(v_load(output + j * MFA_LANES), acc[j]));
}

MFA_INLINE void values_in(const mfa_few *f, const int precision)
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

static void few_values(const mfa_few *f)
{
    switch (f->precision) {
    case MFA_PRECISION_FP16: values_in(f, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: values_in(f, MFA_PRECISION_BF16); break;
    default: values_in(f, MFA_PRECISION_FP32); break;
    }
}

const mfa_kernels MFA_PASTE(mfa_kernels_, MFA_ISA) = {
    .name = MFA_ISA_NAME,
    .usable = usable,
    .mr = MFA_MR,
    .nr = MFA_NR,
    .lanes = MFA_LANES,
#if MFA_PAIRS
    .pairs = true,
    .pack_pairs = pack_pairs,
#endif
    .pack_columns = pack_columns,
    .pack_panels = pack_panels,
    .scale_row = scale_row,
    .attend = attend,
    .gather = gather,
    .few_scores = few_scores,
    .few_soften = few_soften,
    .few_values = few_values,
    .store = store,
};
