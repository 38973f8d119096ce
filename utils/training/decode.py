"""Many replies at once from a small Llama on CPU cores.

`generate()` of transformers computes the same; `make bench` compares their speed. Here
keys and values are written in place and not copied at each token, replies that have
ended leave the batch, and a prompt is read once for all its replies.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

HIDDEN = -1e9  # added to the score of a token that must not be looked at


def fits(config: Any) -> bool:
    """Say whether `Decoder` computes a model of this configuration."""
    plain = config.model_type == "llama" and config.hidden_act == "silu"
    return plain and not (config.attention_bias or config.mlp_bias)


class Decoder:
    """Decodes with the weights of a `LlamaForCausalLM`, whose adapter is merged."""

    def __init__(self, model: Any) -> None:
        config, self.core = model.config, model.model
        if not fits(config):
            raise ValueError(
                f"a Llama without biases is wanted here, not {config.model_type!r}; "
                'take backend="transformers"'
            )
        self.head, self.eps = model.lm_head.weight, config.rms_norm_eps
        self.heads, self.kv_heads = (
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.width = self.core.layers[0].self_attn.head_dim
        # One product in place of three or two: small ones are slow.
        self.qkv, self.gate_up = [], []
        for layer in self.core.layers:
            attention, mlp = layer.self_attn, layer.mlp
            parts = attention.q_proj, attention.k_proj, attention.v_proj
            self.qkv.append(torch.cat([part.weight for part in parts]))
            parts = mlp.gate_proj, mlp.up_proj
            self.gate_up.append(torch.cat([part.weight for part in parts]))

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[list[int]],
        n: int,
        temperature: float,
        max_new_tokens: int,
        end: int,
        seed: int = 0,
    ) -> list[list[list[int]]]:
        """Reply n times to each prompt, in token ids, the token `end` included.

        Temperature 0 is greedy. Equal prompts and an equal seed give equal replies.
        """
        ids, real = self._pad(prompts)
        start, rows = ids.shape[1], len(prompts) * n
        cache = self._cache(len(prompts), start + max_new_tokens)
        position = (real.cumsum(1) - 1).clamp(min=0)
        logits = self._forward(ids, position, cache, 0, _causal(real))[:, -1]
        # Each prompt was read once; from here on a row is a reply.
        cache, logits = cache.repeat_interleave(n, 2), logits.repeat_interleave(n, 0)
        position = position[:, -1:].repeat_interleave(n, 0)
        mask = torch.zeros(rows, 1, start + max_new_tokens, dtype=self.head.dtype)
        mask[:, 0, :start].masked_fill_(~real.repeat_interleave(n, 0), HIDDEN)
        draw = torch.Generator().manual_seed(seed)
        replies: list[list[int]] = [[] for _ in range(rows)]
        live = list(range(rows))  # the reply that each row of the batch belongs to
        for written in range(start, start + max_new_tokens):
            new = _choose(logits, temperature, draw)
            for row, token in zip(live, new[:, 0].tolist(), strict=True):
                if replies[row][-1:] != [end]:
                    replies[row].append(token)
            going = [k for k, row in enumerate(live) if replies[row][-1:] != [end]]
            if not going:
                break
            if len(going) <= 0.75 * len(live):  # dropping rows copies the others
                live, kept = [live[k] for k in going], torch.tensor(going)
                cache, mask = cache[:, :, kept], mask[kept]
                new, position = new[kept], position[kept]
            position = position + 1
            looked = mask[:, :, : written + 1]
            logits = self._forward(new, position, cache, written, looked)[:, -1]
        return [replies[k : k + n] for k in range(0, rows, n)]

    @torch.inference_mode()
    def logprobs(self, prompt: list[int], reply: list[int]) -> list[float]:
        """Return the log-probability of each token of a reply."""
        ids, real = self._pad([prompt + reply])
        cache = self._cache(1, ids.shape[1])
        position = real.cumsum(1) - 1
        logits = self._forward(ids, position, cache, 0, _causal(real))[0]
        logs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        return logs.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()

    def _pad(self, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Align prompts to the right; return ids and which of them are real."""
        size = len(prompts), max(map(len, prompts))
        ids = torch.zeros(size, dtype=torch.long)
        real = torch.zeros(size, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, -len(prompt) :] = torch.tensor(prompt)
            real[row, -len(prompt) :] = True
        return ids, real

    def _cache(self, rows: int, tokens: int) -> Tensor:
        """Make room for keys and values: (layers, 2, rows, heads, tokens, width)."""
        shape = len(self.qkv), 2, rows, self.kv_heads, tokens, self.width
        return torch.zeros(shape, dtype=self.head.dtype)

    def _forward(
        self, ids: Tensor, position: Tensor, cache: Tensor, start: int, mask: Tensor
    ) -> Tensor:
        """Read ids (rows, tokens) after `start` cached tokens; return all logits.

        The mask is added to attention scores: (rows, tokens, tokens so far).
        """
        x = self.core.embed_tokens(ids)
        rows, tokens, _ = x.shape
        cosine, sine = (one[:, :, None] for one in self.core.rotary_emb(x, position))
        # The heads that share keys and values are read as further tokens.
        group = self.heads // self.kv_heads
        shared = mask[:, None, :, None].expand(-1, 1, -1, group, -1)
        shared = shared.reshape(rows, 1, tokens * group, -1).to(x.dtype)
        end = start + tokens
        for layer, qkv, gate_up, (keys, values) in zip(
            self.core.layers, self.qkv, self.gate_up, cache, strict=True
        ):
            y = functional.linear(self._norm(x, layer.input_layernorm), qkv)
            y = y.view(rows, tokens, -1, self.width)
            turned, value = y.split([self.heads + self.kv_heads, self.kv_heads], 2)
            turned = turned * cosine + _rotate(turned) * sine
            query, key = turned.split([self.heads, self.kv_heads], 2)
            keys[:, :, start:end] = key.transpose(1, 2)
            values[:, :, start:end] = value.transpose(1, 2)
            query = query.reshape(rows, tokens, self.kv_heads, group, self.width)
            query = query.permute(0, 2, 1, 3, 4).reshape(
                rows, self.kv_heads, tokens * group, self.width
            )
            seen = functional.scaled_dot_product_attention(
                query, keys[:, :, :end], values[:, :, :end], attn_mask=shared
            )
            seen = seen.view(rows, self.kv_heads, tokens, group, self.width)
            seen = seen.permute(0, 2, 1, 3, 4).reshape(rows, tokens, -1)
            x = x + layer.self_attn.o_proj(seen)
            y = self._norm(x, layer.post_attention_layernorm)
            gate, up = functional.linear(y, gate_up).chunk(2, -1)
            x = x + layer.mlp.down_proj(functional.silu(gate) * up)
        if start or rows > 1:  # only the last token's are wanted
            x = x[:, -1:]
        return functional.linear(self._norm(x, self.core.norm), self.head).float()

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), norm.weight, self.eps)


def _rotate(x: Tensor) -> Tensor:
    """Turn the halves of each head, for rotary positions (arXiv 2104.09864)."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _causal(real: Tensor) -> Tensor:
    """Let each token look at the real ones up to itself: (rows, tokens, tokens)."""
    tokens = real.shape[1]
    allowed = real[:, None] & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    allowed |= torch.eye(tokens, dtype=torch.bool)  # a softmax over nothing is NaN
    return torch.zeros(allowed.shape).masked_fill_(~allowed, HIDDEN)


def _choose(logits: Tensor, temperature: float, draw: torch.Generator) -> Tensor:
    """Choose the next token of each row: greedily, or by chance."""
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    # By the inverse of the distribution function: multinomial draws a number a token.
    below = (logits / temperature).softmax(-1).cumsum(-1)
    point = torch.rand(len(below), 1, generator=draw) * below[:, -1:]
    return torch.searchsorted(below, point).clamp(max=below.shape[1] - 1)
