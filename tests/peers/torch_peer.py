"""PyTorch: transformers' model of the same GGUF in bfloat16, token ids as prompts. What people run who compile nothing."""

import json
from pathlib import Path

from checkpoints import GGUF_PACKAGES, environment
from in_python import HERE, InPython
from measure import run

PACKAGES = ("torch==2.15.0", "transformers==5.23.0", "accelerate==1.15.0", *GGUF_PACKAGES)
# What transformers calls its attention: one call of PyTorch's fused one, or an operator at a time.
ATTENTION = {"bf16": "sdpa", "bf16:eager": "eager"}


def contestants(cache: Path, workload: str, checkpoint, wishes: tuple, threads: int) -> list:
    """PyTorch at each wish; `checkpoint` makes the GGUF that the weights are read from, once."""
    if not wishes:
        return []
    interpreter = environment(cache / "torch-venv", PACKAGES)
    model = cache / "torch" / workload
    if not model.is_dir():
        model.parent.mkdir(parents=True, exist_ok=True)
        run([interpreter, HERE / "torch_worker.py", "convert", model, json.dumps({"gguf": str(checkpoint("bf16"))})])
    return [
        InPython("torch", wish, interpreter, model, {"threads": threads, "attention": ATTENTION[wish]}) for wish in wishes
    ]
