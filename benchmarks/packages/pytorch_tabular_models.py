"""pytorch-tabular: tables of numbers and categories, through the package's own data module."""

import numpy as np
import pandas as pd
from pytorch_tabular import TabularModel
from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
from pytorch_tabular.models import (
    AutoIntConfig,
    CategoryEmbeddingModelConfig,
    FTTransformerConfig,
    GANDALFConfig,
    TabNetModelConfig,
    TabTransformerConfig,
)

from packages import NUM_SAMPLES, Entry

PACKAGE = "pytorch-tabular"


def _frame():
    random = np.random.default_rng(0)
    frame = pd.DataFrame({f"x{idx}": random.normal(size=4 * NUM_SAMPLES) for idx in range(5)})
    frame["kind"] = random.choice(["a", "b", "c"], len(frame))
    frame["target"] = random.choice(["yes", "no"], len(frame))
    return frame


def _model(config):
    return TabularModel(
        data_config=DataConfig(
            target=["target"], continuous_cols=[f"x{idx}" for idx in range(5)], categorical_cols=["kind"]
        ),
        model_config=config,
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(batch_size=NUM_SAMPLES, progress_bar="none", checkpoints=None, load_best=False),
        verbose=False,
    )


def _entry(config, **options):
    def configured(width):
        sizes = {name: value(width) if callable(value) else value for name, value in options.items()}
        return _model(config(task="classification", **sizes))

    def build(width):
        model = configured(width)
        return model.prepare_model(model.prepare_dataloader(train=_frame(), validation=_frame(), seed=0))

    def data():
        return configured(8).prepare_dataloader(train=_frame(), validation=_frame(), seed=0).train_dataloader()

    return Entry(config.__name__.removesuffix("Config"), build, data)


def _width(width):
    return width


ENTRIES = (
    _entry(CategoryEmbeddingModelConfig, layers=lambda width: f"{width}-{width}"),
    _entry(GANDALFConfig, gflu_stages=lambda width: width // 4),
    _entry(TabNetModelConfig, n_d=_width, n_a=_width),
    _entry(FTTransformerConfig, input_embed_dim=_width, num_heads=2, num_attn_blocks=1),
    _entry(TabTransformerConfig, input_embed_dim=_width, num_heads=2, num_attn_blocks=1),
    _entry(AutoIntConfig, attn_embed_dim=_width, num_heads=2),
)
