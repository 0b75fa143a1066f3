"""OpenVINO GenAI: wheels from PyPI in a virtual environment, models made of the same GGUF, token ids as prompts."""

import shutil
from pathlib import Path

from checkpoints import environment
from in_python import HERE, InPython
from measure import run

PACKAGES = ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "nncf==3.4.0")
# Its paged attention is the default of LLMPipeline on a CPU, and the faster one in most places.
BACKEND = "PA"


def python(cache: Path) -> Path:
    return environment(cache / "openvino-venv", PACKAGES)


def convert(interpreter: Path, checkpoint, folder: Path, wishes: tuple) -> dict:
    """A model folder for each wish: a GGUF format read as it is, or what openvino_convert.py makes of 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    models = {wish: folder / wish.replace(":", "-") for wish in wishes}
    missing = [wish for wish, model in models.items() if not model.is_dir()]
    made = [wish for wish in missing if wish == "fp16" or wish.startswith("int")]
    for wish in missing:
        if wish not in made:
            run([interpreter, HERE / "openvino_convert.py", checkpoint(wish), folder, wish])
    if made:
        source = checkpoint("f16")
        run([interpreter, HERE / "openvino_convert.py", source, folder, "fp16", *made])
        # Both are large, and nobody else needs them.
        source.unlink()
        if "fp16" not in wishes:
            shutil.rmtree(folder / "fp16")
    return models


def contestants(cache: Path, workload: str, checkpoint, wishes: tuple, threads: int) -> list:
    """OpenVINO GenAI on a model for each wish; `checkpoint` makes the GGUF in a format, where it is needed."""
    interpreter = python(cache)
    models = convert(interpreter, checkpoint, cache / "openvino" / workload, wishes)
    ask = {"threads": threads, "backend": BACKEND}
    return [InPython("openvino", wish, interpreter, model, ask) for wish, model in models.items()]
