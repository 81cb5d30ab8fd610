"""Text towers, which tokenise and embed texts, and averages over prompt templates."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.transformer import TextTransformer
from torch import Tensor

from nadpipe.errors import NadpipeError, first_line
from nadpipe.towers.model import Clip, Model


@dataclasses.dataclass(frozen=True)
class TextTower:
    """The text tower of a model with its tokenizer."""

    clip: Clip
    tokenize: Callable[..., Tensor]  # takes texts, and optionally another context length than the model's own
    device: torch.device

    def embed_texts(self, texts: list[str], batch_size: int | None = None) -> Float[Tensor, "text embed"]:
        """Compute text embeddings, not normalised.

        batch_size: texts per step; None runs all of them at once. Texts of similar length share a step, which saves padding.
        Raises NadpipeError if a text is longer than the model's context, because the tokenizer would cut it silently.
        """
        text_tokens = self.tokenize(texts)
        _check_length(texts, text_tokens, self.tokenize)
        transformer = _transformer(self.clip)
        end = None if transformer is None else _end_token(transformer, text_tokens)
        order = torch.arange(len(texts)) if end is None else end.argsort(stable=True)
        embeddings = []
        for rows in order.split(batch_size or len(texts)):
            batch = text_tokens[rows].to(self.device)
            if transformer is None or end is None:
                embeddings.append(self.clip.encode_text(batch, normalize=False))
            else:
                embeddings.append(_encode_to_end(transformer, batch, end[rows]))
        return torch.cat(embeddings)[order.argsort()]


def text_tower(model: Model) -> TextTower:
    """Return the text tower of a model, ready to run."""
    return TextTower(model.clip, _tokenizer(model.config["text_cfg"]), model.device)


def embed_prompts(
    tower: TextTower, texts: list[str], templates: Sequence[str], batch_size: int | None = None
) -> Float[Tensor, "text embed"]:
    """Compute one embedding per text: the normalised mean over templates of normalised embeddings (CLIP's ensembling).

    templates: prompts with {} in place of the text. batch_size: prompts per step; None runs all of them at once.
    """
    prompts = [template.replace("{}", text) for text in texts for template in templates]
    embedding = F.normalize(tower.embed_texts(prompts, batch_size), dim=-1)
    return F.normalize(embedding.unflatten(0, (len(texts), len(templates))).mean(1), dim=-1)


def _tokenizer(text_config: dict[str, Any]) -> Callable[..., Tensor]:
    length = text_config.get("context_length", 77)
    options = text_config.get("tokenizer_kwargs") or {}
    name = text_config.get("hf_tokenizer_name")
    if name is not None:
        try:
            return open_clip.tokenizer.HFTokenizer(name, context_length=length, trust_remote_code=False, **options)
        except Exception as error:  # transformers and the hub's client raise many kinds: not installed, offline, not found
            raise NadpipeError(
                f"text_cfg.hf_tokenizer_name: cannot load the tokenizer {name} ({first_line(error)}); "
                "install transformers, and check the name and the network"
            ) from None
    return open_clip.SimpleTokenizer(context_length=length, **options)


def _transformer(clip: Clip) -> open_clip.CLIP | TextTransformer | None:
    """Return the module with the layers of open_clip's own text transformer; None for other text towers."""
    if isinstance(clip, open_clip.CLIP):
        return clip
    return clip.text if isinstance(clip.text, TextTransformer) else None


def _check_length(texts: list[str], text_tokens: Int[Tensor, "text token"], tokenize: Callable[..., Tensor]) -> None:
    """Raise NadpipeError if the tokenizer cut a text, so that its tokens change if there is room for one more."""
    length = text_tokens.shape[1]
    full = (text_tokens[:, -1] != 0).nonzero()[:, 0].tolist()
    if not full:
        return
    longer = tokenize([texts[row] for row in full], context_length=length + 1)
    for row, is_cut in zip(full, (longer[:, :length] != text_tokens[full]).any(1).tolist(), strict=True):
        if is_cut:
            raise NadpipeError(f"text {texts[row][:40]!r}…: longer than the model's {length} tokens; shorten it")


def _end_token(
    transformer: open_clip.CLIP | TextTransformer, text_tokens: Int[Tensor, "text token"]
) -> Int[Tensor, " text"] | None:
    """Return the position of each text's end token, or None if a later token can change the embedding.

    None can change it if the transformer pools at the end token and its tokens attend only to earlier ones.
    """
    if transformer.attn_mask is None:
        return None
    if transformer.attn_mask.shape[0] != text_tokens.shape[1]:  # it appends a class token and pools that one
        return None
    is_clip = isinstance(transformer, open_clip.CLIP)
    pool_type = transformer.text_pool_type if is_clip else transformer.pool_type
    if pool_type == "argmax":  # OpenAI's end token has the highest id of the vocabulary
        return text_tokens.argmax(1)
    if pool_type == "eos":
        return torch.eq(text_tokens, transformer.text_eos_id if is_clip else transformer.eos_id).int().argmax(1)
    return None


def _encode_to_end(
    transformer: open_clip.CLIP | TextTransformer, text_tokens: Int[Tensor, "text token"], end: Int[Tensor, " text"]
) -> Float[Tensor, "text embed"]:
    """Compute text embeddings from the tokens up to the end of the longest text.

    The result equals open_clip's encode_text, which runs on the whole context, up to rounding.
    """
    length = int(end.max()) + 1
    x = transformer.token_embedding(text_tokens[:, :length]) + transformer.positional_embedding[:length]
    x = transformer.transformer(x, attn_mask=transformer.attn_mask[:length, :length])
    x = transformer.ln_final(x[torch.arange(len(x)), end])  # the norm acts on each token alone, so the pooled one is enough
    projection = transformer.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
