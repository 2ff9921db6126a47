/* The vocabulary of template.h for Advanced SIMD. */
#define MFA_LANES 4
#define MFA_MR 6
#define MFA_NV 4
#define MFA_PREFETCH_STEPS 16
#define MFA_FUSES 1
#define V_INLINE static inline __attribute__((always_inline))

typedef float32x4_t vf;

V_INLINE vf v_load(const float *p) { return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p)); }
V_INLINE void v_store(float *p, vf v) { vst1q_f32(p, v); }
V_INLINE vf v_set1(float x) { return vdupq_n_f32(x); }
V_INLINE vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
V_INLINE vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
V_INLINE vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
V_INLINE vf v_max(vf a, vf b) { return vmaxq_f32(a, b); } /* NaN when either is */
V_INLINE vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
V_INLINE float v_largest(vf v) { return vmaxvq_f32(v); }
V_INLINE float v_total(vf v) { return vaddvq_f32(v); }

V_INLINE vf v_bias(vf v, vf bias)
{
    const vf removed = vdupq_n_f32(-__builtin_inff());
    return vbslq_f32(vceqq_f32(bias, removed), removed, vaddq_f32(v, bias));
}

V_INLINE vf v_exponent(vf t)
{
    return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(t), 23));
}

V_INLINE vf v_clip(vf v, uint32_t first, uint32_t visible)
{
    static const uint32_t lane[4] = {0, 1, 2, 3};
    uint32x4_t key = vaddq_u32(vld1q_u32(lane), vdupq_n_u32(first));
    uint32x4_t seen = vcltq_u32(key, vdupq_n_u32(visible));
    return vbslq_f32(seen, v, vdupq_n_f32(-__builtin_inff()));
}

V_INLINE vf v_load_fp16(const unsigned char *p)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}

V_INLINE vf v_load_bf16(const unsigned char *p)
{
    uint16x4_t half = vreinterpret_u16_u8(vld1_u8(p));
    return vreinterpretq_f32_u32(vshll_n_u16(half, 16));
}

V_INLINE void v_store_fp16(unsigned char *p, vf v)
{
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(v)));
}

V_INLINE void v_store_bf16(unsigned char *p, vf v)
{
    uint32x4_t bits = vreinterpretq_u32_f32(v);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t even = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    uint32x4_t chosen = vbslq_u32(vceqq_f32(v, v), even, quiet);
    vst1_u8(p, vreinterpret_u8_u16(vshrn_n_u32(chosen, 16)));
}
