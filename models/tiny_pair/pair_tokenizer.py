"""The tokenizer of the tiny pair: a small byte-level BPE.

It is byte level, so that any UTF-8 text survives encoding and decoding. It is trained on the tasks,
so that their words are one token each. Every digit is a token of its own.
"""

from functools import cache
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .styles import STYLES
from .tasks import problems, prompt, solve

VOCABULARY = 512
CONTEXT = 512
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
_SAMPLE = 8_000

# A turn is "Q: ...\nA: ..."; a system message comes before the first question.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- 'A: ' + message['content'] | trim + eos_token + '\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- 'Q: ' + message['content'] | trim + '\\n' -}}
{%- else -%}
{{- message['content'] | trim + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'A:' -}}
{%- endif -%}
"""


@cache
def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on generated text. The same seed gives the same tokenizer.

    Cached, since it takes seconds: do not change what is returned.
    """
    rng = Random(seed)  # noqa: S311 - sample text, not secrets
    styles = list(STYLES.values())
    stream = problems("train", seed)
    texts = []
    for index in range(_SAMPLE):
        problem = next(stream)
        texts.append(prompt(problem) + solve(problem, rng, styles[index // 4 % len(styles)]))

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, core.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
