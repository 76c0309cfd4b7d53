"""What is still to be scored: passes over the pool, each with samples that the same roles lack."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from instructdiff_ray.models.encoding import Rendering
from instructdiff_ray.models.model import Model
from instructdiff_ray.pool.partition import id_array, id_prefixes
from instructdiff_ray.pool.pool import Pool, among, of_domain
from instructdiff_ray.scoring.blocks import KILLS_SCORER, OUT_OF_MEMORY
from instructdiff_ray.scoring.forwards import Forward, Place
from instructdiff_ray.scoring.store import aligned, read_pieces
from instructdiff_ray.storage.filesystem import Folder

# Of a piece, what tells whether a sample need not be scored.
SETTLED = pa.schema([("sample_id", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class View:
    """A form in which samples are shown, and who sees them in it.

    models, pieces: by role, a model and the folder for the pieces of its scores.
    """

    rendering: Rendering
    models: Mapping[str, Model]
    pieces: Mapping[str, Folder]

    def only(self, roles: Sequence[str]) -> View:
        """The same for those of its roles that are named."""
        models = {role: model for role, model in self.models.items() if role in roles}
        return replace(self, models=models, pieces={role: self.pieces[role] for role in models})

    def identities(self) -> set[str]:
        """Of its models."""
        return {model.identity for model in self.models.values()}


@dataclass(frozen=True)
class Pass:
    """Samples that the same roles lack. prefixes: of their ids, sorted; None: the whole pool.

    tokens: about what is to be read, by all roles together.
    """

    views: list[View]
    prefixes: np.ndarray | None
    tokens: int


def all_passes(
    pool: Pool, forwards: Mapping[str, Forward], places: Mapping[str, Place]
) -> list[Pass]:
    """What these forward passes lack. Where domains have models of their own, each by itself."""
    domains = {domain: None for forward in forwards.values() for domain in forward.domains()}
    common = {role for role, forward in forwards.items() if forward.domains() == [None]}
    if len(domains) > 1:
        domains.pop(None, None)
    passes = []
    for number, domain in enumerate(domains):
        for views in _together(_views(forwards, places, domain)):
            if {role for view in views for role in view.models} - common:
                passes += find_passes(pool, views, domain)
            elif number == 0:  # once for all domains
                passes += find_passes(pool, views)
    return passes


def _views(
    forwards: Mapping[str, Forward], places: Mapping[str, Place], domain: str | None
) -> Iterator[View]:
    for rendering in dict.fromkeys(forward.rendering for forward in forwards.values()):
        roles = [role for role, forward in forwards.items() if forward.rendering == rendering]
        models = {role: forwards[role].model_of(domain) for role in roles}
        yield View(rendering, models, {role: places[role].pieces_of(domain) for role in roles})


def _together(views: Iterator[View]) -> list[list[View]]:
    """Views that the same scorers serve: one whose models another's scorers hold goes with it."""
    teams: list[list[View]] = []
    for view in sorted(views, key=lambda view: -len(view.identities())):
        held = (team for team in teams if view.identities() <= team[0].identities())
        if team := next(held, None):
            team.append(view)
        else:
            teams.append([view])
    return teams


def find_passes(pool: Pool, views: Sequence[View], domain: str | None = None) -> list[Pass]:
    """What each role lacks, of a domain or of all, grouped by the set of roles that lack it."""
    roles = [(role, view) for view in views for role in view.models]
    prefixes, tokens, samples = defaultdict(list), Counter[int](), Counter[int]()
    with ExitStack() as stack:
        scored = [
            stack.enter_context(read_pieces(view.pieces[role], SETTLED)) for role, view in roles
        ]
        for index, *found in aligned(pool, *scored):
            ids, starts = id_array(index), id_prefixes(index)
            lengths = [index[_length(view.rendering)].to_numpy() for _, view in roles]
            # What ended with a machine is tried again: this one may be larger.
            settled = [rows.filter(pc.invert(_of_machine(rows))) for rows in found]
            codes = np.zeros(len(ids), dtype=int)
            for bit, rows in enumerate(settled):
                codes |= ~among(ids, np.sort(id_array(rows))) << bit
            if domain is not None:
                codes = np.where(of_domain(index, domain), codes, 0)
            for code in np.unique(codes[codes > 0]).tolist():
                mask = np.asarray(codes == code)
                prefixes[code].append(starts[mask])
                samples[code] += int(mask.sum())
                tokens[code] += sum(int(lengths[bit][mask].sum()) for bit in _bits(code))
    passes = []
    for code, count in sorted(samples.items()):
        lacking = [roles[bit][0] for bit in _bits(code)]
        some = [view.only(lacking) for view in views]
        every = count == len(pool) and pool.split is None
        subset = None if every else np.concatenate(prefixes[code])
        passes.append(Pass([view for view in some if view.models], subset, tokens[code]))
    return passes


def _bits(code: int) -> list[int]:
    return [bit for bit in range(code.bit_length()) if code >> bit & 1]


def _length(rendering: Rendering) -> str:
    # About what will be read; a question for a rating is a little longer than the sample.
    return "response_tokens" if rendering.form == "response" else "tokens"


def _of_machine(rows: pa.Table) -> pa.Array:
    reasons = pa.array([KILLS_SCORER, OUT_OF_MEMORY])
    return pc.is_in(rows["reason"], value_set=reasons)
