# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""Minimisation of quadratic models with an l1 penalty. `_coordinate_descent_reference.py` says what is computed.

A result depends on the order of the coordinates alone: each function runs on one thread, without the GIL.
"""

from libc.math cimport fabs, fmax, sqrt, INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport daxpy
from scipy.linalg.cython_lapack cimport dpotrf, dpotrs


ctypedef fused floating:
    float
    double

ctypedef fused index_t:
    int
    long long


cdef inline double _minimizer(double w, double slope, double curvature, double l1) noexcept nogil:
    """Return the v with the least slope (v - w) + curvature/2 (v - w)^2 + l1 |v|; w where nothing holds v."""
    cdef double x, reach
    if curvature <= 0:
        return 0 if l1 > 0 else w
    x = w - slope / curvature
    reach = l1 / curvature
    return x - reach if x > reach else (x + reach if x < -reach else 0)


cdef inline double _violation(double w, double slope, double l1) noexcept nogil:
    """Return the least |slope + l1 u| over the subgradients u of |w|."""
    return fmax(fabs(slope) - l1, 0) if w == 0 else fabs(slope + (l1 if w > 0 else -l1))


cdef Py_ssize_t _descend(
    const double[:, ::1] H, const double[::1] l1, double[::1] g, double[::1] w, double tolerance,
    Py_ssize_t max_sweeps,
) noexcept nogil:
    """See `quadratic_descent`."""
    cdef Py_ssize_t j, sweeps = 0
    cdef int m = <int>g.shape[0], one = 1
    cdef double step, worst
    cdef bint all_coordinates = True
    while sweeps < max_sweeps:
        sweeps += 1
        worst = 0
        for j in range(m):
            if w[j] == 0 and l1[j] > 0 and not all_coordinates:
                continue
            worst = fmax(worst, _violation(w[j], g[j], l1[j]))
            step = _minimizer(w[j], g[j], H[j, j], l1[j]) - w[j]
            if step != 0:
                w[j] += step
                daxpy(&m, &step, <double*>&H[j, 0], &one, &g[0], &one)
        if worst <= tolerance and all_coordinates:
            break
        all_coordinates = worst <= tolerance
    return sweeps


def quadratic_descent(
    const double[:, ::1] H, const double[::1] l1, double[::1] g, double[::1] w, double tolerance,
    Py_ssize_t max_sweeps,
):
    """Minimise g^T (v - w) + 1/2 (v - w)^T H (v - w) + sum_j l1_j |v_j| over v, one coordinate after the other.

    w (m,) INOUT becomes v, g (m,) INOUT the gradient of the quadratic there. H is symmetric. A sweep over all
    coordinates is followed by sweeps over those that are not zero, until none of these violates its optimality
    condition by more than the tolerance; then all are visited again. Return the number of sweeps.
    """
    cdef Py_ssize_t sweeps
    with nogil:
        sweeps = _descend(H, l1, g, w, tolerance, max_sweeps)
    return sweeps


# --- Newton's method on the coordinates that are not zero -----------------------------------------------------------

cdef double[6] RIDGES = [1e-13, 1e-10, 1e-8, 1e-6, 1e-3, 1]


cdef struct Support:              # the coordinates that are not zero, or not penalised, and numbers for each
    Py_ssize_t size
    Py_ssize_t* at                # (size,) their positions among all coordinates
    Py_ssize_t* position          # (m,) the inverse of `at`; -1 elsewhere
    double* slope                 # of the model and of the penalty at w
    double* step
    double* kink                  # the share of a step at which the coordinate becomes zero; infinite if it does not
    double* scale
    double* diagonal
    double* A                     # (size, size)


cdef void _gather(const double* H, Py_ssize_t m, const Py_ssize_t[:, ::1] shared, Support* S) noexcept nogil:
    """S.A OUT = H over the support, with curvature for shifts of a feature's weight in all classes."""
    cdef Py_ssize_t i, j, r, K = shared.shape[1]
    cdef const double* row
    cdef double mean
    cdef bint complete
    for i in range(S.size):
        row = H + S.at[i] * m
        for j in range(S.size):
            S.A[i * S.size + j] = row[S.at[j]]
    for r in range(shared.shape[0]):
        complete, mean = True, 0
        for i in range(K):
            j = S.position[shared[r, i]]
            complete = complete and j >= 0
            if complete:
                mean += S.A[j * S.size + j] / K
        if complete:
            for i in range(K):
                for j in range(K):
                    S.A[S.position[shared[r, i]] * S.size + S.position[shared[r, j]]] += mean


cdef void _solve(Support* S) noexcept nogil:
    """S.step OUT = -A^-1 slope, with as much ridge in units of the diagonal as a Cholesky factor needs; A is lost."""
    cdef Py_ssize_t i, j, n = S.size
    cdef int size = <int>n, one = 1, info = 1, trial
    for i in range(n):
        S.scale[i] = 1 / sqrt(S.A[i * n + i]) if S.A[i * n + i] > 0 else 1
    for i in range(n):
        for j in range(n):
            S.A[i * n + j] *= S.scale[i] * S.scale[j]
        S.diagonal[i] = S.A[i * n + i]
    for trial in range(6):
        for i in range(n):
            S.diagonal[i] += RIDGES[trial]
            S.A[i * n + i] = S.diagonal[i]
            if trial > 0:         # the factor was begun in the other triangle
                for j in range(i):
                    S.A[j * n + i] = S.A[i * n + j]
        dpotrf(b"L", &size, S.A, &size, &info)
        if info == 0:
            break
    for i in range(n):
        S.step[i] = -S.scale[i] * S.slope[i]
    dpotrs(b"L", &size, &one, S.A, &size, S.step, &size, &info)
    for i in range(n):
        S.step[i] *= S.scale[i]


cdef void _curve(const double* H, Py_ssize_t m, const Support* S, double* curved) noexcept nogil:
    """curved (m,) OUT = H times the step."""
    cdef Py_ssize_t i
    cdef int size = <int>m, one = 1
    memset(curved, 0, m * sizeof(double))
    for i in range(S.size):
        if S.step[i] != 0:
            daxpy(&size, &S.step[i], <double*>H + S.at[i] * m, &one, curved, &one)


cdef double _quadratic(const Support* S, const double* curved, double* curvature) noexcept nogil:
    """Return slope^T step; curvature OUT = step^T H step."""
    cdef Py_ssize_t i
    cdef double slope = 0
    curvature[0] = 0
    for i in range(S.size):
        slope += S.slope[i] * S.step[i]
        curvature[0] += S.step[i] * curved[S.at[i]]
    return slope


cdef double _line_minimum(
    Support* S, const double[::1] l1, double slope, double curvature, double* least
) noexcept nogil:
    """Return the t in (0, 1] with the least slope t + curvature/2 t^2 + sum_j 2 l1_j |step_j| max(t - kink_j, 0).

    least OUT is the value there. t is one of the kinks exactly where the minimum is there.
    """
    cdef Py_ssize_t i, next
    cdef double t, last = -1, before, rise, risen = 0, at_kinks = 0
    while True:
        next = -1
        for i in range(S.size):   # the first of the kinks beyond the last; of equal ones, all at once
            if last < S.kink[i] < 1 and (next < 0 or S.kink[i] < S.kink[next]):
                next = i
        if next < 0:
            break
        t = S.kink[next]
        before = slope + t * curvature + risen
        if before > 0:
            break
        rise = 0
        for i in range(S.size):
            if S.kink[i] == t:
                rise += 2 * l1[S.at[i]] * fabs(S.step[i])
        if before + rise >= 0:
            least[0] = slope * t + 0.5 * curvature * t * t + risen * t - at_kinks
            return t
        risen += rise
        at_kinks += rise * t
        last = t
    t = -(slope + risen) / curvature if curvature > 0 else 1
    t = t if t < 1 else 1
    least[0] = slope * t + 0.5 * curvature * t * t + risen * t - at_kinks
    return t


cdef int _newton_step(
    const double[:, ::1] H, const double[::1] l1, const Py_ssize_t[:, ::1] shared, double[::1] g, double[::1] w
) except -1 nogil:
    """See `newton_step`."""
    cdef Py_ssize_t i, j, m = w.shape[0], size = 0
    cdef Support S
    cdef double t, least, slope, curvature, projected
    cdef double* numbers
    cdef double* curved
    cdef double* other
    cdef double* line
    cdef bint ends = False
    for i in range(m):
        size += w[i] != 0 or l1[i] == 0
    if size == 0:
        return 0
    numbers = <double*>malloc((size * (size + 6) + 2 * m) * sizeof(double))
    S.at = <Py_ssize_t*>malloc((size + m) * sizeof(Py_ssize_t))
    if numbers == NULL or S.at == NULL:
        free(numbers)
        free(S.at)
        with gil:
            raise MemoryError(f"{size * size * sizeof(double)} bytes of scratch memory")
    S.size, S.position, S.A = size, S.at + size, numbers
    S.slope = numbers + size * size
    S.step, S.kink, S.scale, S.diagonal = S.slope + size, S.slope + 2 * size, S.slope + 3 * size, S.slope + 4 * size
    line = S.slope + 5 * size
    curved, other = line + size, line + size + m
    j = 0
    for i in range(m):
        S.position[i] = -1
        if w[i] != 0 or l1[i] == 0:
            S.at[j], S.position[i] = i, j
            S.slope[j] = g[i] + (l1[i] if w[i] > 0 else (-l1[i] if w[i] < 0 else 0))
            j += 1
    _gather(&H[0, 0], m, shared, &S)
    _solve(&S)
    for j in range(size):
        i = S.at[j]
        S.kink[j] = -w[i] / S.step[j] if l1[i] > 0 and w[i] * S.step[j] < 0 else INFINITY
        ends = ends or S.kink[j] <= 1 + 1e-9     # what is left of the others is rounding
    _curve(&H[0, 0], m, &S, curved)
    slope = _quadratic(&S, curved, &curvature)
    t = _line_minimum(&S, l1, slope, curvature, &least)
    if ends:                  # as an alternative, stop these at zero and let the others go all the way
        memcpy(line, S.step, size * sizeof(double))
        for j in range(size):
            if S.kink[j] <= 1 + 1e-9:
                S.step[j] = -w[S.at[j]]
        _curve(&H[0, 0], m, &S, other)
        projected = _quadratic(&S, other, &curvature)
        projected += 0.5 * curvature
        if projected < least:
            curved = other
        else:
            memcpy(S.step, line, size * sizeof(double))
            ends = False
    if ends:
        t = 1
    for j in range(size):
        i = S.at[j]
        w[i] = 0 if (S.kink[j] <= 1 + 1e-9 if ends else S.kink[j] == t) else w[i] + t * S.step[j]
    for i in range(m):
        g[i] += t * curved[i]
    free(numbers)
    free(S.at)
    return 0


def newton_step(
    const double[:, ::1] H, const double[::1] l1, const Py_ssize_t[:, ::1] shared, double[::1] g, double[::1] w
):
    """Go towards the minimum of the model over the coordinates that are not zero or not penalised.

    The step goes to the minimum along its line, where the penalty has kinks, or stops each coordinate at zero that it
    would take across, whichever is lower. H (m, m) is symmetric. Each row of shared (q, K) has the positions of one
    feature's coordinates in all classes, of which H does not see a common shift: the step has none. w (m,) INOUT
    changes by the step, with exact zeros, and g (m,) INOUT, the gradient of the quadratic, too.
    """
    with nogil:
        _newton_step(H, l1, shared, g, w)


cdef int _shift_classes(
    const Py_ssize_t[:, ::1] shared, const double[::1] l1, const double[::1] l2, double[::1] g, double[::1] w
) except -1 nogil:
    """See `shift_classes`."""
    cdef Py_ssize_t r, i, j, K = shared.shape[1]
    cdef double penalty, ridge, slope, signs, zeros, shift, before
    cdef double* kinks
    if shared.shape[0] == 0:
        return 0
    kinks = <double*>malloc(K * sizeof(double))
    if kinks == NULL:
        with gil:
            raise MemoryError(f"{K * sizeof(double)} bytes of scratch memory")
    for r in range(shared.shape[0]):
        penalty, ridge = l1[shared[r, 0]], l2[shared[r, 0]]
        if penalty <= 0:
            continue
        slope = signs = zeros = 0
        for i in range(K):            # kinks: the shifts that make a weight zero, from the least
            shift = -w[shared[r, i]]
            slope += g[shared[r, i]]
            signs += (shift < 0) - (shift > 0)
            zeros += shift == 0
            j = i
            while j > 0 and kinks[j - 1] > shift:
                kinks[j] = kinks[j - 1]
                j -= 1
            kinks[j] = shift
        if fabs(slope + penalty * signs) <= penalty * (zeros + 1e-9):
            continue                  # the penalty is least already
        i = 0
        while i < K - 1 and _slope_after(slope, K, ridge, penalty, kinks[i], i) < -1e-9 * penalty:
            i += 1
        shift, before = kinks[i], _slope_after(slope, K, ridge, penalty, kinks[i], i) - 2 * penalty
        if before > 1e-9 * penalty and ridge > 0:
            shift -= before / (K * ridge)
        for i in range(K):
            j = shared[r, i]
            w[j] += shift
            if fabs(w[j]) <= 1e-13 * fabs(shift):
                w[j] = 0              # what is left of equal weights is rounding
            g[j] += l2[j] * shift
    free(kinks)
    return 0


def shift_classes(
    const Py_ssize_t[:, ::1] shared, const double[::1] l1, const double[::1] l2, double[::1] g, double[::1] w
):
    """Shift the weights of a feature in all classes, which the loss does not see, to where the penalty is least.

    Each row of shared (q, K) has the positions of one feature. w (m,) INOUT changes, and g (m,) INOUT, the gradient of
    the loss and of l2, too.
    """
    with nogil:
        _shift_classes(shared, l1, l2, g, w)


cdef inline double _slope_after(
    double slope, Py_ssize_t K, double l2, double l1, double kink, Py_ssize_t i
) noexcept nogil:
    """Return the slope of the penalty in the shift just beyond the i-th kink, where its slope at no shift is given."""
    return slope + K * l2 * kink + l1 * (2 * (i + 1) - K)


# --- both in turn ---------------------------------------------------------------------------------------------------

cdef double _decrease(
    const double[::1] l1, const double[::1] g, const double[::1] w, const double* before, const double* first
) noexcept nogil:
    """Return the decrease of the model since the coordinates `before`, where its gradient was `first`."""
    cdef Py_ssize_t i
    cdef double total = 0
    for i in range(w.shape[0]):
        total -= 0.5 * (w[i] - before[i]) * (g[i] + first[i]) + l1[i] * (fabs(w[i]) - fabs(before[i]))
    return total


def minimize_quadratic(
    const double[:, ::1] H, const double[::1] l1, const double[::1] l2, const Py_ssize_t[:, ::1] shared,
    double[::1] g, double[::1] w, double tolerance, double small, Py_ssize_t largest, Py_ssize_t max_rounds,
    Py_ssize_t max_sweeps, double small_gain,
):
    """Minimise what `quadratic_descent` does, by that and by Newton steps in turn; return the decrease.

    Rounds end where no optimality condition is violated by more than the tolerance, or where the decrease is more than
    `small` and the last round had no more than the share small_gain of it. A Newton step is taken where it is over
    `largest` coordinates at most; weights are then shifted. H contains l2 on its diagonal.
    """
    cdef Py_ssize_t _, i, size, m = w.shape[0]
    cdef double worst, gained, decrease = 0
    cdef double* before = <double*>malloc((2 * m + 1) * sizeof(double))
    if before == NULL:
        raise MemoryError(f"{2 * m * sizeof(double)} bytes of scratch memory")
    try:
        with nogil:
            for i in range(m):
                before[i], before[m + i] = w[i], g[i]
            for _ in range(max_rounds):
                _descend(H, l1, g, w, tolerance, max_sweeps)
                gained = -decrease
                decrease = _decrease(l1, g, w, before, before + m)
                gained += decrease
                worst, size = 0, 0
                for i in range(m):
                    worst = fmax(worst, _violation(w[i], g[i], l1[i]))
                    size += w[i] != 0 or l1[i] == 0
                if worst <= tolerance or (decrease > small and gained <= small_gain * decrease):
                    break
                if size <= largest:
                    _newton_step(H, l1, shared, g, w)
                    _shift_classes(shared, l1, l2, g, w)
    finally:
        free(before)
    return decrease


# --- sparse columns -------------------------------------------------------------------------------------------------

cdef inline double _column_slope(
    const floating* x, const index_t* at, Py_ssize_t count, const double* p, const double* s, const double* z,
    const double* mean, const double* plain, double share
) noexcept nogil:
    """Return sum_i s_i x_i (p_i (z_i - mean_i) + share (z_i - plain_i)); x NULL stands for ones in all rows."""
    cdef Py_ssize_t t, i
    cdef double total = 0
    if x == NULL:
        for i in range(count):
            total += s[i] * (p[i] * (z[i] - mean[i]) + share * (z[i] - plain[i]))
    elif share == 0:
        for t in range(count):
            i = at[t]
            total += x[t] * s[i] * p[i] * (z[i] - mean[i])
    else:
        for t in range(count):
            i = at[t]
            total += x[t] * s[i] * (p[i] * (z[i] - mean[i]) + share * (z[i] - plain[i]))
    return total


cdef inline double _column_curvature(
    const floating* x, const index_t* at, Py_ssize_t count, const double* p, const double* s, double share
) noexcept nogil:
    """Return sum_i s_i x_i^2 (p_i (1 - p_i) + share); x NULL stands for ones in all rows."""
    cdef Py_ssize_t t, i
    cdef double total = 0
    if x == NULL:
        for i in range(count):
            total += s[i] * (p[i] * (1 - p[i]) + share)
    else:
        for t in range(count):
            i = at[t]
            total += s[i] * (p[i] * (1 - p[i]) + share) * x[t] * x[t]
    return total


cdef inline void _column_move(
    const floating* x, const index_t* at, Py_ssize_t count, const double* p, double step, double per_class, double* z,
    double* mean, double* plain
) noexcept nogil:
    """Add step * x to z, and what this changes in the means over the classes; x NULL stands for ones in all rows."""
    cdef Py_ssize_t t, i
    cdef double change
    if x == NULL:
        for i in range(count):
            z[i] += step
            mean[i] += p[i] * step
            plain[i] += per_class * step
    else:
        for t in range(count):
            i = at[t]
            change = step * x[t]
            z[i] += change
            mean[i] += p[i] * change
            plain[i] += per_class * change


def column_descent(
    const floating[::1] data, const index_t[::1] indices, const index_t[::1] indptr, const Py_ssize_t[::1] columns,
    const Py_ssize_t[::1] classes, const double[:, ::1] P, const double[::1] s, double damping, double per_class,
    const double[::1] slopes, const double[::1] l2, const double[::1] l1, double[::1] w, double[:, ::1] Z,
    double[:, ::1] means, double[::1] g, double tolerance, Py_ssize_t max_sweeps,
):
    """Do the same as `quadratic_descent` with the Hessian of the softmax loss, from the columns of X.

    Coordinate c is the weight of column columns[c] of X (CSC, n rows), or of ones where that is -1, in the class of
    row classes[c] of P (L, n), the probabilities. The slopes are those of the loss at Z = 0; its Hessian is

        sum_i s_i (diag(p_i) - p_i p_i^T + damping/2 (I - per_class 1 1^T)) (x) x_i x_i^T.

    w (m,) INOUT becomes v. Z (L, n) INOUT are the logits of v, less those where the slopes were taken, and means (2, n)
    INOUT are sum_k P_k Z_k and per_class sum_k Z_k. g (m,) OUT is the gradient of the loss's model and of l2 at v.
    """
    cdef Py_ssize_t m = w.shape[0], n = P.shape[1], c, k, low, count, sweeps = 0
    cdef double step, worst, share = 0.5 * damping
    cdef double[::1] h = w.copy()
    cdef const floating* x
    cdef const index_t* at
    cdef double* mean = &means[0, 0]
    cdef double* plain = &means[1, 0]
    cdef bint all_coordinates = True, is_last = False
    with nogil:
        while True:
            worst = 0
            for c in range(m):
                if w[c] == 0 and l1[c] > 0 and not all_coordinates:
                    continue
                k = classes[c]
                x = NULL
                at = NULL
                count = n
                if columns[c] >= 0:
                    low = indptr[columns[c]]
                    count = indptr[columns[c] + 1] - low
                    x = &data[0] + low
                    at = &indices[0] + low
                if sweeps == 0:
                    h[c] = l2[c] + _column_curvature(x, at, count, &P[k, 0], &s[0], share * (1 - per_class))
                g[c] = slopes[c] + l2[c] * w[c]
                g[c] += _column_slope(x, at, count, &P[k, 0], &s[0], &Z[k, 0], mean, plain, share)
                if is_last:
                    continue
                worst = fmax(worst, _violation(w[c], g[c], l1[c]))
                step = _minimizer(w[c], g[c], h[c], l1[c]) - w[c]
                if step != 0:
                    w[c] += step
                    _column_move(x, at, count, &P[k, 0], step, per_class, &Z[k, 0], mean, plain)
            if is_last:
                break
            sweeps += 1
            is_last = sweeps == max_sweeps or (worst <= tolerance and all_coordinates)
            all_coordinates = is_last or worst <= tolerance
    return sweeps
