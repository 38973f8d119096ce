r"""Reinforcement learning (GRPO, arXiv 2402.03300) of a chat model, with TRL and PEFT.

    python grpo.py --data prompts.jsonl --reward reward.py:score --adapter sft/adapter \
        --model_name_or_path Qwen/Qwen3-0.6B
    GPU=H100 BUDGET_USD=10 modal run --detach grpo.py (the same flags) --use_vllm True

A line of the data is {"prompt": [messages], ...}; a message is {"role": "user",
"content": "..."}. What else a line holds goes to the reward, a function in a file of
yours, which on Modal must stand alone:

    def score(prompts, completions, **columns):
        "Return a float for each completion (a list of one message), or None."

For a model that calls tools it may be a class: TRL's environment_factory. Other flags
are TRL's (GRPOConfig, ModelConfig), but load_in_4bit has no effect. Started again, a
run goes on; if it was detached, stop its app first. vLLM has not been run with it.
"""

import argparse
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import modal

BOX = {"cpu": 4, "memory": 32_768}  # prices: USD an hour of a GPU in such a container
PRICES = {"L4": 1.25, "L40S": 2.40, "A100-80GB": 2.95, "H100": 4.40}
GPU, BUDGET_USD = os.environ.get("GPU", "L40S"), os.environ.get("BUDGET_USD", "5")
SECONDS = min(86_400, int(3600 * float(BUDGET_USD) / PRICES.get(GPU, 50)))  # at most
PINS = "torch==2.13.0 transformers==5.17.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0 "
PINS += "accelerate==1.15.0 vllm==0.31.0 numpy==2.3.5"  # older ones, which vLLM wants
DEFAULTS = {
    "use_peft": True,  # LoRA (arXiv 2106.09685) of all layers
    "lora_r": 32,
    "learning_rate": 1e-5,  # far below that of SFT
    "num_generations": 8,  # replies to a prompt: the group
    "per_device_train_batch_size": 8,  # replies
    "gradient_accumulation_steps": 4,  # so 32 replies, 4 prompts, a step
    "max_completion_length": 256,  # tokens of a reply
    "warmup_steps": 5,  # Adam knows no scale yet
    "logging_steps": 1,  # each step is minutes, or dollars
    "save_steps": 10,
    "vllm_max_model_length": 2048,  # or vLLM makes room for all that the model can
}
app = modal.App("grpo")
runs = modal.Volume.from_name("beneath-the-api", create_if_missing=True)
image = modal.Image.debian_slim(python_version="3.12").uv_pip_install(*PINS.split())
# Weights are downloaded once; this image has no compiler for FlashInfer's sampler.
image = image.env({"HF_HOME": "/runs/huggingface", "VLLM_USE_FLASHINFER_SAMPLER": "0"})
with image.imports():  # `modal run` needs none of these on your own machine
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser, get_peft_config

    class JsonlLogger(TrainerCallback):
        """Keeps the trainer's log as JSON lines, with the seconds of all attempts."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            timed = [row["seconds"] for row in state.log_history if "seconds" in row]
            self.started = time.monotonic() - (timed[-1] if timed else 0.0)

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            row = state.log_history[-1]
            row["seconds"] = round(time.monotonic() - self.started, 1)
            lines = [json.dumps(one) + "\n" for one in state.log_history]
            Path(args.output_dir, "log.jsonl").write_text("".join(lines))
            if not math.isfinite(row.get("grad_norm", 0.0)):
                raise FloatingPointError(  # before ruined weights are saved
                    f"step {state.global_step}: the gradient is not a number. Start it "
                    "again to go on from the last checkpoint, or lower the rate."
                )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not modal.is_local():
                runs.commit()  # or the checkpoint would be lost with the container


def keep_base(model: Any, generation: Any) -> None:
    """Put 16-bit base weights back after each hand-over to vLLM.

    TRL adds the adapter to them and takes it off again, and both times rounds them:
    after some steps the adapter would belong to another base.
    """
    parts = [p for name, p in model.named_parameters() if ".base_layer." in name]
    kept = [(p, p.detach().cpu().clone()) for p in parts if p.dtype != torch.float32]
    sync = generation.sync_weights

    def sync_and_restore() -> None:
        sync()
        for parameter, before in kept:
            parameter.data.copy_(before)

    generation.sync_weights = sync_and_restore


def train(
    config: dict[str, Any],
    reward: Callable[..., list[float]],
    trainer_class: Any = None,
    callbacks: tuple = (),
) -> dict[str, Any]:
    """Train a model on what a reward says of its replies; returns the log.

    `config` holds TRL's settings by their names and rows ("data"); it may name an
    "adapter" to go on with, or the "layers_to_transform" of a new one. Raises
    FloatingPointError where the gradient is no number.
    """
    gpu = torch.cuda.is_available()
    config = DEFAULTS | {"use_cpu": not gpu, "bf16": gpu} | config
    names = ("data", "adapter", "layers_to_transform", "flags")
    data, adapter, layers, flags = (config.pop(name, None) for name in names)
    parser = TrlParser((GRPOConfig, ModelConfig))
    if unknown := parser.set_defaults_with_config(**config):
        raise ValueError(f"TRL's GRPOConfig and ModelConfig have no {unknown[0]}")
    args, source = parser.parse_args_and_config(flags or ())
    source.lora_target_modules = source.lora_target_modules or "all-linear"
    torch.backends.cuda.enable_cudnn_sdp(False)  # gives NaN in bf16 with torch 2.13
    torch.manual_seed(args.seed)  # before the adapter, which starts from random numbers
    name, revision = source.model_name_or_path, source.model_revision
    how = {"dtype": source.dtype, "attn_implementation": source.attn_implementation}
    model = AutoModelForCausalLM.from_pretrained(name, revision=revision, **how)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    if lora := None if adapter else get_peft_config(source):
        lora.layers_to_transform = layers
    pays = "environment_factory" if isinstance(reward, type) else "reward_funcs"
    trainer = (trainer_class or GRPOTrainer)(
        model,
        args=args,
        train_dataset=Dataset.from_list(data),
        processing_class=AutoTokenizer.from_pretrained(name, revision=revision),
        peft_config=lora,
        callbacks=[JsonlLogger(), *callbacks],
        **{pays: reward},
    )
    if args.use_vllm:
        keep_base(trainer.model, trainer.vllm_generation)
    mark, what = Path(args.output_dir, "run.crc"), (data, adapter, source)
    digest = str(crc32(repr((what, args.learning_rate, args.seed)).encode()))
    if mark.exists() and mark.read_text() != digest:
        raise ValueError(f"{args.output_dir} is of another run: name a new folder")
    mark.write_text(digest)
    # A checkpoint that was being saved when the run was killed has no such file.
    whole = [p.parent for p in mark.parent.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda p: int(p.name.partition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=last and str(last))
    trainer.save_model(f"{args.output_dir}/adapter")
    return {"log": trainer.state.log_history}


def load_reward(path: str, name: str) -> Callable[..., list[float]]:
    """Take a function or a class out of a file, which may import its neighbours."""
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location("reward_file", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return getattr(module, name)


def read_flags(flags: list[str] | None = None) -> dict[str, Any]:
    """Make a configuration of flags, with the rows of the data in it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="prompts, JSON lines")
    parser.add_argument("--reward", required=True, help="file.py:function")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--adapter", help="to go on with; on Modal of the Volume")
    parser.add_argument("--output_dir", default="grpo", type=os.path.abspath)
    own, of_trl = parser.parse_known_args(flags)
    path, _, function = own.reward.rpartition(":")
    text = Path(path).read_text("utf-8") if Path(path).is_file() else ""
    if not function.isidentifier() or function not in text:
        parser.error(f"--reward is file.py:function; no such thing: {own.reward}")
    lines = own.data.read_text("utf-8-sig").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    return vars(own) | {"data": rows, "reward": [path, function], "flags": of_trl}


@app.function(image=image, gpu=GPU, volumes={"/runs": runs}, timeout=SECONDS, **BOX)
def train_on_gpu(config: dict[str, Any], reward: str) -> None:
    """Train in a container, from the last checkpoint that the Volume has."""
    runs.reload()
    Path("/tmp/reward.py").write_text(reward)  # the text of the reward's file
    score = load_reward("/tmp/reward.py", config.pop("reward")[1])
    os.chdir("/runs")  # on the Volume lie --output_dir and --adapter
    train(config, score)
    runs.commit()


@app.local_entrypoint()
def main(*flags: str) -> None:
    """Train on Modal, and bring the adapter home."""
    config = read_flags(list(flags))
    if GPU not in PRICES or SECONDS < 60:
        raise SystemExit(f"GPU is not of {', '.join(PRICES)}, or BUDGET_USD too little")
    try:
        runs.listdir(config["adapter"] or "/")
    except modal.exception.NotFoundError:
        raise SystemExit(f"the Volume has no --adapter {config['adapter']}") from None
    print(f"Ends after {SECONDS / 3600:.1f} hours, {BUDGET_USD} USD of {GPU}.")
    reward, home = Path(config["reward"][0]), Path(config["output_dir"], "adapter")
    config["output_dir"] = home.parent.name  # of a folder on the Volume
    train_on_gpu.remote(config, reward.read_text("utf-8"))
    home.mkdir(parents=True, exist_ok=True)
    for file in runs.iterdir(f"{home.parent.name}/adapter"):
        (home / Path(file.path).name).write_bytes(b"".join(runs.read_file(file.path)))


if __name__ == "__main__":
    config = read_flags()
    train(config, load_reward(*config.pop("reward")))
