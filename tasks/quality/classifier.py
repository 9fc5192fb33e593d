"""Which label does an image show? A small MONAI ResNet, trained on the groups the generator learned from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from storage.records import Record
from tasks.imaging import Grey
from tasks.quality.judge import Advance, Judge, Pictures, silent

if TYPE_CHECKING:
    from torch import nn

PX = 96


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

    def probabilities(self, images: Grey) -> NDArray[np.float32]:
        """Probability of every label of `labels`, (n, labels), for images (n, h, w)."""
        if self.network is None or not len(images):
            return np.ones((len(images), len(self.labels)), np.float32)
        from tasks.quality import fitting

        logits = fitting.predict(self.network, fitting.normalised(fitting.to_tensor(images, PX)))
        return logits.softmax(dim=1).numpy()

    def confidence(self, images: Grey, labels: Sequence[str]) -> NDArray[np.float32]:
        """Probability of each image's own label, (n,).

        Raises:
            ValueError: a label that the classifier was not trained on.
        """
        unknown = sorted(set(labels) - set(self.labels))
        if unknown:
            raise ValueError(f"labels {unknown} were not in the classifier's training set {list(self.labels)}")
        own = [self.labels.index(label) for label in labels]
        return self.probabilities(images)[np.arange(len(images)), own]


def train(examples: Pictures, held_out: Pictures, params: Params, seed: int, advance: Advance = silent) -> Judge:
    """Train on `examples`; the report is measured on `held_out`, whose groups must be others."""
    from torch import from_numpy
    from torch.nn import functional as F

    from tasks.quality import fitting

    labels = sorted(set(examples.labels))
    network = fitting.initialise(lambda: _network(len(labels)), seed)
    if len(labels) > 1:
        inputs = fitting.to_tensor(examples.images, PX)
        target = np.array([labels.index(label) for label in examples.labels])

        def loss_of(rows: NDArray[np.intp], rng: fitting.Rng) -> Any:
            views, _ = fitting.augment(inputs[rows], None, rng)
            wanted = from_numpy(target[rows])
            # Smoothing, because the confidence is read as a probability.
            return F.cross_entropy(network(fitting.normalised(views)), wanted, label_smoothing=0.05)

        batches = fitting.balanced_batches(target, params.batch, np.random.default_rng([seed, 1]))
        rng = np.random.default_rng([seed, 0])
        fitting.fit(network, loss_of, batches, params.steps, params.learning_rate, rng, advance)
    weights = fitting.dump(network, {"kind": "classifier", "labels": labels})
    return Judge(weights, measure(load(weights), held_out))


def load(weights: bytes) -> Classifier:
    """The classifier of the bytes that `train` made."""
    from tasks.quality import fitting

    network, config = fitting.restore(weights, "classifier", lambda config: _network(len(config["labels"])))
    labels = tuple(config["labels"])
    return Classifier(labels, network if len(labels) > 1 else None)


def measure(classifier: Classifier, held_out: Pictures) -> dict[str, float]:
    """Accuracy and mean one-against-rest AUC on pictures of known labels, with their number."""
    from sklearn.metrics import roc_auc_score

    known = held_out.with_labels(classifier.labels)
    report = {"n_held_out": float(len(known))}
    if len(classifier.labels) < 2 or not len(known):
        return report
    probability = classifier.probabilities(known.images)
    own = np.array([classifier.labels.index(label) for label in known.labels])
    report["accuracy"] = float((probability.argmax(1) == own).mean())
    aucs = [float(roc_auc_score(own == k, probability[:, k])) for k in np.unique(own) if (own != k).any()]
    if aucs:
        report["auc"] = float(np.mean(aucs))
    return report


def _network(labels: int) -> "nn.Module":
    from monai.networks.nets.resnet import ResNet

    return ResNet(
        "basic",
        [1, 1, 1, 1],
        [16, 32, 64, 128],
        spatial_dims=2,
        n_input_channels=1,
        conv1_t_size=5,
        conv1_t_stride=2,
        num_classes=labels,
    )
