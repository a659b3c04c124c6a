"""Inside the emulation of aarch64_smoke.sh: golden vectors through the installed runtime, a server.

    python aarch64_check.py DIRECTORY [VECTORS]

DIRECTORY holds golden.json and the bundles kv32 and kv8; VECTORS limits how many are compared.
Prints a table in Markdown; the exit code is 1 if an answer differs.
"""

import json
import platform
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hrm_edge.runtime import Model, load

PACKAGES = ("hrm-edge", "numpy", "onnxruntime", "tokenizers")
PORT = 8093


def differences(model: Model, vectors: list[dict[str, Any]], name: str, most: int) -> list[str]:
    """The prompts whose ids or greedy answer are not those of golden.json."""
    found = []
    for i, vector in enumerate(vectors):
        ids = model.encode(vector["prompt"], vector["condition"])
        answer = model.generate(
            vector["prompt"], condition=vector["condition"], max_tokens=most, speculate=False
        )
        if ids != vector["ids"] or answer.tokens != vector["answers"][name]:
            found.append(f"{vector['prompt']!r}: {answer.tokens}, not {vector['answers'][name]}")
        print(f"KV {name}: {i + 1} of {len(vectors)}", file=sys.stderr, flush=True)
    return found


def served(bundle: Path, vector: dict[str, Any]) -> str:
    """What `hrm-edge serve` answers to a vector's prompt."""
    command = [str(Path(sys.executable).parent / "hrm-edge"), "serve", str(bundle)]
    server = subprocess.Popen([*command, "--port", str(PORT)])
    body = {"model": bundle.name, "prompt": vector["prompt"], "condition": vector["condition"]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        for _ in range(120):
            assert server.poll() is None, "the server ended"
            time.sleep(1)
            try:
                with urllib.request.urlopen(request, timeout=300) as reply:
                    return json.load(reply)["choices"][0]["text"]
            except ConnectionError:
                continue
            except urllib.error.URLError as error:
                if not isinstance(error.reason, ConnectionError):
                    raise
        raise TimeoutError("the server did not come up")
    finally:
        server.terminate()
        server.wait(60)


def main() -> int:
    """Compare and print; the exit code."""
    directory, limit = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    golden = json.loads((directory / "golden.json").read_text(encoding="utf-8"))
    vectors = golden["vectors"][: limit or None]
    system = f"{platform.machine()}, {' '.join(platform.libc_ver())}, Python "
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    print(f"\n{system}{platform.python_version()}, {versions}\n")
    print("| bundle | identical answers |\n|---|---|")
    failed: list[str] = []
    for name, way in golden["ways"].items():
        how: dict[str, Any] = {"threads": 1} | way
        how.pop("kv_bits")
        model = load(directory / f"kv{way['kv_bits']}", **how)
        found = differences(model, vectors, name, golden["max_tokens"])
        print(f"| int4, KV {name} | {len(vectors) - len(found)} of {len(vectors)} |", flush=True)
        failed += found
    tokenizer = load(directory / "kv8", threads=1).tokenizer
    expected = tokenizer.decode(vectors[0]["answers"]["8"])
    text = served(directory / "kv8", vectors[0])
    print(f"\n`hrm-edge serve` answered {text!r}")
    failed += [] if text == expected else [f"serve: {text!r}, not {expected!r}"]
    print(*failed, sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
