#!/usr/bin/env python3
"""What speed costs: how far everyone's predictions are from the same weights in f32.

    python3 tests/peers/quality.py NAME --workload w1    -> tests/peers/results/NAME.json, and a table on stdout

The base is the model's own file, dequantised; on random weights, the four-bit file that all run. Ours is judged by
`bessemer eval`, whose base is its executor in f32; a peer's logits are taken at the same tokens of the same windows and
judged against llama.cpp on the dequantised file. Both bases must agree about the text: their perplexities are compared.

Exit codes: 0 ok, 1 something failed, 2 usage, 3 a tool is missing, or no network.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import bessemer
import llama_cpp
import openvino_peer
import tables
from checkpoints import GGUF_PACKAGES, checkpoint, environment, quantized
from compare import CACHE, RESULTS, file_name, positive
from measure import PeerError, failure, machine, run
from workloads import FORMATS, WORKLOADS

HERE = Path(__file__).resolve().parent
# Bases that see the same tokens and weights differ by the order of sums.
SAME_TEXT = 1e-3


def arguments(given=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="KL divergence from f32, of Bessemer and of other engines.")
    parser.add_argument("name", type=file_name, help="what to call the result, such as w1-quality-zen5")
    # Random weights of the larger shape do not fit into memory in f32.
    parser.add_argument("--workload", choices=("w1", "w2"), default="w1")
    parser.add_argument("--text", type=Path, help="a text in UTF-8 (default: a book that fixtures/fetch.py fetches)")
    parser.add_argument("--max-tokens", type=positive, help="tokens of the text (default: w1 4096, w2 256)")
    parser.add_argument("--window", type=positive, default=512)
    parser.add_argument("--no-openvino", action="store_true")
    parser.add_argument("-t", "--threads", type=positive, default=2)
    parser.add_argument("-j", "--jobs", type=positive, default=2, help="compilers that run at once")
    args = parser.parse_args(given)
    args.max_tokens = args.max_tokens or {"w1": 4096, "w2": 256}[args.workload]
    return args


class Judge:
    """The base's logits, and what others are against them."""

    def __init__(self, program: Path, interpreter: Path, text: Path, work: Path, args: argparse.Namespace):
        self.program, self.interpreter, self.text, self.work, self.args = program, interpreter, text, work, args
        self.base = work / "base.f32"
        self.other = work / "other.f32"
        self.windows = work / "windows.json"

    def llama(self, model: Path, out: Path, flash_attention: int = 0) -> str:
        sizes = ["--window", self.args.window, "--max-tokens", self.args.max_tokens, "--threads", self.args.threads]
        return run([self.program, model, self.text, out, *sizes, "--flash-attention", flash_attention])

    def set_base(self, model: Path) -> None:
        self.windows.write_text(self.llama(model, self.base))

    def judge(self) -> dict:
        """The figures of what lies in `other`."""
        said = json.loads(self.windows.read_text())
        following = [token for window in said["windows"] for token in window[1:]]
        command = [str(part) for part in (self.interpreter, HERE / "divergence.py", said["vocabulary"], self.base, self.other)]
        done = subprocess.run(command, input=json.dumps(following), capture_output=True, text=True)
        if done.returncode != 0:
            raise PeerError(failure(command, done.returncode, done.stderr))
        return json.loads(done.stdout)


def ours(program: Path, engine: Path, cache: str, base: Path, text: Path, args: argparse.Namespace) -> dict:
    options = ["--kv", cache, "--ctx", args.window, "--max-tokens", args.max_tokens, "--threads", args.threads]
    return json.loads(run([program, "eval", engine, "--trust", "--text", text, "--base", base, *options, "--json"]))


def default_text() -> Path:
    fetched = run([sys.executable, bessemer.ROOT / "fixtures" / "fetch.py", "gutenberg"])
    return Path(fetched.strip().splitlines()[-1]) / "austen-persuasion.txt"


def compare(args: argparse.Namespace) -> dict:
    workload = WORKLOADS[args.workload]
    text = args.text or default_text()
    program = bessemer.build()
    built = llama_cpp.build(CACHE, args.jobs)
    quantize = built["programs"]["llama-quantize"]

    def file(name: str) -> Path:
        return checkpoint(workload, name, CACHE, quantize)

    # Real weights lose something to every further format; random ones have no original worth keeping to, so that all
    # run the base's own, and only arithmetic tells them apart.
    base, formats = file("source"), FORMATS
    wishes = workload.settings["openvino"]
    if workload.shape:
        base, formats, wishes = file("q4_0"), ("q4_0",), ("q4_0",)
    found = {}
    for name in formats:
        engine = CACHE / f"{workload.name}-{name}.engine"
        bessemer.compile_model(program, file(name), engine, "cpu")
        # What a run has unless it asks for another, and what llama.cpp has.
        for cache in ("bf16", "f16"):
            contestant = f"bessemer {name} --kv {cache}"
            print(contestant, file=sys.stderr)
            found[contestant] = ours(program, engine, cache, base, text, args)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        interpreter = environment(CACHE / "gguf-venv", GGUF_PACKAGES)
        judge = Judge(llama_cpp.build_logits(built), interpreter, text, Path(work), args)
        judge.set_base(quantized(base, Path(work) / "f32.gguf", quantize, ("F32",)))
        for name in formats:
            for fa in (0, 1):
                print(f"llama.cpp {name} -fa {fa}", file=sys.stderr)
                judge.llama(file(name), judge.other, fa)
                found[f"llama.cpp {name} -fa {fa}"] = judge.judge()
        if not args.no_openvino:
            for peer in openvino_peer.contestants(CACHE, workload.name, file, wishes, args.threads):
                print(peer.name, file=sys.stderr)
                run(peer.worker("logits", windows=str(judge.windows), out=str(judge.other)))
                found[peer.name] = judge.judge()
    check(found)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "workload": workload.name,
        "bessemer": bessemer.version(),
        "llama.cpp": built["version"],
        "text": text.name,
        "base": base.name,
        "settings": {key: getattr(args, key) for key in ("max_tokens", "window", "threads")},
        "quality": found,
    }


def check(found: dict) -> None:
    """Both bases predict the same text from the same weights."""
    tokens = {name: side["tokens"] for name, side in found.items()}
    perplexities = [side["base_ppl"] for side in found.values()]
    if len(set(tokens.values())) > 1 or max(perplexities) > (1 + SAME_TEXT) * min(perplexities):
        raise PeerError(f"the bases differ: tokens {tokens}, perplexities {perplexities}")


def main(given=None) -> int:
    args = arguments(given)
    try:
        result = compare(args)
    except PeerError as error:
        print(f"quality: {error}", file=sys.stderr)
        return error.exit_code
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(tables.divergences(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
