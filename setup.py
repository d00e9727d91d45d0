"""The packages of the wheel, found instead of listed: all rooms of the four that users install."""

from setuptools import find_packages, setup

PATTERNS = [
    f"{room}{below}"
    for room in ("runtime", "export", "models", "calibration")
    for below in ("", ".*")
]

setup(packages=["cospec", *(f"cospec.{name}" for name in find_packages(include=PATTERNS))])
