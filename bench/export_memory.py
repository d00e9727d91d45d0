"""Peak memory of exporting a randomly initialised Llama of one or eight billion parameters.

The exporter promises a peak (docs/weights.md). This makes a checkpoint of the shape of Llama-3.2-1B or
Llama-3.1-8B, a layer in memory at a time, and exports it in a process of its own. Two peaks are
reported: `resident` is all that the kernel counts for the process; `anonymous` leaves out pages of
mapped files (the checkpoint while it is read, the new weights while they are checked), which the kernel
takes back when memory is short. The first is the kernel's own maximum, the second is sampled.

    .venv/bin/python -m bench.export_memory --json
    .venv/bin/python -m bench.export_memory --shape 8b --weights int4
    .venv/bin/python -m bench.export_memory --shape 8b --layers 2 --trt agx-orin-jp6 --weights int4
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import click

from cospec.export.memory import plan
from cospec.export.pair import DEFAULT_CAPACITY
from cospec.export.weights.chosen_weights import WeightChoice
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
COMMON = {"vocab_size": 128256, "max_position_embeddings": 4096}
SCRATCH = Path(".cache")
SPREAD = 0.02


def write_checkpoint(folder: Path, shape: str, layers: int | None) -> int:
    """Write a random checkpoint in bfloat16, a file for each layer; return its number of parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = SHAPES[shape] | COMMON
    settings |= {} if layers is None else {"num_hidden_layers": layers}
    config = LlamaConfig(**settings, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        sizes = {name: each.shape for name, each in LlamaForCausalLM(config).named_parameters()}
    config.save_pretrained(folder)
    torch.manual_seed(0)
    files: dict[str, list[str]] = {}
    for name in sizes:
        place = re.search(r"layers\.(\d+)\.", name)
        files.setdefault(f"layer-{place[1]}" if place else name, []).append(name)
    places: dict[str, str] = {}
    for part, names in files.items():
        file = f"{part}.safetensors"
        places |= dict.fromkeys(names, file)
        tensors = {name: _random(sizes[name]) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    shutil.copy(Path(resolve("tiny").location) / "tokenizer.json", folder)
    return sum(size.numel() for size in sizes.values())


def _random(size: Any) -> Any:
    """Return a random matrix, or the ones of a norm."""
    import torch

    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.empty(size, dtype=torch.bfloat16).normal_(std=SPREAD)


def peaks_of(command: list[str]) -> dict[str, int]:
    """Run `command` and return its peak resident and anonymous memory in bytes.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    process = subprocess.Popen(command)
    resident = anonymous = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except ProcessLookupError:
            break  # it ended between the two calls
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
        resident = max(resident, int(sizes.get("VmHWM", 0)) * 1024)
        anonymous = max(anonymous, int(sizes.get("RssAnon", 0)) * 1024)
        time.sleep(0.01)
    if process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"resident": resident, "anonymous": anonymous}


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="1b", show_default=True)
@click.option("--layers", type=int, help="Default: as many as the model has.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="As of cospec-export.")
@click.option("--lowering", help="As of cospec-export.")
@click.option("--weights", default="keep", show_default=True, help="As of cospec-export.")
@click.option("--trt", metavar="DEVICE", help="Export for TensorRT on this device.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    shape: str,
    layers: int | None,
    precision: str | None,
    lowering: str | None,
    weights: str,
    trt: str | None,
    as_json: bool,
) -> None:
    """Measure the peak memory of one export against what is promised."""
    # Not in /tmp, which is often a small file system in memory.
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        checkpoint, bundle = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        parameters = write_checkpoint(checkpoint, shape, layers)
        started = time.monotonic()
        command = [str(Path(sys.executable).parent / "cospec-export"), "--draft", "none"]
        command += ["--target", str(checkpoint), "--output", str(bundle), "--weights", weights]
        command += [] if precision is None else ["--precision", precision]
        command += [] if lowering is None else ["--lowering", lowering]
        command += [] if trt is None else ["--trt", "--device", trt]
        peaks = peaks_of(command)
        seconds = time.monotonic() - started
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        opened = open_checkpoint(resolve(str(checkpoint)))
        arithmetic = precision or ("fp32" if trt is None else "fp16")
        chosen = "fp32" if trt is not None else cast("WeightChoice", weights)
        promised = plan([opened], arithmetic, DEFAULT_CAPACITY, bundle, chosen).peak_bytes
    result: dict[str, Any] = {
        "shape": shape,
        "parameters": parameters,
        "options": command[command.index("--weights") :],
        "bundle_bytes": size,
        "peak_resident_bytes": peaks["resident"],
        "peak_anonymous_bytes": peaks["anonymous"],
        "promised_bytes": promised,
        "seconds": round(seconds, 1),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(
            f"{parameters / 1e9:.2f}B parameters, {' '.join(result['options'])}: "
            f"bundle {size / 1e9:.2f} GB, peak {peaks['resident'] / 1e9:.2f} GB resident, "
            f"{peaks['anonymous'] / 1e9:.2f} GB anonymous, "
            f"promised {promised / 1e9:.2f} GB, {seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
