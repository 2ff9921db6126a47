/* Packing, part of template.h: rows as they are in memory to tiles, strips and panels. */

#include "transpose.h"

/* What is packed: floats, or pairs of BF16 as they are, which are moved as if they were floats. */
enum { MFA_AS_PAIRS = -1 };

/* Bytes of an element, or of a pair. */
MFA_INLINE size_t size_of(const int as)
{
    return as == MFA_PRECISION_FP32 || as == MFA_AS_PAIRS ? sizeof(float) : 2;
}

/* A vector of a row, from element (or pair) `first` on. */
MFA_INLINE vf row_vector(const mfa_source *from, unsigned row, unsigned first, const int as)
{
    return load_vector(from->rows[row] + first * size_of(as), as);
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
    MFA_UNROLL_FOR (unsigned i = 0; i < MFA_LANES; i++) {
        vf column = as == MFA_AS_PAIRS ? v[i] : v_mul(v[i], v_set1(factor));
        if (i < columns)
            memcpy(tile + (size_t)i * width, &column, group * sizeof(float));
    }
}

/* `count` rows from `first` on, and zeros up to `group`, to columns of as many floats. */
MFA_INLINE void pack_group(float *tile, unsigned width, const mfa_source *from, unsigned first,
                           float factor, const unsigned count, const unsigned group, const int as)
{
    const unsigned pairs = (from->length + 1) / 2;
    const unsigned length = as != MFA_AS_PAIRS ? from->length
                            : MFA_TILES        ? mfa_padded_dim(pairs, MFA_LANES)
                                               : pairs;
    const unsigned whole = in_vectors(from, as);
    vf v[MFA_LANES];
    unsigned d = 0;
    for (; d < whole; d += MFA_LANES) {
        if (count == MFA_LANES && size_of(as) == sizeof(float)) {
            load_columns(v, from->rows + first, d * sizeof(float));
        } else {
            MFA_UNROLL_FOR (unsigned r = 0; r < MFA_LANES; r++)
                v[r] = r < count ? row_vector(from, first + r, d, as) : v_set1(0.0f);
            transpose(v);
        }
        store_columns(tile + (size_t)d * width + first, width, v, MFA_LANES, factor, group, as);
    }
    for (; d < length; d += MFA_LANES) {
        for (unsigned r = 0; r < MFA_LANES; r++)
            v[r] = r < count ? row_elements(from, first + r, d, as) : v_set1(0.0f);
        transpose(v);
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

#if !MFA_TILES
static void pack_columns(float *tile, unsigned width, const mfa_source *from, float factor)
{
    switch (from->precision) {
    case MFA_PRECISION_FP16: pack_rows(tile, width, from, factor, MFA_PRECISION_FP16); break;
    case MFA_PRECISION_BF16: pack_rows(tile, width, from, factor, MFA_PRECISION_BF16); break;
    default: pack_rows(tile, width, from, factor, MFA_PRECISION_FP32); break;
    }
}
#endif

#if MFA_PAIRS
static void pack_pairs(float *tile, unsigned width, const mfa_source *from)
{
    pack_rows(tile, width, from, 1.0f, MFA_AS_PAIRS);
}
#endif

#if MFA_TILES
/* Pairs as they are in memory, 16 of each row after the other. */
static void pack_queries(float *strip, const mfa_source *from)
{
    const unsigned pairs = (from->length + 1) / 2, whole = in_vectors(from, MFA_AS_PAIRS);
    for (unsigned d = 0; d < pairs; d += MFA_LANES)
        for (unsigned r = 0; r < MFA_MR; r++, strip += MFA_LANES)
            v_store(strip, r >= from->count ? v_set1(0.0f)
                           : d < whole      ? row_vector(from, r, d, MFA_AS_PAIRS)
                                            : row_elements(from, r, d, MFA_AS_PAIRS));
}

/* Pairs of columns that lie apart, or beyond the last. */
static vf value_elements(const mfa_source *from, unsigned row, unsigned column)
{
    vf v[2];
    for (unsigned j = 0; j < 2; j++) {
        const unsigned key = row + j * MFA_LANES;
        v[j] =
            key < from->count ? row_elements(from, key, column, MFA_PRECISION_BF16) : v_set1(0.0f);
    }
    return v_high_halves(v[0], v[1]);
}

/* Keys `row` and `row` + 16, in pairs; zeros for those that are not there. */
MFA_INLINE void pack_value_pairs(float *panels, size_t panel_stride, size_t first,
                                 const mfa_source *from, unsigned row)
{
    static const unsigned char zeros[2 * MFA_LANES];
    const unsigned padded = mfa_padded_dim(from->length, MFA_LANES);
    const unsigned whole = in_vectors(from, MFA_PRECISION_BF16), other = row + MFA_LANES;
    const unsigned char *a = row < from->count ? from->rows[row] : zeros;
    const unsigned char *b = other < from->count ? from->rows[other] : zeros;
    const unsigned a_step = a == zeros ? 0 : 2, b_step = b == zeros ? 0 : 2;
    unsigned start = 0;
    for (; start + MFA_NR <= whole; start += MFA_NR, panels += panel_stride) {
        float *to = panels + (first / 2 + row) * MFA_NR;
        MFA_UNROLL_FOR (unsigned i = 0; i < MFA_NR; i += MFA_LANES)
            v_store(to + i, v_load_pairs(a + (start + i) * a_step, b + (start + i) * b_step));
    }
    for (; start < padded; start += MFA_NR, panels += panel_stride) {
        const unsigned width = padded - start < MFA_NR ? padded - start : MFA_NR;
        float *to = panels + (first / 2 + row) * width;
        for (unsigned column = start; column < start + width; column += MFA_LANES, to += MFA_LANES)
            v_store(to, column < whole ? v_load_pairs(a + column * a_step, b + column * b_step)
                                       : value_elements(from, row, column));
    }
}

static void pack_panels(float *panels, size_t panel_stride, size_t first, const mfa_source *from)
{
    for (unsigned row = 0; row < MFA_LANES; row++)
        pack_value_pairs(panels, panel_stride, first, from, row);
}
#else
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
            MFA_UNROLL_FOR (unsigned i = 0; i < MFA_NR; i += MFA_LANES)
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
    case MFA_PRECISION_FP16:
        pack_values(panels, panel_stride, first, from, MFA_PRECISION_FP16);
        break;
    case MFA_PRECISION_BF16:
        pack_values(panels, panel_stride, first, from, MFA_PRECISION_BF16);
        break;
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
#endif
