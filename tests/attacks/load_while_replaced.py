"""Load a bundle while `--force` replaces it again and again by others of the same shape.

A bundle and a copy with other weights of the target take one name in turn. Every load must give the
text of the bundle whose seal it has, or an error of ours.

    cd tests && python -m attacks.load_while_replaced BUNDLE --loads 2000
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from attacks.hostile_bundles import reseal

import cospec
from cospec.runtime.bundle.reader import read_manifest
from cospec.runtime.bundle.writer import BundleWriter

PROMPT = "What is 12 + 30?"


class Swapper(threading.Thread):
    """Writes the bundles to one name in turn, with pauses of up to `pause` seconds."""

    def __init__(self, sources: list[Path], name: Path, pause: float) -> None:
        super().__init__(daemon=True)
        self.sources, self.name_, self.pause = sources, name, pause
        self.stopped = threading.Event()
        self.swaps = 0

    def run(self) -> None:
        """Swap until `stopped` is set."""
        draw = random.Random(0)
        while not self.stopped.is_set():
            self.swap()
            self.stopped.wait(draw.uniform(0, self.pause))

    def swap(self) -> None:
        """Replace what is there by the next bundle."""
        source = self.sources[self.swaps % len(self.sources)]
        with BundleWriter(self.name_, force=True) as writer:
            for entry in read_manifest(source).files:
                shutil.copyfile(source / entry.path, writer.path(entry.path))
            writer.commit(read_manifest(source))
        self.swaps += 1


def text_of(root: Path) -> tuple[str, str]:
    """Load a bundle; return its seal and what it generates."""
    session = cospec.load(root, options=cospec.OrtOptions(threads=1))
    return session.manifest.seal, session.generate(PROMPT, max_tokens=8).text


def campaign(sources: list[Path], loads: int, pause: float) -> Counter[str]:
    """Count loads that were right, refused with an error of ours, and mixed; and the swaps."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder, "models", "tiny")
        swapper = Swapper(sources, name, pause)
        expected = {}
        for _ in sources:
            swapper.swap()
            seal, text = text_of(name)
            expected[seal] = text
        assert len(set(expected.values())) == len(sources), "the bundles must differ in their text"
        swapper.start()
        for _ in range(loads):
            try:
                seal, text = text_of(name)
            except cospec.CospecError as error:
                found[f"refused: {type(error).__name__}"] += 1
            else:
                found["right" if expected[seal] == text else "mixed"] += 1
        swapper.stopped.set()
        swapper.join()
        found["swaps"] = swapper.swaps
    return found


def with_other_weights(bundle: Path, folder: Path) -> Path:
    """Return a copy of a bundle half of whose target's weights are 0."""
    other = Path(shutil.copytree(bundle, folder))
    weights = other / "target" / "model.onnx.data"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    reseal(other)
    return other


def main() -> int:
    """Run the campaign and print its counts; return 1 if a load was a mixture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--loads", type=int, default=2000)
    parser.add_argument("--pause", type=float, default=0.5)
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle.resolve()
        other = with_other_weights(bundle, Path(folder, "other"))
        found = campaign([bundle, other], given.loads, given.pause)
    print(dict(found), f"{time.monotonic() - started:.0f} s")
    print(f"tried {given.loads}, failed {found['mixed']}")
    return 1 if found["mixed"] else 0


if __name__ == "__main__":
    sys.exit(main())
