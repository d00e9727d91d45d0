"""Peak memory of exporting a randomly initialised Llama of about a billion parameters.

The exporter promises at most 1.5 times the weights in the exported precision plus 1.1 GB. This makes a
checkpoint of the shape of Llama-3.2-1B and exports it in a process of its own. Two peaks are reported:
`resident` is all that the kernel counts for the process; `anonymous` leaves out pages of mapped files
(the checkpoint while it is read, the new weights while they are checked), which the kernel takes back
when memory is short. The first is the kernel's own maximum, the second is sampled.

    .venv/bin/python -m bench.export_memory --json
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from cospec.export.memory import plan
from cospec.export.pipeline import DEFAULT_CAPACITY
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
SCRATCH = Path(".cache")


def write_checkpoint(folder: Path, layers: int) -> int:
    """Write a random checkpoint in bfloat16 and return its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cospec.models.presets import resolve

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_hidden_layers=layers, dtype="bfloat16")
    torch.set_default_dtype(torch.bfloat16)
    module = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    module.save_pretrained(folder)
    shutil.copy(Path(resolve("tiny").location) / "tokenizer.json", folder)
    return sum(parameter.numel() for parameter in module.parameters())


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
@click.option("--layers", default=16, show_default=True, help="16 is Llama-3.2-1B.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--lowering", default="gqa", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(layers: int, precision: str, lowering: str, as_json: bool) -> None:
    """Measure the peak memory of one export against what is promised."""
    # Not in /tmp, which is often a small file system in memory.
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        checkpoint, bundle = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        parameters = write_checkpoint(checkpoint, layers)
        started = time.monotonic()
        command = [str(Path(sys.executable).parent / "cospec-export"), "--draft", "none"]
        command += ["--target", str(checkpoint), "--output", str(bundle)]
        peaks = peaks_of([*command, "--precision", precision, "--lowering", lowering])
        seconds = time.monotonic() - started
        opened = open_checkpoint(resolve(str(checkpoint)))
        promised = plan([opened], precision, DEFAULT_CAPACITY, bundle).peak_bytes
    weights = parameters * {"fp32": 4, "fp16": 2}[precision]
    result = {
        "parameters": parameters,
        "precision": precision,
        "lowering": lowering,
        "weights_bytes": weights,
        "peak_resident_bytes": peaks["resident"],
        "peak_anonymous_bytes": peaks["anonymous"],
        "promised_bytes": promised,
        "seconds": round(seconds, 1),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(
            f"{parameters / 1e9:.2f}B parameters, {precision}, {lowering}: "
            f"weights {weights / 1e9:.2f} GB, peak {peaks['resident'] / 1e9:.2f} GB resident, "
            f"{peaks['anonymous'] / 1e9:.2f} GB anonymous, "
            f"promised {promised / 1e9:.2f} GB, {seconds:.0f} s"
        )


if __name__ == "__main__":
    main()
