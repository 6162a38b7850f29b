"""timm: classifiers of images."""

import timm
import torch.nn.functional as F  # noqa: N812

from packages import Entry, Fitted, batches, images, labels

PACKAGE = "timm"

_data = batches(lambda g: (images(g), labels(g)))


def _loss(module, batch):
    return F.cross_entropy(module.network(batch[0]), batch[1])


def _entry(name, small, big, **options):
    def build(width):
        return Fitted(
            timm.create_model(name, num_classes=4, **{key: value(width) for key, value in options.items()}), _loss
        )

    return Entry(name, build, _data, small, big)


def _pair(name, small, big, **options):
    names = {1: small, 2: big}
    return Entry(
        name, lambda w: Fitted(timm.create_model(names[w], num_classes=4, **options), _loss), _data, small=1, big=2
    )


ENTRIES = (
    _entry("resnet18", 1, 2, channels=lambda w: (8 * w, 8 * w, 16 * w, 16 * w)),
    _entry("vit_tiny_patch16_224", 48, 96, img_size=lambda w: 32, embed_dim=lambda w: w, depth=lambda w: 2),
    _entry("convnext_atto", 8, 16, dims=lambda w: (w, w, 2 * w, 2 * w), depths=lambda w: (1, 1, 1, 1)),
    _pair("mobilenetv3", "mobilenetv3_small_050", "mobilenetv3_small_075"),
    _pair("mixer", "mixer_s32_224", "mixer_s16_224", img_size=32),
)
