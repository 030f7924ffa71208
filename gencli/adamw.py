"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) of torch, that starts at once."""

import inspect
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """torch's AdamW without the guards of its methods against compilation, with the same results to the last bit.

    The guards import `torch._dynamo` at the first call, which takes as long as to import all the rest of torch. They
    mean something inside a compiled graph alone, and gencli compiles no optimiser.
    """

    add_param_group: Any = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad: Any = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict: Any = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict: Any = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
