"""neuralforecast: forecasters that draw windows of their series in the step. They are built on pytorch_lightning."""

import numpy as np
import pandas as pd
from neuralforecast.losses.pytorch import DistributionLoss
from neuralforecast.models import GRU, LSTM, MLP, NBEATS, NHITS, TCN, TFT, DeepAR, PatchTST, TiDE
from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

from packages import NUM_SAMPLES, Entry

PACKAGE = "neuralforecast"

_HORIZON, _PAST = 4, 12


def _data():
    random = np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {"unique_id": str(idx), "ds": np.arange(40), "y": random.normal(size=40).cumsum().astype(np.float32)}
        )
        for idx in range(2 * NUM_SAMPLES)
    ]
    dataset, *_ = TimeSeriesDataset.from_df(pd.concat(frames))
    return TimeSeriesDataModule(dataset, batch_size=NUM_SAMPLES, shuffle_train=False)


def _entry(model, **options):
    def build(width):
        sizes = {name: value(width) if callable(value) else value for name, value in options.items()}
        return model(h=_HORIZON, input_size=_PAST, max_steps=2, windows_batch_size=16, **sizes)

    return Entry(model.__name__, build, _data)


def _units(width):
    return [[width, width]] * 3


def _width(width):
    return width


ENTRIES = (
    _entry(NBEATS, mlp_units=_units),
    _entry(NHITS, mlp_units=_units),
    _entry(MLP, hidden_size=_width),
    _entry(LSTM, encoder_hidden_size=_width, decoder_hidden_size=_width),
    _entry(GRU, encoder_hidden_size=_width, decoder_hidden_size=_width),
    _entry(TCN, encoder_hidden_size=_width, decoder_hidden_size=_width),
    _entry(TFT, hidden_size=_width, n_head=2),
    _entry(PatchTST, hidden_size=_width, linear_hidden_size=_width, n_heads=2, encoder_layers=1, patch_len=4),
    _entry(TiDE, hidden_size=_width, decoder_output_dim=4, temporal_decoder_dim=_width),
    _entry(DeepAR, lstm_hidden_size=_width, loss=lambda width: DistributionLoss("Normal", return_params=False)),
)
