"""PyTorch: transformers' model of the same GGUF in bfloat16, token ids as prompts. What people run who compile nothing."""

import json
from pathlib import Path

from checkpoints import GGUF_PACKAGES, environment
from loads import PROMPT_IDS, Load
from measure import run

HERE = Path(__file__).resolve().parent
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
        run([interpreter, HERE / "torch_worker.py", "convert", model, json.dumps({"gguf": str(checkpoint("f16"))})])
    return [Torch(interpreter, wish, model, threads) for wish in wishes]


class Torch:
    """PyTorch on one model folder."""

    peer = "torch"

    def __init__(self, interpreter: Path, label: str, model: Path, threads: int):
        self.name = f"torch {label}"
        self.interpreter = interpreter
        self.attention = ATTENTION[label]
        self.model = model
        self.threads = threads
        self.file_bytes = sum(file.stat().st_size for file in model.glob("*.safetensors"))

    def worker(self, verb: str, **ask) -> list:
        ask = {"threads": self.threads, "attention": self.attention, **ask}
        return [self.interpreter, HERE / "torch_worker.py", verb, self.model, json.dumps(ask)]

    def bench(self, load: Load, repetitions: int) -> list:
        """Tokens a second of each repetition, all sequences together."""
        sizes = {key: getattr(load, key) for key in ("prompt", "generate", "depth", "sequences")}
        return json.loads(run(self.worker("bench", repetitions=repetitions, **sizes)))[load.part]

    def generate_command(self, repeats: int, count: int) -> list:
        """Writes the ids that follow the prompt to stdout. Importing everything, some seconds, is in it."""
        return self.worker("generate", ids=list(PROMPT_IDS) * repeats, count=count)
