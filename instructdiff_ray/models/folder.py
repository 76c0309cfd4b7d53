"""A model's folder: whether it holds all that is needed, and the hash of what it holds."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from instructdiff_ray.errors import UserError
from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.storage.filesystem import Folder
from instructdiff_ray.storage.local_copy import cache_folder

# The files that determine what a model folder computes and how it reads text.
CONTENT = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")


def folder_identity(folder: str) -> str:
    """Short hash of all that a model folder's files hold. UserError where it is no such folder."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in CONTENT and p.is_file())
    check_files(folder, {path.name for path in files})
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        digests = list(pool.map(_known_digest, files))
    return make_key(files={p.name: digest for p, digest in zip(files, digests, strict=True)})


def check_files(path: str, names: set[str]) -> None:
    """Raises UserError where the names of a model's files lack one that is needed."""
    if "config.json" not in names:
        raise UserError(f"model.base={path} has no config.json; name a Hugging Face model folder")
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"model.base={path} has no weights (*.safetensors); other formats are not read, save"
            " it again with `save_pretrained(safe_serialization=True)`"
        )
    if "tokenizer.json" not in names:
        raise UserError(f"model.base={path} has no tokenizer.json; save its tokenizer there")


def _known_digest(path: Path) -> str:
    """The hash of a file. A model's files are large, and all runs and actors of a machine ask for
    them: it is noted in the cache, and computed again when the file has changed."""
    status = path.stat()
    name = make_key(path=str(path), size=status.st_size, mtime_ns=status.st_mtime_ns)
    digest = None
    with suppress(OSError):  # a cache that can't be read or written costs time
        noted = Folder(str(cache_folder() / "digests"))
        digest = noted.read_bytes(name)
        if digest is None:
            digest = _file_digest(path).encode()
            noted.write_bytes(name, digest)
    return digest.decode() if digest else _file_digest(path)


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
