"""What makes TRL's trainers fit two cores: subclasses that compute the same gradient.

`train_sft` and `train_grpo` are the recipes of sft.py and grpo.py with these trainers,
the laptop's weights and its order of batches. A test holds losses and weights to those
of stock TRL.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer, SFTTrainer

from utils.training import examples, grpo, sft, weights
from utils.training.engine import Engine, answer

ROOT = Path(__file__).resolve().parents[2]
# What the laptop's trainings have in common, under TRL's names.
SETTINGS: dict[str, Any] = {
    "attn_implementation": "eager",  # the faster one for short texts on a CPU
    "gradient_checkpointing": False,  # memory is dear on a GPU, time is on a CPU
    "dataloader_pin_memory": False,
    "lora_dropout": 0.0,
    "save_total_limit": 1,
    "report_to": "none",
    "disable_tqdm": True,
}


class CachedPrefixSFTTrainer(SFTTrainer):
    """SFTTrainer for models of which only the last layers learn.

    What the frozen first layers make of a text is computed once and kept, up to
    `cache_bytes`; beyond that it is computed each time. The head scores only the tokens
    that are learned, so TRL's entropy and token accuracy are not logged.
    """

    cache_bytes = 2 << 30
    # For every run in this process: by base model, number format, layers and text.
    cached: dict[tuple, torch.Tensor] = {}  # noqa: RUF012

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # the log's file tells the same

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean negative log-likelihood of the learned tokens, in nats."""
        net = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden = self.hidden(net.model, inputs["input_ids"], inputs["attention_mask"])
        labels = inputs["labels"][:, 1:]
        learned = labels != -100
        logits = net.lm_head(hidden[:, :-1][learned]).float()
        total = cross_entropy(logits, labels[learned], reduction="sum")
        loss = total / (num_items_in_batch or learned.sum())
        return (loss, {}) if return_outputs else loss

    def hidden(self, core: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the model up to its head: ids (rows, tokens) to (rows, tokens, width)."""
        frozen = count_frozen(core)
        if not frozen:
            return core(input_ids=ids, attention_mask=mask).last_hidden_state
        name = core.config._name_or_path, self.args.bf16, frozen
        rows = zip(ids, mask, strict=True)
        texts = [(*name, *row[real.bool()].tolist()) for row, real in rows]
        states = [self.cached.get(text) for text in texts]
        if any(one is None for one in states):
            # One layer more than is frozen: the last one's output is normalised.
            with torch.no_grad(), only_layers(core, slice(0, frozen + 1)):
                made = core(
                    input_ids=ids, attention_mask=mask, output_hidden_states=True
                ).hidden_states[frozen]
            for place, text in enumerate(texts):
                if states[place] is None:
                    states[place] = made[place, : len(text) - len(name)].clone()
            self.keep(texts, states)
        start = pad_sequence(states, batch_first=True)
        with only_layers(core, slice(frozen, None)):
            return core(inputs_embeds=start, attention_mask=mask).last_hidden_state

    def keep(self, texts: list[tuple], states: list[torch.Tensor]) -> None:
        """Cache what there is room for."""
        used = sum(one.nbytes for one in self.cached.values())
        for text, one in zip(texts, states, strict=True):
            if text not in self.cached and used + one.nbytes <= self.cache_bytes:
                self.cached[text] = one
                used += one.nbytes


def count_frozen(core: Any) -> int:
    """Count the first layers of a decoder in which no weight is trained."""
    if any(p.requires_grad for p in core.embed_tokens.parameters()):
        return 0
    for number, layer in enumerate(core.layers):
        if any(p.requires_grad for p in layer.parameters()):
            return number
    return len(core.layers)


@contextmanager
def only_layers(core: Any, part: slice) -> Iterator[None]:
    """Let a decoder run some of its layers."""
    layers = core.layers
    core.layers = layers[part]
    try:
        yield
    finally:
        core.layers = layers


class DedupGRPOTrainer(GRPOTrainer):
    """GRPOTrainer in which only what carries a gradient passes through the model.

    Replies come from an `Engine` with fresh weights each step, or from vLLM. Of equal
    replies to a prompt one passes, with the sum of their advantages; those without any
    do not. The gradient stays that of TRL's default loss ("dapo"), which divides by the
    tokens of all replies.
    """

    engine: Engine | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EvalCallback):
                callback.trainer = self

    def _generate_single_turn(
        self, prompt_ids: list, images: Any, fields: Any, num_generations: int, **_: Any
    ) -> tuple[list[list[int]], None]:
        """Reply to each prompt; they come as often as it has replies."""
        if self.use_vllm:
            return super()._generate_single_turn(
                prompt_ids, images, fields, num_generations, **_
            )
        engine = self.open_engine()
        engine.sync_weights(1000 * self.args.seed + self.state.global_step)
        each = prompt_ids[::num_generations]
        replies = engine.sample_ids(each, num_generations, self.temperature)
        return [ids for group in replies for ids in group], None

    def open_engine(self) -> Engine:
        """Return the engine of the model in training."""
        if self.engine is None:
            self.engine = Engine.from_model(
                self.model, self.processing_class, self.max_completion_length
            )
        return self.engine

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        # TRL would compute the old log-probabilities of all replies, if it reuses them.
        reused, self.num_iterations = self.num_iterations > 1, 1
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.num_iterations = self.args.num_iterations
        texts = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        weight, first = torch.zeros_like(batch["advantages"]), {}
        for row, text in enumerate(map(tuple, texts.tolist())):
            weight[first.setdefault(text, row)] += batch["advantages"][row]
        batch["advantages"] = weight
        order = weight.abs().argsort(descending=True, stable=True)
        learned = int(weight.count_nonzero())
        self._metrics["train"]["trained_replies"].append(learned)
        # TRL cuts the batch in equal parts, so some rows that weigh nothing come along.
        parts = self.args.steps_per_generation
        kept = order[: parts * max(1, -(-learned // parts))]
        # Of about one length in each part, for padding costs as much as text.
        kept = kept[batch["completion_mask"][kept].sum(1).argsort(stable=True)]
        whole = {"num_items_in_batch"}  # of all replies: those left out count as zero
        batch = {k: v if k in whole else v[kept] for k, v in batch.items()}
        if reused:
            batch["old_per_token_logps"] = self.score(batch)
        return batch

    @torch.no_grad()
    def score(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the log-probability of each token of the replies (rows, tokens)."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        rows, tokens = batch["completion_ids"].shape
        size = max(1, rows // self.args.steps_per_generation)
        return self._get_per_token_logps_and_entropies(
            self.model, ids, mask, tokens, size
        )[0]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Compute TRL's loss without the padding that no row of this part needs."""
        read = inputs["prompt_mask"].sum(1).max()
        written = inputs["completion_mask"].sum(1).max()
        ends = {"prompt_ids", "prompt_mask"}
        starts = {"completion_ids", "completion_mask", "old_per_token_logps"}
        cut = {k: inputs[k][:, -read:] for k in ends}
        cut |= {k: inputs[k][:, :written] for k in starts & inputs.keys()}
        return super()._compute_loss(model, inputs | cut)


class EvalCallback(TrainerCallback):
    """Asks validation prompts greedily, before the first step and every so many.

    The rewards go to the log, which checkpoints hold, as "validation".
    """

    def __init__(self, rows: list[dict], reward: Callable, every: int) -> None:
        self.rows, self.reward, self.every = rows, reward, every
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the model that training starts from."""
        if not state.log_history:
            self.ask(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask every so many steps."""
        if state.global_step % self.every == 0:
            self.ask(state)

    def ask(self, state: Any) -> None:
        """Answer greedily, and keep the rewards."""
        rewards = ask_greedily(self.trainer.open_engine(), self.rows, self.reward)
        state.log_history.append({"step": state.global_step, "validation": rewards})


def ask_greedily(engine: Engine, rows: list[dict], reward: Callable) -> list[float]:
    """Answer prompts greedily with the newest weights; return the rewards."""
    engine.sync_weights(0)
    chats = [row["prompt"] for row in rows]
    replies = [{"role": "assistant", "content": r.text} for r in engine.replies(chats)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    prompts = columns.pop("prompt")
    return reward(prompts=prompts, completions=[[one] for one in replies], **columns)


class StopAt(TrainerCallback):
    """Stops at a step, with an evaluation and a checkpoint to go on from."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop there."""
        if state.global_step >= self.step:
            control.should_evaluate = control.should_save = True
            control.should_training_stop = True


def length_grouped_batches(
    rows: list[dict], batch_size: int, steps: int, seed: int
) -> list[dict]:
    """Draw the examples of a whole run, batch by batch.

    Each batch is of about one length, and the batches come in random order: padding
    costs a CPU as much as text. Left-over examples of a pass are not drawn in it.
    """
    rng, drawn = random.Random(seed), []
    while len(drawn) < steps * batch_size:
        shuffled = rng.sample(rows, len(rows))
        shuffled = shuffled[: len(rows) // batch_size * batch_size or None]
        window = 50 * batch_size
        for start in range(0, len(shuffled), window):
            part = shuffled[start : start + window]
            part.sort(key=lambda row: len(json.dumps(row)))
            shuffled[start : start + window] = part
        starts = range(0, len(shuffled), batch_size)
        batches = [shuffled[i : i + batch_size] for i in starts]
        for batch in rng.sample(batches, len(batches)):
            drawn += batch
    return drawn[: steps * batch_size]


def hard_first(
    cases: Sequence[dict], prompts_per_step: int, steps: int, share: float, seed: int
) -> list[dict]:
    """Draw the cases of a whole RL run: in each step a `share` of those marked hard."""
    rng, drawn = random.Random(seed), []
    piles: dict[bool, list[dict]] = {True: [], False: []}
    for k in range(steps * prompts_per_step):
        hard = k % prompts_per_step < round(prompts_per_step * share)
        if not piles[hard]:
            fit = [case for case in cases if case["hard"] == hard]
            piles[hard] = rng.sample(fit, len(fit))
        drawn.append(piles[hard].pop())
    return drawn


def count_weights(folder: Path) -> int:
    """Count the numbers in a folder of weights: after a training, those it trained."""
    files = folder.glob("*.safetensors")
    return sum(tensor.numel() for file in files for tensor in load_file(file).values())


def prepare(folder: Path) -> None:
    """Set this process up for a training, and say where its log grows."""
    weights.silence_logging()
    # Two threads that wait for each other are ten times slower beside other processes.
    torch.set_num_threads(1)
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    print(f"Training; its log grows in {shown}/log.jsonl.", flush=True)


def train_sft(config: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune as sft.py does, on two cores: a job for `costly.run`.

    Args:
        config: as for `sft.train`; "model_name_or_path" as for `weights.fetch`, and
            "adapter" from the course's root. Besides, where wanted: "stop_at", a step;
            "questions" to answer afterwards, greedily; "keep_adapter", False to keep
            no weights.

    Returns what `sft.train` does, "validation_loss", "seconds", "trained_weights", and
    "replies" to the questions.

    """
    job = SETTINGS | config
    stop_at, questions = job.pop("stop_at", None), job.pop("questions", None)
    kept = Path(job["output_dir"], f"stopped_at_{stop_at}.json")
    if stop_at and kept.exists():  # an interrupted sweep asks for it again
        return json.loads(kept.read_text())
    keep = job.pop("keep_adapter", True)
    job.pop("sha256", None)  # of the adapter: it is there to tell runs apart
    name, folder = job["model_name_or_path"], Path(job["output_dir"])
    batch_size = job["per_device_train_batch_size"]
    batches = job["max_steps"] * job.get("gradient_accumulation_steps", 1)
    job["data"] = length_grouped_batches(job["data"], batch_size, batches, job["seed"])
    job |= {"train_sampling_strategy": "sequential", "prediction_loss_only": True}
    job |= {"eval_strategy": "steps", "eval_steps": job["save_steps"]}
    job |= {"per_device_eval_batch_size": 16, "model_name_or_path": weights.fetch(name)}
    if job.get("adapter"):
        job["adapter"] = str(ROOT / job["adapter"])
    prepare(folder)
    stop = [StopAt(stop_at)] if stop_at else []
    done = sft.train(job, CachedPrefixSFTTrainer, tuple(stop))
    done["log"] = [row for row in done["log"] if "train_loss" not in row]
    weights.halve_adapter(folder / "adapter")
    done["trained_weights"] = count_weights(folder / "adapter")
    losses = [row["eval_loss"] for row in done["log"] if "eval_loss" in row]
    done |= {"validation_loss": losses[-1], "seconds": done["log"][-1]["seconds"]}
    if questions:
        ask = {"model_name_or_path": name, "adapter": str(folder / "adapter")}
        ask["compute_type"] = config.get("dtype", "float32")
        rows = answer(ask | {"questions": questions})["replies"]
        done["replies"] = [text for text, *_ in rows]
    if not keep:
        for weights_of in (folder / "adapter", *folder.glob("checkpoint-*")):
            shutil.rmtree(weights_of)
    if stop_at:
        kept.write_text(json.dumps(done))
    return done


def train_grpo(config: dict[str, Any], reward: Callable) -> dict[str, Any]:
    """Train by RL as grpo.py does, on two cores.

    Args:
        config: as for `grpo.train`, but "data" and "validation" are cases, each marked
            "hard" or not; "hard_share" of a step's prompts are hard ones; "eval_steps"
            is how often validation is asked; "questions" are answered at the end.
        reward: as for `grpo.train`.

    Returns the log and the "replies".

    """
    job = SETTINGS | config
    validation, questions = job.pop("validation"), job.pop("questions")
    share, every = job.pop("hard_share"), job.pop("eval_steps")
    job.pop("sha256", None)
    replies = job["per_device_train_batch_size"] * job["gradient_accumulation_steps"]
    prompts_per_step = replies // job["num_generations"]
    cases = hard_first(
        job["data"], prompts_per_step, job["max_steps"], share, job["seed"]
    )
    job |= {"data": examples.prompts(cases), "shuffle_dataset": False}
    job["model_name_or_path"] = weights.fetch(job["model_name_or_path"])
    job["adapter"] = str(ROOT / job["adapter"])
    prepare(Path(job["output_dir"]))
    evaluation = EvalCallback(examples.prompts(validation), reward, every)

    done = grpo.train(job, reward, DedupGRPOTrainer, (evaluation,))
    weights.halve_adapter(Path(job["output_dir"]) / "adapter")
    log = [row for row in done["log"] if "train_loss" not in row]
    done = {"log": log, "replies": []}
    if questions:
        chats = [[{"role": "user", "content": question}] for question in questions]
        engine = evaluation.trainer.open_engine()
        engine.sync_weights(0)
        done["replies"] = [reply.text for reply in engine.replies(chats)]
    return done
