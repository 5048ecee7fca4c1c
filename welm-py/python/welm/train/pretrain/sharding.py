"""FSDP2 on CPUs. accelerate has it for accelerators only, and leaves it out elsewhere without a word.

torch has it for CPUs, too. That is slow, but it is how a sharded run is tried where there is no GPU.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import TrainingArguments


def switch_on(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """Has an accelerator of CPUs share out parameters, gradients and the optimizer's state, as these arguments say."""
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    state = accelerator.state
    state.fsdp_plugin = plugin
    # accelerate copies the second over the first now and then.
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
