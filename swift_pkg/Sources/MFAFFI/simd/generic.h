/* The vocabulary of template.h for plain C over the compilers' vector extension. */
#define MFA_LANES 4
#define MFA_MR 4
#define MFA_NV 2
#define MFA_PREFETCH_STEPS 16
#define V_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

V_INLINE vf v_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

V_INLINE void v_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
V_INLINE vf v_set1(float x) { return (vf){x, x, x, x}; }
V_INLINE vf v_add(vf a, vf b) { return a + b; }
V_INLINE vf v_sub(vf a, vf b) { return a - b; }
V_INLINE vf v_mul(vf a, vf b) { return a * b; }
V_INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }

V_INLINE vf v_select(vi condition, vf yes, vf no)
{
    return (vf)((condition & (vi)yes) | (~condition & (vi)no));
}

V_INLINE vf v_max(vf a, vf b) { return v_select(a > b, a, b); }

V_INLINE float v_largest(vf v)
{
    float a = v[0] > v[1] ? v[0] : v[1];
    float b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

V_INLINE float v_total(vf v) { return (v[0] + v[1]) + (v[2] + v[3]); }

V_INLINE vf v_bias(vf v, vf bias)
{
    const vf removed = v_set1(-__builtin_inff());
    return v_select(bias == removed, removed, v + bias);
}

V_INLINE vf v_exponent(vf t) { return (vf)((vu)t << 23); }

V_INLINE vf v_clip(vf v, uint32_t first, uint32_t visible)
{
    const int32_t left = (int32_t)visible - (int32_t)first;
    return v_select((vi){0, 1, 2, 3} < (vi){left, left, left, left}, v, v_set1(-__builtin_inff()));
}

V_INLINE vf v_load_fp16(const unsigned char *p)
{
    return (vf){mfa_from_fp16(mfa_load_half_bits(p)), mfa_from_fp16(mfa_load_half_bits(p + 2)),
                mfa_from_fp16(mfa_load_half_bits(p + 4)), mfa_from_fp16(mfa_load_half_bits(p + 6))};
}

V_INLINE vf v_load_bf16(const unsigned char *p)
{
    return (vf){mfa_from_bf16(mfa_load_half_bits(p)), mfa_from_bf16(mfa_load_half_bits(p + 2)),
                mfa_from_bf16(mfa_load_half_bits(p + 4)), mfa_from_bf16(mfa_load_half_bits(p + 6))};
}

V_INLINE void v_store_fp16(unsigned char *p, vf v)
{
    uint16_t half[4] = {mfa_to_fp16(v[0]), mfa_to_fp16(v[1]), mfa_to_fp16(v[2]), mfa_to_fp16(v[3])};
    memcpy(p, half, sizeof half);
}

V_INLINE void v_store_bf16(unsigned char *p, vf v)
{
    uint16_t half[4] = {mfa_to_bf16(v[0]), mfa_to_bf16(v[1]), mfa_to_bf16(v[2]), mfa_to_bf16(v[3])};
    memcpy(p, half, sizeof half);
}
