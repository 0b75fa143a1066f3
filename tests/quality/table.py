#!/usr/bin/env python3
"""KL divergence from f32 of every way to round stories15M, at one group size.

    python3 tests/quality/table.py NAME    -> tests/quality/results/NAME.json, and a table on stdout

Weights are calibrated on text that the model itself samples, seeded, and judged on other samples and on a story in the public domain.
The embedding, which is also the head, keeps eight bits, so that the projections are what is compared.

Exit codes: 0 ok, 1 a command failed, 2 usage.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache/models/stories15M"
STORY = ROOT / "compiler/src/calibrate/text/held_out.txt"
GROUP = 96
# The first seeds calibrate, the rest judge.
CALIBRATE, JUDGE = range(1, 65), range(101, 109)
TOKENS = 200
TABLE = "embed_tokens=int8:32"
ROWS = [
    ("int8", "rtn"),
    ("e4m3:f32x0", "rtn"),
    ("e4m3:f32x0", "gptq"),
    *((width, method) for width in ("int4", "int3") for method in ("rtn", "awq", "gptq", "awq+gptq")),
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["XDG_DATA_HOME"] = folder
        base = work / "f32.engine"
        bessemer(args.program, "compile", MODEL, "-o", base)
        calib, own = work / "calib", work / "own"
        sample(args.program, base, CALIBRATE, calib)
        sample(args.program, base, JUDGE, own)
        results = []
        for width, method in ROWS:
            row = {"precision": width, "method": method}
            for name, text in (("samples", own), ("story", STORY)):
                options = ["--precision", width if ":" in width else f"{width}:{GROUP}", "--override", TABLE, "--method", method]
                options += ["--calib", calib, "--held-out", text, "--held-out-window", 256]
                options += ["--scratch", work / "scratch"]
                made = json.loads(
                    bessemer(args.program, "compile", MODEL, "-o", work / "m.engine", "--json", *options)
                )
                quality = made["quality"]
                quality.pop("weights")
                quality["text"] = bytes(quality["text"]).hex()
                row[name] = quality
            results.append(row)
            kl = [f"{row[name]['mean_kl']:.5f}" for name in ("samples", "story")]
            print(f"| {width} | {method} | {kl[0]} | {kl[1]} | {row['samples']['perplexity']:.3f} |", flush=True)
    out = Path(__file__).parent / "results" / f"{args.name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"model": "stories15M", "override": TABLE, "rows": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
