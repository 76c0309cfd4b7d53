"""Models found, on disk or on the hub, and checked."""

from __future__ import annotations

import os
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from instructdiff_ray.config.data import ModelConfig
from instructdiff_ray.errors import UserError
from instructdiff_ray.models.folder import check_files, folder_identity
from instructdiff_ray.models.model import Model
from instructdiff_ray.storage.artifacts import make_key
from instructdiff_ray.storage.filesystem import absolute, is_uri
from instructdiff_ray.storage.local_copy import local_copy


def find_model(config: ModelConfig, setting: str = "model.base") -> Model:
    """Find and check the model that the configuration names; `setting` is where it does.

    Raises UserError in one line where it is missing, has no weights or no tokenizer.
    """
    try:
        return _find(config)
    except UserError as error:
        raise UserError(str(error).replace("model.base", setting)) from None


def _find(config: ModelConfig) -> Model:
    path = config.base
    if not path:
        raise UserError(
            "model.base is not set; name a Hugging Face folder or a hub model, such as"
            " model.base=Qwen/Qwen2.5-7B"
        )
    path = os.path.expanduser(path)
    if path.startswith("hf://"):
        raise UserError(f"model.base={path}: name a model of the Hub as org/name, without hf://")
    if is_uri(path) or os.path.isdir(path):
        folder = absolute(path)
        return _found(folder, None, config.trust_remote_code, folder_identity(local_copy(folder)))
    if path.startswith(("/", ".")) or os.path.isfile(path) or path.count("/") > 1:
        raise UserError(f"model.base={path} is no folder; name a Hugging Face model folder")
    commit, names = _hub_commit(path, config.revision)
    check_files(path, names)
    identity = make_key(hub=path, revision=commit)
    return _found(path, commit, config.trust_remote_code, identity)


def _hub_commit(name: str, revision: str | None) -> tuple[str, set[str]]:
    """The commit that the revision stands for now, and the files in it.

    All workers load this commit, whatever is pushed meanwhile, and the keys name it. Offline, it is
    what the local hub cache holds.
    """
    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
            return folder.name, {path.name for path in folder.iterdir()}
        info = HfApi().model_info(name, revision=revision)
    except (OSError, HTTPError, HfHubHTTPError, HFValidationError) as error:
        raise UserError(
            f"model.base={name} is neither a folder here nor a hub model that can be reached"
            f" ({_first_line(error)})"
        ) from None
    return str(info.sha), {file.rfilename for file in info.siblings or []}


def _found(path: str, revision: str | None, trust: bool, identity: str) -> Model:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            local_copy(path), revision=revision, trust_remote_code=trust
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model.base={path} can't be loaded: {_first_line(error)}") from None
    max_length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return Model(path, revision, trust, identity, max_length)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
