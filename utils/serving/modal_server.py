"""A larger model behind vLLM on a Modal GPU: an endpoint that sleeps when unused.

    ADAPTER=/runs/06_grpo_seed_0/adapter modal deploy -m utils.serving.modal_server

Settings come from the environment of that command: BASE (name@revision on the Hub),
ADAPTER (a folder on the Volume), MODEL_NAME (what requests call the model), GPU (H100:2
for two), RANK (of the adapter, or more). Nobody gets in without a proxy auth token,
which you make in Modal's settings: clients send it as the headers Modal-Key and
Modal-Secret. There is no other key, and no limit for each client.
"""

import os
import subprocess
import time

import modal

from utils import remote
from utils.serving.export import TEMPLATE

MINUTES = 60
DEFAULTS = {
    "BASE": "Qwen/Qwen3-4B-Instruct-2507@cdbee75f17c01a7cc42f958dc650907174af0554",
    "ADAPTER": "/runs/06_grpo_seed_0/adapter",
    "MODEL_NAME": "tidewater",  # NAME alone is the machine's, under WSL
    "GPU": "L4",
    "RANK": "32",
}
# In the container they come from the image, as they were when it was deployed.
SETTINGS = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}


def command() -> list[str]:
    """Return the command that serves the base model with its adapter."""
    repository, _, revision = SETTINGS["BASE"].partition("@")
    words = ["vllm", "serve", repository, "--port", "8000", "--max-model-len", "1024"]
    words += ["--revision", revision] if revision else []
    # What a request leaves out is not taken from the model's own settings.
    words += ["--generation-config", "vllm", "--chat-template", TEMPLATE]
    words += ["--enable-lora", "--max-lora-rank", SETTINGS["RANK"]]
    if count := SETTINGS["GPU"].partition(":")[2]:
        words += ["--tensor-parallel-size", count]
    return [*words, "--lora-modules", f"{SETTINGS['MODEL_NAME']}={SETTINGS['ADAPTER']}"]


app = modal.App("beneath-the-api-serving")
image = modal.Image.debian_slim(python_version="3.12").uv_pip_install(*remote.VLLM)
# ENV switches FlashInfer's sampler off: the image has no compiler for it.
image = image.env(remote.ENV | SETTINGS).add_local_python_source("utils")


@app.function(
    image=image,
    gpu=SETTINGS["GPU"],
    cpu=remote.CORES,
    memory=1024 * remote.GIB,
    volumes={"/runs": modal.Volume.from_name(remote.VOLUME, create_if_missing=True)},
    scaledown_window=5 * MINUTES,  # idle time that is paid for
    min_containers=0,  # 1: nobody waits for a start, and it costs day and night
    max_containers=2,  # a limit on the bill
    timeout=10 * MINUTES,
)
@modal.concurrent(max_inputs=32)
@modal.web_server(8000, startup_timeout=10 * MINUTES, requires_proxy_auth=True)
def serve() -> None:
    """Start vLLM; Modal waits until its port answers."""
    subprocess.Popen(command())


def proxy_keys() -> dict[str, str]:
    """Return the headers that Modal's proxy wants; ValueError without their values."""
    names = {"Modal-Key": "MODAL_PROXY_KEY", "Modal-Secret": "MODAL_PROXY_SECRET"}
    missing = [name for name in names.values() if not os.environ.get(name)]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing: make a proxy auth token in Modal's "
            "settings, set both in the environment, and start the kernel again"
        )
    return {header: os.environ[name] for header, name in names.items()}


def try_out(question: str) -> str:
    """Run the endpoint for one question; return its answer, and how long that took.

    Raises RuntimeError where BUDGET_USD leaves too little.
    """
    import openai

    keys = proxy_keys()
    bill = remote.Job("a server", SETTINGS["GPU"], calls=1, minutes=10)
    bill.reserve()
    started = time.monotonic()
    try:
        with app.run():
            url = f"{serve.get_web_url()}/v1"
            how = {"api_key": "none", "default_headers": keys}
            how |= {"timeout": 900, "max_retries": 0}  # it starts for one request
            with openai.OpenAI(base_url=url, **how) as client:
                reply = client.chat.completions.create(
                    model=SETTINGS["MODEL_NAME"],
                    messages=[{"role": "user", "content": question}],
                    temperature=0,
                    max_tokens=192,
                )
    finally:
        took = time.monotonic() - started
        remote.charge("a server, less the limit", bill.usd(took / 60) - bill.most)
    return f"{reply.choices[0].message.content}\nafter {took:.0f} s, start included"
