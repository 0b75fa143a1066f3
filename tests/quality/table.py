#!/usr/bin/env python3
"""KL divergence from f32 of every way to round stories15M.

    python3 tests/quality/table.py NAME    -> tests/quality/results/NAME.json, and a table on stdout

Weights are calibrated on two kinds of text, about as much of each: stories that the model itself samples, seeded, and the compiler's own
sample of stories in the public domain. They are judged on other samples, and on another book in the public domain. The embedding, which is
also the head, keeps sixteen bits, so that the projections are what is compared; two rows say what rounding it costs.

Exit codes: 0 ok, 1 a command failed, 2 usage.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/models/stories15M"
TEXTS = ROOT / "compiler/src/calibrate/text"
# The first seeds calibrate, the rest judge.
CALIBRATE, JUDGE = range(1, 65), range(101, 109)
TOKENS = 200
TABLE = "embed_tokens=bf16"
ALL = ("rtn", "awq", "gptq", "awq+gptq")
# Precision, methods, and the table if it is not TABLE.
ROWS = [
    ("source", ("rtn",), "embed_tokens=int8:32"),
    ("int8:96", ("rtn", "gptq"), TABLE),
    ("int8:32", ("rtn", "gptq", "awq+gptq"), TABLE),
    ("int8:32", ("awq+gptq",), "embed_tokens=int8:32"),
    ("e4m3:f32x0", ("rtn", "gptq", "awq+gptq"), TABLE),
    ("int4:96", ALL, TABLE),
    ("int3:96", ALL, TABLE),
]


def bessemer(program: Path, *args: object) -> str:
    command = [str(program), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def sample(program: Path, engine: Path, seeds, out: Path) -> None:
    """A folder of stories, a file each: windows of the text never span two."""
    out.mkdir()
    for seed in seeds:
        asked = ["--raw", "-p", "", "-n", TOKENS, "--temperature", 1, "--seed", seed]
        (out / f"{seed}.txt").write_text(bessemer(program, "run", engine, *asked).strip(), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/bessemer")
    parser.add_argument("--model", type=Path, default=MODEL)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["XDG_DATA_HOME"] = folder
        base = work / "f32.engine"
        bessemer(args.program, "compile", args.model, "-o", base)
        calib, own, statistics = work / "calib", work / "own", work / "statistics"
        sample(args.program, base, CALIBRATE, calib)
        sample(args.program, base, JUDGE, own)
        shutil.copy(TEXTS / "calibration.txt", calib)
        text = ["--calib", calib, "--calib-windows", 2 * len(CALIBRATE), "--calib-window", 256]
        channels = json.loads(bessemer(args.program, "calibrate", args.model, "-o", statistics, "--json", *text))
        results = []
        for precision, methods, table in ROWS:
            for method in methods:
                row = {"precision": precision, "method": method, "table": table.split("=")[1]}
                options = ["--precision", precision, "--override", table, "--method", method]
                if method != "rtn":
                    options += ["--calib-stats", statistics]
                for name, text in (("samples", own), ("story", TEXTS / "held_out.txt")):
                    held = ["--held-out", text, "--held-out-window", 256, "--scratch", work / "scratch"]
                    made = bessemer(args.program, "compile", args.model, "-o", work / "m.engine", "--json", *options, *held)
                    quality = json.loads(made)["quality"]
                    quality.pop("weights")
                    quality["text"] = bytes(quality["text"]).hex()
                    row[name] = quality
                results.append(row)
                kl = " | ".join(f"{row[name]['mean_kl']:.5f}" for name in ("samples", "story"))
                print(f"| {precision} | {row['table']} | {method} | {kl} | {row['samples']['perplexity']:.3f} |", flush=True)
    out = Path(__file__).parent / "results" / f"{args.name}.json"
    out.parent.mkdir(exist_ok=True)
    found = {"model": "stories15M", "channels": channels["inputs"], "rows": results}
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
