"""What families share, by itself."""

import pytest
import torch

from gencli.errors import DataError
from gencli.kinds.vector import VectorSpec
from gencli.layers.subsample import Subsample, refuse_constant
from gencli.view import view_of


def test_the_subsample_does_not_depend_on_the_cut_into_batches():
    x = torch.arange(1000.0)[:, None]
    small, large = Subsample(100), Subsample(100)
    for part in x.split(7):
        small.add(part)
    large.add(x)
    assert torch.equal(small.examples, large.examples) and len(small.examples.unique()) == 100
    assert small.examples.mean() == pytest.approx(500, abs=100), "from everywhere"
    assert small.count == 1000


def test_constant_columns_are_seen_in_all_examples_not_only_in_those_kept():
    x = torch.zeros(500, 3)
    x[:, 0] = torch.arange(500)
    x[499, 1] = 1
    found = Subsample(5)
    for part in x.split(50):
        found.add(part)
    assert found.constant.tolist() == [False, False, True]
    spec = VectorSpec(columns=("a", "b", "c"), mean=(0, 0, 0), scale=(1, 1, 1))
    with pytest.raises(DataError, match="column 'c'"):
        refuse_constant(view_of(spec), found.constant)
