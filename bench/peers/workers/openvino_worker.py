"""openvino-genai: LLMPipeline on the CPU, with and without a draft model."""

from __future__ import annotations

from typing import Any

from worker_protocol import serve


class OpenvinoModel:
    """A pipeline; `mode` holds `k`, for a pipeline that was loaded with a draft."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import openvino as ov
        import openvino_genai as genai

        self._ov, self._genai = ov, genai

        def properties(role: str) -> dict[str, Any]:
            found = {"INFERENCE_NUM_THREADS": settings["threads"], "PERFORMANCE_HINT": "LATENCY"}
            # fp32 must mean fp32: on CPUs with bfloat16 OpenVINO would compute in that, and keep the
            # cache in 8 bits.
            exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
            return {**found, **(exact if settings["exact"][role] else {})}

        # As the pipeline sets itself up, but that it reads every prompt: by default it keeps what it
        # has read, and a row would go on where the one before it, with the same prompt, began.
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 2**31 - 1
        models = {"scheduler_config": scheduler}
        if settings["draft"] is not None:
            models["draft_model"] = genai.draft_model(
                settings["draft"], "CPU", **properties("draft")
            )
        self._pipeline = genai.LLMPipeline(
            settings["target"], "CPU", **models, **properties("target")
        )

    def generate(self, prompt: list[int], tokens: int, mode: dict[str, Any]) -> list[int]:
        """Continue `prompt` greedily."""
        import numpy as np

        config = self._genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.do_sample = False
        config.ignore_eos = True
        if mode["k"]:
            config.num_assistant_tokens = mode["k"]
        ids = self._ov.Tensor(np.array([prompt], dtype=np.int64))
        return list(self._pipeline.generate(ids, config).tokens[0])


if __name__ == "__main__":
    serve(OpenvinoModel, ("openvino-genai", "openvino"))
