"""Infinite-width tangent kernels in closed form."""

from mechfeat.ntk.analytic.attention import AttentionKernel
from mechfeat.ntk.analytic.bag import BagKernel
from mechfeat.ntk.analytic.base import AnalyticKernel
from mechfeat.ntk.analytic.bigram import BigramKernel, HadamardKernel
from mechfeat.ntk.analytic.capacity import xor_ratio
from mechfeat.ntk.analytic.conv import ConvKernel
from mechfeat.ntk.analytic.deep import DeepKernel, InfiniteKernels, residual, serial
from mechfeat.ntk.analytic.deep_blocks import Residual
from mechfeat.ntk.analytic.deep_layers import AvgPool, Conv, Dense, Flatten, GlobalAvgPool, Nonlinearity
from mechfeat.ntk.analytic.features import FeatureBlock, FeatureKernel, FeatureMap
from mechfeat.ntk.analytic.mixing import MixingKernel
from mechfeat.ntk.analytic.modules import kernel_of
from mechfeat.ntk.analytic.pooled import PooledKernel
from mechfeat.ntk.analytic.recurrent import GatedLinearRNNKernel, LinearRNNKernel, MatrixVectorRNNKernel, RecurrentKernel

__all__ = [
    "AnalyticKernel",
    "AttentionKernel",
    "AvgPool",
    "BagKernel",
    "BigramKernel",
    "Conv",
    "ConvKernel",
    "DeepKernel",
    "Dense",
    "FeatureBlock",
    "FeatureKernel",
    "FeatureMap",
    "Flatten",
    "GatedLinearRNNKernel",
    "GlobalAvgPool",
    "HadamardKernel",
    "InfiniteKernels",
    "LinearRNNKernel",
    "MatrixVectorRNNKernel",
    "MixingKernel",
    "Nonlinearity",
    "PooledKernel",
    "RecurrentKernel",
    "Residual",
    "kernel_of",
    "residual",
    "serial",
    "xor_ratio",
]
