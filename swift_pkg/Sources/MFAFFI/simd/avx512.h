/* The vocabulary of template.h for AVX-512 F and DQ. */
#define MFA_LANES 16
#ifndef MFA_MR
#define MFA_MR 12
#endif
#define MFA_NV 2
#define MFA_PREFETCH_STEPS 8
#define MFA_SCALES 1
#define MFA_FUSES 1
#define V_INLINE static inline __attribute__((always_inline))

typedef __m512 vf;

V_INLINE vf v_load(const float *p) { return _mm512_loadu_ps(p); }
V_INLINE void v_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
V_INLINE vf v_set1(float x) { return _mm512_set1_ps(x); }
V_INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
V_INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
V_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
V_INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
V_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
V_INLINE float v_largest(vf v) { return _mm512_reduce_max_ps(v); }
V_INLINE float v_total(vf v) { return _mm512_reduce_add_ps(v); }

/* 128 bits each of every fourth row. */
#define MFA_LOADS_PARTS
V_INLINE vf v_load_parts(const unsigned char *const *rows, size_t offset)
{
#define PART_OF(row) _mm_loadu_ps((const float *)(const void *)(rows[row] + offset))
    vf v = _mm512_castps128_ps512(PART_OF(0));
    v = _mm512_insertf32x4(v, PART_OF(4), 1);
    v = _mm512_insertf32x4(v, PART_OF(8), 2);
    return _mm512_insertf32x4(v, PART_OF(12), 3);
#undef PART_OF
}

V_INLINE vf v_bias(vf v, vf bias)
{
    const vf removed = _mm512_set1_ps(-__builtin_inff());
    return _mm512_mask_mov_ps(_mm512_add_ps(v, bias), _mm512_cmpeq_ps_mask(bias, removed), removed);
}

V_INLINE vf v_fraction(vf v)
{
    return _mm512_reduce_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

V_INLINE vf v_scale(vf a, vf b) { return _mm512_scalef_ps(a, b); }

V_INLINE vf v_clip(vf v, uint32_t first, uint32_t visible)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i key = _mm512_add_epi32(lane, _mm512_set1_epi32((int)first));
    __mmask16 seen = _mm512_cmplt_epi32_mask(key, _mm512_set1_epi32((int)visible));
    return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), seen, v);
}

V_INLINE vf v_load_fp16(const unsigned char *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

V_INLINE vf v_load_bf16(const unsigned char *p)
{
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

V_INLINE void v_store_fp16(unsigned char *p, vf v)
{
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

V_INLINE void v_store_bf16(unsigned char *p, vf v)
{
#if defined(MFA_ROUNDS_TO_BF16) /* the processor does, and takes denormal numbers for 0 */
    _mm256_storeu_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i even = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    __m512i half = _mm512_srli_epi32(_mm512_mask_mov_epi32(even, nan, quiet), 16);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(half));
#endif
}
