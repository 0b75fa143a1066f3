"""The GGUF files of a workload: the real model, or random weights of its shape, in the formats that are compared."""

import dataclasses
import json
import os
import sys
from pathlib import Path

from measure import Missing, PeerError, run
from workloads import Workload

HERE = Path(__file__).resolve().parent
GGUF_PACKAGES = ("gguf==0.19.0", "numpy==2.4.6")
# What `llama-quantize` is asked for. `--pure` keeps one format for every matrix, so that Bessemer can read the file too;
# without it llama.cpp gives the embedding (which is the head where both are tied) six bits.
FORMATS = {
    "q4_0": ("--pure", "Q4_0"),
    "q4_1": ("--pure", "Q4_1"),
    "q8_0": ("--pure", "Q8_0"),
    "f16": ("F16",),
    "f32": ("F32",),
    "q4_0-mixed": ("Q4_0",),
}


def environment(folder: Path, packages: tuple) -> Path:
    """The Python of a virtual environment with `packages`."""
    python = folder / "bin" / "python"
    stamp = folder / "installed.txt"
    wanted = "\n".join(packages)
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    try:
        run([sys.executable, "-m", "venv", folder])
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
    except PeerError as error:
        raise Missing(f"pip could not install {' '.join(packages)}: {error}") from error
    stamp.write_text(wanted)
    return python


def base(workload: Workload, cache: Path) -> Path:
    """The file that all others are made from: the model as fetched, or random weights in bf16."""
    if workload.shape is None:
        fetched = run([sys.executable, HERE.parents[1] / "fixtures" / "fetch.py", "smollm2"])
        return Path(fetched.strip().splitlines()[-1])
    final = cache / f"{workload.name}-bf16.gguf"
    if not final.is_file():
        print(f"writing {final}", file=sys.stderr)
        python = environment(cache / "gguf-venv", GGUF_PACKAGES)
        tokenizer = run([sys.executable, HERE.parents[1] / "fixtures" / "fetch.py", "smollm2"])
        shape = json.dumps(dataclasses.asdict(workload.shape))
        partial = final.with_suffix(".partial")
        run([python, HERE / "random_gguf.py", shape, tokenizer.strip().splitlines()[-1], partial])
        partial.rename(final)
    return final


def checkpoint(workload: Workload, name: str, cache: Path, quantize: Path) -> Path:
    """The GGUF of a workload in one of the `FORMATS`, in `bf16`, or (`source`) as the model is fetched."""
    source = base(workload, cache)
    if name == "source" or (name == "bf16" and workload.shape):
        return source
    if name == "bf16":
        return quantized(source, cache / f"{workload.name}-bf16.gguf", quantize, ("BF16",))
    # A model that is published in four bits only: what its weights are in f32 is what others round from.
    return quantized(source, cache / f"{workload.name}-{name}.gguf", quantize, FORMATS[name])


def quantized(source: Path, final: Path, quantize: Path, wish: tuple) -> Path:
    if not final.is_file():
        print(f"writing {final}", file=sys.stderr)
        options = [word for word in wish if word.startswith("--")]
        partial = final.with_suffix(".partial")
        kind = wish[-1]
        run([quantize, "--allow-requantize", *options, source, partial, kind, os.cpu_count()])
        partial.rename(final)
    return final
