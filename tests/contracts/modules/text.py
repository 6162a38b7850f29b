"""Tokens: classes of texts, next tokens, translations, tags."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torchmetrics.text import Perplexity
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from tests.contracts.modules.registry import NUM_CLASSES, NUM_SAMPLES, Trained, batches, labels, ordinary

NUM_TOKENS = 20
LENGTH = 6


def tokens(g: Generator, length: int = LENGTH) -> Tensor:
    return torch.randint(1, NUM_TOKENS, (NUM_SAMPLES, length), generator=g)


texts = batches(lambda g: (tokens(g), labels(g)))


def bags(g: Generator) -> Any:
    return torch.randint(NUM_TOKENS, (30,), generator=g), torch.tensor([0, 4, 9, 12, 17, 19, 25, 28]), labels(g)


@ordinary(batches(bags), lambda w: w * w + w * NUM_CLASSES, unweighted=["embedding.weight"])
class BagOfWords(Trained):
    """Texts of different lengths in one row, with offsets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(NUM_TOKENS, width, mode="mean")
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        text, offsets, y = batch
        loss = F.cross_entropy(self.head(F.relu(self.hidden(self.embedding(text, offsets)))), y)
        self.log("loss", loss, batch_size=len(y))
        return loss


@ordinary(
    texts,
    lambda w: 8 * w * (5 * 2 + 4 * 3 + 3 * 4) + 3 * w * NUM_CLASSES,
    unweighted=["embedding.weight"],
)
class TextCNN(Trained):
    """Convolutions of three lengths, and the largest of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, 8, padding_idx=0)
        self.convs = nn.ModuleList(nn.Conv1d(8, width, size) for size in (2, 3, 4))
        self.head = nn.Linear(3 * width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.embedding(batch[0]).mT
        x = torch.cat([F.relu(conv(x)).amax(-1) for conv in self.convs], 1)
        return F.cross_entropy(self.head(x), batch[1])


LENGTHS = torch.tensor([6, 2, 5, 3, 6, 4, 1, 5])  # 32 tokens, 4 a text


@ordinary(
    texts,
    lambda w: 4 * 2 * 4 * w * (8 + w) + 2 * w * NUM_CLASSES,
    unweighted=["embedding.weight"],
)
class PackedLSTM(Trained):
    """A bidirectional LSTM over texts that the step packs by length."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, width, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        text, y = batch
        packed = pack_padded_sequence(self.embedding(text), LENGTHS, batch_first=True, enforce_sorted=False)
        hidden = self.lstm(packed)[1][0]
        return F.cross_entropy(self.head(torch.cat(tuple(hidden), 1)), y)


@ordinary(
    batches(lambda g: tokens(g, LENGTH + 1)),
    lambda w: LENGTH * (4 * w * w + 2 * LENGTH * w + 2 * w * 2 * w + w * NUM_TOKENS),
    unweighted=["position.weight"],
)
class CausalLM(Trained):
    """A decoder whose head is its table of tokens; the batch is one tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(NUM_TOKENS, width), nn.Embedding(LENGTH, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, NUM_TOKENS, bias=False)
        self.head.weight = self.embedding.weight
        self.perplexity = Perplexity()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        text, target = batch[:, :-1], batch[:, 1:]
        x = self.embedding(text) + self.position(torch.arange(LENGTH, device=self.device))
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, device=self.device)
        logits = self.head(self.block(x, src_mask=mask, is_causal=True))
        self.perplexity(logits, target)
        self.log("perplexity", self.perplexity)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def translations(g: Generator) -> Any:
    return {"source": tokens(g), "target": tokens(g, LENGTH + 1)}


@ordinary(
    batches(translations),
    lambda w: 2 * LENGTH * 3 * w * 2 * w + LENGTH * (2 * LENGTH * w + 2 * w * NUM_TOKENS),
    unweighted=["*_embedding.weight"],
)
class Seq2Seq(Trained):
    """An encoder and a decoder of GRUs with attention between them; the decoder is given what it should have said."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.source_embedding, self.target_embedding = nn.Embedding(NUM_TOKENS, width), nn.Embedding(NUM_TOKENS, width)
        self.encoder, self.decoder = nn.GRU(width, width, batch_first=True), nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(2 * width, NUM_TOKENS)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        memory, hidden = self.encoder(self.source_embedding(batch["source"]))
        given, wanted = batch["target"][:, :-1], batch["target"][:, 1:]
        x, _ = self.decoder(self.target_embedding(given), hidden)
        context = (x @ memory.mT).softmax(-1) @ memory
        return F.cross_entropy(self.out(torch.cat([x, context], -1)).mT, wanted)


def inputs_of_bert(g: Generator) -> Any:
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (NUM_SAMPLES, 1), generator=g)).long()
    return {"input_ids": tokens(g), "attention_mask": mask, "labels": labels(g)}


@ordinary(
    batches(inputs_of_bert),
    lambda w: LENGTH * (4 * w * w + 2 * LENGTH * w + 2 * w * 2 * w) + w * w + w * NUM_CLASSES,
    unweighted=["*embeddings.weight"],
)
class BERT(Trained):
    """A model of transformers that computes its loss itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=NUM_TOKENS,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=NUM_CLASSES,
        )
        self.model = BertForSequenceClassification(config)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self.model(**batch)
        self.log("loss", output.loss, prog_bar=True)
        return output.loss


@ordinary(
    batches(lambda g: {"input_ids": tokens(g)}),
    lambda w: LENGTH * (4 * w * w + 2 * LENGTH * w + 2 * w * 4 * w + w * NUM_TOKENS),
    unweighted=["*.wpe.weight"],
)
class GPT2(Trained):
    """Has layers of `Conv1D`, which no package but transformers knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"vocab_size": NUM_TOKENS, "n_positions": LENGTH, "n_embd": width, "n_layer": 1, "n_head": 2}
        config = GPT2Config(**sizes, **drop, bos_token_id=0, eos_token_id=0)
        self.model = GPT2LMHeadModel(config)

    def training_step(self, batch: Any, **kwargs: Any) -> Tensor:
        return self.model(input_ids=batch["input_ids"], labels=batch["input_ids"], use_cache=False).loss


@ordinary(texts, lambda w: LENGTH * (2 * 4 * w * (8 + w) + 2 * w * 3), unweighted=["embedding.weight", "transitions"])
class CRFTagger(Trained):
    """A tagger whose loss sums over all sequences of tags."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, 8)
        self.lstm = nn.LSTM(8, width, bidirectional=True, batch_first=True)
        self.emit = nn.Linear(2 * width, 3)
        self.transitions = nn.Parameter(0.1 * torch.randn(3, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        text = batch[0]
        emissions, tags = self.emit(self.lstm(self.embedding(text))[0]), text % 3
        gold = emissions.gather(2, tags[..., None]).sum((1, 2)) + self.transitions[tags[:, :-1], tags[:, 1:]].sum(1)
        alpha = emissions[:, 0]
        for step in emissions[:, 1:].unbind(1):
            alpha = torch.logsumexp(alpha[:, :, None] + self.transitions, 1) + step
        return (torch.logsumexp(alpha, 1) - gold).mean()


@ordinary(
    batches(lambda g: (tokens(g), tokens(g), torch.randint(2, (NUM_SAMPLES,), generator=g))),
    lambda w: 2 * (8 * w + w * w),
    unweighted=["embedding.weight"],
)
class SiameseText(Trained):
    """Two texts, one encoder, a loss on the angle between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS, 8)
        self.encoder = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, width))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b, same = batch
        a, b = (self.encoder(self.embedding(text).mean(1)) for text in (a, b))
        return F.cosine_embedding_loss(a, b, 2.0 * same - 1, margin=0.2)


def packed(g: Generator) -> Any:
    parts = [torch.randn(int(length), 3, generator=g) for length in LENGTHS]
    return {"sequence": pack_sequence(parts, enforce_sorted=False), "label": labels(g)}


@ordinary(batches(packed), lambda w: 4 * 3 * w * (3 + w) + w * NUM_CLASSES)
class PackedGRU(Trained):
    """Takes a `PackedSequence`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, width), nn.Linear(width, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.gru(batch["sequence"])[1][-1]
        return F.cross_entropy(self.head(hidden), batch["label"])


@ordinary(
    texts,
    lambda w: LENGTH * (4 * w * w + 2 * LENGTH * w + w * NUM_TOKENS),
    unweighted=["embedding.weight"],
    comparable=False,
)
class MaskedLM(Trained):
    """Hides tokens at random, and a step in which nothing is hidden has no loss."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_TOKENS + 1, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.out = nn.Linear(width, NUM_TOKENS)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        text, _ = batch
        hidden = torch.rand(text.shape, device=self.device) < 0.3
        if not hidden.any():
            return None
        x = self.embedding(text.masked_fill(hidden, NUM_TOKENS))
        logits = self.out(x + self.attention(x, x, x)[0])
        return F.cross_entropy(logits[hidden], text[hidden])
