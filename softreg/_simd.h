/* What Cython cannot say for itself: clones per instruction set, short vectors, exp and log that vectorise, OpenMP shims.
 *
 * Everything has a plain C fallback, so any compiler builds the package; gcc on x86-64 Linux builds it fast.
 */
#ifndef SOFTREG_SIMD_H
#define SOFTREG_SIMD_H

#include <stdint.h>
#include <string.h>

/* --- one clone of a kernel per x86-64 level, chosen when the library is loaded -------------------------------------
 * SR_SIMD_LEVEL (setup.py: SOFTREG_SIMD) is the highest level to build: 4 = AVX-512, 3 = AVX2 and FMA, 0 = no clones.
 * Resolvers of this kind need gcc >= 12, the GNU linker and glibc. */
#ifndef SR_SIMD_LEVEL
#define SR_SIMD_LEVEL 4
#endif
#if SR_SIMD_LEVEL >= 3 && defined(__x86_64__) && defined(__linux__) && defined(__GLIBC__) \
    && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define SR_CLONES 1
#if SR_SIMD_LEVEL >= 4
#define SR_VOID __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) void
#else
#define SR_VOID __attribute__((target_clones("arch=x86-64-v3", "default"))) void
#endif
#else
#define SR_CLONES 0
#define SR_VOID void
#endif

/* The clone that this machine runs: 4, 3 or 0. */
static inline int sr_simd_level(void) {
#if SR_CLONES
    __builtin_cpu_init();
    if (SR_SIMD_LEVEL >= 4 && __builtin_cpu_supports("x86-64-v4")) return 4;
    if (__builtin_cpu_supports("x86-64-v3")) return 3;
#endif
    return 0;
}

/* --- 64-byte vectors: the compiler splits them where registers are shorter, other compilers get one lane ------------ */
#if defined(__GNUC__)
#define SR_INLINE static inline __attribute__((always_inline))
#define SR_INLINE_VOID __attribute__((always_inline)) inline void
#define SR_PREFETCH(p) __builtin_prefetch((p), 0, 2)
typedef float sr_vfloat __attribute__((vector_size(64), aligned(4), may_alias));
typedef double sr_vdouble __attribute__((vector_size(64), aligned(8), may_alias));
#else
#define SR_INLINE static inline
#define SR_INLINE_VOID inline void
#define SR_PREFETCH(p) ((void)(p))
typedef float sr_vfloat;
typedef double sr_vdouble;
#endif
#define SR_FLOAT_LANES ((int)(sizeof(sr_vfloat) / sizeof(float)))
#define SR_DOUBLE_LANES ((int)(sizeof(sr_vdouble) / sizeof(double)))

/* --- exp(z - top) for z <= top and log(x) for x >= 1: branch-free, within 2 ulp, so that loops over them vectorise ----
 * exp: z - top with its rounding error (Knuth's two-sum: logits of 1e4 leave an error of 1e-3 there in float32),
 *      = n ln2 + r, a minimax polynomial in r, times 2^n in two factors so that the result underflows gradually.
 * log: x = 2^e m with m in [sqrt(1/2), sqrt(2)), then log m = 2 atanh(t), t = (m - 1)/(m + 1), as its series.
 * Adding 1.5 * 2^(mantissa bits) rounds to an integer and leaves that integer in the low bits. NaN stays NaN. */
SR_INLINE float sr_bits_float(int32_t i) { float x; memcpy(&x, &i, sizeof x); return x; }
SR_INLINE int32_t sr_float_bits(float x) { int32_t i; memcpy(&i, &x, sizeof i); return i; }
SR_INLINE double sr_bits_double(int64_t i) { double x; memcpy(&x, &i, sizeof x); return x; }
SR_INLINE int64_t sr_double_bits(double x) { int64_t i; memcpy(&i, &x, sizeof i); return i; }

SR_INLINE float sr_exp_float(float z, float top) {
    const float round = 12582912.0f;
    float x = z - top;
    const float back = x - z;
    const float error = x < -104.0f ? 0.0f : (z - (x - back)) - (top + back);
    x = x < -104.0f ? -104.0f : x;
    float n = x * 1.44269504f + round;
    const int32_t q = sr_float_bits(n) - sr_float_bits(round);
    const int32_t half = (int32_t)((uint32_t)(q + 256) >> 1) - 128;
    n -= round;
    float r = x - n * 0.693145752f;
    r = (r - n * 1.42860677e-6f) + error;
    float p = 1.98909908e-4f;
    p = p * r + 1.39336500e-3f;
    p = p * r + 8.33331093e-3f;
    p = p * r + 4.16664649e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 5.00000001e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * sr_bits_float((half + 127) << 23) * sr_bits_float((q - half + 127) << 23);
}

SR_INLINE double sr_exp_double(double z, double top) {
    const double round = 6755399441055744.0;
    double x = z - top;
    const double back = x - z;
    const double error = x < -746.0 ? 0.0 : (z - (x - back)) - (top + back);
    x = x < -746.0 ? -746.0 : x;
    double n = x * 1.4426950408889634 + round;
    const int64_t q = sr_double_bits(n) - sr_double_bits(round);
    const int64_t half = (int64_t)((uint64_t)(q + 2048) >> 1) - 1024;
    n -= round;
    double r = x - n * 0.693147180369123816490;
    r = (r - n * 1.90821492927058770002e-10) + error;
    double p = 2.5100385495510319e-8;
    p = p * r + 2.7620088445409748e-7;
    p = p * r + 2.7557268459997065e-6;
    p = p * r + 2.4801521295954375e-5;
    p = p * r + 1.9841269863053617e-4;
    p = p * r + 1.3888888917213717e-3;
    p = p * r + 8.3333333333300618e-3;
    p = p * r + 4.1666666666624128e-2;
    p = p * r + 1.6666666666666667e-1;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    return p * sr_bits_double((half + 1023) << 52) * sr_bits_double((q - half + 1023) << 52);
}

SR_INLINE float sr_log_float(float x) {
    const int32_t i = sr_float_bits(x) - 0x3f3504f3;
    const int32_t e = i >> 23;
    const float m = sr_bits_float(i - (e << 23) + 0x3f3504f3);
    const float t = (m - 1.0f) / (m + 1.0f), u = t * t;
    float p = 0.1111111f;
    p = p * u + 0.14285715f;
    p = p * u + 0.2f;
    p = p * u + 0.33333334f;
    return (float)e * 0.693145752f + (2.0f * t + (2.0f * t * u * p + (float)e * 1.42860677e-6f));
}

SR_INLINE double sr_log_double(double x) {
    const double magic = 6755399441055744.0;
    const int64_t sqrt_half = 0x3fe6a09e667f3bcd;
    const int64_t i = sr_double_bits(x) - sqrt_half;
    const int64_t e = (int64_t)((uint64_t)i >> 52);
    const double n = sr_bits_double(e + sr_double_bits(magic)) - magic;
    const double m = sr_bits_double(i - (e << 52) + sqrt_half);
    const double t = (m - 1.0) / (m + 1.0), u = t * t;
    double p = 1.0 / 21;
    p = p * u + 1.0 / 19;
    p = p * u + 1.0 / 17;
    p = p * u + 1.0 / 15;
    p = p * u + 1.0 / 13;
    p = p * u + 1.0 / 11;
    p = p * u + 1.0 / 9;
    p = p * u + 1.0 / 7;
    p = p * u + 1.0 / 5;
    p = p * u + 1.0 / 3;
    return n * 0.693147180369123816490 + (2.0 * t + (2.0 * t * u * p + n * 1.90821492927058770002e-10));
}

/* --- OpenMP, where there is one -------------------------------------------------------------------------------------- */
#ifdef _OPENMP
#include <omp.h>
#define SR_OPENMP 1
#define sr_max_threads() omp_get_max_threads()
#else
#define SR_OPENMP 0
#define sr_max_threads() 1
#endif

#endif
