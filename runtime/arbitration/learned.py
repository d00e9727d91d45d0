"""The learned arbiter: a small ONNX graph that says by its input names what it wants to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.onnxruntime import import_onnxruntime
from ..engines.protocol import StepOutput
from ..errors import BackendError, BundleError
from .protocol import Block

_BLOCK = ("drafted", "position", "mismatches", "run")


class LearnedArbiter:
    """Scores blocks with an arbiter graph; see `models/arbiter.py` for what is inside.

    Args:
        graph: path of the arbiter's `model.onnx`.

    Raises:
        BackendError: ONNX Runtime cannot load it.
        BundleError: it wants an input that the decoders do not provide.
    """

    def __init__(self, graph: Path) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # a few thousand multiplications: threads would only wait
        try:
            self._session = ort.InferenceSession(
                str(graph), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise BackendError(
                f"ONNX Runtime could not load the arbiter {graph}: {error}"
            ) from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        check_inputs(self._inputs, str(graph))
        self.target_outputs = _outputs_of("target", self._inputs)
        self.draft_outputs = _outputs_of("draft", self._inputs)

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the score [k] of each position of `block`."""
        scores: NDArray[np.float32] = self._session.run(["score"], self._feeds(block))[0]
        return scores

    def score_with_features(self, block: Block) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return scores [k] and the features [k, F] that they were computed from, for training."""
        scores, features = self._session.run(["score", "features"], self._feeds(block))
        return scores, features

    def _feeds(self, block: Block) -> dict[str, Any]:
        sources = {"block": block, "target": block.target, "draft": block.draft}
        feeds = {}
        for name in self._inputs:
            source, _, what = name.partition(".")
            feeds[name] = getattr(sources[source], what)
        return feeds


def check_inputs(names: list[str], graph: str) -> None:
    """Refuse an arbiter that wants what no decoder provides.

    Raises:
        BundleError: names the first such input.
    """
    known = {f"block.{what}" for what in _BLOCK}
    known |= {f"{model}.{what}" for model in ("target", "draft") for what in _provided()}
    for name in names:
        if name not in known:
            raise BundleError(
                f"the arbiter {graph} wants the input '{name}', which the decoders do not provide",
                hint="it was made for another version of CoSpec; calibrate it again",
            )


def _provided() -> set[str]:
    return set(StepOutput.__dataclass_fields__)


def _outputs_of(model: str, names: list[str]) -> tuple[str, ...]:
    prefix = f"{model}."
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))
