"""Who may import whom (DESIGN, section 2) and who may name a kind or a family, read from the source; and that listing
commands imports no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gencli import registry

ROOT = Path(__file__).parent.parent / "gencli"
FILES = sorted(ROOT.rglob("*.py"))
FAMILIES = {path.stem for path in (ROOT / "families").glob("*.py")} - {"__init__"}

# From the top down: a module imports only what stands below its own layer, and the modules of its own package. Those
# of one layer that are not one package do not import each other.
LAYERS = [
    {"__main__", "manual"}, {"app"}, {"commands"}, {"console"}, {"progress"}, {"sweeps"},
    {"training", "sharing", "ledger"},
    {"live", "trackers"}, {"trainer"}, {"sharding"},
    {"presets", "schedule", "checkpoints"}, {"optimisers"}, {"reports"}, {"metrics"}, {"codec", "editing", "sampling"},
    {"inference"}, {"gencli"}, {"runs", "status"}, {"encoders"}, {"families"}, {"data"}, {"streams"}, {"layers"},
    {"model"}, {"kinds"}, {"terminal"}, {"kind"}, {"clock", "columns", "long_texts", "pictures", "view"},
    {"format", "examples"}, {"files"}, {"dataset"}, {"spec"}, {"registry"}, {"cache", "hub", "manifests"},
    {"publish", "tensors"},
    {"device"}, {"settings"},
    {"entropy_coding", "headers", "tables", "limits", "messages", "muon", "ragged", "stopping", "tokens"},
    {"adamw", "charts", "errors", "ink", "line_drawing", "parts", "rng", "spectrogram", "version"}, {"escape", "lazy"},
]
RANK = {name: rank for rank, layer in enumerate(reversed(LAYERS)) for name in layer}

# Some layers are allowed less than all that stands below them.
HELPERS = {"adamw", "errors", "escape", "lazy", "limits", "messages", "muon", "rng", "stopping", "tables"}
MAY = {
    "families": {"ink", "kinds", "layers", "model", "spectrogram", "view"} | HELPERS,
    "layers": {"columns", "kinds", "model", "view"} | HELPERS,
    "model": {"rng", "spec"},
    "kinds": {"charts", "clock", "columns", "dataset", "examples", "files", "format", "kind", "line_drawing",
              "long_texts", "pictures", "publish", "spec", "spectrogram", "tokens", "view", *HELPERS},
    "spec": {"lazy", "registry"},
    "registry": {"errors", "lazy", "stopping"},
}

# Metrics about one kind; kinds, families, and the parts that families share know kinds by profession.
ABOUT_ONE_KIND = {"metrics/audio.py", "metrics/boosted.py", "metrics/forecasts.py", "metrics/inception.py",
                  "metrics/series.py", "metrics/strokes.py", "metrics/table.py", "metrics/tracks.py",
                  "metrics/video.py", "metrics/text.py",
                  "metrics/translation.py"}
LOOK_UPS = {"endswith", "get", "kind", "named", "pop", "setdefault", "startswith"}
KNOWS_KINDS = ("kinds/", "families/", "layers/", "registry.py")


# ---------------------------------------------------------------------------------------------------------------------
# What the source says


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree without those that only a type checker reads; the bodies of functions are included."""
    yield node
    for child in node.orelse if is_type_checking(node) else ast.iter_child_nodes(node):
        yield from executed(child)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in FILES}


def imports(tree: ast.AST, module: str) -> set[str]:
    """gencli's modules that the source of a module imports anywhere, but for types; a submodule is not its package."""
    names: set[str] = set()
    for node in executed(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in MODULES else str(node.module))
    return {name for name in names if name in MODULES} - {module}


def layer(module: str) -> str:
    """`gencli.data.tars` -> data."""
    return module.split(".")[1] if "." in module else module


def misdirected(module: str, imported: set[str]) -> set[str]:
    """What a module imports and may not."""
    own = layer(module)
    return {name for name in imported if (other := layer(name)) != own
            and (RANK[other] >= RANK[own] or (own in MAY and other not in MAY[own]))}


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of nodes that all reach each other (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = {stack.pop()}
            while node not in component:
                component.add(stack.pop())
            found.append(component)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return [component for component in found if len(component) > 1]


def names_of_kinds(tree: ast.AST, kinds: set[str], specs: set[str]) -> list[str]:
    """Where a source names a kind of example: imports it or its Spec, or compares or looks up its name."""
    found: list[str] = []

    def note(node: ast.AST, what: str) -> None:
        found.append(f"line {node.lineno}: {what}")  # type: ignore[attr-defined]

    def text(node: ast.AST | None) -> bool:
        return isinstance(node, ast.Constant) and node.value in kinds

    def inside(node: ast.AST) -> bool:
        return any(text(part) for part in ast.walk(node))

    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if any(alias.name.startswith("gencli.kinds") for alias in names):
                note(node, "imports a kind")
            case ast.ImportFrom(module=str(module), names=names):
                if module.startswith("gencli.kinds") or (module == "gencli" and "kinds" in {a.name for a in names}) \
                        or specs & {alias.name for alias in names}:
                    note(node, "imports a kind")
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in specs:
                note(node, f"uses {name}")
            case ast.Constant(value=str(value)) if value.startswith("gencli.kinds."):
                note(node, "names the module of a kind")
            case ast.Compare() if inside(node):
                note(node, "compares with the name of a kind")
            case ast.MatchValue(value=value) if text(value):
                note(node, "matches the name of a kind")
            case ast.Dict(keys=keys) if any(text(key) for key in keys):
                note(node, "has the name of a kind as a key")
            case ast.Subscript(slice=place) if text(place):
                note(node, "looks up the name of a kind")
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[first, *_]) if text(first) \
                    and name in LOOK_UPS:
                note(node, f"calls {name} with the name of a kind")
    return found


def knows_kinds(path: Path) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return name.startswith(KNOWS_KINDS) or name in ABOUT_ONE_KIND


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    return {module_name(path): imports(ast.parse(path.read_text()), module_name(path)) for path in FILES}


# ---------------------------------------------------------------------------------------------------------------------
# The rules


def test_every_module_has_a_layer():
    assert {layer(module) for module in MODULES} == set(RANK)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module, graph):
    assert not misdirected(module, graph[module])


@pytest.mark.parametrize("module", sorted(f"gencli.families.{name}" for name in FAMILIES))
def test_no_family_imports_another(module, graph):
    assert not {name for name in graph[module] if layer(name) == "families"}


def test_the_registry_alone_finds_families(graph):
    assert not {module for module in graph if any(layer(name) == "families" for name in graph[module])}


def test_no_circle_of_modules(graph):
    assert circles(graph) == []


def test_no_circle_of_packages(graph):
    packages: dict[str, set[str]] = {}
    for module, imported in graph.items():
        packages.setdefault(layer(module), set()).update(map(layer, imported))
    assert circles({name: others - {name} for name, others in packages.items()}) == []


@pytest.mark.parametrize("path", [path for path in FILES if not knows_kinds(path)],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_only_kinds_know_kinds(path):
    kinds = {entry.name for entry in registry.kinds.values() if entry.source == "gencli"}
    specs = {registry.kind(name).Spec.__name__ for name in kinds}
    assert names_of_kinds(ast.parse(path.read_text()), kinds, specs) == []


def test_metrics_about_one_kind_are_few():
    assert all((ROOT / name).is_file() for name in ABOUT_ONE_KIND)
    modules = {f"gencli.{name.removesuffix('.py').replace('/', '.')}" for name in ABOUT_ONE_KIND}
    assert {group.path.partition(":")[0] for group in registry.metrics.values() if group.kinds
            and group.source == "gencli" and len(group.kinds) == 1} <= modules


# ---------------------------------------------------------------------------------------------------------------------
# The rules find what breaks them


@pytest.mark.parametrize(("module", "source"), [
    ("gencli.data.tars", "from gencli.inference import sample"),
    ("gencli.streams.tar", "from gencli.data import load"),
    ("gencli.streams.tar", "def late():\n    from gencli.data.tars import from_tar"),
    ("gencli.metrics.text", "import gencli.trainer"),
    ("gencli.kinds.text", "from gencli.model import Batch"),
    ("gencli.kinds.text", "from gencli import runs"),
    ("gencli.layers.gate", "from gencli.families.vae import VAE"),
    ("gencli.families.vae", "from gencli import streams"),
    ("gencli.families.vae", "try:\n    import gencli.data.orders\nexcept ImportError:\n    pass"),
    ("gencli.registry", "from gencli.kind import Kind"),
    ("gencli.runs", "from gencli import load"),
    ("gencli.checkpoints", "from gencli.schedule import Schedule"),
])
def test_an_import_that_points_the_wrong_way_is_found(module, source):
    assert misdirected(module, imports(ast.parse(source), module))


@pytest.mark.parametrize(("module", "source"), [
    ("gencli.data.tars", "from gencli.streams import read_tar\nfrom gencli import registry"),
    ("gencli.data.tars", "from gencli.data.arrays import load_npy"),
    ("gencli.streams.tar", "if TYPE_CHECKING:\n    from gencli.data import load"),
    ("gencli.families.vae", "from gencli.kinds.image import ImageSpec"),
])
def test_an_import_that_points_down_is_left_alone(module, source):
    assert not misdirected(module, imports(ast.parse(source), module))


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [{"b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    source = ("if TYPE_CHECKING:\n    import gencli.model\nelse:\n    import gencli.spec\n"
              "def late():\n    import gencli.rng")
    assert imports(ast.parse(source), "gencli.kind") == {"gencli.spec", "gencli.rng"}


@pytest.mark.parametrize("source", [
    "isinstance(spec, FilmSpec)",
    "isinstance(spec, (int, film.FilmSpec))",
    "from gencli.kinds.film import to_frames",
    "from gencli.kinds import film",
    "from gencli import kinds",
    "import gencli.kinds.film",
    "from gencli.spec import FilmSpec",
    "importlib.import_module('gencli.kinds.film')",
    "def late():\n    if spec.kind == 'film': pass",
    "spec.kind != 'film'",
    "spec.kind in ('text', 'film')",
    "spec.kind not in {'film'}",
    "'film' in model.kinds",
    "{'film': 1}[spec.kind]",
    "table['film']",
    "table.get('film', 3)",
    "registry.kind('film').ending(spec)",
    "match spec.kind:\n    case 'film':\n        pass",
    "match spec.kind:\n    case 'text' | 'film':\n        pass",
    "match spec:\n    case FilmSpec(rate=3):\n        pass",
])
def test_a_kind_that_is_named_is_found(source):
    assert names_of_kinds(ast.parse(source), {"film"}, {"FilmSpec"})


@pytest.mark.parametrize("source", [
    '"""A film is a kind."""',
    "print('film')",
    "isinstance(x, Spec)",
    "SubElement(svg, 'film')",
    "registry.kind(spec.kind).film(batch)",
    "spec.kind == other.kind",
])
def test_what_names_no_kind_is_left_alone(source):
    assert names_of_kinds(ast.parse(source), {"film"}, {"FilmSpec"}) == []


# ---------------------------------------------------------------------------------------------------------------------
# More that is read from the source


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_registry_names_a_family(path):
    if path.relative_to(ROOT).as_posix().startswith(("families/", "registry.py")):
        return
    def strings(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if not (isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal"):  # a distribution, perhaps
            for child in ast.iter_child_nodes(node):
                yield from strings(child)

    assert not {*strings(ast.parse(path.read_text()))} & FAMILIES


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_typers_private_parts_are_left_alone(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not {name for name in names if name.startswith(("click", "typer._"))}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["families"], ["families", "--presets"],
                                  ["families", "vae"], ["train", "--help"], ["train", "vae", "--help"],
                                  ["sample", "--help"], ["encode", "--help"], ["interpolate", "--help"],
                                  ["evaluate", "--help"], ["train", "vae", "--help"]], ids=" ".join)
def test_listing_imports_no_torch(args):
    code = f"import sys; from gencli.app import run; sys.exit(run({args}) or 10 * ('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_no_pickle():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text and "torch.load(" not in text and "allow_pickle=True" not in text, path


def test_only_compiling_imports_the_compiler(tmp_path):
    """torch's compiler takes longer to import than all the rest of torch, and torchvision imports it."""
    run = str(tmp_path / "run")
    train = ["train", "gan", "digits", "--net", "mlp", "--limit", "64", "-q", "-o", run, "--steps"]
    others = [["encode", run, "digits:test", "--limit", "2", "-q", "-o", f"{run}/codes.npz"],
              ["sample", run, "-n", "5", "-q", "-o", f"{tmp_path}/sheet.png"],
              ["evaluate", run, "digits:test", "--limit", "20", "--draw", "20", "-q", "--features", "pixels",
               "--training", "digits", "--html", f"{tmp_path}/page.html"]]
    code = f"""if True:
        import sys
        from gencli.app import run
        codes = [run(args) for args in ({[*train, "2"]}, {[*train, "3", "--resume"]}, *{others})]
        sys.exit(str([*codes, "torch._dynamo" in sys.modules, "torchvision" in sys.modules]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "[0, 0, 0, 0, 0, False, False]", done.stderr
    assert list(tmp_path.glob("run/eval/*-nearest.png")) and (tmp_path / "sheet.png").stat().st_size
