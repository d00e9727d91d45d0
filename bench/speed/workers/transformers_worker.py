"""transformers: `generate`, with and without an assistant model."""

from __future__ import annotations

from typing import Any

from worker_protocol import serve


class TransformersModel:
    """Target and assistant; `mode` holds `k`, 0 for the target alone."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        torch.set_num_threads(settings["threads"])
        self._target, self._draft = (
            AutoModelForCausalLM.from_pretrained(
                settings[role], dtype=torch.float32, local_files_only=True
            ).eval()
            for role in ("target", "draft")
        )

    def generate(self, prompt: list[int], tokens: int, mode: dict[str, Any]) -> list[int]:
        """Continue `prompt` greedily."""
        import torch

        assisted: dict[str, Any] = {}
        if mode["k"]:
            # The draft length as asked for: neither its schedule nor its confidence shortens it.
            chosen = self._draft.generation_config
            chosen.num_assistant_tokens = mode["k"]
            chosen.num_assistant_tokens_schedule = "constant"
            chosen.assistant_confidence_threshold = 0.0
            assisted["assistant_model"] = self._draft
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = self._target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                pad_token_id=1,
                **assisted,
            )
        return [int(token) for token in output[0, len(prompt) :]]


if __name__ == "__main__":
    serve(TransformersModel, ("transformers", "torch"))
