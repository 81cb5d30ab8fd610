"""Score a new batch of images against a stored reference, without scoring the reference again."""

from pathlib import Path

import pandas as pd

from nadpipe.circuit.shift import ROLLING, Test, compare_groups, group_order, groups_of
from nadpipe.errors import NadpipeError
from nadpipe.stages.score_shift import image_scores, label_columns
from nadpipe.store.kinds.features import CONTRIBUTIONS
from nadpipe.store.kinds.shift import SHIFT, SHIFT_SCORES
from nadpipe.store.manifest import read_images
from nadpipe.store.readout import read_readout
from nadpipe.store.selection import read_selection
from nadpipe.store.shards import open_shards
from nadpipe.store.tables import read_parquet, write_csv


def score_batch(
    images: Path,
    contributions: tuple[Path, ...],
    selection: Path,
    reference_scores: Path,
    readout: Path,
    output: Path,
    dataset: str,
    reference: str | None = None,
    confidence: float = 0.95,
    test: Test = "mann_whitney",
    small_group: int = 20,
) -> None:
    """Write how the batch as a whole differs from the reference images, per concept and score.

    Args:
        images: Manifest of the batch. Groups are ignored.
        contributions: Contributions of all shards of the batch.
        selection: Selected pairs of the concepts, the same as for the reference.
        reference_scores: Scores of the monitored images, written by score-shift.
        readout: Exported readout.
        output: CSV table like score-shift's, one row per concept and score.
        dataset: Name of the batch in the table.
        reference: Group of the stored scores (default: the first), or rolling:<n> for its last n groups.
        confidence: Confidence of the intervals.
        test: mann_whitney, welch or ks (Kolmogorov-Smirnov).
        small_group: Groups and references with fewer images are marked as small and not tested.
    """
    weights, model = read_readout(readout)
    selected = read_selection(selection, model)
    stored = read_parquet(reference_scores, SHIFT_SCORES, model)
    unscored = set(selected.texts) - set(stored["concept"])
    if unscored:
        raise NadpipeError(f"{reference_scores}: has no scores of {sorted(unscored)[0]}; run score-shift with these concepts")
    group = stored.drop_duplicates("image_id").set_index("image_id")["group"].astype(str)
    compared = _reference_groups(group, reference, reference_scores)
    batch = f"{dataset} (batch)"
    scores = image_scores(open_shards(contributions, CONTRIBUTIONS, model), selected, weights).assign(group=batch)
    # negative ids: they belong to another data set and must not equal ids of the batch
    before = stored[stored["group"].isin(compared)].assign(image_id=lambda rows: -1 - rows["image_id"])
    labels = label_columns(read_images(images).set_index("image_id"), selected.texts, images)
    both = pd.concat([scores, before.astype({"group": object, "concept": object, "score": object})], ignore_index=True)
    table = compare_groups(both, labels.iloc[:, :0], {batch: compared}, confidence, test, small_group)
    rates = table["concept"].map(labels.mean())
    table = table.assign(dataset=dataset, k=selected.pairs.head.shape[1], label_rate=rates)
    write_csv(output, SHIFT, table.assign(order=group_order(group.unique().tolist())))


def _reference_groups(group: pd.Series, reference: str | None, source: Path) -> list[str]:
    """Return the groups of the stored scores that a batch is compared with. group: of each scored image."""
    references = groups_of(group, reference, str(source))
    rolling = ROLLING.fullmatch(reference or "")
    if rolling:
        return list(references)[-int(rolling[1]) :]
    return next([name] for name, compared in references.items() if not compared)
