"""Text in, text out: streaming never differs from decoding the whole, and templates are contained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from factories import CHAT_TEMPLATE, write_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cospec.errors import BundleError, PromptError, UsageError
from cospec.runtime.text.codec import TextCodec

HARD = "naïve café 你好, 世界! 👩‍👩‍👧 e\u0301a\u0308 \u202etfel 🇫🇷\n\ttab  two spaces"
SPECIALS = ["<unk>", "<s>", "</s>"]
WORDS = ["▁", "▁▁", "▁a", "a", "b", "▁world", "world", "!", "你", "▁好", "�", "▁�"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(folder: Path) -> Path:
    return write_tokenizer(folder, size=300)


def sentence_piece(folder: Path, kind: str) -> Path:
    """Build a tokenizer of the Llama 2 kind: words carry their space, bytes stand in for the rest."""
    spellings = [*SPECIALS, *BYTES, *WORDS]
    if kind == "unigram":
        scores = [(word, -1.0 - i / 100) for i, word in enumerate(spellings)]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        vocabulary = {word: i for i, word in enumerate(spellings)}
        merges = [("▁", "▁"), ("▁", "a"), ("▁", "好"), ("▁", "�")]
        merges = [pair for pair in merges if all(part in vocabulary for part in pair)]
        model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    tokenizer.add_special_tokens(SPECIALS)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


KINDS = ("byte-level", "bpe", "unigram")


@pytest.fixture(scope="module")
def codec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TextCodec]:
    folder = tmp_path_factory.mktemp("text")
    made = {
        kind: TextCodec(
            byte_level(folder / kind)
            if kind == "byte-level"
            else sentence_piece(folder / kind, kind),
            None,
        )
        for kind in KINDS
    }
    return made.__getitem__


def ids(codec: TextCodec, *spellings: str) -> list[int]:
    return [codec._tokenizer.token_to_id(spelling) for spelling in spellings]


def streamed(codec: TextCodec, blocks: list[list[int]], context: list[int]) -> list[str]:
    stream = codec.stream(context)
    return [*(stream.push(block) for block in blocks), stream.finish()]


def added_text(codec: TextCodec, tokens: list[int], context: list[int]) -> str:
    """What `tokens` add to the text of `context`; transformers' pipeline defines it like this."""
    return codec.decode(context + tokens)[len(codec.decode(context)) :]


def tokens_for(kind: str) -> st.SearchStrategy[list[int]]:
    if (
        kind == "byte-level"
    ):  # 300 tokens, 4 of them special; the rest are ids of a padded vocabulary
        return st.lists(st.integers(0, 310), max_size=24)
    first_word = len(SPECIALS) + len(BYTES)
    ids = st.one_of(
        st.integers(first_word, first_word + len(WORDS) - 1),
        st.sampled_from([0, 1, 2, 999]),
        st.sampled_from([3 + byte for byte in "aé你👩".encode()] + [3 + 0xFF]),
        st.integers(3, 258),
    )
    return st.lists(ids, max_size=24)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_pieces_joined_are_what_the_output_adds(codec_of, kind, data):
    codec = codec_of(kind)
    tokens = data.draw(tokens_for(kind))
    context = data.draw(st.one_of(st.just([]), tokens_for(kind)))
    size = data.draw(st.integers(1, 5))
    blocks = [tokens[i : i + size] for i in range(0, len(tokens), size)]
    pieces = streamed(codec, blocks, context)
    assert "".join(pieces) == added_text(codec, tokens, context)
    if not context:
        assert "".join(pieces) == codec.decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=20))
@example(text=HARD)
@settings(max_examples=60, deadline=None)
def test_valid_text_arrives_token_by_token_and_never_as_half_a_character(codec_of, kind, text):
    codec = codec_of(kind)
    tokens = codec.encode(text)
    pieces = streamed(codec, [[token] for token in tokens], [])
    whole = codec.decode(tokens)
    assert "".join(pieces) == whole
    if kind == "byte-level":
        assert whole == text
    for piece in pieces:
        assert piece.count("�") <= text.count("�")
    so_far = ""
    for piece in pieces:
        so_far += piece
        assert whole.startswith(so_far), "what was printed is never taken back"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_first_word_keeps_the_space_that_separates_it_from_the_prompt(codec_of, kind):
    codec = codec_of(kind)
    prompt, output = ids(codec, "▁a"), ids(codec, "▁world", "▁a")
    assert codec.decode(output) == "world a"
    assert streamed(codec, [[token] for token in output], prompt) == [" world", " a", ""]
    assert streamed(codec, [[token] for token in output], []) == ["world", " a", ""]
    assert streamed(codec, [output], ids(codec, "<s>")) == ["world a", ""], (
        "nothing stands before it but <s>"
    )


def test_text_is_that_of_the_pipeline_of_transformers(codec_of, tmp_path):
    """Its streamer, which decodes the output alone, loses the space; its pipeline does not."""
    transformers = pytest.importorskip("transformers")
    path = sentence_piece(tmp_path, "bpe")
    codec = TextCodec(path, None)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(path), clean_up_tokenization_spaces=False
    )
    prompt, output = ids(codec, "<s>", "▁a"), ids(codec, "▁world", "▁a", "</s>")
    whole = theirs.decode(prompt + output, skip_special_tokens=True)
    before = theirs.decode(prompt, skip_special_tokens=True)
    assert "".join(streamed(codec, [output], prompt)) == whole[len(before) :] == " world a"


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_may_end_in_mid_character(codec_of, kind):
    codec = codec_of(kind)
    tokens = codec.encode("a👩")
    stream = codec.stream()
    assert stream.push(tokens[:-1]) in ("a", ""), "the torn character is held back"
    left = stream.finish()
    assert left.endswith("�")
    assert stream.finish() == "", "and is handed out once"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_wrong_bytes_behind_a_character_of_bytes(codec_of, kind):
    """One wrong byte spoils the run it stands in; `DecodeStream` raises on this."""
    codec = codec_of(kind)
    spoiled = [3 + 0xC3, 3 + 0xA9, 3 + 0xFF]
    word = codec.encode("a")
    assert codec.decode(spoiled + word).startswith("���")
    pieces = streamed(codec, [[token] for token in spoiled + word], [])
    assert pieces[:3] == ["", "", ""]
    assert "".join(pieces) == codec.decode(spoiled + word)
    # A special token is not text: the run goes on behind it.
    pieces = streamed(codec, [[t] for t in [*spoiled[:2], 1, *spoiled[2:], *word]], [])
    assert "".join(pieces) == codec.decode(spoiled + word)


def test_special_tokens_and_ids_without_text_are_skipped(codec_of):
    codec = codec_of("byte-level")
    hello = codec.encode("hello")
    noisy = [0, *hello[:1], 2, 305, *hello[1:], 1]
    assert codec.decode(noisy) == "hello"
    assert "".join(streamed(codec, [[token] for token in noisy], [3, 3])) == "hello"


def test_truncation_and_padding_of_a_tokenizer_file_do_not_touch_prompts(tmp_path):
    path = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    tokenizer.save(str(path))
    assert TextCodec(path, None).decode(TextCodec(path, None).encode(HARD)) == HARD


def test_special_tokens_that_the_tokenizer_adds_come_with_text_but_not_with_chats(tmp_path):
    from tokenizers.processors import TemplateProcessing

    path = byte_level(tmp_path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    tokenizer.save(str(path))
    codec = with_template(path, "<bos>{{ messages[0].content }}")
    plain = codec.encode("hi")
    assert plain.count(0) == 1
    assert codec.encode_chat([{"role": "user", "content": "hi"}]) == plain


@pytest.mark.parametrize(
    "contents", [b"", b"garbage", b"{}", b'{"model": {"type": "no"}}', b"\xff"]
)
def test_a_tokenizer_that_cannot_be_used(tmp_path, contents):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(contents)
    with pytest.raises(BundleError, match="cannot be used") as caught:
        TextCodec(path, None)
    assert str(path) in caught.value.message
    assert "export the bundle again" in caught.value.hint


def test_text_that_is_no_unicode(codec_of):
    with pytest.raises(PromptError, match="not valid Unicode"):
        codec_of("byte-level").encode("a\udcff")


# ---- chat templates -------------------------------------------------------------------------------


def with_template(tokenizer: Path, source: str | bytes) -> TextCodec:
    path = tokenizer.parent / "chat_template.jinja"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return TextCodec(tokenizer, path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("template"))


HELLO = [{"role": "user", "content": "hello"}]


def test_a_template_renders_messages_and_opens_the_answer(tokenizer):
    codec = with_template(tokenizer, "{%- set bos_token = '<bos>' -%}\n" + CHAT_TEMPLATE)
    assert codec.has_chat_template
    tokens = codec.encode_chat([*HELLO, {"role": "assistant", "content": "x"}])
    user, assistant = 2, 3
    expected = [0, user, *codec.encode("hello"), assistant, *codec.encode("x"), assistant]
    assert tokens == expected


def test_helpers_that_templates_of_the_hub_expect(tokenizer):
    source = (
        "{%- for m in messages -%}\n    {%- if loop.index > 1 %}{% break %}{% endif -%}\n"
        "{{ m | tojson }}{% endfor %}{{ strftime_now('%Y') | length }}"
    )
    codec = with_template(tokenizer, source)
    tokens = codec.encode_chat([{"role": "user", "content": "ü"}, *HELLO])
    assert codec.decode(tokens) == '{"role": "user", "content": "ü"}4'


def test_without_a_template_messages_are_refused(tokenizer):
    codec = TextCodec(tokenizer, None)
    assert not codec.has_chat_template
    with pytest.raises(UsageError, match="no chat template") as caught:
        codec.encode_chat(HELLO)
    assert "plain text" in caught.value.hint


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ strftime_now.__globals__['sys'] }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ ('%s' | attr('__class__')).__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% include '/etc/hostname' %}",
    ],
)
def test_templates_run_in_a_sandbox(tokenizer, attack):
    messages = [dict(HELLO[0])]
    with pytest.raises(PromptError, match="refuses these messages"):
        with_template(tokenizer, attack).encode_chat(messages)
    assert messages == HELLO


@pytest.mark.parametrize(
    "source", ["{{ messages.__class__ }}", "{{ raise_exception.__globals__ }}"]
)
def test_what_a_template_may_not_see_prints_as_nothing(tokenizer, source):
    assert with_template(tokenizer, source).encode_chat(HELLO) == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "str"),  # a TypeError, not an error of Jinja
        ("{{ messages[5].content.missing }}", "undefined|has no element"),
        ("{{ 1 // (messages | length - 1) }}", "zero"),
    ],
)
def test_a_template_that_refuses(tokenizer, source, reason):
    with pytest.raises(PromptError, match=reason) as caught:
        with_template(tokenizer, source).encode_chat(HELLO)
    assert '{"role": "user"' in caught.value.hint


@pytest.mark.parametrize(
    "source",
    ["{% for m in messages %}", "{{ 1 +", "{% nothing %}", b"\xff\xfe", "{{ " + "(" * 9999],
)
def test_a_template_that_cannot_be_compiled(tokenizer, source):
    with pytest.raises(BundleError, match="not a usable chat template") as caught:
        with_template(tokenizer, source)
    assert "chat_template.jinja" in caught.value.message
    assert caught.value.hint == "export the bundle again"
