"""Replies from a model on this machine, one by one or in fast batches.

On a CPU the engine is CTranslate2, on a GPU transformers; `LocalModel` hides which. It
is a model as the harness knows them: a callable from messages to a `Reply`.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.evals.harness import Messages, Reply
from utils.training.weights import (
    LAPTOP,
    cache,
    device,
    fetch,
    load,
    load_tokenizer,
    prompt_ids,
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
        compute_type: CTranslate2's number format, "float32" or "int8".

    """

    name: str = LAPTOP
    adapter: str | Path | None = None
    engine: str = "auto"
    max_tokens: int = 256
    batch: int = 64
    compute_type: str = "float32"

    def __post_init__(self) -> None:
        if self.engine == "auto":
            self.engine = "transformers" if device() == "cuda" else "ctranslate2"
        if self.engine not in ("ctranslate2", "transformers"):
            raise ValueError(
                f"no engine {self.engine!r}; there are 'ctranslate2', 'transformers'"
            )
        if self.engine == "transformers":
            self.model, self.tokenizer = load(self.name, self.adapter)
        else:
            folder, self.tokenizer = _converted(self.name, self.adapter)
            import ctranslate2
            import torch

            threads = torch.get_num_threads()
            self.model = ctranslate2.Generator(
                str(folder),
                compute_type=self.compute_type,
                # A batch a core: two cores on one batch wait for each other, and are
                # slower than one.
                inter_threads=_cores(),
                intra_threads=1,
            )
            # It sets OpenMP's number of threads for this whole thread of Python: a
            # training after it would run on one core.
            torch.set_num_threads(threads)

    def __call__(self, messages: Messages) -> Reply:
        """Answer one chat, greedily."""
        return self.replies([messages])[0]

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
        go in batches of about equal length, which wastes the least on padding. A seed
        repeats the draws of transformers; CTranslate2 takes one at its first draw only.
        """
        from tqdm import tqdm

        if n < 1 or (n > 1 and not temperature):
            raise ValueError("n > 1 needs a temperature above 0, or all are the same")
        prompts = [prompt_ids(self.tokenizer, chat) for chat in chats]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: list[list[Sample]] = [[] for _ in prompts]
        at_once = _cores() if self.engine == "ctranslate2" else 1
        step = max(1, self.batch * at_once // n)
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


def _cores() -> int:
    return os.cpu_count() or 1


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
        max_batch_size=model.batch,
        max_length=model.max_tokens,
        include_prompt_in_result=False,
        end_token=[tokenizer.eos_token_id],
        return_end_token=True,
        **how,
    )
    replies = [list(result.sequences_ids[0]) for result in results]
    logs: list = [None] * len(replies)
    if logprobs:
        whole = [p + reply for p, reply in zip(prompts, replies, strict=True)]
        scored = model.model.score_batch(
            [tokenizer.convert_ids_to_tokens(ids) for ids in whole],
            max_batch_size=model.batch,
            max_input_length=0,  # however long; its default cuts at 1,024 tokens
        )
        # The first token has no score, so that of token i is at i - 1.
        pairs = zip(scored, prompts, strict=True)
        logs = [list(s.log_probs[len(p) - 1 :]) for s, p in pairs]
    pairs = zip(replies, logs, strict=True)
    return [_finish(model, reply, log) for reply, log in pairs]


def _converted(name: str, adapter: str | Path | None) -> tuple[Path, Any]:
    """Return a folder in CTranslate2's form, made once for each base and adapter."""
    import ctranslate2

    base = Path(fetch(name))
    digest = hashlib.sha256(_stamp(base))
    tokenizer = load_tokenizer(name)
    if adapter:
        digest.update(_stamp(Path(adapter)))
    home = cache() / f"ct2-{digest.hexdigest()[:16]}"
    if (home / "model.bin").exists():
        return home, tokenizer
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        source, draft = base, Path(folder) / "draft"
        if adapter:
            source = Path(folder) / "merged"
            load(name, adapter)[0].save_pretrained(source)
            tokenizer.save_pretrained(source)
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(draft))
        if not home.exists():  # another process may have been faster
            draft.replace(home)
    return home, tokenizer


def _stamp(folder: Path) -> bytes:
    """Tell the weights in a folder apart from others: small files by their content."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    if sum(f.stat().st_size for f in files) < 64 << 20:
        return b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return json.dumps(stats).encode()
