"""Bessemer: a release build of this checkout, the model compiled once, `bessemer bench` for speed, `run` for start-up."""

import json
from pathlib import Path

from measure import PeerError, run

ROOT = Path(__file__).resolve().parents[2]


def build() -> Path:
    """The program, built if needed."""
    said = run(["cargo", "build", "--release", "--locked", "-p", "bessemer", "--message-format", "json"], cwd=ROOT)
    for line in said.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "bessemer":
            return Path(message["executable"])
    raise PeerError("cargo names no program `bessemer` among what it built")


def version() -> str:
    """The commit of this checkout, and whether files differ from it."""
    return run(["git", "describe", "--always", "--dirty"], cwd=ROOT).strip()


def compile_model(program: Path, model: Path, cache: Path) -> Path:
    """The engine, with the weights exactly as the model stores them."""
    engine = cache / f"{model.stem}.engine"
    run([program, "compile", model, "-o", engine, "--precision", "source"])
    return engine


class Bessemer:
    """Bessemer on one engine."""

    name = "bessemer"

    def __init__(self, program: Path, engine: Path, threads: int):
        self.program = program
        self.engine = engine
        self.threads = threads

    def bench(self, prompt: int, generate: int, depth: int, repetitions: int) -> dict:
        """Tokens a second of each repetition; a part that is not asked for (0) is measured least and left out."""
        sizes = ["-p", prompt or 1, "-n", generate or 1, "-d", depth, "-r", repetitions, "-t", self.threads]
        found = samples(run([self.program, "bench", self.engine, "--trust", *sizes, "-o", "json"]))
        asked = {"prefill": prompt, "decode": generate}
        return {part: found[part] for part in asked if asked[part]}

    def first_token_command(self, prompt: str) -> list:
        """Writes the token that follows `prompt`, and nothing else, to stdout."""
        options = ["--trust", "--raw", "--temperature", 0, "--threads", self.threads, "-n", 1]
        return [self.program, "run", self.engine, *options, "-p", prompt]


def samples(text: str) -> dict:
    """The samples in what `bessemer bench -o json` wrote."""
    report = json.loads(text)
    if report["nests"] != "generated":
        raise PeerError(f"bessemer ran its loop nests {report['nests']}, not as generated code")
    return {part: report[part]["samples"] for part in ("prefill", "decode")}
