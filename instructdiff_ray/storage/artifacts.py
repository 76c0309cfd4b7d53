"""Artifacts: folders under one root that are finished or absent.

A key names the result by all that determines it. Each attempt at an artifact writes its files to a
folder of its own (but an ingest's, whose attempts go on in one folder), and `manifest.json`,
written last and at once, names the attempt that finished. So nothing needs a rename of a folder
(object stores have none), a killed writer leaves nothing that is taken for finished, and two runs
that make the same artifact at the same time both succeed: the later manifest wins, and either
result is right.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.filesystem import Folder, join
from instructdiff_ray.storage.locks import locked

MANIFEST = "manifest.json"
ATTEMPT = "attempt-"  # how the folders of writers begin


def make_key(**inputs: Any) -> str:
    """16 hex digits that stand for `inputs` (JSON values): equal inputs, equal key."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FinishedArtifact:
    """A finished artifact: its folder, and what its maker noted in the manifest.

    inputs: what the key was made of.
    """

    key: str
    folder: Folder
    info: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """The place of one artifact, `root/kind/key`, finished or absent."""

    home: Folder
    kind: str
    key: str

    def finished(self) -> FinishedArtifact | None:
        """The artifact where it is complete; None where it is absent or damaged.

        Complete means that every file that the manifest lists is there in its full size.
        """
        raw = self.home.read_bytes(MANIFEST)
        if raw is None:
            return None
        try:
            manifest = json.loads(raw)
            folder = self.home.sub(manifest["attempt"])
            files, info = manifest["files"].items(), manifest["info"]
            inputs = manifest["inputs"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        present = folder.sizes()
        if any(present.get(name) != size for name, size in files):
            return None
        return FinishedArtifact(self.key, folder, info, inputs)

    @contextmanager
    def lock(self, say: Callable[[str], None]) -> Iterator[FinishedArtifact | None]:
        """The finished artifact, or None for the one run that is to make it now.

        Another run that wants the same waits until the first has finished or died.
        """
        finished = self.finished()
        if finished:
            yield finished
            return
        waits = f"another run makes {self.kind}/{self.key}; waiting for it"
        with locked(self.home, lambda: say(waits), say):
            yield self.finished()

    @contextmanager
    def writer(self) -> Iterator[ArtifactWriter]:
        """Make the artifact: write into the writer's folder, then call its `finish`.

        A body that raises leaves no trace; one that is killed leaves a folder that nothing reads.
        """
        writer = self.writer_at(f"{ATTEMPT}{uuid.uuid4().hex[:12]}")
        with ExitStack() as undo:
            undo.callback(writer.folder.delete)
            yield writer
            undo.pop_all()

    def writer_at(self, name: str) -> ArtifactWriter:
        """A writer whose folder has this name, which several workers can agree on."""
        return ArtifactWriter(self, self.home.sub(name))

    def require(self, what: str, hint: str) -> FinishedArtifact:
        """The finished artifact, or a UserError that says how to make it."""
        finished = self.finished()
        if finished is None:
            raise UserError(
                f"{what} is not in storage for this configuration ({self.kind}/{self.key}); {hint}"
            )
        return finished


@dataclass(frozen=True)
class ArtifactWriter:
    """One attempt at making an artifact, in a folder of its own."""

    artifact: Artifact
    folder: Folder

    def finish(self, inputs: Mapping[str, Any], info: Mapping[str, Any]) -> FinishedArtifact:
        """Mark the artifact finished. inputs: what its key was made of, noted for provenance."""
        home = self.artifact.home
        manifest = {
            "kind": self.artifact.kind,
            "key": self.artifact.key,
            "inputs": inputs,
            "attempt": self.folder.path.rsplit("/", 1)[-1],
            "files": self.folder.sizes(),
            "info": info,
        }
        home.write_json(MANIFEST, manifest)
        return FinishedArtifact(self.artifact.key, self.folder, info, inputs)


@dataclass(frozen=True)
class Storage:
    """The root under which all artifacts live; an absolute local path or a URI."""

    root: str

    def folder(self, *names: str) -> Folder:
        return Folder(join(self.root, *names))

    def artifact(self, kind: str, key: str) -> Artifact:
        return Artifact(self.folder(kind, key), kind, key)
