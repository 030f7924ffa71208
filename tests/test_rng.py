"""Randomness against the published test vectors of Philox and the distributions it should have."""

import pytest
import torch
from scipy.stats import kstest

from gencli.rng import ExampleStreams, StepStream, derive_seed, generator, philox, seed_layers

MAX = 0xFFFFFFFF


@pytest.mark.parametrize(("counter", "key", "expected"), [
    # From the authors' Random123 library, file kat_vectors, philox4x32 10 rounds.
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MAX, MAX, MAX, MAX), (MAX, MAX), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_philox_is_the_published_one(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == expected


def streams(first: int, last: int, seed: int = 0, purpose: str = "") -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(first, last), purpose)


def test_a_draw_depends_on_seed_and_number_alone():
    whole = streams(0, 100)
    first, second = whole.normal(5), whole.uniform(3)
    part = streams(40, 50)
    assert torch.equal(part.normal(5), first[40:50]) and torch.equal(part.uniform(3), second[40:50])


@pytest.mark.parametrize("other", [streams(0, 9, seed=1), streams(0, 9, purpose="sample"), streams(1, 10)])
def test_other_names_give_other_draws(other):
    assert not (streams(0, 9).uniform(4) == other.uniform(4)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_made_in_parts_are_the_same(dtype, monkeypatch):
    whole, parts = streams(0, 3), streams(0, 3)
    want = [whole.normal(2, 17, dtype=dtype), whole.normal(31, dtype=dtype), whole.uniform(5)]
    monkeypatch.setattr("gencli.rng._AT_ONCE", 12)
    got = [parts.normal(2, 17, dtype=dtype), parts.normal(31, dtype=dtype), parts.uniform(5)]
    assert all(torch.allclose(a, b, rtol=1e-14) for a, b in zip(got, want, strict=True))


def test_successive_draws_differ():
    source = streams(0, 9)
    assert not (source.uniform(4) == source.uniform(4)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("source", [streams(0, 500), StepStream(500, generator("test"))], ids=["example", "step"])
def test_distributions(source, dtype):
    assert kstest(source.normal(41, dtype=dtype).flatten().numpy(), "norm").pvalue > 0.01
    uniform = source.uniform(41, dtype=dtype)
    assert kstest(uniform.flatten().numpy(), "uniform").pvalue > 0.01
    assert uniform.dtype == dtype and uniform.min() > 0 and uniform.max() < 1
    assert source.integers(7, 100).unique().tolist() == list(range(7))


def test_derived_seeds_are_stable():
    assert derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    assert 0 <= derive_seed("x") < 2**63
    assert derive_seed(0, "order", 0) == 1370560536841482319  # runs made today must resume tomorrow


def test_layers_are_seeded_as_by_torch():
    seed_layers(torch.device("cpu"), 3, "step")
    ours = torch.rand(5), torch.nn.functional.dropout(torch.ones(20))
    torch.manual_seed(derive_seed(3, "step"))
    assert torch.equal(ours[0], torch.rand(5)) and torch.equal(ours[1], torch.nn.functional.dropout(torch.ones(20)))
