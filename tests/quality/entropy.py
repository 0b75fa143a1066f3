#!/usr/bin/env python3
"""Why rounding costs more on one text than on another: KL divergence by the entropy of what is predicted.

    python3 tests/quality/entropy.py    -> a table on stdout, and tests/quality/results/entropy.json

An error of the logits costs the more the more tokens are possible: KL is about half the variance of the error under the prediction. The
script rounds the projections of stories15M to nearest and sets the divergence on samples of the model beside that on a story in the public
domain, in bins of entropy. In each bin the two are about the same; the story's tokens lie in other bins. Positions are there to show that
they are not the cause. Computed by torch and transformers (fixtures/requirements.txt), so independent of the compiler.

Exit codes: 0 ok, 1 a failure, 2 usage.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
STORY = ROOT / "compiler/src/calibrate/text/held_out.txt"
EDGES = (0, 0.5, 1, 2, 3, 4, 5, 100)
SAMPLES, TOKENS, STRIDE = 8, 192, 64


def int8(weight: torch.Tensor, group: int = 96) -> torch.Tensor:
    grouped = weight.view(weight.shape[0], -1, group)
    scale = (grouped.abs().amax(-1, keepdim=True) / 127).half().float()
    return ((grouped / scale).round() * scale).view_as(weight)


def int4(weight: torch.Tensor, group: int = 96) -> torch.Tensor:
    grouped = weight.view(weight.shape[0], -1, group)
    low, high = (f(-1, keepdim=True).half().float() for f in (grouped.amin, grouped.amax))
    scale = ((high - low) / 15).half().float()
    return (((grouped - low) / scale).round().clamp(0, 15) * scale + low).view_as(weight)


def fp8(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(-1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/stories15M")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def load():
        return AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()

    def predictions(model, tokens):
        return torch.log_softmax(model(tokens).logits, -1)

    base = load()
    torch.manual_seed(1)
    start = torch.full((SAMPLES, 1), tokenizer.bos_token_id)
    how = dict(do_sample=True, max_new_tokens=TOKENS - 1, min_new_tokens=TOKENS - 1, top_k=0, pad_token_id=0)
    samples = base.generate(start, **how)
    ids = tokenizer(STORY.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
    windows = [[tokenizer.bos_token_id, *ids[at : at + TOKENS - 1]] for at in range(0, SAMPLES * (TOKENS - 1), TOKENS - 1)]
    texts = {"samples": samples, "story": torch.tensor(windows)}
    before = {name: predictions(base, tokens) for name, tokens in texts.items()}
    entropy = {name: -(p.exp() * p).sum(-1) for name, p in before.items()}
    found = {"entropy": {name: e.mean().item() for name, e in entropy.items()}}
    for name, rounded in (("int8", int8), ("e4m3", fp8), ("int4", int4)):
        model = load()
        for layer in model.model.layers:
            for linear in (m for m in layer.modules() if isinstance(m, torch.nn.Linear)):
                linear.weight.copy_(rounded(linear.weight))
        found[name] = {}
        for text, p in before.items():
            kl = (p.exp() * (p - predictions(model, texts[text]))).sum(-1)
            bins = {}
            for low, high in zip(EDGES, EDGES[1:]):
                here = (entropy[text] >= low) & (entropy[text] < high)
                if here.any():
                    bins[f"{low} to {high}"] = {"tokens": int(here.sum()), "kl": kl[here].mean().item()}
            places = [kl[:, at : at + STRIDE].mean().item() for at in range(0, TOKENS, STRIDE)]
            found[name][text] = {"kl": kl.mean().item(), "by_entropy": bins, "by_position": places}
    for name in ("int8", "e4m3", "int4"):
        print(f"\n{name}: nats of entropy | tokens and KL on samples | tokens and KL on a story")
        for low, high in zip(EDGES, EDGES[1:]):
            cells = [found[name][text]["by_entropy"].get(f"{low} to {high}") for text in texts]
            print(f"{low} to {high}", *(f"| {c['tokens']} | {c['kl']:.5f}" if c else "| 0 |" for c in cells))
        print("all", *(f"| {found[name][text]['kl']:.5f}" for text in texts))
    out = Path(__file__).parent / "results" / "entropy.json"
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
