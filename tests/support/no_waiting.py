"""A mode in which nothing may make the host wait for a device, also found where there is no device to wait for."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Fails on what makes the host wait for a device: reading a tensor's value, or a size that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor's value was read on the host"
        assert func not in (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default), "a size depends on values"
        return func(*args, **(kwargs or {}))
