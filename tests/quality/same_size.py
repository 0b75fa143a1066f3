#!/usr/bin/env python3
"""KL divergence from f32 at the sizes that llama.cpp's own quantisation comes to, on stories15M.

    python3 tests/quality/same_size.py NAME    -> tests/quality/results/NAME.json, and a table on stdout

llama.cpp's tools quantise the f32 model by an importance matrix. Bessemer is given the bytes of each file that comes out, programs and all
(`compile --max-size`), and by itself the bits of its matrices (`--target-bpw`), scales included. Both are calibrated on the same text, as
much of stories that the model itself sampled as of stories in the public domain, and judged by the logits of what they run (rounded
activations included) on other samples and on the second half of another story in the public domain, against the same logits of the f32 model.
Bessemer's search has the first half to choose precisions by.
llama.cpp's own tool states its divergence too, over the second halves of windows.

Exit codes: 0 ok, 1 a command failed, 2 usage, 3 a tool is missing, or no network.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))

import bessemer
import llama_cpp
from checkpoints import GGUF_PACKAGES, environment
from compare import CACHE, file_name
from measure import PeerError, machine, run
from table import CALIBRATE, JUDGE, MODEL, TEXTS, sample

HERE = Path(__file__).resolve().parent
DIVERGENCE = HERE.parent / "peers" / "divergence.py"
TARGETS = (*llama_cpp.TARGETS, "llama-imatrix", "llama-perplexity")
STORY = TEXTS / "held_out.txt"
# Windows of the story's first half that the search judges by; it measures sensitivities on the others.
HELD_OUT = 6
# Windows of the calibration text, and their tokens.
WINDOWS, WINDOW = 2 * len(CALIBRATE), 256
# Keys and values are cached in bf16 by the one and in f16 by the other.
SAME_MODEL = 1e-4
# What `llama-quantize` is asked for. The model's width of 288 is no multiple of 256, so most matrices fall back from K-quants to blocks
# of 32; `--pure` keeps the tied embedding, most of this model, from the eight bits that it gets otherwise.
RECIPES = {
    "Q2_K --pure": ("--pure", "Q2_K"),
    "IQ4_XS --pure": ("--pure", "IQ4_XS"),
    "Q4_0 --pure": ("--pure", "Q4_0"),
    "Q4_1 --pure": ("--pure", "Q4_1"),
    "Q4_K_M --pure": ("--pure", "Q4_K_M"),
    "Q5_K_M --pure": ("--pure", "Q5_K_M"),
    "Q2_K": ("Q2_K",),
    "Q3_K_M": ("Q3_K_M",),
    "Q4_K_M": ("Q4_K_M",),
    "Q5_K_M": ("Q5_K_M",),
    "Q6_K": ("Q6_K",),
}
BITS = "import gguf, sys; t = [t for t in gguf.GGUFReader(sys.argv[1]).tensors if len(t.shape) > 1]; "
BITS += "print(8 * sum(int(t.n_bytes) for t in t) / sum(int(t.n_elements) for t in t))"


class Judge:
    """Divergences from the logits of the f32 model on one set of texts."""

    def __init__(self, interpreter: Path, logits: Path, texts: list, work: Path, name: str):
        self.interpreter, self.logits, self.texts = interpreter, logits, texts
        self.base, self.other = work / f"{name}-base.f32", work / "other.f32"
        self.following, self.vocabulary = [], 0

    def llama(self, model: Path, out: Path) -> list:
        """Writes the logits of llama.cpp; gives the windows of all texts."""
        windows = []
        with out.open("wb") as joined:
            for text in self.texts:
                piece = self.other.with_suffix(".piece")
                sizes = ["--window", WINDOW, "--max-tokens", 1 << 20, "--threads", 2, "--flash-attention", 0]
                said = json.loads(run([self.logits, model, text, piece, *sizes]))
                joined.write(piece.read_bytes())
                windows += said["windows"]
                self.vocabulary = said["vocabulary"]
        return windows

    def set_base(self, model: Path) -> None:
        self.following = [token for window in self.llama(model, self.base) for token in window[1:]]

    def bessemer(self, program: Path, engine: Path) -> dict:
        with self.other.open("wb") as joined:
            for text in self.texts:
                piece = self.other.with_suffix(".piece")
                run([program, "eval", engine, "--trust", "--text", text, "--ctx", WINDOW, "--logits", piece])
                joined.write(piece.read_bytes())
        return self.judge()

    def llama_cpp(self, model: Path) -> dict:
        self.llama(model, self.other)
        return self.judge()

    def judge(self) -> dict:
        rows = self.other.stat().st_size // (4 * self.vocabulary)
        if rows != len(self.following):
            raise PeerError(f"{rows} rows of logits for {len(self.following)} tokens: the tokenisers disagree")
        command = [self.interpreter, DIVERGENCE, self.vocabulary, self.base, self.other]
        return json.loads(run(command, input=json.dumps(self.following)))


def own_tool(perplexity: Path, model: Path, text: Path, base: Path, first: bool) -> float | None:
    """The mean divergence that llama.cpp's tool states, or none where it writes the base."""
    options = ["-m", model, "-f", text, "-c", WINDOW, "-t", 2, "--kl-divergence-base", base]
    said = run([perplexity, *options, *([] if first else ["--kl-divergence"])])
    found = re.search(r"Mean\s+KLD:\s+([-0-9.]+)", said)
    return float(found[1]) if found else None


def compare(args: argparse.Namespace, work: Path) -> None:
    built = llama_cpp.build(CACHE, args.jobs, targets=TARGETS)
    tools, logits = built["programs"], llama_cpp.build_logits(built)
    interpreter = environment(CACHE / "gguf-venv", GGUF_PACKAGES)
    f32 = work / "f32.gguf"
    run([interpreter, HERE / "to_gguf.py", MODEL, f32])
    engine = work / "f32.engine"
    run([args.program, "compile", MODEL, "-o", engine, "--no-measure"])
    calib, own = work / "calib", work / "own"
    for seeds, folder in ((CALIBRATE, calib), (JUDGE, own)):
        if not folder.is_dir():
            sample(args.program, engine, seeds, folder)
    shutil.copy(TEXTS / "calibration.txt", calib)
    joined, judged = work / "calib.txt", work / "own.txt"
    for folder, file in ((calib, joined), (own, judged)):
        file.write_text("\n\n".join(p.read_text() for p in sorted(folder.iterdir())))
    matrix = work / "imatrix.gguf"
    run([tools["llama-imatrix"], "-m", f32, "-f", joined, "-o", matrix, "-c", WINDOW, "-t", 2, "--chunks", WINDOWS])
    statistics = work / "statistics"
    text = ["--calib", calib, "--calib-windows", WINDOWS, "--calib-window", WINDOW]
    run([args.program, "calibrate", MODEL, "-o", statistics, *text])
    paragraphs = STORY.read_text().split("\n\n")
    half = len(paragraphs) // 2
    chosen_by, story = work / "chosen-by.txt", work / "story.txt"
    chosen_by.write_text("\n\n".join(paragraphs[:half]))
    story.write_text("\n\n".join(paragraphs[half:]))
    judges = {
        "samples": Judge(interpreter, logits, sorted(own.iterdir()), work, "samples"),
        "story": Judge(interpreter, logits, [story], work, "story"),
    }
    for judge in judges.values():
        judge.set_base(f32)
        # The tokenisers and both readings of the model agree, or nothing below means anything.
        same = judge.bessemer(args.program, engine)
        if same["mean_kl"] > SAME_MODEL:
            raise PeerError(f"both run the f32 model, and differ by {same['mean_kl']}")
    base = work / "base.kld"
    own_tool(tools["llama-perplexity"], f32, judged, base, first=True)
    rows = []
    for name in args.only or RECIPES:
        file = work / "llama.gguf"
        run([tools["llama-quantize"], "--imatrix", matrix, *RECIPES[name][:-1], f32, file, RECIPES[name][-1], 2])
        theirs = {"bytes": file.stat().st_size, "bits": float(run([interpreter, "-c", BITS, file]))}
        theirs |= {text: judge.llama_cpp(file) for text, judge in judges.items()}
        theirs["own_tool"] = own_tool(tools["llama-perplexity"], file, judged, base, first=False)
        row = {"recipe": name, "llama.cpp": theirs}
        for same, asked in (("bytes", ["--max-size", theirs["bytes"]]), ("bits", ["--target-bpw", theirs["bits"]])):
            ours = work / "ours.engine"
            asked += ["--method", "awq+gptq", "--calib-stats", statistics, "--scratch", work / "scratch"]
            asked += ["--held-out", chosen_by, "--held-out-windows", HELD_OUT]
            made = json.loads(run([args.program, "compile", MODEL, "-o", ours, "--json", *asked]))
            mine = {"bytes": made["bytes"], "bits": made["bits_per_weight"]}
            row[same] = mine | {text: judge.bessemer(args.program, ours) for text, judge in judges.items()}
            print(line(row, same), flush=True)
        rows.append(row)
        save(args.name, rows)


def save(name: str, rows: list) -> None:
    out = HERE / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    result = {"model": MODEL.name, "bessemer": bessemer.version(), "llama.cpp": llama_cpp.VERSION, "machine": machine()}
    out.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")


def line(row: dict, same: str) -> str:
    theirs, ours = row["llama.cpp"], row[same]
    cells = [f"`{row['recipe']}`", same]
    cells += [f"{side['bytes'] / 1e6:.2f} MB, {side['bits']:.2f}" for side in (theirs, ours)]
    for text in ("samples", "story"):
        kl = [side[text]["mean_kl"] for side in (theirs, ours)]
        cells += [f"{kl[0]:.5f}", f"{kl[1]:.5f}", f"{kl[1] / kl[0]:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", type=file_name)
    parser.add_argument("--program", type=Path, help="default: a release build of this checkout")
    parser.add_argument("--only", action="append", choices=RECIPES, help="a recipe of llama.cpp (default: all)")
    parser.add_argument("--work", type=Path, help="a folder that keeps what is made (default: a temporary one)")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="compilers that run at once")
    args = parser.parse_args()
    try:
        args.program = args.program or bessemer.build()
        with tempfile.TemporaryDirectory() as folder:
            work = args.work or Path(folder)
            os.environ["XDG_DATA_HOME"] = folder
            compare(args, work)
    except PeerError as error:
        print(f"same_size: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
