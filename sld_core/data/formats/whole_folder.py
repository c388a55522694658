"""A folder that appears with all its files, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sld_core.types import SldError


@contextmanager
def whole_folder(folder: Path, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` at the end and vanishes on
    an error.

    What is in `folder` goes, and may be of the names `replaceable` only: SldError otherwise. It
    goes once the new one is in its place; where a kill comes between, the next call puts it
    back."""
    folder = Path(folder).resolve()
    staged, old = (folder.with_name(f".{folder.name}.sld-{kind}") for kind in ("new", "old"))
    try:
        _put_back(old, folder)
        foreign = (
            sorted({p.name for p in folder.iterdir()} - set(replaceable)) if folder.exists() else []
        )
        if foreign:
            raise SldError(f"{folder}: is not empty (it holds {foreign[0]}); choose another folder")
        for left in (staged, old):  # of a run that was killed
            if left.exists():
                shutil.rmtree(left)
        staged.mkdir(parents=True)
        try:
            yield staged
            if folder.exists():
                folder.rename(old)
            staged.rename(folder)
        finally:
            _put_back(old, folder)
            for left in (staged, old):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise SldError(
            f"{error.filename or folder}: cannot be written ({error.strerror})"
        ) from None


def _put_back(old: Path, folder: Path) -> None:
    """Where the old one has been moved away and no new one came."""
    if old.exists() and not folder.exists():
        old.rename(folder)
