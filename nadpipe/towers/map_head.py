"""Vision transformers of timm that end in a MAP head, a pool with a learned query: SigLIP, SigLIP 2 and PE-Core.

The heads are those of the pool. They read the tokens behind the last norm: in SigLIP the spatial ones, in PE-Core the class
token as well. An MLP with a residual connection follows them, and in PE-Core a projection. The MLP's path is a part of its own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent
from timm.models.eva import Eva
from torch import Tensor

from nadpipe.towers import timm_trunk
from nadpipe.towers.family import Family, Precision
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.query_pool import Pool, QueryPoolTower, open_query_pool_tower, pull_query
from nadpipe.towers.transformer import Linear, Norm


@dataclasses.dataclass(frozen=True)
class _MapHead(Pool):
    """A MAP head: an MLP with a residual connection follows its heads, then a projection, the identity in SigLIP."""

    mlp: Callable[[Tensor], Tensor]  # with its norm
    last_projection: Linear

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the other paths: the MLP, and the projection's bias."""
        return ("mlp",) if self.last_projection.bias is None else ("mlp", "shift")

    def finish(self, pooled: Float[Tensor, "*view width"]) -> Float[Tensor, "*view embed"]:
        """Compute the MLP and the projection."""
        return self.last_projection(pooled + self.mlp(pooled))

    def projection(self) -> Float[Tensor, "embed width"]:
        """Return the projection in float64."""
        return self.last_projection.weight.double()

    def gain(self, pooled: Float[Tensor, "view width"]) -> None:
        """Return None: no norm is on the path from the heads to the embedding."""

    def other_parts(self, pooled: Float[Tensor, "view width"]) -> list[Float[Tensor, "view embed"]]:
        """Compute what the MLP and the projection's bias add."""
        added = self.mlp(pooled) @ self.last_projection.weight.T
        bias = self.last_projection.bias
        return [added] if bias is None else [added, bias.expand_as(added)]


class MapHead(Family):
    """The family of ViT-B-16-SigLIP, ViT-B-16-SigLIP2, PE-Core-B-16 and other transformers with a MAP head."""

    requirement = "one of timm with a MAP head, such as ViT-B-16-SigLIP or PE-Core-B-16"

    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True for the name of a vision transformer of timm and a MAP head."""
        return timm_trunk.is_transformer(config) and config["vision_cfg"].get("timm_pool", "avg") == "map"

    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True for blocks that nadpipe can read, and a MAP head with one query."""
        return self.describe(visual) is None

    def describe(self, visual: torch.nn.Module) -> str | None:
        """Return what prevents nadpipe from reading a tower, in words; None for nothing."""
        problem = timm_trunk.find_problem(visual)
        if problem is not None:
            return problem
        trunk: Any = visual.trunk
        pool = trunk.attn_pool
        if type(pool) is not AttentionPoolLatent or pool.latent_len != 1 or pool.mlp is None:
            return f"the pool {trunk.global_pool}"
        if pool.pos_embed is not None or not isinstance(pool.k_norm, torch.nn.Identity):
            return "a MAP head with positions or norms of its keys"
        if not timm_trunk.is_norm(trunk.norm) or not isinstance(trunk.fc_norm, torch.nn.Identity):
            return "no norm before the MAP head, or one behind it"
        return None

    def token_size(self, visual: TimmModel) -> int:
        """Return the side of a spatial token in pixels."""
        return timm_trunk.token_size(visual)

    def open_tower(
        self,
        visual: TimmModel,
        preprocessing: Preprocessing,
        precision: Precision,
        image_size: int | None,
        block: int | None,
        shown_block: int | None,
    ) -> QueryPoolTower:
        """Return a tower that shares all weights with `visual`, except positions for another image size.

        block: block whose MLP neurons are decomposed, by default the last. shown_block: must be None.
        Raises NadpipeError if there is no such block or the size is not a whole number of tokens.
        """
        visual, preprocessing = timm_trunk.at_size(visual, preprocessing, image_size)
        opened = (preprocessing, precision, block, shown_block)
        return open_query_pool_tower(visual, timm_trunk.read_trunk(visual), _read_head(visual), *opened)


FAMILY = MapHead()


def _read_head(visual: TimmModel) -> _MapHead:
    """Return the weights of the MAP head."""
    trunk, pool = visual.trunk, visual.trunk.attn_pool
    biases = (None, None) if pool.kv.bias is None else pool.kv.bias.chunk(2)
    key, value = map(Linear, pool.kv.weight.chunk(2), biases)
    projection = timm_trunk.read_projection(visual)
    if projection is None:
        width = pool.proj.weight.shape[0]
        projection = Linear(torch.eye(width, device=pool.proj.weight.device))
    query = pool.q(pool.latent[0, 0]).unflatten(0, (pool.num_heads, -1))
    reads_prefix = isinstance(trunk, Eva) or getattr(trunk, "pool_include_prefix", False)
    return _MapHead(
        norm=Norm.of(trunk.norm),
        heads=pool.num_heads,
        pulled=pull_query(pool.q_norm(query).flatten(), key.weight, pool.num_heads),
        value=value,
        output=Linear.of(pool.proj),
        prefix=trunk.num_prefix_tokens if reads_prefix else 0,
        mlp=lambda pooled: pool.mlp(pool.norm(pooled)),
        last_projection=projection,
    )
