"""What is read, by which model, and as which text: `data`, `model` and `template`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from instructdiff_ray.errors import UserError, require


@dataclass
class DataConfig:
    """Where the instruction pool comes from.

    path: file, folder or glob, or a list of them; local or a URI (s3://, gs://, abfs://), or a
        dataset of the Hugging Face Hub: org/name, or hf://datasets/org/name[@revision], with a
        file, folder or glob behind it where not all is meant. For files that are a domain each, a
        mapping: domain → its path or paths.
    subset: of datasets of the Hub, as `datasets.load_dataset` has them; None: the only or default
        one.
    split: the same, and of folders of `datasets.save_to_disk`; None: `train`.
    limit: rows read at most, in file order; None reads all.
    format: json | jsonl | parquet | csv | arrow; None goes by the file's name.
    columns: the user's names for `instruction`, `input`, `response`, `messages`; None recognises
        the usual schemas row by row.
    domain_column: column that names each row's domain; None goes by the file, where `path` names
        domains, and else gives all rows the configured domain.
    keep_duplicates: keep rows whose instruction and response were already read.
    over_long: reject | truncate what is longer than `calibrate.max_length` tokens.
    max_reject_ratio: share of the rows read that may be rejected, duplicates and what `clean`
        leaves out aside, before the run stops.
    """

    path: Any = None
    subset: str | None = None
    split: str | None = None
    limit: int | None = None
    format: str | None = None
    columns: Any = None  # typed as a dict, OmegaConf can't replace the None
    domain_column: str | None = None
    keep_duplicates: bool = False
    over_long: str = "reject"
    max_reject_ratio: float = 0.5

    def __post_init__(self) -> None:
        require(
            self.over_long in ("reject", "truncate"),
            f"data.over_long={self.over_long} is not known; use reject or truncate",
        )
        require(
            not (isinstance(self.path, dict) and self.domain_column is not None),
            "both data.domain_column and data.path name domains; leave out one of them",
        )
        require(self.limit is None or self.limit > 0, f"data.limit={self.limit} must be 1 or more")
        require(
            0 <= self.max_reject_ratio <= 1,
            f"data.max_reject_ratio={self.max_reject_ratio} must be in [0, 1]",
        )
        if self.columns is not None:
            self._check_columns()

    def _check_columns(self) -> None:
        names = ("instruction", "input", "response", "messages")
        require(
            isinstance(self.columns, dict),
            f"data.columns={self.columns} must name columns: '{{instruction: q, response: a}}'",
        )
        for name, column in self.columns.items():
            require(name in names, f"data.columns.{name} is not known; name {', '.join(names)}")
            require(isinstance(column, str), f"data.columns.{name}={column} must be a name")
        require(
            set(self.columns) == {"messages"}
            or {"instruction", "response"} <= set(self.columns) <= set(names[:3]),
            "data.columns must name `instruction` and `response`, or `messages` alone",
        )

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [path for paths in self.paths_by_domain.values() for path in paths]

    @property
    def paths_by_domain(self) -> dict[str | None, list[str]]:
        """`path` as lists, by the domain that it names for them; None: it names none."""
        named = self.path if isinstance(self.path, dict) else {None: self.path}
        return {
            None if domain is None else str(domain): [
                str(p) for p in (paths if isinstance(paths, (list, tuple)) else [paths]) if p
            ]
            for domain, paths in named.items()
        }


@dataclass
class ModelConfig:
    """The model that is to be trained on the selection.

    base: a Hugging Face folder (local or URI) or a hub name; `demo`: the demo's own.
    revision: branch, tag or commit of a hub model.
    trust_remote_code: run Python code that comes with the model.
    """

    base: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(unsafe_hash=True)
class TemplateConfig:
    """How a sample becomes text; training and scoring see the same.

    name: of this template, for people.
    prompt: what stands before the response, with `{instruction}`; used without an input.
    prompt_with_input: the same with `{instruction}` and `{input}`.
    response_prompt: what stands before a response that is scored without its prompt.
    chat: use the tokenizer's own chat template instead of the two prompts.
    """

    name: str = "direct"
    prompt: str = "{instruction}\n"
    prompt_with_input: str = "{instruction}\n{input}\n"
    response_prompt: str = ""
    chat: bool = False

    def __post_init__(self) -> None:
        if self.chat:
            return
        for name, names in (
            ("prompt", {"instruction"}),
            ("prompt_with_input", {"instruction", "input"}),
        ):
            text = getattr(self, name)
            # Marks without braces: a doubled `{{instruction}}` is text, not the field.
            marks = {field: f"\0{field}\0" for field in sorted(names)}
            try:
                rendered = text.format(**marks)
            except (LookupError, ValueError, AttributeError, TypeError) as error:
                raise UserError(
                    f"template.{name} is no valid format string ({error}); double every brace that"
                    " is text"
                ) from None
            for mark_name, mark in marks.items():
                require(mark in rendered, f"template.{name} must contain {{{mark_name}}}")
