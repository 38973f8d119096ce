"""A chat model small enough to train and convert within a test; it knows nothing."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils.training.weights import TEMPLATE, silence_logging

PAIRS = [
    ("How many customers are there?", "select count(*) from customers"),
    ("customers in the west", "select count(*) from customers where region='west'"),
    ("customers in the south", "select count(*) from customers where region='south'"),
    ("List the plans.", "select distinct plan from subscriptions order by 1"),
    (
        "How many tickets on billing?",
        "select count(*) from tickets where topic='billing'",
    ),
    ("tickets on taste", "select count(*) from tickets where topic='taste'"),
    ("Mean rating?", "select round(avg(rating),2) from tickets"),
    ("Which carriers?", "select distinct carrier from shipments order by 1"),
    ("Shipments by carrier", "select carrier,count(*) from shipments group by 1"),
    ("Paused subscriptions", "select count(*) from subscriptions where paused=1"),
    ("Fees a month", "select sum(monthly_fee) from subscriptions"),
    ("Order lines by phone", "select count(*) from order_lines where channel='phone'"),
    ("Orders on the web", "select count(*) from order_lines where channel='web'"),
    ("Items by category", "select category,sum(qty) from order_lines group by 1"),
    ("The last order?", "select max(order_date) from order_lines"),
    ("The first order?", "select min(order_date) from order_lines"),
]
EXAMPLES = [
    {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": sql}],
    }
    for question, sql in PAIRS
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # as SmolLM2 numbers them


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and some merges learned from PAIRS: any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for pair in PAIRS for text in pair], trainer)
    names = zip(("pad_token", "bos_token", "eos_token"), SPECIAL, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(names))


def tiny_model(folder, seed=0, template=TEMPLATE) -> str:
    """Save a random Llama of some 200,000 weights, with tokenizer; return `folder`."""
    silence_logging()
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,  # or every reply would be much the same
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def losses(done) -> list[float]:
    """Return the training losses of a run, in their order."""
    return [row["loss"] for row in done["log"] if "loss" in row]


def last_checkpoint(folder) -> Path:
    """Return the folder of a run's newest checkpoint."""
    steps = {int(p.name.split("-")[1]): p for p in Path(folder).glob("checkpoint-*")}
    return steps[max(steps)]


def last_weights(folder) -> dict[str, torch.Tensor]:
    """Read the weights of a run's last checkpoint, in the 32 bits they had."""
    (path,) = last_checkpoint(folder).glob("*model.safetensors")
    return load_file(path)


def mark(folder) -> None:
    """Mark the log in the last checkpoint, to see whether a run goes on from there."""
    path = last_checkpoint(folder) / "trainer_state.json"
    state = json.loads(path.read_text())
    state["log_history"][0]["marked"] = True
    path.write_text(json.dumps(state))


def furthest(a, b) -> float:
    """Return the largest difference of two sets of weights."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
