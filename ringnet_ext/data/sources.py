"""Where photographs and their people come from: folders, or a list."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..files.images import SUFFIXES


class Photograph(NamedTuple):
    """One image of the source: its path relative to it, and its person; '' for none, None if not known."""

    name: str
    person: str | None


def in_folders(source: Path, anonymous: str | None = None) -> Iterator[Photograph]:
    """The images below a folder, each of the person whose folder it is in: ``source/PERSON/.../NAME.jpg``.

    Args:
        anonymous: the folder whose images have no identity.
    """

    def walk(folder: str, person: str | None) -> Iterator[Photograph]:
        with os.scandir(source / folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        for name, is_folder in found:
            path = f"{folder}{name}"
            if is_folder:
                yield from walk(f"{path}/", person if folder else ("" if name == anonymous else name))
            elif name.lower().endswith(SUFFIXES):
                yield Photograph(path, person)

    return walk("", None)


def in_list(path: Path) -> Iterator[Photograph]:
    """The images that a file lists: lines ``path,identity``, or ``path identity`` as in CelebA's identity_CelebA.txt.

    An empty identity, or -1, stands for none. The first line may name the columns: ``path,identity``.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = csv.reader(file) if "," in first else (line.rsplit(None, 1) for line in file)
            for number, row in enumerate(rows, start=1):
                if not row or (number == 1 and [value.strip().lower() for value in row] == ["path", "identity"]):
                    continue
                if len(row) != 2:
                    raise ValueError(f"{path}, line {number}: expected a path and an identity, got {' '.join(row):.80}")
                person = row[1].strip()
                name = os.fspath(PurePosixPath(row[0].strip()))  # ./a.jpg is a.jpg
                yield Photograph(name, "" if person == "-1" else person)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a text file of paths and identities: {error}") from None
