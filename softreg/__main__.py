"""``python -m softreg`` prints what a bug report needs to know."""

from softreg import show_versions

show_versions()
