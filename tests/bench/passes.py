#!/usr/bin/env python3
"""What each pass gains: compiles SmolLM2 with one of them switched off at a time, and compares speed with the whole.

    python3 tests/bench/passes.py NAME      writes tests/bench/results/NAME-passes.json, and a table on stdout

Each engine takes turns with the whole, who is first changes from round to round, and a ratio is one of neighbours. Passes that change
nothing about this model are found by what `inspect --kernels` says of their plan and named, not measured. The last row is without any of it: the
executor that takes the unfused graph node by node, with weights of f32 (`bench --vs interpreted`). Run it on a quiet machine. Python's standard
library only; the model comes from `fixtures/fetch.py smollm2`.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile

from measure import MODEL, ROOT, cpu

PASSES = ["dead-code", "fold-constants", "common-subexpressions", "qkv", "gate-up", "residual", "add-rms-norm",
          "pointwise", "compute", "pack", "barriers"]
WHOLE = "nothing"
# What is switched off by an option of its own: nests run interpreted; weights are held in f32.
NO_CODE = "machine code"
NO_PRECISION = "quantised weights"
INTERPRETED = "compilation"
OPTIONS = {WHOLE: [], NO_CODE: ["--no-code"], NO_PRECISION: ["--precision", "f32"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the result")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--package", "bessemer"], cwd=ROOT, check=True)
    bessemer = ROOT / "target/release/bessemer"
    with tempfile.TemporaryDirectory() as folder:
        # The list of trusted engines lies in a folder of this run.
        env = {**os.environ, "XDG_DATA_HOME": folder}

        def run(*command: str) -> subprocess.CompletedProcess:
            return subprocess.run([bessemer, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        engines, hashes, absent, barriers = {}, {}, {}, {}
        for off in [WHOLE, *PASSES, NO_CODE, NO_PRECISION]:
            engine = f"{folder}/{len(engines)}.engine"
            option = OPTIONS.get(off, ["--disable", off])
            done = run("compile", str(MODEL), "-o", engine, "--json", *option)
            if done.returncode != 0:
                absent[off] = done.stderr.strip().splitlines()[-1]
                continue
            engines[off], hashes[off] = engine, program(run("inspect", engine, "--kernels").stdout)
            if off in PASSES and hashes[off] == hashes[WHOLE]:
                absent[off] = "changes nothing in this model"
                del engines[off]
                continue
            barriers[off] = json.loads(run("inspect", engine, "--json").stdout)["programs"][0]["barriers"]
        def sample(off: str) -> dict:
            other = ["--vs", "interpreted", "--source", str(MODEL)] if off == INTERPRETED else []
            engine = engines.get(off, engines[WHOLE])
            done = run("bench", engine, "-t", str(args.threads), "-n", "32", "-o", "json", *other)
            if done.returncode != 0:
                raise SystemExit(f"bench without {off}: {done.stderr}")
            found = json.loads(done.stdout)
            found = found["interpreted"] if off == INTERPRETED else found
            return {phase: found[phase]["tok_s"] for phase in ("prefill", "decode")}

        rounds = []
        for number in range(args.rounds):
            pairs = {}
            for off in [*engines, INTERPRETED]:
                # What ran before leaves caches and clocks as it likes, so neither side always follows the same.
                order = (WHOLE, off) if number % 2 == 0 else (off, WHOLE)
                sampled = [sample(one) for one in order]
                pairs[off] = dict(zip(("whole", "without") if number % 2 == 0 else ("without", "whole"), sampled))
                print(f"round {number + 1} of {args.rounds}, without {off}: {pairs[off]}", file=sys.stderr)
            rounds.append(pairs)
    result = {
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "date": datetime.date.today().isoformat(),
        "threads": args.threads,
        "without": {off: {**gains(rounds, off), "barriers": barriers.get(off)} for off in rounds[0]},
        "not_measured": absent,
    }
    path = ROOT / "tests/bench/results" / f"{args.name}-passes.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print("| without | prefill tok/s | decode tok/s | gain in prefill | gain in decode | barriers behind steps, a token |")
    print("|---|---|---|---|---|---|")
    for off, found in result["without"].items():
        speeds = [f"{found[phase]['tok_s']:.0f}" for phase in ("prefill", "decode")]
        ratios = [gain(found[phase]) for phase in ("prefill", "decode")]
        print(f"| {off} | " + " | ".join([*speeds, *ratios, str(found["barriers"] or "")]) + " |")
    for off, why in absent.items():
        print(f"not measured: {off} ({why})")
    print(path.relative_to(ROOT))
    return 0


def gain(found: dict) -> str:
    low, high = found["range"]
    return f"{found['gain']:.2f}x ({low:.2f} to {high:.2f})"


def program(kernels: str) -> str:
    """What `inspect --kernels` says of the plan, without the line that names the file."""
    return "\n".join(line for line in kernels.splitlines() if ".engine" not in line)


def gains(rounds: list, off: str) -> dict:
    """The speed without something, and how much faster the whole is: the median and the range of what neighbours show."""
    def of(phase: str) -> dict:
        ratios = [r[off]["whole"][phase] / r[off]["without"][phase] for r in rounds]
        return {
            "tok_s": statistics.median(r[off]["without"][phase] for r in rounds),
            "gain": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
        }
    return {"prefill": of("prefill"), "decode": of("decode")}


if __name__ == "__main__":
    sys.exit(main())
