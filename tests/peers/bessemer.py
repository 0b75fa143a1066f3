"""Bessemer: a release build of this checkout, the model compiled once, `bessemer bench` for speed, `run` for processes."""

import json
from pathlib import Path

from loads import PROMPT, Load
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


def compile_model(program: Path, model: Path, engine: Path, target: str) -> Path:
    """The engine, with the weights exactly as the model stores them."""
    try:
        run([program, "compile", model, "-o", engine, "--precision", "source", "--target", target])
    except PeerError as error:
        raise PeerError(f"Bessemer cannot compile {model.name}, so there is nothing to compare yet:\n{error}") from error
    return engine


class Bessemer:
    """Bessemer on one engine."""

    peer = "bessemer"

    def __init__(self, program: Path, label: str, engine: Path, threads: int, kernels: str | None = None):
        """`kernels` names an instruction set older than the newest that this CPU has."""
        self.name = f"bessemer {label}"
        self.program = program
        self.engine = engine
        self.threads = threads
        self.kernels = kernels
        self.options = ["--trust", *(["--kernels", kernels] if kernels else [])]
        self.file_bytes = engine.stat().st_size
        # What every run of `bench` found out beside its samples.
        self.ceilings = []
        self.shares = {}
        self.open_ms = []

    def bench(self, load: Load, repetitions: int) -> list:
        """Tokens a second of each repetition, all sequences together."""
        sizes = ["-p", load.prompt or 1, "-n", load.generate or 1, "-d", load.depth, "-b", load.sequences]
        options = ["-r", repetitions, "-t", self.threads, "-o", "json"]
        report = checked(run([self.program, "bench", self.engine, *self.options, *sizes, *options]))
        if self.kernels and report["kernels"] != self.kernels:
            raise PeerError(f"bessemer ran its kernels for {report['kernels']}, not for {self.kernels}")
        self.ceilings.append(report["ceilings"])
        self.open_ms.append(report["open_ms"])
        part = report[load.part]
        shares = {key: value for key, value in part.items() if key.startswith("share_of_")}
        self.shares.setdefault(load.name, []).append(shares)
        return part["samples"]

    def generate_command(self, repeats: int, count: int) -> list:
        """Writes the `count` tokens that follow the prompt, and nothing else, to stdout."""
        options = [*self.options, "--raw", "--temperature", 0, "--threads", self.threads, "-n", count]
        return [self.program, "run", self.engine, *options, "-p", " ".join([PROMPT] * repeats)]


def checked(text: str) -> dict:
    """What `bessemer bench -o json` wrote, if compiled code ran."""
    report = json.loads(text)
    if report["nests"] != "generated":
        raise PeerError(f"bessemer ran its loop nests {report['nests']}, not as generated code")
    return report
