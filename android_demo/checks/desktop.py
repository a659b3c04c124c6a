"""Lets a desktop's loader take an Android library.

python checks/desktop.py OUT LIBRARY...

Writes copies into OUT, for x86-64, the machine code untouched. Versions of symbols are ignored, for
bionic calls all of its own LIBC. Of Android's own libraries only libc.so is asked for, which is
checks/bionic.c, and what means something else there than in glibc is asked of it by another name.
Layout of the file: System V ABI, and elf.h.
"""

import struct
import sys
from pathlib import Path

LOAD, DYNAMIC = 1, 2  # kinds of segments
NEEDED, STRTAB, STRSZ = 1, 5, 10  # entries of the dynamic segment
VERSIONS = (0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF)
IGNORED = 0x6000000E
ELSEWHERE = (b"libm.so", b"libdl.so", b"liblog.so", b"libandroid.so")
OTHERS = {
    *(b"fflush", b"fprintf", b"fputc", b"fputs", b"fwrite", b"printf", b"putchar", b"vfprintf"),
    *(b"dirname", b"open", b"realpath", b"stderr", b"stdout", b"sysconf"),
}


def convert(library: bytes) -> bytes:
    """A copy of the ELF file `library` for glibc's loader."""
    data = bytearray(library)
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, table + i * size) for i in range(count)]
    start, length = next((s[2], s[5]) for s in segments if s[0] == DYNAMIC)
    places = range(start, start + length, 16)
    entries = [(place, *struct.unpack_from("<qQ", data, place)) for place in places]
    values = {tag: value for _, tag, value in entries}
    names = next(  # where the strings' address lies in the file
        values[STRTAB] - s[3] + s[2]
        for s in segments
        if s[0] == LOAD and s[3] <= values[STRTAB] < s[3] + s[5]
    )
    for place, tag, value in entries:
        name = bytes(data[names + value : data.index(0, names + value)]) if tag == NEEDED else b""
        if tag in VERSIONS or name in ELSEWHERE:
            struct.pack_into("<q", data, place, IGNORED)
    for name in OTHERS:
        at = data.find(b"\0" + name + b"\0", names, names + values[STRSZ])
        if at >= 0:
            data[at + 1] = ord("_")
    return bytes(data)


if __name__ == "__main__":
    for path in map(Path, sys.argv[2:]):
        (Path(sys.argv[1]) / path.name).write_bytes(convert(path.read_bytes()))
