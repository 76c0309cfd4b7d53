from hypothesis import given, settings
from hypothesis import strategies as st

from instructdiff_ray.engine.batch import token_batches


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 1000))
def test_each_sample_comes_once_and_no_batch_of_several_exceeds_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[position] for position in batch)
        assert padded <= budget or len(batch) == 1


def test_samples_of_equal_length_waste_no_padding_and_fill_the_budget() -> None:
    assert [len(batch) for batch in token_batches([10] * 7, 30)] == [3, 3, 1]


def test_similar_lengths_share_a_batch() -> None:
    lengths = [100, 1, 99, 2, 98, 3]
    batches = list(token_batches(lengths, 300))
    assert batches[0] == [0, 2, 4]
    assert set(batches[1]) == {1, 3, 5}
