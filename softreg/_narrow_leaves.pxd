# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Leaf functions with vectors as long as the registers of AVX2, SSE2 or NEON, see `_vector_leaves.pxi`."""

from libc.string cimport memset

from softreg._simd cimport TILE_CLASSES, TILE_ROWS, floating, index_t, prefetch, sr_inline_void, sr_void
from softreg._simd cimport ndouble as vdouble, nfloat as vfloat, sr_sum4_narrow as sr_sum4

cdef enum:
    MANY_REGISTERS = 0  # 16 of AVX2 hold 8 sums of a tile at a time

include "_vector_leaves.pxi"
