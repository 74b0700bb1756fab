"""What has been done to every photograph of a set that is being prepared."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_RECORDS = 4096  # held at a time


class Ledger:
    """What has been done to every photograph so far, in a database beside the set, so that a later run continues."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.database = sqlite3.connect(path, isolation_level=None, timeout=1)
        # Held to the end: two runs at once would undo each other's work.
        self.database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.database.execute("BEGIN IMMEDIATE")
        self.database.execute("CREATE TABLE IF NOT EXISTS runs (settings TEXT)")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS photographs (name TEXT PRIMARY KEY, run INTEGER, stamp TEXT, person TEXT, "
            "kind TEXT, detail TEXT, path TEXT, landmarks BLOB, confidence BLOB)"
        )
        self.database.execute("CREATE INDEX IF NOT EXISTS by_person ON photographs (kind, person, name)")
        earlier = self.database.execute("SELECT settings FROM runs LIMIT 1").fetchone()
        wanted = json.dumps(dict(settings))
        if earlier is not None and earlier[0] != wanted:
            raise ValueError(
                f"{path.parent}: holds a set prepared with {earlier[0]}, and this is {wanted}; "
                "prepare into another folder"
            )
        self.run = self.database.execute("INSERT INTO runs VALUES (?)", (wanted,)).lastrowid
        self.database.execute("COMMIT")

    def known(self, names: list[str]) -> dict[str, tuple[str, str | None]]:
        """Stamps of the photographs that have been done, and the paths of the crops of those that were kept."""
        rows = (
            self.database.execute("SELECT name, stamp, path FROM photographs WHERE name = ?", (name,)).fetchone()
            for name in names
        )
        return {row[0]: row[1:] for row in rows if row is not None}

    def store(self, rows: list[tuple], unchanged: list[str]) -> None:
        """Note new results, and that others are still as they were, all at once or not at all."""
        self.database.execute("BEGIN")
        self.database.executemany(
            f"INSERT OR REPLACE INTO photographs VALUES (?, {self.run}, ?, ?, ?, ?, ?, ?, ?)", rows
        )
        self.database.executemany(
            f"UPDATE photographs SET run = {self.run} WHERE name = ?", [(name,) for name in unchanged]
        )
        self.database.execute("COMMIT")

    def forget_others(self) -> Iterator[str]:
        """Forget photographs that are no longer there; the paths of their crops."""
        for (path,) in self.database.execute(
            f"DELETE FROM photographs WHERE run != {self.run} RETURNING path"
        ).fetchall():  # fmt: skip
            if path:
                yield path

    def people(self) -> list[tuple[str, int]]:
        """Names and numbers of images, in the order of a hash of the names: any run of them is a random sample."""
        found = self.database.execute(
            "SELECT person, COUNT(*) FROM photographs WHERE kind = '' AND person != '' GROUP BY person"
        ).fetchall()
        return sorted(found, key=lambda row: hashlib.sha256(row[0].encode()).digest())

    def count(self) -> tuple[int, int]:
        """How many photographs are kept, and the bytes of the longest path of a crop."""
        return self.database.execute(
            "SELECT COUNT(*), COALESCE(MAX(LENGTH(CAST(path AS BLOB))), 1) FROM photographs WHERE kind = ''"
        ).fetchone()

    def records(self, people: list[tuple[str, int]], dtype: np.dtype) -> Iterator[np.ndarray]:
        """The records of the manifest, some at a time: first those without identity."""
        for number, (person, _) in enumerate([("", 0), *people], start=-1):
            cursor = self.database.execute(
                "SELECT path, landmarks, confidence FROM photographs WHERE kind = '' AND person = ? ORDER BY name",
                (person,),
            )
            while rows := cursor.fetchmany(_RECORDS):
                paths, landmarks, confidence = zip(*rows, strict=True)
                part = np.empty(len(rows), dtype)
                part["path"] = [path.encode() for path in paths]
                part["identity"] = number
                part["landmarks"] = np.frombuffer(b"".join(landmarks), "<f4").reshape(-1, 68, 2)
                part["confidence"] = np.frombuffer(b"".join(confidence), "<f4").reshape(-1, 68)
                yield part

    def dropped(self) -> Iterator[tuple[str, str, str]]:
        return self.database.execute("SELECT name, kind, detail FROM photographs WHERE kind != '' ORDER BY name")

    def dropped_counts(self) -> list[tuple[str, int]]:
        return self.database.execute(
            "SELECT kind, COUNT(*) FROM photographs WHERE kind != '' GROUP BY kind ORDER BY COUNT(*) DESC, kind"
        ).fetchall()
