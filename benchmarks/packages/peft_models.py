"""peft: adapters around frozen models of transformers."""

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from packages import NUM_SAMPLES, Entry, Fitted, batches, labels

PACKAGE = "peft"


def _loss(module, batch):
    return module.network(**batch).loss


def _classifier(width):
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=2 * width,
            num_labels=4,
        )
    )


def _lora(width):
    config = LoraConfig(task_type="SEQ_CLS", r=width // 2, target_modules=["query", "value"])
    return Fitted(get_peft_model(_classifier(2 * width), config), _loss)


def _ia3(width):
    config = IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[])
    return Fitted(get_peft_model(_classifier(2 * width), config), _loss)


def _lora_gpt2(width):
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=2 * width, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    )
    config = LoraConfig(task_type="CAUSAL_LM", r=width // 2, target_modules=["c_attn"], fan_in_fan_out=True)
    return Fitted(get_peft_model(model, config), _loss)


def _classified(g):
    return {"input_ids": torch.randint(50, (NUM_SAMPLES, 10), generator=g), "labels": labels(g)}


def _language(g):
    ids = torch.randint(50, (NUM_SAMPLES, 10), generator=g)
    return {"input_ids": ids, "labels": ids.clone()}


ENTRIES = (
    Entry("LoRA, BERT", _lora, batches(_classified)),
    Entry("LoRA, GPT2", _lora_gpt2, batches(_language)),
    Entry("IA3, BERT", _ia3, batches(_classified)),
)
