"""Does Android 16 still have everything that the app refers to?

python checks/api36.py STUBS CLASSES

The app is compiled against the stubs of an old Android, with the few newer classes added by hand.
STUBS holds Python's type stubs of API 36 (the package chaquopy-stubs-android). Every class, method
with its number of arguments, and field of android.*, java.* and org.json that the compiled CLASSES
name is looked up there, in base classes too.
"""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REFERENCE = re.compile(r"= (Class|Methodref|InterfaceMethodref|Fieldref)\s+\S+\s+// *(.+)$")
PLATFORM = ("android/", "java/", "org/json/")
LAMBDAS = "java/lang/invoke/"  # what Kotlin compiles lambdas to, and D8 rewrites for Android
OBJECT = "java.lang.Object"


@dataclass
class Stub:
    """A class: its members with their numbers of arguments (None: a field), and its bases."""

    bases: list[str]
    members: dict[str, set[int | None]] = field(default_factory=dict)


class Platform:
    """The stubs of a platform, parsed as they are asked for."""

    def __init__(self, root: Path) -> None:
        self._root, self._classes = root, dict[str, Stub]()
        self._modules = set[str]()

    def find(self, name: str) -> Stub | None:
        """The stub of the class `name` (android.view.View.OnClickListener), None without one."""
        package = name
        while "." in package:
            package = package.rpartition(".")[0]
            self._parse(package)
        return self._classes.get(name)

    def has(self, name: str, member: str, arguments: int | None) -> bool:
        """Whether `member` is in the class or in a base of it."""
        stub = self.find(name)
        if stub is None:
            return False
        return arguments in stub.members.get(member, ()) or any(
            self.has(base, member, arguments) for base in stub.bases
        )

    def _parse(self, package: str) -> None:
        if package in self._modules:
            return
        self._modules.add(package)
        top, *rest = package.split(".")
        path = self._root.joinpath(f"{top}-stubs", *rest, "__init__.pyi")
        if path.is_file():
            self._scope(package, ast.parse(path.read_text(encoding="utf-8")).body, {})

    def _scope(self, prefix: str, body: list[ast.stmt], outer: dict[str, str]) -> None:
        """Enter all classes of `body`; a base without a package stands in one of the scopes."""
        own = {n.name: f"{prefix}.{n.name}" for n in body if isinstance(n, ast.ClassDef)}
        names = outer | own
        for node in body:
            if isinstance(node, ast.ClassDef):
                stub = Stub([_resolve(base, names) for base in node.bases])
                self._classes[f"{prefix}.{node.name}"] = stub
                for member in node.body:
                    _enter(stub, member)
                self._scope(f"{prefix}.{node.name}", node.body, names)


def _resolve(base: ast.expr, names: dict[str, str]) -> str:
    text = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
    first, _, rest = text.partition(".")
    return ".".join(filter(None, (names.get(first, first), rest)))


def _enter(stub: Stub, node: ast.stmt) -> None:
    if isinstance(node, ast.FunctionDef):
        static = any(ast.unparse(d).endswith("staticmethod") for d in node.decorator_list)
        variable = node.args.vararg is not None  # an array, to the bytecode
        count = len(node.args.posonlyargs) + len(node.args.args) - (not static) + variable
        stub.members.setdefault(node.name, set()).add(count)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        stub.members.setdefault(node.target.id, set()).add(None)


def references(classes: Path) -> set[tuple[str, str, int | None]]:
    """(class, member, arguments) of all that is named; member "" is the class itself."""
    files = [str(path) for path in sorted(classes.rglob("*.class"))]
    text = subprocess.run(["javap", "-v", *files], capture_output=True, text=True, check=True)
    found = set[tuple[str, str, int | None]]()
    for line in text.stdout.splitlines():
        match = REFERENCE.search(line)
        if match is None:
            continue
        name = match[2].strip('"')
        if not name.startswith(PLATFORM) or name.startswith(LAMBDAS):
            continue
        owner, _, rest = name.partition(".")
        owner = owner.replace("/", ".").replace("$", ".")
        member, _, signature = rest.partition(":")
        if match[1] == "Class":
            found.add((owner, "", None))
        elif match[1] == "Fieldref":
            found.add((owner, member, None))
        else:
            found.add((owner, member.strip('"'), _arguments(signature)))
    return found


def _arguments(signature: str) -> int:
    inside = signature[1 : signature.index(")")]
    return len(re.findall(r"\[*(?:L[^;]+;|[BCDFIJSZ])", inside))


def missing(platform: Platform, named: set[tuple[str, str, int | None]]) -> list[str]:
    """Those that the platform lacks. Constructors are checked by their class alone."""
    lines = []
    for owner, member, arguments in sorted(named, key=str):
        if member in ("", "<init>"):
            there = platform.find(owner) is not None
        else:
            there = any(platform.has(name, member, arguments) for name in (owner, OBJECT))
        if not there:
            lines.append(f"{owner}.{member}" + ("" if arguments is None else f" ({arguments})"))
    return lines


def main(stubs: Path, classes: Path) -> int:
    """Print what is missing; 1 if anything is."""
    named = references(classes)
    lines = missing(Platform(stubs), named)
    for line in lines:
        print(f"not in API 36: {line}")
    print(f"{len(named)} classes and members of the platform are named, {len(lines)} are missing")
    return 1 if lines or len(named) < 100 else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
