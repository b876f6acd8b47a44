"""Builds the extensions; everything else stands in pyproject.toml.

What the compiler can do is found out by asking it: a tiny program is compiled and linked with each flag, and
the flag stays if that worked. A wheel must run on any machine of its platform and must not change the
floating-point mode of the process that loads it: `-march=native` and `-ffast-math` are never asked for.

Two environment variables are read:

    SOFTREG_OPENMP   1 (default): threads if the compiler has OpenMP;  0: none
    SOFTREG_SIMD     the widest clones of a kernel, as x86-64 levels: v4 (default), v3, or none
"""

import os
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, OptionError

# (flags to compile, flags to link). The second pair is for Apple's clang, where libomp comes separately.
OPENMP = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
OPENMP_MSVC = [(["/openmp"], [])]
OPENMP_PROGRAM = """
#ifndef _OPENMP
#error "the flag was taken, but OpenMP is off"
#endif
#include <omp.h>
int main(void) { return omp_get_max_threads() < 1; }
"""

# errno and traps keep loops from being vectorised; gcc prefers 256 bits even where 512 are there; the last
# silences a note about passing vectors between functions of different levels, which are all inlined.
OPTIMISATION = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-mprefer-vector-width=512", "-Wno-psabi"]


def chosen(variable, choices):
    """What the environment variable stands for; the first choice is the default."""
    value = os.environ.get(variable) or next(iter(choices))
    if value not in choices:
        raise OptionError(f"{variable} must be one of {', '.join(choices)}, not {value!r}")
    return choices[value]


class ProbingBuildExt(build_ext):
    def build_extensions(self):
        simd = chosen("SOFTREG_SIMD", {"v4": "4", "v3": "3", "none": "0"})
        openmp = chosen("SOFTREG_OPENMP", {"1": True, "0": False})
        msvc = self.compiler.compiler_type == "msvc"

        # msvc's own defaults are right
        to_compile, to_link = [] if msvc else [flag for flag in OPTIMISATION if self.accepts([flag])], []
        if openmp:
            pairs = OPENMP_MSVC if msvc else OPENMP
            accepted = (pair for pair in pairs if self.accepts(*pair, OPENMP_PROGRAM))
            openmp_compile, openmp_link = next(accepted, ([], []))
            to_compile, to_link = to_compile + openmp_compile, to_link + openmp_link
            if not openmp_compile:
                self.warn("the compiler has no OpenMP: softreg will run on one thread")
        for extension in self.extensions:
            extension.define_macros.append(("SR_SIMD_LEVEL", simd))
            extension.extra_compile_args += to_compile
            extension.extra_link_args += to_link

        self.force = True  # the switches are no files: without this a change of theirs would rebuild nothing
        # Out of the tree and of the sdist. An editable install forgets it where pyproject.toml says so.
        self.cython_c_in_temp = True
        super().build_extensions()

    def accepts(self, to_compile, to_link=None, program="int main(void) { return 0; }\n"):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=to_compile)
                self.compiler.link_executable(objects, "probe", folder, extra_postargs=to_link)
            except CCompilerError:
                return False
        return True


SHARED = [f"softreg/{name}" for name in (
    "_simd.h", "_simd.pxd", "_vector_leaves.pxi", "_wide_leaves.pxd", "_narrow_leaves.pxd", "_softmax_leaves.pxd",
    "_product_leaves.pxd", "_kernel_arguments.pxd", "_teams.pxd"
)]  # fmt: skip

EXTENSIONS = "_teams", "_core", "_hessian", "_dual_ascent", "_dense_stream", "_sparse_stream", "_coordinate_descent"

setup(
    ext_modules=[Extension(f"softreg.{name}", [f"softreg/{name}.pyx"], depends=SHARED) for name in EXTENSIONS],
    cmdclass={"build_ext": ProbingBuildExt},
)
