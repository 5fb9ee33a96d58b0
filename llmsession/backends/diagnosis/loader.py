"""Explains why a program could not be started, from the errors of the kernel and the library loader. Does no I/O."""

from __future__ import annotations

import errno
import re
import struct

from llmsession.backends.diagnosis.exit_codes import OTHERS

_MISSING = (
    re.compile(r"error while loading shared libraries: ([^:\s]+): (.+)"),
    re.compile(r"Error loading shared library ([^:\s]+): (.+)"),  # musl
    re.compile(r"Library not loaded: (\S+)()"),  # macOS
    re.compile(r"^(?:ImportError|OSError): ([^:\s]+): (cannot open shared object file.*)", re.MULTILINE),
    re.compile(r"^ImportError: DLL load failed while importing (\w+): (.+)", re.MULTILINE),
)
_TOO_OLD = re.compile(r"version `(GLIBC|GLIBCXX|CXXABI|GOMP|OPENSSL)_([\d.]+)' not found")
_MIXED = re.compile(r"undefined symbol: (\S+)|Symbol not found: (\S+)|Error relocating \S+ (\S+): symbol not found")
# The errors of the programs that exec the engine: setpriv, or the library's own guard.
_EXEC = re.compile(r"setpriv: failed to execute (\S+): (.+)|OSError: \[Errno \d+\] (Exec format error): '(.+)'")

# How to get a library, by the beginning of its name.
_BRINGERS = (
    (("libcuda.", "nvcuda"), "install NVIDIA's driver, or take a build without CUDA"),
    (("libcudart", "libcublas", "libnccl"), "install that version of the CUDA runtime, or take a build without CUDA"),
    (("libamdhip", "librocblas", "libhipblas", "libhsa"), "install ROCm, or take a build without it"),
    (("libvulkan",), "install the Vulkan loader (Debian: libvulkan1), or take a build without Vulkan"),
    (("libsycl", "libze_loader", "libmkl"), "install Intel's oneAPI runtime, or take a build without SYCL"),
    (("libgomp",), "install GCC's OpenMP (Debian: libgomp1)"),
    (("libssl", "libcrypto"), "install that version of OpenSSL"),
    (("libcurl",), "install libcurl (Debian: libcurl4)"),
    (("libllama", "libggml", "libmtmd"), "keep the files of a build in one folder, or install it again"),
)

# `e_machine` of an ELF header. https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
_MACHINES = {
    3: "i386",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    21: "ppc64",
    22: "s390x",
    258: "loongarch64",
}
_SAME = {"amd64": "x86_64", "arm64": "aarch64", "ppc64le": "ppc64", "i686": "i386"}
# macOS's "Bad CPU type in executable", which errno does not name.
_EBADARCH = 86
# The first bytes of programs that the kernel cannot run; the last entry matches any.
_KINDS = (
    (b"\x7fELF", "it is damaged, or not for this system"),
    (b"\xcf\xfa\xed\xfe", "it is a program for macOS"),
    (b"\xca\xfe\xba\xbe", "it is a program for macOS"),
    (b"MZ", "it is a program for Windows"),
    (b"", "it is not a program"),
)
_INTERPRETER = re.compile(rb"/[\w./-]*/ld[-\w.]*\.so[\w.]*")


def explain_loader(words: str, backend: str) -> tuple[str, str] | None:
    """Return what the loader reports as wrong, and the next step; None if it reports nothing."""
    other = OTHERS.get(backend, "take another build")
    if (found := _TOO_OLD.search(words)) is not None:
        return f"it was built for a newer system (it wants {found[1]} {found[2]})", other
    for pattern in _MISSING:
        if (found := pattern.search(words)) is not None:
            return _explain_missing(found[1], found[2], other)
    if (found := _MIXED.search(words)) is not None:
        return f"its libraries are of different builds (none has {found[found.lastindex or 0]})", "install it again"
    if (found := _EXEC.search(words)) is not None:
        return f"the system cannot run {found[1] or found[4]} ({found[2] or found[3]})", other
    return None


def _explain_missing(library: str, why: str, other: str) -> tuple[str, str]:
    name = library.rpartition("/")[2]
    reason = "" if "No such file" in why or not why else f" in a form that it can load ({why})"
    advice = next((advice for starts, advice in _BRINGERS if name.startswith(starts)), f"install it, or {other}")
    return f"it lacks the library {name}{reason}", advice


def explain_refusal(error: OSError, head: bytes, machine: str) -> str:
    """Explain why the kernel does not run a program. `head`: its first bytes; `machine`: the name of the processor."""
    ours = _SAME.get(machine.lower(), machine.lower())
    theirs = _machine_of(head)
    if error.errno == errno.EACCES:
        return "this user may not run it (its folder may be mounted noexec)"
    if error.errno == _EBADARCH or (theirs is not None and theirs != ours):
        return f"it is built for {theirs or 'another processor'}, and this machine is {ours}"
    if error.errno == errno.ENOENT and head.startswith(b"#!"):
        return f"its interpreter {head[2:].splitlines()[0].decode(errors='replace').strip()} is not there"
    if error.errno == errno.ENOENT and (found := _INTERPRETER.search(head)) is not None:
        return f"its loader {found[0].decode()} is not on this system, so it is built for another"
    for magic, what in _KINDS:
        if error.errno == errno.ENOEXEC and head.startswith(magic):
            return what
    return str(error.strerror or error)


def _machine_of(head: bytes) -> str | None:
    if not head.startswith(b"\x7fELF") or len(head) < 20:
        return None
    number = struct.unpack_from("<H" if head[5] != 2 else ">H", head, 18)[0]
    return _MACHINES.get(number, f"a processor of kind {number}")
