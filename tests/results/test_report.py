"""The report's page: right numbers, the same bytes each time, and nothing from the data alive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pytest

from instructdiff_ray.results.console import result_table
from instructdiff_ray.results.examples import (
    MAX_EXAMPLE_CHARACTERS,
    Example,
    Piece,
    Token,
    Turn,
    shorten,
)
from instructdiff_ray.results.plots import MAX_PLOTTED_DOMAINS
from instructdiff_ray.results.report import render_report as render
from instructdiff_ray.storage.filesystem import Folder

ALIVE = {"script", "iframe", "object", "embed", "link", "form", "base", "img", "a"}
FATES = np.array(["selected", "below_band", "above_band", "not_top"])


class Page(HTMLParser):
    """Tags, attributes, all text, and the cells of table rows under the row's first cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._rows: list[list[str]] = []
        self._in_cell = False
        self.feed(page)
        self.close()
        self.text = "".join(self.texts)
        self.rows = [tuple(row) for row in self._rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._in_cell:
            self._rows[-1][-1] += data.strip()

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def ranked(size: int, gamma: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Random scores of one domain with the fates that Algorithm 1 gives them at β = 0.1."""
    random = np.random.default_rng(seed)
    delta_nll, delta_entropy = random.normal(-0.3, 0.3, size), random.normal(0.2, 0.3, size)
    fate = np.full(size, 3)
    by_nll, tail = np.argsort(delta_nll), int(gamma * size)
    fate[by_nll[:tail]], fate[by_nll[size - tail :]] = 1, 2
    band = by_nll[tail : size - tail]
    fate[band[np.argsort(delta_entropy[band])][: max(1, size // 10)]] = 0
    return {
        "delta_nll": delta_nll,
        "delta_entropy": delta_entropy,
        "response_tokens": random.integers(5, 900, size),
        "fate": FATES[fate],
    }


def ranking_of(domains: dict[str, dict[str, Any]]) -> pa.Table:
    table = pa.concat_tables(
        pa.table(columns).append_column("domain", pa.array([name]).take([0] * len(columns["fate"])))
        for name, columns in domains.items()
    )
    encoded = [table[name].dictionary_encode() for name in ("domain", "fate")]
    table = table.drop_columns(["domain", "fate"])
    return table.append_column("domain", encoded[0]).append_column("fate", encoded[1])


def summary_of(domains: dict[str, dict[str, Any]]) -> dict[str, Any]:
    fates = np.concatenate([columns["fate"] for columns in domains.values()])
    counts: dict[str, Any] = {fate: int((fates == fate).sum()) for fate in FATES}
    counts["in_band"] = counts["selected"] + counts.pop("not_top")
    counts |= {"read": len(fates) + 7, "rejected": {"empty response": 5, "invalid JSON": 2}}
    counts |= {"pool": len(fates), "warmup": len(fates) // 10}
    scoring = {"tokens": 123456, "seconds": 61.0, "tokens_per_second": 2023.9}
    return {
        "counts": counts,
        "warnings": [],
        "base_model": "/models/base",
        "calibrated_model": "/store/calibrated",
        "strategy": "instructdiff",
        "round": 1,
        "rounds": 2,
        "scoring": scoring | {"samples_scored": {"base": 0, "calibrated": len(fates)}},
        "seconds": {"ingest": 1.5, "calibrate": 3725.0},
        "cost": {"machine_hours": 8.5, "price": 255.0},
        "keys": {"pool": "a93f00cd12ee"},
        "domains": {
            name: {
                "pool": len(columns["fate"]),
                "selected": int((columns["fate"] == "selected").sum()),
                "delta_nll": quantiles(columns["delta_nll"]),
                "delta_entropy": quantiles(columns["delta_entropy"]),
            }
            for name, columns in domains.items()
        },
    }


def quantiles(values: Any) -> dict[str, float]:
    return {
        f"p{percent:02}": float(np.percentile(values, percent)) for percent in (5, 25, 50, 75, 95)
    }


def example(prompt: str = "Why?", response: str = "Because.", **changes: Any) -> Example:
    fields = {"sample_id": "s-1", "domain": "math", "fate": "selected"}
    numbers = {"measures": {"ΔNLL": -0.5, "ΔH": 0.25}}
    turns = shorten([Turn(prompt, [Piece(response)])])
    return Example(**{**fields, **numbers, "turns": turns, **changes})


def report(
    domains: dict[str, dict[str, Any]], config: str = "seed: 1\n", *examples: Example
) -> tuple[str, Page]:
    shown = {"Selected, lowest ΔH": list(examples or (example(),))}
    page = render(summary_of(domains), ranking_of(domains), config, shown)
    return page, Page(page)


def assert_inert(page: str, parsed: Page) -> None:
    assert not ALIVE & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    links = parsed.values("href") + parsed.values("src") + parsed.values("xlink:href")
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", page))


MIXTURE = {
    "budget": "tokens",
    "domains": {
        "code": {"wanted": 7000, "came": 7012, "wanted_share": 0.7, "came_share": 0.8753},
        "math": {"wanted": 3000, "came": 999, "wanted_share": 0.3, "came_share": 0.1247},
    },
}


def test_a_mixture_is_shown_as_it_was_wanted_and_as_it_came() -> None:
    domains = {"math": ranked(200), "code": ranked(100, seed=1)}
    summary = {**summary_of(domains), "mixture": MIXTURE}
    page = render(summary, ranking_of(domains), "seed: 1\n", {})
    assert ("code", "7,000", "7,012", "70.0 %", "87.5 %", "") in Page(page).rows
    assert ("math", "3,000", "999", "30.0 %", "12.5 %", "") in Page(page).rows
    assert "in response tokens" in page
    assert_inert(page, Page(page))
    summary["scoring"] |= {"tokens": 0}
    text = result_table(summary, Folder("/runs/1"))
    assert "mixture in tokens  wanted  share   came  share\n" in text
    assert "code                7,000  70.0%  7,012  87.5%\n" in text


def test_tables_show_the_numbers_of_the_run() -> None:
    math, code = ranked(2000), ranked(1000, seed=1)
    _, parsed = report({"math": math, "code": code})
    rows = parsed.rows
    assert ("Read", "3,007", "100.0 %", "") in rows
    assert ("Rejected as invalid", "7", "0.2 %", "") in rows
    assert ("empty response", "5", "71.4 %", "") in rows
    assert ("Pool", "3,000", "99.8 %", "") in rows
    assert ("Below the band: ΔNLL too low", "300", "10.0 %", "") in rows
    assert ("In the band, not selected", "2,100", "69.8 %", "") in rows
    assert ("Selected", "300", "10.0 %", "") in rows
    assert ("calibrate", "1 h 02 min", "100.0 %", "") in rows
    assert "by scores: base 0, calibrated 3,000" in parsed.text
    assert "300 of 3,000 samples selected" in parsed.text
    assert "round 1 of 2" in parsed.text
    chosen = math["fate"] == "selected"
    means = [math["delta_entropy"].mean(), math["delta_entropy"][chosen].mean()]
    printed = [f"{mean:.3f}".replace("-", "−") for mean in means]
    assert ("math", "2,000", "200", *printed, "0.03") in rows
    assert [row for row in rows if row[0] == "math" and len(row) == 3] == [
        (
            "math",
            *(
                f"{np.median(math['response_tokens'][mask]):.0f}"
                for mask in (chosen | True, chosen)
            ),
        )
    ]


def test_sentence_names_what_the_model_was_calibrated_on() -> None:
    domains = {"math": ranked(100)}
    first = report(domains)[1].text
    later = Page(render({**summary_of(domains), "round": 2}, ranking_of(domains), "", {})).text
    assert "10 samples drawn at random" in first
    assert "the selection of round 1" in later and "at random" not in later


def test_sentence_counts_what_a_guard_excluded() -> None:
    domains = {"math": ranked(100)}
    summary = summary_of(domains)
    summary["counts"] |= {"excluded": 7, "excluded_by": {"typical": 7}}
    assert "never to be selected" not in report(domains)[1].text
    page = Page(render(summary, ranking_of(domains), "", {}))
    assert "7 were never to be selected (typical), and 10 were selected" in page.text


def test_same_run_gives_the_same_bytes_whatever_matplotlib_is_set_to() -> None:
    domains = {"math": ranked(500), "code": ranked(300, seed=1)}
    page, _ = report(domains)
    with matplotlib.rc_context({"svg.hashsalt": None, "axes.grid": True, "font.size": 30}):
        before = dict(matplotlib.rcParams)
        again, _ = report(domains)
        assert dict(matplotlib.rcParams) == before
    assert again == page


def test_page_is_inert_and_shows_hostile_text_as_it_is() -> None:
    attacks = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror='alert(2)'>",
        "</div></pre></style></svg><script src=//evil.example></script>",
        "&lt;b&gt; {{ 7 * 7 }} {% raw %} <!-- ]]>",
        '$\\frac{$ <b onmouseover="alert(3)">',
        '" onload="alert(4)',
    ]
    prompt, response, config, heading, domain, reason = attacks
    domains = {domain: ranked(200)}
    summary = summary_of(domains)
    summary["counts"]["rejected"] = {reason: 7}
    summary |= {"keys": {heading: prompt}, "base_model": response, "seconds": {reason: 1.0}}
    summary["warnings"] = [{"name": domain, "message": config}]
    shown = {heading: [example(prompt, response, sample_id=reason, domain=domain)]}
    page = render(summary, ranking_of(domains), config, shown)
    parsed = Page(page)
    assert_inert(page, parsed)
    for attack in attacks:
        assert attack in parsed.text
    assert f"Histogram of ΔH, domain {domain}" in parsed.values("aria-label")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert policy in parsed.values("content")


def test_examples_keep_their_lines_are_shortened_and_always_encode() -> None:
    long = "a" * (MAX_EXAMPLE_CHARACTERS + 1234)
    page, parsed = report(
        {"math": ranked(50)}, "", example("\n  one\n\ttwo", long), example("\ud800")
    )
    assert "\n  one\n\ttwo" in parsed.texts
    assert long[:MAX_EXAMPLE_CHARACTERS] + "… (1,234 more characters)" in parsed.texts
    assert page.encode("utf-8")


def test_tokens_are_coloured_and_their_text_is_escaped() -> None:
    attack = '"><script>alert(1)</script>\n'
    pieces = [
        Piece("plain "),
        Piece(attack, [Token(1.5, 1, 2.5, 2.25)]),
        Piece("\n", [Token(1, 2, 1, 0.5), Token(1, 2, 1, 1.5)]),
    ]
    turns = [Turn("Why?", pieces), Turn("And?", [Piece("same", [Token(1, 1, 1, 1)])])]
    page, parsed = report({"math": ranked(50)}, "", example(turns=turns))
    assert_inert(page, parsed)
    assert attack in parsed.texts and "And?" in parsed.texts
    assert {"unsure-4", "surer-3 newline"} <= {*map(str.strip, parsed.values("class"))}
    titles = parsed.values("title")
    assert titles[0] == "ΔH −1.25: H 1.00→2.25, NLL 1.50→2.50"
    assert titles[1].startswith("ΔH +1.50: H 2.00→0.50") and "; ΔH +0.50" in titles[1]
    assert attack.replace("\n", "↵").replace(" ", "␣") in parsed.texts
    assert "Each token of a response is coloured" in parsed.text
    assert "colours of single tokens are missing" in report({"math": ranked(50)})[1].text


@pytest.mark.parametrize("scores", ["base", "calibrated"])
def test_scores_from_elsewhere_are_named(scores: str) -> None:
    domains = {"math": ranked(50)}
    origin = {"scores": scores, "repository": "me/<scores>", "commit": "c" * 40, "samples": 1234}
    summary = summary_of(domains) | {"scores_from": [origin]}
    page = render(summary, ranking_of(domains), "", {"Selected": [example()]})
    parsed = Page(page)
    assert_inert(page, parsed)
    assert "of 1,234 samples, of this pool or others, from " in parsed.text
    assert f"me/<scores>@{'c' * 40}" in parsed.texts
    explained = "its weights are not here to read these samples" in parsed.text
    assert explained == (scores == "calibrated")


@pytest.mark.parametrize("model", [None, {"math": None}])
def test_a_model_whose_weights_are_elsewhere_has_no_path(model: dict[str, None] | None) -> None:
    summary = summary_of({"math": ranked(50)}) | {"calibrated_model": model}
    parsed = Page(render(summary, ranking_of({"math": ranked(50)}), "", {"Selected": [example()]}))
    assert "not here: its scores were taken over" in parsed.text and "None" not in parsed.text
    summary["scoring"]["tokens"] = 0  # its scores are here
    text = result_table(summary, Folder("/runs/1"))
    assert "warm-up" in text and "below band" in text and "calibrated model" not in text


def test_plots_do_not_share_ids_and_every_reference_has_its_target() -> None:
    page, parsed = report({"math": ranked(100), "code": ranked(100)})
    ids = parsed.values("id")
    assert ids and len(ids) == len(set(ids))
    referenced = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)
    assert {one or other for one, other in referenced} <= set(ids)


@pytest.mark.parametrize(("gamma", "cuts"), [(0.1, 4), (0.0, 0)])
def test_cuts_are_drawn_only_where_something_was_cut(gamma: float, cuts: int) -> None:
    page, parsed = report({"math": ranked(100, gamma), "code": ranked(100, gamma)})
    assert page.count("stroke-dasharray") == cuts
    assert ("None was set aside" in parsed.text) == (cuts == 0)


def constant(size: int, fates: Sequence[str]) -> dict[str, Any]:
    return {
        "delta_nll": np.zeros(size),
        "delta_entropy": np.full(size, 0.3),
        "response_tokens": np.full(size, 5),
        "fate": np.array(fates),
    }


@pytest.mark.parametrize(
    "domains",
    [
        {"only": ranked(1)},
        {"two": ranked(2)},
        {"alike": constant(20, ["selected"] * 2 + ["not_top"] * 18)},
        {"math": ranked(100), "one": constant(1, ["selected"])},
        {"long": ranked(100) | {"response_tokens": np.arange(100) * 10_000}},
    ],
    ids=["one-sample", "two-samples", "all-equal", "tiny-domain", "wide-lengths"],
)
def test_small_and_degenerate_pools_render(domains: dict[str, dict[str, Any]]) -> None:
    page, parsed = report(domains)
    assert parsed.tags.count("svg") == 2 * len(domains) + 2
    assert not re.search(r"\b(nan|inf)\b", page)


@pytest.mark.filterwarnings("error")
def test_domain_without_a_selection_shows_a_dash() -> None:
    _, parsed = report({"math": ranked(100), "empty": constant(20, ["not_top"] * 20)})
    assert ("empty", "20", "0", "0.300", "–", "–") in parsed.rows
    assert ("empty", "5", "–") in parsed.rows


def test_nothing_selected_at_all_still_renders() -> None:
    _, parsed = report({"empty": constant(20, ["not_top"] * 20)})
    assert "0 of 20 samples selected" in parsed.text
    assert "The median selected response" not in parsed.text


def test_a_selection_of_short_answers_is_pointed_out() -> None:
    columns = ranked(500)
    assert "much shorter" not in report({"math": columns})[1].text
    short = np.where(columns["fate"] == "selected", 3, 400)
    text = report({"math": columns | {"response_tokens": short}})[1].text
    assert "has 3 tokens, the median response of the pool 400" in text
    assert "much shorter" in text


def test_rows_may_come_in_any_order_and_in_chunks() -> None:
    domains = {"math": ranked(300), "code": ranked(200, seed=1)}
    table = ranking_of(domains)
    shuffled = table.take(np.random.default_rng(0).permutation(table.num_rows))
    pieces = pa.concat_tables([shuffled.slice(0, 77), shuffled.slice(77)])
    page = Page(render(summary_of(domains), pieces, "seed: 1\n", {}))
    assert page.rows == Page(render(summary_of(domains), table, "seed: 1\n", {})).rows


def test_a_million_rows_in_many_domains_stay_a_small_page() -> None:
    domains = {f"domain-{number}": ranked(40_000, seed=number) for number in range(25)}
    page, parsed = report(domains)
    assert len(page.encode()) < 1_000_000
    assert parsed.tags.count("svg") == 2 * MAX_PLOTTED_DOMAINS + 2
    assert "Plots show the 20 largest of 25 domains" in parsed.text
    assert any(row[0] == "domain-24" for row in parsed.rows)


def test_a_baselines_page_has_its_value_and_nothing_of_a_calibrated_model() -> None:
    columns = ranked(500)
    value = columns.pop("delta_entropy")
    del columns["delta_nll"]
    columns["fate"][np.isin(columns["fate"], ["below_band", "above_band"])] = "excluded"
    table = ranking_of({"math": {**columns, "value": value}})
    summary = summary_of({"math": {**columns, "delta_nll": value, "delta_entropy": value}})
    del summary["domains"]["math"]["delta_nll"], summary["domains"]["math"]["delta_entropy"]
    summary["domains"]["math"]["value"] = quantiles(value)
    summary["counts"] |= {"excluded": 100, "in_band": 500, "below_band": 0, "above_band": 0}
    summary["counts"]["excluded_by"] = {"mismatched": 60, "strategy": 40}
    summary |= {"strategy": "ppl_min", "calibrated_model": None}
    shown = example(measures={"value": 1.25})
    parsed = Page(render(summary, table, "", {"Selected": [shown]}))
    assert "Baseline: ppl_min" in parsed.text and "value 1.250" in parsed.text
    assert ("Excluded by mismatched, strategy", "100", "19.7 %", "") in parsed.rows
    assert "Not selected" in [row[0] for row in parsed.rows]
    for word in ("ΔH", "ΔNLL", "calibrated model", "None"):
        assert word not in parsed.text


@pytest.mark.parametrize(("needed", "said"), [(12, "12 would reach 90 %"), (None, "reaches 90 %")])
def test_several_calibrations_say_how_stable_the_selection_is(
    needed: int | None, said: str
) -> None:
    domains = {"math": ranked(100)}
    summary = summary_of(domains)
    assert "Stability" not in render(summary, ranking_of(domains), "", {})
    figures = {
        "overlap": 0.625,
        "mean_overlap": 0.75,
        "repeats_needed": needed,
        "stable_core": 1234,
    }
    summary["stability"] = {"repeats": 5, **figures, "domains": {"math": figures}}
    summary["calibrated_models"] = ["/store/calibrated", "/store/other"]
    page = render(summary, ranking_of(domains), "", {})
    assert "1,234 samples would be selected" in page and "share 75.0 %" in page
    assert said in page and "62.5 %" in page
    assert "/store/other" in page
    assert_inert(page, Page(page))
    summary["scoring"] |= {"tokens": 0}
    text = result_table(summary, Folder("/runs/1"))
    assert "two single runs share 62%" in text and "/store/other" in text
    assert "price       255.00 for 8.50 machine hours" in text
    assert f"calibrate.repeats={needed or '1000 or more'} would reach 90%" in text
