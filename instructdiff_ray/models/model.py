"""A model that was found and checked, and what is loaded of it."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from instructdiff_ray.errors import DamagedFile, UserError
from instructdiff_ray.models.folder import folder_identity
from instructdiff_ray.storage.filesystem import Folder, is_uri
from instructdiff_ray.storage.local_copy import local_copy
from instructdiff_ray.telemetry import MODEL_LOAD_SECONDS

# Transformers and torch are imported where they are needed: they take seconds and hundreds of MiB,
# and not every process that is told of a model loads something of it.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Model:
    """A model that was found and checked.

    path: local folder, URI, or hub name; revision: a hub model's commit.
    identity: short hash of the weights and everything else that a folder holds, or of a hub
        model's name and commit.
    max_length: positions that the model can attend over; None where its config has no limit.
    digest: what `folder_identity` gave when the folder was written; None for one that is not ours.
    adapter: folder of the LoRA adapter that makes this model of the one at `path`; the digest is
        its.
    known_from: whose scores made it known here, of a model whose weights are elsewhere; `path` is
        that of the base model, from which it has its configuration.
    """

    path: str
    revision: str | None
    trust_remote_code: bool
    identity: str
    max_length: int | None
    digest: str | None = None
    adapter: str | None = None
    known_from: str | None = None

    @property
    def trained(self) -> str:
        """Where what was trained is: the model's folder, or its adapter's; in words where it is not
        here."""
        if self.known_from:
            return f"not here; its scores are from {self.known_from}"
        return self.adapter or self.path

    def check(self) -> None:
        """Raises DamagedFile where a folder of ours is not what was written; it is deleted."""
        assert self.known_from is None, f"no weights of {self.identity} are here"
        folder = self.trained
        if self.digest is None or folder_identity(local_copy(folder)) == self.digest:
            return
        if is_uri(folder):  # this machine's copy, or what it is a copy of?
            shutil.rmtree(local_copy(folder))
            if folder_identity(local_copy(folder)) == self.digest:
                return
        Folder(folder).delete()
        raise DamagedFile(f"{folder} was damaged and is deleted; the same command trains it anew")

    def family(self) -> str:
        """Its architecture; models of one family and one tokenizer see samples alike."""
        return str(self.load_config().model_type)

    def vocabulary(self) -> dict[str, int]:
        """The tokenizer's words and their numbers."""
        return self.load_tokenizer().get_vocab()

    def parameters(self) -> int:
        """How many it has, from its configuration alone."""
        return parameters(self.load_config(), self.trust_remote_code)

    def without_weights(self) -> PreTrainedModel:
        """The model in fp32 with weights that have shapes and no numbers, from its configuration
        alone; its buffers are whole."""
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                self.load_config(),
                dtype=DTYPES["fp32"],
                trust_remote_code=self.trust_remote_code,
            )
        model.tie_weights()  # each was replaced by itself
        return model

    def with_random_weights(self, layers: int) -> PreTrainedModel:
        """A model like it in fp32, of so many layers and with random weights."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_config(
            with_layers(self.load_config(), layers),
            dtype=DTYPES["fp32"],
            trust_remote_code=self.trust_remote_code,
        )

    def load_config(self) -> PreTrainedConfig:
        """What a model of it is built from."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(
            local_copy(self.path),
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            local_copy(self.path),
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
        if not tokenizer.is_fast:
            raise UserError(
                f"model.base={self.path} has no fast tokenizer (tokenizer.json); convert it with"
                " transformers' `convert_slow_tokenizer`, the character spans of tokens are needed"
            )
        return tokenizer

    @property
    def adapter_name(self) -> str:
        """What the adapter is called in the loaded model: a name without dots."""
        return self.identity.replace("/", "-")

    def load(
        self,
        precision: str,
        device: torch.device | None = None,
        beside: Sequence[Model] = (),
        spread: bool = False,
    ) -> PreTrainedModel:
        """The model in evaluation mode, from safetensors only (no pickle is read).

        precision: fp32 | bf16; beside: models that are other adapters of the same weights; spread:
            over all GPUs of this process, some layers on each, instead of on the device.
        """
        from transformers import AutoModelForCausalLM

        began = time.monotonic()
        model = AutoModelForCausalLM.from_pretrained(
            local_copy(self.path),
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            use_safetensors=True,
            dtype=DTYPES[precision],
            device_map="balanced" if spread else None,
        )
        devices: dict[str, object] = getattr(model, "hf_device_map", {})
        if spread and {"cpu", "disk"} & {*devices.values()}:
            raise UserError(
                f"{self.path} does not fit the GPUs of a scorer; raise"
                " cluster.score.gpus_per_actor, or leave it out"
            )
        for adapted in (self, *beside):
            if adapted.adapter:
                model.load_adapter(local_copy(adapted.adapter), adapted.adapter_name)
        # Loaded and then moved: a device map would need accelerate's hooks in every forward pass.
        model = model.eval()
        if device is not None and not spread:
            model = model.to(device)
        MODEL_LOAD_SECONDS.add(time.monotonic() - began, path=self.path)
        return model


def parameters(config: PreTrainedConfig, trust_remote_code: bool = False) -> int:
    """How many a model of this configuration has."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return int(model.num_parameters())


def with_layers(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """The configuration with so many layers."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    text.num_hidden_layers = count
    if types := getattr(text, "layer_types", None):
        text.layer_types = (types * count)[:count]
    return changed


# One model for all samples, or one for each domain, by its name.
ModelByDomain = Model | Mapping[str, Model]


def models_by_domain(model: ModelByDomain | None) -> dict[str, Model]:
    """The models by domain; the name is empty where one is for all."""
    if isinstance(model, Model):
        return {"": model}
    return dict(model or {})
