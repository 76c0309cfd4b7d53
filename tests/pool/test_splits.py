"""Which files are a split of a subset: by the card, or by what they are called."""

from __future__ import annotations

import pytest

from instructdiff_ray.errors import UserError
from instructdiff_ray.pool.splits import choose_files, choose_split, find_subsets


def splits(*names: str, **config: object) -> dict:
    """Of the only subset."""
    card = {"configs": [{"config_name": "main", **config}]} if config else {}
    (only,) = find_subsets(card, sorted(names)).splits.values()
    return {split: list(files) for split, files in only.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jsonl", "b/c.jsonl"], {"train": ["a.jsonl", "b/c.jsonl"]}),
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002-ab12.parquet"]
            + ["data/test_sft-00000-of-00001.parquet", "train.csv"],
            {
                "test_sft": ["data/test_sft-00000-of-00001.parquet"],
                "train": [
                    "data/train-00000-of-00002.parquet",
                    "data/train-00001-of-00002-ab12.parquet",
                ],
            },
        ),
        (
            ["train/a.csv", "train/b.csv", "my-test/c.csv", "dev.csv"],
            {"train": ["train/a.csv", "train/b.csv"], "test": ["my-test/c.csv"]},
        ),
        (
            ["x/math_train.jsonl.gz", "x/math_val.jsonl", "notes.jsonl"],
            {"train": ["x/math_train.jsonl.gz"], "validation": ["x/math_val.jsonl"]},
        ),
        (
            ["math-train.jsonl.gz", "math.dev.jsonl", "retrain.jsonl"],
            {"train": ["math-train.jsonl.gz"], "validation": ["math.dev.jsonl"]},
        ),
        # The same in two formats, and what is no data: what most files are, or the better of two.
        (["a.jsonl", "a.parquet"], {"train": ["a.parquet"]}),
        (["a.jsonl", "b.json", "a.parquet"], {"train": ["a.jsonl", "b.json"]}),
        ([], {}),
    ],
)
def test_splits_are_found_by_what_files_are_called(names: list[str], expected: dict) -> None:
    assert splits(*names) == expected


NAMES = ["a/1.parquet", "a/2.parquet", "b/1.parquet", "c/test/1.parquet", "c/train/1.parquet"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"data_files": "a/*"}, {"train": NAMES[:2]}),
        ({"data_files": ["./a/1.parquet", "b/*.parquet"]}, {"train": [NAMES[0], NAMES[2]]}),
        (
            {
                "data_files": [
                    {"split": "x", "path": "a/[12].parquet"},
                    {"split": "y", "path": ["b/*"]},
                ]
            },
            {"x": NAMES[:2], "y": [NAMES[2]]},
        ),
        ({"data_dir": "c"}, {"train": [NAMES[4]], "test": [NAMES[3]]}),
        ({"data_dir": "c", "data_files": "test/*"}, {"train": [NAMES[3]]}),
        ({"data_files": "**/1.parquet"}, {"train": [NAMES[0], *NAMES[2:]]}),
        ({"data_files": "nothing/*"}, {"train": []}),
    ],
)
def test_splits_are_what_the_card_says(config: dict, expected: dict) -> None:
    assert splits(*NAMES, **config) == expected


def test_a_glob_of_the_card_that_is_none_is_told() -> None:
    with pytest.raises(UserError, match=r"the card names files as a/\*\*\.csv"):
        splits(*NAMES, data_files="a/**.csv")


def configs(*names: str, default: str | None = None) -> dict:
    return {
        "configs": [
            {"config_name": name, "data_files": f"{name}/*", "default": name == default}
            for name in names
        ]
    }


def chosen(card: dict, names: list[str], subset: str | None = None, split: str | None = None):  # type: ignore[no-untyped-def]
    return choose_files(find_subsets(card, names), subset, split, "the dataset org/name")


def test_of_several_subsets_one_is_named_or_marked() -> None:
    names = ["default/1.csv", "main/1.csv", "socratic/1.csv"]
    card = configs("main", "socratic")
    with pytest.raises(UserError) as raised:
        chosen(card, names)
    assert str(raised.value) == (
        "the dataset org/name has several subsets: main, socratic; name the one you want, as in"
        " data.subset=main"
    )
    assert chosen(card, names, "socratic") == ["socratic/1.csv"]
    assert chosen(configs("main", "socratic", default="main"), names) == ["main/1.csv"]
    assert chosen(configs("main", "default"), names) == ["default/1.csv"]
    with pytest.raises(UserError, match="has no subset small; it has main, socratic"):
        chosen(card, names, "small")


def test_of_several_splits_train_is_read_or_the_one_that_is_named() -> None:
    names = ["a_dev.csv", "a_test.csv", "a_train.csv"]
    assert chosen({}, names) == ["a_train.csv"]
    assert chosen({}, names, split="test") == ["a_test.csv"]
    assert chosen({}, names[:1]) == ["a_dev.csv"]  # there is no other
    with pytest.raises(UserError) as raised:
        chosen({}, names[:2])
    assert str(raised.value) == (
        "the dataset org/name has several splits, none of them train; it has validation, test:"
        " name one, as in data.split=validation"
    )
    with pytest.raises(UserError, match="has no split dev; it has train, validation, test"):
        chosen({}, names, split="dev")


def test_what_the_hub_has_converted_lies_by_subset_and_split() -> None:
    names = ["main/test/0000.parquet", "main/train/0000.parquet", "main/train/0001.parquet"]
    assert chosen({}, names) == names[1:]
    more = [*names, "socratic/train/0000.parquet"]
    with pytest.raises(UserError, match="has several subsets: main, socratic"):
        chosen({}, more)
    assert chosen({}, more, "socratic") == more[3:]


def test_what_the_hub_has_converted_in_part_is_read_when_it_is_asked_for() -> None:
    names = ["default/partial-train/0000.parquet", "default/test/0000.parquet"]
    for only in (names, names[:1]):
        with pytest.raises(UserError, match="only the first gigabytes.*data.split=partial-train"):
            chosen({}, only)
    assert chosen({}, names, split="partial-train") == names[:1]


def test_a_subset_without_files_is_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="org/name holds no file of a format that is read"):
        choose_split({}, None, "org/name")
