# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Leaf functions with vectors as long as the registers of AVX-512, see `_vector_leaves.pxi`."""

from libc.string cimport memset

from softreg._simd cimport TILE_CLASSES, TILE_ROWS, floating, index_t, prefetch, sr_inline_void, sr_void
from softreg._simd cimport sr_sum4, vdouble, vfloat

cdef enum:
    MANY_REGISTERS = 1  # 32, for the 20 sums of a tile

include "_vector_leaves.pxi"
