"""A small causal transformer language model in the standard parameterisation."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechfeat.errors import OptionError, ShapeError
from mechfeat.models.text.ids import check_ids, is_real
from mechfeat.points import point


class CausalAttention(nn.Module):
    """Several heads of attention to the token itself and to earlier ones.

    The ports ``q k v scores pattern z result`` can be recorded here, as ``blocks.0.attn:pattern``.

    Args:
        d_model: Channels.
        n_heads: Heads, a divisor of ``d_model``.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "doc position d_model"]) -> Float[Tensor, "doc position d_model"]:
        """Attention output.

        Args:
            x: The residual stream, normalised.

        Returns:
            What is added to the residual stream.
        """
        n, T, d = x.shape
        q, k, v = (t.reshape(n, T, self.n_heads, d // self.n_heads).transpose(1, 2) for t in self.in_proj(x).chunk(3, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(z.transpose(1, 2).reshape(n, T, d))


class Block(nn.Module):
    """Attention and a hidden layer, each added to the residual stream after a layer norm of its input.

    Args:
        d_model: Channels of the residual stream.
        n_heads: Attention heads.
        d_mlp: Neurons of the hidden layer.
        dropout: Probability by which what is added is dropped in training.
    """

    def __init__(self, d_model: int, n_heads: int, d_mlp: int, dropout: float) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(d_model), CausalAttention(d_model, n_heads)
        self.ln2 = nn.LayerNorm(d_model)
        self.mlp_in, self.act, self.mlp_out = nn.Linear(d_model, d_mlp), nn.GELU(), nn.Linear(d_mlp, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "doc position d_model"]) -> Float[Tensor, "doc position d_model"]:
        """The residual stream after the block.

        Args:
            x: The residual stream before it.

        Returns:
            A tensor of the same shape.
        """
        mid = point(x + self.dropout(self.attn(self.ln1(x))), "resid_mid", self)
        return mid + self.dropout(self.mlp_out(self.act(self.mlp_in(self.ln2(mid)))))


class CausalTransformerLM(nn.Module):
    r"""Next-token logits from a transformer whose positions see only themselves and what came before.

    Standard parameterisation: linear layers and embeddings drawn with standard deviation ``sd``, biases zero, the output matrices of the
    residual stream divided by :math:`\sqrt{2\,\text{layers}}`. Hook points: ``embed`` and ``pos_embed`` (modules), ``blocks.i`` and the
    modules in it, ``blocks.i.resid_mid``, ``ln_final``, ``unembed``; attention ports at ``blocks.i.attn``.

    Args:
        n_tokens: Size of the vocabulary.
        n_ctx: Longest document.
        d_model: Channels of the residual stream.
        n_layers: Blocks.
        n_heads: Attention heads of a block, a divisor of ``d_model``.
        d_mlp: Hidden neurons of a block; four times ``d_model`` by default.
        dropout: Probability of dropout in training.
        sd: Standard deviation of the initial weights.
        tied: Whether the unembedding is the embedding.
        generator: Source of the initial weights; the default one of torch if None.

    Raises:
        OptionError: A size is not a positive integer, or ``n_heads`` does not divide ``d_model``.

    Source:
        Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*, section 2.3 (norms before, scaled outputs).

    Example:
        >>> CausalTransformerLM(11, 6, d_model=8, n_heads=2)(torch.tensor([[3, 1, 4, -1]])).shape
        torch.Size([1, 4, 11])
    """

    def __init__(
        self,
        n_tokens: int,
        n_ctx: int,
        *,
        d_model: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        d_mlp: int | None = None,
        dropout: float = 0.0,
        sd: float = 0.02,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        d_mlp = 4 * d_model if d_mlp is None else d_mlp
        sizes = {"n_tokens": n_tokens, "n_ctx": n_ctx, "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_mlp": d_mlp}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise OptionError(name, size, ("a positive integer",))
        if d_model % n_heads:
            raise OptionError("n_heads", n_heads, tuple(h for h in range(1, d_model + 1) if d_model % h == 0))
        self.n_tokens, self.n_ctx = n_tokens, n_ctx
        self.embed, self.pos_embed = nn.Embedding(n_tokens, d_model), nn.Embedding(n_ctx, d_model)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_mlp, dropout) for _ in range(n_layers))
        self.ln_final = nn.LayerNorm(d_model)
        self.unembed = nn.Linear(d_model, n_tokens, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                deep = name.endswith(("out_proj.weight", "mlp_out.weight"))
                nn.init.normal_(p, 0.0, sd / (2 * n_layers) ** 0.5 if deep else sd, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        if tied:
            self.unembed.weight = self.embed.weight

    def forward(self, ids: Int[Tensor, "doc position"]) -> Float[Tensor, "doc position token"]:
        """Logits of the next token at each position.

        Args:
            ids: Documents, padded by -1.

        Returns:
            Logits; those at padding are 0.

        Raises:
            ShapeError: Documents have more than ``n_ctx`` positions.
        """
        check_ids(ids, self.n_tokens)
        if ids.shape[1] > self.n_ctx:
            raise ShapeError(
                f"ids has {ids.shape[1]} positions, and the model n_ctx={self.n_ctx}. Cut the documents, or build a longer model."
            )
        # Positions are looked up for each document, so that the kernel's rule for tables sees an axis of samples.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        x = self.dropout(self.embed(ids.clamp(min=0).long()) + self.pos_embed(positions))
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln_final(x)) * is_real(ids)[..., None].to(x.dtype)
