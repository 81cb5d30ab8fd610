"""Score a new batch of images against a stored reference, which is not scored again."""

from pathlib import Path

import pandas as pd

from nadpipe.artifacts import read_images, read_parquet, write_csv
from nadpipe.errors import NadpipeError
from nadpipe.inputs import open_shards, read_pool, read_selection
from nadpipe.shift import Test, compare_groups, groups_of
from nadpipe.stages.score_shift import image_scores, label_columns


def score_batch(
    images: Path,
    contributions: tuple[Path, ...],
    selection: Path,
    reference_scores: Path,
    attnpool_store: Path,
    output: Path,
    dataset: str,
    reference: str | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    test: Test = "mann_whitney",
    small_group: int = 20,
) -> None:
    """Write, per concept and score, how the batch as a whole differs from the reference's images.

    Args:
        images: Manifest of the batch; its groups do not matter.
        contributions: All shards of the batch's contributions.
        selection: Selected pairs of the concepts, those that the reference was scored with.
        reference_scores: Scores of the monitored images, as score-shift wrote them.
        attnpool_store: Exported attention pool.
        output: CSV table as of score-shift, one row a concept and score.
        dataset: Name of the batch in the table.
        reference: Group of the stored scores, the first unless given; or rolling:<n> for its last n groups.
        resamples: Resamples of the bootstrap.
        confidence: Confidence of the intervals.
        seed: Seed of the bootstrap.
        test: mann_whitney, welch or ks (Kolmogorov-Smirnov).
        small_group: Groups of fewer images, and comparisons with fewer, are marked.
    """
    pool, model = read_pool(attnpool_store)
    chosen = read_selection(selection, model)
    stored = read_parquet(reference_scores, "shift_scores", model)
    unscored = set(chosen.texts) - set(stored["concept"])
    if unscored:
        raise NadpipeError(f"{reference_scores}: has no scores of {sorted(unscored)[0]}; run score-shift with these concepts")
    groups = stored.drop_duplicates("image_id").set_index("image_id")["group"].astype(str)
    batch = f"{dataset} (batch)"
    stored_groups = groups_of(groups, reference, str(reference_scores))
    names = list(stored_groups)
    if (reference or "").startswith("rolling:"):
        base = names[-int(reference.removeprefix("rolling:")) :]
    else:
        base = next([name] for name, compared in stored_groups.items() if not compared)
    own = image_scores(open_shards(contributions, "contributions", model), chosen, pool).assign(group=batch)
    before = stored[stored["group"].isin(base)].assign(image_id=lambda rows: -1 - rows["image_id"])  # ids of another data set
    labels = label_columns(read_images(images).set_index("image_id"), chosen.texts, images)
    table = pd.concat([own, before.astype({"group": object, "concept": object, "score": object})], ignore_index=True)
    compared = compare_groups(table, labels.iloc[:, :0], {batch: base}, resamples, confidence, seed, test, small_group)
    rates = compared["concept"].map(labels.mean())
    write_csv(output, "shift", compared.assign(dataset=dataset, k=chosen.pairs.head.shape[1], label_rate=rates))
