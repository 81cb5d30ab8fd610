"""Registry of the segmentation methods: one record per method, without importing torch.

`nadpipe.circuit.segmentation` has one function of the same name per record.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Method:
    """Record of one segmentation method.

    selects: True if the method uses the pairs selected for each text, and so gives one result per k.
    """

    selects: bool
    summary: str


METHODS: dict[str, Method] = {
    "nad": Method(selects=True, summary="the published method"),
    "nad_centred": Method(selects=True, summary="`nad` with each head's mean over the discovery images subtracted"),
    "nad_shifted": Method(selects=True, summary="`nad` with (1 + cos) / 2 in place of the cosine"),
    "heads": Method(selects=True, summary="`nad` without neurons"),
    "neurons": Method(selects=True, summary="`nad` without heads"),
    "maskclip": Method(selects=False, summary="a baseline: each token's own value, without attention"),
    "sclip": Method(selects=False, summary="a baseline: values mixed by query-query and key-key attention"),
    "clearclip": Method(selects=False, summary="a baseline: values mixed by query-query attention"),
    "attention": Method(selects=False, summary="a baseline: each token's part of the pooled embedding"),
    "self_self": Method(selects=False, summary="`sclip` as in the paper's code: with the pooled token, no sink replaced"),
    "values_only": Method(
        selects=False, summary="`maskclip` as in the paper's code: with the positional embedding, no sink replaced"
    ),
}
