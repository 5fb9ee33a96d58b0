"""The one place that chooses the platform: OwnedProcess, kill_stray and submit, for POSIX or for Windows."""

import sys

if sys.platform == "win32":
    from llmsession.processes.lifetime_windows import OwnedProcess, kill_stray, submit
else:
    from llmsession.processes.lifetime_posix import OwnedProcess, kill_stray, submit

__all__ = ["OwnedProcess", "kill_stray", "submit"]
