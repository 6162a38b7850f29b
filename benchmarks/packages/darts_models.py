"""darts: forecasters; the LightningModule inside a forecaster is built from its data, on pytorch_lightning."""

import numpy as np
from darts import TimeSeries
from darts.models import BlockRNNModel, NBEATSModel, TCNModel, TiDEModel, TransformerModel, TSMixerModel

from packages import NUM_SAMPLES, Entry

PACKAGE = "darts"


def _parts(forecaster):
    series = TimeSeries.from_values(np.random.default_rng(0).normal(size=40).cumsum().astype(np.float32))
    _, given = forecaster._setup_for_fit_from_dataset(series)
    return forecaster._setup_for_train(**given)


def _entry(forecaster, **options):
    def parts(width):
        chosen = {name: value(width) if callable(value) else value for name, value in options.items()}
        chunks = {"input_chunk_length": 12, "output_chunk_length": 4}
        return _parts(forecaster(**chunks, n_epochs=1, batch_size=NUM_SAMPLES, random_state=0, **chosen))

    return Entry(forecaster.__name__, lambda width: parts(width)["model"], lambda: parts(8)["datamodule"])


def _width(width):
    return width


ENTRIES = (
    _entry(NBEATSModel, layer_widths=_width, num_stacks=2, num_layers=2),
    _entry(BlockRNNModel, model="LSTM", hidden_dim=_width, n_rnn_layers=2),
    _entry(TCNModel, num_filters=_width, kernel_size=3),
    _entry(
        TransformerModel, d_model=_width, nhead=2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=_width
    ),
    _entry(TiDEModel, hidden_size=_width),
    _entry(TSMixerModel, hidden_size=_width, ff_size=_width),
)
