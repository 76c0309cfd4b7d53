"""Hydra at the edge: the files of conf/ and the settings of a command line in, a `Config` out."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instructdiff_ray.config.run import Config
from instructdiff_ray.config.selection import SelectConfig
from instructdiff_ray.config.training import CalibrateConfig
from instructdiff_ray.errors import UserError

# What Hydra raises for settings that are wrong.
SETTINGS_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
# The name under which conf/config.yaml finds the dataclasses, among those of all Hydra programs.
SCHEMA = "instructdiff_schema"
# The demo is what runs when none of these is named: who names one of them and forgets another
# should hear of it.
NAMED = {"data.path", "model", "model.base", "domain"}


def conf_folder() -> str:
    """The folder of the default settings: a wheel has it in the package, a checkout beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")


def run_hydra(task: Callable[[DictConfig], None], arguments: Sequence[str]) -> None:
    """Call the task with the settings of a command line, once, or in a sweep (`-m`) once for each
    point; arguments: without the command's name. Raises UserError and SETTINGS_ERRORS."""
    parser = _Options(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("settings", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    names = {setting.lstrip("+~").split("=")[0] for setting in given.settings}
    config_name = "config" if names & NAMED else "demo"
    options = ["--multirun"] * given.multirun + ["--cfg=job"] * bool(given.cfg)
    if given.config_dir:
        _check_new(given.config_dir)
        options.append(f"--config-dir={given.config_dir}")
    call_hydra(task, [*options, *given.settings], config_name)


def call_hydra(
    task: Callable[[DictConfig], None], arguments: Sequence[str], config_name: str = "config"
) -> None:
    """The same with arguments that Hydra knows."""
    # Errors come to us whole, and we print them; Hydra's own printing takes many lines.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _know_schema()
    sys.argv[1:] = arguments  # from where Hydra takes them
    hydra.main(version_base="1.3", config_path=conf_folder(), config_name=config_name)(task)()


class _Options(argparse.ArgumentParser):
    """Hydra has many more options; those that are documented are taken, in any place."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `instructdiff COMMAND --help` shows options and settings")


def _check_new(folder: str) -> None:
    """Raises UserError for a folder of settings that would change none: Hydra looks into conf/
    first, so a file that is there too would be passed over in silence."""
    if not os.path.isdir(folder):
        raise UserError(f"--config-dir {folder} is no folder")
    for path in sorted(Path(folder).rglob("*.yaml")):
        name = path.relative_to(folder)
        if (Path(conf_folder()) / name).exists():
            raise UserError(
                f"--config-dir {folder}: {name} is the name of a file of settings that is there"
                f" already; give yours another, {name.with_stem(f'my_{name.stem}')} say"
            )


def compose_settings(overrides: Sequence[str], config_name: str = "config") -> DictConfig:
    """The settings that a command line with these overrides has. Raises SETTINGS_ERRORS."""
    _know_schema()
    with _hydra_of_nobody(), initialize_config_dir(version_base="1.3", config_dir=conf_folder()):
        return compose(config_name, overrides=[*overrides])


@contextmanager
def _hydra_of_nobody() -> Iterator[None]:
    """Sets Hydra's state aside: the process may be a program of Hydra itself."""
    state = GlobalHydra.instance()
    before, state.hydra = state.hydra, None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before


def _know_schema() -> None:
    ConfigStore.instance().store(name=SCHEMA, node=Config)


def typed_config(settings: DictConfig) -> Config:
    """The library's configuration, checked. Raises UserError and OmegaConf's errors."""
    # Merged into the dataclasses once more, for Hydra lets `+name=value` add to them.
    values = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(values, dict)
    for domain_settings in (values.get("domains") or {}).values():
        _type_domain(domain_settings)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    assert isinstance(config, Config)
    return config


def _type_domain(domain_settings: object) -> None:
    """Gives a domain's own settings the types of the common ones, in place; what is no setting is
    left for the configuration to refuse."""
    schemas = {"calibrate": CalibrateConfig, "select": SelectConfig}
    for part, given in domain_settings.items() if isinstance(domain_settings, dict) else ():
        if part in schemas and isinstance(given, dict):
            typed = OmegaConf.structured(schemas[part])
            for name in given.keys() & typed.keys():
                typed[name] = given[name]
                given[name] = typed[name]


def config_of(overrides: Sequence[str]) -> Config:
    """The configuration that these overrides make. Raises UserError."""
    try:
        return typed_config(compose_settings(overrides))
    except SETTINGS_ERRORS as error:
        raise UserError(in_one_line(error)) from None


def in_one_line(error: Exception) -> str:
    """A message of Hydra or OmegaConf in one line that names the key, and the right one if near."""
    if isinstance(error, OverrideParseException):
        reason = " ".join(str(error).split("See https://")[0].split())
        return f"{error.override} can't be read as a setting: {reason}"
    text = f"{error}\n{error.__cause__ or ''}"
    key = re.search(r"full_key: (\S+)", text)
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' not in", text)
    if unknown:
        name = unknown.group(1) or (key.group(1) if key else unknown.group(2))
        if name.startswith("domains."):
            return f"{name} is new to the configuration; put a + before it: +{name}=…"
        near = difflib.get_close_matches(name, _known_keys(), n=1)
        return f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else "")
    if choice := re.search(
        r"Could not find '(.+)/(.*)'\s+Available options in .+:((?:\n\t.+)+)", text
    ):
        group, name, options = choice.groups()
        return f"{group}={name} is not known; choose {', '.join(options.split())}"
    message = str(error.__cause__ or error).split("full_key:")[0]
    line = " ".join(message.split()).replace(
        "is not a ListConfig, list or tuple", "is no list, such as [a,b]"
    )
    return f"{key.group(1)}: {line}" if key else line


def _known_keys() -> list[str]:
    def walk(node: object, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [key for name, child in node.items() for key in walk(child, f"{prefix}.{name}")]

    schema = OmegaConf.to_container(OmegaConf.structured(Config))
    groups = [path.name for path in Path(conf_folder()).iterdir() if path.is_dir()]
    return [*groups, *(key.lstrip(".") for key in walk(schema, ""))]
