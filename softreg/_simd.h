/* What Cython cannot say for itself: clones per instruction set, short vectors, exp and log that vectorise, OpenMP shims.
 *
 * Everything has a plain C fallback, so any compiler builds the package; gcc on x86-64 Linux builds it fast.
 */
#ifndef SOFTREG_SIMD_H
#define SOFTREG_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

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

/* --- vectors, wide and narrow: as long as the registers of AVX-512, or as those of the next level (AVX2, or SSE2 and NEON)
 * GCC keeps vectors that are longer than a register in memory, where a product takes twenty times as long. So a kernel is
 * compiled for both, and SR_IS_WIDE tells at run time which one this machine takes. Other compilers get one lane. */
#if SR_CLONES
#define SR_NARROW 32
#define SR_IS_WIDE() (SR_SIMD_LEVEL >= 4 && __builtin_cpu_supports("x86-64-v4"))
#else
#define SR_NARROW 16
#define SR_IS_WIDE() 0
#endif
#if defined(__GNUC__)
#define SR_INLINE static inline __attribute__((always_inline))
#define SR_INLINE_VOID __attribute__((always_inline)) inline void
#define SR_PREFETCH(p) __builtin_prefetch((p), 0, 2)
typedef float sr_vfloat __attribute__((vector_size(64), aligned(4), may_alias));
typedef double sr_vdouble __attribute__((vector_size(64), aligned(8), may_alias));
typedef float sr_nfloat __attribute__((vector_size(SR_NARROW), aligned(4), may_alias));
typedef double sr_ndouble __attribute__((vector_size(SR_NARROW), aligned(8), may_alias));
#else
#define SR_INLINE static inline
#define SR_INLINE_VOID inline void
#define SR_PREFETCH(p) ((void)(p))
typedef float sr_vfloat;
typedef double sr_vdouble;
typedef float sr_nfloat;
typedef double sr_ndouble;
#endif
#define SR_VECTOR_BYTES(number) (SR_IS_WIDE() ? sizeof(sr_v##number) : sizeof(sr_n##number))
#define SR_FLOAT_LANES() ((int)(SR_VECTOR_BYTES(float) / sizeof(float)))
#define SR_DOUBLE_LANES() ((int)(SR_VECTOR_BYTES(double) / sizeof(double)))

/* --- transposition in tiles of 8 rows x 4 columns, and four vectors summed at once ------------------------------------
 * sr_columns: b[c * ld + r] = a[r][j + c];  sr_rows: its inverse, b[r * ldb + c] = a[c * lda + r].
 * sr_sum4: out[r] += the sum of the lanes of v[r], r < 4.
 * 16-byte loads and stores on the side of the rows and 32-byte shuffles: AVX2 and AVX-512 have them all. */
#if SR_CLONES && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SR_SHUFFLE __builtin_shufflevector
#endif
#endif
#ifdef SR_SHUFFLE
typedef float sr_float4 __attribute__((vector_size(16), aligned(4), may_alias));
typedef float sr_float8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef double sr_double2 __attribute__((vector_size(16), aligned(8), may_alias));
typedef double sr_double4 __attribute__((vector_size(32), aligned(8), may_alias));

/* 4 x 4 within each half: a, b, c, d become their own columns. */
#define SR_TRANSPOSE_HALVES(a, b, c, d) do { \
    const sr_float8 ab = SR_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13), AB = SR_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15); \
    const sr_float8 cd = SR_SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13), CD = SR_SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15); \
    a = SR_SHUFFLE(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13); b = SR_SHUFFLE(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15); \
    c = SR_SHUFFLE(AB, CD, 0, 1, 8, 9, 4, 5, 12, 13); d = SR_SHUFFLE(AB, CD, 2, 3, 10, 11, 6, 7, 14, 15); \
} while (0)

SR_INLINE sr_float8 sr_joined(const float* low, const float* high) {
    return SR_SHUFFLE(*(const sr_float4*)low, *(const sr_float4*)high, 0, 1, 2, 3, 4, 5, 6, 7);
}

SR_INLINE void sr_columns_float(const float* const* a, ptrdiff_t j, float* b, ptrdiff_t ld) {
    sr_float8 p = sr_joined(a[0] + j, a[4] + j), q = sr_joined(a[1] + j, a[5] + j);
    sr_float8 r = sr_joined(a[2] + j, a[6] + j), s = sr_joined(a[3] + j, a[7] + j);
    SR_TRANSPOSE_HALVES(p, q, r, s);
    *(sr_float8*)b = p; *(sr_float8*)(b + ld) = q; *(sr_float8*)(b + 2 * ld) = r; *(sr_float8*)(b + 3 * ld) = s;
}

SR_INLINE void sr_halves(sr_float8 v, float* low, float* high) {
    *(sr_float4*)low = SR_SHUFFLE(v, v, 0, 1, 2, 3);
    *(sr_float4*)high = SR_SHUFFLE(v, v, 4, 5, 6, 7);
}

SR_INLINE void sr_rows_float(const float* a, ptrdiff_t lda, float* b, ptrdiff_t ldb) {
    sr_float8 p = *(const sr_float8*)a, q = *(const sr_float8*)(a + lda);
    sr_float8 r = *(const sr_float8*)(a + 2 * lda), s = *(const sr_float8*)(a + 3 * lda);
    SR_TRANSPOSE_HALVES(p, q, r, s);
    sr_halves(p, b, b + 4 * ldb); sr_halves(q, b + ldb, b + 5 * ldb);
    sr_halves(r, b + 2 * ldb, b + 6 * ldb); sr_halves(s, b + 3 * ldb, b + 7 * ldb);
}

SR_INLINE void sr_4x4_double(
    const double* a0, const double* a1, const double* a2, const double* a3, double* b, ptrdiff_t ld
) {
    const sr_double4 p = *(const sr_double4*)a0, q = *(const sr_double4*)a1;
    const sr_double4 r = *(const sr_double4*)a2, s = *(const sr_double4*)a3;
    const sr_double4 pq = SR_SHUFFLE(p, q, 0, 4, 2, 6), PQ = SR_SHUFFLE(p, q, 1, 5, 3, 7);
    const sr_double4 rs = SR_SHUFFLE(r, s, 0, 4, 2, 6), RS = SR_SHUFFLE(r, s, 1, 5, 3, 7);
    *(sr_double4*)b = SR_SHUFFLE(pq, rs, 0, 1, 4, 5);
    *(sr_double4*)(b + ld) = SR_SHUFFLE(PQ, RS, 0, 1, 4, 5);
    *(sr_double4*)(b + 2 * ld) = SR_SHUFFLE(pq, rs, 2, 3, 6, 7);
    *(sr_double4*)(b + 3 * ld) = SR_SHUFFLE(PQ, RS, 2, 3, 6, 7);
}

SR_INLINE void sr_columns_double(const double* const* a, ptrdiff_t j, double* b, ptrdiff_t ld) {
    sr_4x4_double(a[0] + j, a[1] + j, a[2] + j, a[3] + j, b, ld);
    sr_4x4_double(a[4] + j, a[5] + j, a[6] + j, a[7] + j, b + 4, ld);
}

SR_INLINE void sr_rows_double(const double* a, ptrdiff_t lda, double* b, ptrdiff_t ldb) {
    sr_4x4_double(a, a + lda, a + 2 * lda, a + 3 * lda, b, ldb);
    sr_4x4_double(a + 4, a + lda + 4, a + 2 * lda + 4, a + 3 * lda + 4, b + 4 * ldb, ldb);
}

SR_INLINE sr_float4 sr_quarter(sr_vfloat v) {
    const sr_float8 half = SR_SHUFFLE(v, v, 0, 1, 2, 3, 4, 5, 6, 7) + SR_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    return SR_SHUFFLE(half, half, 0, 1, 2, 3) + SR_SHUFFLE(half, half, 4, 5, 6, 7);
}

SR_INLINE void sr_add_sums(sr_float4 a, sr_float4 b, sr_float4 c, sr_float4 d, float* out) {
    const sr_float4 ab = SR_SHUFFLE(a, b, 0, 4, 1, 5) + SR_SHUFFLE(a, b, 2, 6, 3, 7);
    const sr_float4 cd = SR_SHUFFLE(c, d, 0, 4, 1, 5) + SR_SHUFFLE(c, d, 2, 6, 3, 7);
    *(sr_float4*)out += SR_SHUFFLE(ab, cd, 0, 1, 4, 5) + SR_SHUFFLE(ab, cd, 2, 3, 6, 7);
}

SR_INLINE void sr_sum4_float(const sr_vfloat* v, float* out) {
    sr_add_sums(sr_quarter(v[0]), sr_quarter(v[1]), sr_quarter(v[2]), sr_quarter(v[3]), out);
}

SR_INLINE sr_float4 sr_half(sr_nfloat v) { return SR_SHUFFLE(v, v, 0, 1, 2, 3) + SR_SHUFFLE(v, v, 4, 5, 6, 7); }

SR_INLINE void sr_sum4_narrow_float(const sr_nfloat* v, float* out) {
    sr_add_sums(sr_half(v[0]), sr_half(v[1]), sr_half(v[2]), sr_half(v[3]), out);
}

SR_INLINE sr_double2 sr_two_sums(sr_double4 a, sr_double4 b) {
    const sr_double4 ab = SR_SHUFFLE(a, b, 0, 4, 2, 6) + SR_SHUFFLE(a, b, 1, 5, 3, 7);
    return SR_SHUFFLE(ab, ab, 0, 1) + SR_SHUFFLE(ab, ab, 2, 3);
}

SR_INLINE sr_double4 sr_halved(sr_vdouble v) { return SR_SHUFFLE(v, v, 0, 1, 2, 3) + SR_SHUFFLE(v, v, 4, 5, 6, 7); }

SR_INLINE void sr_sum4_double(const sr_vdouble* v, double* out) {
    *(sr_double2*)out += sr_two_sums(sr_halved(v[0]), sr_halved(v[1]));
    *(sr_double2*)(out + 2) += sr_two_sums(sr_halved(v[2]), sr_halved(v[3]));
}

SR_INLINE void sr_sum4_narrow_double(const sr_ndouble* v, double* out) {
    *(sr_double2*)out += sr_two_sums(v[0], v[1]);
    *(sr_double2*)(out + 2) += sr_two_sums(v[2], v[3]);
}
#else
#define SR_PLAIN_SUM4(NAME, T, V) \
SR_INLINE void NAME(const V* v, T* out) { \
    int r, i; \
    for (r = 0; r < 4; r++) for (i = 0; i < (int)(sizeof(V) / sizeof(T)); i++) out[r] += ((const T*)(v + r))[i]; \
}
#define SR_PLAIN(T) \
SR_INLINE void sr_columns_##T(const T* const* a, ptrdiff_t j, T* b, ptrdiff_t ld) { \
    int r, c; \
    for (c = 0; c < 4; c++) for (r = 0; r < 8; r++) b[c * ld + r] = a[r][j + c]; \
} \
SR_INLINE void sr_rows_##T(const T* a, ptrdiff_t lda, T* b, ptrdiff_t ldb) { \
    int r, c; \
    for (r = 0; r < 8; r++) for (c = 0; c < 4; c++) b[r * ldb + c] = a[c * lda + r]; \
}
SR_PLAIN(float)
SR_PLAIN(double)
SR_PLAIN_SUM4(sr_sum4_float, float, sr_vfloat)
SR_PLAIN_SUM4(sr_sum4_narrow_float, float, sr_nfloat)
SR_PLAIN_SUM4(sr_sum4_double, double, sr_vdouble)
SR_PLAIN_SUM4(sr_sum4_narrow_double, double, sr_ndouble)
#endif

/* --- exp(z - top) for z <= top and log(x) for x >= 1: branch-free, within 2 ulp, so that loops over them vectorise ----
 * exp: z - top with its rounding error (Knuth's two-sum: logits of 1e4 leave an error of 1e-3 there in float32), so that an
 *      exact shift of all logits changes no bit; = n ln2 + r, a minimax polynomial in r, times 2^n. The power is a shift: the
 *      exponent it wants is made in the low bits of n, 24 (53) too large; the last factor takes that back and underflows
 *      gradually. Below `lowest`, where that exponent may not exist, it is zero. NaN stays NaN. The polynomial goes two
 *      terms at a time: half as many steps that wait for one another.
 * log: x = 2^e m with m in [sqrt(1/2), sqrt(2)), then log m = 2 atanh(t), t = (m - 1)/(m + 1), as its series.
 * Adding 1.5 * 2^(mantissa bits) rounds to an integer and leaves that integer in the low bits. */
SR_INLINE float sr_bits_float(int32_t i) { float x; memcpy(&x, &i, sizeof x); return x; }
SR_INLINE int32_t sr_float_bits(float x) { int32_t i; memcpy(&i, &x, sizeof i); return i; }
SR_INLINE double sr_bits_double(int64_t i) { double x; memcpy(&x, &i, sizeof x); return x; }
SR_INLINE int64_t sr_double_bits(double x) { int64_t i; memcpy(&i, &x, sizeof i); return i; }

SR_INLINE float sr_exp_float(float z, float top, float lowest) {
    const float round = 12582912.0f + 127 + 24;
    const float x = z - top, back = x - z, error = (z - (x - back)) - (top + back);
    float n = x * 1.44269504f + round;
    const float power = sr_bits_float((int32_t)((uint32_t)sr_float_bits(n) << 23));
    n -= round;
    float r = x - n * 0.693145752f;
    r = (r - n * 1.42860677e-6f) + error;
    const float u = r * r;
    float p = 1.38144671e-3f * u + (8.36878041e-3f * r + 4.16683942e-2f);
    p = p * u + (1.66665201e-1f * r + 4.99999934e-1f);
    p = p * u + r + 1.0f;
    return x < lowest ? 0.0f : p * power * 5.9604644775390625e-8f;
}

SR_INLINE double sr_exp_double(double z, double top, double lowest) {
    const double round = 6755399441055744.0 + 1023 + 53;
    const double x = z - top, back = x - z, error = (z - (x - back)) - (top + back);
    double n = x * 1.4426950408889634 + round;
    const double power = sr_bits_double((int64_t)((uint64_t)sr_double_bits(n) << 52));
    n -= round;
    double r = x - n * 0.693147180369123816490;
    r = (r - n * 1.90821492927058770002e-10) + error;
    const double u = r * r;
    double p = 2.5100385495510319e-8 * r + 2.7620088445409748e-7;
    p = p * u + (2.7557268459997065e-6 * r + 2.4801521295954375e-5);
    p = p * u + (1.9841269863053617e-4 * r + 1.3888888917213717e-3);
    p = p * u + (8.3333333333300618e-3 * r + 4.1666666666624128e-2);
    p = p * u + (1.6666666666666667e-1 * r + 0.5);
    p = p * u + r + 1.0;
    return x < lowest ? 0.0 : p * power * 1.1102230246251565e-16;
}

SR_INLINE float sr_log_float(float x) {
    const int32_t i = sr_float_bits(x) - 0x3f3504f3;
    const int32_t e = i >> 23;
    const float m = sr_bits_float(i - (int32_t)((uint32_t)e << 23) + 0x3f3504f3);
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
    const double m = sr_bits_double(i - (int64_t)((uint64_t)e << 52) + sqrt_half);
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

/* --- for both types: by the size of the first number, or of what is behind the last pointer --------------------------- */
#define SR_IS_FLOAT(x) (sizeof(x) == sizeof(float))
#define SR_EXP(z, top, lowest) (SR_IS_FLOAT(z) \
    ? sr_exp_float((float)(z), (float)(top), (float)(lowest)) : sr_exp_double(z, top, lowest))
#define SR_LOG(x) (SR_IS_FLOAT(x) ? sr_log_float((float)(x)) : sr_log_double(x))
#define SR_BOTH(f, a, j, b, ld, P) (SR_IS_FLOAT(*(b)) \
    ? f##_float((const float* P)(a), j, (float*)(b), ld) : f##_double((const double* P)(a), j, (double*)(b), ld))
#define SR_COLUMNS(a, j, b, ld) SR_BOTH(sr_columns, a, j, b, ld, const*)
#define SR_ROWS(a, lda, b, ldb) SR_BOTH(sr_rows, a, lda, b, ldb, )
#define SR_SUM4(v, out) (SR_IS_FLOAT(*(out)) \
    ? sr_sum4_float((const sr_vfloat*)(v), (float*)(out)) : sr_sum4_double((const sr_vdouble*)(v), (double*)(out)))
#define SR_SUM4_NARROW(v, out) (SR_IS_FLOAT(*(out)) \
    ? sr_sum4_narrow_float((const sr_nfloat*)(v), (float*)(out)) \
    : sr_sum4_narrow_double((const sr_ndouble*)(v), (double*)(out)))

/* --- clocks: of the wall, and of this thread's own time on a processor; zero where there are none ------------------- */
#if defined(CLOCK_MONOTONIC) && defined(CLOCK_THREAD_CPUTIME_ID)
static inline double sr_clock(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) == 0 ? (double)t.tv_sec + 1e-9 * (double)t.tv_nsec : 0.0;
}
#define sr_seconds() sr_clock(CLOCK_MONOTONIC)
#define sr_thread_seconds() sr_clock(CLOCK_THREAD_CPUTIME_ID)
#else
#define sr_seconds() 0.0
#define sr_thread_seconds() 0.0
#endif

/* --- a number that several threads read and write at any time: it is never seen half written ------------------------- */
#if defined(__GNUC__)
SR_INLINE double sr_load_shared(const double* x) {
    double value;
    __atomic_load(x, &value, __ATOMIC_RELAXED);
    return value;
}
SR_INLINE void sr_store_shared(double* x, double value) { __atomic_store(x, &value, __ATOMIC_RELAXED); }
#else
#define sr_load_shared(x) (*(const volatile double*)(x))
#define sr_store_shared(x, value) ((void)(*(volatile double*)(x) = (value)))
#endif

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
