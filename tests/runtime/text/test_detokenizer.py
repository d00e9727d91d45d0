"""Streaming never differs from decoding the whole, and never shows half a character."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from text_tokenizers import BYTES, HARD, KINDS, SPECIALS, WORDS, made, sentence_piece

from cospec.runtime.text.codec import TextCodec


@pytest.fixture(scope="module")
def codec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TextCodec]:
    folder = tmp_path_factory.mktemp("text")
    codecs = {kind: TextCodec(made(folder / kind, kind), None) for kind in KINDS}
    return codecs.__getitem__


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
    """One wrong byte spoils the run that contains it; `DecodeStream` raises on this."""
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
