"""Search spaces: the architectures, their costs, and how to build them."""

# Importing a space's file registers it.
from lightning_zico.spaces.autoformer import (
    AutoFormerArch,
    AutoFormerBase,
    AutoFormerLayer,
    AutoFormerSmall,
    AutoFormerTiny,
)
from lightning_zico.spaces.base import ArchSyntaxError, SearchSpace, get_space, list_spaces, register_space
from lightning_zico.spaces.bert import BERTArch, BERTLayer, BERTSpace, NASBenchBERT, NASBenchBERTNamed
from lightning_zico.spaces.darts import DARTS, DARTSArch, DARTSCell, DARTSImageNet, DARTSSpace, NASBench301
from lightning_zico.spaces.nas_bench_101 import NASBench101, NASBench101Arch
from lightning_zico.spaces.nas_bench_201 import NASBench201, NASBench201Arch
from lightning_zico.spaces.nats_bench_size import NATSBenchSize, NATSBenchSizeArch
from lightning_zico.spaces.pit import PiT, PiTArch
from lightning_zico.spaces.plainnet import PlainNet, PlainNetArch, PlainNetBlock, PlainNetSE
from lightning_zico.spaces.transnas import TransNASMacro, TransNASMacroArch, TransNASMicro, TransNASMicroArch

__all__ = [
    "DARTS",
    "ArchSyntaxError",
    "AutoFormerArch",
    "AutoFormerBase",
    "AutoFormerLayer",
    "AutoFormerSmall",
    "AutoFormerTiny",
    "BERTArch",
    "BERTLayer",
    "BERTSpace",
    "DARTSArch",
    "DARTSCell",
    "DARTSImageNet",
    "DARTSSpace",
    "NASBench101",
    "NASBench101Arch",
    "NASBench201",
    "NASBench201Arch",
    "NASBench301",
    "NASBenchBERT",
    "NASBenchBERTNamed",
    "NATSBenchSize",
    "NATSBenchSizeArch",
    "PiT",
    "PiTArch",
    "PlainNet",
    "PlainNetArch",
    "PlainNetBlock",
    "PlainNetSE",
    "SearchSpace",
    "TransNASMacro",
    "TransNASMacroArch",
    "TransNASMicro",
    "TransNASMicroArch",
    "get_space",
    "list_spaces",
    "register_space",
]
