#!/usr/bin/env python3
"""Compare Bessemer with other engines: the same weights, the same machine, the same minutes.

    python3 tests/peers/compare.py NAME --workload w1        -> tests/peers/results/NAME.json, and a table on stdout
    python3 tests/peers/compare.py --workload w1 --prepare   fetches, builds and converts into .cache/peers/ and stops

Measures prefill, decode from an empty context, at depths and of several sequences together, the time from process start
to the first token, and the anonymous memory. The contestants take turns within a round (A B A B ...), so that a slow
minute of the machine meets all of them; ratios are taken within rounds. Peers run at several settings, and the best
of each, chosen for each figure, stands for it.

Exit codes: 0 ok, 1 a build or a measurement failed, 2 usage, 3 a tool is missing, or no network.
Needs Python 3.11 and nothing outside its standard library.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import re
import statistics
import sys
from pathlib import Path

import bessemer
import contest
import llama_cpp
import openvino_peer
import torch_peer
from checkpoints import checkpoint
from loads import loads
from measure import PeerError, machine
from workloads import FORMATS, PEERS, WORKLOADS

CACHE = bessemer.ROOT / ".cache" / "peers"
RESULTS = Path(__file__).resolve().parent / "results"
BUSY_LOAD = 0.5


def arguments(given=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Bessemer with other engines on the same weights.")
    parser.add_argument("name", nargs="?", type=file_name, help="what to call the result, such as w1-zen5-2cores")
    parser.add_argument("--workload", choices=WORKLOADS, default="w1", help=workloads_help())
    parser.add_argument("--format", choices=FORMATS, default="q4_0", help="the weights that Bessemer runs")
    parser.add_argument("--peers", type=peers, default=PEERS, help=f"a list of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--avx2", action="store_true", help="both for x86-64-v3 only; llama.cpp is the only peer")
    parser.add_argument("--prepare", action="store_true", help="fetch, build and convert, and stop")
    parser.add_argument("-t", "--threads", type=positive, default=2)
    parser.add_argument("-p", "--prompt", type=positive, default=512, help="tokens of the prompt")
    parser.add_argument("-n", "--generate", type=positive, help="tokens to decode (default: the workload's)")
    parser.add_argument("-d", "--depths", type=numbers, help="tokens held before further decodes, such as 512,4096")
    parser.add_argument("-b", "--sequences", type=positive, default=8, help="sequences decoded together")
    parser.add_argument("-r", "--repetitions", type=positive, default=3, help="samples of each kind in a round")
    parser.add_argument("--rounds", type=positive, default=5, help="how often everyone takes a turn")
    parser.add_argument("--finalists", type=positive, default=2, help="settings of a peer that reach the rounds")
    parser.add_argument("--heats", type=Path, metavar="FILE", help="take the heats of this earlier result, not again")
    parser.add_argument("-j", "--jobs", type=positive, default=os.cpu_count(), help="compilers that run at once")
    args = parser.parse_args(given)
    if args.name is None and not args.prepare:
        parser.error("give the result a NAME, or --prepare")
    if args.avx2:
        args.peers = ("llama.cpp",)
    workload = WORKLOADS[args.workload]
    args.generate = args.generate or workload.generate
    args.depths = args.depths or workload.depths
    return args


def workloads_help() -> str:
    return "; ".join(f"{workload.name}: {workload.title}" for workload in WORKLOADS.values())


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def numbers(text: str) -> tuple:
    return tuple(positive(part) for part in text.split(","))


def peers(text: str) -> tuple:
    found = tuple(text.split(","))
    if unknown := set(found) - set(PEERS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: known are {', '.join(PEERS)}")
    return found


def file_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no plain file name")
    return text


def prepare(args: argparse.Namespace) -> tuple:
    """Everything fetched, built and converted: Bessemer, its peers, and what they are."""
    CACHE.mkdir(parents=True, exist_ok=True)
    workload = WORKLOADS[args.workload]
    program = bessemer.build()
    # Its programs convert for everyone, so that it is built even where it is no peer.
    built = llama_cpp.build(CACHE, args.jobs)
    quantize = built["programs"]["llama-quantize"]

    def file(name: str) -> Path:
        return checkpoint(workload, name, CACHE, quantize)

    target = "cpu:x86-64-v3" if args.avx2 else "cpu"
    engine = CACHE / f"{workload.name}-{args.format}{'-avx2' if args.avx2 else ''}.engine"
    # First, because a model that it cannot read needs no peers.
    bessemer.compile_model(program, file(args.format), engine, target)
    # An engine runs the newest kernels that the CPU has, whatever it asks for at least.
    ours = bessemer.Bessemer(program, args.format, engine, args.threads, "avx2" if args.avx2 else None)
    against, versions = [], {"bessemer": bessemer.version()}
    wishes = workload.peers(args.format)
    if "llama.cpp" in args.peers:
        if args.avx2:
            built = llama_cpp.build(CACHE, args.jobs, "avx2")
        files = {name: file(name) for name in wishes["llama.cpp"]}
        against += llama_cpp.contestants(built, files, args.threads)
        versions["llama.cpp"] = {key: built[key] for key in ("version", "compiler", "instructions")}
    if "openvino" in args.peers:
        against += openvino_peer.contestants(CACHE, workload.name, file, wishes["openvino"], args.threads)
        versions["openvino"] = list(openvino_peer.PACKAGES)
    if "torch" in args.peers:
        against += torch_peer.contestants(CACHE, workload.name, file, wishes["torch"], args.threads)
        versions["torch"] = list(torch_peer.PACKAGES)
    return ours, against, versions, file(args.format)


def compare(args: argparse.Namespace) -> None:
    ours, against, versions, model = prepare(args)
    if args.prepare:
        return
    load_before = os.getloadavg()[0]
    if load_before > BUSY_LOAD:
        print(f"compare: the machine is busy (load {load_before:.1f}): figures will be noisy", file=sys.stderr)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    wanted = loads(args.prompt, args.generate, args.depths, args.sequences)
    known = json.loads(args.heats.read_text())["heats"] if args.heats else {}
    samples, heats = contest.measure(ours, against, wanted, args, known)
    peer_of = {contestant.name: contestant.peer for contestant in against}
    metrics = {load.name: contest.judge(load, samples[load.name], ours.name, peer_of) for load in wanted}
    for name, shares in ours.shares.items():
        metrics[name] |= contest.medians(shares)
    with model.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    settings = ("format", "threads", "prompt", "generate", "sequences", "rounds", "repetitions", "finalists")
    result = {
        "date": date,
        "machine": {**machine(), "load_before": load_before},
        "workload": dataclasses.asdict(WORKLOADS[args.workload]),
        "model": {"file": model.name, "sha256": sha256, "bytes": model.stat().st_size},
        "weights_bytes": {contestant.name: contestant.file_bytes for contestant in (ours, *against)},
        "versions": versions,
        "settings": {key: getattr(args, key) for key in settings},
        "ceilings": contest.medians(ours.ceilings),
        "bessemer_open_ms": statistics.median(ours.open_ms),
        "metrics": metrics,
        "heats": heats,
        "heats_from": args.heats.name if args.heats else None,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{args.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(contest.table(metrics))
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
