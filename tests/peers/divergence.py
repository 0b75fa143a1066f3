#!/usr/bin/env python3
"""How far logits are from others: the same figures as `bessemer eval --base`, for files of binary32 logits.

    python divergence.py VOCABULARY base.f32 other.f32 < ids-that-follow.json

Needs numpy; quality.py runs it in a virtual environment that has it.
"""

import json
import sys

import numpy

ROWS = 256


def log_softmax(logits: numpy.ndarray) -> numpy.ndarray:
    shifted = logits.astype(numpy.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return shifted - numpy.log(numpy.exp(shifted).sum(axis=1, keepdims=True))


def compare(base: numpy.ndarray, other: numpy.ndarray, following: list) -> dict:
    """Mean KL(base, other) in nats and more, for rows of logits and the tokens that came after them."""
    found = {"kl": [], "same": [], "base": [], "other": [], "error": [], "norm": []}
    for at in range(0, len(base), ROWS):
        logits = [side[at : at + ROWS] for side in (base, other)]
        p, q = map(log_softmax, logits)
        tokens = following[at : at + ROWS]
        rows = range(len(tokens))
        found["kl"] += list(numpy.maximum((numpy.exp(p) * (p - q)).sum(axis=1), 0))
        found["same"] += list(logits[0].argmax(axis=1) == logits[1].argmax(axis=1))
        found["base"] += list(-p[rows, tokens])
        found["other"] += list(-q[rows, tokens])
        found["error"] += list(numpy.square(logits[1].astype(numpy.float64) - logits[0]).sum(axis=1))
        found["norm"] += list(numpy.square(logits[0].astype(numpy.float64)).sum(axis=1))
    return {
        "tokens": len(following),
        "ppl": float(numpy.exp(numpy.mean(found["other"]))),
        "base_ppl": float(numpy.exp(numpy.mean(found["base"]))),
        "mean_kl": float(numpy.mean(found["kl"])),
        "p99_kl": float(numpy.sort(found["kl"])[len(following) * 99 // 100]),
        "top1": float(numpy.mean(found["same"])),
        "relative_error": float(numpy.sqrt(numpy.sum(found["error"]) / numpy.sum(found["norm"]))),
    }


if __name__ == "__main__":
    width = int(sys.argv[1])
    sides = [numpy.memmap(path, dtype=numpy.float32, mode="r").reshape(-1, width) for path in sys.argv[2:4]]
    print(json.dumps(compare(*sides, json.load(sys.stdin))))
