"""wavenet: causal to the sample, exact in its likelihood and codes, and the same whichever engine generates."""

import io
import math
import tarfile
import threading

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import nn

from gencli import inference
from gencli.errors import DataError, UsageError
from gencli.families.wavenet import WaveNet, WaveNetConfig, _Step, _torch_engine
from gencli.kinds.audio import AudioSpec
from gencli.model import Batch, Given, join
from gencli.rng import ExampleStreams, StepStream, generator


def network(levels: int = 256, classes: int = 0, **config) -> WaveNet:
    """A small network with random weights, large enough for its distributions to differ from place to place."""
    torch.manual_seed(0)
    options = {"layers": 3, "stacks": 2, "residual": 6, "skip": 8, "tail": 0, "components": 3, **config}
    spec = AudioSpec(rate=8000, length=200, levels=levels, classes=tuple(map(str, range(classes))))
    model = WaveNet(WaveNetConfig(conditional=classes > 0, **options), spec).eval()
    if model.framed:
        nn.init.normal_(model.condition.weight)  # that of places and the context begins at 0
    for parameter in model.parameters():
        parameter.data.mul_(2)
    return model.requires_grad_(False)


def rng(count: int = 3, purpose: str = "sample") -> ExampleStreams:
    return ExampleStreams(0, torch.arange(count), purpose)


def drawn(model: WaveNet, count: int = 3, length: int = 90) -> Batch:
    """Recordings of levels drawn uniformly, of lengths that differ."""
    random = torch.Generator().manual_seed(1)
    x = model.spec.from_levels(torch.randint(model.spec.levels, (count, length), generator=random))
    lengths = length - 11 * torch.arange(count)
    labels = torch.arange(count) % len(model.spec.classes) if model.spec.classes else None
    return Batch(x.where(torch.arange(length) < lengths[:, None], 0.0), labels, lengths)


BUDGET = ("lengths", "loudness", "budget")
BOTH = pytest.mark.parametrize("levels", [256, 65536])


# --- the network


@BOTH
def test_each_place_sees_its_receptive_field_and_nothing_else(levels):
    model = network(levels, layers=3, stacks=2).requires_grad_(True).double()
    seen = []
    model.input.register_forward_hook(lambda module, given, made: seen.append(made.requires_grad_()))
    parameters = model(torch.randint(levels, (1, 60), generator=torch.Generator().manual_seed(0)))
    field = 1 + 2 * (1 + 2 + 4)
    for t in (0, 1, 5, 14, 15, 16, 40, 59):
        gradient, = torch.autograd.grad(parameters[0, t].square().sum(), seen, retain_graph=True, allow_unused=True)
        reached = gradient[0].abs().sum(1).nonzero()[:, 0].tolist()  # place j holds what is read of level j
        assert reached == list(range(max(0, t - field), t)), t


@BOTH
@pytest.mark.parametrize("context", [0, 5])
@pytest.mark.parametrize("budget", [False, True])
def test_ring_buffers_give_the_parameters_of_the_whole_pass(levels, context, budget):
    told = dict.fromkeys(BUDGET, budget)
    model = network(levels, classes=2, layers=4, context=context, hop=16, **told).double()
    batch = drawn(model)
    condition = model._told(batch)
    k = model.spec.to_levels(batch.x)
    whole = model(k, condition)
    engine = _torch_engine(model, k, torch.full(k.shape, 0.5), condition, k.shape[1], 1.0)
    step, state = _Step(model), [torch.zeros(3, sum(model.dilations), 6, dtype=torch.float64)]
    names = ["memory", "past"] * bool(context) + ["energy"] * budget + ["position"] * bool(context or budget)
    first = {"memory": torch.zeros(3, 5).double(), "past": torch.zeros(3, 64).double(),
             "energy": torch.zeros(3, 2).double(), "position": torch.zeros(3, 1, dtype=torch.int64)}
    state += [first[name] for name in names]
    level = torch.full((3, 1), -1)
    for t in range(k.shape[1]):
        x = model._embed(k[:, t - 1]) if t else torch.zeros(3, 6, dtype=torch.float64)
        assert torch.allclose(model._out(engine._advance(x, t)), whole[:, t], atol=1e-9)
        frame = condition[:, min(t // 16, condition.shape[1] - 1)]
        parameters, *state = step(level, state[0], frame, **dict(zip(names, state[1:], strict=True)))
        assert torch.allclose(parameters, whole[:, t], atol=1e-9), "the exported step"
        level = k[:, t : t + 1]


@BOTH
def test_a_context_hears_all_that_came_before_a_frame_and_nothing_of_it(levels):
    model = network(levels, layers=2, stacks=1, context=5, hop=16, classes=2).double()
    k = torch.randint(levels, (1, 100), generator=torch.Generator().manual_seed(0))
    condition = model._one_hot(torch.tensor([1]))[:, None]
    skip = model._read(k, condition)  # nothing of it is cut off yet
    for changed in (0, 3, 40):
        other = k.clone()
        other[0, changed] = (k[0, changed] + levels // 2) % levels
        differs = (model._read(other, condition) != skip).any(-1)[0].nonzero()[:, 0].tolist()
        near = set(range(changed + 1, changed + 5))  # by the convolutions
        assert set(differs) == near | set(range(changed - changed % 16 + 16, 100)), changed


def undecided(model: WaveNet, k: torch.Tensor, u: torch.Tensor, condition: torch.Tensor | None) -> float:
    """The share of the levels k (B, T) that rounding decides, by whole passes; fails if the noise u makes others.

    Every level has to be the one in whose interval its noise lies, given the levels before it. The engines compute it
    in the precision of the model, so that the noise may be outside by as much as that moves the distribution.
    """
    precise = model.clone().double()
    parameters = precise(k, None if condition is None else condition.double())
    rounding = torch.tensor(1e-11)
    if model.output.weight.dtype == torch.float32:
        single, double = (p.double().softmax(-1).cumsum(-1) for p in (model(k, condition), parameters))
        rounding = 8 * (single - double).abs().max()
    assert rounding < 1e-5
    lowest, highest = (model.distribution.from_uniform(parameters, u + side * rounding) for side in (-1, 1))
    assert ((lowest <= k) & (k <= highest)).all()
    return (lowest < highest).double().mean().item()


@BOTH
@pytest.mark.parametrize("engine", ["torch", "compiled"])
@pytest.mark.parametrize("kind", ["plain", "classes", "spectrogram", "plain context", "classes context lengths",
                                  "classes loudness", "classes lengths loudness budget"])
def test_engines_give_the_samples_of_the_whole_pass(levels, engine, kind):
    kind, *more = kind.split()
    model = network(levels, classes=3 if kind == "classes" else 0, mels=4 if kind == "spectrogram" else 0, hop=16,
                    context=5 if "context" in more else 0, **{name: name in more for name in BUDGET})
    if levels == 65536:  # intervals so small that float32 would decide most levels
        model = model.double()
    prompt = torch.tensor([0.1, -0.2, 0.3, 0.0, 0.5])
    source = drawn(model, length=64)
    labels = torch.tensor([2, 0, 1]) if kind == "classes" else None
    given = Given(labels, prompt, condition=source if kind == "spectrogram" else None)
    got = model.sample(rng(), given, length=59, engine=engine)
    k = model.spec.to_levels(got.x)
    assert torch.equal(k[:, :5], model.spec.to_levels(prompt).expand(3, -1)) and got.lengths.tolist() == [64] * 3
    spectrogram = model.spectrogram(source.x) if kind == "spectrogram" else None
    loudness = model._loudness(Batch(prompt[None])).expand(3) if "loudness" in more else None  # it goes on as loud
    condition = model._condition(model._one_hot(labels, loudness), spectrogram, got.lengths, 64)
    random = rng()
    if "loudness" in more:
        random.normal(1, dtype=torch.float64)
    u = torch.special.ndtr(random.normal(59, dtype=torch.float64))
    u = torch.cat([place(model, k, condition)[:, :5], u], dim=1)
    assert undecided(model, k, u, condition) < 0.02
    assert len(k.unique()) > 60


def place(model: WaveNet, k: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """u in the middle of the intervals of the levels k (B, T)."""
    parameters = model.clone().double()(k, None if condition is None else condition.double())
    middle = torch.full(k.shape, 0.5, dtype=torch.float64)
    return torch.special.ndtr(model.distribution.to_noise(parameters, k, middle))


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_threads_make_recordings_side_by_side(engine, monkeypatch):
    """The compiled engine leaves the interpreter; the bits and their order are those of one thread."""
    model, at_work = network(), set()

    def watch(piece):
        at_work.add(threading.get_ident())

    def made(threads: int) -> list[torch.Tensor]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return [batch.x for batch in inference.sample(model, range(3, 10), seed=5, watch=watch, length=30,
                                                      engine=engine)]

    assert all(map(torch.equal, made(1), made(3)))
    assert (len(at_work - {threading.get_ident()}) > 1) == (engine == "compiled")
    unfinished = inference.sample(model, range(100_000), watch=watch, length=30, engine=engine)
    next(unfinished)
    unfinished.close()  # what nobody waits for is not made


def test_an_engine_that_forgets_is_noticed():
    """What the test above rests on: buffers that are one place off change the samples."""
    model = network()
    u = torch.special.ndtr(rng().normal(59, dtype=torch.float64))
    k = torch.zeros(3, 59, dtype=torch.int64)
    engine = _torch_engine(model, k, u, None, 0, 1.0)
    engine(0, 20)
    engine.rings[-1].copy_(engine.rings[-1].roll(1, dims=1))
    engine(20, 59)
    undecided(model, k[:, :20], u[:, :20], None)
    with pytest.raises(AssertionError):
        undecided(model, k, u, None)


def test_a_low_temperature_takes_the_likeliest():
    model = network().double()
    cold = model.sample(rng(), length=40, temperature=1e-3, engine="torch")
    k = model.spec.to_levels(cold.x)
    assert torch.equal(model(k).argmax(-1), k)
    assert torch.equal(model.sample(rng(), length=40, temperature=1e-3, engine="compiled").x, cold.x)
    with pytest.raises(UsageError, match="temperature"):
        model.sample(rng(), temperature=0.0)


# --- likelihood and codes


@BOTH
def test_log_prob_is_the_chain_of_conditionals_up_to_the_end(levels):
    model = network(levels)
    batch = drawn(model)
    k = model.spec.to_levels(batch.x)
    expected = [sum(model.distribution.log_prob(model(k[i : i + 1, : t + 1])[:, -1], k[i : i + 1, t])
                    for t in range(batch.lengths[i])) for i in range(3)]
    assert torch.allclose(model.log_prob(batch, rng()), torch.cat(expected).double(), rtol=1e-4)
    score = model.scores(batch, rng())["nll"]
    assert score.weight.tolist() == batch.lengths.tolist() and score.unit == "nats/sample"


@BOTH
@pytest.mark.parametrize("more", [{}, {"context": 5, "lengths": True}])
def test_codes_of_drawn_recordings_are_standard_normal(levels, more):
    model = network(levels, hop=16, **more)
    batch = model.sample(rng(64), length=200, engine="torch")
    z = model.encode(batch, rng(64, "encode")).flatten()
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03 and abs((z.abs() > 1.96).double().mean() - 0.05) < 0.01


def test_codes_with_all_that_is_told_give_the_recording_back():
    model = network(classes=3, context=5, hop=16, **dict.fromkeys(BUDGET, True))
    batch = drawn(model)
    again = model.decode(model.encode(batch, rng()))
    assert torch.equal(again.x, batch.x) and torch.equal(again.lengths, batch.lengths)
    assert model.scores(batch, rng())["nll"].protocol["given"] == {"class": True, "length": True}


def test_a_conditional_code_names_its_class():
    model = network(classes=3)
    batch = drawn(model)
    code = model.encode(batch, rng())
    assert torch.equal(code[:, :3], torch.eye(3).double())
    again = model.decode(code)
    assert torch.equal(again.x, batch.x) and torch.equal(again.labels, batch.labels)
    path = model.interpolate(code[0], code[1], 5)
    assert torch.allclose(path[:, :3], torch.tensor([[1 - t, t, 0] for t in (0, 0.25, 0.5, 0.75, 1)]).double())
    assert (~path.isnan()).sum(1).tolist() == [93, 90, 88, 85, 82], "lengths on the way"
    with pytest.raises(DataError, match="give labelled data"):
        model.log_prob(Batch(batch.x, None, batch.lengths), rng())
    with pytest.raises(UsageError, match="needs labelled data"):
        WaveNet(WaveNetConfig(conditional=True), AudioSpec(rate=8000, length=9))


@pytest.mark.parametrize("classes", [0, 2])
def test_a_vocoder_has_its_spectrogram_in_the_code(classes):
    model = network(classes=classes, mels=5, hop=16)
    batch = drawn(model)
    code = model.encode(batch, rng())
    assert code.shape == (3, classes + 6 * 5 + 6 * 16)
    assert torch.equal(model.decode(code).x, batch.x)
    whole = inference.decode(model, [code[:, : classes + 4 * 21]])
    assert torch.equal(torch.cat([part.x for part in whole]), batch.x[:, :64]), "a code can be cut between frames"
    with pytest.raises(UsageError, match="--given"):
        model.sample(rng(), Given(torch.zeros(3, dtype=torch.int64)))


def test_the_spectrogram_is_that_of_torchaudio():
    from torchaudio.transforms import MelSpectrogram

    model = network(mels=5, hop=32)
    x = drawn(model, length=320).x
    peer = MelSpectrogram(8000, n_fft=128, hop_length=32, n_mels=5, center=False)
    expected = torch.log10(peer(F.pad(x, (48, 48))).clamp(min=1e-5)) / 2.5
    assert torch.allclose(model.spectrogram(x), expected.transpose(1, 2), atol=1e-5)
    assert model.spectrogram(x[:, :33]).shape == (3, 2, 5)


def test_features_do_not_depend_on_what_follows_the_end():
    model = network()
    batch = drawn(model)
    features = model.encode(batch, rng(), code="features")
    assert features.shape == (3, 8)
    alone = model.encode(Batch(batch.x[2:, :68], lengths=batch.lengths[2:]), rng(1), code="features")
    assert torch.allclose(features[2:], alone, atol=1e-5)


# --- generation


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_samples_are_as_long_as_recordings_of_training(engine):
    """Each of three classes has lengths of its own; the noise of a sample, which a path goes through, ends where it
    does."""
    model = network(classes=3, lengths=True, hop=8, context=3)
    lengths = torch.tensor([8, 24, 100, 103, 57, 200])
    x = torch.zeros(6, 200)
    model._count(Batch(x[:3], torch.tensor([0, 0, 1]), lengths[:3]))
    model._count(Batch(x[3:], torch.tensor([1, 1, 2]), lengths[3:]))
    labels = torch.arange(300) % 3
    made = model.sample(rng(300), Given(labels), engine=engine)
    shares = [{int(n): round(int(count) / 100, 1) for n, count in zip(*own.unique(return_counts=True), strict=True)}
              for own in (made.lengths[labels == label] for label in range(3))]
    assert shares[0].keys() == {8, 24} and shares[1].keys() == {64, 104} and shares[2] == {200: 1.0}
    assert abs(shares[0][8] - 0.5) < 0.2 and abs(shares[1][104] - 2 / 3) < 0.2  # 3.5 standard deviations
    prior = model.prior(rng(5))
    assert torch.equal((~prior[:, 3:].isnan()).sum(1), model.sample(rng(5), engine="torch").lengths)
    told = model.sample(rng(2), Given(prompt=torch.zeros(30)), engine=engine, length=20)
    assert told.lengths.tolist() == [50, 50], "what the user says goes before"
    drawn = model.sample(rng(9), Given(torch.zeros(9, dtype=torch.int64), torch.zeros(20)), engine=engine)
    assert set(drawn.lengths.tolist()) == {24}, "longer than the prompt"
    drawn = model.sample(rng(9), Given(torch.zeros(9, dtype=torch.int64), torch.zeros(30)), engine=engine)
    assert set(drawn.lengths.tolist()) == {200}, "no recording is longer than this prompt"


def test_the_network_is_told_how_near_the_ends_are():
    model = network(lengths=True, hop=8)
    near = 14**0.5 * model._places(torch.tensor([40, 16]), 40)
    seconds = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6])
    assert torch.allclose(near[0, 2], torch.cat([torch.exp(-16 / 8000 / seconds), torch.exp(-24 / 8000 / seconds)]))
    assert torch.allclose(near[1, 2:, 7:], torch.ones(3, 7)), "past the end"
    with pytest.raises(UsageError, match="leave --lengths out"):
        network(lengths=True, mels=4)


def loud(model: WaveNet) -> Batch:
    """Noise of six recordings, each 3 dB louder than the one before it, that the model has counted."""
    noise = torch.randn(6, 90, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    lengths = 90 - 11 * torch.arange(6)
    noise = noise.where(torch.arange(90) < lengths[:, None], 0.0)
    level = 10 ** ((torch.arange(6) * 3 - 28.5) / 20)  # the middle of steps 10 to 15 of 20 that end at 0 dB
    x = noise * (level * lengths.sqrt() / noise.norm(dim=1))[:, None]
    x = model.spec.from_levels(model.spec.to_levels(x)).where(x != 0, 0.0)
    batch = Batch(x, torch.arange(6) % 2, lengths)
    model._count(batch)
    return batch


@BOTH
def test_loudness_comes_first(levels):
    """The bits of a recording are those of its step, as often as its class had that, and of its samples by a network
    that knows it."""
    model = network(levels, classes=2, loudness=True)
    batch = loud(model)
    loudness = torch.arange(10, 16)
    assert torch.equal(model._loudness(batch), loudness)
    told = torch.cat([F.one_hot(batch.labels, 2), F.one_hot(loudness, 20)], 1).float()[:, None]
    levels_of = model.spec.to_levels(batch.x)
    nats = model.distribution.log_prob(model(levels_of, told), levels_of).double()
    samples = nats.where(torch.arange(90) < batch.lengths[:, None], 0.0).sum(1)
    assert torch.allclose(model.log_prob(batch, rng(6)), samples + math.log(1.5 / 13), rtol=1e-6)
    assert model.scores(batch, rng(6))["nll"].kind == "bound"
    with pytest.raises(UsageError, match="leave --loudness out"):
        network(loudness=True, mels=4)


def test_the_network_is_told_how_loud_the_rest_is():
    """As one-hot, between the middles of steps a mixture: the loudest and the quietest that the step of loudness
    leaves, between which the rest of each recording is."""
    model = network(classes=2, hop=16, **dict.fromkeys(BUDGET, True)).double()
    batch = loud(model)
    condition = model._told(batch)
    squares = model._sound(model.spec.to_levels(batch.x)).square()
    spent = F.pad(squares.cumsum(1), (1, 0))[:, :90:16]
    told = model._afford(condition, spent)[..., model.told - 2 :].unflatten(-1, (2, 20))
    assert torch.allclose(told.sum(-1), torch.ones(6, 6, 2).double()) and ((told > 0).sum(-1) <= 2).all()
    most, least = (3 * (told @ (torch.arange(20).double() - 19.5))).unbind(-1)  # dB
    left = batch.lengths[:, None] - torch.arange(0, 90, 16)
    rest = 10 * torch.log10((squares.sum(1, keepdim=True) - spent) / left)
    assert torch.equal(most[:, 0].round(decimals=6), 3.0 * (torch.arange(10, 16) + 1 - 20))
    checked = (left > 0) & (rest < -1.5)  # of which the steps can tell
    assert checked.sum() > 20 and (least <= rest + 1e-6)[checked].all() and (rest <= most + 1e-6)[checked].all()
    for missing in ("lengths", "loudness"):
        with pytest.raises(UsageError, match="add --lengths --loudness"):
            network(**{name: name != missing for name in BUDGET})


@pytest.mark.parametrize("more", [{"loudness": True}, dict.fromkeys(BUDGET, True) | {"hop": 1}])
def test_the_bound_of_all_recordings_sums_to_less_than_one(more):
    model = network(**more)
    k = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    loud(model)
    total = model.log_prob(Batch(model.spec.from_levels(k)), rng(len(k))).exp().sum()
    assert 0 < total <= 1


def test_the_loudness_of_a_code_is_drawn_as_in_training():
    model = network(classes=2, loudness=True)
    batch = loud(model)
    model.loudness_counts *= 1000  # half a recording more is next to nothing
    code = model.encode(batch, rng(6))
    again = model.decode(code)
    assert code.shape == (6, 3 + 90) and torch.equal(again.x, batch.x) and torch.equal(again.labels, batch.labels)
    prior = model.prior(rng(600), length=20)
    labels = prior[:, :2].argmax(1)
    loudness = model._decoded(prior)[1][:, 2:].argmax(1)
    shares = torch.bincount(loudness[labels == 1] - 10, minlength=6) / (labels == 1).sum()
    assert torch.allclose(shares, torch.tensor([0, 1, 0, 1, 0, 1]) / 3, atol=0.11)  # 4 standard deviations
    path = model._decoded(model.interpolate(code[0], code[4], 9))[1][:, 2:].argmax(1)
    assert path.tolist() == sorted(path.tolist()) and path[0] == 10 and path[-1] == 14


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_a_recording_is_made_again_until_it_is_as_loud_as_was_drawn(engine):
    model = network(hop=16, **dict.fromkeys(BUDGET, True))
    model.lengths[0, 3:6] = 1
    spread = model.sample(rng(60), tries=1, engine=engine)
    model.loudness_counts[0] += torch.bincount(model._loudness(spread), minlength=20)  # what it can be

    def off(made: Batch) -> torch.Tensor:
        told = model._drawn(None, rng(60).normal(1, dtype=torch.float64))
        return (model._loudness(made) - told).abs()

    once, again = (model.sample(rng(60), tries=tries, engine=engine) for tries in (1, 8))
    right = off(once) == 0
    assert 3 < right.sum() < 57 and torch.equal(again.x[right], once.x[right]), "what is right stays"
    assert (off(again) <= off(once)).all() and (off(again) == 0).sum() > 1.3 * right.sum()
    assert torch.equal(again.lengths, once.lengths)
    row = int((off(again) < off(once)).nonzero()[0, 0])
    alone = model.sample(ExampleStreams(0, torch.tensor([row]), "sample"), tries=8, engine=engine)
    assert torch.equal(alone.x[0, : again.lengths[row]], again.x[row, : again.lengths[row]])
    made = model.decode(model.prior(rng(60)), engine=engine)
    differs = (made.x != again.x).any(1)  # by rounding: codes are made in float64
    assert torch.equal(made.lengths, again.lengths) and differs.sum() < 6, "a code of the prior is that of the sample"
    with pytest.raises(UsageError, match="tries"):
        model.sample(rng(), tries=0)


def test_a_recording_ends_with_silence_after_sound():
    model = network(tail=4)
    quiet = int(model.spec.to_levels(torch.zeros(1)))
    k = torch.full((3, 20), quiet)
    k[1, :3] = 7
    k[2, 2], k[2, 9] = 7, 7
    over = model._ended(k)
    assert over.sum(1).tolist() == [0, 20 - 7, 20 - 7] and over[1, 7:].all()


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_pieces_are_the_whole(engine, monkeypatch):
    monkeypatch.setattr("gencli.families.wavenet._PIECES", 200)  # 40 samples a piece
    model = network(tail=1).double()  # in float32 the levels would depend on how many are generated at once
    model.output.bias[128] += 1.5
    pieces = list(model.stream(rng(), length=190, engine=engine))
    whole = model.sample(rng(), length=190, engine=engine)
    assert torch.equal(join(pieces).x, whole.x) and torch.equal(join(pieces).lengths, whole.lengths)
    assert len(pieces) > 1 and whole.lengths.unique().numel() > 1 and whole.x.shape[1] == whole.lengths.max()
    heard = torch.cat([piece.x[0, : int(piece.lengths)]
                       for piece in inference.stream(model, range(3), length=190, engine=engine)])
    assert torch.equal(heard, torch.cat([x[:length] for x, length in zip(whole.x, whole.lengths, strict=True)]))


def test_training_includes_the_silence_at_the_end():
    model = network(tail=30)
    x = Batch(torch.full((2, 50), 0.5), lengths=torch.tensor([50, 20]))
    nll = -model.distribution.log_prob(model(k := model.spec.to_levels(F.pad(x.x, (0, 30)).where(
        torch.arange(80) < x.lengths[:, None], 0.0))), k)
    inside = torch.arange(80) < x.lengths[:, None] + 30
    x = Batch(x.x.where(torch.arange(50) < x.lengths[:, None], 0.0), lengths=x.lengths)
    found = model.loss(x, StepStream(2, generator(0))).total
    assert torch.allclose(found, nll[inside].mean(), rtol=1e-5)


def test_an_unusable_engine_is_one_line(gencli, small_run, monkeypatch):
    run = str(small_run("wavenet", "audio"))
    assert "engine" in gencli("sample", run, "--engine", "cuda", "-o", "a.wav", code=2).stderr
    other = str(small_run("rnn", "text"))
    assert "no option is called 'engine'" in gencli("sample", other, "--engine", "torch", "-o", "a.txt", code=2).stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install numba" in gencli("sample", run, "--engine", "compiled", "-o", "a.wav", code=4).stderr
    gencli("sample", run, "-n", "1", "-o", "a.wav")


# --- the command line


def test_what_is_streamed_is_what_is_written(gencli, small_run, tmp_path):
    run = str(small_run("wavenet", "audio"))
    raw = gencli("sample", run, "-n", "3", "-f", "raw", "-o", "-").stdout
    wav = gencli("sample", run, "-n", "3", "-f", "wav", "-o", "-").stdout
    assert wav[44:] == raw and wav[:4] == b"RIFF"
    with tarfile.open(fileobj=io.BytesIO(gencli("sample", run, "-n", "3").stdout)) as archive:
        sounds = [archive.extractfile(name).read()[44:] for name in archive.getnames() if name.endswith(".wav")]
    assert b"".join(sounds) == raw and len(sounds) == 3
    gencli("sample", run, "-n", "3", "-o", "all.wav", "--engine", "compiled")
    assert (tmp_path / "all.wav").read_bytes()[44:] == raw


def test_a_prompt_is_continued(gencli, small_run, tmp_path):
    run = str(small_run("wavenet", "audio"))
    x = np.round(0.5 * np.sin(np.arange(300) / 9) * 32768) / 32768
    soundfile.write(tmp_path / "start.wav", np.stack([x, x], 1), 8000)
    done = gencli("sample", run, "--prompt", "start.wav", "-n", "2", "--set", "length=50", "-o", "out/")
    assert "several channels" in done.stderr
    y, _ = soundfile.read(tmp_path / "out/000001.wav")
    # An example of the model is 120 samples long, a prompt as long as it is; mu-law has steps of 3 % at most.
    assert 301 <= len(y) <= 350 and np.abs(y[:300] - x).max() < 0.02
    (tmp_path / "text.wav").write_text("no sound")
    assert "text.wav" in gencli("sample", run, "--prompt", "text.wav", "-o", "a.wav", code=3).stderr


def test_a_vocoder_speaks_what_it_is_given(gencli, small_data, tmp_path):
    gencli("train", "wavenet", str(small_data["audio"]), "-o", "run", "--layers", "2", "--stacks", "1", "--residual",
           "4", "--skip", "4", "--mels", "4", "--hop", "16", "--steps", "3", "--preview-every", "0", "-q")
    done = gencli("sample", "run", "--given", str(small_data["audio"]), "--set", "engine=torch", "-o", "out/", "-q")
    lengths = [len(soundfile.read(path)[0]) for path in sorted((tmp_path / "out").glob("*.wav"))]
    real = [len(soundfile.read(path)[0]) for path in sorted(small_data["audio"].glob("*.wav"))]
    assert lengths == real and not done.stderr
    assert "--given" in gencli("sample", "run", "-o", "a.wav", code=2).stderr
    metrics = gencli("evaluate", "run", str(small_data["audio"]), "--limit", "8", "--draw", "0", "--json").json()
    nll = next(m for m in metrics["metrics"] if m["name"] == "nll")
    bits = next(m for m in metrics["metrics"] if m["name"] == "bpd")
    assert nll["protocol"]["given"] == {"spectrogram": True} and bits["unit"] == "bits/sample"
    assert bits["value"] == pytest.approx(nll["value"] / math.log(2))


def test_a_long_generation_says_how_fast_it_is(gencli, small_run, monkeypatch):
    run = str(small_run("wavenet", "audio"))
    assert gencli("sample", run, "-n", "1", "-o", "a.wav").stderr == ""
    monkeypatch.setattr("gencli.commands.sample._Pace.LONG", 0.0)
    assert "samples/s" in (said := gencli("sample", run, "-n", "1", "-o", "a.wav").stderr) and "real time" in said
    assert gencli("sample", str(small_run("gan", "vector")), "-n", "1", "-o", "a.csv").stderr == ""


def test_it_learns(tmp_path, gencli):
    """Noise whose next sample is the last one or its negative has one bit a sample; its levels alone have more."""
    random = np.random.default_rng(0)
    (tmp_path / "sounds").mkdir()
    for i in range(64):
        x = random.choice([0.1, 0.6]) * np.cumprod(random.choice([-1, 1], 150))
        soundfile.write(tmp_path / f"sounds/{i}.wav", x, 8000)
    gencli("train", "wavenet", "sounds", "-o", "run", "--layers", "3", "--stacks", "1", "--residual", "12", "--skip",
           "24", "--steps", "200", "--lr", "3e-2", "--ema", "0", "--batch-size", "8", "--preview-every", "0", "--tail",
           "0", "-q")
    metrics = gencli("evaluate", "run", "sounds", "--draw", "0", "--reconstruct", "0", "--json").json()["metrics"]
    assert 1 <= next(m["value"] for m in metrics if m["name"] == "bpd") < 1.1


def test_a_vocoder_is_shown_and_measured_on_what_it_makes_again(gencli, small_data, tmp_path):
    gencli("train", "wavenet", str(small_data["audio"]), "-o", "run", "--mels", "4", "--hop", "16", "--layers", "2",
           "--stacks", "1", "--residual", "4", "--skip", "4", "--steps", "4", "--preview-every", "4", "-q")
    assert list((tmp_path / "run/samples").glob("*.wav"))
    found = gencli("evaluate", "run", str(small_data["audio"]), "--draw", "6", "--html", "r.html", "--json").json()
    assert {"nll", "frechet_distance"} <= {metric["name"] for metric in found["metrics"]}
    error = gencli("sample", "run", "-n", "2", "-o", "x.wav", code=2).stderr
    assert "--given" in error and error.count("\n") == 1
