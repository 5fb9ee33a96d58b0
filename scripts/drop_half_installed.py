"""Make pip see what a kill left half written in the environment that runs this: pip goes by the metadata.

A package whose recorded files are not all there, in their sizes, loses its metadata, and the next
`pip install` writes it again. Standard library only: it runs before anything is installed.
"""

import shutil
import sysconfig
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path


def is_whole(distribution: Distribution) -> bool:
    """Whether pip came to its end: it writes INSTALLER after the files, and then each one's size."""
    if not distribution.read_text("INSTALLER") or not distribution.files:
        return False
    return all(
        Path(file.locate()).is_file() and Path(file.locate()).stat().st_size == file.size
        for file in distribution.files
        if file.size is not None
    )


for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
    for metadata in Path(folder).glob("*.dist-info"):
        if not is_whole(PathDistribution(metadata)):
            shutil.rmtree(metadata)
