#!/usr/bin/env python3
"""Measures the figures of the README: builds the command line, compiles SmolLM2 and runs `bench` and `eval` on it.

    python3 tests/bench/measure.py NAME      writes tests/bench/results/NAME.json, with machine and date

Run it on a quiet machine. Python's standard library only; the model comes from `fixtures/fetch.py smollm2`, the text of the
perplexity from `fixtures/fetch.py gutenberg`.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/models/smollm2-135m-instruct.gguf"
TEXT = ROOT / ".cache/models/gutenberg/austen-emma.txt"


def cpu() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the result")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--package", "bessemer"], cwd=ROOT, check=True)
    bessemer = ROOT / "target/release/bessemer"
    threads = ["-t", str(args.threads)]
    with tempfile.TemporaryDirectory() as folder:
        engine = f"{folder}/smollm2.engine"

        def run(*command: str, trusted: bool = True) -> dict:
            # The list of trusted engines lies in a folder of this run; an empty one makes nests run interpreted.
            data = folder if trusted else f"{folder}/nobody"
            env = {**os.environ, "XDG_DATA_HOME": data}
            out = subprocess.run([bessemer, *command], env=env, check=True, stdout=subprocess.PIPE)
            return json.loads(out.stdout)

        result = {
            "machine": {"cpu": cpu(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "date": datetime.date.today().isoformat(),
            "compile": run("compile", str(MODEL), "-o", engine, "--json"),
            "bench": run("bench", engine, *threads, "-r", "5", "-o", "json"),
            "bench_at_512": run("bench", engine, *threads, "-r", "5", "-d", "512", "-o", "json"),
            "bench_nests_interpreted": run("bench", engine, *threads, "-r", "5", "-o", "json", trusted=False),
            "bench_vs_interpreted": run(
                "bench", engine, *threads, "-n", "64", "-r", "3", "-o", "json", "--vs", "interpreted", "--source", str(MODEL)
            ),
            "eval": run(
                "eval", engine, "--text", str(TEXT), "--base", str(MODEL), "--max-tokens", "20000", "--json"
            ),
        }
    for entry in result.values():
        if isinstance(entry, dict):
            entry.pop("model", None)
    path = ROOT / "tests/bench/results" / f"{args.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
