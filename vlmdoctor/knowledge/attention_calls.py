"""How a causal mask is given to the attention that a model uses, by the class that its author calls.

Source: the signatures of torch.nn's transformer layers and of torch.nn.functional.
"""

from __future__ import annotations

from collections.abc import Sequence

_MASK = "nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)"
# Class -> the call with a causal mask; the outermost of a model's classes that is here is the one called.
CALLS = {
    "torch.nn.TransformerEncoder": f"encoder(x, mask={_MASK}, is_causal=True)",
    "torch.nn.TransformerEncoderLayer": f"layer(x, src_mask={_MASK}, is_causal=True)",
    "torch.nn.TransformerDecoder": f"decoder(x, memory, tgt_mask={_MASK}, tgt_is_causal=True)",
    "torch.nn.TransformerDecoderLayer": f"layer(x, memory, tgt_mask={_MASK}, tgt_is_causal=True)",
    "torch.nn.Transformer": f"transformer(source, x, tgt_mask={_MASK}, tgt_is_causal=True)",
    "torch.nn.MultiheadAttention": f"attention(x, x, x, attn_mask={_MASK}, is_causal=True)",
}
OWN = "F.scaled_dot_product_attention(q, k, v, is_causal=True)"


def causal_call(classes: Sequence[str], name: str | None = None) -> tuple[str, str]:
    """(what to do, the line) for attention in a module whose classes are these, from the outermost on.

    Args:
        classes: Qualified names of the classes of the modules that contain it, and of itself.
        name: What the author calls the outermost of them that takes a mask, such as `self.layers`.
    """
    for qualified in classes:
        if qualified in CALLS:
            line = CALLS[qualified]
            line = line if name is None else f"{name}{line[line.index('(') :]}"
            return f"give nn.{qualified.rpartition('.')[2]} a causal mask", line
        if qualified.startswith("transformers."):
            return (
                f"leave the mask of {qualified.rpartition('.')[2]} to the model: pass attention_mask as "
                "[batch, tokens], and leave is_causal as the class sets it",
                'model(input_ids=input_ids, attention_mask=batch["attention_mask"])',
            )
    return "apply a causal mask", OWN
