"""Torch's own layers, written so that ``torch.fx`` can follow them from operation to operation.

Transformer encoders choose among fused kernels by looking at their inputs, which a stand-in of
``torch.fx`` has none of. Here they are the plain sequence of their parts, as in Vaswani et al.
2017, figure 1; each part is the module that the user's layer holds.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn


class EncoderLayer(nn.TransformerEncoderLayer):
    """``nn.TransformerEncoderLayer`` without its fused kernel."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        masks = src_mask, src_key_padding_mask, is_causal
        if self.norm_first:
            x = src + self._sa_block(self.norm1(src), *masks)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._sa_block(src, *masks))
        out: Tensor = self.norm2(x + self._ff_block(x))
        return out


class Encoder(nn.TransformerEncoder):
    """``nn.TransformerEncoder`` without packing what is padded."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        x = src
        for layer in self.layers:
            x = layer(
                x,
                src_mask=mask,
                src_key_padding_mask=src_key_padding_mask,
                is_causal=bool(is_causal),
            )
        return x if self.norm is None else self.norm(x)


_TRACEABLE: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoderLayer: EncoderLayer,
    nn.TransformerEncoder: Encoder,
}


def make_traceable(root: nn.Module, struck: Collection[str] | None = None) -> None:
    """Changes the classes of the modules that ``torch.fx`` cannot follow, of a model of our own.

    Args:
        root: the model.
        struck: paths of what faults strike, parameters and functions included: a layer that has
            none of them inside keeps its fused kernel. None: no layer does.
    """
    for path, module in root.named_modules():
        whole = struck is not None and not any(name.startswith(f"{path}.") for name in struck)
        if not (whole and isinstance(module, nn.TransformerEncoderLayer)):
            module.__class__ = _TRACEABLE.get(type(module), type(module))
