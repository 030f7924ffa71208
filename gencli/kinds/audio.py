"""Sound: WAV, FLAC and OGG files of any rate, width and number of channels; all become one channel of one rate.

Reading is libsndfile's, resampling torchaudio's. A recording that is longer than an example becomes several, cut one
after the other, so that every sample is in one of them.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from gencli.dataset import Dataset, stack_padded
from gencli.errors import DataError, UsageError
from gencli.examples import Examples, FileExamples, KindSettings, Request, shorten
from gencli.files import Part, Source, bytes_of
from gencli.format import Format, Rows
from gencli.kind import Kind, Rate, Shown, Tile, deriving
from gencli.lazy import Lazy
from gencli.limits import PACKED
from gencli.messages import about, printing
from gencli.spec import Batch, Spec
from gencli.stopping import signals_wait

if TYPE_CHECKING:
    import numpy as np
    import soundfile
    import torch
    from torch import Tensor

    from gencli import view as views
    from gencli.rng import Rng
else:
    np, soundfile, torch, views = Lazy("numpy"), Lazy("soundfile"), Lazy("torch"), Lazy("gencli.view")

_FRAME = 0.02  # seconds over which loudness is measured where silence is trimmed
_HOP, _BANDS = 0.008, 64  # of the picture of a sound: seconds from a column to the next, rows
_BLOCK = 2**18  # samples decoded at once
_LOUD, _SIXTEEN_BITS = 16.0, 32768.0  # samples in floating point: beyond the one they are those of the other
# In a stream whose length was not known when its header was written, sizes are as large as they can be.
_UNKNOWN = 2**31 - 2**16


class AudioSpec(Spec):
    """A recording of one channel: (T,) in [-1, 1], T samples at `rate` Hz.

    `levels`: 256 mu-law levels (ITU-T G.711), k = 0..255, or 65536 linear ones, 16 bits: (k - 32768) / 32768.
    """

    kind: Literal["audio"] = "audio"
    rate: int = Field(ge=1, description="Samples a second.")
    length: int = Field(ge=1, description="Samples of the longest example.")
    levels: Literal[256, 65536] = 256

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    def to_levels(self, x: Tensor) -> Tensor:
        """Samples in [-1, 1] -> int64 levels k of the same shape."""
        if self.levels == 256:
            from torchaudio.functional import mu_law_encoding  # takes a second to import

            return mu_law_encoding(x, 256)
        return (x * 32768).round().long().clamp(-32768, 32767) + 32768

    def from_levels(self, k: Tensor) -> Tensor:
        """Levels -> float32 samples; `to_levels` gives the same levels back."""
        if self.levels == 256:
            from torchaudio.functional import mu_law_decoding

            return mu_law_decoding(k, 256).float()
        return (k - 32768).float() / 32768


class AudioSettings(KindSettings):
    length: int | None = Field(None, ge=1, description="Samples of an example (default one second); longer recordings "
                                                      "become several.")
    label: str | None = Field(None, description="Number of the part of the file name, between underscores, that is the "
                                                "class (default 1).")
    rate: int | None = Field(None, ge=1, description="Samples a second. Default: as they are; if rates differ, the "
                                                     "lowest.")
    levels: Literal[256, 65536] = Field(256, description="256 mu-law levels, or all 65536 of 16 bits.")
    trim: float | None = Field(None, gt=0, description="Cut off beginning and end where they are quieter than the "
                                                       "loudest part by more than TRIM dB.")


# ---------------------------------------------------------------------------------------------------------------------
# As they are found


class Recordings(FileExamples):
    """Recordings in files, or in the bytes of such files."""

    kind = "audio"

    def spec(self, settings: AudioSettings, classes: tuple[str, ...]) -> AudioSpec:
        rates = self._rates()
        if not settings.rate and max(rates.values()) > 2 * min(rates.values()):
            usual = sorted(rates.values())[len(rates) // 2]
            odd = [i for i, rate in rates.items() if not usual <= 2 * rate <= 4 * usual]
            shown = shorten([f"{self.called(i)} with {rates[i]}" for i in odd], 3)
            raise UsageError(f"{self.name}: the rates of recordings go from {min(rates.values())} to "
                             f"{max(rates.values())} Hz ({len(odd)} of {len(self)} differ from most by more than a "
                             f"factor of 2: {shown}); say with --rate what all are brought to, or take "
                             "the odd ones out")
        rate = settings.rate or min(rates.values())
        return AudioSpec(rate=rate, length=settings.length or rate, levels=settings.levels, classes=classes)

    def fit(self, spec: AudioSpec, request: Request, limit: int | None) -> Dataset:
        settings = request.settings(Audio())
        if settings.rate not in (None, spec.rate):
            raise UsageError(f"--rate {settings.rate} does not fit a model of {spec.rate} Hz; leave it out")
        readable: list[int] = []
        pieces: list[Tensor] = []
        origin: list[tuple[int, int]] = []  # the recording that a piece is from, and its place in it
        mixed = 0
        resampled: list[str] = []
        scaled: list[tuple[float, str]] = []
        wanted = self.head(limit)
        for i, source in enumerate(wanted.items):
            try:
                levels, found = _levels(source, spec, settings.trim)
            except DataError as error:
                if not request.skip_bad or (not readable and i == len(wanted) - 1):
                    raise
                request.left_out(str(error))
                continue
            finally:
                request.progress(i + 1, len(wanted))
            mixed += found.channels > 1
            if found.rate != spec.rate:
                resampled.append(f"{source[0]} of {found.rate}")
            if found.peak > 1:
                scaled.append((found.peak, source[0]))
            readable.append(i)
            cut = levels.split(spec.length)
            pieces += cut
            origin += [(i, place) for place in range(len(cut))]
        wanted.skipped += len(wanted) - len(readable)
        silence = int(spec.to_levels(torch.zeros(1)))
        examples, lengths = stack_padded(pieces, _dtype(spec), silence)
        protocol = {"rate": spec.rate, "length": spec.length, "levels": spec.levels, "trim": settings.trim}
        of = f"of {len(readable)} recordings"
        notes = []
        if mixed:
            notes.append(f"{mixed} {of} have several channels; each was mixed to one")
        if resampled:
            protocol["resampled"] = len(resampled)
        if resampled and not settings.rate:
            notes.append(f"{len(resampled)} {of} are resampled to {spec.rate} Hz: {shorten(resampled, 1)}")
        if scaled:
            protocol["scaled"] = len(scaled)
            peak, loudest = max(scaled)
            notes.append(f"{len(scaled)} {of} go beyond 1 and are made quieter, each by its peak, or by 32768 if that "
                         f"is of 16 bits: {loudest} to {peak:g}")
        data = wanted.take([i for i, _ in origin])._dataset(spec, examples, lengths=lengths, protocol=protocol,
                                                            notes=tuple(notes), origin=torch.tensor(origin))
        return data.subset(limit)

    def _rates(self) -> dict[int, int]:
        """The rates in Hz, by number. What cannot be read is an error, or counted, where it is decoded."""
        rates, bad = {}, None
        for i, source in enumerate(self.items):
            try:
                with _open(source) as file:
                    rates[i] = file.samplerate
            except DataError as error:
                bad = error
        if not rates and bad:
            raise bad
        return rates


def _dtype(spec: AudioSpec) -> torch.dtype:
    """That of stored levels."""
    return torch.uint8 if spec.levels == 256 else torch.int32


def _opened(content: Path | Part | bytes) -> bytes | io.BytesIO:
    """What libsndfile opens: a file by its name, so that it is never whole in memory; else bytes."""
    if not isinstance(content, Path) or content.suffix.lower() in PACKED or not content.is_file():
        return io.BytesIO(bytes_of(content))
    try:
        with open(content, "rb") as file:
            if not file.read(1):
                raise DataError(f"{content} is empty")
    except OSError as error:
        raise DataError(f"{content} cannot be read: {error.strerror}") from error
    return os.fsencode(content)


@signals_wait()  # libsndfile reads bytes through callbacks
def _open(source: Source) -> soundfile.SoundFile:
    name, content = source
    if content == b"":
        raise DataError(f"{name} is empty")
    try:
        file = soundfile.SoundFile(_opened(content))
    except (soundfile.LibsndfileError, TypeError, ValueError, RuntimeError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise DataError(f"{name} is damaged or no recording ({reason}); expected a WAV, FLAC or OGG file") from error
    sizes = re.search(r"data\s*: (\d+) \(should be (\d+)\)", file.extra_info)
    if sizes and int(sizes[2]) < int(sizes[1]) < _UNKNOWN:
        raise DataError(f"{name} was cut: it has {sizes[2]} bytes of sound, and says that it had {sizes[1]}")
    if not file.frames:
        raise DataError(f"{name} holds no sound")
    return file


@dataclass(frozen=True)
class _Found:
    """What a recording was: its channels, its rate in Hz, and the largest value of its samples."""

    channels: int
    rate: int
    peak: float


def _peak(file: soundfile.SoundFile, name: str) -> float:
    """The largest value of a recording in floating point, which need not stay within 1; 1 for others.

    Raises:
        DataError: it is larger than any of 16 bits.
    """
    if file.subtype not in ("FLOAT", "DOUBLE"):
        return 1.0
    peak = max((float(block.abs().max()) for block in _blocks(file, name)), default=0.0)
    file.seek(0)
    if peak > _SIXTEEN_BITS:
        raise DataError(f"{name} holds samples up to {peak:g}; expected them within -1 and 1, or of 16 bits")
    return max(peak, 1.0)


def _levels(source: Source, spec: AudioSpec, trim: float | None) -> tuple[Tensor, _Found]:
    """A recording as stored levels (T,), and what it was. No more than a block of it is held as floats.

    Samples in floating point beyond 1 are divided by the largest, or by 32768 where they are those of 16 bits.
    """
    with about(source[0]), printing(), _open(source) as file:
        levels, loudness = [], []
        frame = max(1, round(_FRAME * spec.rate))
        peak = _peak(file, source[0])
        divisor = peak if peak <= _LOUD else _SIXTEEN_BITS
        blocks = (x / divisor for x in _blocks(file, source[0]))
        sound = _resampled(blocks, file.samplerate, spec.rate)
        for x in _of_length(sound, frame * max(1, _BLOCK // frame)):
            levels.append(spec.to_levels(x.clamp(-1, 1)).to(_dtype(spec)))
            if trim is not None:
                padded = torch.nn.functional.pad(x, (0, -len(x) % frame))
                loudness.append(padded.view(-1, frame).square().mean(1))
        whole = torch.cat(levels)
        if trim is not None:
            loud = _loud(torch.cat(loudness), trim)
            whole = whole[loud.start * frame : loud.stop * frame]
        return whole, _Found(file.channels, file.samplerate, peak)


@signals_wait()
def _read(file: soundfile.SoundFile, name: str) -> Tensor:
    """The next block of samples in [-1, 1], (T, C) float32; of none at the end."""
    try:
        x = file.read(_BLOCK, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, MemoryError) as error:
        raise DataError(f"{name} is damaged or cut short: {error}") from error
    if not np.isfinite(x).all():
        raise DataError(f"{name} holds NaN or infinity")
    return torch.from_numpy(x)


def _blocks(file: soundfile.SoundFile, name: str) -> Iterator[Tensor]:
    """The mean of the channels, (T,) at a time."""
    done = 0
    while len(x := _read(file, name)):
        done += len(x)
        yield x.T.mean(0)
    if done < file.frames:
        raise DataError(f"{name} was cut: it has {done} samples, and says that it had {file.frames}")


def _of_length(blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """The same samples in blocks of this length, but for the last."""
    rest: list[Tensor] = []
    for block in blocks:
        rest.append(block)
        if sum(map(len, rest)) >= length:
            *whole, last = torch.cat(rest).split(length)
            yield from whole
            rest = [last]
    if rest:
        yield torch.cat(rest)


def _resampled(blocks: Iterable[Tensor], rate: int, wanted: int) -> Iterator[Tensor]:
    """A sound at another rate, block by block, with the same samples, but for rounding, as at once.

    A block begins where a sample of the old rate and one of the new coincide, and is resampled with as much of its
    neighbours as the filter sees.
    """
    if rate == wanted:
        yield from blocks
        return
    from torchaudio.functional import resample  # takes a second to import

    old, new = rate // math.gcd(rate, wanted), wanted // math.gcd(rate, wanted)
    # torchaudio's filter spans 6 zero crossings on either side, with a rolloff of 0.99.
    seen = old * math.ceil(6 / (0.99 * min(old, new)) + 1)
    before, ahead = torch.empty(0), torch.empty(0)
    for block in _of_length(blocks, old * max(1, _BLOCK // old)):
        if len(ahead):
            part = resample(torch.cat([before, ahead, block[:seen]]), rate, wanted)[len(before) // old * new :]
            yield part[: len(ahead) // old * new]
            before = ahead[-seen:]
        ahead = block
    yield resample(torch.cat([before, ahead]), rate, wanted)[len(before) // old * new :]


def _loud(loudness: Tensor, decibels: float) -> slice:
    """The frames without the quiet ones at the beginning and end; all where everything is silent."""
    loud = (loudness > loudness.max() * 10 ** (-decibels / 10)).nonzero()[:, 0]
    return slice(int(loud[0]), int(loud[-1]) + 1) if len(loud) else slice(0, len(loudness))


def _itself(spec: AudioSpec, argument: str) -> tuple[Spec, Callable[[Dataset], Dataset]]:
    """The recording itself, of which a vocoder sees the log-mel spectrogram alone."""
    if argument:
        raise UsageError(f"--condition mel={argument}: expected mel alone; the family says how many bands it sees")
    return deriving(spec, spec.model_copy(update={"classes": ()}), lambda batch: Batch(batch.x, lengths=batch.lengths))


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def wav_header(rate: int, samples: int | None) -> bytes:
    """The beginning of a WAV file of one channel of 16 bits; sizes are as large as can be where they are unknown."""
    size = 0xFFFFFFFF if samples is None else 2 * samples
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", min(36 + size, 0xFFFFFFFF), b"WAVE", b"fmt ", 16, 1, 1, rate,
                       2 * rate, 2, 16, b"data", size)


_FIRST = 512  # bytes of the first piece of a stream with a header; sox judges a file by its first read


class RawSound(Format):
    """16-bit samples of one recording after the other, without a header; whoever listens hears them as they come."""

    continuous = True

    def begin(self) -> None:
        self._held = self._header(None)
        self._least = _FIRST if self._held else 0
        self._written = 0

    def put(self, rows: Rows) -> None:
        self._held += b"".join(value.tobytes() for _, value, _ in self._numbered(rows))
        if self._written or len(self._held) >= self._least:
            self._flush()

    def end(self) -> None:
        self._flush()

    def _flush(self) -> None:
        self.out.write(self._held)
        self.out.flush()
        self._written += len(self._held)
        self._held = b""

    def _header(self, samples: int | None) -> bytes:
        """What stands before so many samples; None: nobody knows how many."""
        return b""


class Wav(RawSound):
    """The same as a WAV file. Its length is put into the header where that can be done."""

    def end(self) -> None:
        super().end()
        if self.content.rewritable:
            self.out.seek(0)
            self.out.write(self._header((self._written - len(self._header(None))) // 2))

    def _header(self, samples: int | None) -> bytes:
        return wav_header(self._rate, samples)

    @property
    def _rate(self) -> int:
        assert isinstance(self.content.spec, AudioSpec)
        return self.content.spec.rate


# ---------------------------------------------------------------------------------------------------------------------
# The kind


class Audio(Kind):
    """Recordings of one channel."""

    name = "audio"
    plural = "recordings"
    Spec = AudioSpec
    Settings = AudioSettings
    endings = (".flac", ".ogg", ".wav")
    variable = True
    spaces = ("log-mel",)
    shown = Shown(preview=("wav", 4), samples=12, pairs=4, frames=4, across=4)
    whole: ClassVar[Mapping[str, Any]] = {"length": 2**40}  # samples: more than any recording has
    conditions = {"mel": _itself}

    # --- reading

    def read(self, sources: Sequence[Source], labels: Sequence[str] | None, request: Request) -> Examples:
        return Recordings(sources[0][0] if len(sources) == 1 else request.name, sources, labels)

    def labels_of(self, names: Sequence[str], request: Request) -> list[str] | None:
        """Classes by a part of the file names, which underscores divide: `0_jackson_12.wav` is of class 0.

        None if the names are not alike in this, or tell no classes apart.

        Raises:
            UsageError: `--label` names a part that there is not.
        """
        parts = [Path(name).stem.split("_") for name in names]
        count = len(parts[0])
        alike = count > 1 and all(len(part) == count and all(part) for part in parts)
        wanted = request.settings(self).label
        if wanted is not None and not (alike and wanted.isdigit() and 1 <= int(wanted) <= count):
            raise UsageError(f"--label {wanted}: expected the number of a part of the file names, between underscores; "
                             f"the first is {Path(names[0]).name}")
        labels = [part[int(wanted or 1) - 1] for part in parts] if alike else []
        return labels if wanted or 1 < len(set(labels)) < len(names) else None

    def condition_spec(self, examples: Examples, spec: Any, condition: Examples, request: Request) -> Any:
        """Recordings that are made from others are cut at the same times as these."""
        own = super().condition_spec(examples, spec, condition, request)
        if not isinstance(own, AudioSpec):
            return own
        return own.model_copy(update={"length": max(1, round(spec.length * own.rate / spec.rate))})

    def adopt(self, spec: Any, options: Mapping[str, Any]) -> tuple[AudioSpec, dict[str, Any]]:
        """A model of sound has no length of its own."""
        return spec.model_copy(update={"length": options.get("length") or spec.length}), dict(options)

    # --- data set <-> model

    def load(self, data: Dataset, batch: Batch, numbers: Tensor, rng: Rng | None) -> Batch:
        assert isinstance(data.spec, AudioSpec) and batch.lengths is not None
        x = data.spec.from_levels(batch.x.long())
        x = x.where(torch.arange(x.shape[1], device=x.device) < batch.lengths[:, None], 0.0)
        return Batch(x, batch.labels, batch.lengths)

    def store(self, batch: Batch, spec: Any) -> dict[str, Any]:
        return {"examples": spec.to_levels(batch.x).to(_dtype(spec)), "lengths": batch.lengths}

    def view(self, spec: Any) -> views.View:
        """The level of every sample, mu-law or linear, of about unit scale in speech."""
        middle, unit = (127.5, 32.0) if spec.levels == 256 else (32768.0, 3000.0)
        level = views.Standardised((1,), middle, unit, step=1.0, low=0.0, high=spec.levels - 1.0, names=("sample",),
                                   constant=True)
        return views.Padded(views.Mapped(spec.to_levels, spec.from_levels, level), spec.length, self.plural)

    # --- writing

    def ending(self, spec: Any) -> str:
        return "wav"

    def own_formats(self, spec: Any) -> Mapping[str, type[Format]]:
        return {"wav": Wav, "raw": RawSound}

    def values(self, batch: Batch, spec: Any, exact: bool) -> list[np.ndarray]:
        return [(x * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy().astype("<i2") for x in batch.pieces()]

    def file(self, value: Any, spec: Any) -> bytes:
        return wav_header(spec.rate, len(value)) + value.tobytes()

    # --- measuring

    def rates(self, spec: Any, data: Dataset) -> Sequence[Rate]:
        return [Rate("bpd", "bits/sample", 1 / math.log(2))]

    def describe(self, spec: Any) -> str:
        return f"recordings at {spec.rate} Hz"

    def alike(self, a: Any, b: Any) -> bool:
        return a.rate == b.rate

    def elements_per_second(self, spec: Any) -> float | None:
        return spec.rate

    # --- showing

    def tiles(self, spec: Any, batch: Batch) -> list[Tile]:
        """Spectrograms, all as long as the longest example of `spec`, so that they can be compared; to be heard."""
        from gencli.spectrogram import SpectrogramPicture

        picture = SpectrogramPicture(spec.rate, spec.length, _HOP, _BANDS)
        names = [""] * len(batch) if batch.labels is None else [spec.classes[label] for label in batch.labels.tolist()]
        sounds = [self.file(value, spec) for value in self.values(batch, spec, exact=True)]
        # Time goes right, pitch up, loud is bright.
        return [Tile(name, (picture(x[None])[0].flip(1).clamp(0, 1),), sound, natural=True)
                for x, name, sound in zip(batch.pieces(), names, sounds, strict=True)]
