"""Registry of analyses: one record per stage that writes final tables.

The final targets of the Snakefile, the plots with their captions, and lists in the tests are derived from it. It imports
nothing heavy, because the Snakefile reads it at every start.
"""

import dataclasses

from nadpipe.store.kinds import analyses, segmentation, shift, units
from nadpipe.store.schema import CsvKind, TableKind


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Record of an analysis.

    stage: stage, and rule, that writes the tables. kinds: kinds of the tables. category: heading in Snakemake's report.
    plotted: True if nadpipe.pages.figures has a module named like the analysis, which draws the first table. The plot's caption
    is rules/captions/<name>.rst.
    """

    stage: str
    kinds: tuple[CsvKind | TableKind, ...]
    category: str
    plotted: bool = False

    @property
    def tables(self) -> list[str]:
        """Return the paths of the tables."""
        return [kind.path.partition(", ")[0] for kind in self.kinds]  # a kind may name further paths after a comma


ANALYSES = {
    "segmentation": Analysis(
        "score_segmentation", (segmentation.SEGMENTATION, segmentation.PER_CLASS, segmentation.DIFFERENCES), "Segmentation"
    ),
    "registers": Analysis("measure_registers", (segmentation.REGISTERS,), "Registers", plotted=True),
    "shift": Analysis("score_shift", (shift.SHIFT, shift.SHIFT_SCORES), "Shift"),
    "discovered": Analysis("rank_shifts", (shift.DISCOVERED,), "Shift"),
    "units": Analysis("tabulate_units", tuple(units.UNIT_TABLES.values()), "Units"),
    "assignments": Analysis("assign_texts", (units.ASSIGNMENTS["pair"],), "Units"),
    "reconstruction": Analysis("measure_reconstruction", (analyses.RECONSTRUCTION,), "Analyses", plotted=True),
    "sparsity": Analysis("measure_sparsity", (analyses.SPARSITY,), "Analyses", plotted=True),
    "sparse_text": Analysis("measure_sparse_text", (analyses.SPARSE_TEXT,), "Analyses", plotted=True),
    "naming": Analysis("measure_naming", (analyses.NAMING,), "Analyses", plotted=True),
    "faithfulness": Analysis("measure_faithfulness", (analyses.FAITHFULNESS,), "Analyses", plotted=True),
    "polysemanticity": Analysis("measure_polysemanticity", (analyses.POLYSEMANTICITY,), "Analyses", plotted=True),
}
PLOTTED = {name: analysis for name, analysis in ANALYSES.items() if analysis.plotted}


def final_tables() -> list[str]:
    """Return the paths of all final tables."""
    return [table for analysis in ANALYSES.values() for table in analysis.tables]


def final_plots() -> list[str]:
    """Return the paths of the plots."""
    return [f"results/{name}.png" for name in PLOTTED]
