from itertools import islice
from random import Random

import pytest
import transformers

from cospec.models import tiny_pair as tiny
from cospec.models.tiny_pair.pair_tokenizer import build_tokenizer
from cospec.models.tiny_pair.styles import STYLES
from cospec.models.tiny_pair.tasks import problems, prompt, solve


@pytest.fixture(scope="module", params=tiny.ROLES)
def tokenizer(request):
    return transformers.AutoTokenizer.from_pretrained(tiny.path(request.param))


@pytest.mark.parametrize(
    "text",
    [
        "12+30=42",
        " two  spaces\tand\r\nlines\n\n",
        "Grüße, 你好, привет, مرحبا",
        "👩‍👩‍👧 🎉 e\u0301",
        "\x00\x7f",
        "",
    ],
)
def test_any_text_survives(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_task_text_survives(tokenizer):
    rng = Random(0)
    for problem in islice(problems("test", 0), 200):
        for style in STYLES:
            text = prompt(problem) + solve(problem, rng, style)
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_prompt_and_answer_meet_at_a_token_boundary(tokenizer):
    rng = Random(0)
    for problem in islice(problems("test", 0), 100):
        answer = solve(problem, rng, "draft")
        parts = (
            tokenizer(prompt(problem)).input_ids
            + tokenizer(answer, add_special_tokens=False).input_ids
        )
        assert parts == tokenizer(prompt(problem) + answer).input_ids


def test_chat_template_is_the_prompt(tokenizer):
    for problem in islice(problems("test", 0), 40):
        chat = [{"role": "user", "content": problem.question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ids == tokenizer(prompt(problem)).input_ids
        assert ids[0] == tokenizer.bos_token_id


def test_chat_template_renders_turns(tokenizer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": " 1+1=2. Answer: 2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    assert tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == (
        "<s>Be brief.\nQ: What is 1+1?\nA: 1+1=2. Answer: 2</s>\nQ: And 2+2?\nA:"
    )


def test_every_digit_is_a_token(tokenizer):
    assert len(tokenizer("1234567890", add_special_tokens=False).input_ids) == 10


def test_checkpoints_share_one_tokenizer_and_load():
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for file in files:
        texts = {(tiny.path(role) / file).read_text("utf-8") for role in tiny.ROLES}
        assert len(texts) == 1
    for role in tiny.ROLES:
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny.path(role))
        config = model.config
        assert config.model_type == "llama"
        assert config.num_key_value_heads < config.num_attention_heads
        assert config.head_dim % 16 == 0
        assert model.generation_config.eos_token_id == config.eos_token_id == 2
        assert sum(p.numel() for p in model.parameters()) < 3_000_000


def test_packaged_tokenizer_is_the_one_the_code_builds():
    built = build_tokenizer()
    packaged = transformers.AutoTokenizer.from_pretrained(tiny.path("target"))
    assert built.get_vocab() == packaged.get_vocab()
    assert built.backend_tokenizer.to_str() == packaged.backend_tokenizer.to_str()
