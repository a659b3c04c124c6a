"""ExecuTorch bundles run in a process of their own, and by ExecuTorch's own runner."""

import subprocess
import sys

from benchmarks.hrm_tiny_release import SHIPPED, read_rows

ROWS = read_rows(SHIPPED / "questions.jsonl")[::180]


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def run_cli(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after the code `before`."""
    return run_python(
        f"import sys\n{before}\nfrom hrm_edge.__main__ import main\nmain()", *arguments
    )


RUNNER = """
import json, sys
import executorch.extension.llm.custom_ops.custom_ops, executorch.kernels.quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
runner = TextLLMRunner(f"{sys.argv[1]}/model.pte", f"{sys.argv[1]}/tokenizer.json")
config, answers = GenerationConfig(echo=False, max_new_tokens=40, temperature=0.0), []
for prompt in json.loads(sys.argv[2]):
    pieces = []
    runner.reset()
    runner.generate(prompt, config, pieces.append, None)
    answers.append("".join(pieces))
print("\\n" + json.dumps(answers))
"""
