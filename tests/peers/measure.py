"""What every comparison needs: commands, their first byte and their memory, summaries of samples, the machine's name."""

import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

TIMEOUT_S = 1800
MEMORY_EVERY_S = 0.002
MEMORY = {"RssAnon": "anon", "VmHWM": "all"}


class PeerError(Exception):
    """Something is wrong with what was run or with what it answered."""

    exit_code = 1


class Missing(PeerError):
    """A tool is missing, or the network could not be reached."""

    exit_code = 3


def run(command: list, **options) -> str:
    """The stdout of a command; stderr is shown only if it fails."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, **options)
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} is not installed or not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"no end after {TIMEOUT_S} s: {' '.join(command)}") from error
    if done.returncode != 0:
        raise PeerError(failure(command, done.returncode, done.stderr or done.stdout))
    return done.stdout


def failure(command: list, code: int, said: str) -> str:
    """One message for a command that failed: what it was, how it ended, its last words."""
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{how} from {' '.join(command)}\n" + "\n".join(said.strip().splitlines()[-12:])


def first_byte(command: list) -> tuple:
    """Milliseconds from starting a process until its first byte on stdout, and all that it wrote there."""
    command = [str(part) for part in command]
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0
        )
        with process:
            first = process.stdout.read(1)
            ms = (time.perf_counter() - started) * 1e3
            text = first + process.stdout.read()
        if process.returncode != 0:
            errors.seek(0)
            raise PeerError(failure(command, process.returncode, errors.read()))
    if not text:
        raise PeerError(f"nothing on stdout from {' '.join(command)}")
    return ms, text.decode(errors="replace")


def peak_memory(command: list) -> dict:
    """The most bytes that a process holds while it runs: anonymous ones, and all that are resident.

    The operating system remembers the peak of the whole alone, so the rest is sampled.
    """
    command = [str(part) for part in command]
    found = {"anon": 0, "all": 0}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        while process.poll() is None:
            for key, bytes_ in memory(process.pid).items():
                found[key] = max(found[key], bytes_)
            time.sleep(MEMORY_EVERY_S)
        if process.returncode != 0:
            said.seek(0)
            raise PeerError(failure(command, process.returncode, said.read()))
    return found


def memory(pid: int) -> dict:
    """What a process holds now (nothing once it has ended), and the most it ever held."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    kib = {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines) if key in MEMORY}
    return {MEMORY[key]: value * 1024 for key, value in kib.items()}


def summary(rounds: list) -> dict:
    """Summarises samples, one list for each round: their median, and how far the rounds lie apart."""
    medians = [statistics.median(samples) for samples in rounds]
    median = statistics.median(sample for samples in rounds for sample in samples)
    return {
        "median": median,
        "min": min(medians),
        "max": max(medians),
        "spread": (max(medians) - min(medians)) / median,
        "rounds": rounds,
    }


def ratios(over: list, under: list) -> dict:
    """`over` / `under` within each round, so that what slows a whole round down cancels."""
    each = [statistics.median(a) / statistics.median(b) for a, b in zip(over, under, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def cpuinfo(*keys: str) -> str:
    """The first value that /proc/cpuinfo gives under one of these keys."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    pairs = [line.partition(":") for line in lines]
    found = {key.strip(): value.strip() for key, _, value in reversed(pairs)}
    return next((found[key] for key in keys if key in found), "")


def cpu_features() -> str:
    """What a native build depends on."""
    return cpuinfo("flags", "Features") or platform.machine()


def machine() -> dict:
    """The machine that figures belong to."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    numbers = {key: cpuinfo(key) for key in ("cpu family", "model", "stepping")}
    return {
        "cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
        # Virtual machines often cut the name short; these say which generation it is.
        **{key.replace(" ", "_"): int(value) for key, value in numbers.items() if value.isdigit()},
        "cores": os.cpu_count(),
        "cores_allowed": len(allowed),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
