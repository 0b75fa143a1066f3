#!/usr/bin/env python3
"""Compiles random weights of the shape of a 1B model with AWQ on 64 windows of 512 tokens, and measures time and memory.

    python3 tests/quality/large.py NAME [--program BESSEMER] [--calib TEXT]    -> tests/quality/results/NAME.json

The checkpoint is made by tests/peers (it needs `gguf` and `numpy`, in an environment of its own, and 2.5 GB of disk). The wish: under 15
minutes on two cores, and less than 2.5 GB of anonymous memory. What the machine did besides is in the file as the share of the time of
two cores that the compiler got.

Exit codes: 0 ok, 1 a command failed, 2 usage, 5 the wish is not met.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "peers"))

import checkpoints  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

WINDOWS, WINDOW = 64, 512
MINUTES, ANONYMOUS = 15, 2.5e9
EVERY = 0.2


def anonymous(process: int) -> int:
    """Bytes of memory that no file backs."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/bessemer")
    parser.add_argument("--calib", type=Path, default=ROOT / ".cache/models/gutenberg/carroll-alice.txt")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/peers")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    source = checkpoints.base(WORKLOADS["w2"], args.cache)
    with tempfile.TemporaryDirectory(dir=args.cache) as folder:
        os.environ["XDG_DATA_HOME"] = folder
        command = [args.program, "compile", source, "-o", Path(folder) / "m.engine", "--precision", "awq", "--json"]
        command += ["--calib", args.calib, "--calib-windows", WINDOWS, "--calib-window", WINDOW]
        command += ["--scratch", Path(folder) / "scratch", "--threads", args.threads]
        begin, peak, lines = time.monotonic(), 0, []
        with open(Path(folder) / "log", "w+", encoding="utf-8") as log:
            running = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True)
            while running.poll() is None:
                peak = max(peak, anonymous(running.pid))
                time.sleep(EVERY)
            log.seek(0)
            lines = log.read().splitlines()
        seconds = time.monotonic() - begin
        if running.returncode:
            sys.exit("\n".join(lines))
        made = json.loads(running.stdout.read())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    made["quality"].pop("weights")
    made["quality"]["text"] = bytes(made["quality"]["text"]).hex()
    result = {
        "model": "the shape of Llama-3.2-1B, random weights in bf16",
        "precision": "awq (int4:128)",
        "calibration": f"{WINDOWS} x {WINDOW} tokens",
        "machine": next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if "model name" in l), platform.machine()),
        "threads": args.threads,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "share_of_cores": round(cpu / seconds / args.threads, 3),
        "peak_anonymous_bytes": peak,
        "progress": lines,
        "engine": {key: made[key] for key in ("bytes", "sha256", "bits_per_weight", "quality")},
    }
    out = Path(__file__).parent / "results" / f"{args.name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{seconds / 60:.1f} minutes, {peak / 1e9:.2f} GB of anonymous memory, {cpu / seconds:.2f} cores")
    sys.exit(5 if seconds > 60 * MINUTES or peak > ANONYMOUS else 0)


if __name__ == "__main__":
    main()
