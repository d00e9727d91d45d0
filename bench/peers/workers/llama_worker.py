"""llama.cpp: the server of the project inside this process (xllamacpp), with and without a draft."""

from __future__ import annotations

from typing import Any

from worker_protocol import serve


class LlamaModel:
    """A server with one slot; `mode` holds `k`.

    A server's draft length is fixed when it starts, so another one starts for each: before the clock.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._server: Any = None
        self._k: int | None = None

    def prepare(self, mode: dict[str, Any]) -> None:
        """Start the server for the draft length of `mode`."""
        if self._k == mode["k"]:
            return
        import xllamacpp as x

        self._server = None  # and its memory, before the next one takes as much
        settings = self._settings
        params = x.CommonParams()
        params.model.path = settings["target"]
        params.n_ctx = settings["capacity"]
        params.n_parallel = 1
        params.warmup = True
        cache = {
            role: x.ggml_type.GGML_TYPE_F32 if exact else x.ggml_type.GGML_TYPE_F16
            for role, exact in settings["exact"].items()
        }
        params.cache_type_k = params.cache_type_v = cache["target"]
        pools = [params.cpuparams, params.cpuparams_batch]
        if mode["k"]:
            draft = params.speculative.draft
            draft.mparams.path = settings["draft"]
            # The draft length as asked for: its confidence does not shorten it.
            draft.n_max, draft.n_min, draft.p_min = mode["k"], 0, 0.0
            draft.cache_type_k = draft.cache_type_v = cache["draft"]
            pools += [draft.cpuparams, draft.cpuparams_batch]
            params.speculative.types = [
                x.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE
            ]
        for pool in pools:
            pool.n_threads = settings["threads"]
        self._server, self._k = x.Server(params), mode["k"]

    def generate(self, prompt: list[int], tokens: int, mode: dict[str, Any]) -> list[int]:
        """Continue `prompt` greedily."""
        answer = self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": tokens,
                "temperature": 0.0,
                "samplers": ["temperature"],
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
                "verbose": True,  # the part of the answer that has the tokens
            }
        )
        if "__verbose" not in answer:
            raise RuntimeError(f"the server answered {str(answer)[:200]}")
        return list(answer["__verbose"]["tokens"])


if __name__ == "__main__":
    serve(LlamaModel, ("xllamacpp",))
