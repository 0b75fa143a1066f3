#!/usr/bin/env python3
"""Runs an OpenVINO GenAI pipeline on token ids; openvino_peer.py starts it in its virtual environment.

    python openvino_worker.py bench MODEL '{"threads": 2, "prompt": 512, ...}'  -> JSON with tokens a second
    python openvino_worker.py generate MODEL '{"threads": 2, "ids": [1, 2], "count": 1}'  -> the ids that follow
    python openvino_worker.py logits MODEL '{"threads": 2, "windows": "windows.json", "out": "logits.f32"}'
"""

import json
import random
import sys

import numpy
import openvino
import openvino_genai

# Every vocabulary that is compared has these, and none of them is special.
TOKENS = range(1000, 40000)


def pipeline(model: str, ask: dict) -> openvino_genai.LLMPipeline:
    options = {"INFERENCE_NUM_THREADS": ask["threads"], "PERFORMANCE_HINT": "LATENCY"}
    return openvino_genai.LLMPipeline(model, "CPU", ATTENTION_BACKEND=ask["backend"], **options)


def generate(pipe: openvino_genai.LLMPipeline, rows: list, count: int):
    """Exactly `count` tokens after each row of ids."""
    ids, mask = tensor(rows), tensor([[1] * len(row) for row in rows])
    options = {"max_new_tokens": count, "ignore_eos": True, "do_sample": False}
    return pipe.generate(openvino_genai.TokenizedInputs(ids, mask), **options)


def tensor(rows: list) -> openvino.Tensor:
    return openvino.Tensor(numpy.array(rows, dtype=numpy.int64))


def bench(pipe: openvino_genai.LLMPipeline, ask: dict) -> dict:
    """Tokens a second of each repetition, after one that does not count.

    The first token ends the prefill; the time between it and the last is that of the decode. No prompt comes twice,
    so that no cache of prefixes can answer.
    """
    source = random.Random(1)
    sequences = ask["sequences"]
    length = ask["prompt"] or max(ask["depth"], 1)
    count = ask["generate"] + 1
    found = {"prefill": [], "decode": []}
    for turn in range(ask["repetitions"] + 1):
        rows = [[source.choice(TOKENS) for _ in range(length)] for _ in range(sequences)]
        metrics = generate(pipe, rows, count).perf_metrics
        if turn == 0:
            continue
        if ask["prompt"]:
            found["prefill"].append(sequences * length * 1e3 / metrics.get_ttft().mean)
        if ask["generate"]:
            times = metrics.raw_metrics.m_new_token_times
            found["decode"].append(sequences * (len(times) - 1) / (times[-1] - times[0]) * 1e3)
    return {part: samples for part, samples in found.items() if samples}


def logits(model: str, ask: dict) -> None:
    """The logits of every token of a window but its last, as binary32.

    A pipeline hands out no logits, so this is the model itself, whose attention is OpenVINO's stateful one.
    """
    core = openvino.Core()
    compiled = core.compile_model(f"{model}/openvino_model.xml", "CPU", {"INFERENCE_NUM_THREADS": ask["threads"]})
    request = compiled.create_infer_request()
    with open(ask["windows"]) as file:
        windows = json.load(file)["windows"]
    with open(ask["out"], "wb") as out:
        for window in windows:
            ids = numpy.array([window[:-1]], dtype=numpy.int64)
            inputs = {
                "input_ids": ids,
                "attention_mask": numpy.ones_like(ids),
                "position_ids": numpy.arange(ids.size, dtype=numpy.int64)[None],
                "beam_idx": numpy.zeros(1, dtype=numpy.int32),
            }
            request.reset_state()
            found = request.infer(inputs)["logits"]
            if found.shape[1] != ids.size:
                raise SystemExit(f"{model}: logits of {found.shape[1]} tokens, expected {ids.size}")
            found.astype(numpy.float32).tofile(out)


def main(verb: str, model: str, ask: dict) -> None:
    if verb == "logits":
        logits(model, ask)
        return
    pipe = pipeline(model, ask)
    if verb == "bench":
        print(json.dumps(bench(pipe, ask)))
    else:
        print(*generate(pipe, [ask["ids"]], ask["count"]).tokens[0])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
