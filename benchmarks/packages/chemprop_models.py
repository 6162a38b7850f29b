"""chemprop: message passing over molecules."""

import numpy as np
from chemprop import data, models, nn

from packages import NUM_SAMPLES, Entry

PACKAGE = "chemprop"

_MOLECULES = ("CCO", "c1ccccc1", "CC(=O)O", "CCN", "C1CCCCC1", "CCCC", "OCCO", "c1ccncc1")


def _data(classes=False):
    def load():
        random = np.random.default_rng(0)
        points = [
            data.MoleculeDatapoint.from_smi(smiles, [float(random.integers(2)) if classes else random.normal()])
            for smiles in _MOLECULES * 2
        ]
        dataset = data.MoleculeDataset(points)
        return data.build_dataloader(dataset, batch_size=NUM_SAMPLES, num_workers=0, shuffle=False)

    return load


def _entry(name, passing, predictor, classes=False):
    def build(width):
        head = predictor(input_dim=width, hidden_dim=width)
        return models.MPNN(passing(d_h=width), nn.MeanAggregation(), head, batch_norm=True)

    return Entry(name, build, _data(classes))


ENTRIES = (
    _entry("BondMessagePassing", nn.BondMessagePassing, nn.RegressionFFN),
    _entry("AtomMessagePassing", nn.AtomMessagePassing, nn.BinaryClassificationFFN, classes=True),
    _entry("MveFFN", nn.BondMessagePassing, nn.MveFFN),
)
