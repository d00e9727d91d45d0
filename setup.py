"""What goes into the wheel: the root's modules without this one, and all rooms that users install."""

from __future__ import annotations

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOMS = ("runtime", "export", "models", "calibration")


class BuildRooms(build_py):
    """Leaves this file out of the package, whose folder is the repository's root."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return (package, module, file) of a package."""
        found = super().find_package_modules(package, package_dir)
        return [each for each in found if each[:2] != ("cospec", "setup")]


setup(
    packages=["cospec", "optimum.commands.register"]
    + [f"cospec.{name}" for name in find_packages(include=[*ROOMS, *(f"{r}.*" for r in ROOMS)])],
    cmdclass={"build_py": BuildRooms},
)
