"""The door to NVIDIA's Model Optimizer for distillation, without its log lines."""

from __future__ import annotations

import importlib
import logging
import warnings
from types import ModuleType

from labsupport.environment.packages import settle_distutils
from labsupport.errors import NotAvailable
from labsupport.quiet import quietly


def modelopt_distill() -> ModuleType:
    """The module modelopt.torch.distill. NotAvailable where the package is missing.

    Source: https://nvidia.github.io/Model-Optimizer/reference/generated/modelopt.torch.distill.html
    """
    try:
        with quietly():
            settle_distutils()
            found = importlib.import_module("modelopt.torch.distill")
    except ImportError as error:
        raise NotAvailable(
            f"nvidia-modelopt cannot be imported ({error}); install it: pip install nvidia-modelopt"
        ) from error
    logging.getLogger("modelopt").setLevel(logging.ERROR)
    # a loss reduced by "mean" makes PyTorch warn at each call, with the path of the installation in the text
    warnings.filterwarnings("ignore", message="reduction: 'mean' divides", category=UserWarning)
    return found
