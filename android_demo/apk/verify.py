"""Is the APK whole? Prints what was found and ends with 1 at the first fault.

python apk/verify.py APP.apk CLASSES

CLASSES holds the app's compiled classes. Checked are: the classes that manifest and layouts name
and the methods that the compiler made, both against the dex; the libraries that the code loads and
that those ask for; and where parts lie in the file (16 KiB for libraries, which Android 15 and
later map).
Needs aapt2, dexdump and readelf.
"""

import re
import struct
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

from downlevel import ClassFile

ABIS = ("arm64-v8a", "x86_64")
LOADED = ("onnxruntime", "onnxruntime4j_jni")  # ai.onnxruntime.OnnxRuntime
ANDROIDS = {"libc.so", "libm.so", "libdl.so", "liblog.so", "libandroid.so"}
PAGE = 16384
Methods = dict[str, set[tuple[str, str]]]


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def dex_methods(apk: Path) -> Methods:
    """Class to its methods, from dexdump."""
    found: Methods = defaultdict(set)
    owner = name = ""
    for line in output("dexdump", apk).splitlines():
        if match := re.match(r"\s+Class descriptor\s+: 'L(.*);'", line):
            owner, _ = match[1], found[match[1]]
        elif match := re.match(r"\s+name\s+: '(.*)'", line):
            name = match[1]
        elif match := re.match(r"\s+type\s+: '(\(.*)'", line):
            found[owner].add((name, match[1]))
    return found


def check_classes(apk: Path, classes: Path, dex: Methods) -> None:
    """What the compiler made and what the resources name is in the dex."""
    files = sorted(classes.rglob("*.class"))
    count = 0
    for path in files:
        one = ClassFile(path.read_bytes())
        wanted = {one.method(at) for at in one.members["method"]}
        missing = wanted - dex.get(one.name, set())
        assert one.name in dex and not missing, f"not in the dex: {one.name} {missing}"
        count += len(wanted)
    print(f"dex: {len(dex)} classes; all {count} methods of the app's {len(files)} are there")
    layouts = [n for n in zipfile.ZipFile(apk).namelist() if n.startswith("res/layout")]
    named = set(re.findall(r'name\(0x01010003\)="([\w.]+)"', _tree(apk, "AndroidManifest.xml")))
    named = {n for n in named if n.startswith((".", "org."))}
    for layout in layouts:
        elements = re.findall(r"E: ([\w.]+)", _tree(apk, layout))
        named |= {e for e in elements if "." in e and not e.startswith("android.")}
    for name in named:
        path = name.replace(".", "/") if name[0] != "." else f"org/hrmedge/app/{name[1:]}"
        assert path in dex, f"{name} is not in the dex"
    print(f"manifest and {len(layouts)} layouts: all {len(named)} classes of ours are in the dex")
    assert "invoke-custom" not in output("dexdump", "-d", apk), "the dex needs java.lang.invoke"


def _tree(apk: Path, name: str) -> str:
    return output("aapt2", "dump", "xmltree", "--file", name, apk)


def check_libraries(apk: Path, scratch: Path) -> None:
    """Each is there for both processors, with what it asks for, and can be mapped."""
    with zipfile.ZipFile(apk) as opened:
        names = set(opened.namelist())
        for abi in ABIS:
            held = {Path(n).name for n in names if n.startswith(f"lib/{abi}/")}
            assert {f"lib{name}.so" for name in LOADED} <= held, (abi, held)
            for name in sorted(held):
                path = Path(opened.extract(f"lib/{abi}/{name}", scratch))
                dynamic = output("readelf", "-dW", path)
                needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
                assert needed <= held | ANDROIDS, f"{abi}/{name} needs {needed - held - ANDROIDS}"
                segments = output("readelf", "-lW", path)
                borders = [int(b, 16) for b in re.findall(r"LOAD.*(0x\w+)$", segments, re.M)]
                fits = "16 KiB pages" if min(borders) >= PAGE else f"pages of {min(borders)} only"
                print(f"lib/{abi}/{name}: {path.stat().st_size:,} bytes, {fits}")


def check_places(apk: Path) -> None:
    """What Android maps lies uncompressed on its border."""
    with zipfile.ZipFile(apk) as opened, apk.open("rb") as file:
        for entry in opened.infolist():
            border = {".so": PAGE, ".arsc": 4}.get(Path(entry.filename).suffix)
            if border is None:
                continue
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            start = entry.header_offset + 30 + name + extra
            assert entry.compress_type == zipfile.ZIP_STORED, f"{entry.filename} is compressed"
            assert start % border == 0, f"{entry.filename} begins at {start}"
        sizes: dict[str, int] = defaultdict(int)
        for entry in opened.infolist():
            sizes[entry.filename.split("/")[0]] += entry.compress_size
    print("libraries on 16 KiB borders, resources.arsc stored")
    parts = sorted(sizes.items(), key=lambda part: -part[1])
    print("by part:", ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in parts))


if __name__ == "__main__":
    app, compiled = Path(sys.argv[1]), Path(sys.argv[2])
    check_classes(app, compiled, dex_methods(app))
    check_libraries(app, app.parent / "extracted")
    check_places(app)
