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
from cospec.runtime.sampling.declaration import Declared, OptionError, option, options_of
from cospec.runtime.sampling.params import SamplingParams


@dataclass(frozen=True)
class Every(Declared):
    """An option of each type."""

    count: int = option(1, "A number.", low=0, high=9, unit="things")
    share: float | None = option(None, "A share.", above=0, high=1)
    sure: bool = option(False, "A switch.", flag="--certain")
    choice: Literal["a", "b"] = option("a", "A choice.")
    length: int | Literal["auto"] | None = option(None, "A length.", low=0)
    texts: tuple[str, ...] = option((), "Texts.")
    ids: tuple[int, ...] = option((), "Token ids.")
    biases: Mapping[int, float] = option({}, "Biases.")
    variables: Mapping[str, Any] = option({}, "Variables.")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"count": 4.0}, 4),
        ({"count": np.int64(4)}, 4),
        ({"share": 1}, 1),
        ({"share": np.float32(0.5)}, 0.5),
        ({"share": None}, None),
        ({"sure": True}, True),
        ({"choice": "b"}, "b"),
        ({"length": "auto"}, "auto"),
        ({"length": 3.0}, 3),
        ({"texts": "x"}, ("x",)),
        ({"texts": ["x", "y"]}, ("x", "y")),
        ({"ids": [1, 2.0]}, (1, 2)),
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
        ({"count": 4.5}, "count must be an integer, not 4.5"),
        ({"count": True}, "count must be an integer, not True"),
        ({"count": None}, "count must be an integer, not None"),
        ({"count": "4"}, "count must be an integer, not '4'"),
        ({"count": float("inf")}, "count must be an integer, not inf"),
        ({"share": 0}, "share is 0, but must be above 0 and at most 1"),
        ({"share": math.nan}, "share is nan, but must be above 0"),
        ({"share": 10**400}, "share must be a number, not 1000"),
        ({"share": "x" * 1000}, "share must be a number, not 'x{59}$"),
        ({"sure": 1}, "sure must be true or false, not 1"),
        ({"choice": "c\ud800"}, r"unknown choice 'c\\ud800'"),
        ({"choice": ["a"]}, "choice must be one of a, b"),
        ({"length": "auto "}, "length must be an integer or 'auto', not 'auto '"),
        ({"length": -1}, "length is -1, but must be at least 0"),
        ({"texts": [1]}, "texts must be a text or a list of texts"),
        ({"texts": {"x": 1}}, "texts must be a text or a list of texts"),
        ({"texts": ["x", ""]}, "texts: a text is empty"),
        ({"texts": ["x"] * 65}, "texts: there are 65 items, but at most 64 are accepted"),
        ({"ids": "12"}, "ids must be a list of token ids"),
        ({"ids": [True]}, "ids must be a list of token ids"),
        ({"biases": [1]}, "biases must be an object that maps token ids to numbers"),
        ({"biases": {"x": 1}}, "biases: 'x' is not a token id"),
        ({"biases": {"9" * 5000: 1}}, "biases: '999.* is not a token id"),
        ({"biases": {"1": "x"}}, "biases must be an object that maps token ids to numbers"),
        ({"biases": {1: math.inf}}, "biases: the bias of 1 is not finite"),
        ({"variables": [1]}, "variables must be an object"),
        ({"variables": {1: 2}}, "variables must be an object"),
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
    assert options["count"].summary == "A number.  [from 0 to 9 things; default: 1]"
    assert options["share"].summary == "A share.  [above 0 and at most 1]"
    assert options["choice"].kind.choices == ("a", "b")
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
