"""Serve a model by one command.

    python -m utils.serving model.gguf --port 8000
    python -m utils.serving runs/full/06b_average/adapter --key-file keys.txt

A GGUF file is served as it is. A folder is what a training left, an adapter or merged
weights: it is exported on the way.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from utils.serving import server


def find_model(path: Path, base: str, quantization: str) -> Path:
    """Return the GGUF file of a path: that file, or what a folder is exported to."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise SystemExit(f"no file or folder {path}")
    from utils.serving import export  # needs PyTorch, which a GGUF file does not

    if (path / "adapter_config.json").exists():
        return export.to_gguf(base, path, quantization)
    return export.to_gguf(str(path), None, quantization)


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(
        "python -m utils.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known, add = server.Settings("", ""), parser.add_argument
    add("model", type=Path, help="a GGUF file, or the folder of an adapter")
    add("--host", default="127.0.0.1", help="0.0.0.0: all of this machine's addresses")
    add("--port", type=int, default=8000)
    add("--name", help="of the model in requests; else that of file or folder")
    add("--api-key", help="else SERVING_API_KEY; visible to other users of the machine")
    add("--key-file", type=Path, help="one key a line; each may ask")
    add("--engines", type=int, default=server.cores(), help="processes, one a core")
    for name in ("slots", "waiting", "max_tokens", "context", "grace"):
        default = getattr(known, name)
        flag = "--" + name.replace("_", "-")
        add(flag, type=type(default), default=default, help=f"{default}")
    add("--base", default="smollm2-135m", help="of an adapter: a folder like that one")
    add("--quantization", default="Q8_0", help="of what is exported: F16, Q8_0 ...")
    add("--until-eof", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    keys = [args.api_key or os.environ.get("SERVING_API_KEY", "")]
    if args.key_file:
        keys += args.key_file.read_text().split()
    folder = args.model.parent if args.model.name == "adapter" else args.model
    settings = server.Settings(
        gguf=str(find_model(args.model, args.base, args.quantization).resolve()),
        name=args.name or folder.resolve().stem,
        keys=tuple(key for key in keys if key),
        engines=args.engines,
        slots=args.slots,
        waiting=args.waiting,
        max_tokens=args.max_tokens,
        context=args.context,
        grace=args.grace,
    )
    asyncio.run(server.run(settings, args.host, args.port, args.until_eof))


if __name__ == "__main__":
    sys.exit(main())
