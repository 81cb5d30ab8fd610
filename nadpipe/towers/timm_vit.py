"""Vision transformers of timm with a class token: EVA02-CLIP, EVA01-CLIP, MobileCLIP-B and CLIP-ViTs that timm implements.

EVA02 has rotary positions, a gate in the MLP (SwiGLU), and inner norms: of the heads' values before their output, and of the
neurons. Its neurons are what the second matrix of the MLP reads, behind gate and norm.
"""

from typing import Any

import torch
from open_clip.timm_model import TimmModel

from nadpipe.towers import timm_trunk
from nadpipe.towers.class_token import ClassTokenTower, open_class_token_tower
from nadpipe.towers.family import Family, Precision
from nadpipe.towers.preprocessing import Preprocessing
from nadpipe.towers.transformer import Norm


class TimmVit(Family):
    """The family of EVA02-B-16, EVA01-g-14, MobileCLIP-B and other transformers of timm that read out the class token."""

    requirement = "one of timm with a class token that is read out, such as EVA02-B-16"

    def accepts(self, config: dict[str, Any]) -> bool:
        """Return True for the name of a vision transformer of timm and the pool of the class token."""
        return timm_trunk.is_transformer(config) and config["vision_cfg"].get("timm_pool", "avg") == "token"

    def recognises(self, visual: torch.nn.Module) -> bool:
        """Return True for blocks that nadpipe can read, and a class token behind one norm."""
        return self.describe(visual) is None

    def describe(self, visual: torch.nn.Module) -> str | None:
        """Return what prevents nadpipe from reading a tower, in words; None for nothing."""
        problem = timm_trunk.find_problem(visual)
        if problem is not None:
            return problem
        trunk: Any = visual.trunk
        norms = [norm for norm in (trunk.norm, trunk.fc_norm) if not isinstance(norm, torch.nn.Identity)]
        if trunk.global_pool != "token" or trunk.attn_pool is not None:
            return f"the pool {trunk.global_pool}"
        if len(norms) != 1 or not timm_trunk.is_norm(norms[0]):
            return "no norm, or several, behind the last block"
        return None if timm_trunk.read_projection(visual) is not None else "no projection"

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
    ) -> ClassTokenTower:
        """Return a tower that shares all weights with `visual`, except positions for another image size.

        block: block whose MLP neurons are decomposed; the heads of all later blocks read them. shown_block: must be None.
        Raises NadpipeError if there is no such block, no head reads it, or the size is not a whole number of tokens.
        """
        visual, preprocessing = timm_trunk.at_size(visual, preprocessing, image_size)
        trunk = visual.trunk
        norm = trunk.fc_norm if isinstance(trunk.norm, torch.nn.Identity) else trunk.norm
        projection = timm_trunk.read_projection(visual)
        assert projection is not None
        opened = (preprocessing, precision, block, shown_block)
        return open_class_token_tower(visual, timm_trunk.read_trunk(visual), Norm.of(norm), projection, *opened)


FAMILY = TimmVit()
