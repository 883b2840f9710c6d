"""Chapter 12, "other layers": an embedding, a table with one learnable vector for each word (or other discrete value).

Looking up a word equals multiplying its one-hot vector by the table, without computing the products with 0. Only the
rows that were looked up get a gradient; for a row that was looked up several times the gradients are added.
"""

import torch
from jaxtyping import Num, Shaped
from torch import Tensor

from reference.arguments import check_dtype, check_integer, check_layout, check_shape
from reference.nn.initialization import normal_


def embedding_definition(
    input: Shaped[Tensor, "*positions"], weight: Num[Tensor, "rows dim"]
) -> Num[Tensor, "*positions dim"]:
    """output[i, …] = weight[input[i, …]]; unlike a Python index, a negative number does not count from the end."""
    return weight.index_select(0, input.reshape(-1)).reshape(*input.shape, weight.shape[1])


def embedding(
    input: Shaped[Tensor, "*positions"],
    weight: Shaped[Tensor, "..."],
    padding_idx: int | None = None,
    max_norm: float | int | None = None,
    norm_type: float | int = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Num[Tensor, "*positions dim"]:
    """output[i, ...] = weight[input[i, ...]].

    Args:
        input: row numbers from 0 to rows - 1, int64 or int32, any shape.
        weight: the table, `[rows, dim]`.
        padding_idx: a row that can be looked up, but gets no gradient; negative numbers count from the end.
        max_norm: first scale each row that is looked up, in place and outside autograd, down to the norm `max_norm`
            if its norm is larger.
        norm_type: the p of the p-norm.
        scale_grad_by_freq: divide the gradient of each row by its number of occurrences in `input`.
        sparse: only False; gradients are dense here.

    Returns:
        `[*positions, dim]`, the dtype of `weight`.

    Raises:
        ValueError: `weight` does not have two dimensions, `padding_idx` is not a row of it, or `sparse` is True.
        TypeError: `input` is neither int64 nor int32.
        IndexError: `input` holds a number that is not a row of `weight` (on the CPU).
    """
    check_layout("embedding: weight", weight, "[rows, dim]")
    check_dtype("embedding: input", input, torch.int64, torch.int32, of="row numbers")
    _check_dense("embedding", sparse)
    padding_idx = _row("embedding", padding_idx, weight.shape[0])
    if max_norm is not None:
        _shorten(weight, input.reshape(-1), max_norm, norm_type)
    rows = _look_up(input, weight)
    if padding_idx is not None:
        rows = torch.where((input == padding_idx)[..., None], rows.detach(), rows)
    if scale_grad_by_freq and rows.requires_grad:
        words = input.reshape(-1)
        counts = words.new_zeros(weight.shape[0]).index_add(0, words, torch.ones_like(words))
        rows.register_hook(lambda gradient: gradient / counts[input][..., None])
    return rows


class Embedding(torch.nn.Module):
    """A table of `num_embeddings` learnable vectors of length `embedding_dim`, and `embedding` as a layer.

    A new table holds N(0, 1), and zeros in the row `padding_idx`.

    Args:
        num_embeddings: number of rows of the table.
        embedding_dim: length of each row.
        padding_idx: a row that gets no gradient; negative numbers count from the end.
        max_norm: scale each row that is looked up down to this norm, if its norm is larger.
        norm_type: the p of the p-norm.
        scale_grad_by_freq: divide the gradient of each row by its number of occurrences in the input.
        sparse: only False; gradients are dense here.
        device: the device of the table.
        dtype: the floating-point type of the table.

    Attributes:
        weight: the table, `[num_embeddings, embedding_dim]`.

    Raises:
        ValueError: `padding_idx` is not a row of the table, or `sparse` is True.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | int | None = None,
        norm_type: float | int = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_dense("Embedding", sparse)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = _row("Embedding", padding_idx, num_embeddings)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        if _weight is None:
            table = torch.empty(num_embeddings, embedding_dim, device=device, dtype=dtype)
            self.weight = torch.nn.Parameter(table, requires_grad=not _freeze)
            self.reset_parameters()
        else:
            check_shape("Embedding: _weight", _weight, (num_embeddings, embedding_dim))
            self.weight = torch.nn.Parameter(_weight, requires_grad=not _freeze)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Shaped[Tensor, "..."],
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | int | None = None,
        norm_type: float | int = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> "Embedding":
        """A layer with the table `embeddings`, `[rows, dim]`; with `freeze` it is not trained.

        Raises:
            ValueError: `embeddings` does not have two dimensions, or as in the constructor.
        """
        check_layout("Embedding.from_pretrained: embeddings", embeddings, "[rows, dim]")
        rows, dim = embeddings.shape
        options = padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        return cls(rows, dim, *options, _weight=embeddings, _freeze=freeze)

    def reset_parameters(self) -> None:
        """Draw a new table."""
        normal_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx] = 0

    def forward(self, input: Shaped[Tensor, "*positions"]) -> Num[Tensor, "*positions dim"]:
        return embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.max_norm is not None:
            text += f", max_norm={self.max_norm}"
        if self.norm_type != 2:
            text += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            text += f", scale_grad_by_freq={self.scale_grad_by_freq}"
        return text


def _look_up(input: Shaped[Tensor, "*positions"], weight: Num[Tensor, "rows dim"]) -> Num[Tensor, "*positions dim"]:
    """Compute the definition; an index out of range raises an error that names it."""
    try:
        return embedding_definition(input, weight)
    except IndexError:  # raised on the CPU only: an accelerator would have to wait for the check
        rows, shape = weight.shape[0], tuple(weight.shape)
        got = f"{input.min()} to {input.max()}"
        raise IndexError(
            f"embedding: input must be from 0 to {rows - 1} for weight of shape {shape}, got {got}"
        ) from None


@torch.no_grad()
def _shorten(
    weight: Num[Tensor, "rows dim"], words: Shaped[Tensor, "n"], max_norm: float | int, norm_type: float | int
) -> None:
    """Multiply each row with a norm above `max_norm` by max_norm / norm; 1e-7 keeps the result below `max_norm`."""
    rows = _look_up(words, weight)
    norms = torch.linalg.vector_norm(rows, norm_type, dim=1, keepdim=True)
    weight[words] = torch.where(norms > max_norm, rows * (max_norm / (norms + 1e-7)), rows)


def _row(name: str, padding_idx: int | None, rows: int) -> int | None:
    """`padding_idx` counted from 0."""
    return None if padding_idx is None else check_integer(f"{name}: padding_idx", padding_idx, -rows, rows - 1) % rows


def _check_dense(name: str, sparse: bool) -> None:
    if sparse:
        raise ValueError(f"{name}: sparse must be False, as gradients are dense here, got {sparse!r}")
