"""Transfer scores, slow and obvious: dense matrices, loops over samples, and scikit-learn where it has the same."""

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, spearmanr
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import LabelBinarizer


def one_hot(labels: np.ndarray) -> np.ndarray:
    return (labels[:, None] == np.unique(labels)[None]).astype(float)


def shrinkage(features: np.ndarray) -> float:
    """By Ledoit and Wolf's definition: the noise of the covariance over its distance from its target."""
    rows = features - features.mean(0)
    count, width = rows.shape
    covariance = rows.T @ rows / count
    target = np.trace(covariance) / width * np.eye(width)
    distance = np.sum((covariance - target) ** 2)
    noise = sum(np.sum((np.outer(row, row) - covariance) ** 2) for row in rows) / count**2
    return min(noise, distance) / distance


def hscore(features: np.ndarray, labels: np.ndarray) -> float:
    rows = features - features.mean(0)
    alpha = shrinkage(features)
    covariance = rows.T @ rows / len(rows)
    shrunk = (1 - alpha) * covariance + alpha * np.trace(covariance) / rows.shape[1] * np.eye(rows.shape[1])
    means = np.stack([rows[labels == label].mean(0) for label in labels])
    return float((1 - alpha) * np.trace(np.linalg.inv(shrunk) @ (means.T @ means / len(rows))))


def log_evidence(features: np.ndarray, target: np.ndarray, weight_precision: float, noise_precision: float) -> float:
    count = len(target)
    covariance = np.eye(count) / noise_precision + features @ features.T / weight_precision
    return float(multivariate_normal(np.zeros(count), covariance).logpdf(target))


def logme(features: np.ndarray, targets: np.ndarray) -> float:
    """The evidence as the density of a Gaussian vector, maximised by a search that knows no formula for it."""

    def best(target: np.ndarray) -> float:
        def loss(logs: np.ndarray) -> float:
            return -log_evidence(features, target, *np.exp(logs))

        scale = math.log(np.mean(features**2) * features.shape[1])
        starts = [(scale + a, b) for a in (-2, 0, 2) for b in (0, 3)]
        found = [
            minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9}) for start in starts
        ]
        return -min(result.fun for result in found)

    return float(np.mean([best(column) for column in targets.T])) / len(features)


def knn(features: np.ndarray, labels: np.ndarray, num_neighbors: int = 5) -> float:
    right = 0
    for idx in range(len(labels)):
        others = np.arange(len(labels)) != idx
        model = KNeighborsClassifier(min(num_neighbors, len(labels) - 1), algorithm="brute")
        right += model.fit(features[others], labels[others]).predict(features[idx : idx + 1])[0] == labels[idx]
    return 100 * right / len(labels)


def ridge_without(features: np.ndarray, targets: np.ndarray, idx: int, penalty: float) -> np.ndarray:
    """Fit a ridge regression on all samples but one, and predict that one."""
    others = np.arange(len(targets)) != idx
    mean = features.mean(0)  # as in RidgeCV, the penalty does not see which sample is missing
    design = np.column_stack([np.ones(len(targets)), features - mean])
    penalties = np.diag([0.0, *[penalty] * features.shape[1]])
    weights = np.linalg.solve(design[others].T @ design[others] + penalties, design[others].T @ targets[others])
    return design[idx] @ weights


def ridge_predictions(features: np.ndarray, targets: np.ndarray, penalties: list[float]) -> np.ndarray:
    tried = [
        np.stack([ridge_without(features, targets, idx, penalty) for idx in range(len(targets))])
        for penalty in penalties
    ]
    return min(tried, key=lambda predictions: np.sum((targets - predictions) ** 2))


def parc(features: np.ndarray, labels: np.ndarray) -> float:
    components = PCA(min(32, *features.shape), svd_solver="full").fit_transform(features)
    components = components[:, np.abs(components).max(0) > 1e-9 * np.abs(components).max()]
    for column in components.T:
        column *= np.sign(column[np.abs(column).argmax()])
    encoded = LabelBinarizer().fit(np.append(labels, labels.max() + 1)).transform(labels)  # one column a class
    pairs = np.triu_indices(len(labels), 1)
    distances = [1 - np.corrcoef(rows) for rows in (components, encoded)]
    return float(spearmanr(*(np.round(matrix[pairs], 12) for matrix in distances)).statistic)


def leep(source: np.ndarray, labels: np.ndarray) -> float:
    count, num_source = source.shape
    joint = {(y, z): source[labels == y, z].sum() / count for y in np.unique(labels) for z in range(num_source)}
    total = 0.0
    for idx in range(count):
        likelihood = 0.0
        for z in range(num_source):
            likelihood += joint[labels[idx], z] / sum(joint[y, z] for y in np.unique(labels)) * source[idx, z]
        total += math.log(likelihood)
    return total / count


def nce(source: np.ndarray, labels: np.ndarray) -> float:
    total = 0.0
    for y, z in zip(labels, source, strict=True):
        total += math.log(np.mean(labels[source == z] == y))
    return total / len(labels)


def transrate(features: np.ndarray, labels: np.ndarray, distortion: float = 1e-4) -> float:
    rows = features - features.mean(0)
    rows = rows / math.sqrt(np.trace(rows @ rows.T))

    def rate(part: np.ndarray) -> float:
        return 0.5 * np.linalg.slogdet(np.eye(part.shape[1]) + part.T @ part / (len(part) * distortion))[1]

    return rate(rows) - sum(np.mean(labels == y) * rate(rows[labels == y]) for y in np.unique(labels))


BY_NAME: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "hscore": hscore,
    "logme": lambda features, labels: logme(features, one_hot(labels)),
    "knn": knn,
    "parc": parc,
    "transrate": transrate,
}
