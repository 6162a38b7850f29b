"""pytorch-forecasting: forecasters that are built from their data set."""

import numpy as np
import pandas as pd
from pytorch_forecasting import DecoderMLP, DeepAR, NBeats, NHiTS, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import MAE, SMAPE, NormalDistributionLoss, QuantileLoss

from packages import NUM_SAMPLES, Entry

PACKAGE = "pytorch-forecasting"


def _dataset(only_the_target=False):
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"series": np.repeat(["a", "b"], 30), "time": np.tile(np.arange(30), 2)})
    frame["value"] = random.normal(size=60).astype(np.float32)
    frame["known"] = np.sin(frame["time"]).astype(np.float32)
    return TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=8,
        min_encoder_length=8,
        max_prediction_length=3,
        time_varying_unknown_reals=["value"],
        time_varying_known_reals=[] if only_the_target else ["known"],
        static_categoricals=[] if only_the_target else ["series"],
    )


def _entry(model, only_the_target=False, **options):
    def build(width):
        sizes = {name: value(width) if callable(value) else value for name, value in options.items()}
        return model.from_dataset(_dataset(only_the_target), learning_rate=1e-3, log_interval=-1, **sizes)

    def data():
        return _dataset(only_the_target).to_dataloader(train=True, batch_size=NUM_SAMPLES, shuffle=False, num_workers=0)

    return Entry(model.__name__, build, data)


def _width(width):
    return width


ENTRIES = (
    _entry(
        TemporalFusionTransformer,
        hidden_size=_width,
        hidden_continuous_size=4,
        attention_head_size=2,
        loss=lambda width: QuantileLoss(),
        output_size=7,
    ),
    _entry(NBeats, True, widths=lambda width: [width, width], num_blocks=[1, 1], num_block_layers=[2, 2]),
    _entry(NHiTS, hidden_size=_width, loss=lambda width: MAE()),
    _entry(DeepAR, hidden_size=_width, rnn_layers=2, loss=lambda width: NormalDistributionLoss()),
    _entry(DecoderMLP, hidden_size=_width, loss=lambda width: SMAPE()),
)
