"""Ask a trained model: the prompt is made by the code that compiled its data, from the fingerprint kept beside it.

`open_assistant(folder).answer([Request(["What is this?"], Path("a.jpg"))])`, or `python -m trainer.inference.chat`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.inference.asking import GREEDY, Answer, Request, Sampling

if TYPE_CHECKING:
    from trainer.inference.assistant import Assistant
    from trainer.inference.loading import open_assistant

__all__ = ["GREEDY", "Answer", "Assistant", "Request", "Sampling", "open_assistant"]

#: Found when they are asked for, so that a command's `--help` does not wait for torch.
_HEAVY = {"Assistant": "trainer.inference.assistant", "open_assistant": "trainer.inference.loading"}


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HEAVY[name]), name)
