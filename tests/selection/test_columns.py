"""Columns of a ranking, which are on disk."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from instructdiff_ray.errors import user_error_in
from instructdiff_ray.selection.columns import ColumnFile


def test_a_column_is_what_was_appended() -> None:
    file = ColumnFile(np.dtype(np.float64))
    for values in ([], [0.5, 1.5], [np.nan], []):
        file.append(np.array(values))
    column = file.array()
    np.testing.assert_array_equal(column, [0.5, 1.5, np.nan])
    column[0] = 7  # as guards mark what they exclude
    assert column[0] == 7
    assert len(ColumnFile(np.dtype(np.int8)).array()) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        file = ColumnFile(np.dtype(np.int8), full)
        with pytest.raises(OSError) as error:
            file.append(np.zeros(5000, np.int8))
    assert error.value.errno == errno.ENOSPC
    assert "full" in str(user_error_in(error.value))
