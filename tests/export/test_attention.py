"""The parts of the attention block that can be checked without an export."""

from __future__ import annotations

import pytest
import torch

from cospec.export.attention import CachedAttention, PassThroughCache, additive_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize(("length", "width"), [(0, 1), (0, 5), (4, 1), (4, 3), (7, 1)])
def test_the_mask_shows_each_row_its_past_inside_the_window(length, width, window, dtype):
    capacity = 8
    mask = additive_mask(torch.tensor([length]), width, capacity, window, dtype)
    assert mask.shape == (1, 1, width, capacity)
    assert mask.dtype == dtype
    for row in range(width):
        position = length + row
        first = 0 if window is None else max(0, position - window + 1)
        visible = [column for column in range(capacity) if first <= column <= position]
        assert torch.nonzero(mask[0, 0, row] == 0).flatten().tolist() == visible


def test_a_masked_score_vanishes_and_stays_finite():
    mask = additive_mask(torch.tensor([0]), 1, 4, None, torch.float16)
    assert torch.isfinite(mask).all()
    assert torch.softmax(mask.float(), -1)[0, 0, 0].tolist() == [1, 0, 0, 0]


def test_the_cache_hands_keys_and_values_on_and_claims_to_be_empty():
    cache, key, value = PassThroughCache(), torch.ones(1, 2, 3, 4), torch.zeros(1, 2, 3, 4)
    kept = cache.update(key, value, 5)
    assert kept[0] is key
    assert kept[1] is value
    assert cache.get_seq_length(5) == 0
    assert cache.get_mask_sizes(3, 5) == (3, 0)


def test_the_attention_function_works_in_an_export_only():
    query = torch.zeros(1, 2, 1, 4)
    with pytest.raises(RuntimeError, match="outside of an export"):
        CachedAttention()(torch.nn.Module(), query, query, query)
