"""An APK, not signed yet: the same bytes for the same parts.

python apk/pack.py OUT.apk RESOURCES.apk FOLDER...

RESOURCES is what aapt2 linked; the files of each FOLDER go in by their paths. What Android maps
into memory stays uncompressed: the libraries, on borders of 16 KiB (Android 15 and later ask for
it), and resources.arsc on one of 4 bytes. Each says its border in the extra field 0xd935, which
apksigner heeds.
"""

import struct
import sys
import zipfile
from pathlib import Path

TIME = (1981, 1, 1, 0, 0, 0)
BORDERS = {".so": 16384, ".arsc": 4}
ALIGNMENT = 0xD935  # id of the extra field, of APK signing's own


def pack(out: Path, resources: Path, folders: list[Path]) -> None:
    """Write `out`."""
    with zipfile.ZipFile(resources) as linked:
        parts = {name: linked.read(name) for name in linked.namelist()}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                assert name not in parts, f"{name} comes from two places"
                parts[name] = path.read_bytes()
    with zipfile.ZipFile(out, "w") as apk:
        for name in sorted(parts, key=lambda name: (name != "AndroidManifest.xml", name)):
            entry = zipfile.ZipInfo(name, TIME)
            border = BORDERS.get(Path(name).suffix)
            entry.compress_type = zipfile.ZIP_STORED if border else zipfile.ZIP_DEFLATED
            if border:
                assert apk.fp is not None
                entry.extra = _padding(apk.fp.tell() + 30 + len(name.encode()), border)
            apk.writestr(entry, parts[name], compresslevel=9)


def _padding(at: int, border: int) -> bytes:
    """The extra field behind which, `at` being its place, the content lies on a border."""
    room = -(at + 6) % border
    return struct.pack("<HHH", ALIGNMENT, 2 + room, border) + bytes(room)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]])
