"""`README.md` of a run's folder: a data set's card, by which `datasets` and the Hub load it.

It may be published with the data, so it tells no path of a machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from huggingface_hub import DatasetCardData

from instructdiff_ray.config.clean import CleanConfig
from instructdiff_ray.context import RunContext
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.hub_data import is_hub
from instructdiff_ray.results.composition import SOURCE
from instructdiff_ray.results.formats import ALPACA_FILE, FORMATS_FOLDER, MESSAGES_FILE
from instructdiff_ray.results.row_schema import Feature
from instructdiff_ray.selection.strategies import STRATEGIES
from instructdiff_ray.storage.artifacts import ATTEMPT

CARD, CARD_TEMPLATE = "README.md", "card.md.j2"
# Configurations of the data set: name → file, what it is.
CONFIGS = {
    "selected": ("selected.jsonl", "the selection, source rows untouched"),
    "messages": (f"{FORMATS_FOLDER}/{MESSAGES_FILE}", "the selection as chat messages"),
    "alpaca": (f"{FORMATS_FOLDER}/{ALPACA_FILE}", "the selection in Alpaca's columns"),
    "ranking": ("ranking.parquet", "every sample with its scores and fate"),
    "rejects": ("rejects.jsonl", "rows that are no valid sample, with the reason"),
}
COLUMNS = {
    "sample_id": "hash of the sample's content",
    "domain": "filter and ranking work within it",
    "response_tokens": "tokens of the responses, under the base model's tokenizer",
    "base_nll": "mean NLL of the response under the base model",
    "base_entropy": "mean entropy of its next-token distribution over the response",
    "calibrated_nll": "mean NLL under the calibrated model",
    "calibrated_entropy": "mean entropy under the calibrated model",
    "delta_nll": "ΔNLL: `calibrated_nll` − `base_nll`; the filter `nll` cuts off both ends",
    "delta_entropy": "ΔH: `base_entropy` − `calibrated_entropy`; the band is ranked by it",
    "fate": "`selected`, `below_band`, `above_band`, `not_top` or `excluded`",
    "excluded_by": "what excluded it: a guard, `warmup` or `strategy`",
    "surprise": "value of the guard `typical`, higher is worse",
    "ending_nll": "value of the guard `complete`, higher is worse",
    "ifd": "value of the guard `mismatched`, higher is worse",
    "value": "what a baseline ranks by",
    "selection_probability": "probability that a run with one calibration selects it, estimated",
    "delta_entropy_std": "standard deviation of its ΔH over the calibrations",
}
FATES = {
    "warmup": "warm-up subset",
    "below_band": "cut off: likelier by most",
    "above_band": "cut off: likelier by least, or less likely",
    "in_band": "in the band between",
    "excluded": "excluded",
}
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
SIZES |= {10_000_000: "1M<n<10M", 100_000_000: "10M<n<100M", 1_000_000_000: "100M<n<1B"}
LARGEST = "1B<n<10B"


def render_card(
    context: RunContext,
    summary: Mapping[str, Any],
    columns: Sequence[str],
    sizes: Mapping[str, int],
    features: Sequence[Feature] | None,
) -> str:
    """The card of one round.

    columns: of `ranking.parquet`; sizes: bytes of the files that the folder holds; features: of the
    rows of `selected.jsonl`, None where they have no schema in common.
    """
    counts = summary["counts"]
    configs = _loadable(sizes, features, counts["selected"])
    keys = [key for name, key in summary["keys"].items() if "calibrated_model" in name]
    body = (
        card_environment(__package__)
        .get_template(CARD_TEMPLATE)
        .render(
            summary=summary,
            counts=counts,
            domains=summary["domains"],
            calibrates=STRATEGIES[summary["strategy"]].calibrates,
            settings=_settings(context),
            base_model=model_name(context.base),
            calibrated_model=", ".join(f"key {key}" for key in keys),
            fates=FATES,
            configs=configs,
            tables=[
                CONFIGS[name][0]
                for name in ("ranking", "alpaca")
                if _is_apart(name, configs, sizes)
            ],
            columns={name: COLUMNS[name] for name in columns},
            warnings=_without_paths(summary),
        )
    )
    data = _front_matter(configs, features, counts["selected"])
    return f"---\n{data.to_yaml()}\n---\n{body.rstrip()}\n"


def _loadable(
    sizes: Mapping[str, int], features: Sequence[Feature] | None, selected: int
) -> dict[str, str]:
    """The configurations that `datasets` can load, the default first: name → what it is.

    It reads all configurations of a data set as the file format of the first.
    """
    held = [
        name
        for name, (file, _) in CONFIGS.items()
        # Loaders fail on an empty file, and where a later row has another schema than the first.
        if sizes.get(file)
        and (name != "selected" or features)
        and (selected or name in ("ranking", "rejects"))
    ]
    endings = {name: CONFIGS[name][0].rpartition(".")[2] for name in held}
    return {name: CONFIGS[name][1] for name in held if endings[name] == endings[held[0]]}


def _front_matter(
    configs: Mapping[str, str], features: Sequence[Feature] | None, selected: int
) -> DatasetCardData:
    first = next(iter(configs))
    entries = [
        {
            "config_name": name,
            "data_files": CONFIGS[name][0],
            **({"default": True} if name == first else {}),
        }
        for name in configs
    ]
    further: dict[str, Any] = {}
    if features and "selected" in configs:
        further["dataset_info"] = [{"config_name": "selected", "features": [*features]}]
    return DatasetCardData(
        pretty_name="InstructDiff selection",
        # The Hub knows no licence that means "that of the source".
        license="other",
        license_name="that-of-the-source-data",
        task_categories=["text-generation"],
        size_categories=[size_category(selected)],
        tags=["instruction-tuning", "data-selection", "instructdiff", "arxiv:2601.23006"],
        configs=entries,
        **further,
    )


def _is_apart(name: str, configs: Mapping[str, str], sizes: Mapping[str, int]) -> bool:
    return name not in configs and CONFIGS[name][0] in sizes


def size_category(rows: int) -> str:
    """As the Hub names it."""
    return next((name for limit, name in SIZES.items() if rows < limit), LARGEST)


def _settings(context: RunContext) -> dict[str, Any]:
    config = context.config
    calibrate, select = config.calibrate, config.select
    shown = {"strategy": config.strategy, "β (`select.ratio`)": select.ratio}
    if context.strategy.calibrates:
        shown |= {
            "α (`calibrate.ratio`)": calibrate.ratio,
            "γ (`select.reject_ratio`)": select.reject_ratio,
            "filter, end of ΔH (`select.filter`, `select.entropy`)": (
                f"{select.filter}, {select.entropy}"
            ),
            "guards (`select.guard`)": ", ".join(select.guards) or "none",
            "epochs": calibrate.epochs,
            "learning rate": calibrate.learning_rate,
            "calibrations (`calibrate.repeats`)": calibrate.repeats,
            "rounds": config.rounds,
        }
    shown |= _cleaned(config.clean)
    if select.mixture:
        shares = (f"{domain} {share:g}" for domain, share in select.mixture.items())
        shown |= {"mixture, of the selection (`select.mixture`)": ", ".join(shares)}
    if config.domains:
        shown["domains with settings of their own"] = ", ".join(config.domains)
    return {**shown, "seed": config.seed}


def _cleaned(clean: CleanConfig) -> dict[str, Any]:
    """What was left out of the pool on purpose; of files of benchmarks the last names."""
    benchmarks = [
        path if is_hub(path) else path.rstrip("/").rsplit("/", 1)[-1] for path in clean.benchmarks
    ]
    shown = {
        "near-duplicates from (`clean.near_duplicates`)": clean.near_duplicates,
        "languages (`clean.languages`)": ", ".join(clean.languages),
        f"texts of benchmarks, {clean.ngram} words (`clean.benchmarks`)": ", ".join(benchmarks),
        "response tokens at least (`clean.min_response_tokens`)": clean.min_response_tokens,
        "response tokens at most (`clean.max_response_tokens`)": clean.max_response_tokens,
    }
    return {name: value for name, value in shown.items() if value}


def model_name(model: Model) -> str:
    """A hub model's name and commit; of a folder the last name, of an artifact such as the demo's
    model its kind and key, and the hash of what it holds."""
    if model.revision:
        return f"{model.path} at commit {model.revision}"
    names = model.path.rstrip("/").split("/")
    attempt = next((i for i, name in enumerate(names) if i > 1 and name.startswith(ATTEMPT)), None)
    name = " ".join(names[attempt - 2 : attempt]) if attempt else names[-1]
    return f"{name} (a local folder; content {model.identity})"


def _without_paths(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The warnings; one that names a source file has its last name only."""
    sources = [c["value"] for c in summary["concentrations"] if c["kind"] == SOURCE]
    warnings = []
    for warning in summary["warnings"]:
        message = warning["message"]
        for source in sources if warning["name"] == SOURCE else ():
            message = message.replace(source, source.rstrip("/").split("/")[-1])
        warnings.append({"name": warning["name"], "message": message})
    return warnings


def card_environment(package: str) -> jinja2.Environment:
    """Renders Markdown from the templates of this package."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(package).joinpath(name).read_text("utf-8")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=lambda value: f"{value:,.0f}", plain=plain)
    return environment


def plain(value: Any) -> str:
    """A text of the data in one line of Markdown: no tag, no cell, no link but a bare address."""
    return re.sub(r"([\\`*_{}\[\]<>()#!|~&])", r"\\\1", " ".join(str(value).split()))
