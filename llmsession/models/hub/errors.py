"""Converts errors of Hugging Face's client into ours, each with the next step, and retries."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from llmsession.models.references import SITE
from llmsession.types.errors import DiskFullError, FetchError, GatedModelError, ModelNotFoundError

_T = TypeVar("_T")

# How often a request is made again that the hub could not answer, and the longest pause between two, in seconds.
TRIES, LONGEST_PAUSE = 4, 4.0


def pause(attempt: int) -> None:
    """Wait before another try."""
    time.sleep(min(LONGEST_PAUSE, 0.5 * 2**attempt))


def patiently(ask: Callable[[], _T]) -> _T:
    """Retry while the hub is busy or failing; a hub that cannot be reached is reported at once."""
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(TRIES):
        try:
            return ask()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if attempt == TRIES - 1 or (status != 429 and status < 500):
                raise
            pause(attempt)
    raise AssertionError  # pragma: no cover - the loop returns or raises


@contextlib.contextmanager
def explained(repo_id: str, revision: str, cache: Path, missing: Callable[[], int]) -> Iterator[None]:
    """Convert the client's errors into FetchError. `missing`: bytes that have not arrived yet."""
    from huggingface_hub import errors

    url = page_of(repo_id)
    try:
        yield
    except errors.GatedRepoError as error:
        raise GatedModelError(
            f"{repo_id} is gated: accept its terms at {url}, then `hf auth login`, or set HF_TOKEN",
            url=url,
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"Hugging Face has no repository {repo_id}, or it is private: look at {url}; for a private "
            "one, `hf auth login`, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo_id} has no revision {revision!r}: give a branch, a tag, a commit, or HEAD"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFoundError(f"{repo_id} has no such file: {error}") from error
    except errors.HfHubHTTPError as error:
        raise _explain_status(error.response.status_code, repo_id) from error
    except http_error() as error:
        raise FetchError(
            f"{hub_address()} cannot be reached ({type(error).__name__}: {error}): is there a network? "
            "What had arrived is kept"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(cache).free
            raise DiskFullError(
                f"the disk of {cache} is full: make room and call again, what had arrived is kept",
                needed_bytes=missing(),
                free_bytes=free,
            ) from error
        raise FetchError(f"{repo_id} could not be fetched into {cache}: {error}") from error


def _explain_status(status: int, repo_id: str) -> FetchError:
    url = page_of(repo_id)
    if status in (401, 403):
        return GatedModelError(
            f"Hugging Face refuses {repo_id} ({status}): the token is wrong or may not read it; look at "
            f"{url}, then `hf auth login`, or set HF_TOKEN",
            url=url,
        )
    if status == 429:
        return FetchError(
            "Hugging Face has had too many requests from here (429): wait some minutes, or log in with "
            "`hf auth login`, which raises the limit"
        )
    return FetchError(f"{hub_address()} is in trouble (HTTP {status}): try again later; what had arrived is kept")


def page_of(repo_id: str) -> str:
    """Return the address of a repository's web page."""
    return f"{SITE}/{repo_id}"


def http_error() -> type[Exception]:
    """Return the base class of errors of huggingface_hub's HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    root: type[Exception] = HfHubHTTPError.__bases__[0]
    return root


def hub_address() -> str:
    """Return the hub's address, or HF_ENDPOINT."""
    from huggingface_hub import constants

    return constants.ENDPOINT
