"""CoSpec: a bundle, run by the session that applications use."""

from __future__ import annotations

from typing import Any

from worker_protocol import serve


class CospecModel:
    """A session; `mode` holds `k`: 0, a draft length, or `auto`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from cospec.runtime.decoding.session import load
        from cospec.runtime.engines.onnxruntime import OrtOptions

        options = OrtOptions(threads=settings["threads"], shared_pool=settings["shared_pool"])
        # The bench has opened and checked the bundle before.
        self._session = load(settings["bundle"], options=options, verify=False)
        self.facts: dict[str, Any] = {}

    def generate(self, prompt: list[int], tokens: int, mode: dict[str, Any]) -> list[int]:
        """Continue `prompt` in strict mode."""
        completion = self._session.continue_tokens(
            prompt, max_tokens=tokens, num_draft_tokens=mode["k"]
        ).completion()
        stats = completion.stats
        self.facts = {
            "acceptance": stats.draft_acceptance_rate,
            "tokens_per_pass": stats.num_generated_tokens / stats.num_target_passes,
        }
        return completion.tokens


if __name__ == "__main__":
    serve(CospecModel, ("cospec", "onnxruntime", "numpy"))
