"""Weights in one file for llama.cpp (GGUF), from a base model and an adapter.

The file holds weights, tokenizer and chat template, so a server needs nothing else.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUANTIZATIONS = ("F32", "F16", "Q8_0", "Q4_0")

# A harness sends a system prompt, if only an empty one. A tuned model never saw any, so
# the template leaves an empty one out: then no code of the harness has to change.
TEMPLATE = (
    "{% for message in messages if message['role'] != 'system' or "
    "message['content'] | trim %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def to_gguf(
    name: str = "smollm2-135m",
    adapter: str | Path | None = None,
    quantization: str = "Q8_0",
) -> Path:
    """Return a GGUF file of a model with its adapter merged in; made once, then cached.

    Args:
        name: the laptop's model, or a folder of one of its size and vocabulary.
        adapter: a folder that PEFT saved, or None.
        quantization: of the matrices: "F32", "F16", or "Q8_0" and "Q4_0" for 8 and 4
            bits a weight in blocks of 32 that share a scale. Vectors stay in 32 bits.

    Raises:
        ValueError: an unknown quantization, or a model that this does not know.

    """
    from utils.training import weights  # PyTorch: who needs TEMPLATE may lack it

    if quantization not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise ValueError(f"no quantization {quantization!r}; there are {known}")
    digest = hashlib.sha256(f"{quantization} {TEMPLATE}".encode())
    for folder in (weights.fetch(name), adapter):
        if folder:
            digest.update(weights.stamp(Path(folder)))
    file = weights.cache() / f"{digest.hexdigest()[:16]}-{quantization}.gguf"
    if not file.exists():
        model, tokenizer = weights.load(name, adapter, dtype="float32")
        with tempfile.TemporaryDirectory(dir=weights.cache()) as folder:
            draft = Path(folder, "draft.gguf")
            _write(model, tokenizer, draft, quantization)
            draft.replace(file)  # whole or not at all
    return file


def _write(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    path: Path,
    quantization: str,
) -> None:
    import gguf
    import numpy as np

    config = model.config
    if config.model_type != "llama" or config.vocab_size != 49152:
        raise ValueError(
            "this export knows SmolLM2 only. For another model use llama.cpp's own "
            "convert_hf_to_gguf.py on the merged weights; the server takes any GGUF."
        )
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads}
    heads["k_proj"] = config.num_key_value_heads
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # the same numbers as the embeddings
        values = tensor.float().cpu().numpy()
        part = name.split(".")[-2]
        if part in heads:
            values = _interleave(values, heads[part])
        dtype = gguf.GGMLQuantizationType[quantization if values.ndim == 2 else "F32"]
        values = gguf.quants.quantize(np.ascontiguousarray(values), dtype)
        known = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(known, values, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(values: "np.ndarray", heads: int) -> "np.ndarray":
    """Order the rows of a head as llama.cpp rotates them: pairs side by side.

    transformers pairs row i with row i + half of the head, llama.cpp 2i with 2i + 1.
    """
    halves = values.reshape(heads, 2, -1, values.shape[1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _write_tokenizer(writer: object, tokenizer: "PreTrainedTokenizerBase") -> None:
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    control = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    merges = [m if isinstance(m, str) else " ".join(m) for m in inner["merges"]]
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre("smollm")  # how text is split before that
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i in control else 1 for _, i in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
