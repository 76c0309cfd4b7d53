"""The samples that the report shows, and what is seen of each of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructdiff_ray.results.labels import GUARD_LABELS, LABELS
from instructdiff_ray.sample import Part
from instructdiff_ray.scoring.token_scores import ShownSample, TokenScores
from instructdiff_ray.selection.guards import GUARDS
from instructdiff_ray.selection.ranking import Ranking
from instructdiff_ray.selection.select import ABOVE, BELOW, NOT_TOP, SELECTED, lowest

EXAMPLES_EACH = 4
MAX_EXAMPLE_CHARACTERS = 1200  # of a sample's prompts, and of its responses
LARGEST_CHANGES = 6
# |ΔH| in nats from which a token is coloured, and coloured more strongly.
SHADES = (0.1, 0.3, 0.6, 1.2)
_VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥", " ": "␣", "\r": "␍"})


@dataclass(frozen=True)
class Token:
    """One token's scores, in nats."""

    base_nll: float
    base_entropy: float
    calibrated_nll: float
    calibrated_entropy: float

    @property
    def delta_entropy(self) -> float:
        return self.base_entropy - self.calibrated_entropy


@dataclass(frozen=True)
class Piece:
    """Some characters of a response and the tokens that they come from: one, or several that share
    a character; none where nothing was scored."""

    text: str
    tokens: Sequence[Token] = ()

    @property
    def delta_entropy(self) -> float:
        """Mean over its tokens, in nats."""
        return sum(token.delta_entropy for token in self.tokens) / len(self.tokens)

    @property
    def shade(self) -> str:
        """The class of its colour: `surer` or `unsure` with a strength; empty near 0."""
        change = self.delta_entropy
        strength = sum(abs(change) >= limit for limit in SHADES)
        return f"{'surer' if change > 0 else 'unsure'}-{strength}" if strength else ""

    @property
    def visible(self) -> str:
        """Its characters with signs in the place of blanks."""
        return self.text.translate(_VISIBLE)


@dataclass(frozen=True)
class Turn:
    """What is asked, and the response to it."""

    prompt: str
    response: Sequence[Piece]


@dataclass(frozen=True)
class Example:
    """One sample to show; measures: label → value."""

    sample_id: str
    domain: str
    fate: str
    measures: Mapping[str, float | None]
    turns: Sequence[Turn]

    @property
    def scored(self) -> list[Piece]:
        """The pieces whose tokens have scores."""
        return [piece for turn in self.turns for piece in turn.response if piece.tokens]

    @property
    def largest_changes(self) -> list[Piece]:
        """The pieces whose entropy changed most, in their order."""
        order = sorted(range(len(self.scored)), key=lambda i: -abs(self.scored[i].delta_entropy))
        return [self.scored[i] for i in sorted(order[:LARGEST_CHANGES])]


@dataclass(frozen=True)
class Shown:
    """The samples of the report: rows of the ranking under their headings, and parts by id."""

    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    parts: Mapping[str, Sequence[Part]]

    @property
    def samples(self) -> list[ShownSample]:
        domains = {row["sample_id"]: row["domain"] for rows in self.rows.values() for row in rows}
        return [ShownSample(name, domains[name], self.parts[name]) for name in sorted(domains)]

    def examples(
        self, measures: Sequence[str], tokens: Mapping[str, TokenScores]
    ) -> dict[str, list[Example]]:
        """Under each heading. measures: that samples were ranked by; tokens: by sample id."""
        labels = {name: label for name, label in LABELS.items() if name in measures} | GUARD_LABELS
        return {
            heading: [self._example(row, labels, tokens.get(row["sample_id"])) for row in rows]
            for heading, rows in self.rows.items()
        }

    def _example(
        self, row: Mapping[str, Any], labels: Mapping[str, str], tokens: TokenScores | None
    ) -> Example:
        return Example(
            sample_id=row["sample_id"],
            domain=row["domain"],
            fate=f"excluded by {row['excluded_by']}" if row["excluded_by"] else row["fate"],
            measures={label: row[name] for name, label in labels.items() if name in row},
            turns=shorten(turns_of(self.parts[row["sample_id"]], tokens)),
        )


def _headings(ranking: Ranking) -> Iterator[tuple[str, str, str | None, bool]]:
    """Headings of the examples in the report: text, fate or guard, column whose extremes are shown
    (None: drawn at random), and whether they are the highest."""
    low, high = False, True
    if not ranking.inputs.strategy.calibrates:
        first, last = (high, low) if ranking.inputs.strategy.end == "highest" else (low, high)
        yield "Selected", SELECTED, "value", first
        yield "Selected: drawn at random", SELECTED, None, low
        yield "Not selected", NOT_TOP, "value", last
        return
    yield "Selected: lowest ΔH", SELECTED, "delta_entropy", low
    yield "Selected: drawn at random", SELECTED, None, low
    for name in ranking.inputs.guards:
        measure = GUARDS[name].measure
        label = GUARD_LABELS[measure]
        yield f"Selected, and most suspicious: highest {label}", SELECTED, measure, high
        yield f"Excluded: highest {label}", name, measure, high
    yield "Left in the band: highest ΔH", NOT_TOP, "delta_entropy", high
    yield "Below the band: lowest ΔNLL", BELOW, "delta_nll", low
    yield "Above the band: highest ΔNLL", ABOVE, "delta_nll", high


def choose_examples(ranking: Ranking) -> dict[str, list[int]]:
    """Places in the ranking of the rows to show under each heading."""
    places = {}
    for heading, chosen_by, column, highest in _headings(ranking):
        guarded = chosen_by in GUARDS
        rows = ranking.excluded_by([chosen_by]) if guarded else ranking.has_fate(chosen_by)
        if column is None:
            shown = _drawn(np.flatnonzero(rows), ranking.inputs.seed)
        else:
            shown = _extreme(ranking.table[column].to_numpy(), rows, highest)
        if len(shown):
            places[heading] = shown.tolist()
    return places


def _extreme(values: np.ndarray, rows: np.ndarray, highest: bool) -> np.ndarray:
    """Places of the rows with the lowest or highest values, the most extreme first; of equal ones
    the first."""
    rows = rows & np.isfinite(values)
    count = min(EXAMPLES_EACH, int(rows.sum()))
    places = np.flatnonzero(lowest(values, rows, count, highest))
    return places[np.argsort(-values[places] if highest else values[places], kind="stable")]


def _drawn(places: np.ndarray, seed: int) -> np.ndarray:
    count = min(EXAMPLES_EACH, len(places))
    return np.random.default_rng(seed).choice(places, count, replace=False)


def turns_of(parts: Sequence[Part], tokens: TokenScores | None) -> list[Turn]:
    """The sample's turns; the responses are cut into the pieces that have scores."""
    turns: list[Turn] = []
    asked: list[str] = []
    for kind, text in parts:
        if kind != "response":
            asked.append(text)
            continue
        pieces = [Piece(text)] if tokens is None else pieces_of(tokens, len(turns))
        turns.append(Turn("\n\n".join(asked), pieces))
        asked = []
    return turns


def pieces_of(tokens: TokenScores, turn: int) -> list[Piece]:
    """One response as it was scored, in pieces that together are its whole text."""
    text, position = tokens.responses[turn], 0
    pieces: list[Piece] = []
    columns = zip(tokens.turn, tokens.start, tokens.end, strict=True)
    for number, (turn_of_token, start, end) in enumerate(columns):
        if turn_of_token != turn:
            continue
        token = Token(**{name: values[number] for name, values in tokens.measures.items()})
        if start < position:  # it shares a character with the piece before
            last = pieces.pop()
            grown = last.text + text[position : max(position, end)]
            pieces.append(Piece(grown, [*last.tokens, token]))
        else:
            if start > position:
                pieces.append(Piece(text[position:start]))
            pieces.append(Piece(text[start:end], [token]))
        position = max(position, end)
    return [*pieces, Piece(text[position:])] if position < len(text) else pieces


def shorten(turns: Sequence[Turn]) -> list[Turn]:
    """As much as there is room for, of prompts and of responses; says how much is left out."""
    prompt_room = response_room = MAX_EXAMPLE_CHARACTERS
    shown: list[Turn] = []
    for number, turn in enumerate(turns):
        if prompt_room <= 0 or response_room <= 0:
            more = Piece(f"… ({len(turns) - number:,} more turns)")
            return [*shown[:-1], Turn(shown[-1].prompt, [*shown[-1].response, more])]
        prompt = turn.prompt[:prompt_room] + _left_out(len(turn.prompt) - prompt_room)
        shown.append(Turn(prompt, _shorten_pieces(turn.response, response_room)))
        prompt_room -= len(turn.prompt)
        response_room -= sum(len(piece.text) for piece in turn.response)
    return shown


def _shorten_pieces(pieces: Sequence[Piece], room: int) -> list[Piece]:
    shown: list[Piece] = []
    for number, piece in enumerate(pieces):
        if len(piece.text) > room:
            rest = sum(len(later.text) for later in pieces[number:]) - room
            cut = [Piece(piece.text[:room], piece.tokens)] if room else []
            return [*shown, *cut, Piece(_left_out(rest))]
        shown.append(piece)
        room -= len(piece.text)
    return shown


def _left_out(characters: int) -> str:
    return f"… ({characters:,} more characters)" if characters > 0 else ""
