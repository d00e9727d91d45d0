"""Train an arbiter on tasks of your own and put it into a bundle.

So small that it takes a minute and proves nothing; docs/arbiter.md has the scale that does. The same
on the command line:  cospec-calibrate arbiter --engine-dir BUNDLE --tasks tasks.jsonl

Run:  pip install "cospec[calibrate,cpu]"
      python examples/07_calibrate_on_own_data.py models/tiny work-folder
"""

import json
import random
import shutil
import sys
from pathlib import Path

import cospec
from cospec.calibration.arbiter.calibrate import CalibrationRequest, calibrate_arbiter
from cospec.calibration.arbiter.config import TrainingConfig


def write_tasks(path: Path, count: int, seed: int) -> None:
    """Write tasks with known answers: here a sum each; yours are questions that a checker can judge."""
    numbers = random.Random(seed)  # noqa: S311 - tasks, no secrets
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            a, b = numbers.randrange(10, 99), numbers.randrange(10, 99)
            task = {
                "id": f"{seed}-{i}",
                "messages": [{"role": "user", "content": f"Work out {a}+{b}+{a}-{b}."}],
                "checker": {"name": "number"},
                "answer": str(a + a),
            }
            file.write(json.dumps(task) + "\n")


def main(bundle: Path, work: Path) -> None:
    """Calibrate a copy of the bundle."""
    own = Path(shutil.copytree(bundle, work / "bundle"))
    write_tasks(work / "train.jsonl", 12, seed=1)
    write_tasks(work / "validation.jsonl", 6, seed=2)
    request = CalibrationRequest(
        bundle=own,
        tasks=str(work / "train.jsonl"),
        validation=str(work / "validation.jsonl"),
        items=None,
        validation_items=6,
        work=work / "calibration",
        processes=1,
    )
    config = TrainingConfig(max_tokens=48, steps=1, prompts=4, group=2, warm_epochs=10)
    facts = calibrate_arbiter(request, config, print)
    print(f"threshold: {facts['threshold']}")
    for mode, figures in facts["modes"].items():
        print(f"{mode}: right on {figures['accuracy']:.0%}")
    answer = cospec.load(own).generate(
        [{"role": "user", "content": "Work out 21+35-55+61."}], max_tokens=48, mode="collab"
    )
    print(f"collab: {answer.text.strip()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
