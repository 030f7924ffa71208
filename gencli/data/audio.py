"""Sound: WAV, FLAC and OGG files of any rate, width and number of channels; all become one channel of one rate.

Reading is libsndfile's, resampling torchaudio's. A recording that is longer than an example becomes several, cut one
after the other, so that every sample is in one of them.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
import torch
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.data.raw import Raw, Reading, read_bytes
from gencli.errors import DataError, UsageError
from gencli.kinds.audio import AudioSpec
from gencli.settings import DataSettings
from gencli.stopping import signals_wait

ENDINGS = {".wav", ".flac", ".ogg"}
_FRAME = 0.02  # seconds over which loudness is measured where silence is trimmed
# In a stream whose length was not known when its header was written, sizes are as large as they can be.
_UNKNOWN = 2**31 - 2**16

Source = tuple[str, Path | bytes]  # a name for messages, and a file or the bytes of one


class Recordings(Raw):
    """Recordings in files, or in the bytes of such files."""

    kind = "audio"

    def __init__(self, name: str, sources: Sequence[Source], labels: Sequence[str] | None = None, skipped: int = 0):
        super().__init__(name, labels, skipped)
        self.sources = list(sources)

    def __len__(self) -> int:
        return len(self.sources)

    def describe(self) -> str:
        return "recordings"

    def take(self, indices: Sequence[int]) -> Self:
        return type(self)(self.name, [self.sources[i] for i in indices], self._label(indices), self.skipped)

    def join(self, others: Sequence[Self]) -> Self:
        sources = [source for part in (self, *others) for source in part.sources]
        return type(self)(self.name, sources, self._join_labels(others),
                          self.skipped + sum(part.skipped for part in others))

    def spec(self, settings: DataSettings, classes: tuple[str, ...]) -> AudioSpec:
        rate = settings.rate or min(self._rates())
        return AudioSpec(rate=rate, length=settings.length or rate, levels=settings.levels, classes=classes)

    def fit(self, spec: AudioSpec, reading: Reading, limit: int | None) -> Dataset:
        settings = reading.settings
        if settings.rate not in (None, spec.rate):
            raise UsageError(f"--rate {settings.rate} does not fit a model of {spec.rate} Hz; leave it out")
        kept: list[int] = []
        pieces: list[Tensor] = []
        numbers: list[int] = []  # of the recordings that the pieces are from
        mixed = 0
        wanted = self.head(limit)
        for i, source in enumerate(wanted.sources):
            try:
                sound, rate = _decode(source)
                x = _trimmed(_resampled(sound.mean(0), rate, spec.rate), spec.rate, settings.trim)
            except DataError:
                if not reading.skip_bad or (not kept and i == len(wanted) - 1):
                    raise
                continue
            mixed += len(sound) > 1
            kept.append(i)
            cut = spec.to_levels(x.clamp(-1, 1)).split(spec.length)
            pieces += cut
            numbers += [i] * len(cut)
        wanted.skipped += len(wanted) - len(kept)
        lengths = torch.tensor([len(piece) for piece in pieces])
        silence = int(spec.to_levels(torch.zeros(1)))
        examples = torch.full((len(pieces), int(lengths.max())), silence,
                              dtype=torch.uint8 if spec.levels == 256 else torch.int32)
        for example, piece in zip(examples, pieces, strict=True):
            example[: len(piece)] = piece
        protocol = {"rate": spec.rate, "length": spec.length, "levels": spec.levels, "trim": settings.trim}
        notes = (f"{mixed} of {len(kept)} recordings have several channels; each was mixed to one",) if mixed else ()
        cut_up = wanted.take(numbers)
        data = cut_up._dataset(spec, examples, lengths=lengths, protocol=protocol, notes=notes)
        return data.subset(limit)

    def _rates(self) -> set[int]:
        """The rates that occur, in Hz. What cannot be read is an error, or counted, where it is decoded."""
        rates, bad = set(), None
        for source in self.sources:
            try:
                with _open(source) as file:
                    rates.add(file.samplerate)
            except DataError as error:
                bad = error
        if not rates and bad:
            raise bad
        return rates


def field_of_name(files: Sequence[Path], reading: Reading) -> list[str] | None:
    """Classes by a part of the file names, which underscores divide: `0_jackson_12.wav` is of class 0.

    None if the names are not alike in this, or tell no classes apart.

    Raises:
        UsageError: `--label` names a part that there is not.
    """
    parts = [path.stem.split("_") for path in files]
    count = len(parts[0])
    alike = count > 1 and all(len(part) == count and all(part) for part in parts)
    wanted = reading.settings.label
    if wanted is not None and not (alike and wanted.isdigit() and 1 <= int(wanted) <= count):
        raise UsageError(f"--label {wanted}: expected the number of a part of the file names, between underscores; the "
                         f"first is {files[0].name}")
    labels = [part[int(wanted or 1) - 1] for part in parts] if alike else []
    return labels if wanted or 1 < len(set(labels)) < len(files) else None


@signals_wait()  # libsndfile reads bytes through callbacks
def _open(source: Source) -> soundfile.SoundFile:
    name, content = source
    data = content if isinstance(content, bytes) else read_bytes(content)
    if not data:
        raise DataError(f"{name} is empty")
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except (soundfile.LibsndfileError, TypeError, ValueError, RuntimeError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise DataError(f"{name} is damaged or no recording ({reason}); expected a WAV, FLAC or OGG file") from error
    said = re.search(r"data\s*: (\d+) \(should be (\d+)\)", file.extra_info)
    if said and int(said[2]) < int(said[1]) < _UNKNOWN:
        raise DataError(f"{name} was cut: it has {said[2]} bytes of sound, and says that it had {said[1]}")
    if not file.frames:
        raise DataError(f"{name} holds no sound")
    return file


@signals_wait()
def _decode(source: Source) -> tuple[Tensor, int]:
    """Channels of samples in [-1, 1], (C, T) float32, and their rate in Hz."""
    with _open(source) as file:
        try:
            x = file.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, MemoryError) as error:
            raise DataError(f"{source[0]} is damaged or cut short: {error}") from error
        if len(x) < file.frames:
            raise DataError(f"{source[0]} was cut: it has {len(x)} samples, and says that it had {file.frames}")
        if not np.isfinite(x).all():
            raise DataError(f"{source[0]} holds NaN or infinity")
        return torch.from_numpy(x.T), file.samplerate


def _resampled(x: Tensor, rate: int, wanted: int) -> Tensor:
    if rate == wanted:
        return x
    from torchaudio.functional import resample  # takes a second to import

    return resample(x, rate, wanted)


def _trimmed(x: Tensor, rate: int, decibels: float | None) -> Tensor:
    """(T,) without the quiet frames at the beginning and end; as it is where all is silent."""
    if decibels is None:
        return x
    frame = max(1, round(_FRAME * rate))
    loudness = torch.nn.functional.pad(x, (0, -len(x) % frame)).view(-1, frame).square().mean(1)
    loud = (loudness > loudness.max() * 10 ** (-decibels / 10)).nonzero()[:, 0]
    return x[loud[0] * frame : (loud[-1] + 1) * frame] if len(loud) else x
