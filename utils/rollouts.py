"""Replies of a model in training: fresh weights each step, many replies to a prompt.

On a CPU the engine is CTranslate2, on a GPU transformers. `utils.generate` answers with
weights that lie in a folder; this module takes them from the trainer's memory.
"""

import gc
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from utils.models import device


class Sampler:
    """Draws replies from a model as its weights are at the last `refresh`.

    Equal weights, an equal seed and equal calls since give equal replies.

    Args:
        model: a causal language model of transformers, with or without an adapter.
        tokenizer: the model's.
        max_tokens: longest reply.
        batch: replies in the making on each core; on a GPU 16 times as many.

    """

    def __init__(
        self, model: Any, tokenizer: Any, max_tokens: int = 192, batch: int = 64
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens, self.batch = max_tokens, batch
        self.engines: list[Any] = []

    def refresh(self, seed: int) -> None:
        """Take over the model's weights as they are now, and start from a seed."""
        import torch

        if device() == "cuda":
            self.engines = [_merged(self.model).eval()]
            torch.manual_seed(seed)
            return
        import ctranslate2

        ctranslate2.set_random_seed(seed)  # heeded by generators that are made later
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        cores, threads = os.cpu_count() or 1, torch.get_num_threads()
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            _convert(_merged(self.model), self.tokenizer, folder)
            # One for each core, each with a share of its own: so the draws can be
            # repeated, which one queue for all would not allow.
            with ThreadPoolExecutor(cores) as pool:
                self.engines = list(
                    pool.map(
                        lambda _: ctranslate2.Generator(folder, intra_threads=1),
                        range(cores),
                    )
                )
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
        draw = _draw_ct2 if device() == "cpu" else _draw_transformers
        shares = [order[k :: len(self.engines)] for k in range(len(self.engines))]
        size = max(1, self.batch * (16 if device() == "cuda" else 1) // n)

        def work(engine: Any, share: list[int]) -> list[list[list[int]]]:
            starts = range(0, len(share), size)
            chunks = [[prompts[i] for i in share[k : k + size]] for k in starts]
            drawn = (draw(self, engine, chunk, n, temperature) for chunk in chunks)
            return [replies for chunk in drawn for replies in chunk]

        found: list[list[list[int]]] = [[] for _ in prompts]
        with ThreadPoolExecutor(len(shares)) as threads:
            for share, drawn in zip(
                shares, threads.map(work, self.engines, shares), strict=True
            ):
                for i, replies in zip(share, drawn, strict=True):
                    found[i] = replies
        return [reply for replies in found for reply in replies]


def _draw_ct2(
    sampler: Sampler, engine: Any, prompts: list[list[int]], n: int, temperature: float
) -> list[list[list[int]]]:
    """Reply n times to each prompt of one batch; a prompt is read once for its n."""
    tokenizer = sampler.tokenizer
    how: dict[str, Any] = {"sampling_topk": 1}
    if temperature:
        how = {"sampling_topk": 0, "sampling_temperature": temperature}
    results = engine.generate_batch(
        [tokenizer.convert_ids_to_tokens(ids) for ids in prompts],
        num_hypotheses=n,
        max_length=sampler.max_tokens,
        include_prompt_in_result=False,
        end_token=[tokenizer.eos_token_id],
        return_end_token=True,
        **how,
    )
    return [[list(ids) for ids in result.sequences_ids] for result in results]


def _draw_transformers(
    sampler: Sampler, engine: Any, prompts: list[list[int]], n: int, temperature: float
) -> list[list[list[int]]]:
    """Do the same with generate(), for a GPU."""
    import torch

    tokenizer, width = sampler.tokenizer, max(map(len, prompts))
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    how: dict[str, Any] = {"do_sample": False}
    if temperature:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.inference_mode():
        out = engine.generate(
            input_ids=torch.tensor(
                [[pad] * (width - len(p)) + p for p in prompts], device=engine.device
            ),
            attention_mask=torch.tensor(
                [[0] * (width - len(p)) + [1] * len(p) for p in prompts],
                device=engine.device,
            ),
            num_return_sequences=n,
            use_cache=True,
            max_new_tokens=sampler.max_tokens,
            pad_token_id=pad,
            eos_token_id=end,
            **how,
        )[:, width:].tolist()
    cut = [ids[: ids.index(end) + 1] if end in ids else ids for ids in out]
    return [cut[k : k + n] for k in range(0, len(cut), n)]


def _merged(model: Any) -> Any:
    """Copy a model with its adapter merged in; the original stays as it is."""
    import torch

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = {}
    for name, value in core.state_dict().items():
        if "lora_" not in name:
            weights[name.replace(".base_layer", "")] = value.detach()
    for name, module in core.named_modules():
        if hasattr(module, "get_delta_weight"):
            delta = sum(module.get_delta_weight(a) for a in module.active_adapters)
            weight = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = weight + delta.detach().to(weight.dtype)
    with torch.device("meta"):
        shell = type(core)(core.config)
    shell.load_state_dict(weights, assign=True, strict=False)
    shell.tie_weights()
    # What no state holds, the frequencies of the positions, was left without numbers.
    shell.model.rotary_emb = core.model.rotary_emb
    shell.generation_config = core.generation_config
    return shell


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
