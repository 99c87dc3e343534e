"""A checkpoint's tensors by our names of them."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from pipeline.importing.files import Checkpoint
from pipeline.importing.source import Source
from shards.errors import BadInput


@dataclass(frozen=True)
class Lookup:
    """Finds a checkpoint's tensor by our name of it."""

    checkpoint: Checkpoint
    source: Source

    def __call__(self, ours: str) -> tuple[str, Tensor] | None:
        """Return (the source's name, tensor), or None."""
        for name in self.names(ours):
            if name in self.checkpoint.tensors:
                return name, self.checkpoint.tensors[name]
        return None

    def names(self, ours: str) -> list[str]:
        """Return what the source calls our tensor: now, and formerly."""
        return self.source.names(ours, self._deformable)

    def read(self, ours: str) -> tuple[str, Tensor]:
        """Return (the source's name, tensor).

        Raises:
            BadInput: there is none, or it has no elements or no axes; it is named.
        """
        found = self(ours)
        if found is None:
            raise BadInput(
                f"{self.checkpoint.path}: lacks {self.names(ours)[0]}; the file is cut or of another "
                "architecture: give a whole Mask R-CNN with FPN, frozen norms and two box layers"
            )
        name, tensor = found
        if not tensor.dim() or not tensor.numel():
            raise BadInput(
                f"{self.checkpoint.path}: {name} is {list(tensor.shape)}, which holds no weights; "
                "fetch the file again"
            )
        return found

    @cached_property
    def _deformable(self) -> bool:
        return any(self.source.offset in name for name in self.checkpoint.tensors)
