"""The training loop: resume to the same bits, signals, divergence, phases without gradients, several processes."""

import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from pydantic import ValidationError
from torch import nn

from gencli import checkpoints
from gencli.data import load
from gencli.data.orders import Contiguous, Shuffled
from gencli.errors import DivergedError, ModelError
from gencli.model import Batch, FamilyConfig, Loss, Model, Phase, Player
from gencli.muon import Muon
from gencli.runs import Run
from gencli.settings import TrainSettings, seconds
from gencli.trainer import Hooks, Trainer

CPU = torch.device("cpu")


class Line(Model):
    """One weight that goes to `target`; enough to see what the loop does."""

    kinds = frozenset({"vector"})

    def __init__(self, spec, loss=None):
        super().__init__(FamilyConfig(), spec)
        self.weight = nn.Parameter(torch.zeros(1))
        self.given_loss = loss

    def loss(self, batch: Batch, rng) -> Loss:
        if self.given_loss:
            return Loss(self.given_loss(self))
        return Loss((self.weight - 3).square().sum() + 0 * batch.x.sum())


@pytest.fixture
def rows(small_data):
    return load(str(small_data["vector"]), split="train")


def train(model, data, **settings):
    trainer = Trainer(model, data, TrainSettings(**{"precision": "fp32", **settings}))
    return trainer.run(), trainer


# --- the loop


def test_adam_as_torch_has_it(rows):
    outcome, _ = train(Line(rows.spec), rows, steps=50, lr=0.1)
    weight = nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight], lr=0.1)
    for _ in range(50):
        adam.zero_grad()
        (weight - 3).square().sum().backward()
        adam.step()
    assert torch.allclose(outcome.model.weight, weight, atol=1e-6)


def test_moving_average_by_hand(rows):
    outcome, trainer = train(Line(rows.spec), rows, steps=30, lr=0.1, ema=0.9)
    weight, average = [], None
    for n in range(1, 31):
        (w, _) = train(Line(rows.spec), rows, steps=n, lr=0.1)
        weight.append(w.model.weight.item())
        decay = min(0.9, n / (n + 9))
        average = weight[-1] if average is None else decay * average + (1 - decay) * weight[-1]
    assert outcome.model.weight.item() == pytest.approx(average, rel=1e-5)
    assert trainer.model.weight.item() == pytest.approx(weight[-1])


class Sgd(torch.optim.SGD):
    """Remembers its learning rates."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.rates = []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        super().step(closure)


@pytest.mark.parametrize(("schedule", "warmup", "expected"), [
    ("constant", 0, [1, 1, 1, 1]), ("constant", 2, [0.5, 1, 1, 1]), ("cosine", 0, [1, 0.853553, 0.5, 0.146447])])
def test_learning_rates(rows, schedule, warmup, expected, tmp_path):
    """Of every phase with steps, over its own steps."""
    made = []

    def optimiser(parameters, lr, weight_decay):
        made.append(Sgd(parameters, lr))
        return made[-1]

    class Two(Line):
        def phases(self):
            player = Player("line", [self.weight], self.loss, optimiser=optimiser)
            return [Phase("none", [player], share=0), Phase("one", [player]), Phase("two", [player]),
                    Phase("own", [player], schedule="constant")]

    train(Two(rows.spec), rows, steps=12, lr=1.0, schedule=schedule, warmup=warmup)
    assert [len(sgd.rates) for sgd in made] == [0, 4, 4, 4]
    assert made[1].rates == pytest.approx(expected, abs=1e-6) and made[2].rates == made[1].rates
    assert made[3].rates == pytest.approx([0.5, 1, 1, 1] if warmup else [1] * 4)


def test_an_optimiser_of_its_own(rows):
    """SGD whose groups have learning rates of their own; the schedule keeps their ratio."""
    class Own(Line):
        def __init__(self, spec):
            super().__init__(spec)
            self.slow = nn.Parameter(torch.zeros(1))

        def phases(self):
            def optimiser(parameters, lr, weight_decay):
                return torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": lr / 10}], lr)
            return [Phase("train", [Player("both", [self.weight, self.slow], self.loss, lr_scale=0.5,
                                           optimiser=optimiser)])]

        def loss(self, batch, rng):
            return Loss((self.weight + self.slow).sum())

    outcome, _ = train(Own(rows.spec), rows, steps=4, lr=1.0, schedule="cosine")
    assert outcome.model.weight.item() == pytest.approx(-0.5 * 2.5)
    assert outcome.model.slow.item() == pytest.approx(-0.05 * 2.5)


def test_players_move_in_turn_and_at_their_rate(rows):
    class Two(Line):
        def __init__(self, spec):
            super().__init__(spec)
            self.other = nn.Parameter(torch.zeros(1))
            self.moves = []

        def phases(self):
            def loss(name, parameter):
                def compute(batch, rng):
                    self.moves.append((self.step, name, self.weight.requires_grad, self.other.requires_grad))
                    return Loss((parameter - 1).square().sum() + 0 * (self.weight + self.other).sum())
                return compute
            return [Phase("play", [Player("a", [self.weight], loss("a", self.weight)),
                                   Player("b", [self.other], loss("b", self.other), every=2)])]

    model = Two(rows.spec)
    train(model, rows, steps=4)
    assert [move[:2] for move in model.moves] == [(0, "a"), (1, "a"), (1, "b"), (2, "a"), (3, "a"), (3, "b")]
    assert all((a, b) == (name == "a", name == "b") for _, name, a, b in model.moves)


def test_phases_without_gradients(rows):
    class Mean(Line):
        def __init__(self, spec):
            super().__init__(spec)
            self.register_buffer("total", torch.zeros(3, dtype=torch.float64))
            self.passes = 0

        def phases(self):
            return [Phase("count", accumulate=self.accumulate, finish=self.finish, passes=3)]

        def accumulate(self, batch):
            self.total += batch.x.double().sum(0)

        def finish(self):
            self.passes += 1
            return self.passes < 2

    outcome, _ = train(Mean(rows.spec), rows, steps=10)
    assert outcome.model.passes == 2, "finish() ended the phase"
    assert torch.allclose(outcome.model.total, 2 * rows.examples.double().sum(0))


def test_a_loss_that_is_not_finite_stops_the_same_step(rows):
    with pytest.raises(DivergedError, match=r"step 3.*lr"):
        train(Line(rows.spec, lambda m: m.weight.sum() * (float("nan") if m.step == 2 else 1)), rows, steps=5)


@pytest.mark.parametrize(("height", "diverges"), [(1e5, True), (1e3, False)])
def test_a_loss_that_is_far_above_all_before_it_is_none_to_go_on_with(rows, height, diverges):
    """From step 60 on, of a loss between 0 and 9 before: a line of metrics.jsonl later, while it is finite."""
    model = Line(rows.spec, lambda m: (m.weight - 3).square().sum() + height * (m.step >= 60))
    if diverges:
        with pytest.raises(DivergedError, match=r"step 65: loss is 1e\+05 and was at most \d.*before; try"):
            train(model, rows, steps=100, lr=0.1, log_every=5)
    else:
        assert train(model, rows, steps=100, lr=0.1, log_every=5)[1].state.step == 100


def test_a_loss_may_rise_before_its_phase_has_settled(rows):
    train(Line(rows.spec, lambda m: (m.weight - 3).square().sum() + 1e6 * (m.step >= 20)), rows, steps=100, log_every=5)


def test_early_stopping_keeps_the_best(rows):
    class Scored(Line):
        likelihood = "exact"

        def log_prob(self, batch, rng):
            return -(self.weight.detach() - 1).square().expand(len(batch))

    settings = {"steps": 400, "lr": 0.1, "validation": 0.2, "validate_every": 5, "patience": 3}
    outcome, trainer = train(Scored(rows.spec), rows, **settings)
    assert abs(outcome.model.weight.item() - 1) < 0.1, "best on validation, though training goes on to 3"
    assert outcome.step < 400 and trainer.state.stopped_early


def test_the_model_is_told_after_each_checkpoint_but_the_last(rows, tmp_path):
    """The last model is another: a resumed training that finds one of the last step takes it for finished."""
    settings = TrainSettings(steps=6, checkpoint_every="2", lr=0.1, precision="fp32")
    told = []
    with Run(tmp_path / "run") as run:
        def saved(so_far):
            assert checkpoints.steps(run.path)[-1] == so_far.step
            told.append((so_far.step, so_far.model.weight.item()))

        Trainer(Line(rows.spec), rows, settings, run, hooks=Hooks(saved=saved)).run()
    constant = {"lr": 0.1, "schedule": "constant"}
    assert told == [(step, train(Line(rows.spec), rows, steps=step, **constant)[0].model.weight.item())
                    for step in (2, 4)]


def test_validation_that_rises_is_told_once(rows):
    class Scored(Line):
        likelihood = "exact"

        def log_prob(self, batch, rng):
            return -(self.weight.detach() - 1).square().expand(len(batch))

    def warnings(**settings):
        told = []
        settings |= {"steps": 200, "lr": 0.1, "validation": 0.2, "validate_every": 5, "precision": "fp32"}
        Trainer(Scored(rows.spec), rows, TrainSettings(**settings), hooks=Hooks(warn=told.append)).run()
        return told

    (told,) = warnings()
    assert "learns its examples by heart; --patience N" in told
    assert not warnings(patience=3)


def test_an_alarm_that_lasts_is_told_less_and_less_often(rows):
    """Each kind of it by itself, whatever its numbers."""
    class Alarmed(Line):
        def alarm(self, history):
            step = len(history)
            return None if step < 3 else f"it collapsed to {step}.5%" if step % 2 else f"{step} modes are dropped"

    told = []
    settings = TrainSettings(steps=40, log_every=1)
    Trainer(Alarmed(rows.spec), rows, settings, hooks=Hooks(warn=told.append)).run()
    assert told == ["step 3: it collapsed to 3.5%", "step 4: 4 modes are dropped", "step 7: it collapsed to 7.5%",
                    "step 8: 8 modes are dropped", "step 15: it collapsed to 15.5%", "step 16: 16 modes are dropped",
                    "step 31: it collapsed to 31.5%", "step 32: 32 modes are dropped"]


# --- phases


class Stack(Model):
    """Two layers, trained one after the other by players of the same name, with a count in between."""

    kinds = frozenset({"vector"})

    def __init__(self, spec):
        super().__init__(FamilyConfig(), spec)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("total", torch.zeros(3))
        self.begun = []  # the weight of the first layer when the second begins
        self.trained = []  # names of what needs gradients, at every loss

    def phases(self):
        return [Phase("first", [Player("layer", list(self.first.parameters()), self.first_loss)], share=3),
                Phase("count", accumulate=self.accumulate, finish=lambda: True, passes=2, share=2),
                Phase("second", [Player("layer", list(self.second.parameters()), self.second_loss),
                                 Player("bias", [self.second.bias], self.second_loss, every=2)],
                      share=5, begin=self.begin)]

    def begin(self):
        self.begun.append(self.first.weight.clone())
        self.second.weight.copy_(self.first.weight + torch.randn(3, 3))

    def accumulate(self, batch):
        self.total += self.first(batch.x.float()).sum(0)

    def first_loss(self, batch, rng):
        return self._loss(self.first(batch.x.float()), rng)

    def second_loss(self, batch, rng):
        return self._loss(self.second(self.first(batch.x.float()) - self.total), rng)

    def _loss(self, h, rng):
        self.trained.append([name for name, parameter in self.named_parameters() if parameter.requires_grad])
        return Loss((h - rng.normal(3)).square().mean())


def stack(spec) -> Stack:
    torch.manual_seed(0)
    return Stack(spec)


def test_phases_train_layers_by_players_of_the_same_name(rows):
    model = stack(rows.spec)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    outcome, _ = train(model, rows, steps=10)
    moved = {name for name, tensor in outcome.model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == set(before)
    assert len(model.begun) == 1 and torch.equal(model.begun[0], outcome.model.first.weight)
    assert model.trained == [["first.weight", "first.bias"]] * 3 + [
        names for step in range(5)
        for names in [["second.weight", "second.bias"], *([["second.bias"]] if step % 2 else [])]]


def test_adam_starts_anew_in_every_phase(rows):
    """Two phases of one player are two trainings, one after the other."""
    class Twice(Line):
        def phases(self):
            return [Phase(name, [Player("line", [self.weight], self.loss)]) for name in ("one", "two")]

    outcome, _ = train(Twice(rows.spec), rows, steps=20, lr=0.1, schedule="cosine")
    model = Line(rows.spec)
    for _ in range(2):
        train(model.requires_grad_(True), rows, steps=10, lr=0.1, schedule="cosine")
    assert torch.equal(outcome.model.weight, model.weight)


def test_the_average_includes_what_begin_wrote(rows):
    """And the next phase starts from the average of the one before."""
    class Far(Line):
        def __init__(self, spec):
            super().__init__(spec)
            self.other = nn.Parameter(torch.zeros(1))

        def phases(self):
            return [Phase("one", [Player("line", [self.weight], self.loss)]),
                    Phase("two", [Player("line", [self.other], lambda batch, rng: Loss(1e-9 * self.other.sum()),
                                         lr_scale=1e-9)], begin=self.begin)]

        def begin(self):
            self.other.fill_(100.0)

    outcome, _ = train(Far(rows.spec), rows, steps=20, lr=0.1, ema=0.999)
    alone, _ = train(Line(rows.spec), rows, steps=10, lr=0.1, ema=0.999)
    assert outcome.model.other.item() == pytest.approx(100)
    assert torch.allclose(outcome.model.weight, alone.model.weight)


def killed_after(step: int, monkeypatch, model, data, settings, folder) -> None:
    """Train until a kill after a step; the checkpoint of that step is there if one was due."""
    after = Trainer._after_step

    def interrupt(self, *args):
        after(self, *args)
        if self.state.step == step:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch, Run(folder) as run:
        run.write_config({"versions": {"gencli": "0"}})  # the mark of a run
        patch.setattr(Trainer, "_after_step", interrupt)
        with pytest.raises(RuntimeError, match="killed"):
            Trainer(model, data, settings, run).run(resume=True)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("every", ["1", "4"])
def test_resume_in_every_phase(rows, every, ema, monkeypatch, tmp_path):
    """Killed inside each phase and at each border: the same bits, and `begin` is called once on the way there."""
    settings = TrainSettings(steps=10, batch_size=8, ema=ema, log_every=2, checkpoint_every=every, precision="fp32",
                             schedule="cosine")
    with Run(tmp_path / "whole") as run:
        whole = Trainer(stack(rows.spec), rows, settings, run).run().model
    for kill in (1, 2, 3, 4, 5, 6, 7, 9):
        folder = tmp_path / f"killed-{kill}"
        killed_after(kill, monkeypatch, stack(rows.spec), rows, settings, folder)
        model = stack(rows.spec)
        torch.manual_seed(kill)  # a new process
        with Run(folder) as run:
            result = Trainer(model, rows, settings, run).run(resume=True).model
        assert len(model.begun) == (kill // int(every) * int(every) <= 5), "5 is the border of the second layer"
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, result.state_dict()[name]), (kill, name)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_line_of_the_log_is_of_one_phase(rows, tmp_path):
    with Run(tmp_path / "run") as run:
        Trainer(stack(rows.spec), rows, TrainSettings(steps=10, log_every=100), run).run()
    lines = lines_of(tmp_path / "run/metrics.jsonl")
    assert [(line["step"], line["phase"]) for line in lines] == [(3, "first"), (5, "count"), (10, "second")]
    assert "loss" in lines[0] and {"layer/loss", "bias/loss"} < set(lines[2]) and "loss" not in lines[2]


def test_more_steps_do_not_go_back_to_a_phase_that_is_over(rows, tmp_path):
    with Run(tmp_path / "run") as run:
        first = Trainer(stack(rows.spec), rows, TrainSettings(steps=10), run).run().model.first.weight
        model = stack(rows.spec)
        outcome = Trainer(model, rows, TrainSettings(steps=100), run).run(resume=True)
    assert outcome.step == 100 and torch.equal(outcome.model.first.weight, first)
    assert not model.begun and lines_of(tmp_path / "run/metrics.jsonl")[-1]["phase"] == "second"


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_more_steps_reopen_the_last_phase_that_takes_any(rows, ema, monkeypatch, tmp_path):
    """A pass that closes a training comes anew after them; killed on the way: the same bits."""
    class Closed(Stack):
        def phases(self):
            *earlier, count, second = super().phases()
            return [*earlier, second, replace(count, share=0)]

    def closed():
        torch.manual_seed(0)
        return Closed(rows.spec)

    def settings(steps):
        return TrainSettings(steps=steps, batch_size=8, ema=ema, schedule="cosine", log_every=1, precision="fp32")

    warnings: list[str] = []
    ends = {}
    for name in ("whole", "killed"):
        with Run(tmp_path / name) as run:
            run.write_config({"versions": {"gencli": "0"}})  # the mark of a run
            before = Trainer(closed(), rows, settings(8), run).run().model
        if name == "killed":
            killed_after(10, monkeypatch, closed(), rows, settings(16), tmp_path / name)
        with Run(tmp_path / name) as run:
            hooks = Hooks(warn=warnings.append)
            outcome = Trainer(model := closed(), rows, settings(16), run, hooks=hooks).run(resume=True)
        assert outcome.step == 16 and not outcome.early and not model.begun
        ends[name] = outcome.model.state_dict()
    assert torch.equal(ends["whole"]["first.weight"], before.first.weight)
    assert not torch.equal(ends["whole"]["second.weight"], before.second.weight)
    assert any("phase 'second' was over" in warning for warning in warnings)
    counted = sum((before.first(rows.batch(torch.arange(len(rows))).x.float())).sum(0) for _ in range(2))
    torch.testing.assert_close(ends["whole"]["total"] - before.total, counted)  # twice more, after 16 steps
    for name, tensor in ends["whole"].items():
        assert torch.equal(tensor, ends["killed"][name]), name
    rates = [line["lr"] for line in lines_of(tmp_path / "whole/metrics.jsonl") if line["phase"] == "second"]
    assert rates[5] > 0.9 * settings(16).lr > 0.1 * settings(16).lr > rates[-1], "its schedule runs over the new steps"


def test_early_stopping_ends_a_phase_and_keeps_its_best(rows):
    class Scored(Line):
        likelihood = "exact"

        def __init__(self, spec):
            super().__init__(spec)
            self.starts = []

        def phases(self):
            return [Phase(name, [Player("line", [self.weight], self.loss)], begin=self.begin)
                    for name in ("one", "two")]

        def begin(self):
            self.starts.append((self.step, self.weight.item()))
            self.weight.zero_()

        def log_prob(self, batch, rng):
            return -(self.weight.detach() - 1).square().expand(len(batch))

    model = Scored(rows.spec)
    outcome, trainer = train(model, rows, steps=400, lr=0.1, validation=0.2, validate_every=5, patience=3)
    (_, start), (last, best) = model.starts
    assert start == 0 and last < 199 and abs(best - 1) < 0.1
    assert 200 < outcome.step < 400 and trainer.state.stopped_early and abs(outcome.model.weight.item() - 1) < 0.1


def test_steps_too_few_for_all_phases_are_told(rows):
    from gencli.trainer import Hooks

    told = []
    Trainer(stack(rows.spec), rows, TrainSettings(steps=1), hooks=Hooks(warn=told.append)).run()
    assert len(told) == 1 and "'first'" in told[0]


def test_names_and_kinds_of_phases_are_refused(rows):
    model = Line(rows.spec)
    player = Player("line", [model.weight], model.loss)
    with pytest.raises(ValueError, match=r"phase 'p'.*different names"):
        Phase("p", [player, player])
    for wrong in ({}, {"accumulate": print}, {"finish": print}, {"players": [player], "accumulate": print,
                                                                "finish": print}):
        with pytest.raises(ValueError, match="either players or both"):
            Phase("p", **wrong)
    model.phases = lambda: [Phase("p", [player]), Phase("p", [player])]
    with pytest.raises(ValueError, match="Line: phases need different names"):
        Trainer(model, rows, TrainSettings(steps=1))


def as_of_before(run: Path) -> None:
    """Make the newest checkpoint one of a gencli that did not know in which phase it was."""
    folder = checkpoints.folders(run)[-1]
    manifest = json.loads((folder / "manifest.json").read_text())
    numbers = json.loads((folder / "state.json").read_text())
    del numbers["phase"], numbers["phase_start"]
    (folder / "state.json").write_text(json.dumps(numbers))
    manifest["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_checkpoints_from_before(rows, tmp_path, monkeypatch):
    """They name no phase: training goes on if only one phase has optimisers, and is refused otherwise."""
    class Counted(Line):
        def phases(self):
            return [Phase("count", accumulate=lambda batch: None, finish=lambda: True, passes=2), *super().phases()]

    settings = TrainSettings(steps=10, checkpoint_every="1", lr=0.1, schedule="cosine")
    whole, _ = train(Counted(rows.spec), rows, **settings.model_dump(exclude={"precision"}))
    for kill in (2, 5, 7):
        folder = tmp_path / f"killed-{kill}"
        killed_after(kill, monkeypatch, Counted(rows.spec), rows, settings, folder)
        as_of_before(folder)
        with Run(folder) as run:
            assert torch.equal(Trainer(Counted(rows.spec), rows, settings, run).run(True).model.weight,
                               whole.model.weight)
    killed_after(2, monkeypatch, stack(rows.spec), rows, settings, tmp_path / "stack")
    as_of_before(tmp_path / "stack")
    with Run(tmp_path / "stack") as run, pytest.raises(ModelError, match="older version"):
        Trainer(stack(rows.spec), rows, settings, run).run(True)
    assert lines_of(tmp_path / "stack/metrics.jsonl") == [] and len(checkpoints.folders(tmp_path / "stack")) == 2


def test_checkpoints_of_another_optimiser(rows, tmp_path, monkeypatch):
    """Those of AdamW number the parameters as the model does, those of Muon its matrices first."""
    class Layered(Line):
        def __init__(self, spec, muon):
            super().__init__(spec)
            self.matrix = nn.Parameter(torch.ones(3, 4))
            self.muon = partial(Muon, matrices=[self.matrix]) if muon else None

        def phases(self):
            return [Phase("train", [Player("model", list(self.parameters()), self.loss, optimiser=self.muon)])]

        def loss(self, batch, rng):
            return Loss(super().loss(batch, rng).total + self.matrix.square().sum())

    settings = TrainSettings(steps=10, checkpoint_every="1", lr=0.1)
    killed_after(5, monkeypatch, Layered(rows.spec, muon=False), rows, settings, tmp_path / "run")
    with Run(tmp_path / "run") as run:
        with pytest.raises(ModelError, match=r"another optimiser.*--init"):
            Trainer(Layered(rows.spec, muon=True), rows, settings, run).run(True)
        assert Trainer(Layered(rows.spec, muon=False), rows, settings, run).run(True).step == 10


# --- times


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("1.5m", 90), ("6h", 21600), ("2d", 172800)])
def test_times(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "90", "s", "-5s", "6x", "h6"])
def test_times_that_are_none(text):
    with pytest.raises(ValueError, match="expected a time"):
        seconds(text)
    with pytest.raises(ValidationError):
        TrainSettings(time_limit=text)


# --- order


def test_order_is_a_permutation_of_every_epoch(rows):
    order = Shuffled(rows, 8, seed=1, device=CPU)
    epochs = [torch.cat([order[e * order.steps_per_epoch + i][0].x for i in range(order.steps_per_epoch)])
              for e in range(2)]
    for x in epochs:
        assert len(x.unique(dim=0)) == len(x) == len(rows) // 8 * 8
    assert not torch.equal(*epochs)
    assert torch.equal(Shuffled(rows, 8, seed=1, device=CPU)[13][0].x, order[13][0].x)


def test_processes_share_a_batch(rows):
    whole = Shuffled(rows, 8, 1, CPU)[5][0].x
    parts = [Shuffled(rows, 8, 1, CPU, rank, 2)[5][0].x for rank in range(2)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_documents_are_read_on(small_data):
    text = load(str(small_data["text"]), split="train")
    order = Contiguous(text, 4, 16, seed=0, device=CPU)
    batches = [order[i][0] for i in range(order.steps_per_epoch + 1)]
    assert batches[0].fresh and batches[-1].fresh and not any(b.fresh for b in batches[1:-1])
    for before, after in itertools.pairwise(batches[:-1]):
        assert torch.equal(before.x[:, -1], after.x[:, 0])
    document = text.document.long().tolist()
    first = torch.cat([b.x[0, :-1] for b in batches[:-1]]).tolist()
    doubled = "".join(map(chr, document + document))
    assert "".join(map(chr, first)) in doubled


# --- resume, through the command line


def arguments(family: str, kind: str, data: Path, run: str, *more: str) -> list[str]:
    return ["train", family, str(data), "-o", run, "--steps", "40", "--batch-size", "8", "--log-every", "3", "-q",
            "--checkpoint-every", "7", "--preview-every", "0", *SMALL[family, kind], *more]


@pytest.mark.parametrize(("family", "kind", "more"), [
    ("vae", "image", ["--kl-warmup", "20", "--validation", "0.2", "--validate-every", "6", "--patience", "90"]),
    ("gan", "image", ["--loss", "wgan-gp"]), ("gan", "vector", ["--grad-clip", "1"]), ("rnn", "text", []),
    ("diffusion", "vector", ["--dropout", "0.3"]),
    ("rnn", "text", ["--lines"])])
def test_resume_gives_the_same_bits(family, kind, more, small_data, gencli, tmp_path, monkeypatch):
    gencli(*arguments(family, kind, small_data[kind], "whole", *more))
    step, kills = Trainer._after_step, [10, 25]  # between checkpoints; the second after a resume

    def interrupted(self, *args):
        step(self, *args)
        if self.state.step == kills[0]:
            del kills[0]
            raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "_after_step", interrupted)
    gencli(*arguments(family, kind, small_data[kind], "parts", *more), code=1)
    gencli("train", family, str(small_data[kind]), "-o", "parts", "--resume", "-q", *more, code=1)
    monkeypatch.setattr(Trainer, "_after_step", step)
    (tmp_path / "parts/checkpoints/step-21/weights.safetensors").write_bytes(b"damaged")
    done = gencli("train", family, str(small_data[kind]), "-o", "parts", "--resume", *more)
    assert "step-21 is damaged" in done.stderr
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_killed_before_its_first_checkpoint_repeats_no_line(small_data, gencli, tmp_path, monkeypatch):
    step = Trainer._after_step

    def interrupted(self, *args):
        step(self, *args)
        if self.state.step == 6:
            raise RuntimeError("killed")

    monkeypatch.setattr(Trainer, "_after_step", interrupted)
    args = arguments("vae", "vector", small_data["vector"], "run")
    gencli(*args, code=1)
    monkeypatch.setattr(Trainer, "_after_step", step)
    gencli(*args, "--resume")
    steps = [line["step"] for line in lines_of(tmp_path / "run/metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[0] == 3


def test_a_finished_run_has_nothing_to_do(small_data, gencli, tmp_path):
    args = arguments("vae", "vector", small_data["vector"], "run")
    gencli(*args)
    before = (tmp_path / "run/model.safetensors").stat().st_mtime_ns
    assert "nothing to do" in gencli("train", "vae", str(small_data["vector"]), "-o", "run", "--resume").stderr
    assert (tmp_path / "run/model.safetensors").stat().st_mtime_ns == before
    gencli("train", "vae", str(small_data["vector"]), "-o", "run", "--resume", "--steps", "60", "-q")
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"] == 60


def test_a_run_is_not_harmed(small_data, gencli, tmp_path):
    args = arguments("vae", "vector", small_data["vector"], "run")
    gencli(*args)
    assert "--resume" in gencli(*args, code=2).stderr
    assert "latent" in gencli(*args, "--resume", "--latent", "5", code=2).stderr
    other = tmp_path / "other.csv"
    other.write_text("a,b,c\n" + "1,2,3\n2,3,4\n4,4,1\n0,1,1\n" * 20)
    assert "not the data" in gencli("train", "vae", str(other), "-o", "run", "--resume", code=3).stderr
    gencli(*args, "--overwrite", "--steps", "5")


# --- stop requests, locks, processes


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_signals_save_and_exit(number, code, small_data, gencli_process, gencli, tmp_path):
    process = gencli_process("train", "vae", str(small_data["vector"]), "-o", "run", "--steps", "1000000",
                             "--log-every", "5", *SMALL["vae", "vector"])
    while not lines_of(tmp_path / "run/metrics.jsonl"):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    if number == signal.SIGINT:  # while it runs, another command on the run is told so
        told = gencli("train", "vae", str(small_data["vector"]), "-o", "run", "--resume", "-q", code=8).stderr
        (named,) = re.findall(rf"process (\d+) on {re.escape(socket.gethostname())}", told)
        os.kill(int(named), number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "--resume" in err.decode()
    assert "Traceback" not in err.decode()
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    assert int(checkpoint.name[5:]) >= lines_of(tmp_path / "run/metrics.jsonl")[-1]["step"]


def test_a_run_is_read_while_it_trains(small_data, gencli_process, gencli, tmp_path):
    """Also if its model is replaced while it is read, which with so many checkpoints happens."""
    data = str(small_data["vector"])
    process = gencli_process("train", "vae", data, "-o", "run", "--steps", "1000000", "--checkpoint-every", "5",
                             "--log-every", "5", *SMALL["vae", "vector"])
    try:
        while not (tmp_path / "run/model.safetensors").exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        gencli("sample", "run", "-n", "3", "-o", "now.csv")
        gencli("evaluate", "run", data, "--draw", "0", "-q")
        assert json.loads(gencli("families", "run", "--json").stdout)["state"] == "running"
    finally:
        process.kill()
        process.communicate()
    for verb in (["sample", "run", "-n", "3", "-o", "then.csv"], ["export", "run", "-o", "then.onnx"],
                 ["evaluate", "run", data, "--draw", "0"], ["encode", "run", data, "-o", "codes.npz"],
                 ["interpolate", "run", "--seeds", "1,2", "-o", "way.csv"]):
        assert re.search(r"warning: run is trained as far as step \d+ of 1,000,000", gencli(*verb).stderr), verb
    done = json.loads(gencli("families", "run", "--json").stdout)
    assert done["state"] == "interrupted" and done["steps"]["done"] >= 5


def test_time_limit(small_data, gencli, tmp_path):
    done = gencli("train", "vae", str(small_data["vector"]), "-o", "run", "--steps", "1000000", "--time-limit", "1s",
                  *SMALL["vae", "vector"], code=75)
    assert "--resume" in done.stderr and list((tmp_path / "run/checkpoints").iterdir())


def test_torchrun_on_two_processes(small_data, tmp_path, python):
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [*python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", *python, "-m",
         "gencli", "train", "vae", str(small_data["vector"]), "-o", "run", "--steps", "20", "--batch-size", "16",
         "--device", "cpu", "--log-every", "5", *SMALL["vae", "vector"]],
        cwd=tmp_path, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root})
    assert done.returncode == 0, done.stderr.decode()
    steps = [line["step"] for line in lines_of(tmp_path / "run/metrics.jsonl")]
    assert steps == [5, 10, 15, 20], "one process writes"
    from gencli.runs import load_model

    assert load_model(tmp_path / "run")[1].steps == 20


def test_locks(tmp_path, monkeypatch):
    from gencli import runs
    from gencli.errors import LockedError

    monkeypatch.setattr(runs, "_HOLDER_TIMEOUT", 0.1)
    with Run(tmp_path / "run"), pytest.raises(LockedError, match="process"), Run(tmp_path / "run"):
        pass
    with Run(tmp_path / "run"):
        pass


def test_a_damaged_model_is_noticed(small_run, tmp_path):
    from gencli.runs import load_model

    content = (small_run("vae", "vector") / "model.safetensors").read_bytes()
    for name, damaged in (("cut", content[:-10]), ("empty", b""), ("text", b"hello" * 100)):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged"):
            load_model(path)
