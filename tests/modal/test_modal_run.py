"""The recipes by Modal's own command line, each a file alone in an empty folder.

Modal's client talks to the stand-in; its container trains a tiny model.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file
from standin import Standin
from tiny import EXAMPLES, furthest, tiny_model

from utils.training import sft

pytestmark = [pytest.mark.modal, pytest.mark.slow, pytest.mark.timeout(1800)]
FLAGS = "--max_steps 4 --save_steps 2 --logging_steps 1 --lora_r 4 --report_to none"
REWARD = """
def even(completions, wanted, **_):
    return [float(len(c[0]["content"]) % 2 == w) for c, w in zip(completions, wanted)]
"""


class Mortal(Standin):
    """A stand-in whose container is gone after its first commit."""

    async def VolumeCommit(self, request):  # noqa: N802
        reply = await super().VolumeCommit(request)
        if self.calls["VolumeCommit"] == 1:
            for process in self.containers.values():
                process.kill()
        return reply


@pytest.fixture
def stranger(tmp_path):
    """An empty folder with the data, on a machine that has Modal and no PyTorch."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "torch.py").write_text("raise ImportError('no torch here')")
    folder = tmp_path / "stranger"
    folder.mkdir()
    prompts = [{"prompt": row["prompt"], "wanted": 0} for row in EXAMPLES]
    for name, rows in (("examples", EXAMPLES), ("prompts", prompts)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "reward.py").write_text(REWARD)
    return folder


def modal_run(file, folder, flags, standin, **more):
    """Run `modal run` on a copy of a recipe; returns the finished process."""
    shutil.copy(ROOT / "utils" / "training" / file, folder)
    command = [sys.executable, "-m", "modal", "run", file, *flags]
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **standin.env, **more}
    env["PYTHONPATH"] = str(folder.parent / "bare")
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def steps(folder):
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "loss" in row]


def test_sft_goes_on_after_a_kill_and_brings_the_adapter_home(stranger, tmp_path):
    model = tiny_model(tmp_path / "tiny")
    flags = ["--data", "examples.jsonl", "--model_name_or_path", model, *FLAGS.split()]
    with Mortal() as here:
        kept = here.volume("beneath-the-api") / "sft"
        first = modal_run("sft.py", stranger, flags, here)
        assert first.returncode and not (stranger / "sft").exists()
        assert [p.name for p in kept.glob("checkpoint-*")] == ["checkpoint-2"]
        money = {"BUDGET_USD": "8.8", "GPU": "H100"}
        second = modal_run("sft.py", stranger, flags, here, **money)
        assert second.returncode == 0, second.stderr
        assert steps(kept) == [1, 2, 3, 4]
        one, two = [found for found, *_ in here.functions.values()]
    assert not here.unknown and not here.errors
    assert "Ends after 2.1 hours, 5 USD of L40S." in first.stdout
    assert (one.resources.gpu_config.gpu_type, one.timeout_secs) == ("L40S", 7500)
    assert (two.resources.gpu_config.gpu_type, two.timeout_secs) == ("H100", 7200)
    # Logs are shown, and the second run took two steps, not four.
    assert [run.stdout.count("{'loss'") for run in (first, second)] == [2, 2]
    # As if it had not been killed, and run here.
    torch.set_num_threads(1)
    here_flags = [*flags, "--output_dir", str(tmp_path / "here")]
    here_flags[1] = str(stranger / "examples.jsonl")
    sft.train(sft.read_flags(here_flags))
    assert furthest(adapter(stranger / "sft"), adapter(tmp_path / "here")) < 1e-4


def test_grpo_takes_a_reward_and_an_adapter_of_the_volume(stranger, tmp_path):
    model = tiny_model(tmp_path / "tiny")
    common = ["--model_name_or_path", model, *FLAGS.split()]
    tried = "--data prompts.jsonl --reward reward.py:even --adapter stranger/adapter "
    tried += "--num_generations 4 --per_device_train_batch_size 4 "
    tried += "--gradient_accumulation_steps 1 --max_completion_length 8"
    # What goes to "." is in the folder of this one's name on the Volume.
    taught = ["--data", "examples.jsonl", "--output_dir", ".", *common]
    with Standin() as here:
        done = modal_run("sft.py", stranger, taught, here)
        assert done.returncode == 0, done.stderr
        practice, calls = [*tried.split(), *common], here.calls["FunctionMap"]
        elsewhere = "the Volume has no --adapter elsewhere/adapter"
        for more, money, why in (
            ([], {"GPU": "H100:2"}, "GPU is not of L4, L40S, A100-80GB, H100, or"),
            ([], {"BUDGET_USD": "0"}, "or BUDGET_USD too little"),
            (["--adapter", "elsewhere/adapter"], {}, elsewhere),
            (["--reward", "reward.py:odd"], {}, "no such thing: reward.py:odd"),
            (["--reward", "reward.py:"], {}, "no such thing: reward.py:"),
        ):
            done = modal_run("grpo.py", stranger, [*practice, *more], here, **money)
            assert done.returncode and why in " ".join(done.stderr.split()), why
            assert "Traceback" not in done.stderr
        assert here.calls["FunctionMap"] == calls  # nothing was rented
        done = modal_run("grpo.py", stranger, practice, here)
        assert done.returncode == 0, done.stderr
        assert steps(here.volume("beneath-the-api") / "grpo") == [1, 2, 3, 4]
    assert not here.unknown and not here.errors
    start, end = adapter(stranger), adapter(stranger / "grpo")
    assert 0 < furthest(start, end) < 1e-2  # it went on from there
