"""Which label does an image show? A small MONAI ResNet, trained on the groups the generator learned from.

As a judge it looks at the square around the lesion with its mask, as a reader does: margin and shape tell benign from
malignant. Downstream networks that must find the lesion themselves are trained on whole images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.imaging import Grey, Mask
from tasks.quality.crops import lesion_crops
from tasks.quality.judge import Advance, Judge, Pictures, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

_MARGIN = 0.35
"""Of a lesion's longer side: what is seen around it."""
_LEAST_HELD_OUT = 20
"""Fewer held-out images than this fit no temperature."""
_BINS = 10

View = Literal["image", "lesion"]
"""What it sees: the whole image, or the lesion's square and its mask (blank mask: the largest square)."""
PX: dict[View, int] = {"image": 96, "lesion": 80}


class Params(Record):
    """How the classifier is trained."""

    steps: int = Field(default=600, ge=1, le=100_000, description="optimizer steps; 600 take about 11 s on one core")
    batch: int = Field(default=16, ge=2, le=1024, description="images a step, every label equally often")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="peak learning rate")


@dataclass(frozen=True)
class Classifier:
    """A loaded judge. With a single label there is nothing to tell apart: it is certain, and says so."""

    labels: tuple[str, ...]
    network: "nn.Module | None" = field(repr=False)
    view: View = "image"
    temperature: float = 1.0

    def logits(self, images: Grey, masks: Mask | None = None) -> NDArray[np.float64]:
        """Uncalibrated answer for every label of `labels`, (n, labels).

        Raises:
            ValueError: it looks at lesions, and no masks are given.
        """
        if self.network is None or not len(images):
            return np.zeros((len(images), len(self.labels)))
        from tasks.quality import fitting

        return fitting.predict(self.network, _seen(images, masks, self.view)).double().numpy()

    def probabilities(self, images: Grey, masks: Mask | None = None) -> NDArray[np.float32]:
        """Calibrated probability of every label of `labels`, (n, labels), for images and masks (n, h, w)."""
        return _softmax(self.logits(images, masks), self.temperature).astype(np.float32)

    def confidence(self, pictures: Pictures) -> NDArray[np.float32]:
        """Calibrated probability of each picture's own label, (n,).

        Raises:
            ValueError: a label that the classifier was not trained on.
        """
        unknown = sorted(set(pictures.labels) - set(self.labels))
        if unknown:
            raise ValueError(f"labels {unknown} were not in the classifier's training set {list(self.labels)}")
        own = [self.labels.index(label) for label in pictures.labels]
        return self.probabilities(pictures.images, pictures.masks)[np.arange(len(pictures)), own]


def train(
    examples: Pictures,
    held_out: Pictures,
    params: Params,
    seed: int,
    advance: Advance = silent,
    view: View = "image",
) -> Judge:
    """Train on `examples`; the temperature is fitted, and the report measured, on `held_out`, whose groups must be
    others."""
    from torch import from_numpy
    from torch.nn import functional as F

    from tasks.quality import fitting

    labels = sorted(set(examples.labels))
    network = fitting.initialise(lambda: _network(len(labels), view), seed)
    if len(labels) > 1:
        inputs, masks = _tensors(examples.images, examples.masks, view)
        target = np.array([labels.index(label) for label in examples.labels])

        def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
            views, outlines = fitting.augment(inputs[rows], None if masks is None else masks[rows], rng)
            wanted = from_numpy(target[rows])
            # Smoothing keeps the logits small; what they are worth as probabilities, the temperature says.
            return F.cross_entropy(network(_joined(views, outlines)), wanted, label_smoothing=0.05)

        batches = fitting.balanced_batches(target, params.batch, np.random.default_rng([seed, 1]))
        rng = np.random.default_rng([seed, 0])
        fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    config: dict[str, object] = {"kind": "classifier", "labels": labels, "view": view}
    raw = load(fitting.dump(network, config))
    answers, own, groups = _answers(raw, held_out)
    config["temperature"] = fit_temperature(answers, own)
    weights = fitting.dump(network, config)
    return Judge(weights, measure(load(weights), held_out) | _calibration(answers, own, groups))


def load(weights: bytes) -> Classifier:
    """The classifier of the bytes that `train` made."""
    from tasks.quality import fitting

    network, config = fitting.restore(
        weights, "classifier", lambda config: _network(len(config["labels"]), config.get("view", "image"))
    )
    labels = tuple(config["labels"])
    temperature = float(config.get("temperature", 1.0))
    return Classifier(labels, network if len(labels) > 1 else None, config.get("view", "image"), temperature)


def measure(classifier: Classifier, held_out: Pictures) -> dict[str, float]:
    """Accuracy and mean one-against-rest AUC on pictures of known labels, with their number."""
    from sklearn.metrics import roc_auc_score

    known = held_out.with_labels(classifier.labels)
    report = {"n_held_out": float(len(known))}
    if len(classifier.labels) < 2 or not len(known):
        return report
    probability = classifier.probabilities(known.images, known.masks)
    own = np.array([classifier.labels.index(label) for label in known.labels])
    report["accuracy"] = float((probability.argmax(1) == own).mean())
    aucs = [float(roc_auc_score(own == k, probability[:, k])) for k in np.unique(own) if (own != k).any()]
    if aucs:
        report["auc"] = float(np.mean(aucs))
    return report


def fit_temperature(logits: NDArray[np.float64], own: NDArray[np.intp]) -> float:
    """The number to divide logits (n, labels) by so that `own`, the true labels, are likeliest; 1 where there are too
    few to say.

    Source: Guo et al., arXiv 1706.04599, section 4.2.
    """
    from scipy.optimize import minimize_scalar

    if len(own) < _LEAST_HELD_OUT or logits.shape[1] < 2:
        return 1.0

    def surprise(log_temperature: float) -> float:
        likely = _softmax(logits, float(np.exp(log_temperature)))[np.arange(len(own)), own]
        return float(-np.log(np.maximum(likely, 1e-12)).mean())

    found: Any = minimize_scalar(surprise, bounds=(-3.0, 3.0), method="bounded")
    return float(np.exp(found.x))


def calibration_error(probability: NDArray[np.floating], own: NDArray[np.intp]) -> float:
    """Expected calibration error of probabilities (n, labels): mean gap, 0..1, between how sure the likeliest label is
    and how often it is right, over ten equal bins of sureness.

    Source: Naeini et al., AAAI 2015; as in Guo et al., arXiv 1706.04599, equation 3.
    """
    sure, right = probability.max(axis=1), probability.argmax(axis=1) == own
    filled = np.minimum((sure * _BINS).astype(int), _BINS - 1)
    gaps = [abs(float(sure[filled == k].mean() - right[filled == k].mean())) for k in np.unique(filled)]
    return float(np.average(gaps, weights=np.bincount(filled)[np.unique(filled)]))


def _calibration(logits: NDArray[np.float64], own: NDArray[np.intp], groups: Sequence[str]) -> dict[str, float]:
    """Calibration error before and after, each half of the groups with the temperature of the other half."""
    names = np.unique(np.asarray(groups))
    if len(own) < 2 * _LEAST_HELD_OUT or len(names) < 2 or logits.shape[1] < 2:
        return {}
    first = np.isin(np.asarray(groups), names[::2])
    after = np.zeros_like(logits)
    for half in (first, ~first):
        after[half] = _softmax(logits[half], fit_temperature(logits[~half], own[~half]))
    before = calibration_error(_softmax(logits, 1.0), own)
    return {"ece_before": before, "ece_after": calibration_error(after, own)}


def _answers(judge: Classifier, held_out: Pictures) -> tuple[NDArray[np.float64], NDArray[np.intp], Sequence[str]]:
    """Logits, number of the true label, and group of every held-out picture of a known label."""
    known = held_out.with_labels(judge.labels)
    own = np.array([judge.labels.index(label) for label in known.labels], np.intp)
    return judge.logits(known.images, known.masks), own, known.groups


def _tensors(images: Grey, masks: Mask | None, view: View) -> "tuple[Tensor, Tensor | None]":
    from tasks.quality import fitting

    if view == "image":
        return fitting.to_tensor(images, PX[view]), None
    if masks is None:
        raise ValueError("this classifier looks at lesions: it needs the mask of every image, found none")
    squares, outlines = lesion_crops(images, masks, PX[view], _MARGIN)
    return fitting.to_tensor(squares, PX[view]), fitting.to_mask_tensor(outlines, PX[view])


def _joined(images: "Tensor", masks: "Tensor | None") -> "Tensor":
    from tasks.quality import fitting

    levels = fitting.normalised(images)
    return levels if masks is None else fitting.concatenate([levels, masks], dim=1)


def _seen(images: Grey, masks: Mask | None, view: View) -> "Tensor":
    return _joined(*_tensors(images, masks, view))


def _softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    scaled = logits / temperature
    likely = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return likely / likely.sum(axis=1, keepdims=True)


def _network(labels: int, view: View) -> "nn.Module":
    from monai.networks.nets.resnet import ResNet

    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [16, 32, 64, 128],
        spatial_dims=2,
        n_input_channels=1 if view == "image" else 2,
        conv1_t_size=5,
        conv1_t_stride=2,
        num_classes=labels,
    )
