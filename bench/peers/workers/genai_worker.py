"""onnxruntime-genai: its generator, plain or with its own draft-model speculation."""

from __future__ import annotations

from typing import Any

from worker_protocol import serve


class GenaiModel:
    """A folder with genai_config.json; `mode` holds `k`, for a folder with a draft."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import onnxruntime_genai as og

        self._og = og
        self._model = og.Model(settings["folder"])
        self._capacity = settings["capacity"]

    def generate(self, prompt: list[int], tokens: int, mode: dict[str, Any]) -> list[int]:
        """Continue `prompt` greedily."""
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, max_length=self._capacity)
        if mode["k"]:
            params.set_speculative_options(max_draft_tokens=mode["k"])
        generator = self._og.Generator(self._model, params)
        generator.append_tokens(prompt)
        while generator.token_count() < len(prompt) + tokens:
            generator.generate_next_token()
        return list(generator.get_sequence(0)[len(prompt) : len(prompt) + tokens])


if __name__ == "__main__":
    serve(GenaiModel, ("onnxruntime-genai", "onnxruntime"))
