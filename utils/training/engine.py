"""Replies from a model on this machine, one by one or in batches.

On a CPU `decode.Decoder` generates, on a GPU transformers; `Engine` hides which. It
answers from a folder of weights, or from a model in training, whose weights it takes
over when told to. As the harness wants it, a model is a callable from messages to a
`Reply`.
"""

import copy
import gc
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.evals.types import Messages, Reply
from utils.training.decode import Decoder, fits
from utils.training.weights import (
    LAPTOP,
    cache,
    device,
    fetch,
    load,
    load_tokenizer,
    prompt_ids,
    stamp,
)

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Sample:
    """One generated reply; `logprobs` are per token, the ending token included."""

    text: str
    ids: list[int]  # without the ending token
    finish_reason: str  # "stop", or "length" at the token limit
    logprobs: list[float] | None = None


class Engine:
    """A model that replies: greedily, or n times by chance.

    Args:
        name: as for `weights.fetch`.
        adapter: a folder that PEFT saved, or None.
        max_new_tokens: longest reply.
        batch_size: replies in the making on each core; on a GPU 16 times as many.
        backend: "decoder" (a Llama on a CPU), "ctranslate2" (CPU), "transformers", or
            "auto": by what there is.
        compute_type: the number format on a CPU: "float32"; "bfloat16", faster where
            it has units for it, else slower; CTranslate2 alone has "int8".

    """

    def __init__(
        self,
        name: str = LAPTOP,
        adapter: str | Path | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 64,
        backend: str = "auto",
        compute_type: str = "float32",
    ) -> None:
        if backend == "auto" and compute_type == "int8":
            backend = "ctranslate2"
        self._set(name, max_new_tokens, batch_size, backend)
        if self.backend != "ctranslate2":
            model, self.tokenizer = load(name, adapter)
            self._use(model, compute_type)
            return
        folder, self.tokenizer = _converted(name, adapter)
        # A batch a core: two cores on one batch wait for each other.
        self.generators = [_generator(folder, compute_type, inter_threads=_cores())]
        self.at_once = _cores()

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, max_new_tokens: int = 192, batch_size: int = 64
    ) -> "Engine":
        """Answer as a model in training does, with its weights at the last sync.

        `model` is a causal language model with PEFT's adapter; it stays as it is.
        """
        engine = cls.__new__(cls)
        engine._set(model.config._name_or_path, max_new_tokens, batch_size, "auto")
        engine.model, engine.tokenizer = model, tokenizer
        return engine

    def _set(
        self, name: str, max_new_tokens: int, batch_size: int, backend: str
    ) -> None:
        self.name, self.max_new_tokens = name, max_new_tokens
        self.backend = backend
        self.batch_size = batch_size if device() == "cpu" else 16 * batch_size
        self.at_once = 1  # batches that one generator works at
        self.seed = 0

    def _use(self, model: Any, dtype: str) -> None:
        """Answer with a model whose adapter is merged."""
        if self.backend == "auto":
            own = device() == "cpu" and fits(model.config)
            self.backend = "decoder" if own else "transformers"
        self.generators = [model]
        if device() == "cuda":
            memory = torch.cuda.get_device_properties(0).total_memory
            self.batch_size = min(self.batch_size, _rows_that_fit(model, memory))
        if self.backend == "decoder":
            model = model.to(getattr(torch, dtype))
            # One thread works at a batch, as many batches at a time as there are cores.
            torch.set_num_threads(1)
            self.generators = [Decoder(model)] * _cores()

    def sync_weights(self, seed: int) -> None:
        """Take over the weights of the model in training, and start from a seed.

        Equal weights, an equal seed and equal calls since give equal replies.
        """
        merged = copy.deepcopy(self.model).merge_and_unload().eval()
        if self.backend != "ctranslate2":
            self.seed = seed
            self._use(merged, str(merged.dtype).removeprefix("torch."))
            torch.manual_seed(seed)
            return
        import ctranslate2

        ctranslate2.set_random_seed(seed)  # heeded by generators that are made later
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            _convert(merged, self.tokenizer, folder)
            # One for each core, each with a share of its own: so the draws can be
            # repeated, which one queue for all would not allow.
            self.generators = [_generator(folder) for _ in range(_cores())]

    def __call__(self, messages: Messages) -> Reply:
        """Answer one chat, greedily."""
        return self.replies([messages])[0]

    def replies(
        self, chats: Sequence[Messages], progress: str | None = None
    ) -> list[Reply]:
        """Answer chats greedily; `seconds` is the time for all over their number."""
        lengths = [len(prompt_ids(self.tokenizer, chat)) for chat in chats]
        started = time.perf_counter()
        samples = [first for (first,) in self.sample(chats, progress=progress)]
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
        logprobs: bool = False,
        progress: str | None = None,
    ) -> list[list[Sample]]:
        """Reply `n` times to each chat: a list of n samples a chat, in their order.

        Temperature 0 is greedy, and n must be 1. With `logprobs` each reply is read
        once more for the log-probability of its tokens.
        """
        if n > 1 and not temperature:
            raise ValueError("n > 1 needs a temperature above 0, or all are the same")
        prompts = [prompt_ids(self.tokenizer, chat) for chat in chats]
        found = self.sample_ids(prompts, n, temperature, progress)
        pairs = zip(prompts, found, strict=True)
        return [
            [self._sample(prompt, ids, logprobs) for ids in replies]
            for prompt, replies in pairs
        ]

    def sample_ids(
        self,
        prompts: Sequence[list[int]],
        n: int = 1,
        temperature: float = 0.0,
        progress: str | None = None,
    ) -> list[list[list[int]]]:
        """Reply in token ids: n replies a prompt, with the ending token if it came.

        Prompts of about equal length share a batch, which wastes the least on padding.
        """
        from tqdm import tqdm

        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        count = len(self.generators)
        chunks = self._chunks(order, prompts, n)
        found: dict[int, list[list[int]]] = {}
        look = {"desc": progress, "disable": not progress, "leave": False, "delay": 1}
        with tqdm(total=len(order), **look) as bar:

            def work(number: int) -> None:
                # Batches take turns at the generators, and each has a seed of its own:
                # so the draws do not hang on which batch is done first.
                for place in range(number, len(chunks), count):
                    batch = [prompts[i] for i in chunks[place]]
                    seed = 1000 * self.seed + place
                    generator = self.generators[number]
                    replies = self._generate(generator, batch, n, temperature, seed)
                    found.update(zip(chunks[place], replies, strict=True))
                    bar.update(len(batch))

            with ThreadPoolExecutor(count) as threads:
                list(threads.map(work, range(count)))
        self.seed += 1  # the next call draws otherwise
        return [found[i] for i in range(len(prompts))]

    def _chunks(
        self, order: list[int], prompts: Sequence[list[int]], n: int
    ) -> list[list[int]]:
        """Cut prompts into batches, smaller ones where prompts are long."""
        chunks: list[list[int]] = []
        rows = self.batch_size * self.at_once
        for i in order:  # from short to long
            room = rows * 256 // (len(prompts[i]) + self.max_new_tokens)
            full = not chunks or len(chunks[-1]) >= max(1, min(rows, room) // n)
            # Without padding: on a GPU, torch 2.13 gets padded rows wrong at times.
            other = bool(chunks) and len(prompts[chunks[-1][0]]) != len(prompts[i])
            if full or (other and self.backend == "transformers"):
                chunks.append([])
            chunks[-1].append(i)
        return chunks

    def _generate(
        self,
        generator: Any,
        prompts: list[list[int]],
        n: int,
        temperature: float,
        seed: int,
    ) -> list[list[list[int]]]:
        """Reply n times to each prompt of one batch; a prompt is read once for all."""
        if self.backend == "transformers":
            return self._by_transformers(generator, prompts, n, temperature)
        if self.backend == "decoder":
            end = self.tokenizer.eos_token_id
            return generator.generate(
                prompts, n, temperature, self.max_new_tokens, end, seed
            )
        names = self.tokenizer.convert_ids_to_tokens
        results = generator.generate_batch(
            [names(ids) for ids in prompts],
            max_batch_size=self.batch_size if self.at_once > 1 else 0,
            num_hypotheses=n,
            max_length=self.max_new_tokens,
            include_prompt_in_result=False,
            end_token=[self.tokenizer.eos_token_id],
            return_end_token=True,
            sampling_topk=0 if temperature else 1,
            sampling_temperature=temperature or 1.0,
        )
        return [[list(ids) for ids in result.sequences_ids] for result in results]

    def _by_transformers(
        self, model: Any, prompts: list[list[int]], n: int, temperature: float
    ) -> list[list[list[int]]]:
        how: dict[str, Any] = {"do_sample": False}
        if temperature:
            how = {"do_sample": True, "temperature": temperature, "top_k": 0}
            how |= {"top_p": 1.0, "num_return_sequences": n}
        ids = torch.tensor(prompts, device=model.device)  # all of one length
        end, width = self.tokenizer.eos_token_id, ids.shape[1]
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                use_cache=True,
                eos_token_id=end,
                pad_token_id=self.tokenizer.pad_token_id,
                **how,
            )[:, width:].tolist()
        cut = [ids[: ids.index(end) + 1] if end in ids else ids for ids in out]
        return [cut[k : k + n] for k in range(0, len(cut), n)]

    def _sample(self, prompt: list[int], ids: list[int], logprobs: bool) -> Sample:
        ended = bool(ids) and ids[-1] == self.tokenizer.eos_token_id
        kept = ids[:-1] if ended else ids
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        logs = self._logprobs(prompt, ids) if logprobs else None
        return Sample(text, kept, "stop" if ended else "length", logs)

    def _logprobs(self, prompt: list[int], ids: list[int]) -> list[float]:
        """Return the log-probability of each token of a reply."""
        if self.backend == "decoder":
            return self.generators[0].logprobs(prompt, ids)
        if self.backend == "transformers":
            model = self.generators[0]
            whole = torch.tensor([prompt + ids], device=model.device)
            with torch.inference_mode():
                logits = model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
            logs = logits.log_softmax(-1).gather(-1, whole[0, len(prompt) :, None])
            return logs[:, 0].tolist()
        names = self.tokenizer.convert_ids_to_tokens(prompt + ids)
        # However long; its default cuts at 1,024 tokens.
        (scored,) = self.generators[0].score_batch([names], max_input_length=0)
        return list(scored.log_probs[len(prompt) - 1 :])  # the first token has no score


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Ask a model questions, greedily and in batches: a job for `costly.run`.

    Args:
        config: "model_name_or_path", "adapter" (a folder, from the course's root, or
            None for the base model) and "questions"; and where wanted "prompt", a
            system prompt, "max_new_tokens", "compute_type", and "alone": how many to
            ask again one by one, to see how long a user waits.

    Returns rows of [text, tokens in, tokens out, seconds]: "replies" and "alone"; and
    "took", the seconds for all replies.

    """
    if not config["questions"]:  # a small try of a training asks none
        return {"replies": [], "alone": [], "took": 0.0}
    adapter = ROOT / config["adapter"] if config["adapter"] else None
    engine = Engine(
        config["model_name_or_path"],
        adapter,
        max_new_tokens=config.get("max_new_tokens", 192),
        compute_type=config.get("compute_type", "float32"),
    )
    system = {"role": "system", "content": config.get("prompt", "")}
    chats = [[system, {"role": "user", "content": q}] for q in config["questions"]]
    started = time.monotonic()
    replies = engine.replies(chats, progress="answering")
    took = time.monotonic() - started
    alone = [engine(chat) for chat in chats[: config.get("alone", 0)]]
    rows = [
        [[r.text, r.input_tokens, r.output_tokens, r.seconds] for r in part]
        for part in (replies, alone)
    ]
    return {"replies": rows[0], "alone": rows[1], "took": took}


def _rows_that_fit(model: Any, memory: int) -> int:
    """Count replies of 256 tokens whose keys and values fill a quarter of a memory."""
    config = model.config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    return max(1, memory // 4 // (256 * token * model.dtype.itemsize))


def _cores() -> int:
    return os.cpu_count() or 1


def _generator(
    folder: str | Path, compute_type: str = "float32", **threads: int
) -> Any:
    import ctranslate2

    before = torch.get_num_threads()
    made = ctranslate2.Generator(
        str(folder), compute_type=compute_type, intra_threads=1, **threads
    )
    # It sets the number of threads of this whole thread of Python to one.
    torch.set_num_threads(before)
    return made


def _convert(model: Any, tokenizer: Any, folder: str) -> None:
    """Write a model that lies in memory in CTranslate2's form; it is taken apart."""
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        def load_model(self, *_: Any, **__: Any) -> Any:
            return model

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return tokenizer

    # The converter collects garbage after each layer, through all that this process
    # holds. That takes most of the time, unless what is there now is left out.
    gc.freeze()
    try:
        Converter(model.config._name_or_path).convert(folder, force=True)
    finally:
        gc.unfreeze()


def _converted(name: str, adapter: str | Path | None) -> tuple[Path, Any]:
    """Return a folder in CTranslate2's form, made once for each base and adapter."""
    digest = hashlib.sha256(stamp(Path(fetch(name))))
    if adapter:
        digest.update(stamp(Path(adapter)))
    home = cache() / f"ct2-{digest.hexdigest()[:16]}"
    if (home / "model.bin").exists():
        return home, load_tokenizer(name)
    model, tokenizer = load(name, adapter)
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        draft = Path(folder) / "draft"
        _convert(model, tokenizer, str(draft))
        if not home.exists():  # another process may have been faster
            draft.replace(home)
    return home, tokenizer
