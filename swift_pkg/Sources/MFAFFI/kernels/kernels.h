/*
 * The inner loops, once per instruction set.
 *
 * Work is done on strips of `mr` query rows. Packed operands, all FP32 and 64-byte aligned:
 *   queries  per strip [head_dim][mr], multiplied by scale * log2(e)
 *   keys     per tile of `nr` keys [head_dim][nr]
 *   values   panels of `nr` columns [padded keys][nr]; the last one may be narrower (a multiple
 *            of `lanes`), so that small dimensions waste little
 * Kernels with `pairs` keep BF16 queries and keys as they are: for queries and keys, read
 * [ceil(head_dim / 2)] pairs of neighbouring elements above, not multiplied by anything.
 * Kernels with `tiles` take BF16 only, and have 16 pairs (with zeros where there are no more) where
 * others have one element:
 *   queries  per strip [ceil(head_dim / 32)][mr][16 pairs]
 *   keys     per tile of `nr` keys [ceil(head_dim / 32) * 16 pairs][nr]
 *   values   panels [padded keys / 2][columns]: pairs of keys, of each `nr` the first and the 17th,
 *            the second and the 18th, and so on
 *   output   per strip, panels as for the values: [mr][width of the panel]
 * Scores are in units of log2; weights are 2^(score - the row's origin).
 */
#ifndef MFA_KERNELS_H
#define MFA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MFA_MAX_MR = 32,  /* rows of a strip, at most */
    MFA_MAX_NR = 64,  /* keys of a tile, at most */
    MFA_MAX_LANES = 16,
    MFA_MAX_PREFETCH_RUNS = 4,
    MFA_MAX_KEY_BLOCK = 256, /* keys of a block; also the row length of a strip of weights */
    MFA_BRIEF_MAX_KEYS = 128, /* that are few */
    MFA_BRIEF_KEY_STEP = 16, /* their number is rounded up to a multiple of it */
    MFA_BRIEF_VECTORS = 2, /* of queries, in a strip against few keys */
};

/* Systems that give processes tiles on request, and compilers whose assemblers know them. */
#if defined(__x86_64__) && defined(__linux__) &&                                                   \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define MFA_HAS_TILES 1
#else
#define MFA_HAS_TILES 0
#endif

/*
 * Any origin will do for a row as long as nothing overflows, as FlashAttention-4 observed: so a row
 * keeps its origin until a score lies more than this above the one that it was made from. Weights
 * are 2^(score - origin) times a power of two that makes the sum of all weights of a row at most 1:
 * then a row of values near the end of the range does not overflow either. The power is a factor
 * and no part of the origin, because scores are summed up from minus the origin: far from 0 that
 * would cost bits.
 */
#define MFA_RISE 8.0f

static inline float mfa_shrink(uint32_t keys)
{
    float shrink = 0x1p-9f; /* MFA_RISE, and a sink, which is one key more */
    for (; keys; keys >>= 1)
        shrink *= 0.5f;
    return shrink;
}

/* Running state of a strip. */
typedef struct {
    /*
     * What weights are measured from: a score of the row, not far below the highest so far;
     * -infinity as long as the row has seen no key.
     */
    float origin[MFA_MAX_MR];
    float sum[MFA_MAX_MR * MFA_MAX_LANES]; /* per row, `lanes` partial sums */
    bool measured;             /* scores can be summed up from minus each row's origin */
    bool fresh;                /* no product so far: the output holds nothing */
} mfa_strip_state;

/* Rows of memory far away that other work will want soon. */
typedef struct {
    const unsigned char *row;
    int64_t step; /* bytes from a row to the next */
    uint32_t rows, bytes,
        prefetched; /* rows left; bytes of each, of the first one prefetched for */
} mfa_prefetch_rows;

/* Kernels ask for a line of it now and then, in passing; the last run comes first. */
typedef struct {
    mfa_prefetch_rows run[MFA_MAX_PREFETCH_RUNS];
    unsigned runs;
} mfa_prefetch;

/* One strip against one block of keys. */
typedef struct {
    const float *queries, *keys;
    const float *values; /* of the unit's key 0; the block starts at key `first` */
    size_t first;
    float *weights; /* scratch [mr][MFA_MAX_KEY_BLOCK] */
    float *output;
    mfa_strip_state *state;
    size_t panel_stride; /* floats between value panels of full width */
    unsigned head_dim, value_dim;
    bool paired;              /* queries and keys are BF16 pairs; scores still need `scale` */
    float scale;
    float shrink; /* a factor of all weights */
    unsigned keys_seen;       /* by the row that sees most; at most MFA_MAX_KEY_BLOCK */
    bool clipped;             /* some row sees fewer than keys_seen rounded up to `lanes` */
    const uint32_t *visible;  /* [mr] keys of the block that each row sees; used when clipped */
    const float *const *bias; /* [mr] rows of as many biases, or null for none */
    mfa_prefetch *prefetch;
} mfa_strip;

/* A few query rows against a run of keys and values that are read in place. */
typedef struct {
    const float *queries;  /* [rows][query_step], multiplied by scale * log2(e) */
    const unsigned char *keys, *values;
    size_t query_step, key_step, value_step; /* floats, bytes, bytes */
    float *weights;        /* [rows][MFA_MAX_KEY_BLOCK] */
    float *output;         /* [rows][output_step], output_step a multiple of `lanes` */
    size_t output_step;
    float *origin, *sum; /* [rows], as in mfa_strip_state */
    float shrink; /* a factor of all weights */
    unsigned rows, count, head_dim, value_dim;
    int precision;
} mfa_decode;

/* A strip of queries against few keys, all of them at once. */
typedef struct {
    const float *queries, *keys; /* as pack_columns and brief_pack_keys write them */
    const float *values; /* whole vectors of them, for each key */
    size_t value_step;   /* floats from a key's values to the next */
    float *weights; /* [keys, rounded up][queries of a strip] */
    float *origin, *sum; /* per query: sinks, in the beginning; sum: of all weights, afterwards */
    float shrink; /* a factor of all weights */
    unsigned char *const *out; /* [rows] */
    unsigned rows, count, head_dim, value_dim;
    int precision; /* of the results */
} mfa_brief;

/* Where vectors come from: `stride` elements between the vector's own elements. */
typedef struct {
    const unsigned char *const *rows;
    unsigned count;
    unsigned length;
    int64_t stride;
    int precision;
} mfa_source;

/* The shapes of a thread's tile registers; no palette: they hold nothing. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} mfa_tile_state;

typedef struct mfa_kernels {
    const char *name;
    bool (*usable)(void);
    unsigned mr, nr, lanes;
    bool pairs; /* has a dot product of BF16 pairs: exact products, FP32 sums */
    /*
     * Products come from a tile unit; a thread that uses it enters, and leaves it as it was. Calls
     * that are not of BF16, of few rows or very short ones go to `otherwise`.
     */
    bool tiles;
    const struct mfa_kernels *otherwise;
    void (*enter)(mfa_tile_state *before);
    void (*leave)(const mfa_tile_state *before);
    /* tile[d * width + r] = factor * row r's element d; zeros up to the next full vector */
    void (*pack_columns)(float *tile, unsigned width, const mfa_source *from, float factor);
    /* the same for BF16 rows, in pairs; null without `pairs` */
    void (*pack_pairs)(float *tile, unsigned width, const mfa_source *from);
    /* a strip of queries; null without `tiles` */
    void (*pack_queries)(float *strip, const mfa_source *from);
    /* rows into value panels, from key `first` on */
    void (*pack_panels)(float *panels, size_t panel_stride, size_t first, const mfa_source *from);
    /* one row times a factor, contiguous */
    void (*scale_row)(float *row, const mfa_source *from, float factor);
    void (*attend)(const mfa_strip *strip);
    /*
     * Output row `row` of a strip over its sum of weights, as value_dim contiguous numbers of a
     * precision; returns the sum, and writes nothing when it is 0.
     */
    float (*gather)(unsigned char *to, int precision, const mfa_strip_state *state,
                    const float *output, unsigned row, unsigned value_dim);
    /* for few rows, in this order: scores; per row, scores to weights; weights times values */
    void (*decode_scores)(const mfa_decode *decode);
    void (*decode_softmax)(const mfa_decode *decode, unsigned row, unsigned visible,
                           const float *bias);
    void (*decode_values)(const mfa_decode *decode);
    /* for few keys: the copies of them and their values, and everything else of a strip */
    void (*brief_pack_keys)(float *keys, const mfa_source *from);
    void (*brief_pack_values)(float *values, const mfa_source *from);
    void (*brief_attend)(const mfa_brief *brief);
    /* rounds `count` floats to the precision, contiguous */
    void (*store)(unsigned char *to, const float *from, unsigned count, int precision);
} mfa_kernels;

extern const mfa_kernels mfa_kernels_generic;
#if defined(__x86_64__)
extern const mfa_kernels mfa_kernels_avx2, mfa_kernels_avx512, mfa_kernels_avx512bf16,
    mfa_kernels_amx;
#elif defined(__aarch64__)
extern const mfa_kernels mfa_kernels_neon;
#endif

/* Floats of one key's share of the value panels, and of one strip row's output. */
static inline unsigned mfa_padded_dim(unsigned value_dim, unsigned lanes)
{
    return (value_dim + lanes - 1) / lanes * lanes;
}

#endif
