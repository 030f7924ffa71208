"""The run directory and the model file.

    RUN/
      config.json         resolved settings, argv, versions, data fingerprint: itself a valid --config
      model.safetensors   the model; self-sufficient
      metrics.jsonl       one line per logged step; timings.jsonl has the clock times
      log.txt  samples/  eval/  README.md
      checkpoints/step-N/ raw weights, optimiser, everything to go on; complete or absent

Weights and state are safetensors; everything else about a model is one JSON string in their metadata. No pickle.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from gencli import __version__, registry
from gencli.data.dataset import DataSettings
from gencli.errors import LockedError, ModelError, ResourceError, UsageError
from gencli.model import AnySpec, Model
from gencli.publish import explained, publish, publish_folder, publish_text, sweep

FORMAT = 1
_KEY = "gencli"  # the one metadata key of a model file; safetensors does not keep the order of several


class Card(BaseModel):
    """Everything about a model but its weights; the metadata of a model file."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a later gencli may add to it

    format: int = FORMAT
    family: str
    config: dict[str, Any]
    spec: AnySpec
    data: str = ""  # what the model was trained on, as on the command line
    data_settings: DataSettings = DataSettings()
    fingerprint: str = ""  # of the training data
    steps: int = 0
    seed: int = 0
    gencli: str = __version__


# ---------------------------------------------------------------------------------------------------------------------
# Model files


def build(family: str, config: dict[str, Any], spec: AnySpec) -> Model:
    """A new model with fresh weights.

    Raises:
        UsageError: the configuration does not fit the family, or the family not the data.
    """
    cls = registry.family(family).load()
    if spec.kind not in cls.kinds:
        fitting = [f.name for f in registry.families().values() if spec.kind in f.kinds]
        raise UsageError(f"family {family!r} models {', '.join(sorted(cls.kinds))}, but the data is {spec.kind}; "
                         f"families for {spec.kind}: {', '.join(fitting) or 'none'}")
    try:
        return cls(cls.Config(**config), spec)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def save_model(path: str | Path, model: Model, card: Card) -> None:
    """Publish a model file: the weights, and the card as JSON in the metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with publish(path) as file:
        file.write(to_safetensors(tensors, {_KEY: card.model_dump_json()}))


def model_path(run: str | Path) -> Path:
    """The model file of RUN, a run directory or a `.safetensors` file."""
    path = Path(run)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists():
            hint = "finish its training with --resume" if (path.parent / "config.json").exists() else "it is no run"
            raise ModelError(f"{run} holds no model.safetensors; {hint}")
    if not path.exists():
        raise ModelError(f"no run or model file is called {run}; expected a run directory or a .safetensors file")
    return path


def read_card(run: str | Path) -> Card:
    """The card of a model, without its weights.

    Raises:
        ModelError: the file is missing, damaged or none of gencli's.
    """
    path = model_path(run)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no safetensors file or is damaged: {error}") from error
    if _KEY not in metadata:
        raise ModelError(f"{path} is a safetensors file, but not one of gencli's: its metadata lacks {_KEY!r}")
    try:
        content = json.loads(metadata[_KEY])
        if content.get("format", FORMAT) > FORMAT:
            raise ModelError(f"{path} has format {content['format']}, this gencli reads up to {FORMAT}; upgrade gencli")
        return Card.model_validate(content)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: its description is damaged ({_first_line(error)})") from error


def load_model(run: str | Path, device: torch.device | str = "cpu") -> tuple[Model, Card]:
    """A trained model in evaluation mode on `device`, and its card.

    Raises:
        ModelError: the file is missing, damaged, of an unknown family, or its weights do not fit its configuration.
    """
    path, card = model_path(run), read_card(run)
    if card.family not in registry.families():
        raise ModelError(f"{path} is of family {card.family!r}, which is not installed; install its plugin")
    try:
        model = build(card.family, card.config, card.spec)
    except UsageError as error:
        raise ModelError(f"{path}: its configuration does not fit family {card.family!r}: {error}") from error
    load_weights(model, path)
    return model.to(device).eval().requires_grad_(False), card


def load_weights(model: Model, path: Path) -> None:
    """Copy the tensors of a safetensors file into `model`; every name and shape has to match."""
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"{path}: weight {name!r} holds values that are not finite")
    try:
        model.load_state_dict(tensors)  # a model whose sizes only training decides makes room in a hook of torch's
    except RuntimeError as error:
        reason = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise ModelError(f"{path}: its weights do not fit the configuration stored beside them: {reason}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no safetensors file or is damaged: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------------------------------------------------------------
# Run directories


class Run:
    """A run directory that this process writes to. Use as a context manager: it holds the run's lock.

    Raises (on entering):
        LockedError: another process holds the run. ResourceError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, wait: bool = False):
        self.path = Path(path)
        self._wait = wait
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> "Run":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            sweep(self.path)
            self._lock.acquire(timeout=-1 if self._wait else 0)
            (self.path / ".holder").write_text(f"process {os.getpid()} on {socket.gethostname()}")
        except Timeout:
            try:
                holder = (self.path / ".holder").read_text()
            except OSError:
                holder = "another process"
            raise LockedError(f"{self.path} is in use by {holder}; wait for it, or pass --wait") from None
        except OSError as error:
            raise ResourceError(f"cannot write {self.path}: {os.strerror(error.errno or 0)}; "
                                f"choose another output") from error
        return self

    def __exit__(self, *_: object) -> None:
        (self.path / ".holder").unlink(missing_ok=True)
        self._lock.release()

    @property
    def started(self) -> bool:
        """Whether a training was started here."""
        return (self.path / "config.json").exists()

    def clear(self) -> None:
        """Forget what an earlier training left: everything that gencli writes into a run."""
        for name in ("config.json", "model.safetensors", "metrics.jsonl", "timings.jsonl", "log.txt", "README.md"):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "samples", "eval"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def config(self) -> dict[str, Any]:
        """The settings of the run, as `config.json` has them."""
        try:
            return json.loads((self.path / "config.json").read_text())
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path / 'config.json'} cannot be read: {_first_line(error)}") from error

    def write_config(self, settings: dict[str, Any]) -> None:
        """Publish `config.json`."""
        publish_text(self.path / "config.json", json.dumps(settings, indent=2) + "\n")

    def log(self, message: str) -> None:
        """Append a line with the time to `log.txt`."""
        path = self.path / "log.txt"
        with explained(path), open(path, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {message}\n")

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append a JSON line to a log of the run."""
        path = self.path / name
        with explained(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, name: str, step: int) -> None:
        """Drop the lines of a log that lie after `step`, so that a resumed run repeats none; a cut last line too."""
        path = self.path / name
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            publish_text(path, "".join(f"{line}\n" for line in lines))

    # --- checkpoints

    def checkpoints(self) -> list[Path]:
        """Folders of complete checkpoints, oldest first."""
        found = [p for p in (self.path / "checkpoints").glob("step-*") if p.name[5:].isdigit()]
        return sorted(found, key=lambda p: int(p.name[5:]))

    def save_checkpoint(self, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any],
                        keep: int) -> None:
        """Publish `checkpoints/step-N/`: one safetensors file for each group of tensors, and `state.json`."""
        with publish_folder(self.path / "checkpoints" / f"step-{step}") as folder:
            for name, group in tensors.items():
                contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
                (folder / f"{name}.safetensors").write_bytes(to_safetensors(contiguous))
            (folder / "state.json").write_text(json.dumps(state))
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def load_checkpoint(self, warn: Callable[[str], None]
                        ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint that can be read; None if there is none."""
        for folder in reversed(self.checkpoints()):
            try:
                state = json.loads((folder / "state.json").read_text())
                return {file.stem: read_tensors(file) for file in sorted(folder.glob("*.safetensors"))}, state
            except (OSError, ValueError, ModelError) as error:
                warn(f"checkpoint {folder} is damaged ({_first_line(error)}); going back to the one before")
        return None


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
