"""Reports are what others parse: JUnit as XML, Markdown as a table, the page as HTML with nothing from elsewhere."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_commands import one_line

from gencli import charts
from gencli.reports.html import html
from gencli.reports.junit import junit
from gencli.reports.markdown import markdown

NASTY = '<script>alert("1")</script> & `x` | *y* \x07\n_z_'
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """A page's elements, its text, and whether every element that is opened is closed in turn."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)

    def pictures(self) -> list[Image.Image]:
        sources = [attributes["src"] for tag, attributes in self.elements if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]

    def says(self, text: str) -> bool:
        return text in " ".join(" ".join(self.texts).split())


def document(name: str = "nll", **changes) -> dict:
    metric = {"name": name, "value": 84.3217, "error": 0.21, "n": 1000, "unit": "nats", "kind": "exact",
              "protocol": {"data": name, "seed": 0, "particles": 50}}
    results = [{"requirement": f"{name}<=90", "metric": name, "value": 84.3217, "error": 0.21, "limit": 90.0,
                "passed": True, "reason": f"{name} is 84.32 ± 0.21"},
               {"requirement": "kl>=1", "metric": "kl", "value": None, "error": None, "limit": 1.0, "passed": False,
                "reason": "kl was not measured"}]
    return {"model": {"path": name, "family": "vae", "steps": 1200, "trained_on": name}, "samples": None,
            "data": {"name": name, "split": "test", "n": 1000, "skipped": 0, "fingerprint": "f"},
            "metrics": [metric, {**metric, "name": "psnr", "value": None, "error": None, "protocol": {"data": name}}],
            "requirements": results, "passed": False, **changes}


def test_junit():
    root = ElementTree.fromstring(junit(document()))
    (suite,) = root
    assert root.tag == "testsuites" and suite.get("name") == "nll on nll:test"
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    met, failed = suite.findall("testcase")
    assert met.get("name") == "nll<=90" and len(met) == 0
    assert failed.find("failure").get("message") == "kl was not measured"
    assert {p.get("name"): p.get("value") for p in suite.find("properties")} == {"nll": "84.3217",
                                                                                "psnr": "not measured"}


def test_junit_of_nasty_names():
    suite = ElementTree.fromstring(junit(document(NASTY)))[0]
    assert suite.find("testcase").get("name") == NASTY.replace("\x07", r"\x07").replace("\n", r"\n") + "<=90"


def test_markdown():
    text = markdown(document())
    assert text.startswith("### ❌ Failed: 1 of 2 requirements met\n")
    assert r"| ✅ | nll\<=90 | nll is 84.32 ± 0.21 |" in text.splitlines()
    assert "| nll | 84.32 ± 0.21 | nats | exact | 1,000 |" in text.splitlines()
    assert "| psnr | not measured |" in text


def test_markdown_of_nasty_names():
    text = markdown(document(NASTY))
    assert not re.search(r"(?<!\\)<script", text) and not re.search(r"(?<!\\)[`*]", text)
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {4, 6}, "no name makes a column of its own"


@pytest.mark.parametrize("name", ["nll", NASTY])
def test_the_page_escapes_what_users_name(name):
    page = Page(html(document(name)))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "form"}
    assert page.says(f"{name} on {name}:test".replace("\x07", r"\x07").replace("\n", " ")) and page.says("84.32 ± 0.21")
    assert page.says("Failed: 1 of 2 requirements met") and page.says("not measured")


def test_the_page_needs_nothing_from_elsewhere():
    text = html(document())
    page = Page(text)
    assert "url(" not in text and "@import" not in text and "//" not in re.sub(r"<!.*?>|http-equiv", "", text)
    assert not any(name.startswith("on") or name in ("srcset", "action")
                   for _, attributes in page.elements for name in attributes)
    meta = {attributes.get("name") or attributes.get("http-equiv"): attributes.get("content")
            for tag, attributes in page.elements if tag == "meta"}
    assert meta["Content-Security-Policy"].startswith("default-src 'none'") and "width=device-width" in meta["viewport"]


# --- charts


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_lines_lie_where_the_numbers_are():
    root = drawn(charts.lines([[(0, 0.0), (5, 10.0), (10, 5.0)]], "<a&b>"))
    assert root.get("aria-label") == "<a&b>"
    (path,) = root.findall("path")
    (x0, y0), (x1, y1), (x2, y2) = ([float(n) for n in place.split()] for place in path.get("d")[1:].split("L"))
    assert x0 < x1 < x2 and x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.3), "up is more"
    assert {"0", "5", "10"} <= {text.text for text in root.findall("text")}


def test_a_long_line_is_thinned_and_an_early_peak_does_not_flatten_it():
    root = drawn(charts.lines([[(0, 1e6), *((i, 100.0 - i / 100) for i in range(1, 5000))]], "loss"))
    heights = [float(place.split()[1]) for place in root.find("path").get("d")[1:].split("L")]
    assert len(heights) <= 240 and max(heights) - min(heights) > 100


def test_a_histogram_counts():
    root = drawn(charts.histogram([[0.0] * 30 + [1.0] * 10, [1.0] * 5], "h", bins=2))
    first, second = ([[float(n) for n in place.split()] for place in path.get("d")[1:].split("L")]
                     for path in root.findall("path"))
    floor = first[0][1]
    assert floor - first[1][1] == pytest.approx(3 * (floor - first[3][1]), abs=0.3)
    assert second[1][1] == floor and second[3][1] < first[1][1]


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [-1e-12, 0.0], [1e9, 1e9 + 1], [0.0]])
def test_charts_of_next_to_nothing(values):
    points = [(value, value) for value in values]
    for svg in (charts.lines([points], "a"), charts.scatter([points], "a"), charts.histogram([values], "a"),
                charts.limit(values[0], 0.0, values[-1], True)):
        assert "nan" not in svg and drawn(svg).tag == "svg"


def test_a_limit_lies_beyond_the_interval_or_not():
    def places(value, bound):
        root = drawn(charts.limit(value, 1.96, bound, True))
        lines = {line.get("class").split()[0]: float(line.get("x2")) for line in root.findall("line")}
        return lines["interval"], lines["bound"]

    assert places(10, 12.5)[0] < places(10, 12.5)[1] and places(10, 11.5)[0] > places(10, 11.5)[1]


# --- through the command line


def test_scores_find_aurocs(gencli, small_data, tmp_path):
    """A model of dark pictures alone finds the bright ones unlikely."""
    pictures, run = np.load(small_data["image"]), "dark"
    np.save(tmp_path / "dark.npy", pictures["x"][pictures["y"] == 0])
    gencli("train", "gaussian", "dark.npy", "-o", run, "-q")
    done = gencli("evaluate", run, str(small_data["image"]), "--metrics", "likelihood", "--scores", "s.csv",
                  "--anomalies", "1", "--json")
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [row["label"] for row in rows] == [str(label) for label in pictures["y"]]
    nll = [float(row["nll"]) for row in rows]
    metrics = {m["name"]: m["value"] for m in done.json()["metrics"]}
    assert sum(nll) / len(nll) == pytest.approx(metrics["nll"], rel=1e-12)
    assert metrics["auroc_nll"] == pytest.approx(roc_auc_score(pictures["y"], nll)) and metrics["auroc_nll"] > 0.99
    gencli("evaluate", run, str(small_data["image"]), "--metrics", "likelihood", "--anomalies", "1",
           "--limit", "64", "--scores", "f.csv")
    assert (tmp_path / "s.csv").read_text().startswith((tmp_path / "f.csv").read_text()), "whatever comes with it"


def test_a_class_left_out_of_training_is_found(gencli, small_data, tmp_path):
    """`--without` is a part of how the model's data is read, and evaluating anomalies reads all classes."""
    data = str(small_data["image"])
    gencli("train", "gaussian", data, "--without", "1", "-o", "dark")
    done = gencli("evaluate", "dark", f"{data}:all", "--anomalies", "1", "--metrics", "likelihood,reconstruction",
                  "--scores", "s.csv", "--json")
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    error, labels = ([float(row[name]) for row in rows] for name in ("reconstruction_mse", "label"))
    assert len(rows) == 96 and done.json()["values"]["auroc_nll"] > 0.99
    assert done.json()["values"]["auroc_reconstruction_mse"] == pytest.approx(roc_auc_score(labels, error))
    assert gencli("evaluate", "dark", f"{data}:all", "--metrics", "likelihood", "--json").json()["data"]["n"] == 48


@pytest.mark.parametrize(("args", "code", "says"), [
    (["--metrics", "distribution", "--scores", "s.csv"], 2, "--metrics likelihood"),
    (["--metrics", "likelihood", "--anomalies", "dog"], 2, "'dog'")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None)
def test_scores_that_are_not_there(args, code, says, gencli, small_run, small_data, tmp_path):
    done = gencli("evaluate", str(small_run("vae", "image")), str(small_data["image"]), "--features", "pixels", *args,
                  code=code)
    assert says in one_line(done.stderr) and not (tmp_path / "s.csv").exists()


def test_figures_are_kept_in_the_run(gencli, small_run, small_data):
    run = small_run("classifier", "image")
    gencli("evaluate", str(run), str(small_data["image"]), "--html", "r.html")
    assert list((run / "eval").glob("*-confusion.png"))



@pytest.fixture
def report(gencli, small_run, small_data, tmp_path):
    def make(family: str, kind: str, *args: str) -> tuple[Page, dict]:
        done = gencli("evaluate", str(small_run(family, kind)), f"{small_data[kind]}:all", "--draw", "30", "--html",
                      "out/r.html", "--json", *args)
        return Page((tmp_path / "out/r.html").read_text()), done.json()

    return make


def test_a_page_of_pictures(report, gencli, small_run, tmp_path):
    page, found = report("vae", "image", "--features", "pixels", "--require", "elbo<=1e9")
    assert all(page.says(title) for title in (
        "Requirements", "Numbers", "Samples", "Reconstructions", "Interpolation",
        "Example by example", "Nearest", "Training", "How it was measured"))
    pictures = page.pictures()
    assert {picture.size for picture in pictures} >= {(7, 9)}
    gencli("sample", str(small_run("vae", "image")), "-n", "1", "-o", "one.png")
    assert pictures[0].tobytes() == Image.open(tmp_path / "one.png").tobytes(), "the first sample of the seed"
    assert sum(tag == "svg" for tag, _ in page.elements) >= 3
    assert all(page.says(metric["name"]) for metric in found["metrics"])


def test_a_page_of_rows(report):
    page, _ = report("gmm", "vector")
    assert page.pictures() == [] and page.says("Reconstructions") and page.says("Interpolation")
    labels = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert {"1", "2", "3"} <= set(labels) and "(across)" in " ".join(labels)


def test_a_page_of_texts(report):
    page, _ = report("ngram", "text")
    assert page.pictures() == [] and sum(tag == "pre" for tag, _ in page.elements) >= 6


def test_a_page_of_sounds(report, gencli, small_run, tmp_path):
    page, _ = report("wavenet", "audio")
    assert page.says("Samples") and page.says("Unseen examples") and page.says("Reconstructions")
    sizes = [picture.size for picture in page.pictures()]
    assert len(sizes) - 1 == sum(size == sizes[0] for size in sizes), "all can be compared; the nearest are one figure"
    sounds = [attributes["src"] for tag, attributes in page.elements if tag == "audio"]
    first, rate = soundfile.read(io.BytesIO(base64.b64decode(sounds[0].removeprefix("data:audio/wav;base64,"))))
    gencli("sample", str(small_run("wavenet", "audio")), "-n", "1", "-o", "one.wav")
    expected, _ = soundfile.read(tmp_path / "one.wav")
    assert rate == 8000 and np.array_equal(first, expected), "the first sample of the seed"


def test_all_reports_come_though_the_gate_fails(gencli, small_run, small_data, tmp_path):
    done = gencli("evaluate", str(small_run("vae", "image")), str(small_data["image"]), "--metrics", "likelihood",
                  "--require", "elbo<=-1", "--junit", "r.xml", "--markdown", "r.md", "--html", "r.html", "--json",
                  code=5)
    assert not done.json()["passed"]
    assert ElementTree.parse(tmp_path / "r.xml").getroot().get("failures") == "1"
    assert "Failed: 0 of 1" in (tmp_path / "r.md").read_text() and "Failed: 0 of 1" in (tmp_path / "r.html").read_text()


def test_data_called_script(gencli, small_run, small_data, tmp_path):
    (tmp_path / "<script>alert(1)<").mkdir()
    name = "<script>alert(1)<" + "/script>.npz"
    (tmp_path / name).write_bytes(small_data["image"].read_bytes())
    gencli("evaluate", str(small_run("vae", "image")), name, "--metrics", "likelihood", "--require", "elbo<=1e9",
           "--junit", "r.xml", "--markdown", "r.md", "--html", "r.html")
    page = Page((tmp_path / "r.html").read_text())
    assert "script" not in {tag for tag, _ in page.elements} and page.says(name)
    assert name in ElementTree.parse(tmp_path / "r.xml").getroot()[0].get("name")
    assert r"\<script\>" in (tmp_path / "r.md").read_text()


def test_the_same_seed_gives_the_same_document_and_page(gencli, small_run, small_data, monkeypatch, tmp_path):
    args = ["evaluate", str(small_run("vae", "image")), str(small_data["image"]), "--draw", "30", "--seed", "3",
            "--json", "--html"]
    first = gencli(*args, "1.html").stdout
    monkeypatch.setenv("GENCLI_BATCH_SIZE", "7")
    assert gencli(*args, "2.html").stdout == first != gencli(*args, "3.html", "--seed", "4").stdout
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()
    json.loads(first)


def test_the_card_of_a_run(gencli, small_data, tmp_path):
    gencli("train", "vae", str(small_data["image"]), "-o", "run", "--steps", "2", "--latent", "3", "--width", "4", "-q")
    assert (tmp_path / "run" / "samples" / "step-2.png").stat().st_size, "a preview, however short the training"
    value = gencli("evaluate", "run", f"{small_data['image']}:all", "--draw", "0", "--json").json()["values"]["elbo"]
    gencli("export", "run", "-o", "card.md")
    card = (tmp_path / "card.md").read_text()
    head, rest = card.removeprefix("---\n").split("---\n", 1)
    assert dict(line.split(": ", 1) for line in head.splitlines())["tags"] == '["gencli", "vae", "image"]'
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for said in (config["date"], "command: gencli ", f"torch {config['versions']['torch']}", "parameters: ",
                 config["fingerprint"][:16], "![samples](<run/samples/step-2.png>)", "| elbo | ", f"{value:.2f}"[:4],
                 "The bound that the model was trained on", "| latent | 3 |", "| batch\\_size | 128 |"):
        assert said in rest, said
    gencli("export", "run/model.safetensors", "-o", "alone.md")
    assert "parameters: " in (tmp_path / "alone.md").read_text()
    (tmp_path / "run" / "eval" / "x.json").write_text('{"metrics": [1, {"name": "\\u001b[1m|\\n# x"}], "data": 3}')
    gencli("export", "run", "-o", "card.md", "--quiet")
    assert "\x1b" not in (tmp_path / "card.md").read_text() and "\n# x" not in (tmp_path / "card.md").read_text()
