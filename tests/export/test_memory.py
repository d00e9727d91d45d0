from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from cospec.errors import ResourceError, UsageError
from cospec.export import memory
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.bundle import durable
from cospec.runtime.engines import host_memory

GB = 1_000_000_000


def llama_8b(limit=131072, **more):
    """Stands for a checkpoint of 8 billion parameters."""
    config = SimpleNamespace(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, hidden_size=4096
    )
    sizes = {"fp32": 32 * GB, "fp16": 16 * GB}
    known = {"gguf_file": None, "packing": None, "weight_files": ()} | more
    return SimpleNamespace(
        name="llama-8b",
        config=config,
        max_positions=limit,
        weight_bytes=sizes.__getitem__,
        parameters=8 * GB,
        vocab_size=128256,
        **known,
    )


def plan(precision="fp32", capacity=4096, disk_path=Path("/"), weights="fp32"):
    return memory.plan([llama_8b()], precision, capacity, disk_path, weights)


def test_figures():
    made = plan()
    assert made.weight_bytes == (32 * GB,)
    # 2 (keys, values) x 32 layers x 8 heads x 128 values x 4096 tokens x 4 bytes
    cache = 2 * 32 * 8 * 128 * 4096 * 4
    assert made.kv_cache_bytes == (cache,)
    head = 3 * 4 * 128256 * 4096
    assert made.peak_bytes == memory.FIXED_BYTES + head + int(1.3 * 32 * GB) + cache
    assert made.disk_bytes > 32 * GB
    # Graphs in fp16 stay in their file, and are read a matrix at a time.
    assert plan("fp16").peak_bytes == memory.FIXED_BYTES + head + cache // 2


def test_integers_take_a_byte_at_most_and_widened_weights_four():
    integers = plan(weights="int4")
    assert integers.weight_bytes == plan(weights="int8").weight_bytes == (int(1.07 * 8 * GB),)
    assert integers.peak_bytes < plan(weights="fp16").peak_bytes == plan().peak_bytes
    assert plan(weights="fp16").weight_bytes != integers.weight_bytes
    assert plan(weights="auto").peak_bytes == plan(weights="int8").peak_bytes > integers.peak_bytes
    assert plan(weights="auto").weight_bytes == (16 * GB,)


@pytest.mark.parametrize("kept", [{"gguf_file": "m.gguf"}, {"packing": object()}, {}])
def test_kept_files_take_what_they_took(tmp_path, kept):
    (tmp_path / "m.gguf").write_bytes(bytes(2000))
    checkpoint = llama_8b(weight_files=(tmp_path / "m.gguf",), **kept)
    made = memory.plan([checkpoint], "fp32", 64, tmp_path, "keep")
    assert made.weight_bytes == ((2300,) if kept else (32 * GB,))


def test_peak_is_the_larger_model_and_disk_is_both(checkpoint_of):
    small, large = (open_checkpoint(resolve(str(checkpoint_of("llama", layers=n)))) for n in (1, 4))
    both = memory.plan([large, small], "fp16", 64, Path("/"))
    alone = memory.plan([large], "fp16", 64, Path("/"))
    assert both.peak_bytes == alone.peak_bytes
    assert both.disk_bytes > alone.disk_bytes
    assert both.kv_cache_bytes[0] == 4 * both.kv_cache_bytes[1]
    assert both.kv_cache_bytes[1] == 2 * 2 * 16 * 64 * 2
    memory.ensure_fits(both)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "phi3"])
def test_cache_size_of_other_families(family, checkpoint_of):
    config = open_checkpoint(resolve(str(checkpoint_of(family)))).config
    heads = {"gpt2": 4 * 16, "gemma2": 2 * 32, "opt": 4 * 16, "phi3": 2 * 16}[family]
    assert memory.kv_cache_bytes(config, 10, "fp32") == 2 * 2 * heads * 10 * 4


def test_too_little_memory_names_both_figures(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 11_800_000_000)
    with pytest.raises(ResourceError) as caught:
        memory.ensure_fits(plan())
    text = str(caught.value)
    assert "needs 50.1 GB" in text
    assert "has 11.8 GB available" in text
    assert "--weights int4" in text
    monkeypatch.setattr(memory, "available_memory", lambda: 7 * GB)
    with pytest.raises(ResourceError) as caught:
        memory.ensure_fits(plan("fp16"))
    assert "--weights" not in str(caught.value)
    with pytest.raises(ResourceError) as caught:
        memory.ensure_fits(plan(weights="int4"))
    assert "--weights" not in str(caught.value)


def test_too_little_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "available_memory", lambda: 100 * GB)
    monkeypatch.setattr(durable.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * GB))
    with pytest.raises(ResourceError, match=r"needs 33\.7 GB of disk.* 2\.0 GB free"):
        memory.ensure_fits(plan(disk_path=tmp_path))


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    assert durable.free_disk(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize("capacity", [-1, 0, 15])
def test_capacity_too_small(capacity):
    with pytest.raises(UsageError, match="16 at least"):
        plan(capacity=capacity)


def test_capacity_beyond_the_model():
    with pytest.raises(UsageError, match=r"200000 .*llama-8b, which is 131072"):
        plan(capacity=200_000)
    unlimited = llama_8b(limit=None)
    memory.check_capacity([unlimited], 200_000)


@pytest.mark.parametrize("version", [1, 2])
def test_container_limit_counts(version, tmp_path, monkeypatch):
    root = tmp_path / ("memory" if version == 1 else "")
    root.mkdir(exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (root / names[0]).write_text("1000\n")
    (root / names[1]).write_text("900\n")
    (root / "memory.stat").write_text(f"anon 5\n{names[2]} 300\n")
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    assert memory.available_memory() == 400
    if version == 2:
        (root / names[0]).write_text("max\n")
        assert memory.available_memory() > 400


def test_without_a_container(tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    total = psutil.virtual_memory().total
    assert 0 < memory.available_memory() <= total
