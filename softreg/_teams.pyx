# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True, freethreading_compatible=True
"""Teams of threads: how many threads a parallel region gets, at most as many as its caller asked for.

What a region computes does not depend on that: its parts are the same, and are added in order.
"""

import os

from softreg._simd cimport sr_load_shared, sr_seconds, sr_store_shared


# These belong to the process. Two are set where no other thread runs; all threads of Python share the time.
cdef bint is_forked_child = False       # OpenMP would wait for ever for the threads of the parent process
cdef double single_thread_until = 0     # a time: until then threads cost more than they save, see `end_region`
cdef bint threads_everywhere = False    # threads for little work, and on a busy machine, too: for tests of bits


def _after_fork():
    global is_forked_child
    is_forked_child = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def use_threads_everywhere(bint on):
    """Give every region the threads that its caller asked for, or, with False, decide as usual."""
    global threads_everywhere
    threads_everywhere = on


cdef Team begin_region(int wanted, double work, Py_ssize_t parts) noexcept nogil:
    """Begin a region of `work` multiply-adds in `parts`, with at most `wanted` threads.

    One thread where the work is little, or where another process needs the cores.
    """
    cdef Team team
    cdef Py_ssize_t most = min(<Py_ssize_t>wanted, parts)
    if not threads_everywhere:
        most = <Py_ssize_t>min(<double>most, work / WORK)
    team.size = 1
    if most >= 2 and not is_forked_child:
        team.started = sr_seconds()
        if threads_everywhere or team.started >= sr_load_shared(&single_thread_until):
            team.size = <int>most
    return team


cdef void end_region(Team* team, Py_ssize_t parts) noexcept nogil:
    """End a region. Where one thread would have been faster, use one for ten times as long as was lost.

    A thread whose core is taken by another process keeps all others waiting, for milliseconds.
    """
    cdef double now, lost
    cdef Py_ssize_t part
    if team.size > 1:
        now = sr_seconds()
        lost = now - team.started
        for part in range(parts):
            lost -= team.seconds[part]
        if lost > 0:
            sr_store_shared(&single_thread_until, now + 10 * lost)
