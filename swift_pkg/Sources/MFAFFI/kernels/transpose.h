/*
 * Rows to columns, for pack.h: MFA_LANES vectors of as many floats, in place.
 *
 * First four rows at a time, inside each 128 bits. Vector 4 * i + j then holds, as its part k, the
 * elements 4 * k + j of the rows from 4 * i on, and only parts are left to change places. Floats
 * are moved, not computed with: any bits survive.
 */

/* Elements of two vectors: 0 to 3 of the first, 4 to 7 of the second, in each 128 bits alike. */
#if MFA_LANES == 4
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#elif MFA_LANES == 8
#define MIX(a, b, i, j, k, l)                                                                      \
    __builtin_shufflevector(a, b, i, j, k + 4, l + 4, i + 4, j + 4, k + 8, l + 8)
#else
#define MIX(a, b, i, j, k, l)                                                                      \
    __builtin_shufflevector(a, b, i, j, k + 12, l + 12, i + 4, j + 4, k + 16, l + 16, i + 8,       \
                            j + 8, k + 20, l + 20, i + 12, j + 12, k + 24, l + 24)
#endif

/* Parts of 128 bits. */
#define PART(i) 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3

/* Four vectors, each part by itself. */
MFA_INLINE void transpose_parts(vf v[4])
{
    vf ab_low = MIX(v[0], v[1], 0, 1, 4, 5), ab_high = MIX(v[0], v[1], 2, 3, 6, 7);
    vf cd_low = MIX(v[2], v[3], 0, 1, 4, 5), cd_high = MIX(v[2], v[3], 2, 3, 6, 7);
    v[0] = MIX(ab_low, cd_low, 0, 2, 4, 6);
    v[1] = MIX(ab_low, cd_low, 1, 3, 5, 7);
    v[2] = MIX(ab_high, cd_high, 0, 2, 4, 6);
    v[3] = MIX(ab_high, cd_high, 1, 3, 5, 7);
}

MFA_INLINE void transpose(vf v[MFA_LANES])
{
    MFA_UNROLL_FOR (int i = 0; i < MFA_LANES; i += 4)
        transpose_parts(v + i);
#if MFA_LANES == 8
    MFA_UNROLL_FOR (int j = 0; j < 4; j++) {
        vf a = v[j], b = v[4 + j];
        v[j] = __builtin_shufflevector(a, b, PART(0), PART(2));
        v[4 + j] = __builtin_shufflevector(a, b, PART(1), PART(3));
    }
#elif MFA_LANES == 16
    MFA_UNROLL_FOR (int j = 0; j < 4; j++) {
        vf a = v[j], b = v[4 + j], c = v[8 + j], d = v[12 + j];
        vf ab_low = __builtin_shufflevector(a, b, PART(0), PART(1), PART(4), PART(5));
        vf ab_high = __builtin_shufflevector(a, b, PART(2), PART(3), PART(6), PART(7));
        vf cd_low = __builtin_shufflevector(c, d, PART(0), PART(1), PART(4), PART(5));
        vf cd_high = __builtin_shufflevector(c, d, PART(2), PART(3), PART(6), PART(7));
        v[j] = __builtin_shufflevector(ab_low, cd_low, PART(0), PART(2), PART(4), PART(6));
        v[4 + j] = __builtin_shufflevector(ab_low, cd_low, PART(1), PART(3), PART(5), PART(7));
        v[8 + j] = __builtin_shufflevector(ab_high, cd_high, PART(0), PART(2), PART(4), PART(6));
        v[12 + j] = __builtin_shufflevector(ab_high, cd_high, PART(1), PART(3), PART(5), PART(7));
    }
#endif
}

/*
 * As many rows of floats, from byte `offset` on, as columns. Where parts can come from memory to
 * where they belong, the unit that mixes is left with half of the work.
 */
MFA_INLINE void load_columns(vf v[MFA_LANES], const unsigned char *const *rows, size_t offset)
{
#ifdef MFA_LOADS_PARTS
    MFA_UNROLL_FOR (int i = 0; i < MFA_LANES; i += 4) {
        MFA_UNROLL_FOR (int j = 0; j < 4; j++)
            v[i + j] = v_load_parts(rows + j, offset + (size_t)i * sizeof(float));
        transpose_parts(v + i);
    }
#else
    MFA_UNROLL_FOR (int r = 0; r < MFA_LANES; r++)
        v[r] = v_load((const float *)(const void *)(rows[r] + offset));
    transpose(v);
#endif
}

#undef MIX
#undef PART
