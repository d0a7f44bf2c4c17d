"""Users to compete for: the paper's three synthetic settings, scikit-learn's digits, your own features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.society.model_competition._users import Floats, with_bias

DIGIT_POSITIVES = (0, 1, 2, 7, 8, 9)
"""Six of ten digits, so that labels are 60/40 as in the paper's binary CIFAR-10 task."""
LEVELS = 40
"""Features of the Gaussian setting are rounded to sigma / LEVELS, so that equal users can be counted once."""


@dataclass(frozen=True)
class Labelled:
    """Features `X` [n, d] (constant feature included, last) and labels `y` [n]."""

    X: Floats
    y: NDArray[np.int64]


def no_information(alpha: float, *, n: int = 400) -> Labelled:
    """Setting 1: nothing is known of users but that a share alpha of them has label 1.

    X is the constant feature; round(alpha n) users have label 1. Raises InputError unless both labels occur.
    """
    ones = round(alpha * n) if 0 < alpha < 1 else 0
    if not 0 < ones < n:
        raise InputError(f"alpha is {alpha} of {n} users", fix="give a share that leaves both labels")
    return Labelled(np.ones((n, 1)), np.repeat([1, 0], [ones, n - ones]).astype(np.int64))


def gaussians(sigma: float, *, n: int = 10_000, seed: int = 0) -> Labelled:
    """Setting 2: x ~ N(+1, sigma^2) with label 0 (mass 0.4) or N(-1, sigma^2) with label 1 (mass 0.6).

    x is rounded to sigma / 40.
    """
    if not sigma > 0:
        raise InputError(f"sigma is {sigma}", fix="give a standard deviation above 0")
    draws = rng(seed, "gaussians")  # the same labels and noise at every sigma
    y = (draws.random(n) < 0.6).astype(np.int64)
    x = np.where(y == 0, 1.0, -1.0) + sigma * draws.normal(size=n)
    step = sigma / LEVELS
    return Labelled(with_bias(np.round(x / step)[:, None] * step), y)


def gaussian_minority(sigma: float, *, points: int = 4001) -> tuple[Floats, Floats]:
    """Setting 2 in the limit of many users: minority shares alpha(x) and masses on a grid of x.

    For `theory.expected_social_loss`: what providers with any function would do.
    """
    x = np.linspace(-1 - 8 * sigma, 1 + 8 * sigma, points)
    zero = 0.4 * np.exp(-((x - 1) ** 2) / (2 * sigma**2))
    one = 0.6 * np.exp(-((x + 1) ** 2) / (2 * sigma**2))
    mass = zero + one
    alpha = np.divide(np.minimum(zero, one), mass, out=np.full_like(mass, 0.0), where=mass > 0)
    return alpha, mass / mass.sum()


def subpopulations(dimensions: int, *, n: int = 10_000, seed: int = 0) -> Labelled:
    """Setting 3: four subpopulations (0.7, 0.15, 0.1, 0.05) and `dimensions` - 1 of 4 coordinates, 1 to 5.

    Subpopulation i has no signal in its first i coordinates (i = 0 to 3); the others have mean -1 for label 0
    and +1 for label 1, standard deviation 1. More dimensions are a better representation.
    """
    if dimensions not in range(1, 6):
        raise InputError(f"dimensions is {dimensions}", fix="give 1 (the constant alone) to 5")
    draws = rng(seed, "subpopulations")
    group = draws.choice(4, size=n, p=[0.7, 0.15, 0.1, 0.05])
    y = (draws.random(n) < 0.5).astype(np.int64)
    informed = np.arange(4)[None, :] >= group[:, None]  # (n, 4)
    mean = np.where(informed, (2 * y - 1)[:, None], 0)
    return Labelled(with_bias((mean + draws.normal(size=(n, 4)))[:, : dimensions - 1]), y)


def digits() -> tuple[Floats, NDArray[np.int64]]:
    """scikit-learn's 1,797 digits, raw pixels [n, 64], and whether each is one of 0, 1, 2, 7, 8, 9 (60 %)."""
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    return np.asarray(pixels, dtype=np.float64), np.isin(digit, DIGIT_POSITIVES).astype(np.int64)


def read_features(path: Path | str) -> tuple[Floats, NDArray[np.int64]]:
    """`X` [n, d] and `y` [n] from a .npz file of your own features and labels; nothing is unpickled.

    Raises InputError for a file that is missing or damaged, or holds no arrays called X and y.
    """
    try:
        with open(Path(path).expanduser(), "rb") as file, np.load(file, allow_pickle=False) as stored:
            if not {"X", "y"} <= set(stored):
                raise InputError(
                    f"the file holds {', '.join(stored) or 'nothing'}", where=str(path),
                    fix="save the features as X and the labels as y: numpy.savez(path, X=X, y=y)",
                )  # fmt: skip
            return stored["X"], stored["y"]
    except InputError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        why = getattr(error, "strerror", None) or "it is not an .npz file of plain arrays"
        raise InputError(f"the features cannot be read ({why})", where=str(path)) from None
    except Exception as error:  # zipfile's own errors share no base with the others
        raise InputError(f"the file is damaged ({type(error).__name__})", where=str(path)) from None
