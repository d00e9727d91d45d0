"""The summary of a row holds for a vocabulary as wide as real ones, where sums lose digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from cospec.export.decoder import SUMMARY_OUTPUTS, summary

WIDTH = 152_000


class Summary(torch.nn.Module):
    def forward(self, logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return summary(logits, ids)


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Any:
    path = tmp_path_factory.mktemp("summary") / "summary.onnx"
    torch.onnx.export(
        Summary().eval(),
        (torch.zeros(1, 3, WIDTH), torch.zeros(1, 3, dtype=torch.int64)),
        path,
        dynamo=True,
        verbose=False,
        opset_version=18,
        input_names=["logits", "input_ids"],
        output_names=[f"summary.{name}" for name in SUMMARY_OUTPUTS],
    )
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("offset", [0.0, 20.0, -20.0, 100.0])
@pytest.mark.parametrize("sharpness", [1.0, 3.0, 6.0])
def test_entropy_and_logsumexp_wherever_the_logits_lie(session, offset, sharpness):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 3, WIDTH)).astype(np.float32)
    # A few likely tokens over many unlikely ones, as far apart as a trained model has them.
    logits[..., :5] += sharpness * np.array([3.0, 2.5, 2.0, 1.5, 1.0], dtype=np.float32)
    logits += np.float32(offset)
    ids = np.zeros((1, 3), dtype=np.int64)
    found = dict(
        zip(SUMMARY_OUTPUTS, session.run(None, {"logits": logits, "input_ids": ids}), strict=True)
    )
    exact = logits[0].astype(np.float64)
    peak = exact.max(axis=1, keepdims=True)
    logsumexp = peak + np.log(np.exp(exact - peak).sum(axis=1, keepdims=True))
    logprob = exact - logsumexp
    entropy = -(np.exp(logprob) * logprob).sum(axis=1)
    assert np.allclose(found["logsumexp"][0], logsumexp[:, 0], rtol=1e-5, atol=3e-4)
    assert np.allclose(found["entropy"][0], entropy, rtol=3e-4, atol=3e-4)
