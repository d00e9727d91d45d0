"""What a generation continues: text, chat messages or token ids, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ...errors import PromptError, PromptTooLongError
from ..bundle.manifest import Manifest
from ..sampling.declaration import OptionError
from ..text.codec import TextCodec
from ..text.messages import Message
from ..text.tool_calls import tools_from
from .options import CHAT_OPTIONS, GenerationOptions

Prompt = str | Sequence[Message] | Sequence[int]
"""Plain text, chat messages, or token ids."""


def encode_prompt(
    prompt: Prompt, codec: TextCodec, manifest: Manifest, options: GenerationOptions
) -> list[int]:
    """Return the tokens of a prompt.

    Args:
        prompt: text, messages or token ids.
        codec: tokenizer and chat template of the bundle.
        manifest: has the capacity and the size of the vocabulary.
        options: how messages are rendered.

    Raises:
        PromptError: it is empty, does not fit the capacity, or cannot be read.
        UsageError: messages, and the bundle has no chat template; or an option that needs messages.
    """
    chat_options = [name for name in options.to_json() if name in CHAT_OPTIONS]
    if prompt and not isinstance(prompt, str) and not isinstance(prompt[0], int):
        if (
            options.tools
            and "tools" not in codec.chat.compiled(options.template, tools=True).reads()
        ):
            raise OptionError(
                "tools",
                "the chat template of this bundle does not know tools",
                hint="use a model that was trained to call tools",
            )
        tokens = codec.encode_chat(
            cast("Sequence[Message]", prompt),
            tools=tools_from(options.tools) or None,
            template=options.template,
            template_args=options.template_args,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
        )
    elif chat_options:
        name = chat_options[0]
        raise OptionError(name, f"{name} works with messages only, not with text or tokens")
    elif isinstance(prompt, str):
        tokens = codec.encode(prompt) if prompt else []
    else:
        tokens = _checked_ids(cast("Sequence[int]", prompt), manifest.vocab_size)
    if not tokens:
        raise PromptError("the prompt is empty", hint="pass at least one character of text")
    if len(tokens) > manifest.capacity:
        raise PromptTooLongError(
            f"the prompt has {len(tokens)} tokens, this bundle holds {manifest.capacity}",
            hint="shorten the prompt, or export again with a larger --capacity",
        )
    return tokens


def _checked_ids(ids: Sequence[int], size: int) -> list[int]:
    if not all(isinstance(token, int) and 0 <= token < size for token in ids):
        raise PromptError(
            "the prompt is not a list of token ids of this bundle",
            hint=f"its token ids run from 0 to {size - 1}",
        )
    return list(ids)
