"""transformers: models that compute their own loss."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from packages import NUM_SAMPLES, Entry, Fitted, batches, images, labels

PACKAGE = "transformers"

_TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _ids(g, length=10):
    return torch.randint(3, 50, (NUM_SAMPLES, length), generator=g)


def _loss(module, batch):
    return module.network(**batch).loss


def _bert(width):
    return BertForMaskedLM(
        BertConfig(
            hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * width, **_TOKENS
        )
    )


def _distilbert(width):
    config = DistilBertConfig(dim=width, n_layers=2, n_heads=2, hidden_dim=2 * width, num_labels=4, **_TOKENS)
    return DistilBertForSequenceClassification(config)


def _gpt2(width):
    return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=2, n_head=2, n_positions=16, **_TOKENS))


def _llama(width):
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=2 * width,
            **_TOKENS,
        )
    )


def _t5(width):
    config = T5Config(
        d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2, decoder_start_token_id=0, **_TOKENS
    )
    return T5ForConditionalGeneration(config)


def _vit(width):
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            image_size=32,
            patch_size=8,
            num_labels=4,
        )
    )


def _wav2vec2(width):
    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * width,
            conv_dim=(width, width),
            conv_kernel=(10, 3),
            conv_stride=(5, 2),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            mask_time_length=2,
            ctc_loss_reduction="mean",
            ctc_zero_infinity=True,
            vocab_size=20,
        )
    )


def _masked(g):
    ids = _ids(g)
    hidden = torch.rand(ids.shape, generator=g) < 0.3
    return {"input_ids": ids.masked_fill(hidden, 3), "labels": ids.masked_fill(~hidden, -100)}


def _language(g):
    ids = _ids(g)
    return {"input_ids": ids, "labels": ids.clone()}


def _classified(g):
    mask = (torch.arange(10) < torch.randint(3, 11, (NUM_SAMPLES, 1), generator=g)).long()
    return {"input_ids": _ids(g), "attention_mask": mask, "labels": labels(g)}


def _speech(g):
    return {
        "input_values": torch.randn(NUM_SAMPLES, 800, generator=g),
        "labels": torch.randint(1, 20, (NUM_SAMPLES, 5), generator=g),
    }


def _entry(network, make):
    def build(width):
        return Fitted(network(width), _loss)

    return Entry(network.__name__.strip("_"), build, batches(make))


ENTRIES = (
    _entry(_bert, _masked),
    _entry(_distilbert, _classified),
    _entry(_gpt2, _language),
    _entry(_llama, _language),
    _entry(_t5, lambda g: {"input_ids": _ids(g), "labels": _ids(g, 6)}),
    _entry(_vit, lambda g: {"pixel_values": images(g), "labels": labels(g)}),
    _entry(_wav2vec2, _speech),
)
