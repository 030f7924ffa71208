"""Distances between two sets of features: reference (N, D) and samples (M, D).

- `frechet_distance`: of Gaussians fitted to both (Dowson & Landau 1982); with the features `inception` it is the FID
  (Heusel et al. 2017, arXiv:1706.08500).
- `kernel_distance`: squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018, arXiv:1801.01401).
- `precision`, `recall`: Kynkaanniemi et al. 2019, arXiv:1904.06991.
- `density`, `coverage`: Naeem et al. 2020, arXiv:2002.09797.

All are biased or noisy in their own way at small N, so N and D are in the protocol: compare like with like.
"""

import math
from typing import Any

import torch
from torch import Tensor

from gencli.errors import DataError
from gencli.metrics import Metric
from gencli.metrics.estimates import mean
from gencli.metrics.neighbours import near, radii
from gencli.rng import generator

_ROWS = 8192  # rows of features taken at once in float64
_COLUMNS = 512  # columns of a covariance computed at once
_JACKKNIFE = 1000  # examples that the error of the Fréchet distance is estimated from
_KERNEL_BLOCK = 5000  # most features compared with all others in one estimate of the kernel distance


def frechet_distance(reference: Tensor, samples: Tensor) -> tuple[float, float]:
    """Fréchet distance of two Gaussians (FID with the features `inception`), and its standard error.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of means m and covariances S (divisor N - 1).

    With S = R^T R, the trace of the root is the sum of the singular values of R1 R2^T. Where the covariances are well
    conditioned they are computed from squares, which is fast; elsewhere (fewer examples than features, constant pixels)
    nothing is squared or inverted, so that the distance is exact to rounding for singular covariances too.

    The error is that of the infinitesimal jackknife (Jaeckel 1972): the spread of what each example, if it weighed a
    little more, would change. It says nothing of the bias, which falls with the number of examples.
    """
    _need(reference, samples, 2)
    (mean1, root1), (mean2, root2) = _mean_and_root(reference), _mean_and_root(samples)
    values, turn = _singular_values(root1 @ root2.T)
    distance = (mean1 - mean2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * values.sum()
    error = math.hypot(_spread(samples, mean2, root2, mean1, root1, turn),
                       _spread(reference, mean1, root1, mean2, root2, turn.T))
    return max(0.0, float(distance)), error


def _spread(x: Tensor, mean: Tensor, root: Tensor, other_mean: Tensor, other_root: Tensor, turn: Tensor) -> float:
    """The part of the error of the Fréchet distance that comes from x (N, D), from at most 1,000 of its examples.

    The distance changes by 2 (m - m') y + y^T (I - T) y with a little weight on y, T the linear map that carries one
    Gaussian to the other (Takatsu 2011, "Wasserstein geometry of Gaussian measures").
    """
    y = x[:: -(-len(x) // _JACKKNIFE)].double() - mean
    if root.shape[0] == root.shape[1] and root.diagonal().abs().min() > 1e-4 * root.diagonal().abs().max():
        z = torch.linalg.solve_triangular(root, y, upper=True, left=False)  # y = z R
    else:
        z = y @ torch.linalg.pinv(root)
    carried = ((y @ other_root.T @ turn) * z).sum(1)
    change = 2 * y @ (mean - other_mean) + y.square().sum(1) - carried
    return float(change.std()) / math.sqrt(len(x))


def _mean_and_root(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and an upper triangular R with R^T R = covariance, in float64, block by block."""
    centre = x.mean(0, dtype=torch.float64)
    if len(x) > x.shape[1]:
        covariance = centre.new_zeros(x.shape[1], x.shape[1])
        for part in x.split(_ROWS):
            part = part.double() - centre
            for start in range(0, x.shape[1], _COLUMNS):  # the lower triangle is all that is read
                columns = part[:, start : start + _COLUMNS]
                covariance[start:, start : start + _COLUMNS].addmm_(part[:, start:].T, columns)
        lower, failed = torch.linalg.cholesky_ex(covariance / (len(x) - 1))
        diagonal = lower.diagonal()
        if not failed and diagonal.min() > 1e-4 * diagonal.max():
            return centre, lower.T
    root = centre.new_zeros(0, x.shape[1])
    for part in x.split(_ROWS):
        root = torch.linalg.qr(torch.cat([root, part.double() - centre]), mode="r").R
    return centre, root / math.sqrt(len(x) - 1)


def _singular_values(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of M = U S V^T, and U V^T; from the eigenvalues of M^T M where the sum of S keeps 9 digits."""
    if matrix.shape[0] == matrix.shape[1]:
        squares, right = torch.linalg.eigh(matrix.T @ matrix)  # ascending, each off by the rounding of the largest
        values = squares.clamp(min=0).sqrt()
        if torch.finfo(squares.dtype).eps * squares[-1] * (0.5 / values).sum() < 1e-9 * values.sum():
            return values, matrix @ (right / values) @ right.T
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return values, left @ right


def kernel_distance(reference: Tensor, samples: Tensor, seed: int = 0) -> tuple[float, float]:
    """Unbiased MMD^2 with the kernel (xy / D + 1)^3, and its standard error by the two-sample jackknife.

    For up to 5,000 features all pairs are used. More are split at random into blocks of at most that many, and the mean
    over the blocks is reported. It may be slightly negative.
    """
    _need(reference, samples, 3)
    parts = -(-max(len(reference), len(samples)) // _KERNEL_BLOCK)
    parts = min(parts, min(len(reference), len(samples)) // 3)
    if parts > 1:
        reference, samples = (x[torch.randperm(len(x), generator=generator(seed, "kernel_distance", i))]
                              for i, x in enumerate((reference, samples)))
    pairs = zip(reference.tensor_split(parts), samples.tensor_split(parts), strict=True)
    values, errors = zip(*(_mmd(x, y) for x, y in pairs), strict=True)
    return sum(values) / parts, math.hypot(*errors) / parts


def _mmd(x: Tensor, y: Tensor) -> tuple[float, float]:
    n, m = len(x), len(y)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within_x = xx.sum(1, dtype=torch.float64) - xx.diagonal().double()  # (n,) to all others
    within_y = yy.sum(1, dtype=torch.float64) - yy.diagonal().double()
    between_x, between_y = xy.sum(1, dtype=torch.float64), xy.sum(0, dtype=torch.float64)
    sum_x, sum_y, sum_xy = within_x.sum(), within_y.sum(), between_x.sum()
    term_x, term_y = sum_x / (n * (n - 1)), sum_y / (m * (m - 1))
    # The estimate without each example in turn, from the sums it takes part in.
    without_x = (sum_x - 2 * within_x) / ((n - 1) * (n - 2)) + term_y - 2 * (sum_xy - between_x) / ((n - 1) * m)
    without_y = term_x + (sum_y - 2 * within_y) / ((m - 1) * (m - 2)) - 2 * (sum_xy - between_y) / (n * (m - 1))
    variance = sum((len(w) - 1) * w.var(correction=0) for w in (without_x, without_y))
    return float(term_x + term_y - 2 * sum_xy / (n * m)), math.sqrt(float(variance))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    product = torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1])
    return product.square().mul_(product)


def manifold_metrics(reference: Tensor, samples: Tensor, protocol: dict[str, Any], *, precision_k: int = 3,
                     coverage_k: int = 5) -> list[Metric]:
    """`precision`, `recall`, `density`, `coverage`, by balls that reach to the k-th nearest neighbour in one's own set.

    Precision: share of samples in a ball of the reference. Recall: share of the reference in a ball of the samples.
    Density: in how many balls of the reference a sample lies, over k (1 is what the reference itself has, more is
    possible). Coverage: share of balls of the reference with a sample. Errors are those of sampling what is counted.
    """
    _need(reference, samples, max(precision_k, coverage_k) + 1)
    around_reference = radii(reference, max(precision_k, coverage_k))  # (N, k) squared
    around_samples = radii(samples, precision_k)[:, -1]
    # Copies lie on the edge of balls: what is as far to rounding is on it, in whichever order they come.
    slack = _rounding(reference, samples)
    wide, narrow = around_reference[:, coverage_k - 1, None], around_reference[:, precision_k - 1, None]
    precise = torch.zeros(len(samples), dtype=torch.bool)
    density = torch.zeros(len(samples), dtype=torch.float64)
    recalled, covered = (torch.zeros(len(reference), dtype=torch.bool) for _ in range(2))
    for rows, columns, distances in near(reference, samples, around_reference.amax(1) + slack, around_samples + slack):
        precise[columns] |= (distances <= narrow[rows] + slack).any(0)
        recalled[rows] = (distances <= around_samples[columns] + slack).any(1)
        inside = distances < wide[rows] - slack
        density[columns] += inside.to(distances.dtype).sum(0)
        covered[rows] = inside.any(1)
    shares = {"precision": (precise, precision_k), "recall": (recalled, precision_k),
              "density": (density / coverage_k, coverage_k), "coverage": (covered, coverage_k)}
    return [mean(name, values, "", "estimate", {**protocol, "k": k}) for name, (values, k) in shares.items()]


def _rounding(x: Tensor, y: Tensor) -> float:
    """How far squared distances of x (N, D) and y (M, D) may be off, which come from squares of the centred numbers."""
    centre = y.mean(0)
    squares = max(float((side - centre).square().sum(1).max()) for side in (x, y))
    return 16 * torch.finfo(x.dtype).eps * squares


def distances(reference: Tensor, samples: Tensor, protocol: dict[str, Any], seed: int = 0) -> list[Metric]:
    """All metrics of this module.

    Raises:
        DataError: too few examples, features of different sizes, or features that are not finite.
    """
    _need(reference, samples, 6)
    for what, features in (("reference", reference), ("samples", samples)):
        if not features.isfinite().all():
            raise DataError(f"the features of the {what} contain numbers that are not finite")
    record = {**protocol, "dimensions": reference.shape[1], "reference": len(reference), "samples": len(samples)}
    frechet, frechet_error = frechet_distance(reference, samples)
    kernel, kernel_error = kernel_distance(reference, samples, seed)
    return [
        Metric("frechet_distance", frechet, frechet_error, len(samples), "", "estimate", record),
        Metric("kernel_distance", kernel, kernel_error, len(samples), "", "estimate",
               {**record, "kernel": "(xy/D + 1)^3"}),
        *manifold_metrics(reference, samples, record),
    ]


def _need(reference: Tensor, samples: Tensor, least: int) -> None:
    if reference.ndim != 2 or samples.ndim != 2 or reference.shape[1] != samples.shape[1]:
        raise DataError(f"features of shape {tuple(samples.shape)} cannot be compared with {tuple(reference.shape)}; "
                        f"expected (N, D) and (M, D)")
    for what, features in (("reference", reference), ("samples", samples)):
        if len(features) < least:
            raise DataError(f"{what}: {len(features)} examples; at least {least} are needed to compare distributions")
