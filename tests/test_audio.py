"""Sound as data and as output: any file becomes one channel of one rate; what is written is read back."""

import gzip
import io
import shutil
import signal
import struct
import subprocess
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from gencli import streams
from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.kinds import audio
from gencli.kinds.audio import AudioSpec
from gencli.model import Batch


def tone(samples: int, rate: int = 8000, pitch: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)


def sound(path, x=None, rate: int = 8000, **options) -> str:
    """Write a file; its path."""
    soundfile.write(path, tone(1000, rate) if x is None else x, rate, **options)
    return str(path)


# --- levels


def test_mu_law_is_that_of_the_standard_and_every_level_comes_back():
    spec = AudioSpec(rate=8000, length=1)
    k = torch.arange(256)
    x = spec.from_levels(k)
    assert torch.equal(spec.to_levels(x), k)
    expected = np.sign(2 * k / 255 - 1) * (256 ** np.abs(2 * k / 255 - 1) - 1) / 255  # G.711 without its segments
    assert torch.allclose(x.double(), expected.double(), atol=1e-6)


def test_sixteen_bits_come_back():
    spec = AudioSpec(rate=8000, length=1, levels=65536)
    k = torch.arange(65536)
    assert torch.equal(spec.to_levels(spec.from_levels(k)), k)
    assert spec.from_levels(k).min() == -1 and spec.from_levels(k).max() == 1 - 2**-15


# --- reading


def test_a_signal_in_a_callback_of_libsndfile_is_not_lost(tmp_path, monkeypatch):
    """Nor is the recording then called damaged."""
    class File(io.BytesIO):
        def readinto(self, buffer) -> int:
            signal.raise_signal(signal.SIGUSR1)
            return super().readinto(buffer)

    def stop(number: int, _: object) -> None:
        raise SystemExit(number)

    path = tmp_path / "a.wav.gz"  # of a file that is unpacked libsndfile reads the bytes, else the file itself
    path.write_bytes(gzip.compress(Path(sound(tmp_path / "a.wav")).read_bytes()))
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        monkeypatch.setattr(audio, "io", SimpleNamespace(BytesIO=File))
        with pytest.raises(SystemExit):
            load(str(path), split="all")
        assert signal.getsignal(signal.SIGUSR1) is stop
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("options", [{}, {"rate": 16000}, {"rate": 5520, "trim": 10}, {"rate": 11025, "levels": 65536}])
def test_a_long_recording_is_read_in_blocks_to_the_same_levels(tmp_path, monkeypatch, options):
    """No block is larger than it says, and one that is as large as the recording gives the same.

    The filter sums a few hundred products of float32 in an order of its own: it is a hundredth of a 16-bit level off,
    so that of a hundred samples some few may be rounded to the level beside.
    """
    path = sound(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.2, (40_000, 2)))
    monkeypatch.setattr(audio, "_BLOCK", 2**30)
    whole = load(path, options, split="all")
    monkeypatch.setattr(audio, "_BLOCK", 4001)
    sizes = []
    encode = AudioSpec.to_levels
    monkeypatch.setattr(AudioSpec, "to_levels", lambda self, x: sizes.append(len(x)) or encode(self, x))
    parts = load(path, options, split="all")
    assert max(sizes) <= 4001 and sum(sizes) >= 5 * whole.spec.rate
    monkeypatch.undo()
    levels = [data.spec.to_levels(data.batch(torch.arange(len(data))).x) for data in (parts, whole)]
    difference = (levels[0] - levels[1]).abs()
    assert difference.max() <= 1 and difference.double().mean() < 0.05
    assert options or parts.fingerprint == whole.fingerprint


@pytest.mark.parametrize(("ending", "subtype"), [("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "PCM_U8"),
                                                 ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS")])
def test_files_of_any_width(tmp_path, ending, subtype):
    data = load(sound(tmp_path / f"a.{ending}", subtype=subtype), dict(levels=65536), split="all")
    assert data.spec == AudioSpec(rate=8000, length=8000, levels=65536), "examples of one second"
    batch = data.batch(torch.tensor([0]))
    assert batch.lengths.tolist() == [1000]
    # 8 bits are 1/128 wide, and Vorbis is lossy.
    assert np.abs(batch.x[0].numpy() - tone(1000)).max() < {"PCM_U8": 0.008, "VORBIS": 0.05}.get(subtype, 1e-4)


def test_a_rate_is_changed_and_channels_are_mixed_which_is_said_once(tmp_path):
    for i in range(3):
        x = tone(44100, 44100)
        sound(tmp_path / f"{i}.wav", np.stack([x, 0 * x], axis=1), 44100)
    said: list[str] = []
    data = load(str(tmp_path), dict(rate=8000, levels=65536), split="all", notify=said.append)
    assert len(said) == 1 and "3 of 3 recordings have several channels" in said[0]
    x = data.batch(torch.arange(3)).x[0, 100:700].numpy()  # away from the ends, where the filter sees zeros
    assert data.spec.rate == 8000 and np.abs(x - tone(800)[100:700] / 2).max() < 5e-3


def test_rates_that_differ_become_the_lowest(tmp_path):
    sound(tmp_path / "a.wav", rate=16000)
    sound(tmp_path / "b.wav", rate=11025)
    assert load(str(tmp_path), split="all").spec.rate == 11025


def test_classes_are_folders_or_parts_of_the_name(tmp_path):
    for label in "ab":
        (tmp_path / "folders" / label).mkdir(parents=True)
        sound(tmp_path / "folders" / label / "x.wav")
    assert load(str(tmp_path / "folders"), split="all").spec.classes == ("a", "b")
    (tmp_path / "names").mkdir()
    for name in ("0_anna_1", "10_anna_2", "10_otto_2", "2_otto_1"):
        sound(tmp_path / "names" / f"{name}.wav")
    data = load(str(tmp_path / "names"), split="all")
    assert data.spec.classes == ("0", "2", "10") and data.labels.tolist() == [0, 2, 2, 1]
    speakers = load(str(tmp_path / "names"), dict(label="2"), split="all")
    assert speakers.spec.classes == ("anna", "otto") and speakers.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(UsageError, match="--label speaker"):
        load(str(tmp_path / "names"), dict(label="speaker"), split="all")


def test_a_long_recording_becomes_several_that_hold_all_of_it(tmp_path):
    data = load(sound(tmp_path / "a.wav"), dict(length=300, levels=65536), split="all")
    batch = data.batch(torch.arange(4))
    assert batch.lengths.tolist() == [300, 300, 300, 100] and not batch.x[3, 100:].any()
    assert np.abs(torch.cat([*batch.x[:3], batch.x[3, :100]]).numpy() - tone(1000)).max() < 1e-4


def test_silence_is_cut_off(tmp_path):
    x = np.concatenate([np.zeros(1600), tone(800), np.zeros(160), tone(800), 1e-4 * tone(1600)])
    data = load(sound(tmp_path / "a.wav", x), dict(trim=40), split="all")
    assert data.lengths.tolist() == [1760]
    silent = load(sound(tmp_path / "b.wav", np.zeros(500)), dict(trim=40), split="all")
    assert silent.lengths.tolist() == [500]


def test_what_a_model_of_another_rate_reads(tmp_path):
    path = sound(tmp_path / "a.wav", rate=16000)
    like = AudioSpec(rate=8000, length=400)
    assert load(path, like=like, split="all").lengths.tolist() == [400, 100]
    with pytest.raises(UsageError, match="--rate 16000 does not fit a model of 8000 Hz"):
        load(path, dict(rate=16000), like=like, split="all")


def header(rate: int, size: int) -> bytes:
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16,
                       b"data", size)


def flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(20000), 8000, format="FLAC")
    return file.getvalue()


BAD = {
    "text.wav": (b"Not a sound at all.\n" * 9, "damaged or no recording"),
    "empty.wav": (b"", "is empty"),
    "none.wav": (header(8000, 0), "holds no sound"),
    "cut.wav": (header(8000, 2000) + bytes(999), "was cut: it has 999 bytes of sound, and says that it had 2000"),
    "beginning.wav": (header(8000, 2000)[:30], "damaged or no recording"),
    "rate.wav": (header(0, 2000) + bytes(2000), "damaged or no recording"),
    "cut.flac": (flac()[:-5000], "damaged or cut short"),
    "text.flac": (b"fLaC but nothing else", "damaged or no recording"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line_and_exit_3(tmp_path, gencli, name):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    done = gencli("train", "wavenet", name, "-o", "run", code=3)
    assert name in done.stderr and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_with_nan(tmp_path):
    with pytest.raises(DataError, match="NaN or infinity"):
        load(sound(tmp_path / "a.wav", np.full(9, np.nan), subtype="FLOAT"), split="all")


def test_bad_files_can_be_left_out(tmp_path):
    sound(tmp_path / "a_1.wav")
    sound(tmp_path / "b_1.wav")
    sound(tmp_path / "b_2.wav")
    (tmp_path / "a_2.wav").write_bytes(BAD["text.wav"][0])
    with pytest.raises(DataError, match="a_2"):
        load(str(tmp_path), split="all")
    data = load(str(tmp_path), split="all", skip_bad=True)
    assert data.skipped == 1 and data.labels.tolist() == [0, 1, 1]


def test_the_spoken_digits_that_come_along():
    train, test = load("spoken-digits"), load("spoken-digits:test")
    assert (len(train), len(test)) == (90, 30)
    assert train.spec.rate == 8000 and train.spec.classes == tuple("0123456789")
    assert torch.bincount(train.labels).tolist() == [9] * 10 and torch.bincount(test.labels).tolist() == [3] * 10
    assert train.fingerprint != test.fingerprint


def test_the_split_of_fsdd(real_data):
    test = load("fsdd:test", dict(length=20000), data_root=real_data)
    assert len(test) == 300 and torch.bincount(test.labels).tolist() == [30] * 10
    names = sorted(path.name for path in (real_data / "fsdd/recordings").glob("*_[0-4].wav"))
    x, _ = soundfile.read(real_data / "fsdd/recordings" / names[0])
    assert test.lengths[0] == len(x)


# --- writing


SPEC = AudioSpec(rate=8000, length=1000, levels=65536, classes=("a", "b"))


def batch() -> Batch:
    x = torch.zeros(2, 1000)
    x[0], x[1, :600] = torch.from_numpy(tone(1000)), torch.from_numpy(tone(600, pitch=300))
    return Batch(SPEC.from_levels(SPEC.to_levels(x)), torch.tensor([1, 0]), torch.tensor([1000, 600]))


def test_a_tar_of_recordings_is_read_back(tmp_path):
    with streams.open_writer(str(tmp_path / "a.tar"), SPEC) as writer:
        writer.write(batch())
    data = load(str(tmp_path / "a.tar"), dict(levels=65536), split="all")
    again = data.batch(torch.arange(2))
    assert torch.equal(again.x, batch().x) and again.lengths.tolist() == [1000, 600]
    assert [data.spec.classes[i] for i in data.labels] == ["b", "a"]


def test_a_folder_of_recordings(tmp_path):
    with streams.open_writer(str(tmp_path / "out/"), SPEC) as writer:
        writer.write(batch())
    x, rate = soundfile.read(tmp_path / "out/000001.wav", dtype="float32")
    assert rate == 8000 and np.array_equal(x, batch().x[1, :600].numpy())


def test_a_wav_file_holds_all_and_says_its_length(tmp_path):
    with streams.open_writer(str(tmp_path / "a.wav"), SPEC) as writer:
        writer.write(batch())
    with wave.open(str(tmp_path / "a.wav")) as file:  # strict about sizes
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 8000, 1600)
        frames = np.frombuffer(file.readframes(1600), "<i2") / 32768
    assert np.array_equal(frames, torch.cat([batch().x[0], batch().x[1, :600]]).double().numpy())


@pytest.mark.parametrize("format", ["wav", "raw"])
def test_a_stream_is_heard_piece_by_piece(format):
    out = io.BytesIO()
    heard = []
    with streams.open_writer("-", SPEC, format=format, stdout=out) as writer:
        assert writer.continuous
        for start in range(0, 1000, 250):
            writer.write(Batch(batch().x[:1, start : start + 250]))
            heard.append(len(out.getvalue()))
    assert np.diff(heard).tolist() == [500, 500, 500]
    data = out.getvalue()
    if format == "raw":
        x = np.frombuffer(data, "<i2") / 32768
    else:
        assert data[40:44] == b"\xff\xff\xff\xff", "the length is not known"
        x, _ = soundfile.read(io.BytesIO(data))
    assert np.array_equal(x, batch().x[0].double().numpy())


class Pipe(io.RawIOBase):
    """What is written, piece by piece, as a reader at the other end may get it."""

    def __init__(self):
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.pieces.append(bytes(data))
        return len(data)


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_the_first_piece_of_a_stream_shows_what_it_is(size):
    """sox judges a file by its first read: 44 bytes of header alone are none."""
    pipe, x = Pipe(), torch.linspace(-1, 1, 12000)[None]
    with streams.open_writer("-", SPEC, format="wav", stdout=io.BufferedWriter(pipe)) as writer:
        for start in range(0, 10000, size):
            writer.write(Batch(x[:, start : start + size]))
    assert pipe.pieces[0].startswith(b"RIFF") and len(pipe.pieces[0]) >= 256
    assert len(b"".join(pipe.pieces)) == 44 + 20000
    short = Pipe()
    with streams.open_writer("-", SPEC, format="wav", stdout=io.BufferedWriter(short)) as writer:
        writer.write(Batch(x[:, :3]))
    assert len(b"".join(short.pieces)) == 50


@pytest.mark.parametrize("command", [["sox", "-", "-n", "stat"], ["ffmpeg", "-i", "-", "-f", "null", "-"]])
@pytest.mark.parametrize("size", [1, 100, 5000])
def test_real_programs_read_a_stream(command, size):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with streams.open_writer("-", SPEC, format="wav", stdout=reader.stdin) as writer:
        for start in range(0, 10000, size):
            writer.write(Batch(torch.linspace(-1, 1, 12000)[None, start : start + size]))
    said = reader.communicate()[1].decode()
    assert reader.returncode == 0 and ("10000" in said if command[0] == "sox" else "8000 Hz" in said), said


def test_a_stream_of_unknown_length_can_be_read(tmp_path):
    with open(tmp_path / "a.wav", "wb") as file, streams.open_writer("-", SPEC, format="wav", stdout=file) as writer:
        writer.write(batch())
    assert load(str(tmp_path / "a.wav"), dict(length=5000), split="all").lengths.tolist() == [1600]


# --- recordings that are not like the others


@pytest.mark.parametrize(("peak", "divisor"), [(0.5, 1), (1.3, 1.3), (9.0, 9.0), (200.0, 32768), (20000.0, 32768)])
def test_floats_beyond_one_are_made_quieter(peak, divisor, tmp_path):
    """Neither cut to a square wave nor silently."""
    wave = peak * np.sin(np.arange(800) * 0.1)
    wave *= peak / np.abs(wave).max()
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="DOUBLE")
    told = []
    data = load(f"{tmp_path}/a.wav:all", {"levels": 65536}, notify=told.append)
    x = data.batch(torch.arange(1)).x[0].numpy()
    assert np.abs(x - wave / divisor).max() <= 1.01 / 32768
    assert [("beyond 1" in sentence) for sentence in told] == [True] * (divisor != 1)
    assert data.protocol.get("scaled", 0) == (divisor != 1)


def test_floats_of_no_known_scale_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.0, 1e6]), 8000, subtype="FLOAT")
    with pytest.raises(DataError, match="samples up to 1e\\+06; expected them within -1 and 1"):
        load(f"{tmp_path}/a.wav")


def test_one_recording_of_another_rate_does_not_decide(tmp_path):
    for i in range(5):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(500) + 0.1, 44100)
    soundfile.write(tmp_path / "2-odd.wav", np.zeros(50) + 0.1, 400)
    with pytest.raises(UsageError, match=r"from 400 to 44100 Hz \(1 of 5 .*odd\.wav with 400\); say with --rate"):
        load(f"{tmp_path}:all")
    assert load(f"{tmp_path}:all", {"rate": 8000}).spec.rate == 8000
    soundfile.write(tmp_path / "2-odd.wav", np.zeros(50) + 0.1, 22050)
    told = []
    assert load(f"{tmp_path}:all", notify=told.append).spec.rate == 22050
    assert any("5 of 6 recordings are resampled to 22050 Hz" in sentence for sentence in told)


def test_a_cover_beside_recordings_is_no_example(tmp_path):
    from PIL import Image

    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(500) + 0.1, 8000)
    Image.new("L", (9, 9)).save(tmp_path / "cover.jpg")
    told = []
    assert load(f"{tmp_path}:all", notify=told.append).spec.kind == "audio"
    assert "1 of 4 files are no examples and passed over: 1 .jpg" in told[0]
    Image.new("L", (9, 9)).save(tmp_path / "b.jpg")
    with pytest.raises(UsageError, match="--kind"):
        load(f"{tmp_path}:all")
