"""lm-eval's OpenAI-completions adapter against `hrm-edge serve`, unmodified.

    pip install "lm-eval[api]" transformers
    hrm-edge serve BUNDLE --port 8080 &
    python -m benchmarks.server_lm_eval CHECKPOINT QUESTIONS.jsonl --url http://127.0.0.1:8080

Two tasks over the same rows (`instruction`, `response`), written to a temporary folder:
`hrm_generate` compares answers (the server puts the prompt in HRM-Text's format), `hrm_choose` asks
which of four responses is the likelier. The second needs `echo` and `logprobs`. A prefix that is
read in both directions has no log-probabilities, so lm-eval must send the prompt format itself: it
gets CHECKPOINT's tokenizer with that format as chat template, and --apply_chat_template.
"""

import argparse
import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from hrm_edge.prompt import CONDITIONS, PROMPT_END, PROMPT_START

TEMPLATE = (
    "{% for m in messages %}"
    + PROMPT_START
    + CONDITIONS["direct"]
    + "{{ m['content'] | trim }}"
    + PROMPT_END
    + "{% endfor %}"
)
GENERATE = """task: hrm_generate
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{instruction}}"
doc_to_target: "{{response}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 200, temperature: 0}
metric_list: [{metric: exact_match}]
"""
CHOOSE = """task: hrm_choose
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{instruction}}"
doc_to_choice: choices
doc_to_target: right
target_delimiter: ""
metric_list: [{metric: acc}]
"""


def main() -> None:
    """Write the tasks, run lm_eval on each, print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--name", required=True, help="the model's name at the server")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--lm-eval", default="lm_eval", help="the program")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write(folder, options.checkpoint, _rows(options.questions, options.limit))
        for task, extra in (("hrm_generate", []), ("hrm_choose", ["--apply_chat_template"])):
            tokenizer = f"tokenizer={folder / 'tokenizer'},tokenizer_backend=huggingface"
            if not extra:
                tokenizer = "tokenizer_backend=None,tokenized_requests=False"
            arguments = f"model={options.name},base_url={options.url}/v1/completions,{tokenizer}"
            command = [options.lm_eval, "--model", "local-completions", "--tasks", task]
            command += ["--model_args", arguments, "--include_path", scratch, *extra]
            subprocess.run(command, check=True)


def _rows(path: Path, limit: int) -> list[dict[str, object]]:
    """Rows with four choices each: the right response, and those of three other rows."""
    draw = random.Random(0)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    draw.shuffle(rows)
    found = []
    for row in rows[:limit]:
        others = {r["response"] for r in rows if r["task"] == row["task"]} - {row["response"]}
        choices = [*draw.sample(sorted(others), 3), row["response"]]
        draw.shuffle(choices)
        right = choices.index(row["response"])
        found.append({**row, "choices": choices, "right": right})
    return found


def _write(folder: Path, checkpoint: Path, rows: list[dict[str, object]]) -> None:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, task in (("generate", GENERATE), ("choose", CHOOSE)):
        text = task.replace("ROWS", json.dumps(str(data)))
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(checkpoint / name, tokenizer / name)
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = TEMPLATE
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


if __name__ == "__main__":
    main()
