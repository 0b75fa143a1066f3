#!/usr/bin/env python3
"""Compare Bessemer with llama.cpp: the same GGUF, the same machine, the same minutes.

    python3 tests/peers/compare.py NAME             -> tests/peers/results/NAME.json, and a table on stdout
    python3 tests/peers/compare.py --build-only     builds both into .cache/peers/ and stops

Measures prefill, decode from an empty context, decode at a depth, and the time from process start to the first token.
The contestants take turns within a round (A B A B ...), so that a slow minute of the machine meets all of them; ratios
are taken within rounds. llama.cpp runs with flash attention off and on, and the better of the two stands for it.

Exit codes: 0 ok, 1 a build or a measurement failed, 2 usage, 3 a tool is missing, or no network.
Needs Python 3.11 and nothing outside its standard library.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import statistics
import sys
from pathlib import Path

import bessemer
import llama_cpp
from measure import PeerError, first_byte, machine, ratios, run, summary

CACHE = bessemer.ROOT / ".cache" / "peers"
RESULTS = Path(__file__).resolve().parent / "results"
PROMPT = "The capital of France is"
FIRST_TOKEN = "first_token"
BUSY_LOAD = 0.5


def arguments(given=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Bessemer with llama.cpp on the same GGUF file.")
    parser.add_argument("name", nargs="?", type=file_name, help="what to call the result, such as zen5-2-threads")
    parser.add_argument("--build-only", action="store_true", help="build both sides and stop")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: SmolLM2-135M-Instruct, fetched)")
    parser.add_argument("-t", "--threads", type=positive, default=2)
    parser.add_argument("-p", "--prompt", type=positive, default=512, help="tokens of the prompt")
    parser.add_argument("-n", "--generate", type=positive, default=128, help="tokens to decode")
    parser.add_argument("-d", "--depth", type=positive, default=512, help="tokens held before the second decode")
    parser.add_argument("-r", "--repetitions", type=positive, default=3, help="samples of each kind in a round")
    parser.add_argument("--rounds", type=positive, default=5, help="how often everyone takes a turn")
    parser.add_argument("-j", "--jobs", type=positive, default=os.cpu_count(), help="compilers that run at once")
    args = parser.parse_args(given)
    if args.name is None and not args.build_only:
        parser.error("give the result a NAME, or --build-only")
    return args


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def file_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no plain file name")
    return text


def measure(contestants: list, args: argparse.Namespace) -> dict:
    """Samples as {metric: {contestant: [samples of a round, ...]}}, everyone taking turns."""
    loads = {
        f"prefill_{args.prompt}": ("prefill", args.prompt, 0, 0),
        f"decode_{args.generate}": ("decode", 0, args.generate, 0),
        f"decode_{args.generate}_at_{args.depth}": ("decode", 0, args.generate, args.depth),
    }
    found = {metric: {c.name: [] for c in contestants} for metric in [*loads, FIRST_TOKEN]}
    for turn in range(args.rounds):
        print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
        for metric, (part, prompt, generate, depth) in loads.items():
            for contestant in contestants:
                samples = contestant.bench(prompt, generate, depth, args.repetitions)[part]
                found[metric][contestant.name].append(samples)
        starts = {c.name: [] for c in contestants}
        for _ in range(args.repetitions):
            for contestant in contestants:
                ms, _ = first_byte(contestant.first_token_command(PROMPT))
                starts[contestant.name].append(ms)
        for name, samples in starts.items():
            found[FIRST_TOKEN][name].append(samples)
    return found


def judge(metric: str, samples: dict) -> dict:
    """Both sides of a metric: ours, the best of the peer's variants, and how many times better ours is."""
    less_is_better = metric == FIRST_TOKEN
    ours = samples[bessemer.Bessemer.name]
    variants = {name: summary(rounds) for name, rounds in samples.items() if name != bessemer.Bessemer.name}
    order = sorted(variants, key=lambda name: variants[name]["median"], reverse=not less_is_better)
    best = samples[order[0]]
    return {
        "unit": "ms" if less_is_better else "tok/s",
        "bessemer": summary(ours),
        "llama.cpp": variants,
        "llama.cpp_best": order[0],
        # Above 1, Bessemer is the better one, whatever the unit.
        "ratio": ratios(best, ours) if less_is_better else ratios(ours, best),
    }


def table(metrics: dict) -> str:
    lines = ["| | unit | Bessemer | llama.cpp, best of both | variant | ratio | ratio, min to max |"]
    lines.append("|---|---|---|---|---|---|---|")
    for metric, both in metrics.items():
        ours, theirs, ratio = both["bessemer"], both["llama.cpp"][both["llama.cpp_best"]], both["ratio"]
        cells = [
            metric.replace("_", " "),
            both["unit"],
            *(f"{side['median']:.1f} ±{50 * side['spread']:.0f} %" for side in (ours, theirs)),
            both["llama.cpp_best"].removeprefix("llama.cpp "),
            f"{ratio['median']:.2f}",
            f"{ratio['min']:.2f} to {ratio['max']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def default_model() -> Path:
    fetched = run([sys.executable, bessemer.ROOT / "fixtures" / "fetch.py", "smollm2"])
    return Path(fetched.strip().splitlines()[-1])


def compare(args: argparse.Namespace) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    peer = llama_cpp.build(CACHE, args.jobs)
    program = bessemer.build()
    if args.build_only:
        return
    model = args.model or default_model()
    engine = bessemer.compile_model(program, model, CACHE)
    contestants = [bessemer.Bessemer(program, engine, args.threads)]
    contestants += [llama_cpp.LlamaCpp(peer["programs"], model, args.threads, fa) for fa in (0, 1)]

    load_before = os.getloadavg()[0]
    if load_before > BUSY_LOAD:
        print(f"compare: the machine is busy (load {load_before:.1f}): figures will be noisy", file=sys.stderr)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    metrics = {metric: judge(metric, samples) for metric, samples in measure(contestants, args).items()}
    with model.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    result = {
        "date": date,
        "machine": {**machine(), "load_before": load_before},
        "model": {"file": model.name, "sha256": sha256, "bytes": model.stat().st_size},
        "engine_bytes": engine.stat().st_size,
        "bessemer": bessemer.version(),
        "llama.cpp": {key: peer[key] for key in ("version", "compiler")},
        "settings": {
            key: getattr(args, key)
            for key in ("threads", "prompt", "generate", "depth", "rounds", "repetitions")
        },
        "metrics": metrics,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{args.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(metrics))
    print(path, file=sys.stderr)


def main(given=None) -> int:
    args = arguments(given)
    try:
        compare(args)
    except PeerError as error:
        print(f"compare: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError, KeyError, statistics.StatisticsError) as error:
        print(f"compare: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
