"""How declared options read their values, whatever the value is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cospec.errors import UsageError
from cospec.runtime.decoding.options import GenerationOptions
from cospec.runtime.sampling.declaration import (
    Biases,
    Declared,
    OptionError,
    Texts,
    TokenIds,
    option,
    options_of,
)
from cospec.runtime.sampling.params import SamplingParams


@dataclass(frozen=True)
class Every(Declared):
    """An option of each type."""

    count: int = option(1, "A number.", low=0, high=9, unit="things")
    share: float | None = option(None, "A share.", above=0, high=1)
    sure: bool = option(False, "A switch.", flag="--certain")
    choice: Literal["a", "b"] = option("a", "A choice.")
    length: int | Literal["auto"] | None = option(None, "A length.", low=0)
    texts: Texts = option((), "Texts.")
    ids: TokenIds = option((), "Token ids.")
    biases: Biases = option({}, "Biases.")
    variables: Mapping[str, Any] = option({}, "Variables.")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"count": 4.0}, 4),
        ({"count": np.int64(4)}, 4),
        ({"share": 1}, 1.0),
        ({"share": np.float32(0.5)}, 0.5),
        ({"share": None}, None),
        ({"sure": True}, True),
        ({"choice": "b"}, "b"),
        ({"length": "auto"}, "auto"),
        ({"length": 3.0}, 3),
        ({"texts": "x"}, ("x",)),
        ({"texts": ["x", "y"]}, ("x", "y")),
        ({"ids": [1, 2]}, (1, 2)),
        ({"biases": {"7": 1, 8: -1.5}}, {7: 1.0, 8: -1.5}),
        ({"variables": {"enable_thinking": False}}, {"enable_thinking": False}),
    ],
)
def test_a_value_is_read_into_the_type_of_its_option(given, read):
    (name,) = given
    assert getattr(Every(**given), name) == read
    assert type(getattr(Every(**given), name)) is type(read)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 10}, "count is 10, but must be from 0 to 9"),
        ({"count": 4.5}, "count is 4.5, but must be an integer, got a number"),
        ({"count": True}, "count is True, but must be an integer, got true or false"),
        ({"count": None}, "count is None, but must be an integer, got nothing"),
        ({"count": "4"}, "count is '4', but must be an integer, got a text"),
        ({"count": float("inf")}, "count is inf, but must be an integer, got a number"),
        ({"share": 0}, "share is 0, but must be above 0 and at most 1"),
        ({"share": math.nan}, "share is nan, but must be above 0"),
        ({"share": 10**400}, "share is 1000*, but the number is out of range"),
        ({"share": "x" * 1000}, "share is 'x{59}, but must be a number, got a text"),
        ({"sure": 1}, "sure is 1, but must be true or false, got an integer"),
        ({"choice": "c\ud800"}, r"unknown choice 'c\\ud800'"),
        ({"choice": ["a"]}, r"unknown choice \['a'\]"),
        ({"length": "auto "}, "length is 'auto ', but must be an integer or auto"),
        ({"length": -1}, "length is -1, but must be at least 0"),
        ({"texts": [1]}, r"texts is \[1\], but must be a text, got an integer"),
        ({"texts": {"x": 1}}, "texts is {'x': 1}, but must be a list, got an object"),
        ({"texts": ["x", ""]}, "but must be a text of length >= 1"),
        ({"texts": ["x"] * 65}, "but must be a list of length <= 64"),
        ({"ids": "12"}, "ids is '12', but must be an integer, got a text"),
        ({"ids": [True]}, "but must be an integer, got true or false"),
        ({"ids": [-1]}, "but must be an integer >= 0"),
        ({"biases": [1]}, "but must be an object, got a list"),
        ({"biases": {"x": 1}}, "but must be an integer, got a text"),
        ({"biases": {"9" * 5000: 1}}, "but the number is out of range"),
        ({"biases": {"1": "x"}}, "but must be a number, got a text"),
        ({"biases": {1: math.inf}}, r"but must be a number <= 1e\+308"),
        ({"variables": [1]}, "but must be an object, got a list"),
        ({"variables": {1: 2}}, "but must be a text, got an integer"),
    ],
)
def test_another_value_is_refused_and_the_error_names_the_option(given, message):
    with pytest.raises(OptionError, match=message) as caught:
        Every(**given)
    assert caught.value.option == next(iter(given))
    assert str(caught.value).isascii(), "a client's text cannot break what repeats it"


@given(
    name=st.sampled_from([*options_of(GenerationOptions)]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=4,
    ),
)
def test_any_json_is_read_or_refused_with_a_typed_error(name, value):
    read = refusal = None
    try:
        read = GenerationOptions().updated({name: value})
    except OptionError as error:
        refusal = error
    if read is None:
        assert refusal is not None
        assert refusal.option == name
        assert str(refusal).isascii()
    else:
        again = GenerationOptions().updated({name: getattr(read, name)})
        assert again == read, "reading twice changes nothing"


def test_an_option_knows_its_flag_default_range_and_help():
    options = options_of(Every)
    assert [each.name for each in options.values()] == list(options)
    assert (options["sure"].flag, options["count"].flag) == ("--certain", "--count")
    assert options["count"].summary == "A number.  [things, from 0 to 9, default: 1]"
    assert options["share"].summary == "A share.  [above 0 and at most 1]"
    assert options["choice"].choices == ("a", "b")
    assert options["biases"].default == {}


def test_values_that_mean_not_given_elsewhere_are_accepted():
    for seed in (-1, -(2**63)):
        assert SamplingParams(seed=seed).seed is None
    assert SamplingParams(top_k=-1) == SamplingParams()
    everything = dict.fromkeys(options_of(GenerationOptions))
    assert GenerationOptions().updated(everything) == GenerationOptions()


def test_sampling_replaces_all_parameters_but_those_given_separately():
    base = GenerationOptions(temperature=0.5, top_p=0.5, max_tokens=3)
    made = base.updated({"sampling": SamplingParams(temperature=2.0, seed=1), "seed": 7})
    assert (made.temperature, made.top_p, made.seed, made.max_tokens) == (2.0, 1.0, 7, 3)
    assert GenerationOptions(sampling=SamplingParams(min_p=0.5)).min_p == 0.5


def test_an_unknown_option_is_refused_with_the_names_of_all():
    with pytest.raises(UsageError, match="there is no option 'temprature'") as caught:
        GenerationOptions().updated({"temprature": 1})
    assert "temperature" in str(caught.value.hint)
