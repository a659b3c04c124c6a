"""Classes of Java 17 for dx, which reads those of Java 9 at most.

python apk/downlevel.py IN.jar OUT.jar

From Java 11 on a class may reach the private members of the classes nested with it, and calls its
own private methods as it calls others; Android 8 knows neither. So what was private is given to the
package here, its methods final, so that none overrides another; the file's version becomes 13's,
which ProGuard reads and, with -target 1.7, turns into 7's, lambdas included. Layout: The Java
Virtual Machine Specification, chapter 4.
"""

import struct
import sys
import zipfile
from pathlib import Path

JAVA_13 = 57
PRIVATE, STATIC, FINAL, INTERFACE = 0x0002, 0x0008, 0x0010, 0x0200
SIZES = {7: 2, 8: 2, 16: 2, 19: 2, 20: 2, 15: 3, 3: 4, 4: 4, 9: 4, 10: 4, 11: 4, 12: 4, 17: 4,
         18: 4}  # of a constant by its tag, without it  # fmt: skip
UTF8, LONG, DOUBLE = 1, 5, 6
Method = tuple[str, str]  # name and descriptor


class ClassFile:
    """A class whose version and members' flags can be changed."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self._texts: dict[int, str] = {}
        self._classes: dict[int, int] = {}
        count, at, i = self._u2(8), 10, 1
        while i < count:
            tag = self.data[at]
            if tag == UTF8:
                length = self._u2(at + 1)
                self._texts[i] = self.data[at + 3 : at + 3 + length].decode("utf-8", "replace")
                at += 3 + length
            elif tag in (LONG, DOUBLE):
                at, i = at + 9, i + 1
            else:
                if tag == 7:
                    self._classes[i] = self._u2(at + 1)
                at += 1 + SIZES[tag]
            i += 1
        self.flags, self.name = self._u2(at), self._class(self._u2(at + 2))
        self.parent = self._class(self._u2(at + 4))
        at += 8 + 2 * self._u2(at + 6)
        self.members = {"field": list[int](), "method": list[int]()}  # where each one lies
        for kind in self.members:
            amount, at = self._u2(at), at + 2
            for _ in range(amount):
                self.members[kind].append(at)
                attributes, at = self._u2(at + 6), at + 8
                for _ in range(attributes):
                    at += 6 + struct.unpack_from(">I", self.data, at + 2)[0]

    def method(self, at: int) -> Method:
        """What the method at `at` is called."""
        return self._texts[self._u2(at + 2)], self._texts[self._u2(at + 4)]

    def open(self) -> set[Method]:
        """Give what is private to the package; the instance methods among it."""
        struct.pack_into(">H", self.data, 6, JAVA_13)
        opened = set[Method]()
        for kind, places in self.members.items():
            for at in places:
                flags = self._u2(at)
                if not flags & PRIVATE:
                    continue
                flags &= ~PRIVATE
                if kind == "method" and not flags & STATIC and self.method(at)[0] != "<init>":
                    assert not self.flags & INTERFACE, f"{self.name}: a private method"
                    opened.add(self.method(at))
                    flags |= FINAL
                struct.pack_into(">H", self.data, at, flags)
        return opened

    def _u2(self, at: int) -> int:
        return struct.unpack_from(">H", self.data, at)[0]

    def _class(self, index: int) -> str:
        return self._texts[self._classes[index]] if index else ""


def main(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as jar:
        found = [ClassFile(jar.read(n)) for n in sorted(jar.namelist()) if n.endswith(".class")]
    classes = {c.name: c for c in found}
    opened = {name: c.open() for name, c in classes.items()}
    for name, one in classes.items():  # none may now override one that it did not
        own = {one.method(at) for at in one.members["method"]}
        parent = classes.get(one.parent)
        while parent is not None:
            clash = own & opened[parent.name]
            assert not clash, f"{name} and {parent.name} both have {clash}"
            parent = classes.get(parent.parent)
    with zipfile.ZipFile(target, "w") as jar:
        for name, one in classes.items():
            jar.writestr(f"{name}.class", bytes(one.data))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
