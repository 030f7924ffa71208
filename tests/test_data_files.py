"""Files and streams, good, damaged and hostile: the same examples from every format, and one line about each fault."""

import bz2
import gzip
import io
import json
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.kinds import image as pictures
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def png(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png", **options)
    return buffer.getvalue()


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_the_same_pictures_from_every_format(tmp_path):
    files = {"nhw.npy": npy(PIXELS), "nhwc.npy": npy(PIXELS[..., None]), "nchw.npy": npy(PIXELS[:, None]),
             "x.npz": npz(x=PIXELS), "images.npz": npz(images=PIXELS), "first.npz": npz(arr_0=PIXELS),
             "a.idx": idx(PIXELS), "images-idx3-ubyte": idx(PIXELS), "b.idx.gz": gzip.compress(idx(PIXELS)),
             "a.tar": tar({f"{i:06}.png": png(x) for i, x in enumerate(PIXELS)}),
             "b.tar": tar({f"{i:06}.npy": npy(x) for i, x in enumerate(PIXELS)})}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    for i, x in enumerate(PIXELS):
        (tmp_path / "folder" / f"{i}.png").write_bytes(png(x))
    read = {name: load(f"{tmp_path}/{name}:all") for name in (*files, "folder")}
    for name, data in read.items():
        assert np.array_equal(data.examples[:, 0], PIXELS), name
        assert data.spec == ImageSpec(channels=1, height=5, width=4), name
    assert len({data.fingerprint for data in read.values()}) == 1
    for name, array in (("rgb.npy", COLOURS), ("planes.npy", COLOURS.transpose(0, 3, 1, 2))):
        (tmp_path / name).write_bytes(npy(array))
        assert np.array_equal(load(f"{tmp_path}/{name}:all").examples.permute(0, 2, 3, 1), COLOURS)


def test_labels_from_every_format(tmp_path):
    labels = np.array([2, 0, 2, 10, 0, 10])
    (tmp_path / "a.npz").write_bytes(npz(x=PIXELS, y=labels))
    (tmp_path / "t-images-idx3-ubyte").write_bytes(idx(PIXELS))
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8)))
    members = {}
    for i, x in enumerate(PIXELS):
        members |= {f"{i}.png": png(x), f"{i}.json": json.dumps({"label": int(labels[i])}).encode()}
    (tmp_path / "a.tar").write_bytes(tar(members))
    for i, x in enumerate(PIXELS):
        (tmp_path / "folder" / str(labels[i])).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(labels[i]) / f"{i}.png").write_bytes(png(x))
    for name in ("a.npz", "t-images-idx3-ubyte", "a.tar"):
        data = load(f"{tmp_path}/{name}:all")
        assert data.spec.classes == ("0", "2", "10") and data.labels.tolist() == [1, 0, 1, 2, 0, 2], name
    data = load(f"{tmp_path}/folder:all")
    assert data.spec.classes == ("0", "2", "10") and sorted(data.labels.tolist()) == [0, 0, 1, 1, 2, 2]


def test_real_valued_pictures(tmp_path):
    x = np.random.default_rng(0).random((6, 5, 4))
    (tmp_path / "a.npy").write_bytes(npy(x))
    data = load(f"{tmp_path}/a.npy:all")
    assert data.spec.levels is None and np.allclose(data.examples[:, 0], x)
    data = load(f"{tmp_path}/a.npy:all", like=ImageSpec(channels=3, height=5, width=4))
    assert np.array_equal(data.examples[:, 2], np.round(np.float32(x) * 255).astype(np.uint8))
    whole = load(f"{tmp_path}/a.npy:all", dict(size=2))
    assert whole.examples.shape == (6, 1, 2, 2) and whole.examples.min() >= 0 and whole.examples.max() <= 1


def test_streams_of_examples():
    stream = tar({f"{i:06}.png": png(x) for i, x in enumerate(PIXELS)})
    assert np.array_equal(load("-:all", stdin=io.BytesIO(stream)).examples[:, 0], PIXELS)
    texts = tar({"0.txt": b"ab\n", "1.txt": b"b"})
    spec = TextSpec(vocabulary=("<unk>", "<end>", "a", "b"), length=5)
    data = load("-", split="all", like=spec, stdin=io.BytesIO(texts))
    assert data.examples.tolist() == [[2, 3, 0, 0, 0], [3, 0, 0, 0, 0]] and data.lengths.tolist() == [3, 1]
    rows = load("-:all", stdin=io.BytesIO(tar({"0.npy": npy(np.ones(3)), "1.npy": npy(np.zeros(3))})))
    assert rows.examples.tolist() == [[1, 1, 1], [0, 0, 0]]


# --- pictures of every mode


def gradient(mode: str) -> Image.Image:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 257)
    return Image.fromarray(grey).convert(mode)


@pytest.mark.parametrize(("mode", "ending", "channels", "tolerance"), [
    ("L", "png", 1, 0), ("LA", "png", 1, 0), ("I;16", "png", 1, 0), ("I;16", "tif", 1, 0), ("I", "tif", 1, 0),
    ("RGB", "png", 3, 0), ("RGBA", "png", 3, 0), ("P", "png", 3, 0), ("P", "gif", 3, 0), ("L", "jpg", 1, 4),
    ("CMYK", "tif", 3, 1), ("CMYK", "jpg", 3, 6), ("RGB", "webp", 3, 8), ("RGB", "bmp", 3, 0), ("L", "pgm", 1, 0),
])
def test_modes(mode, ending, channels, tolerance, tmp_path):
    gradient(mode).save(tmp_path / f"a.{ending}")
    data = load(f"{tmp_path}/a.{ending}:all")
    if ending != "gif":  # Pillow opens a palette of greys as grey
        assert data.spec.channels == channels
    for settings in (dict(), dict(channels=1), dict(channels=3)):
        x = load(f"{tmp_path}/a.{ending}:all", settings).examples[0].int()
        assert len(x) == (settings.get("channels") or data.spec.channels)
        assert (x - torch.arange(256).view(16, 16)).abs().max() <= max(tolerance, settings.get("channels") == 1)


def tiff(bits: int, values: np.ndarray) -> bytes:
    """An uncompressed grey TIFF of 12 bits (packed as TIFF 6.0 has them) or of 32, by hand."""
    height, width = values.shape
    if bits == 12:
        a, b = values.reshape(-1, 2).T.astype(np.uint16)
        data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    else:
        data = values.astype("<i4").tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 3, height), (279, 4, len(data)), (339, 3, 1 if bits == 12 else 2)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


RAMP = np.arange(256).reshape(16, 16)


def test_12_bits_are_no_16(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(12, RAMP * 16 + 8))
    found = load(f"{tmp_path}/a.tif:all").examples[0, 0].numpy()
    assert np.abs(found.astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize("values", [RAMP * 70000, RAMP - 100])
def test_32_bits_are_refused_until_somebody_says_what_is_white(values, tmp_path):
    """Before, they came out white, or cut at 0."""
    (tmp_path / "a.tif").write_bytes(tiff(32, values))
    with pytest.raises(DataError, match=f"whole numbers from {values.min()} to .*--range LOW,HIGH"):
        load(f"{tmp_path}/a.tif:all")
    data = load(f"{tmp_path}/a.tif:all", {"range": f"{values.min()},{values.max()}"})
    assert np.array_equal(data.examples[0, 0], RAMP) and data.protocol["range"]


def test_real_pixels_take_a_range(tmp_path):
    Image.fromarray((RAMP / 510 - 0.25).astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"real numbers from -0\.25 to 0\.25"):
        load(f"{tmp_path}/a.tif:all")
    found = load(f"{tmp_path}/a.tif:all", {"range": "-0.25,0.25"}).examples[0, 0].numpy()
    assert np.abs(found.astype(int) - RAMP).max() <= 1
    for wrong in ("1", "2,1", "0,inf", "a,b"):
        with pytest.raises(UsageError, match=f"--range {wrong}: expected two numbers"):
            load(f"{tmp_path}/a.tif:all", {"range": wrong})


def test_dark_pictures_of_16_bits_are_told(tmp_path):
    for i in range(3):
        Image.fromarray((RAMP + 512 * i).astype(np.uint16)).save(tmp_path / f"{i}.png")
    told = []
    load(f"{tmp_path}:all", notify=told.append)
    assert any("3 pictures of 16 bits use 0 to 1279 of 0 to 65535" in sentence and "--range 0,1279" in sentence
               for sentence in told)
    told.clear()
    assert load(f"{tmp_path}:all", {"range": "0,1279"}, notify=told.append).examples.max() == 255 and not told


def test_one_tiny_picture_does_not_decide(tmp_path):
    """One of 1x1 made the whole model 1x1."""
    for i in range(5):
        Image.new("L", (30 + i, 20), 9).save(tmp_path / f"{i}.png")
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    message = r"from 1 to 20 pixels \(1 of 5 .* factor of 2: .*dot\.png with 1x1\); say with --size"
    with pytest.raises(UsageError, match=message):
        load(f"{tmp_path}:all")
    assert load(f"{tmp_path}:all", {"size": 8}).examples.shape == (6, 1, 8, 8)
    (tmp_path / "dot.png").unlink()
    told = []
    data = load(f"{tmp_path}:all", notify=told.append)
    assert data.examples.shape == (5, 1, 20, 20) and data.protocol["scaled"] == 5
    assert "5 of 5 pictures are scaled and cropped to 20x20" in told[0] and "4.png with 34x20" in told[0]


def test_samples_of_another_size_and_colour_are_told(tmp_path):
    np.save(tmp_path / "a.npy", COLOURS)
    told = []
    spec = ImageSpec(channels=1, height=4, width=4)
    data = load(f"{tmp_path}/a.npy:all", like=spec, notify=told.append)
    assert data.protocol["scaled"] == data.protocol["recoloured"] == 6
    assert any("scaled and cropped to 4x4" in sentence for sentence in told)
    assert any("6 of 6 pictures are made grey" in sentence for sentence in told)


@pytest.mark.parametrize(("ending", "format"), [("tga", "TGA"), ("jp2", "JPEG2000"), ("qoi", "QOI"), ("ico", "ICO"),
                                                ("jfif", "JPEG"), ("pcx", "PCX"), ("dds", "DDS"), ("avif", "AVIF")])
def test_what_pillow_reads(ending, format, tmp_path):
    from PIL import features

    if {"jp2": "jpg_2000", "avif": "avif"}.get(ending, "zlib") not in features.get_supported():
        pytest.skip("this Pillow is built without it")
    mode = "RGB"
    try:
        Image.fromarray(RAMP.astype(np.uint8)).convert(mode).save(tmp_path / f"a.{ending}", format)
    except (OSError, KeyError):
        pytest.skip("this Pillow does not write it")
    data = load(f"{tmp_path}:all")
    assert data.examples.shape == (1, 3, 16, 16) and (data.examples[0, 0].int() - torch.tensor(RAMP)).abs().max() < 40


def test_endings_passed_over_are_counted(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(PIXELS[i]))
        (tmp_path / f"{i}.heic").write_bytes(b"x")
    (tmp_path / "notes.md").write_text("x")
    told, details = [], []
    load(f"{tmp_path}:all", notify=told.append, detail=details.append)
    assert "4 of 7 files are no examples and passed over: 3 .heic, 1 .md" in told[0] and len(details) == 4


def test_one_bit_pictures_are_binary_until_they_are_scaled(tmp_path):
    Image.fromarray(PIXELS[0] > 128).save(tmp_path / "a.png")
    data = load(f"{tmp_path}/a.png:all")
    assert data.spec.levels == 2 and np.array_equal(data.examples[0, 0], PIXELS[0] > 128)
    assert load(f"{tmp_path}/a.png:all", dict(size=3)).spec.levels == 256


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert load(f"{tmp_path}/a.png:all").examples.min() == 255
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "b.png", transparency=0)
    assert load(f"{tmp_path}/b.png:all").examples.min() == 255


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_exif_orientation(ending, tmp_path):
    turned = Image.new("L", (16, 8), 0)
    turned.paste(255, (0, 0, 8, 8))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture has to be turned by 90 degrees clockwise: the upper half becomes white
    turned.save(tmp_path / f"a.{ending}", exif=exif)
    data = load(f"{tmp_path}/a.{ending}:all")
    assert (data.spec.height, data.spec.width) == (16, 8)
    assert data.examples[0, 0, :8].min() > 250 and data.examples[0, 0, 8:].max() < 5


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["jpg exif", "png exif", "tif exif", "webp exif", "png profile", "png xmp", "jpg xmp",
                                 "tif xmp"])
def test_orientation_wherever_it_is_said(how, orientation, tmp_path):
    """The size that is asked for first, and the pixels, as Pillow turns them; none are cut off."""
    from PIL import ImageOps, PngImagePlugin

    ending, place = how.split()
    pixels = np.zeros((24, 40), np.uint8)
    pixels[:12, :30] = 255
    file, options = tmp_path / f"a.{ending}", {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    if place == "exif":
        options["exif"] = exif
    elif place == "profile":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        content = exif.tobytes()
        options["pnginfo"].add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    elif ending == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.format(orientation))
    elif ending == "tif":
        options["tiffinfo"] = {700: XMP.format(orientation).encode()}
    else:
        options["xmp"] = XMP.format(orientation).encode()
    Image.fromarray(pixels).save(file, **options)
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("L")).astype(int)
    data = load(f"{file}:all", dict(channels=1))
    assert (data.spec.height, data.spec.width) == expected.shape
    assert abs(np.asarray(data.examples[0, 0]).astype(int) - expected).max() < 40


def test_sizes(tmp_path):
    for i, size in enumerate([(20, 10), (8, 30), (12, 12)]):
        Image.new("L", size, 90).save(tmp_path / f"{i}.png")
    data = load(f"{tmp_path}:all", dict(holdout=0.01))
    side = data.spec.height
    assert data.spec.width == side and side in (8, 10) and set(data.examples.unique().tolist()) == {90}
    assert load(f"{tmp_path}:all", dict(size=5, channels=3)).examples.shape == (3, 3, 5, 5)


def test_the_middle_is_kept(tmp_path):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = PIXELS[0, :4]
    (tmp_path / "a.png").write_bytes(png(wide))
    assert np.array_equal(load(f"{tmp_path}/a.png:all", dict(size=4)).examples[0, 0], PIXELS[0, :4])
    (tmp_path / "a.npy").write_bytes(npy(wide[None]))
    assert np.array_equal(load(f"{tmp_path}/a.npy:all", dict(size=4)).examples[0, 0], PIXELS[0, :4])


def test_pictures_too_many_for_memory_are_the_same(tmp_path, monkeypatch):
    for i, x in enumerate(COLOURS):
        (tmp_path / f"{i}.png").write_bytes(png(x))
    held = [(settings, load(f"{tmp_path}:all", settings)) for settings in
            (dict(), dict(binarize="fixed"), dict(binarize="threshold", channels=1))]
    monkeypatch.setattr(pictures, "IN_MEMORY", 100)
    indices = torch.tensor([4, 0, 2])
    for settings, data in held:
        lazy = load(f"{tmp_path}:all", settings)
        assert isinstance(lazy.examples, pictures.LazyPictures) and len(lazy) == 6 and lazy.spec == data.spec
        assert lazy.examples.shape == data.examples.shape and len(lazy.subset(2)) == 2
        assert torch.equal(lazy.batch(indices).x, data.batch(indices).x) and lazy.drawn == data.drawn
    before = lazy.fingerprint
    (tmp_path / "3.png").write_bytes(png(COLOURS[0]))
    assert load(f"{tmp_path}:all", settings).fingerprint != before
    (tmp_path / "3.png").write_bytes(png(COLOURS[0])[:-30])
    lazy = load(f"{tmp_path}:all", skip_bad=True)
    assert len(lazy) == 5 and lazy.skipped == 1 and len(lazy.batch(torch.arange(5)).x) == 5


def test_other_files_beside_pictures_are_left_alone(tmp_path):
    (tmp_path / "a.PNG").write_bytes(png(PIXELS[0]))
    (tmp_path / "README.txt").write_text("what this is")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert len(load(f"{tmp_path}:all")) == 1


# --- tables


def test_csv(tmp_path):
    (tmp_path / "a.csv").write_text('"x", y,kind\n1,2.5,b\n\n-3e1,4,a\n')
    data = load(f"{tmp_path}/a.csv:all", dict(label="kind"))
    assert data.spec.names == ("x", "y") and data.examples.tolist() == [[1, 2.5], [-30, 4]]
    assert data.spec.classes == ("a", "b") and data.labels.tolist() == [1, 0]
    for text in ("1;2\n3;4\n", "1\t2\n3\t4\n", "\ufeff1,2\r\n3,4"):
        (tmp_path / "b.csv").write_text(text)
        data = load(f"{tmp_path}/b.csv:all")
        assert data.examples.tolist() == [[1, 2], [3, 4]] and data.spec.names == ("1", "2")


def test_csv_scale_of_a_constant_column_is_one(tmp_path):
    (tmp_path / "a.csv").write_text("1,5\n2,5\n3,5\n")
    assert load(f"{tmp_path}/a.csv").spec.columns[1].scale == 1


def test_amat(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (6, 785))
    np.savetxt(tmp_path / "a.amat", x[:, :784], "%d")
    np.savetxt(tmp_path / "b.amat", x, "%.1f")
    np.savetxt(tmp_path / "c.amat.gz", x[:, :3] + 0.5)
    for name in "ab":
        data = load(f"{tmp_path}/{name}.amat:all")
        assert data.spec.levels == 2 and np.array_equal(data.examples.flatten(1), x[:, :784])
    assert data.labels.tolist() == x[:, 784].tolist()
    assert np.array_equal(load(f"{tmp_path}/c.amat.gz:all").examples, x[:, :3] + 0.5)


# --- faults


def bomb(width: int) -> bytes:
    """A small PNG that says it is huge."""
    header = struct.pack(">IIBBBBB", width, width, 8, 0, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


HUGE = npy(np.zeros(3)).replace(b"(3,)", b"(900000000000, 9)")
FAULTS = {
    "empty.png": (b"", "not a picture"),
    "cut.png": (png(PIXELS[0])[:-30], "cannot be read as a picture"),
    "text.jpg": (b"hello", "not a picture"),
    "bomb.png": (bomb(12_000), "more than 89,478,485 pixels"),
    "huge.png": (bomb(60_000), "cannot be read as a picture"),
    "empty.npy": (b"", "is empty"),
    "text.npy": (b"hello", "not a .npy file"),
    "cut.npy": (npy(PIXELS)[:-5], "damaged or cut short"),
    "huge.npy": (HUGE, "damaged or cut short"),
    "objects.npy": (npy(np.array([{}, []], object), allow_pickle=True), "run code"),
    "objects.npz": (npz(x=np.array([{}, []], object)), "x holds Python objects"),
    "words.npy": (npy(np.array(["a", "b"])), "expected numbers"),
    "complex.npy": (npy(np.ones((3, 3), complex)), "expected numbers"),
    "none.npy": (npy(np.zeros((0, 4))), r"shape \(0, 4\)"),
    "one.npy": (npy(np.zeros(4)), r"shape \(4,\)"),
    "inf.csv": (b"1,2\n3,inf\n", "line 2: 'inf' in column '2' is not a finite number"),
    "column.npy": (npy(np.array([[1.0, np.nan], [3, np.nan]])), "column '2' has no values; leave it out with --drop 2"),
    "inf.npy": (npy(np.full((3, 4, 4), np.inf)), "example 0 holds NaN or infinity"),
    "range.npy": (npy(np.full((3, 4, 4), 1.5)), "values from 1.5 to 1.5"),
    "big.npy": (npy(np.full((3, 4, 4), 256)), "values from 256 to 256"),
    "channels.npy": (npy(np.zeros((3, 5, 4, 4))), "1 or 3 channels"),
    "other.npz": (npz(weights=PIXELS), "holds weights; expected"),
    "labels.npz": (npz(x=PIXELS, y=np.zeros(3)), "6 examples but 3 labels"),
    "cut.npz": (npz(x=PIXELS)[:-40], "damaged or cut short"),
    "text.npz": (b"hello", "not a .npz file"),
    "cut.idx": (idx(PIXELS)[:-1], "holds 119 bytes of the 120"),
    "long.idx": (idx(PIXELS) + b"0", "holds 121 bytes of the 120"),
    "huge.idx": (idx(PIXELS)[:4] + b"\xff" * 12, "bytes of the"),
    "empty.idx": (idx(PIXELS)[:4] + bytes(4) + b"\xff" * 8, r"empty: it announces the shape \(0, 4294967295, "),
    "head.idx": (idx(PIXELS)[:6], "not an IDX file"),
    "labels.idx": (idx(PIXELS.ravel()), "holds 120 labels"),
    "cut.idx.gz": (gzip.compress(idx(PIXELS))[:-20], "damaged or cut short"),
    "bad.idx.gz": (b"hello", "damaged or cut short"),
    "bad.idx.xz": (b"hello", "damaged or cut short"),
    "ragged.csv": (b"1,2\n3,4\n5\n", "line 3: 1 cells; expected 2"),
    "word.csv": (b"a,b\n1,2\n2,y\n3,4\n", "line 3: 'y' in column 'b'"),
    "names.csv": (b"a,b\n" + b"".join(b"1,n%d\n" % i for i in range(99)),
                  "names do; leave it out with --drop b, or keep"),
    "bad.parquet": (b"PAR1 and nothing else", "is no Parquet file, or damaged"),
    "header.csv": (b"a,b\n", "no rows"),
    "twice.csv": (b"a,a\n1,2\n", "two columns are called 'a'"),
    "binary.csv": (b"\x00\x01\xff", "not UTF-8 text"),
    "ragged.amat": (b"1 2\n3\n", "number of columns changed"),
    "words.amat": (b"a b\n", "could not convert"),
    "binary.txt": (bytes(range(256)), "binary.txt is not UTF-8 text"),
    "zeros.txt": (b"ab\0cd", "zero bytes"),
    "utf16.txt": ("hello".encode("utf-16"), "not UTF-8 text"),
    "empty.txt": (b"", "is empty"),
    "unknown.bin": (bz2.compress(b"hello" * 99), "not UTF-8 text"),
    "text.tar": (b"hello", "tar"),
    "mixed.tar": (tar({"0.png": png(PIXELS[0]), "1.txt": b"x"}), "1 is txt, unlike those before"),
    "shapes.tar": (tar({"0.npy": npy(np.ones(3)), "1.npy": npy(np.ones(4))}), "different shapes"),
    "none.tar": (tar({}), "tar"),
    "cut.tar": (tar({"0.png": png(PIXELS[0])})[:700], "tar"),
    "picture.tar": (tar({"0.png": b"hello"}), "0.png is not a picture"),
}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_in_one_line(name, tmp_path):
    data, message = FAULTS[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        load(f"{tmp_path}/{name}:all")
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError):
        load(f"{tmp_path}/{name}")


def test_folders_without_data(tmp_path):
    with pytest.raises(DataError, match="holds no data"):
        load(str(tmp_path))
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("1,2\n")
    with pytest.raises(DataError, match=r"2 files \(a.csv, b.csv, ...\); name one"):
        load(str(tmp_path))


def test_a_missing_label_column(tmp_path):
    (tmp_path / "a.csv").write_text("a,kind\n1,x\n")
    with pytest.raises(UsageError, match="did you mean 'kind'"):
        load(f"{tmp_path}/a.csv", dict(label="knd"))


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    for name, data in (("a.npy", npy(np.array([Trap()], object), allow_pickle=True)),
                       ("a.npz", npz(x=np.array([Trap()], object)))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError):
            load(f"{tmp_path}/{name}")
    assert not (tmp_path / "sprung").exists()


def test_bad_examples_are_left_out_on_request(tmp_path):
    for i, x in enumerate(PIXELS):
        (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png").write_bytes(png(x) if i not in (0, 3) else b"bad")
    array = np.random.default_rng(0).random((6, 5, 4))
    array[2, 0, 0] = np.nan
    (tmp_path / "a.npy").write_bytes(npy(array))
    (tmp_path / "a.csv").write_text("1,2\n3\n5,6\n")
    (tmp_path / "a.tar").write_bytes(tar({"0.txt": b"ok", "1.txt": b"\xff", "2.txt": b"fine"}))
    for name, count, bad in (("pictures", 4, 2), ("a.npy", 5, 1), ("a.csv", 2, 1), ("a.tar", 2, 1)):
        with pytest.raises(DataError):
            load(f"{tmp_path}/{name}:all")
        said = []
        data = load(f"{tmp_path}/{name}:all", skip_bad=True, notify=said.append)
        assert (len(data), data.skipped, data.protocol["skipped"]) == (count, bad, bad), name
        about = [sentence for sentence in said
                if not re.search("read as|are unknown", sentence) and "--columns" not in sentence]
        assert len(about) == 1 and f"{bad} unreadable" in about[0]
    data = load(f"{tmp_path}/pictures:all", skip_bad=True)
    assert data.labels.tolist() == [0, 0, 1, 1] and data.examples.shape == (4, 1, 5, 4)
    assert np.array_equal(data.examples[:, 0], PIXELS[[2, 4, 1, 5]])
    for path in (tmp_path / "pictures").rglob("*.png"):
        path.write_bytes(b"bad")
    with pytest.raises(DataError, match="not a picture"):
        load(f"{tmp_path}/pictures", skip_bad=True)
