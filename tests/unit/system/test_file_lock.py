"""file_lock: the mark of a file that is in use."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from llmsession.system.file_lock import is_used, mark_used

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there a file that is open cannot be removed")


def test_a_file_is_used_as_long_as_it_is_open(tmp_path: Path) -> None:
    """By whoever marked it, several at once."""
    path = tmp_path / "a.log"
    path.touch()
    assert not is_used(path)
    with path.open() as one, path.open() as two:
        mark_used(one.fileno())
        mark_used(two.fileno())
        assert is_used(path)
        one.close()
        assert is_used(path)
    assert not is_used(path)
    assert not is_used(tmp_path / "missing.log")


def test_a_file_is_marked_also_while_another_asks_whether_it_is_used(tmp_path: Path) -> None:
    """FAULTS A: who asks locks it for a moment; the mark was given up then, and the log of a running engine removed."""
    import fcntl

    path = tmp_path / "a.log"
    path.touch()
    with path.open() as asking, path.open() as using:
        fcntl.flock(asking.fileno(), fcntl.LOCK_EX)
        marking = threading.Thread(target=mark_used, args=(using.fileno(),))
        marking.start()
        time.sleep(0.02)
        fcntl.flock(asking.fileno(), fcntl.LOCK_UN)
        marking.join(10)
        assert is_used(path)
