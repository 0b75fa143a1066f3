#!/usr/bin/env python3
"""Writes the tables of figures from the results of compare.py, quality.py and passes.py, so that nobody copies numbers by hand.

    python3 tests/peers/tables.py            writes results/README.md, and the tables of the project's README
    python3 tests/peers/tables.py --check    ends with 1 if they do not say what the results say

Every result has a table of its own in results/README.md. In the project's README a table stands between two comments, of which
the first names the results that are its columns, each behind what the column is called:

    <!-- peers: SmolLM2 = smollm2-zen5-2cores; 1B shape = w2-zen5-2cores -->
    <!-- peers end -->

What passes gain stands between `<!-- passes: NAME -->` and `<!-- passes end -->`, for tests/bench/results/NAME-passes.json.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/peers/results"
BENCH = ROOT / "tests/bench/results"
README = ROOT / "README.md"
PLACE = re.compile(r"(<!-- peers: (.*?) -->\n)(.*?)(<!-- peers end -->)", re.DOTALL)
PASSES_PLACE = re.compile(r"(<!-- passes: (.*?) -->\n)(.*?)(<!-- passes end -->)", re.DOTALL)
TITLES = {"llama.cpp": "llama.cpp", "openvino": "OpenVINO", "torch": "PyTorch"}
UNITS = {"tok/s": "", "ms": " ms", "MB": " MB"}


def title(metric: str) -> str:
    """What people call a metric, however many tokens it took to measure."""
    if found := re.fullmatch(r"prefill_(\d+)", metric):
        return f"prefill of {found[1]} tokens, tok/s"
    if found := re.fullmatch(r"decode_\d+", metric):
        return "decode, tok/s"
    if found := re.fullmatch(r"decode_\d+_at_(\d+)", metric):
        return f"decode after {found[1]} tokens, tok/s"
    if found := re.fullmatch(r"decode_\d+_x(\d+)", metric):
        return f"decode of {found[1]} sequences, tok/s"
    return {"first_token": "process start to first token", "peak_anon": "anonymous memory"}[metric]


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def row(cells: list) -> str:
    return "| " + " | ".join(cells) + " |"


def peer_of(found: dict, setting: str) -> str:
    return next(peer for peer in found["best"] if setting.startswith(f"{peer} "))


def overview(columns: list) -> str:
    """One column a result: Bessemer's median, and its ratio to the best setting of all peers."""
    metrics = {}
    for _, result in columns:
        metrics |= dict.fromkeys(map(title, result["metrics"]))
    lines = [row(["", *(name for name, _ in columns)]), "|---" * (len(columns) + 1) + "|"]
    for metric in metrics:
        cells = []
        for _, result in columns:
            found = next((found for name, found in result["metrics"].items() if title(name) == metric), None)
            if found is None:
                cells.append("")
                continue
            peer = peer_of(found, found["best_of_all"])
            ratio = found["ratio"][peer]["median"]
            ours = number(found["bessemer"]["median"]) + UNITS[found["unit"]]
            cells.append(f"{ours}: {ratio:.2f} × {TITLES[peer]}")
        lines.append(row([metric, *cells]))
    return "\n".join(lines) + "\n"


def details(result: dict) -> str:
    """All of a result that people compare: every peer with its best setting, and how far ratios reached."""
    machine, settings, workload = result["machine"], result["settings"], result["workload"]
    peers = [peer for peer in TITLES if any(peer in found["best"] for found in result["metrics"].values())]
    llama = result["versions"].get("llama.cpp", {}).get("instructions", "native")
    where = f"{machine['cpu']} (family {machine['cpu_family']}, model {machine['model']}), {settings['threads']} threads"
    how = f"{settings['rounds']} rounds of {settings['repetitions']} samples, load before {machine['load_before']:.1f}"
    ceilings = result["ceilings"]
    tile = ceilings.get("tile_multiply_adds_s")
    beside = f", the tile loop of prompts fed from a core's cache {tile / 1e9:.0f} G of its own" if tile else ""
    lines = [
        f"{workload['title']}, `{settings['format']}`{', AVX2 on both sides' if llama == 'avx2' else ''}; {where}; "
        f"{result['date'][:10]}, commit {result['versions']['bessemer']}, {how}. Ceilings of the same run: "
        f"{ceilings['read_bytes_s'] / 1e9:.1f} GB/s, {ceilings['int8_multiply_adds_s'] / 1e9:.0f} G int8 and "
        f"{ceilings['f32_multiply_adds_s'] / 1e9:.0f} G f32 multiply-adds a second{beside}. `Engine::open` took "
        f"{result['bessemer_open_ms']:.1f} ms.",
        "",
        row(["", "Bessemer", "of ceiling", *(f"{TITLES[peer]}, best setting | ratio, of rounds" for peer in peers)]),
        "|---" * (3 + 2 * len(peers)) + "|",
    ]
    for metric, found in result["metrics"].items():
        ceiling, of_tile = found.get("share_of_ceiling"), found.get("share_of_tile")
        unit = UNITS[found["unit"]]
        cells = [title(metric), number(found["bessemer"]["median"]) + unit, f"{100 * ceiling:.0f} %" if ceiling else ""]
        if of_tile:
            cells[-1] += f", {100 * of_tile:.0f} % of the tile loop"
        for peer in peers:
            best, ratio = found["best"].get(peer), found["ratio"].get(peer)
            if best is None:
                cells += ["", ""]
                continue
            setting = best.removeprefix(f"{peer} ")
            cells.append(f"{number(found['peers'][best]['median'])}{unit} (`{setting}`)")
            cells.append(f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def divergences(result: dict) -> str:
    """What the speed of everyone costs in accuracy."""
    settings = result["settings"]
    lines = [
        f"Workload `{result['workload']}`: divergence from the same weights in f32 over {settings['max_tokens']} tokens of "
        f"`{result['text']}` in windows of {settings['window']}, weights of `{result['base']}`; {result['machine']['cpu']}; "
        f"{result['date'][:10]}, commit {result['bessemer']}.",
        "",
        row(["", "mean KL", "KL at 99 %", "same first choice", "perplexity"]),
        "|---" * 5 + "|",
    ]
    for name, found in result["quality"].items():
        first, perplexity = f"{100 * found['top1']:.2f} %", f"{found['ppl']:.3f}"
        lines.append(row([name, f"{found['mean_kl']:.2e}", f"{found['p99_kl']:.2e}", first, perplexity]))
    return "\n".join(lines) + "\n"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def passes(result: dict) -> str:
    """What each pass gains: how many times as fast the whole is, the median of neighbours and their range."""
    lines = [row(["without", "prefill", "decode", "barriers behind steps, a token"]), "|---" * 4 + "|"]
    for off, found in result["without"].items():
        cells = []
        for phase in ("prefill", "decode"):
            low, high = found[phase]["range"]
            cells.append(f"{number(found[phase]['tok_s'])}: {found[phase]['gain']:.2f} ({low:.2f} to {high:.2f})")
        lines.append(row([off, *cells, str(found["barriers"] or "")]))
    return "\n".join(lines) + "\n"


def fill(text: str) -> str:
    """The text with its tables as the results have them."""

    def gains(found: re.Match) -> str:
        result = json.loads((BENCH / f"{found[2]}-passes.json").read_text())
        return found[1] + passes(result) + found[4]

    def table(found: re.Match) -> str:
        columns = [part.split(" = ") for part in found[2].split(";")]
        return found[1] + overview([(label.strip(), read(name.strip())) for label, name in columns]) + found[4]

    return PASSES_PLACE.sub(gains, PLACE.sub(table, text))


def written() -> dict:
    """What each file should hold."""
    parts = ["# Results\n\nWritten by `python3 tests/peers/tables.py` from the files beside it, which `compare.py` and `quality.py` wrote.\n"]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if "metrics" in result:
            parts.append(f"## {path.stem}\n\n{details(result)}")
        if "quality" in result:
            parts.append(f"## {path.stem}\n\n{divergences(result)}")
    return {RESULTS / "README.md": "\n".join(parts), README: fill(README.read_text())}


def main(given=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether all is as it should be")
    args = parser.parse_args(given)
    stale = [path for path, text in written().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if args.check:
            print(f"{path.relative_to(ROOT)} does not say what the results say: run tests/peers/tables.py", file=sys.stderr)
        else:
            path.write_text(written()[path])
            print(path.relative_to(ROOT))
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
