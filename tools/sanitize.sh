#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer in a temporary folder, and runs their tests on
# that build: any report ends the run with an error. Needs gcc and the packages of `pip install -e ".[test,dev]"`.
#
#     tools/sanitize.sh                     the kernels' tests
#     tools/sanitize.sh tests/test_x.py     others
#
# PYTHON and CC choose the interpreter and the compiler. Leaks are not looked for: Python keeps memory until its end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python}
cc=${CC:-gcc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -r setup.py pyproject.toml README.md LICENSE softreg tests "$work"
cd "$work"
rm -f softreg/*.so

sanitize="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
CC=$cc CFLAGS="-g -O1 $sanitize" LDFLAGS="$sanitize" "$python" setup.py build_ext --inplace >build.log 2>&1 ||
    { cat build.log; exit 1; }

tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/test_core.py tests/test_functional.py tests/test_memory_layout.py)
# Python itself is not built with the sanitizers, so their libraries come first. Freed memory is not kept for long.
LD_PRELOAD="$("$cc" -print-file-name=libasan.so) $("$cc" -print-file-name=libubsan.so)" \
    ASAN_OPTIONS="detect_leaks=0:quarantine_size_mb=64" UBSAN_OPTIONS="print_stacktrace=1" \
    PYTHONPATH="$work" "$python" -P -m pytest -q -p no:cacheprovider "${tests[@]}"
