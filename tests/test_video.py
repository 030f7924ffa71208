"""Films: how they are found, read, cut into clips, written and compared."""

import base64
import io
import json
import shutil
import struct
import subprocess
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from scipy.stats import ks_2samp

from gencli import pictures
from gencli.data import load
from gencli.data import moving_digits as digits_that_move
from gencli.data.moving_digits import moving_digits
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.families.vae import VAE, VAEConfig
from gencli.kinds.video import StoredClips, VideoSpec
from gencli.metrics import Inputs, Results
from gencli.metrics.pairs import ssim
from gencli.metrics.video import motion, thumbnails, video
from gencli.model import Batch
from gencli.reports.exhibits import collect
from gencli.streams import open_writer

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (7, 6, 8)).astype(np.uint8)  # a film of 7 frames of 6 x 8
FILM = {"kind": "video"}


def frames(pixels: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(x) for x in pixels]


def save(path, pixels: np.ndarray = GREY, **options) -> str:
    first, *others = frames(pixels)
    first.save(path, save_all=True, append_images=others, **options)
    return str(path)


def numbered(folder, pixels: np.ndarray, name: str = "frame{}.png") -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(frames(pixels)):
        image.save(folder / name.format(i))


def read(path, told: list | None = None, **options) -> Dataset:
    return load(f"{path}:all", {**FILM, **options}, notify=(told if told is not None else []).append)


def pixels_of(data: Dataset) -> np.ndarray:
    """(N, T, H, W) of grey clips, 0 to 255."""
    return (data.batch(torch.arange(len(data))).x[:, :, 0] * 255).round().numpy().astype(np.uint8)


# --- reading


@pytest.mark.parametrize(("ending", "options"), [
    ("gif", dict(duration=40)), ("webp", dict(duration=40, lossless=True)), ("png", dict(duration=40)),
    ("apng", dict(duration=40)), ("tif", dict())])
def test_files_of_several_frames(ending, options, tmp_path):
    if ending == "apng":
        save(tmp_path / "a.png", **options)
        (tmp_path / "a.png").rename(tmp_path / "a.apng")
    else:
        save(tmp_path / f"a.{ending}", **options)
    data = read(tmp_path / f"a.{ending}")
    assert data.spec == VideoSpec(frames=7, channels=1, height=6, width=8, rate=25.0 if options else None)
    assert np.array_equal(pixels_of(data), GREY[None])
    clips = read(tmp_path / f"a.{ending}", frames=2, every=2)
    assert np.array_equal(pixels_of(clips), GREY[[0, 2, 4, 6]].reshape(2, 2, 6, 8))
    assert clips.spec.rate == (12.5 if options else None)


def test_clips_hold_every_frame_and_what_is_left_is_told(tmp_path):
    told = []
    data = read(save(tmp_path / "a.gif"), told, frames=3)
    assert np.array_equal(pixels_of(data), GREY[:6].reshape(2, 3, 6, 8)) and data.origin.tolist() == [[0, 0], [0, 1]]
    assert any("1 of 7 frames are left over" in sentence for sentence in told)
    assert data.protocol["frames"] == 3 and data.groups is None


def test_folders_of_frames(tmp_path):
    long = RANDOM.integers(0, 256, (12, 6, 8)).astype(np.uint8)
    numbered(tmp_path / "films/b", long)  # frame10 comes after frame9
    numbered(tmp_path / "films/a", GREY, "{}.png")
    data = read(tmp_path / "films", frames=6)
    assert data.labels is None and data.spec.classes == ()
    assert np.array_equal(pixels_of(data), np.concatenate([GREY[:6], long]).reshape(3, 6, 6, 8))
    assert data.groups.tolist() == [0, 1, 1], "clips of a film are in one split"
    part, rest = data.hold_out(0.3)
    assert (len(part), len(rest)) == (1, 2)
    assert np.array_equal(pixels_of(read(tmp_path / "films/b", frames=12)), long[None]), "one folder is one film"
    for label, name in (("x", "a"), ("y", "b")):
        (tmp_path / "classes" / label).mkdir(parents=True)
        shutil.copytree(tmp_path / "films" / name, tmp_path / "classes" / label / name)
    assert read(tmp_path / "classes", frames=6).spec.classes == ("x", "y")
    Image.fromarray(GREY[0, :3]).save(tmp_path / "films/a/3.png")
    with pytest.raises(DataError, match=r"3\.png is not as large as the frames before it"):
        read(tmp_path / "films/a")


def test_classes_are_folders_of_films(tmp_path):
    for label in "xy":
        (tmp_path / label).mkdir()
        for i in range(2):
            save(tmp_path / label / f"{i}.gif")
    data = read(tmp_path)
    assert data.spec.classes == ("x", "y") and data.labels.tolist() == [0, 0, 1, 1]


def test_a_single_long_film_is_cut_into_beginning_and_end(tmp_path):
    long = RANDOM.integers(0, 256, (1, 320, 2, 5, 1)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", clips=long)
    train, test = (load(f"{tmp_path / 'a.npz'}:{split}") for split in ("train", "test"))
    assert train.spec == test.spec and train.spec.frames == 32
    assert np.array_equal(pixels_of(train), long[0, :288, ..., 0].reshape(9, 32, 2, 5)[:9])
    assert np.array_equal(pixels_of(test), long[:, 288:, ..., 0])
    with pytest.raises(DataError, match="too few examples to hold a test split out"):
        load(f"{save(tmp_path / 'short.gif')}:test", FILM)


def test_a_still_picture_is_no_film(tmp_path):
    save(tmp_path / "a.gif")
    Image.fromarray(GREY[0]).save(tmp_path / "still.png")
    with pytest.raises(DataError, match=r"still\.png has 1 frame; a film has several"):
        read(tmp_path)
    left = load(f"{tmp_path}:all", FILM, skip_bad=True, like=read(tmp_path / "a.gif").spec)
    assert (len(left), left.skipped) == (1, 1)
    assert len(read(tmp_path, frames=1)) == 8


def test_what_an_animated_file_is_has_to_be_said(tmp_path, gencli):
    save(tmp_path / "a.gif")
    Image.fromarray(GREY[0]).save(tmp_path / "0.png")
    with pytest.raises(UsageError) as caught:
        load(f"{tmp_path}/a.gif:all")
    assert "a.gif has 7 frames; --kind image takes the first one, --kind video all" in str(caught.value)
    for path in (tmp_path, tmp_path / "a.gif"):
        assert gencli("train", "gaussian", str(path), "-o", "run", code=2).stderr.count("\n") == 1
    told = []
    data = load(f"{tmp_path}:all", {"kind": "image"}, notify=told.append)
    assert len(data) == 2 and np.array_equal(data.examples[1, 0], GREY[0])
    assert sum("1 of 2 files have several frames, of which the first was taken" in sentence for sentence in told) == 1
    assert len(load(f"{tmp_path}/0.png:all")) == 1


@pytest.mark.parametrize(("times", "order", "rate", "sentence"), [
    ([100] * 7, range(7), 10.0, None),
    ([30, 30, 40, 30, 30, 40, 30], range(7), 30.435, None),
    ([50, 100, 50, 150, 50, 50, 50], [0, 1, 1, 2, 3, 3, 3, 4, 5, 6], 20.0, "count as several"),
    ([20, 30, 50, 70, 20, 20, 20], range(7), 30.435, "no common measure"),
    ([20, 20, 20, 20, 20, 20, 9000], range(7), 0.768, "no common measure"),
])
def test_times_of_frames(times, order, rate, sentence, tmp_path):
    told = []
    data = read(save(tmp_path / "a.gif", duration=times), told)
    assert np.array_equal(pixels_of(data), GREY[list(order)][None]) and data.spec.rate == rate
    assert [text for text in told if "shown" in text] == [] if sentence is None else sentence in " ".join(told)


def test_frames_are_put_together(tmp_path):
    """A GIF of parts of frames, and one with transparency on white: as Pillow shows them."""
    still = np.full((3, 16, 16), 200, np.uint8)
    still[1, 4:6, 4:6] = 0
    assert np.array_equal(pixels_of(read(save(tmp_path / "a.gif", still))), still[None])
    clear = [Image.new("RGBA", (4, 4), (255, 0, 0, alpha)) for alpha in (255, 0)]
    clear[0].save(tmp_path / "b.png", save_all=True, append_images=clear[1:], disposal=1, blend=0)
    x = read(tmp_path / "b.png").batch(torch.arange(1)).x[0]
    assert x[0].unique(dim=0).shape[0] and x[0, :, 0, 0].tolist() == [1, 0, 0] and (x[1] == 1).all()


def test_arrays(tmp_path):
    clips = RANDOM.integers(0, 256, (3, 4, 6, 8, 3)).astype(np.uint8)
    for name, array in (("last.npy", clips), ("first.npy", clips.transpose(0, 1, 4, 2, 3))):
        np.save(tmp_path / name, array)
        assert np.array_equal(load(f"{tmp_path / name}:all").examples, clips.transpose(0, 1, 4, 2, 3))
    told = []
    np.save(tmp_path / "grey.npy", clips[..., 0] / 255)
    data = load(f"{tmp_path / 'grey.npy'}:all", notify=told.append)
    assert data.spec.levels is None and "read as 3 films of 4 frames of 6x8" in told[0]
    for shape, kind in (((3, 6, 8, 3), "image"), ((3, 3, 6, 8), "image"), ((3, 6, 8), "image")):
        np.save(tmp_path / "pictures.npy", np.zeros(shape, np.uint8))
        assert load(f"{tmp_path / 'pictures.npy'}:all").spec.kind == kind
    np.save(tmp_path / "pictures.npy", np.zeros((3, 3, 6, 8), np.uint8))
    assert read(tmp_path / "pictures.npy").spec.shape == (3, 1, 6, 8)
    np.savez(tmp_path / "x.npz", clips=clips[..., :1] > 127, y=np.array(["b", "a", "b"]))
    data = load(f"{tmp_path / 'x.npz'}:all")
    assert data.spec.levels == 2 and data.spec.classes == ("a", "b") and data.labels.tolist() == [1, 0, 1]
    np.save(tmp_path / "bad.npy", np.zeros((3, 2, 5, 4, 4)))
    with pytest.raises(DataError, match="expected films of 1 or 3 channels"):
        read(tmp_path / "bad.npy")


def test_size_channels_and_binarisation_are_those_of_pictures(tmp_path):
    numbered(tmp_path / "a", GREY)
    options = dict(size=4, channels=3)
    wanted = load(f"{tmp_path / 'a'}:all", options).examples
    assert torch.equal(read(tmp_path / "a", **options).examples[0], wanted)
    data = read(tmp_path / "a", binarize="dynamic")
    assert data.drawn == "dynamic" and set(data.batch(torch.arange(1)).x.unique().tolist()) == {0, 1}
    assert torch.equal(read(tmp_path / "a", binarize="threshold").examples[0, :, 0], torch.from_numpy(GREY) >= 128)


def test_films_too_large_for_memory_are_the_same(tmp_path, monkeypatch):
    numbered(tmp_path / "films/a", GREY)
    save(tmp_path / "films/b.gif")
    settings = (dict(frames=2), dict(frames=2, binarize="fixed"), dict(frames=2, binarize="threshold", size=3))
    held = [read(tmp_path / "films", **options) for options in settings]
    monkeypatch.setattr(pictures, "IN_MEMORY", 100)
    places = torch.tensor([4, 0, 2])
    for options, data in zip(settings, held, strict=True):
        told: list[str] = []
        stored = read(tmp_path / "films", told, **options)
        assert isinstance(stored.examples, StoredClips) and "decoded into a temporary file" in told[0]
        assert stored.examples.shape == data.examples.shape and stored.spec == data.spec
        assert torch.equal(stored.batch(places).x, data.batch(places).x)
        for a, b in zip(stored.hold_out(0.3), data.hold_out(0.3), strict=True):
            assert torch.equal(a.batch(torch.arange(2)).x, b.batch(torch.arange(2)).x)
        assert isinstance(stored.hold_out(0.3)[0].examples, StoredClips)
    (tmp_path / "films/b.gif").write_bytes((tmp_path / "films/b.gif").read_bytes()[:-40])
    left = load(f"{tmp_path / 'films'}:all", FILM, skip_bad=True, like=held[0].spec)
    assert (len(left), left.skipped) == (3, 1)


# --- the past of a film


@pytest.mark.parametrize("stored", [False, True])
def test_the_past_is_what_the_rest_is_made_from(stored, tmp_path, monkeypatch):
    save(tmp_path / "a.tiff", np.concatenate([GREY, 255 - GREY]))
    if stored:
        monkeypatch.setattr(pictures, "IN_MEMORY", 100)
    data = read(tmp_path / "a.tiff", frames=7, condition="past=3")
    assert isinstance(data.examples, StoredClips) == stored
    assert (data.spec.frames, data.spec.condition.frames) == (4, 3) and data.protocol["condition"] == "past=3"
    assert np.array_equal(pixels_of(data), [GREY[3:], 255 - GREY[3:]])
    assert np.array_equal(pixels_of(data.condition), [GREY[:3], 255 - GREY[:3]])
    again = load(f"{tmp_path / 'a.tiff'}:all", {**FILM, "condition": "past=3"}, like=data.spec)
    assert np.array_equal(pixels_of(again), pixels_of(data)), "clips are as long as those of the model"
    for wrong in ("past=7", "past=0", "past", "past=x"):
        with pytest.raises(UsageError, match=r"expected a number of frames below those of a clip \(--frames 7\), such "
                                             r"as past=3"):
            read(tmp_path / "a.tiff", frames=7, condition=wrong)


def test_past_and_rest_are_drawn_apart(tmp_path):
    save(tmp_path / "a.tiff", np.full((40, 6, 8), 128, np.uint8))
    data = read(tmp_path / "a.tiff", frames=4, condition="past=2", binarize="fixed")
    batch = data.batch(torch.arange(10))
    assert 0.4 < (batch.x == batch.condition.x).float().mean() < 0.6
    part = data.span(3, 5).batch(torch.arange(2))
    assert torch.equal(part.x, batch.x[3:5]) and torch.equal(part.condition.x, batch.condition.x[3:5])


def test_a_film_goes_on(gencli, small_run, small_data, tmp_path):
    run, clips = str(small_run("unet", "video")), np.load(small_data["video"])["clips"]
    np.savez(tmp_path / "past.npz", clips=clips[:3, :2])
    gencli("sample", run, "--given", "past.npz", "-o", "rest.npz")
    assert np.load(tmp_path / "rest.npz")["clips"].shape == (3, 2, 1, 6, 5)
    found = gencli("evaluate", run, str(small_data["video"]), "--metrics", "pairs", "--json").json()["metrics"]
    assert {metric["name"] for metric in found} == {"pair_l1", "pair_psnr"}


def test_convolutions_see_frames_as_channels():
    spec = VideoSpec(frames=3, channels=1, height=6, width=5)
    model = VAE(VAEConfig(net="conv", width=4, latent=2), spec)
    x = torch.rand(2, 3, 1, 6, 5)
    assert model.posterior(x)[0].shape == (2, 2) and model.decode(torch.zeros(4, 2)).x.shape == (4, 3, 1, 6, 5)


def test_similarity_of_films_is_that_of_their_frames():
    x, y = torch.rand(2, 3, 4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    each = torch.stack([ssim(x[:, t], y[:, t]) for t in range(4)])
    assert torch.allclose(ssim(x, y), each.mean(0), rtol=1e-12)


# --- hostile files


def test_bombs_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    black = np.zeros((2, 3000, 3000), np.uint8)
    save(tmp_path / "a.png", black)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"acTL") - 4
    for count in (1000, 2**31):
        claimed = data[:at] + chunk(b"acTL", struct.pack(">II", count, 0)) + data[at + 20 :]
        (tmp_path / "bomb.png").write_bytes(claimed)
        with pytest.raises(DataError, match=r"bomb\.png unpacks to more than 256 MiB"):
            read(tmp_path / "bomb.png")
    monkeypatch.setattr("gencli.limits._LEAST", 1000)
    monkeypatch.setattr("gencli.limits._RATIO", 10)
    still = np.zeros((300, 64, 64), np.uint8)
    still[1::2, 0, 0] = 255
    with pytest.raises(DataError, match=r"b\.gif unpacks to more than"):
        read(save(tmp_path / "b.gif", still))


def test_frames_of_no_size_that_films_have(tmp_path):
    save(tmp_path / "a.webp", lossless=True)
    data = bytearray((tmp_path / "a.webp").read_bytes())
    at = data.index(b"VP8X") + 12
    data[at : at + 3] = struct.pack("<I", 5_600_000 - 1)[:3]  # by 6; only the header says so
    (tmp_path / "a.webp").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.webp cannot .* frames of 5600000x6 are more than 33,554,432 pixels"):
        read(tmp_path / "a.webp")


def test_pages_of_different_sizes(tmp_path):
    a, b = Image.new("L", (8, 6)), Image.new("L", (4, 6))
    a.save(tmp_path / "a.tif", save_all=True, append_images=[b])
    with pytest.raises(DataError, match=r"a\.tif cannot be read as a picture: frame 1 has 4x6 pixels, the first 8x6"):
        read(tmp_path / "a.tif")


# --- writing


def write(path, batch: Batch, spec: VideoSpec, **options):
    with open_writer(str(path), spec, **options) as writer:
        writer.write(batch)
    return path


SPEC = VideoSpec(frames=5, channels=3, height=6, width=8, rate=12.5)
CLIPS = torch.from_numpy(RANDOM.integers(0, 256, (3, 5, 3, 6, 8)).astype(np.float32)) / 255
CLIPS[1] = CLIPS[1, :1]  # nothing moves: the frames are equal


@pytest.mark.parametrize("format", ["tar", "folder", "npz", "npy"])
def test_equal_frames_are_frames(format, tmp_path):
    path = write(tmp_path / ("out" if format == "folder" else f"out.{format}"), Batch(CLIPS), SPEC)
    assert torch.equal(load(f"{path}:all", like=SPEC).batch(torch.arange(3)).x, CLIPS)


@pytest.mark.parametrize("ending", ["apng", "webp"])
def test_without_loss(ending, tmp_path):
    path = write(tmp_path / f"a.{ending}", Batch(CLIPS[:1]), SPEC)
    with Image.open(path) as film:
        assert film.n_frames == 5 and film.info.get("loop") == 0
        for frame, wanted in zip(ImageSequence.Iterator(film), CLIPS[0], strict=True):
            assert np.array_equal(frame.convert("RGB"), pictures.quantize(wanted).permute(1, 2, 0))
            assert frame.info["duration"] == 80
    spec = read(write(tmp_path / f"all.{ending}", Batch(CLIPS), SPEC)).spec
    assert (spec.height, spec.width, spec.rate) == (2 * 8 + 2, 2 * 10 + 2, 12.5), "side by side"


def test_a_grey_gif_is_exact(tmp_path):
    spec = SPEC.model_copy(update={"channels": 1})
    path = write(tmp_path / "a.gif", Batch(CLIPS[:1, :, :1]), spec)
    assert torch.equal(read(path).batch(torch.arange(1)).x, CLIPS[:1, :, :1])
    assert read(path).spec == spec


def test_a_sheet_and_frames(tmp_path):
    with Image.open(write(tmp_path / "a.png", Batch(CLIPS), SPEC)) as sheet:
        assert sheet.size == (5 * 10 + 2, 3 * 8 + 2)
        third = np.asarray(sheet)[2 + 8 : 2 + 8 + 6, 2 + 20 : 2 + 20 + 8]
    assert np.array_equal(third, pictures.quantize(CLIPS[1, 2]).permute(1, 2, 0))
    path = write(tmp_path / "out", Batch(CLIPS), SPEC, format="frames")
    write(tmp_path / "out", Batch(CLIPS), SPEC, format="frames")  # what is all our own is replaced
    assert torch.equal(read(path).batch(torch.arange(3)).x, CLIPS)
    (tmp_path / "out/000000.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 000000\.txt, which would be lost"):
        write(tmp_path / "out", Batch(CLIPS), SPEC, format="frames")


@pytest.mark.skipif(not shutil.which("ffprobe"), reason="ffprobe is not installed")
@pytest.mark.parametrize("ending", ["gif", "apng"])
def test_another_program_sees_the_film(ending, tmp_path):
    path = write(tmp_path / f"a.{ending}", Batch(CLIPS[[0, 2]]), SPEC)
    done = subprocess.run(["ffprobe", "-v", "error", "-count_frames", "-of", "json", "-show_streams", path],
                          capture_output=True, check=True)
    stream, = json.loads(done.stdout)["streams"]
    assert (stream["nb_read_frames"], stream["r_frame_rate"]) == ("5", "25/2")
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                         capture_output=True, check=True).stdout
    if ending == "apng":
        seen = np.frombuffer(raw, np.uint8).reshape(5, stream["height"], stream["width"], 3)
        assert np.array_equal(seen[:, 2:8, 12:20], pictures.quantize(CLIPS[2]).permute(0, 2, 3, 1))


def test_a_report_shows_films_that_move():
    samples = Dataset("samples", "all", SPEC, pictures.quantize(CLIPS), fingerprint="samples")
    exhibit = next(exhibit for exhibit in collect(Inputs(samples, samples=samples), Results(), None))
    head, _, content = exhibit.tiles[0].pictures[0].partition(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as film:
        assert head == "data:image/webp;base64" and film.n_frames == 5
        assert np.array_equal(film.convert("RGB"), pictures.quantize(CLIPS[0, 0]).permute(1, 2, 0))


# --- the known set


def test_moving_digits():
    digits = np.full((5, 2, 28, 28), 255, np.uint8)

    def made(frames: int, seed: int) -> np.ndarray:
        return moving_digits(digits, frames, np.random.default_rng(seed))

    clips = made(60, 3)
    assert np.array_equal(clips, made(60, 3)) and not np.array_equal(clips, made(60, 4))
    assert np.array_equal(clips[:, :20], made(20, 3)), "a longer film goes on"
    for clip in clips:
        area = (clip > 0).sum((1, 2))
        assert area.min() >= 784 and area.max() <= 2 * 784 and clip.max() == 255
        # Whole digits all the time: what is bright spans at least 28 pixels on either axis.
        assert (clip.any(1).sum(1) >= 28).all() and (clip.any(2).sum(1) >= 28).all()


@pytest.mark.parametrize("shrink", [1, 2])
def test_a_digit_moves_straight_on_at_a_speed_of_its_own_and_bounces(shrink):
    digits = np.full((20, 1, 28, 28), 255, np.uint8)
    clips = moving_digits(digits, 40, np.random.default_rng(0), shrink).astype(float)
    assert clips.shape == (20, 40, 64 // shrink, 64 // shrink) and (clips.sum((2, 3)) > 0).all()
    places = np.stack([(clips.sum(other) * np.arange(64 // shrink)).sum(2) / clips.sum((2, 3)) for other in (3, 2)], 2)
    places = places * shrink + (shrink - 1) / 2 - 13.5  # of the corner
    assert places.min() > -1e-9 and places.max() < 36 + 1e-9
    steps = np.diff(places, axis=1)
    assert np.abs(steps).max() < 3.6 + 1, "it never jumps"
    # Rounding to whole pixels moves each place by half a pixel at most, and a step by one.
    inside = ((places[:, 1:] > 4.6) & (places[:, 1:] < 31.4) & (places[:, :-1] > 4.6) & (places[:, :-1] < 31.4))
    speeds = [[np.abs(steps[i, inside[i, :, axis], axis]) for axis in (0, 1)] for i in range(20)]
    for own in speeds:
        assert all(len(axis) == 0 or np.ptp(axis) < 1 + 1e-9 for axis in own)
    means = np.array([[axis.mean() if len(axis) else np.nan for axis in own] for own in speeds])
    both = np.hypot(*means[~np.isnan(means).any(1)].T)
    assert len(both) > 5 and np.allclose(both, 3.6, atol=0.3)
    assert ((steps > 1).any(1) & (steps < -1).any(1)).sum() > 20, "they turn back"


def test_the_known_sets_make_as_many_frames_as_are_asked_for(monkeypatch):
    for name in ("ONE", "TWO"):
        scene = getattr(digits_that_move, name)
        monkeypatch.setattr(digits_that_move, name, replace(scene, train=3, test=2))
    data = load("moving-digits", {"frames": 24, "size": 16})
    assert data.examples.shape == (3, 24, 1, 16, 16) and data.spec.levels == 256
    assert load("moving-digits:test").examples.shape == (2, 20, 1, 64, 64)
    assert load("moving-digits", {"frames": 4, "every": 3}).examples.shape == (3, 4, 1, 64, 64)
    one = load("moving-digit")
    assert one.examples.shape == (3, 16, 1, 32, 32) and one.labels is not None


# --- measuring


def dataset(x: torch.Tensor, name: str) -> Dataset:
    spec = VideoSpec(frames=x.shape[1], channels=1, height=x.shape[3], width=x.shape[4], levels=None)
    return Dataset(name, "test", spec, x, fingerprint=name)


def test_films_with_shuffled_frames_are_told_apart():
    random = np.random.default_rng(0)
    shapes = np.zeros((80, 1, 28, 28), np.uint8)
    for shape, (height, width) in zip(shapes[:, 0], random.integers(8, 28, (80, 2)), strict=True):
        shape[:height, :width] = 255
    x = torch.from_numpy(moving_digits(shapes, 12, random, 2))[:, :, None] / 255
    shuffled = torch.stack([film[torch.from_numpy(random.permutation(12))] for film in x[40:]])
    reference = dataset(x[:40], "real")
    for samples, least, most in ((x[40:], 0, 0.4), (shuffled, 0.6, 1)):  # 5% of the distances of 40 and 40 exceed 0.3
        found = {metric.name: metric for metric in video(Inputs(reference, samples=dataset(samples, "samples")))}
        assert least <= found["consistency_distance"].value <= most


def test_distances_of_motion():
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(40, 1, 1, 6, 6, generator=generator)
    noise = torch.rand(40, 5, 1, 6, 6, generator=generator)
    calm, wild = 0.9 * start + 0.1 * noise, 0.5 * start + 0.5 * noise
    found = {metric.name: metric for metric in video(Inputs(dataset(calm, "calm"), samples=dataset(wild, "wild")))}
    for metric in found.values():
        assert metric.value == 1 and metric.n == 40
    some = dataset(calm.flip(0)[:20], "some")
    half = {metric.name: metric for metric in video(Inputs(dataset(calm, "all"), samples=some))}
    statistics = [x.diff(dim=1).double().square().flatten(1).mean(1).sqrt() for x in (calm, calm.flip(0)[:20])]
    assert half["motion_distance"].value == pytest.approx(ks_2samp(*map(np.asarray, statistics)).statistic)
    alike = [np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(x[1:], x[:-1], strict=True)])
             for x in calm.numpy()]
    assert half["consistency_distance"].value == pytest.approx(ks_2samp(alike, alike[::-1][:20]).statistic)
    assert half["motion_distance"].error > 0


def test_feature_spaces():
    x = torch.zeros(2, 6, 1, 16, 16)
    x[0, 3:, :, :8, :8] = 1  # a corner lights up
    inputs = Inputs(dataset(x, "x"))
    seen, none = thumbnails(inputs).describe(Batch(x))
    assert none is None and seen.shape == (2, 4 * 8 * 8) and seen[0].sum() > 0 and not seen[1].any()
    moved = motion(inputs).describe(Batch(x))[0].unflatten(1, (4, 8, 8))
    assert moved[0, :, :4, :4].any() and not moved[0, :, 4:].any() and not moved[1].any()
    single = motion(inputs).describe(Batch(x[:, :1]))[0]
    assert not single.any()
