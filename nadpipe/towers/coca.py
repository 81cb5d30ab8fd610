"""CoCa: open_clip's VisionTransformer with an attentional pooler, whose first query is the image embedding.

The heads are those of the pooler, for its first query. They read all tokens, the class token included, behind the pooler's norm
of its keys. The last norm acts on what they write. The text decoder is not run.
"""

import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from open_clip.transformer import AttentionalPooler, VisionTransformer
from torch import Tensor

from nadpipe.towers.family import Family, Precision
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.query_pool import Pool, QueryPoolTower, open_query_pool_tower, pull_query
from nadpipe.towers.transformer import Linear, Norm, centred
from nadpipe.towers.vit import at_size, has_ordinary_blocks, is_ordinary, read_trunk


@dataclasses.dataclass(frozen=True)
class _Pooler(Pool):
    """The pooler of CoCa: a norm and a projection follow its heads."""

    last_norm: Norm
    last_projection: Linear

    scaled: ClassVar[bool] = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the other paths: β of the last norm."""
        return ("shift",)

    def finish(self, pooled: Float[Tensor, "*view width"]) -> Float[Tensor, "*view embed"]:
        """Compute the last norm and the projection."""
        return self.last_projection(self.last_norm(pooled))

    def projection(self) -> Float[Tensor, "embed width"]:
        """Return the projection, with γ and the centring of the last norm, in float64."""
        return centred(self.last_projection.weight.double() * self.last_norm.weight.double())

    def gain(self, pooled: Float[Tensor, "view width"]) -> Float[Tensor, " view"]:
        """Compute 1/σ of the last norm."""
        return self.last_norm.inverse_deviation(pooled)

    def other_parts(self, pooled: Float[Tensor, "view width"]) -> list[Float[Tensor, "view embed"]]:
        """Compute what β of the last norm adds."""
        shift = self.last_projection.weight.double() @ self.last_norm.bias.double()
        return [shift.to(pooled.dtype).expand(len(pooled), -1)]


class CoCa(Family):
    """The family of coca_ViT-B-32 and coca_ViT-L-14."""

    requirement = "one with the attentional pooler of CoCa, such as coca_ViT-B-32"

    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True for a vision transformer of open_clip with one attentional pooler and without special blocks."""
        return has_ordinary_blocks(config) and config["vision_cfg"].get("attentional_pool") is True

    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True for a VisionTransformer with ordinary blocks that reads out the first query of one pooler."""
        return is_ordinary(visual) and isinstance(visual.attn_pool, AttentionalPooler) and visual.attn_pool_contrastive is None

    def token_size(self, visual: VisionTransformer) -> int:
        """Return the side of a patch in pixels."""
        return visual.patch_size[0]

    def open_tower(
        self,
        visual: VisionTransformer,
        preprocessing: Preprocessing,
        precision: Precision,
        image_size: int | None,
        block: int | None,
        shown_block: int | None,
    ) -> QueryPoolTower:
        """Return a tower that shares all weights with `visual`, except the positional embedding for another image size.

        block: block whose MLP neurons are decomposed, by default the last. shown_block: must be None.
        Raises NadpipeError if there is no such block or the size is not a whole number of tokens.
        """
        visual, preprocessing = at_size(visual, preprocessing, image_size)
        opened = (preprocessing, precision, block, shown_block)
        return open_query_pool_tower(visual, read_trunk(visual), _read_pooler(visual), *opened)


FAMILY = CoCa()


def _read_pooler(visual: VisionTransformer) -> _Pooler:
    """Return the weights of the pooler for its first query."""
    pooler = visual.attn_pool
    module = pooler.attn
    if module.in_proj_weight is None:  # the stream and the embedding differ in width
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    else:
        weights = list(module.in_proj_weight.chunk(3))
    layers = [Linear(weight, bias) for weight, bias in zip(weights, module.in_proj_bias.chunk(3), strict=True)]
    query, key, value = layers
    return _Pooler(
        norm=Norm.of(pooler.ln_k),
        heads=module.num_heads,
        pulled=pull_query(query(pooler.ln_q(pooler.query[0])), key.weight, module.num_heads),
        value=value,
        output=Linear.of(module.out_proj),
        prefix=1,
        last_norm=Norm.of(visual.ln_post),
        last_projection=Linear(visual.proj.T),
    )
