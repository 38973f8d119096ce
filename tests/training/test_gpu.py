"""What would only show on a rented GPU: checked here, before anything is rented."""

from pathlib import Path

import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from tiny import EXAMPLES, tiny_model

from utils.training import grpo, sft, weights
from utils.training.engine import Engine, _rows_that_fit

# As models on the Hub have it: the text that TRL compares with.
TEMPLATES = {
    name: (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text()
    for name in ("qwen3_instruct_2507", "qwen2_5")
}


def test_any_chatml_template_teaches_to_end_and_is_checked_here(tmp_path, capsys):
    for name, template in TEMPLATES.items():
        tiny = tiny_model(tmp_path / name, template=template)
        mask = weights.check_template(tiny, EXAMPLES)
        wanted = EXAMPLES[0]["completion"][0]["content"] + "<|im_end|>\n"
        assert "".join(text for text, learned in mask if learned) == wanted
        config = {"model_name_or_path": tiny, "data": EXAMPLES, "max_steps": 1}
        config |= {"output_dir": str(tmp_path / "run" / name), "report_to": "none"}
        assert sft.train(config)["mask"] == mask  # TRL's is the same
    forgets = weights.TEMPLATE.replace("<|im_end|>", "<|im_start|>")
    tiny = tiny_model(tmp_path / "forgets", template=forgets)
    with pytest.raises(ValueError, match="not to its ending token"):
        weights.check_template(tiny, EXAMPLES)
    assert weights.check_template("owner/nowhere", EXAMPLES) is None
    assert "not checked here, but before the first step" in capsys.readouterr().out


class Vllm:
    """Hands weights over as TRL does to vLLM: the adapter is merged, and taken off."""

    def __init__(self, model):
        self.model = model

    def sync_weights(self):
        self.model.merge_adapter()
        self.given = {n: p.clone() for n, p in self.model.named_parameters()}
        self.model.unmerge_adapter()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_base_weights_stay_what_they_are_while_vllm_gets_others(dtype, tmp_path):
    def drift(keep):
        model, _ = weights.load(tiny, dtype=dtype)
        lora = LoraConfig(r=4, lora_alpha=64, target_modules="all-linear")
        model = get_peft_model(model, lora)
        base = [(n, p) for n, p in model.named_parameters() if ".base_layer." in n]
        start = {name: weight.clone() for name, weight in base}
        vllm = Vllm(model)
        if keep:
            grpo.keep_base(model, vllm)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        for _ in range(3):
            vllm.sync_weights()
        assert any((vllm.given[n] != start[n]).any() for n in start)
        return max((w - start[name]).abs().max().item() for name, w in base)

    tiny = tiny_model(tmp_path / "tiny")
    assert drift(keep=True) < 1e-5
    assert (drift(keep=False) > 1e-3) == (dtype == "bfloat16")


def test_on_a_gpu_nothing_is_padded_and_batches_fit(tmp_path, monkeypatch):
    weights.load(tiny := tiny_model(tmp_path / "tiny"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    model = Engine(tiny, backend="transformers", max_new_tokens=8)
    net, masks = model.generators[0], []
    generate = net.generate

    def spy(**how):
        masks.append(how["attention_mask"])
        return generate(**how)

    monkeypatch.setattr(net, "generate", spy)
    prompts = [[1, 5, 6], [1, 7], [1, 8, 9], [1, 7, 9]]
    together = model.sample_ids(prompts)
    assert [mask.shape for mask in masks] == [(1, 2), (3, 3)]
    assert all(mask.all() for mask in masks)
    assert together == [model.sample_ids([prompt])[0] for prompt in prompts]
    # Four layers, two heads of 16, keys and values, four bytes: 256 KiB a reply.
    assert _rows_that_fit(net, 4 << 20) == 4
