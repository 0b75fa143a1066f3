#!/usr/bin/env python3
"""Runs a model of transformers on token ids; torch_peer.py starts it in its virtual environment.

    python torch_worker.py convert FOLDER '{"gguf": "model-bf16.gguf"}'               -> FOLDER, in bfloat16
    python torch_worker.py bench FOLDER '{"threads": 2, "prompt": 512, ...}'           -> JSON with tokens a second
    python torch_worker.py generate FOLDER '{"threads": 2, "ids": [1, 2], "count": 1}' -> the ids that follow
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

# Every vocabulary that is compared has these, and none of them is special.
TOKENS = range(1000, 40000)


def convert(folder: Path, gguf: Path) -> None:
    """The weights as transformers reads them from a GGUF, saved whole: it takes long, and the process that is timed starts from
    what users have."""
    read = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # What was read calls itself quantised, as GGUF files mostly are, and does not let itself be saved.
    config = transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        partial = Path(work) / "model"
        model.save_pretrained(partial)
        partial.rename(folder)


def load(folder: str, ask: dict):
    torch.set_num_threads(ask["threads"])
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation=ask["attention"]
    ).eval()


class Sequences:
    """Sequences that grow together, and their cache."""

    def __init__(self, model):
        self.model = model
        self.cache = transformers.DynamicCache(config=model.config)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Takes tokens (sequences x tokens); the most likely one after the last of each."""
        found = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return found.logits[:, -1:].argmax(-1)


def bench(model, ask: dict) -> dict:
    """Tokens a second of each repetition, after one that does not count."""
    source = random.Random(1)
    sequences = ask["sequences"]
    length = ask["prompt"] or max(ask["depth"], 1)
    found = {"prefill": [], "decode": []}
    for turn in range(ask["repetitions"] + 1):
        rows = [[source.choice(TOKENS) for _ in range(length)] for _ in range(sequences)]
        grown = Sequences(model)
        started = time.perf_counter()
        ids = grown.step(torch.tensor(rows))
        prompted = time.perf_counter()
        for _ in range(ask["generate"]):
            ids = grown.step(ids)
        ended = time.perf_counter()
        if turn == 0:
            continue
        if ask["prompt"]:
            found["prefill"].append(sequences * length / (prompted - started))
        if ask["generate"]:
            found["decode"].append(sequences * ask["generate"] / (ended - prompted))
    return {part: samples for part, samples in found.items() if samples}


def generate(model, ask: dict) -> None:
    grown = Sequences(model)
    ids = torch.tensor([ask["ids"]])
    for _ in range(ask["count"]):
        ids = grown.step(ids)
        print(ids.item(), flush=True)


def main(verb: str, folder: str, ask: dict) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if verb == "convert":
        convert(Path(folder), Path(ask["gguf"]))
        return
    model = load(folder, ask)
    with torch.inference_mode():
        if verb == "bench":
            print(json.dumps(bench(model, ask)))
        else:
            generate(model, ask)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
