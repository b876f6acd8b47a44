"""Prints the oldest versions that pyproject.toml allows at run time and in tests, as constraints for pip:

    python tools/oldest_versions.py > oldest.txt
    pip install -c oldest.txt ".[test]"
"""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
    if ">=" in requirement:
        print(requirement.replace(">=", "=="))
