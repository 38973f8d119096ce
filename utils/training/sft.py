"""Supervised fine-tuning (SFT) of a chat model, by LoRA (arXiv 2106.09685): TRL, PEFT.

    python sft.py --data examples.jsonl --model_name_or_path Qwen/Qwen3-0.6B
    GPU=H100 BUDGET_USD=10 modal run --detach sft.py --data examples.jsonl ...

A line of the data is {"prompt": [messages], "completion": [messages]}; other flags are
TRL's, but load_in_4bit has no effect. Started again, a run goes on where it stopped.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any
from zlib import crc32

import modal

BOX = {"cpu": 4, "memory": 32_768}  # prices: USD an hour of a GPU in such a container
PRICES = {"L4": 1.25, "L40S": 2.40, "A100-80GB": 2.95, "H100": 4.40}
GPU, BUDGET_USD = os.environ.get("GPU", "L40S"), os.environ.get("BUDGET_USD", "5")
SECONDS = min(86_400, int(3600 * float(BUDGET_USD) / PRICES.get(GPU, 50)))  # at most
PINS = "torch==2.13.0 transformers==5.23.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0"
DEFAULTS = {"learning_rate": 2e-4, "use_peft": True, "lora_r": 32, "save_steps": 100}
app = modal.App("sft")
runs = modal.Volume.from_name("beneath-the-api", create_if_missing=True)
image = modal.Image.debian_slim(python_version="3.12").uv_pip_install(*PINS.split())
image = image.env({"HF_HOME": "/runs/huggingface"})  # weights are downloaded once
with image.imports():  # `modal run` needs none of these on your own machine
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config

    class JsonlLogger(TrainerCallback):  # JSON lines, with seconds of all attempts
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            spent = state.log_history[-1]["seconds"] if state.log_history else 0.0
            self.started = time.monotonic() - spent

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            state.log_history[-1]["seconds"] = round(time.monotonic() - self.started, 1)
            lines = [json.dumps(row) + "\n" for row in state.log_history]
            Path(args.output_dir, "log.jsonl").write_text("".join(lines))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not modal.is_local():
                runs.commit()  # or the checkpoint would be lost with the container


def check_mask(rows: list[dict], tokenizer: Any) -> list[list]:
    """Check that replies are learned to their end; return the first one's mask."""
    for row in rows:
        end = [label for label in row["labels"] if label != -100][-2:]  # or line break
        if row["labels"][0] != -100 or tokenizer.eos_token_id not in end:
            raise ValueError("a prompt is learned, or a reply not to its ending token")
    pairs = zip(rows[0]["input_ids"], rows[0]["labels"], strict=True)
    return [[tokenizer.decode([token]), label != -100] for token, label in pairs]


def train(config: dict, trainer_class: Any = None, callbacks: tuple = ()) -> dict:
    """Fine-tune by TRL's settings on rows ("data"); returns the log and the mask."""
    gpu = torch.cuda.is_available()
    config = DEFAULTS | {"use_cpu": not gpu, "bf16": gpu} | config
    names = ("data", "validation", "adapter", "layers_to_transform", "flags")
    data, validation, adapter, layers, flags = (config.pop(n, None) for n in names)
    config.setdefault("eval_strategy", "epoch" if validation else "no")
    parser = TrlParser((SFTConfig, ModelConfig))
    if unknown := parser.set_defaults_with_config(**config):
        raise ValueError(f"TRL's SFTConfig and ModelConfig have no {unknown[0]}")
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
    trainer = (trainer_class or SFTTrainer)(
        model,
        args=args,
        train_dataset=Dataset.from_list(data),
        eval_dataset=Dataset.from_list(validation) if validation else None,
        processing_class=AutoTokenizer.from_pretrained(name, revision=revision),
        peft_config=lora,
        callbacks=[JsonlLogger(), *callbacks],
    )
    if len(trainer.train_dataset) < len(data):
        raise ValueError("some examples have no reply within max_length tokens")
    mask = check_mask(trainer.train_dataset, trainer.processing_class)
    mark, what = Path(args.output_dir, "run.crc"), (data, adapter, source)
    digest = str(crc32(repr((what, args.learning_rate, args.seed)).encode()))
    if mark.exists() and mark.read_text() != digest:
        raise ValueError(f"{args.output_dir} is of another run: name a new folder")
    mark.write_text(digest)
    whole = [p.parent for p in mark.parent.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda p: int(p.name.partition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=last and str(last))
    trainer.save_model(f"{args.output_dir}/adapter")
    return {"log": trainer.state.log_history, "mask": mask}


def read_flags(flags: list[str] | None = None) -> dict[str, Any]:
    """Make a configuration of flags, with the files' rows in it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", required=True, help="JSON lines to learn")
    parser.add_argument("--validation", help="JSON lines to keep apart, for their loss")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--adapter", help="to go on with; on Modal of the Volume")
    parser.add_argument("--output_dir", default="sft", type=os.path.abspath)
    own, of_trl = parser.parse_known_args(flags)
    config = vars(own) | {"flags": of_trl}
    for name in filter(config.get, ("data", "validation")):
        lines = Path(config[name]).read_text("utf-8-sig").split("\n")
        config[name] = [json.loads(line) for line in lines if line.strip()]
    return config


@app.function(image=image, gpu=GPU, volumes={"/runs": runs}, timeout=SECONDS, **BOX)
def train_on_gpu(config: dict[str, Any]) -> None:
    """Train in a container, from the last checkpoint that the Volume has."""
    runs.reload()
    os.chdir("/runs")  # on the Volume lie --output_dir and --adapter
    train(config)
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
    train_on_gpu.remote(config | {"output_dir": Path(config["output_dir"]).name})
    (home := Path(config["output_dir"], "adapter")).mkdir(parents=True, exist_ok=True)
    for file in runs.iterdir(f"{home.parent.name}/adapter"):
        (home / Path(file.path).name).write_bytes(b"".join(runs.read_file(file.path)))


if __name__ == "__main__":
    train(read_flags())
