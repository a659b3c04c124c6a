"""Which mappings are put into huge pages; whether they are is up to the kernel."""

import mmap
import sys

import pytest

from hrm_edge.runtime.session.huge_pages import LEAST, _added, _anonymous, huge_pages


def test_only_what_is_new_is_touched() -> None:
    before = [(10, 20), (40, 50), (60, 70)]
    assert _added(before, before) == []
    assert _added([], before) == before
    # grown at both ends, joined over a gap, gone, and one that is new
    assert _added(before, [(5, 25), (40, 70), (80, 90)]) == [(5, 10), (20, 25), (50, 60), (80, 90)]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_mapping_made_meanwhile_is_found_and_keeps_its_bytes() -> None:
    before = _anonymous()
    with huge_pages():
        memory = mmap.mmap(-1, 2 * LEAST, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.write(b"7" * len(memory))
        added = _added(before, _anonymous())
    assert any(end - start >= 2 * LEAST for start, end in added)
    assert memory[:] == b"7" * len(memory)
