#!/usr/bin/env python3
"""Makes OpenVINO models of a GGUF: its reader builds the graph, NNCF compresses the weights.

    python openvino_convert.py model-f16.gguf FOLDER fp16 int8 int4:128 ...

Writes FOLDER/fp16 and so on, each a folder that `LLMPipeline` opens. `int4:128` is symmetric int4 in groups of 128 with
8 bits for embedding and head, as NNCF and optimum do by default; `int4:128:all` has four bits in every matrix. Any
other wish is a name for the weights exactly as the GGUF has them (the reader knows F16, Q4_0, Q4_1 and Q8_0, no BF16).

openvino_peer.py runs it in a virtual environment that has `openvino-genai` and `nncf`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import nncf
import openvino
import openvino_genai


def read(gguf: Path, folder: Path) -> None:
    """The graph and the tokenizer of a GGUF. The reader saves them beside the file: so it gets a link."""
    link = folder / gguf.name
    link.symlink_to(gguf.resolve())
    openvino_genai.LLMPipeline(str(link), "CPU", enable_save_ov_model=True)
    link.unlink()


def compress(source: Path, folder: Path, wish: str) -> None:
    for file in source.iterdir():
        if not file.name.startswith("openvino_model."):
            shutil.copy(file, folder)
    model = openvino.Core().read_model(source / "openvino_model.xml")
    kind, *rest = wish.split(":")
    if kind == "int8":
        options = {"mode": nncf.CompressWeightsMode.INT8_SYM}
    else:
        options = {
            "mode": nncf.CompressWeightsMode.INT4_SYM,
            "group_size": int(rest[0]),
            "ratio": 1.0,
            "all_layers": "all" in rest,
        }
    openvino.save_model(nncf.compress_weights(model, **options), folder / "openvino_model.xml")


def main(gguf: Path, out: Path, wishes: list) -> None:
    for wish in wishes:
        final = out / wish.replace(":", "-")
        if final.is_dir():
            continue
        with tempfile.TemporaryDirectory(dir=out) as work:
            partial = Path(work) / "model"
            partial.mkdir()
            if wish.startswith("int"):
                compress(out / "fp16", partial, wish)
            else:
                read(gguf, partial)
            partial.rename(final)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
