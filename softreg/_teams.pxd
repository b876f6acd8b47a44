# cython: language_level=3
"""Teams of threads: every parallel region of a kernel begins one, and asks it how many threads it gets."""

from softreg._simd cimport sr_thread_seconds


cdef enum:
    MAX_PARTS = 16      # parts of the rows that may run at the same time
    WORK = 1000000      # multiply-adds that a thread must have for itself: some 50 microseconds


cdef struct Team:               # the threads of a parallel region
    int size
    double started
    double[MAX_PARTS] seconds   # of a processor, for each part


cdef Team begin_region(int wanted, double work, Py_ssize_t parts) noexcept nogil
cdef void end_region(Team* team, Py_ssize_t parts) noexcept nogil


cdef inline void part_begins(Team* team, Py_ssize_t part) noexcept nogil:
    if team.size > 1:
        team.seconds[part] = sr_thread_seconds()


cdef inline void part_ends(Team* team, Py_ssize_t part) noexcept nogil:
    if team.size > 1:
        team.seconds[part] = sr_thread_seconds() - team.seconds[part]
