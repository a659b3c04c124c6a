"""`hrm-edge eval`: how far a bundle is from its checkpoint; what it scores in public benchmarks.

Figures of the first kind come from the room that exports, of the second from the one that runs;
each is loaded by name when it is needed.
"""

import hashlib
import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hrm_edge import shipped
from hrm_edge.bundle import Bundle, Decoding
from hrm_edge.config import KV_SHARES
from hrm_edge.errors import HRMEdgeError
from hrm_edge.names import CONFIG, MANIFEST
from hrm_edge.number_list import Numbers
from hrm_edge.progress import status

FILE = click.Path(path_type=Path)
FLOAT32 = {"bits": 32, "head_bits": 32, "embedding_bits": 32, "kv_bits": 32}
CLIENTS = 4  # requests at a time to a server, where nothing else is said
FIGURES = ("data", "reference", "samples", "max_kl", "min_top1", "plot", "sources")
SUITE = (
    "data_dir",
    "limit",
    "seed",
    "shard",
    "rows",
    "threads",
    "out",
    "against",
    "invalid",
    "key",
)


@click.command(name="eval")
@click.argument("bundle")
@click.option("--data", type=FILE, help="JSONL; default: shipped prompts.")
@click.option("--reference", type=FILE, help="The original checkpoint.")
@click.option("--samples", type=click.IntRange(1), help="Use the first so many lines.")
@click.option("--max-kl", type=float, help="Fail above this mean KL divergence (nats).")
@click.option("--min-top1", type=float, help="Fail below this share of equal top tokens (0 to 1).")
@click.option("--l-cycles", type=Numbers(), help="L passes of each H cycle for the answers.")
@click.option(
    "--kv-share", type=click.Choice(KV_SHARES), default="none", help="Which passes share slots."
)
@click.option(
    "--sources/--no-sources", default=None, help="Measure each source of error alone (default)."
)
@click.option("--plot", type=FILE, help="PNG: error by layer and pass.")
@click.option(
    "--suite",
    metavar="NAMES",
    help="Answer gsm8k, math, drop, mmlu, arc_c, hellaswag, winogrande, boolq (joined by commas), "
    "or the questions of a .jsonl file.",
)
@click.option("--data-dir", type=FILE, help="Data sets as they lie on the hub; default: the hub.")
@click.option("--limit", type=int, help="So many questions of each suite, drawn by --seed.")
@click.option("--seed", type=int, help="Draws the questions of --limit; default: 0.")
@click.option("--shard", metavar="I/N", help="Only part I of N of the questions.")
@click.option("--parallel", "rows", type=int, help="Questions at once; default: as many as pay.")
@click.option("-t", "--threads", type=int, help="Default: one per physical performance core.")
@click.option("-o", "--out", type=FILE, help="Keep answers there; a stopped run goes on from them.")
@click.option("--against", type=FILE, help="Compare with the answers that another run kept.")
@click.option(
    "--invalid",
    type=click.Choice(["chance", "wrong"]),
    help="How an answer that is no valid letter counts; default: chance, as in the paper.",
)
@click.option("--api-key", "key", envvar="HRM_EDGE_API_KEY", help="Where BUNDLE is a server.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, suite: str | None, as_json: bool, kv_share: str, **values: Any) -> None:
    """Perplexity and exact match of BUNDLE; with --reference, also how far it is from that.

    With --suite its scores in public benchmarks: of BUNDLE, of a checkpoint (in float32), or of a
    server of ours at the address http://...
    """
    for name in SUITE if suite is None else FIGURES:
        if _given(name):
            flag = {"rows": "parallel", "key": "api-key"}.get(name, name).replace("_", "-")
            than = "for --suite alone" if suite is None else "not for --suite"
            raise HRMEdgeError(f"--{flag} is {than}; leave it out")
    how = Decoding(values.pop("l_cycles"), kv_share)
    if suite is None:
        _figures(shipped.bundle(bundle), how, values, as_json)
    else:
        _Suites(bundle, suite, how, values).run(as_json)


def _given(name: str) -> bool:
    """Whether an option stands in the command itself, not in a file of defaults or a variable."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _figures(bundle: Path, how: Decoding, values: Mapping[str, Any], as_json: bool) -> None:
    """Without --reference it needs nothing beyond the device runtime."""
    report = importlib.import_module("hrm_edge.export.evaluate.report")
    table = importlib.import_module("hrm_edge.export.evaluate.table")
    reference = values["reference"]
    if reference is not None:
        reference = shipped.checkpoint(reference) or reference
    alone = values["sources"] is not False
    gate = report.Gate(values["data"], values["max_kl"], values["min_top1"], sources=alone)
    quality = report.evaluate(bundle, gate, reference, values["samples"], values["plot"], how)
    click.echo(
        json.dumps(quality, indent=2) if as_json else "\n".join(table.quality_lines(quality))
    )
    gate.check(quality)


@dataclass(frozen=True)
class _Suites:
    """A run over benchmarks; `values` are the command's further options."""

    who: str
    names: str
    how: Decoding
    values: Mapping[str, Any]

    def run(self, as_json: bool) -> None:
        """Answer, score, and print."""
        run = importlib.import_module("hrm_edge.runtime.suites.run")
        report = importlib.import_module("hrm_edge.runtime.suites.report")
        data = importlib.import_module("hrm_edge.runtime.suites.data").Data(self.values["data_dir"])
        choice = run.Choice(self.values["limit"], self.values["seed"] or 0, self._shard())
        other = self.values["against"] and report.read(self.values["against"])
        suites = run.named(self.names)
        with ExitStack() as stack:
            about, answerer = self._answerer(stack)
            rows = run.Run(suites, data, choice, self.values["out"]).rows(answerer, about)
        if self.values["invalid"] == "wrong":
            rows = [row | {"value": row["strict"]} for row in rows]
            other = other and [row | {"value": row["strict"]} for row in other]
        found = report.summary(rows, suites)
        changed = report.compare(rows, other) if other else None
        if as_json:
            compared = {"against": changed} if changed else {}
            click.echo(
                json.dumps({**about, "suites": found, **compared, "answers": rows}, indent=1)
            )
            return
        click.echo("\n".join(report.lines(found)))
        if changed:
            click.echo("\n".join(report.comparison_lines(changed)))

    def _shard(self) -> tuple[int, int]:
        if self.values["shard"] is None:
            return 1, 1
        part, _, parts = self.values["shard"].partition("/")
        if not (part.isdecimal() and parts.isdecimal()):
            shown = self.values["shard"]
            raise HRMEdgeError(f"shard is {shown!r}, expected such as 1/4, 2/4, 3/4, 4/4")
        return int(part), int(parts)

    def _answerer(self, stack: ExitStack) -> tuple[dict[str, Any], Callable[[], Any]]:
        """What answers depend on, and what loads whoever gives them."""
        answering = importlib.import_module("hrm_edge.runtime.suites.answering")
        if self.who.startswith(("http://", "https://")):
            for name in ("threads", "l_cycles", "kv_share"):
                if _given(name):
                    flag = name.replace("_", "-")
                    raise HRMEdgeError(f"--{flag} is the server's own; leave it out")
            rows = self.values["rows"] or CLIENTS
            server = answering.There(self.who, self.values["key"], rows)
            return {"model": server.name, "decoding": None}, lambda: server
        path = self._bundle(stack)
        manifest = Bundle.open(path).manifest
        hashes = "\n".join(file.sha256 for file in manifest.files.values())
        digest = hashlib.sha256(hashes.encode()).hexdigest()
        decoding = {"l_cycles": self.how.l_cycles, "kv_share": self.how.kv_share}

        loading: dict[str, Any] = {"threads": self.values["threads"], "rows": self.values["rows"]}
        loading["max_context"] = min(answering.LONGEST, manifest.max_seq_len)

        def here() -> Any:
            load = importlib.import_module("hrm_edge.runtime").load
            with status("loading the bundle"):
                return answering.Here(load(path, **loading, **decoding))

        return {"model": digest, "decoding": decoding}, here

    def _bundle(self, stack: ExitStack) -> Path:
        """The bundle, or one of float32 made of a checkpoint for this run."""
        path = Path(self.who)
        if (path / MANIFEST).exists() or not (path / CONFIG).exists():
            return shipped.bundle(self.who)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        export = importlib.import_module("hrm_edge.export").export
        with status("a bundle of the checkpoint in float32"):
            return export(path, scratch / "float32", gate=None, **FLOAT32).path
