"""The run directory and the model file.

    RUN/
      config.json         resolved settings, argv, versions, data fingerprint: itself a valid --config
      manifest.json       the SHA-256 of the files of the run; every folder in it has one of its own
      model.safetensors   the model; self-sufficient
      metrics.jsonl       one line per logged step; timings.jsonl has the clock times
      log.txt  samples/  eval/  README.md
      tracking/NAME/      files of those trackers that write into the run; `id` is the same for all that resume it
      checkpoints/step-N/ everything that is needed to continue, see `checkpoints`; complete or absent

A folder is a run by gencli's mark: versions in config.json, or config.json in the manifest. Any other folder with
something in it is left alone, as are files in a run that no manifest names.

Weights and state are safetensors; everything else about a model is one JSON string in their metadata. No pickle.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationError, field_validator, model_validator
from torch import Tensor
from torch.nn.modules import module as registration

from gencli import hub, registry
from gencli.encoders import encoder
from gencli.errors import LockedError, ModelError, ResourceError, UsageError, first_line
from gencli.escape import printable, to_json
from gencli.manifests import MANIFEST, checksums, discard, named, read_checked, record, remove_files, sums
from gencli.model import Model
from gencli.publish import (
    append,
    explained,
    is_temporary,
    make_folder,
    publish,
    publish_text,
    remove,
    sweep,
    system,
)
from gencli.settings import DataSettings
from gencli.spec import Spec, parse_spec
from gencli.tensors import is_finite, read_metadata, read_tensors, sha256, to_bytes, verified
from gencli.version import __version__

T = TypeVar("T")

FORMAT = 1
_KEY = "gencli"  # the one metadata key of a model file; safetensors does not keep the order of several
LOGS = ("metrics.jsonl", "timings.jsonl")
_TRIES = 100  # to read a model that a training replaces
_HOLDER_TIMEOUT = 10.0  # seconds to wait for the holder of a lock to write its name


class Origin(BaseModel):
    """The model whose encoder another one starts from, or which it mixes with, without its weights: what is needed to
    build it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    config: dict[str, Any]
    spec: SerializeAsAny[Spec]
    origin: "Origin | None" = None

    @field_validator("spec", mode="before")
    @classmethod
    def _of_its_kind(cls, spec: Any) -> Any:
        return parse_spec(spec) if isinstance(spec, dict) else spec


class Card(BaseModel):
    """Everything about a model but its weights; the metadata of a model file."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a later gencli may add to it

    format: int = FORMAT
    family: str
    config: dict[str, Any]
    spec: SerializeAsAny[Spec]
    origin: Origin | None = None  # of a model that started from the encoder of another one, or mixes with it
    data: str = ""  # what the model was trained on, as on the command line
    data_settings: dict[str, Any] = {}  # how it was read: options of data, and of the kinds in it
    fingerprint: str = ""  # of the training data
    examples: int = 0  # that it was trained on; 0 in older files
    extent: tuple[int, int] | None = None  # files and bytes of the training data, where it lay in files
    steps: int = 0  # of training behind the weights
    planned: int | None = None  # steps of the whole training, where it is not over
    stopped: int | None = None  # the step at which training ended, where weights of an earlier one were kept
    seed: int = 0
    retries: tuple[tuple[int, int], ...] = ()  # (after which step training diverged, the step it went back to)
    findings: dict[str, Any] = {}  # what evaluations have computed about the weights
    gencli: str = __version__

    @field_validator("spec", mode="before")
    @classmethod
    def _of_its_kind(cls, spec: Any) -> Any:
        return parse_spec(spec) if isinstance(spec, dict) else spec

    @property
    def trained(self) -> int:
        """The step at which training ended."""
        return self.steps if self.stopped is None else self.stopped

    @property
    def reading(self) -> dict[str, Any]:
        """The options with which the training data was read, as far as they apply to its kinds and to other data."""
        return {name: value for name, value in self.own_reading.items() if name != "labels"}

    @property
    def own_reading(self) -> dict[str, Any]:
        """`reading`, and the file of the labels of the training data if they came in one."""
        names = {name for settings in self._settings for name in settings.model_fields}
        return {name: value for name, value in self.data_settings.items() if name in names}

    @model_validator(mode="after")
    def _reading_can_be_followed(self) -> "Card":
        for settings in self._settings:
            settings(**{name: value for name, value in self.own_reading.items()
                        if name in settings.model_fields and value is not None})
        return self

    @property
    def _settings(self) -> list[type[BaseModel]]:
        """Those that the options of reading belong to."""
        kinds = [registry.kind_of(spec) for spec in (self.spec, self.spec.condition) if spec]
        return [DataSettings, *(kind.Settings for kind in kinds)]


# ---------------------------------------------------------------------------------------------------------------------
# Model files


def build(family: str, config: dict[str, Any], spec: Spec, origin: Origin | None = None,
          weights: Path | None = None) -> Model:
    """A new model with fresh weights, but for those of another model that it starts from or mixes with.

    Args:
        origin: that other model.
        weights: the model file of that one; None: fresh weights there, too.

    Raises:
        UsageError: the configuration does not fit the family, or the family not the data.
    """
    cls = registry.families.named(family).load()
    if spec.kind not in cls.kinds:
        fitting = [f.name for f in registry.families.values() if spec.kind in f.kinds]
        raise UsageError(f"family {family!r} models {', '.join(sorted(cls.kinds))}, but the data is {spec.kind}; "
                         f"families for {spec.kind}: {', '.join(fitting) or 'none'}")
    if spec.condition and spec.condition.kind not in cls.conditions:
        fitting = [f.name for f in registry.families.values() if "condition" in f.can and spec.kind in f.kinds]
        takes = f"takes {', '.join(sorted(cls.conditions))}" if cls.conditions else "makes examples from nothing"
        raise UsageError(f"family {family!r} {takes}, but the examples are made from {spec.condition.kind}; families "
                         f"for {spec.kind} made from others: {', '.join(fitting) or 'none'}")
    if spec.tasks and not cls.multitask:
        names = ", ".join(name for name, _ in spec.tasks)
        raise UsageError(f"family {family!r} knows one label at most, and the data has several ({names}); name one "
                         f"of them with --label, and leave others out of a table with --drop")
    try:
        model = cls(cls.Config(**config), spec)
        if origin is not None:
            other = build(origin.family, origin.config, origin.spec, origin.origin)
            if weights is not None:
                load_weights(other, weights)
            if "mix" in cls.abilities():
                model.mix(other)
            else:
                model.finetune(encoder(other).module)
        return model
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def model_bytes(model: Model, card: Card) -> bytes:
    """A model file: the weights, and the card with the model's findings, as JSON in the metadata."""
    card = card.model_copy(update={"findings": model.findings()})
    return to_bytes(model.state_dict(), {_KEY: card.model_dump_json()})


def save_model(path: str | Path, model: Model, card: Card) -> None:
    """Publish a model file."""
    with publish(path) as file:
        file.write(model_bytes(model, card))


def save_findings(run: str | Path, model: Model, card: Card) -> None:
    """Publish a loaded model again if it has new findings, unless another model has replaced it.

    Raises:
        LockedError: a training holds the run. ResourceError: the file cannot be written, as one on the hub.
    """
    if model.findings() == card.findings:
        return
    if hub.is_remote(run):
        raise ResourceError(f"{run} is another's to write; 'gencli export {run} -o FILE.safetensors' makes a copy")
    path = model_path(run)
    folder = Run(path.parent)
    in_run = folder.started and path.name == "model.safetensors"
    with folder if in_run else nullcontext():
        stored, stored_card = load_model(path)
        weights = stored.state_dict()
        same_weights = (torch.equal(weights[name], t.cpu()) for name, t in model.state_dict().items())
        if stored_card != card or not all(same_weights):
            return
        if in_run:
            folder.publish(path.name, model_bytes(model, card))
        else:
            save_model(path, model, card)


def model_path(run: str | Path) -> Path:
    """The model file of RUN, a run directory, a `.safetensors` file or a run on the hub, which is fetched."""
    path = hub.fetch(str(run)) if hub.is_remote(run) else Path(run)
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.exists():
            hint = "finish its training with --resume" if Run(path.parent).started else "it is not a run"
            raise ModelError(f"{run} holds no model.safetensors; {hint}")
    if not path.exists():
        raise ModelError(f"no run or model file is called {run}; expected a run directory, a .safetensors file or "
                         f"{hub.SCHEME}user/name")
    return path


def run_folder(run: str | Path) -> Path | None:
    """The run directory that RUN names, here or in the cache of the hub; None where it is a model file alone."""
    folder = model_path(run).parent if hub.is_remote(run) else Path(run)
    return folder if Run(folder).started else None


def read_card(run: str | Path) -> Card:
    """The card of a model, without its weights.

    Raises:
        ModelError: the file is missing, damaged, not a gencli file, or of a family that is not installed.
    """
    path = model_path(run)
    metadata = read_metadata(path)
    if _KEY not in metadata:
        raise ModelError(f"{path} is a safetensors file, but not a gencli file: its metadata lacks {_KEY!r}")
    try:
        content = json.loads(metadata[_KEY])
        if content.get("format", FORMAT) > FORMAT:
            raise ModelError(f"{path} has format {content['format']}, this gencli reads up to {FORMAT}; upgrade gencli")
        card = Card.model_validate(content)
        card.model_dump_json()  # names that are no UTF-8 could not be written again
    except UsageError as error:  # a kind that is not installed
        raise ModelError(f"{path}: {error}; install its plugin") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: its description is damaged ({first_line(error)})") from error
    if card.family not in registry.families:
        raise ModelError(f"{path} is of family {card.family!r}, which is not installed; install its plugin")
    return card


def complete(card: Card) -> Card:
    """The card with the Spec of the model itself: that of the data, and what the family adds."""
    cls = registry.families.named(card.family).load()
    return card.model_copy(update={"spec": cls.complete_spec(cls.Config(**card.config), card.spec)})


def identity(run: str | Path) -> str:
    """A hex digest that identifies a model: of its weights and card, without findings and what older files lack."""
    path = model_path(run)
    card, tensors = _of_one(path, lambda: (read_card(run), read_tensors(path)))
    newer = {name for name in ("origin", "planned", "retries") if not getattr(card, name)}
    about = card.model_copy(update={"findings": {}}).model_dump_json(exclude={"examples", "extent", *newer})
    return hashlib.sha256(to_bytes(tensors, {_KEY: about})).hexdigest()


def _of_one(path: Path, read: Callable[[], T]) -> T:
    """What `read()` finds in a file that is not replaced meanwhile, as a training does with every checkpoint."""
    for _ in range(_TRIES):
        before = path.stat()
        try:
            found = read()
        except ModelError:
            if _same(before, path.stat()):
                raise
        else:
            if _same(before, path.stat()):
                return found
    raise ModelError(f"{path} is replaced faster than it can be read; give its training a larger --checkpoint-every")


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return os.path.samestat(before, after) and before.st_mtime_ns == after.st_mtime_ns


def load_model(run: str | Path, device: torch.device | str = "cpu",
               warn: Callable[[str], None] = lambda message: None) -> tuple[Model, Card]:
    """A trained model in evaluation mode on `device`, and its card; a warning if it is not trained to its end.

    Raises:
        ModelError: as `read_card`, or its weights do not fit its configuration.
    """
    path = model_path(run)
    model, card = _of_one(path, lambda: _read_model(run, path))
    if card.planned:
        warn(f"{run} is trained as far as step {card.steps:,} of {card.planned:,}")
    return model.to(device).eval().requires_grad_(False), card


def _read_model(run: str | Path, path: Path) -> tuple[Model, Card]:
    card = read_card(run)
    with verified(path, checksums(path)):
        try:
            with _no_larger_than(path):
                model = build(card.family, card.config, card.spec, card.origin)
        except UsageError as error:
            raise ModelError(f"{path}: its configuration does not fit family {card.family!r}: {error}") from error
        except (RuntimeError, ArithmeticError, TypeError, MemoryError) as error:  # impossible tensor sizes
            raise ModelError(f"{path}: no model can be built from its description: {first_line(error)}") from error
        load_weights(model, path)
        try:
            model.load_findings(card.findings)
        except (ValueError, TypeError, LookupError) as error:
            raise ModelError(f"{path}: its findings are damaged: {first_line(error)}") from error
    return model, card


def load_weights(model: Model, path: Path) -> None:
    """Copy the tensors of a safetensors file into `model`; every name and shape has to match."""
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ModelError(f"{path}: weight {name!r} holds values that are not finite")
    try:
        model.load_state_dict(tensors)  # a model whose sizes depend on training makes room in a load hook
    except (RuntimeError, LookupError, ValueError, TypeError) as error:
        reason = (str(error).splitlines()[1:] or [str(error)])[0].strip()
        raise ModelError(f"{path}: its weights do not fit the configuration stored beside them: {reason}") from error


@contextmanager
def _no_larger_than(path: Path) -> Iterator[None]:
    """Within the block no model may grow far beyond the weights in `path`: its description may lie about its size."""
    left = path.stat().st_size + 2**26  # numbers: four times those in the file, for masks and the like

    def count(module: Any, name: str, tensor: Tensor | None) -> None:
        nonlocal left
        left -= 64 + (0 if tensor is None else tensor.numel())
        if left < 0:
            raise ModelError(f"{path}: its description is of a model far larger than the weights in the file")

    hooks = (registration.register_module_parameter_registration_hook(count),
             registration.register_module_buffer_registration_hook(count))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# ---------------------------------------------------------------------------------------------------------------------
# Run directories


_CHANGING = (*LOGS, "log.txt")  # files of a run that have no sum
_FOLDERS = ("checkpoints", "samples", "eval", "tracking")
_NAMES = (*_CHANGING, *_FOLDERS, "model.safetensors", "README.md", MANIFEST, "config.json", ".lock", ".holder")


class Run:
    """A run directory that this process writes to. Use as a context manager: it holds the run's lock.

    Raises (on entering):
        UsageError: as `require_own`.
        LockedError: another process holds the run. ResourceError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, wait: bool = False):
        self.path = Path(path)
        self._wait = wait
        self._lock = FileLock(self.path / ".lock")

    def require_own(self) -> None:
        """UsageError unless the folder is a run, empty or new, and no name that a run writes to is a link."""
        for name in _NAMES:
            self._refuse_link(self.path / name)
        if self.path.is_dir() and not self.started:
            left = {".lock", ".holder", *named(self.path)}  # by a training that was killed as it began
            with explained(self.path):
                others = sorted(set(system(os.listdir, self.path)) - left)
            if found := [name for name in others if not is_temporary(name)]:
                raise UsageError(f"{self.path} is not a run and not empty (it holds {found[0]}); "
                                 f"name a new or an empty folder")

    def _refuse_link(self, path: Path) -> None:
        if path.is_symlink():
            raise UsageError(f"{path} is a link, and nothing is written through links out of a run; "
                             f"put what it names in its place")

    def __enter__(self) -> "Run":
        self.require_own()
        try:
            with explained(self.path):
                make_folder(self.path)
            self._acquire()
        except OSError as error:
            raise ResourceError(f"cannot write {self.path}: {os.strerror(error.errno or 0)}; "
                                f"choose another output") from error
        publish_text(self.path / ".holder", f"{os.getpid()} {socket.gethostname()}")
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            sweep(folder)
        return self

    def __exit__(self, *_: object) -> None:
        (self.path / ".holder").unlink(missing_ok=True)
        self._lock.release()

    def _acquire(self) -> None:
        """Take the lock, or name the process that has it.

        The holder writes its name just after it takes the lock and removes it just before the release: a lock without
        a name is about to change hands.
        """
        deadline = time.monotonic() + _HOLDER_TIMEOUT
        while True:
            try:
                self._lock.acquire(timeout=-1 if self._wait else 0)
                return
            except Timeout:
                holder = self._holder()
                if holder or time.monotonic() > deadline:
                    raise LockedError(f"{self.path} is in use by {holder or 'another process'}; wait for it, or pass "
                                      f"--wait") from None
            time.sleep(0.02)

    def _holder(self) -> str | None:
        """The living process that claims to hold the lock."""
        try:
            pid, host = (self.path / ".holder").read_text().split()
            return f"process {pid} on {host}" if host != socket.gethostname() or _alive(int(pid)) else None
        except (OSError, ValueError):
            return None

    @property
    def started(self) -> bool:
        """Whether a training was started here: whether the folder bears gencli's mark."""
        path = self.path / "config.json"
        if not path.is_file():
            return False
        try:
            return "config.json" in named(self.path) or "gencli" in json.loads(path.read_bytes())["versions"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return False

    def clear(self) -> None:
        """Remove what an earlier training left: what the manifests of the run name.

        config.json, which makes it a run, goes last: half cleared, it is still one that only --overwrite replaces.
        """
        for name in _FOLDERS:
            folder = self.path / name
            if folder.is_dir():
                for inside in (*folder.iterdir(), folder):
                    discard(inside)
                with suppress(OSError):  # not empty
                    folder.rmdir()
        own = named(self.path) or {"model.safetensors", "README.md"}  # older runs have no manifest
        remove_files(self.path, [*sorted(own - {MANIFEST, "config.json"}), *_CHANGING, MANIFEST, "config.json"])

    def place(self, name: str, sums: Iterable[str] = ()) -> Path:
        """Where a file of the run goes, after the manifest beside it names it, with its sums if it has any.

        Raises:
            UsageError: its folder is a link, through which nothing is written.
        """
        path = self.path / name
        if path.parent != self.path:
            self._refuse_link(path.parent)
        record(path, sums)
        if path.is_symlink():
            remove(path)
        return path

    def publish(self, name: str, content: bytes) -> None:
        """Publish a file of the run, after recording its SHA-256 beside that of the file it replaces."""
        path = self.path / name
        before = [digest for digest in sums(path) if path.exists() and digest == sha256(path)]
        with publish(self.place(name, dict.fromkeys([hashlib.sha256(content).hexdigest(), *before]))) as file:
            file.write(content)

    def config(self) -> dict[str, Any]:
        """The settings of the run, as `config.json` has them."""
        path = self.path / "config.json"
        try:
            return dict(json.loads(read_checked(path)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ModelError(f"{path} cannot be read: {first_line(error)}") from error

    def write_config(self, settings: dict[str, Any]) -> None:
        """Publish `config.json`, and claim the names of the logs."""
        for name in _CHANGING:
            self.place(name)
        self.publish("config.json", (to_json(settings, indent=2) + "\n").encode())

    def log(self, *messages: str) -> None:
        """Append a line with the time to `log.txt` for each."""
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} "
        # Further lines of one are indented: none passes for a record.
        records = [now + "\n    ".join(map(printable, message.split("\n"))) for message in messages]
        if records:
            append(self.path / "log.txt", "\n".join(records))

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append a JSON line to a log of the run."""
        append(self.path / name, to_json(record))


def _alive(pid: int) -> bool:
    """Whether another process with that number runs. Our own number on a foreign file is from an earlier boot."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
