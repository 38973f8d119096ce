"""Replies of a model in training: fresh weights each step, many replies to a prompt.

On a CPU the engine is CTranslate2, on a GPU transformers. `utils.generate` answers with
weights that lie in a folder; this module takes them from the trainer's memory.
"""

import copy
import gc
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils.training.weights import device


class Sampler:
    """Draws replies from a model as its weights are at the last `refresh`.

    Equal weights, an equal seed and equal calls since give equal replies.

    Args:
        model: a causal language model with PEFT's adapter, which stays as it is.
        tokenizer: the model's.
        max_tokens: longest reply.
        batch: replies in the making on each core; on a GPU 16 times as many.

    """

    def __init__(
        self, model: Any, tokenizer: Any, max_tokens: int = 192, batch: int = 64
    ) -> None:
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens
        self.on_cpu = device() == "cpu"
        self.batch = batch if self.on_cpu else 16 * batch
        self.engines: list[Any] = []

    def refresh(self, seed: int) -> None:
        """Take over the model's weights as they are now, and start from a seed."""
        import torch

        merged = copy.deepcopy(self.model).merge_and_unload().eval()
        if not self.on_cpu:
            self.engines = [merged]
            torch.manual_seed(seed)
            return
        import ctranslate2

        ctranslate2.set_random_seed(seed)  # heeded by generators that are made later
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        threads = torch.get_num_threads()
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            _convert(merged, self.tokenizer, folder)
            # One for each core, each with a share of its own: so the draws can be
            # repeated, which one queue for all would not allow.
            self.engines = [
                ctranslate2.Generator(folder, intra_threads=1)
                for _ in range(os.cpu_count() or 1)
            ]
        torch.set_num_threads(threads)  # which a new generator sets to one

    def sample(
        self, prompts: Sequence[list[int]], n: int = 1, temperature: float = 0.0
    ) -> list[list[int]]:
        """Reply `n` times to each prompt, greedily at temperature 0.

        Takes and returns token ids: n replies to the first prompt, n to the second and
        so on, each with its ending token unless it hit the limit.
        """
        # Prompts of equal length share a batch, and little is padding.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        shares = [order[k :: len(self.engines)] for k in range(len(self.engines))]
        draw = self._by_ct2 if self.on_cpu else self._by_transformers
        size, found = max(1, self.batch // n), {}

        def work(engine: Any, share: list[int]) -> None:
            for start in range(0, len(share), size):
                chunk = share[start : start + size]
                ids = [prompts[i] for i in chunk]
                found.update(zip(chunk, draw(engine, ids, n, temperature), strict=True))

        with ThreadPoolExecutor(len(shares)) as threads:
            list(threads.map(work, self.engines, shares))
        return [reply for i in range(len(prompts)) for reply in found[i]]

    def _by_ct2(self, engine: Any, prompts: list, n: int, temperature: float) -> list:
        """Reply n times to each prompt of one batch; a prompt is read once for all."""
        end, name = self.tokenizer.eos_token_id, self.tokenizer.convert_ids_to_tokens
        results = engine.generate_batch(
            [name(ids) for ids in prompts],
            num_hypotheses=n,
            max_length=self.max_tokens,
            include_prompt_in_result=False,
            end_token=[end],
            return_end_token=True,
            sampling_topk=0 if temperature else 1,
            sampling_temperature=temperature or 1.0,
        )
        return [[list(ids) for ids in result.sequences_ids] for result in results]

    def _by_transformers(
        self, engine: Any, prompts: list, n: int, temperature: float
    ) -> list:
        """Do the same with generate(), for a GPU."""
        how: dict[str, Any] = {"do_sample": False}
        if temperature:
            how = {"do_sample": True, "temperature": temperature, "top_k": 0}
            how |= {"top_p": 1.0, "num_return_sequences": n}
        batch = self.tokenizer.pad(
            {"input_ids": prompts}, padding_side="left", return_tensors="pt"
        ).to(engine.device)
        end, width = self.tokenizer.eos_token_id, batch["input_ids"].shape[1]
        out = engine.generate(
            **batch,
            max_new_tokens=self.max_tokens,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=self.tokenizer.pad_token_id,
            **how,
        )[:, width:].tolist()
        cut = [ids[: ids.index(end) + 1] if end in ids else ids for ids in out]
        return [cut[k : k + n] for k in range(0, len(cut), n)]


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
