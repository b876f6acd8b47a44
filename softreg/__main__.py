"""Print the versions and the hardware that a bug report has to name: ``python -m softreg``."""

from softreg import show_versions

show_versions()
