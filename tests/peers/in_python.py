"""Peers that are Python packages: a worker script of ours runs in their virtual environment, and takes token ids."""

import json
from pathlib import Path

from loads import PROMPT_IDS, Load
from measure import run

HERE = Path(__file__).resolve().parent


class InPython:
    """One model folder in one setting. `ask` is what every call of the worker is told."""

    def __init__(self, peer: str, label: str, interpreter: Path, model: Path, ask: dict):
        self.peer = peer
        self.name = f"{peer} {label}"
        self.command = [interpreter, HERE / f"{peer}_worker.py"]
        self.model = model
        self.ask = ask

    @property
    def file_bytes(self) -> int:
        weights = [file for kind in ("*.safetensors", "openvino_model.bin") for file in self.model.glob(kind)]
        return sum(file.stat().st_size for file in weights)

    def worker(self, verb: str, **ask) -> list:
        return [*self.command, verb, self.model, json.dumps({**self.ask, **ask})]

    def bench(self, load: Load, repetitions: int) -> list:
        """Tokens a second of each repetition, all sequences together."""
        sizes = {key: getattr(load, key) for key in ("prompt", "generate", "depth", "sequences")}
        return json.loads(run(self.worker("bench", repetitions=repetitions, **sizes)))[load.part]

    def generate_command(self, repeats: int, count: int) -> list:
        """Writes the ids that follow the prompt to stdout. Python's own start is in it: 0.1 s, and for PyTorch seconds of imports."""
        return self.worker("generate", ids=list(PROMPT_IDS) * repeats, count=count)
