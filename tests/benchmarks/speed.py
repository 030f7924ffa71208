"""Speed as ratios against a peer in the same run: `python tests/benchmarks/speed.py [NAME...]`, names as at the end.

Each comparison alternates the two sides and takes the median, so that a busy machine harms both alike. Results stand in
RESULTS.md. Nothing here is a test: no bound is asserted.
"""

import itertools
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BARE = """
import typer
app = typer.Typer()
@app.callback()
def root(): "Deep generative models."
for name in "train sample encode interpolate evaluate export families".split():
    app.command(name)(lambda: print("ok"))
app()
"""


def startup(rounds: int = 15) -> None:
    """`gencli --help` and `gencli families` against a bare Typer application with seven commands; the help of a family,
    and a sample of a small model to its first byte, against the import of torch."""
    with tempfile.TemporaryDirectory() as folder:
        small = f"{folder}/run"
        run(["-m", "gencli", "train", "vae", "digits", "--net", "mlp", "--steps", "5", "-q", "-o", small])

        def first_byte() -> None:
            with subprocess.Popen([sys.executable, "-m", "gencli", "sample", small, "-n", "1", "-q"],
                                  stdout=subprocess.PIPE) as process:
                assert process.stdout and process.stdout.read(1)

        for what, work in (("gencli train vae --help", lambda: run(["-m", "gencli", "train", "vae", "--help"])),
                           ("gencli sample, first byte", first_byte)):
            ours, theirs = alternate(work, lambda: run(["-c", "import torch"]), rounds)
            report(what, ours, theirs, "s", "import torch")
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        for args in (["--help"], ["families"]):
            peer = [str(bare), "--help" if args == ["--help"] else "families"]
            ours, theirs = alternate(lambda a=args: run(["-m", "gencli", *a]), lambda p=peer: run(p), rounds)
            report(f"gencli {' '.join(args)}", ours, theirs, "s", "bare Typer application")


def loop(steps: int = 400, rounds: int = 5) -> None:
    """The trainer against a hand-written loop: VAE mlp, batch 128, bf16, the same settings and moving average."""
    import torch

    from gencli.data import load
    from gencli.families.vae import VAE, VAEConfig
    from gencli.model import Batch
    from gencli.rng import StepStream
    from gencli.settings import TrainSettings
    from gencli.trainer import Trainer

    data = load("digits", dict(binarize="dynamic"))

    def model() -> VAE:
        torch.manual_seed(0)
        return VAE(VAEConfig(net="mlp"), data.spec)

    def ours() -> None:
        Trainer(model(), data, TrainSettings(steps=steps, batch_size=128, ema=0.999, lr=1e-3, precision="bf16",
                                             preview_every=0)).run()

    def bare() -> None:
        net = model()
        optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0, fused=True)
        average = [p.detach().clone() for p in net.parameters()]
        generator = torch.Generator().manual_seed(0)
        per_epoch = len(data) // 128
        for step in range(steps):
            if step % per_epoch == 0:
                order = torch.randperm(len(data), generator=generator)
            raw = data.examples[order[step % per_epoch * 128 : (step % per_epoch + 1) * 128]]
            x = (raw > torch.randint(255, raw.shape, generator=generator)).float()
            with torch.autocast("cpu", torch.bfloat16):
                loss = net.loss(Batch(x), StepStream(128, generator))
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()
            torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 0.001)

    report("training loop", *alternate(ours, bare, rounds), "s", "hand-written loop")


def usual(steps: int = 120, rounds: int = 3) -> None:
    """Our trainer against the same network trained by DataLoader with transforms, float32 and NCHW."""
    import numpy as np
    import torch
    from torchvision.transforms import v2

    from gencli.data import load
    from gencli.model import Batch, Model
    from gencli.rng import StepStream
    from gencli.runs import build
    from gencli.settings import TrainSettings
    from gencli.trainer import Trainer

    batch_size = 128
    for family, config, settings in (("vae", {}, dict(binarize="dynamic")), ("gan", {}, dict()),
                                     ("autoencoder", {"components": 0}, dict()),
                                     ("autoencoder", {"components": 0, "widths": "128"}, dict())):
        data = load("digits", settings)
        dynamic = "binarize" in settings

        def model(family: str = family, config: dict = config, spec: object = data.spec) -> Model:
            torch.manual_seed(0)
            return build(family, config, spec)

        def ours(data: object = data, model: Callable[[], Model] = model) -> None:
            Trainer(model(), data, TrainSettings(steps=steps, batch_size=batch_size, preview_every=0)).run()

        class Pictures(torch.utils.data.Dataset):
            arrays = data.examples.numpy().transpose(0, 2, 3, 1)
            transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
            binary = dynamic

            def __len__(self) -> int:
                return len(self.arrays)

            def __getitem__(self, index: int) -> torch.Tensor:
                x = self.transform(np.ascontiguousarray(self.arrays[index]))
                return torch.bernoulli(x) if self.binary else x

        def theirs(model: Callable[[], Model] = model, pictures: torch.utils.data.Dataset = Pictures()) -> None:
            net = model()
            (phase,) = net.phases()
            optimisers = [torch.optim.Adam(player.parameters, lr=1e-3, betas=player.betas) for player in phase.players]
            loader = torch.utils.data.DataLoader(pictures, batch_size, shuffle=True, drop_last=True)
            generator = torch.Generator().manual_seed(0)
            done = 0
            while done < steps:
                for x in loader:
                    for player, optimiser in zip(phase.players, optimisers, strict=True):
                        net.zero_grad()
                        player.loss(Batch(x), StepStream(len(x), generator)).total.backward()
                        optimiser.step()
                    done += 1
                    if done == steps:
                        break

        a, b = alternate(ours, theirs, rounds)
        report(f"{family} training, {steps * batch_size / median(a):.0f} examples/s", a, b, "s",
               "DataLoader, float32, NCHW")


def translation(rounds: int = 3) -> None:
    """pix2pix on facades (128 pixels, batches of 4) and both phases of srgan (squares of 96 pixels made from a quarter,
    batches of 16): the trainer against the usual loop with the same networks, losses and steps.

    The peer has its pictures from a DataLoader with transforms, float32 and NCHW, and the picture that a
    generator makes serves critic and generator, as in the public code of Isola et al. 2017; ours makes two.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from torchvision.transforms import v2

    from gencli.data import load
    from gencli.layers.translation import Translator
    from gencli.runs import build
    from gencli.settings import TrainSettings
    from gencli.trainer import Trainer

    class Pairs(torch.utils.data.Dataset):
        def __init__(self, source: Tensor, target: Tensor, size: tuple[int, int] | None):
            self.pairs = [(a.numpy(), b.numpy()) for a, b in zip(source, target, strict=True)]
            self.read = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])
            # Both sides as one picture of six channels, so that they are cut and mirrored alike.
            self.change = v2.Compose([v2.Resize([round(1.1 * side) for side in size]), v2.RandomCrop(size),
                                      v2.RandomHorizontalFlip()]) if size else None

        def __len__(self) -> int:
            return len(self.pairs)

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            source, target = (self.read(side.transpose(1, 2, 0)) for side in self.pairs[index])
            if self.change is None:
                return (source.flip(2), target.flip(2)) if torch.rand(()) < 0.5 else (source, target)
            source, target = self.change(torch.cat([source, target])).chunk(2)
            return source, target

    def loop(net: Translator, pairs: Pairs, batch_size: int, steps: int, alone: int) -> None:
        enlarges = net.factor > 1
        net.to(memory_format=torch.contiguous_format).train()
        critic_optimiser, optimiser = (torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999))
                                       for part in (net.critic, net.generator))
        loader, done = torch.utils.data.DataLoader(pairs, batch_size, shuffle=True, drop_last=True), 0
        while done < steps:
            for source, target in loader:
                noise = torch.randn(len(source), *net.code_shape)
                made = net.generator(source, None if done < alone else noise)
                loss = (made - target).abs().mean()
                if done >= alone:
                    beside = [] if enlarges else [source]
                    critic_optimiser.zero_grad()
                    real = net.critic(torch.cat([*beside, target], 1))
                    fake = net.critic(torch.cat([*beside, made.detach()], 1))
                    (F.softplus(-real) + F.softplus(fake)).mean().backward()
                    critic_optimiser.step()
                    net.critic.requires_grad_(False)
                    found = net.critic.features(torch.cat([*beside, made], 1))
                    adversarial = F.softplus(-net.critic.score(found[-1])).mean()
                    if enlarges:
                        features = [F.l1_loss(a, b) for a, b in zip(found, net.critic.features(target), strict=True)]
                        loss = loss / 2 + 0.1 * sum(features) / len(features) + 5e-3 * adversarial
                    else:
                        loss = 100 * loss + adversarial
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                net.critic.requires_grad_(True)
                done += 1
                if done == steps:
                    break

    for family, what, reading, batch_size, steps, alone in (
            ("pix2pix", "facades", dict(pair="right", size="128"), 4, 12, 0),
            ("srgan", "bsds500:all", dict(crop="96", condition="downscale=4"), 16, 6, 4)):
        data = load(what, reading)

        def model(family: str = family, spec: object = data.spec) -> Translator:
            torch.manual_seed(0)
            return build(family, {}, spec)

        def ours(data: object = data, batch_size: int = batch_size, steps: int = steps,
                 model: Callable[[], Translator] = model) -> None:
            Trainer(model(), data, TrainSettings(steps=steps, batch_size=batch_size, preview_every=0)).run()

        first = data.batch(torch.arange(min(len(data), 64)))
        pairs = Pairs(*((255 * x).round().byte() for x in (first.condition.x, first.x)),
                      None if alone else first.x.shape[2:])

        def theirs(model: Callable[[], Translator] = model, pairs: Pairs = pairs, batch_size: int = batch_size,
                   steps: int = steps, alone: int = alone) -> None:
            loop(model(), pairs, batch_size, steps, alone)

        a, b = alternate(ours, theirs, rounds)
        report(f"{family} training, {steps * batch_size / median(a):.1f} pairs/s", a, b, "s",
               "usual loop, DataLoader, float32, NCHW")


def gmm(components: int = 50, rounds: int = 3) -> None:
    """An EM iteration of a diagonal mixture on MNIST, ours from the bytes and scikit-learn's from a float64 array."""
    import torch
    from sklearn.mixture import GaussianMixture

    from gencli.data import load
    from gencli.families.gmm import GMM, GMMConfig
    from gencli.trainer import Trainer, TrainSettings

    data = load("mnist", dict())
    torch.manual_seed(0)
    model = GMM(GMMConfig(components=components, covariance="diagonal"), data.spec)
    Trainer(model, data, TrainSettings(epochs=1, batch_size=1024, preview_every=0)).run()
    x = data.examples.flatten(1).double().div_(255).numpy()
    peer = GaussianMixture(components, covariance_type="diag", reg_covar=model.config.floor)
    peer.weights_, peer.means_ = model.weights.numpy().copy(), model.means.numpy().copy()
    peer.precisions_cholesky_ = 1 / model.factor.numpy()
    found: dict[str, float] = {}

    def ours() -> None:
        for part in torch.arange(len(data)).split(1024):
            model.expect(data.batch(part))
        model.maximise()
        found["ours"] = -model._report()["nll"]

    def theirs() -> None:
        found["scikit-learn"], responsibilities = peer._e_step(x)
        peer._m_step(x, responsibilities)

    report(f"EM iteration, {components} diagonal components", *alternate(ours, theirs, rounds), "s", "scikit-learn")
    print(f"log-likelihood after as many iterations: {found}")


def rbm(hidden: int = 500, rounds: int = 3) -> None:
    """An epoch of PCD-1 on 10,000 binary MNIST digits, as many chains as examples in a batch, against scikit-learn.

    In batches of 100 and of 10, scikit-learn's default, the same for both: equal updates.
    """
    import torch
    from sklearn.neural_network import BernoulliRBM

    from gencli.data import load
    from gencli.families.rbm import RBM, RBMConfig
    from gencli.trainer import Trainer, TrainSettings

    data = load("mnist", dict(binarize="threshold"), limit=10_000)
    x = data.batch(torch.arange(len(data))).x.flatten(1).numpy()
    for batch_size in (100, 10):
        def ours(size: int = batch_size) -> None:
            torch.manual_seed(0)
            model = RBM(RBMConfig(hidden=hidden, chains=size), data.spec)
            Trainer(model, data, TrainSettings(epochs=1, batch_size=size, preview_every=0)).run()

        def theirs(size: int = batch_size) -> None:
            BernoulliRBM(hidden, batch_size=size, n_iter=1, random_state=0).fit(x)

        report(f"epoch of PCD-1, {hidden} hidden units, batches of {batch_size}", *alternate(ours, theirs, rounds), "s",
               "scikit-learn")


def pca(components: int = 30, rounds: int = 5) -> None:
    """Components of the 60,000 MNIST digits, ours from the bytes, scikit-learn's from arrays of float64 and float32."""
    from sklearn.decomposition import PCA as Peer

    from gencli.data import load
    from gencli.families.pca import PCA, PCAConfig
    from gencli.trainer import Trainer, TrainSettings

    data = load("mnist", dict())
    x = data.examples.flatten(1).double().div_(255).numpy()

    def ours() -> None:
        model = PCA(PCAConfig(components=components), data.spec)
        Trainer(model, data, TrainSettings(epochs=1, batch_size=1024, preview_every=0)).run()

    for array in (x, x.astype("float32")):
        def theirs(array: object = array) -> None:
            Peer(components, random_state=0).fit(array)

        report(f"{components} components of {len(x)} x 784", *alternate(ours, theirs, rounds), "s",
               f"scikit-learn's PCA in {array.dtype}")


def hmm(states: int = 32, passes: int = 2, rounds: int = 3) -> None:
    """Passes of Baum-Welch over 100 passages of 1,000 characters of Shakespeare, against hmmlearn, which scales."""
    import numpy as np
    import torch
    from hmmlearn.hmm import CategoricalHMM

    from gencli.data import load
    from gencli.families.hmm import HMM, HMMConfig

    data = load("shakespeare", {"length": 1000}, split="train", limit=100)
    batch = data.batch(torch.arange(100))
    x, lengths = batch.x.reshape(-1, 1).numpy(), [1000] * 100
    vocabulary = len(data.spec.vocabulary)
    model = HMM(HMMConfig(states=states), data.spec)

    def ours() -> None:
        for _ in range(passes):
            model.expect(batch)
            model.maximise()

    def theirs() -> None:
        peer = CategoricalHMM(states, n_features=vocabulary, n_iter=passes, tol=-np.inf, random_state=0,
                              implementation="scaling")
        peer.fit(x, lengths)

    report(f"{passes} passes over {len(x)} characters, {states} states", *alternate(ours, theirs, rounds), "s",
           "hmmlearn")


def lsi(components: int = 100, count: int = 100_000, rounds: int = 3) -> None:
    """Latent semantic indexing of 100,000 texts of 20 words by Zipf's law, 30,000 different ones.

    Ours counts and weights the words too; scikit-learn's TruncatedSVD, with as many products, gets the finished matrix.
    """
    import numpy as np
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    from gencli.data import load
    from gencli.families.pca import PCA, PCAConfig
    from gencli.trainer import Trainer, TrainSettings

    chances = 1 / np.arange(10, 30_010)
    words = np.random.default_rng(0).choice(30_000, (count, 20), p=chances / chances.sum())
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        path.write_text("\n".join(texts) + "\n")
        data = load(str(path), dict(lines=True, unit="words"))
    x = TfidfVectorizer().fit_transform(texts)

    def ours() -> None:
        model = PCA(PCAConfig(components=components), data.spec)
        Trainer(model, data, TrainSettings(epochs=1, batch_size=1024, preview_every=0)).run()

    for matrix in (x, x.astype("float32")):
        def theirs(matrix: object = matrix) -> None:
            TruncatedSVD(components, random_state=0).fit(matrix)

        report(f"{components} components of {len(data)} texts", *alternate(ours, theirs, rounds), "s",
               f"scikit-learn's TruncatedSVD in {matrix.dtype} of {x.shape[0]}")


def pixelcnn(batch_size: int = 16, steps: int = 20, rounds: int = 3) -> None:
    """The default network: 16 pictures sampled against a full pass for every pixel; training steps.

    Of the 784 passes 8 are measured and counted 98 times. Training is against a plain loop in float32 and NCHW.
    """
    import torch

    from gencli.data import load
    from gencli.families.pixelcnn import PixelCNN, PixelCNNConfig
    from gencli.model import Batch
    from gencli.rng import ExampleStreams, StepStream
    from gencli.trainer import Trainer, TrainSettings

    data = load("digits", dict(binarize="dynamic"))

    def model() -> PixelCNN:
        torch.manual_seed(0)
        return PixelCNN(PixelCNNConfig(), data.spec)

    net = model().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    x = data.batch(torch.arange(16)).x

    def sample() -> None:
        with torch.no_grad():
            net.sample(ExampleStreams(0, torch.arange(16)))

    def passes() -> None:
        for _ in range(8):
            features, scaled = net(x)
            net.output.logits(features, scaled, 0)

    ours, theirs = alternate(sample, passes, rounds)
    report("16 pictures sampled", ours, [98 * seconds for seconds in theirs], "s", "784 full passes (8 measured)")

    def train() -> None:
        Trainer(model(), data, TrainSettings(steps=steps, batch_size=batch_size, preview_every=0)).run()

    def plain() -> None:
        net = model()
        optimiser = torch.optim.Adam(net.parameters())
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            indices = torch.randint(len(data), (batch_size,), generator=generator)
            rng = StepStream(batch_size, generator)
            optimiser.zero_grad()
            net.loss(Batch(data.batch(indices, rng=rng).x.contiguous()), rng).total.backward()
            optimiser.step()

    ours, theirs = alternate(train, plain, rounds)
    report(f"pixelcnn training, {steps * batch_size / median(ours):.0f} pictures/s", ours, theirs, "s", "float32, NCHW")


def pixelrnn(batch_size: int = 16, steps: int = 10, rounds: int = 3) -> None:
    """The default networks: 16 pictures sampled against a full pass for every pixel; training against `pixelcnn`.

    Of the 784 passes 4 are measured and counted 196 times.
    """
    import torch

    from gencli import runs
    from gencli.data import load
    from gencli.model import Model
    from gencli.rng import ExampleStreams
    from gencli.trainer import Trainer, TrainSettings

    data = load("digits", dict(binarize="dynamic"))

    def model(family: str, **config: str) -> Model:
        torch.manual_seed(0)
        return runs.build(family, config, data.spec)

    def train(net: Model) -> None:
        Trainer(net, data, TrainSettings(steps=steps, batch_size=batch_size, preview_every=0)).run()

    for name in ("diagonal", "row"):
        net, x = model("pixelrnn", net=name).eval().requires_grad_(False), data.batch(torch.arange(16)).x

        def sample(net: Model = net) -> None:
            with torch.no_grad():
                net.sample(ExampleStreams(0, torch.arange(16)))

        def passes(net: Model = net, x: torch.Tensor = x) -> None:
            for _ in range(4):
                net(x)

        ours, theirs = alternate(sample, passes, rounds)
        report(f"16 pictures sampled, {name}", ours, [196 * seconds for seconds in theirs], "s",
               "784 full passes (4 measured)")
        ours, theirs = alternate(lambda name=name: train(model("pixelrnn", net=name)), lambda: train(model("pixelcnn")),
                                 rounds)
        report(f"training, {name}, {steps * batch_size / median(ours):.0f} pictures/s", ours, theirs, "s", "pixelcnn")


def transformer(steps: int = 10, rounds: int = 5) -> None:
    """The small network, windows of 128: training against nanoGPT's model of its size in nanoGPT's loop, and 64 texts
    written against a pass over the last 128 tokens for every token, as nanoGPT writes.

    nanoGPT's model (Karpathy, https://github.com/karpathy/nanoGPT, model.py): learnt positions, LayerNorm, GELU, fused
    attention, tied embeddings, AdamW that decays matrices. Its passes are of our network, in float32; ours in float64.
    """
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from gencli.data import load
    from gencli.families.transformer import Transformer, TransformerConfig
    from gencli.rng import ExampleStreams
    from gencli.trainer import Trainer, TrainSettings

    data = load("shakespeare", dict())
    config = TransformerConfig(window=128, dropout=0.0)
    width, layers, heads = config.width, config.layers, config.heads
    vocabulary, window, batch_size = len(data.spec.vocabulary), config.window, 32

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.attn, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width, bias=False), nn.GELU(),
                                     nn.Linear(4 * width, width, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in self.attn(self.ln_1(x)).chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).flatten(2))
            return x + self.mlp(self.ln_2(x))

    class NanoGPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(window, width)
            self.layers = nn.Sequential(*(Layer() for _ in range(layers)))
            self.ln = nn.LayerNorm(width, bias=False)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.ln(self.layers(self.wte(x) + self.wpe(torch.arange(x.shape[1]))))
            return F.cross_entropy(F.linear(h, self.wte.weight).view(-1, vocabulary), y.view(-1))

    def model() -> Transformer:
        torch.manual_seed(0)
        return Transformer(config, data.spec)

    def train() -> None:
        Trainer(model(), data, TrainSettings(steps=steps, batch_size=batch_size, lr=1e-3, grad_clip=1.0,
                                             weight_decay=0.1, preview_every=0)).run()

    def loop() -> None:
        torch.manual_seed(0)
        net = NanoGPT()
        decayed = [p for p in net.parameters() if p.dim() > 1]
        others = [p for p in net.parameters() if p.dim() < 2]
        optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}],
                                      lr=1e-3, betas=(0.9, 0.99))
        document = data.document.long()
        for _ in range(steps):
            places = torch.randint(len(document) - window, (batch_size,))
            x = torch.stack([document[i : i + window] for i in places])
            y = torch.stack([document[i + 1 : i + 1 + window] for i in places])
            loss = net(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    ours, theirs = alternate(train, loop, rounds)
    report(f"transformer training, {steps * batch_size * window / median(ours):.0f} tokens/s", ours, theirs, "s",
           "nanoGPT's model in its loop")

    net, count = model().eval().requires_grad_(False), 400

    def sample() -> None:
        with torch.no_grad():
            net.sample(ExampleStreams(0, torch.arange(64)), length=count)

    def passes() -> None:
        x = torch.randint(vocabulary, (64, window))
        with torch.no_grad():
            for _ in range(count // 40):
                logits, _ = net(x)
                torch.multinomial(logits[:, -1].softmax(-1), 1)

    ours, theirs = alternate(sample, passes, rounds)
    report(f"64 texts of {count} tokens", ours, [40 * seconds for seconds in theirs], "s",
           "a pass over the window for every token (a fortieth measured)")


def diffusion(batch_size: int = 64, steps: int = 20, rounds: int = 3) -> None:
    """Training on MNIST's embedded digits against the usual loop, and samples of 20 and of 40 steps.

    The peer's network is of the same levels and maps as small public implementations have them: GroupNorm, NCHW,
    float32, no patches (the first level sees every pixel); batches by DataLoader, its average by a loop over weights.
    """
    import copy

    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
    from torchvision.transforms import v2

    from gencli import inference
    from gencli.data import load
    from gencli.families.diffusion import Diffusion, DiffusionConfig
    from gencli.settings import TrainSettings
    from gencli.trainer import Trainer

    data = load("digits", dict())
    width = 32

    class Block(nn.Module):
        def __init__(self, maps_in: int, maps: int):
            super().__init__()
            self.first = nn.Sequential(nn.GroupNorm(8, maps_in), nn.SiLU(), nn.Conv2d(maps_in, maps, 3, padding=1))
            self.time = nn.Linear(4 * width, maps)
            self.second = nn.Sequential(nn.GroupNorm(8, maps), nn.SiLU(), nn.Conv2d(maps, maps, 3, padding=1))
            self.shortcut = nn.Conv2d(maps_in, maps, 1) if maps_in != maps else nn.Identity()

        def forward(self, h: Tensor, t: Tensor) -> Tensor:
            return self.shortcut(h) + self.second(self.first(h) + self.time(t)[:, :, None, None])

    class Attention(nn.Module):
        def __init__(self, maps: int):
            super().__init__()
            self.norm, self.qkv = nn.GroupNorm(8, maps), nn.Conv2d(maps, 3 * maps, 1)
            self.out = nn.Conv2d(maps, maps, 1)

        def forward(self, h: Tensor) -> Tensor:
            parts = self.qkv(self.norm(h)).flatten(2).unflatten(1, (12, -1)).transpose(2, 3)
            q, k, v = parts.chunk(3, 1)
            return h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2).view_as(h))

    class UNet(nn.Module):
        def __init__(self, patch: int) -> None:
            super().__init__()
            self.patch = patch
            self.time = nn.Sequential(nn.Linear(32, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width), nn.SiLU())
            self.stem = nn.Conv2d(patch**2, width, 3, padding=1)
            self.down = nn.ModuleList([Block(width, width), Block(2 * width, 2 * width)])
            self.smaller = nn.ModuleList([nn.Conv2d(width, 2 * width, 2, 2), nn.Conv2d(2 * width, 2 * width, 2, 2)])
            self.middle = nn.ModuleList([Block(2 * width, 2 * width), Block(2 * width, 2 * width)])
            self.attention = Attention(2 * width)
            self.larger = nn.ModuleList([nn.ConvTranspose2d(2 * width, 2 * width, 2, 2),
                                         nn.ConvTranspose2d(2 * width, width, 2, 2)])
            self.up = nn.ModuleList([Block(4 * width, 2 * width), Block(2 * width, width)])
            self.head = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, patch**2, 3, padding=1))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            angles = t[:, None] * 1000 * torch.exp(-torch.arange(16) * math.log(10_000) / 16)
            t = self.time(torch.cat([angles.sin(), angles.cos()], 1))
            h, skips = self.stem(F.pixel_unshuffle(F.pad(x, (2, 2, 2, 2)), self.patch)), []
            for block, half in zip(self.down, self.smaller, strict=True):
                h = block(h, t)
                skips.append(h)
                h = half(h)
            h = self.middle[1](self.attention(self.middle[0](h, t)), t)
            for block, double in zip(self.up, self.larger, strict=True):
                h = block(torch.cat([double(h), skips.pop()], 1), t)
            return F.pixel_shuffle(self.head(h), self.patch)[:, :, 2:-2, 2:-2]

    def ours() -> None:
        torch.manual_seed(0)
        model = Diffusion(DiffusionConfig(objective="ddpm"), data.spec)
        Trainer(model, data, TrainSettings(steps=steps, batch_size=batch_size, ema=0.999, grad_clip=1.0,
                                           preview_every=0)).run()

    class Pictures(torch.utils.data.Dataset):
        arrays = data.examples.numpy()[:, 0]
        transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5], [0.5])])

        def __len__(self) -> int:
            return len(self.arrays)

        def __getitem__(self, index: int) -> Tensor:
            return self.transform(self.arrays[index][:, :, None])

    def theirs(patch: int) -> None:
        torch.manual_seed(0)
        net = UNet(patch)
        average = copy.deepcopy(net)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        loader, done = torch.utils.data.DataLoader(Pictures(), batch_size, shuffle=True, drop_last=True), 0
        alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        while done < steps:
            for x in loader:
                t, noise = torch.randint(1000, (batch_size,)), torch.randn_like(x)
                alpha = alphas[t].view(-1, 1, 1, 1)
                loss = F.mse_loss(net(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, t / 1000), noise)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimiser.step()
                with torch.no_grad():
                    for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
                        mean.mul_(0.999).add_(weight, alpha=0.001)
                done += 1
                if done == steps:
                    break

    for patch in (1, 2):
        a, b = alternate(ours, lambda patch=patch: theirs(patch), rounds)
        report(f"diffusion training, {steps * batch_size / median(a):.0f} pictures/s", a, b, "s",
               f"usual loop, patches of {patch}")
    model = Diffusion(DiffusionConfig(), data.spec).eval()

    def draw(count: int) -> None:
        list(inference.sample(model, range(64), steps=count))

    a, b = alternate(lambda: draw(20), lambda: draw(40), rounds)
    report(f"diffusion, {64 / median(a):.0f} pictures/s of 20 steps", a, b, "s", "40 steps")


def wavenet(seconds: float = 4, rounds: int = 3) -> None:
    """One recording at 16 kHz in native code, for two networks, and 64 at once in plain torch; untrained weights.

    The peer is sound itself, which takes a second for 16,000 samples: a ratio below 1 is faster than real time.
    """
    import torch

    from gencli.families.wavenet import WaveNet, WaveNetConfig
    from gencli.kinds.audio import AudioSpec
    from gencli.rng import ExampleStreams

    spec = AudioSpec(rate=16000, length=16000)
    for stacks, residual, skip in ((2, 32, 64), (3, 64, 128)):
        torch.manual_seed(0)
        net = WaveNet(WaveNetConfig(stacks=stacks, residual=residual, skip=skip, tail=0), spec).eval()
        for engine, recordings in (("compiled", 1), ("torch", 1), ("torch", 64)):
            length = int(16000 * (seconds if engine == "compiled" else 0.05 * seconds))

            def sample(net: WaveNet = net, engine: str = engine, count: int = recordings, length: int = length) -> None:
                with torch.no_grad():
                    net.sample(ExampleStreams(0, torch.arange(count)), length=length, engine=engine)

            sample()  # the kernel is compiled
            ours, _ = alternate(sample, lambda: None, rounds)
            report(f"wavenet of {10 * stacks} layers, {residual}/{skip} channels, {engine}, {recordings} at once: "
                   f"{recordings * length / median(ours):.0f} samples/s in sum", ours, [length / 16000], "s", "sound")


def seq2seq(batch_size: int = 64, steps: int = 20, rounds: int = 2) -> None:
    """Training on Multi30k (GENCLI_DATA) against a plain loop: torch's own Transformer of that size, random batches
    filled up to their longest, logits at every place.
    """
    import os

    import torch
    import torch.nn.functional as F

    from gencli.data import Shuffled, load
    from gencli.families.seq2seq import Seq2Seq, Seq2SeqConfig
    from gencli.layers.autoregressive import after_end

    reading = {"source": "de", "target": "en", "unit": "subword", "vocabulary": 4000}
    data = load(f"{os.environ['GENCLI_DATA']}/multi30k", reading)
    torch.manual_seed(0)
    net = Seq2Seq(Seq2SeqConfig(width=128, feedforward=256, dropout=0.1), data.spec).train()
    order = Shuffled(data, batch_size, 0, torch.device("cpu"), alike=True)
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)

    def train() -> None:
        for step in range(steps):
            optimiser.zero_grad()
            net.loss(*order[step]).total.backward()
            optimiser.step()

    peer = torch.nn.Transformer(128, 4, 3, 3, 256, batch_first=True, norm_first=True)
    tables = [torch.nn.Embedding(4000, 128) for _ in range(2)]
    own = torch.optim.AdamW([*peer.parameters(), *tables[0].parameters(), *tables[1].parameters()], fused=True)
    generator = torch.Generator().manual_seed(0)

    def plain() -> None:
        for _ in range(steps):
            batch = data.batch(torch.randint(len(data), (batch_size,), generator=generator))
            source, target = batch.condition, batch.x
            assert source is not None and source.lengths is not None
            lost = torch.arange(source.x.shape[1]) >= source.lengths[:, None]
            ahead = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
            own.zero_grad()
            known = peer(tables[0](source.x), tables[1](after_end(target, 1)), tgt_mask=ahead,
                         src_key_padding_mask=lost, memory_key_padding_mask=lost)
            logits = F.linear(known, tables[1].weight)
            F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0, label_smoothing=0.1).backward()
            own.step()

    ours, theirs = alternate(train, plain, rounds)
    report(f"seq2seq training, {steps * batch_size / median(ours):.0f} pairs/s", ours, theirs, "s", "plain padded loop")


def metrics(count: int = 10_000, dimensions: int = 2048, rounds: int = 2) -> None:
    """Distances between two sets of features against torch-fidelity, for what both have; the rest by our time alone."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    from gencli.metrics.distances import frechet_distance, kernel_distance, manifold_metrics

    x, y = _features(count, dimensions, 0), _features(count, dimensions, 1)

    def frechet() -> None:
        found["frechet"] = frechet_distance(x, y)

    def peers_frechet() -> None:
        statistics = fid_features_to_statistics(x), fid_features_to_statistics(y)
        found["peer's frechet"] = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]

    def kernel() -> None:
        found["kernel"] = kernel_distance(x, y)[0]

    def peers_kernel() -> None:
        found["peer's kernel"] = kid_features_to_metric(x, y, verbose=False)["kernel_inception_distance_mean"]

    def manifold() -> None:
        found.update({metric.name: metric.value for metric in manifold_metrics(x, y, {})})

    def peers_manifold() -> None:
        found.update({f"peer's {name}": value for name, value in prc_features_to_metric(y, x, verbose=False).items()})

    found: dict[str, float] = {}
    total: tuple[list[float], list[float]] = ([], [])
    for what, ours, theirs in (("Frechet distance", frechet, peers_frechet),
                               ("kernel distance", kernel, peers_kernel),
                               ("precision and recall, ours with density and coverage", manifold, peers_manifold)):
        a, b = alternate(ours, theirs, rounds)
        report(f"{what}, {count} x {dimensions}", a, b, "s", "torch-fidelity")
        for side, times in zip(total, (a, b), strict=True):
            side.append(median(times))
    print(f"all together: {sum(total[0]):.1f} s, torch-fidelity: {sum(total[1]):.1f} s, "
          f"ratio {sum(total[0]) / sum(total[1]):.3f}")
    print(found)


def metrics_memory(count: int = 50_000, dimensions: int = 2048) -> None:
    """Peak memory of all distances between two sets of 50,000 x 2,048 features, in a process of its own."""
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"from speed import _features, distances_alone; distances_alone({count}, {dimensions})\n"
            f"import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    begin = time.perf_counter()
    peak = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    print(f"distances of {count} x {dimensions}: peak {int(peak) / 1024:.0f} MiB, {time.perf_counter() - begin:.0f} s")


def distances_alone(count: int, dimensions: int) -> None:
    """All metrics of `distances`, once."""
    from gencli.metrics.distances import distances

    distances(_features(count, dimensions, 0), _features(count, dimensions, 1), {})


def _features(count: int, dimensions: int, seed: int) -> "torch.Tensor":
    """(N, D) like those of a network: not negative, of falling variance, a little apart by seed."""
    import torch

    source = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dimensions + 1) ** -0.5
    return (torch.randn(count, dimensions, generator=source).add_(0.1 * seed).clamp_(min=0)).mul_(scale)


def memory() -> None:
    """Peak memory of `sample` to a tar on stdout, for 10,000 and for 100,000 examples."""
    with tempfile.TemporaryDirectory() as folder:
        run(["-m", "gencli", "train", "vae", "digits", "-o", f"{folder}/run", "--steps", "20", "--net", "mlp", "-q"])
        for count in (10_000, 100_000):
            begin = time.perf_counter()
            code = (f"import subprocess, sys, resource; subprocess.run([sys.executable, '-m', 'gencli', 'sample', "
                    f"'{folder}/run', '-n', '{count}', '-q'], stdout=subprocess.DEVNULL, check=True); "
                    f"print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
            peak = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            print(f"sample -n {count}: peak {int(peak) / 1024:.0f} MiB, {time.perf_counter() - begin:.1f} s")


def draw(batch_size: int = 64, rounds: int = 10) -> None:
    """A step of DRAW (loss and gradients, MNIST's size), in float32 and in the precision that `train` takes here,
    against the plain loop of the paper in the tests, in float32."""
    import torch

    from gencli.device import autocast, resolve_precision
    from gencli.families.draw import DRAW, DRAWConfig
    from gencli.kinds.image import ImageSpec
    from gencli.model import Batch
    from gencli.rng import StepStream

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from test_draw import Plain

    x = (torch.rand(batch_size, 1, 28, 28) < 0.2).float()
    device = torch.device("cpu")
    precisions = dict.fromkeys(("fp32", resolve_precision("auto", device)))
    for attention, precision in itertools.product((True, False), precisions):
        torch.manual_seed(0)
        model = DRAW(DRAWConfig(attention=attention), ImageSpec(channels=1, height=28, width=28, levels=2))
        plain = Plain(model)

        def ours(model: DRAW = model, precision: str = precision) -> None:
            model.zero_grad()
            with autocast(precision, device):
                loss = model.loss(Batch(x), StepStream(batch_size, torch.Generator())).total
            loss.backward()

        def theirs(plain: Plain = plain, size: tuple[int, int] = (model.config.glimpses, model.config.latent)) -> None:
            plain.zero_grad()
            log_likelihood, kls = plain(x, torch.randn(batch_size, *size))
            (kls.sum(1) - log_likelihood).mean().backward()

        what = f"draw with{'' if attention else 'out'} attention, {batch_size} pictures, {precision}"
        report(what, *alternate(ours, theirs, rounds), "s", "plain loop")


def forecast(rounds: int = 3, blocks: int = 4) -> None:
    """100 paths of 24 steps for each of 1,000 series, after 96: the recurrent net against one that reads the past of
    every path and computes in the same batches. Some of the 391 blocks are measured, and counted for all."""
    import torch
    from torch import nn

    from gencli import inference
    from gencli.families.forecast import Forecast, ForecastConfig
    from gencli.kinds.series import SeriesSpec
    from gencli.model import Batch, Given

    past = SeriesSpec(columns=("x",), length=96, fixed=True, mean=(0.0,), scale=(1.0,))
    torch.manual_seed(0)
    net = Forecast(ForecastConfig(net="recurrent"), past.model_copy(update={"length": 24, "condition": past})).eval()
    x = torch.randn(1000, 96, 1).cumsum(1)
    given, size = Given(condition=Batch(x, lengths=torch.full((1000,), 96))), net.block
    body, head = nn.LSTM(2, 64, 2, batch_first=True), nn.Linear(64, 2)

    def ours() -> None:
        for _ in inference.sample(net, range(blocks * size), given=given, each=100):
            pass

    @torch.no_grad()
    def plain() -> None:
        for i in range(blocks):
            own = x[torch.arange(i * size, (i + 1) * size) // 100]
            own = (own - own.mean(1, keepdim=True)) / own.std(1, keepdim=True)
            hidden, state = body(torch.cat([own, torch.ones_like(own)], 2))
            for _ in range(24):
                location, scale = head(hidden[:, -1:]).chunk(2, 2)
                y = location + scale.exp() * torch.randn_like(location)
                hidden, state = body(torch.cat([y, torch.ones_like(y)], 2), state)

    ours_, theirs = alternate(ours, plain, rounds)
    whole = 100_000 / (blocks * size)
    report("forecast, 1,000 series x 100 paths", [whole * t for t in ours_], [whole * t for t in theirs], "s",
           "plain loop")


def run(args: list[str]) -> None:
    subprocess.run([sys.executable, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def alternate(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both, measured in turn after one unmeasured round."""
    ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side, work in zip(times, (ours, theirs), strict=True):
            begin = time.perf_counter()
            work()
            side.append(time.perf_counter() - begin)
    return times


def report(what: str, ours: list[float], theirs: list[float], unit: str, peer: str) -> None:
    a, b = median(ours), median(theirs)
    print(f"{what}: {a:.3f} {unit}, {peer}: {b:.3f} {unit}, ratio {a / b:.3f} "
          f"(ours {min(ours):.3f}-{max(ours):.3f}, peer {min(theirs):.3f}-{max(theirs):.3f})", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or ["startup", "loop", "usual", "memory"]:
        {"startup": startup, "loop": loop, "usual": usual, "gmm": gmm, "rbm": rbm, "memory": memory, "pca": pca,
         "hmm": hmm, "lsi": lsi, "metrics": metrics, "metrics_memory": metrics_memory, "pixelcnn": pixelcnn,
         "pixelrnn": pixelrnn, "diffusion": diffusion, "draw": draw, "forecast": forecast,
         "seq2seq": seq2seq, "transformer": transformer, "translation": translation, "wavenet": wavenet}[name]()
