"""Schemas of segmentation results."""

from nadpipe.store.schema import Column, CsvKind, Final, TableKind

_K = Column("int32", "pairs selected per text of a class; null for methods that select none")
_DATASET = Column("text", "data set")
_METHOD = Column("text", "segmentation method")

CONFUSION = TableKind(
    "confusion",
    "results/artifacts/<dataset>/confusion/<shard>.parquet",
    {
        "dataset": _DATASET,
        "image_id": Column("int64", "row of images.parquet"),
        "method": _METHOD,
        "true_class": Column("int32", "class in the mask; -1 for pixels without one"),
        "predicted_class": Column("int32", "class by the method"),
        "pixels": Column("int64", "number of pixels"),
        "k": _K,
        "temperature": Column("float32", "factor on the logits before the softmax"),
        "sink": Column("int32", "spatial token replaced as attention sink, -1 for none"),
    },
    format=7,  # up to 6, pixels without truth were left out
)
PER_CLASS = TableKind(
    "per_class",
    "results/segmentation/per_class.parquet",
    {
        "dataset": _DATASET,
        "method": _METHOD,
        "k": _K,
        "class": Column("text", "class name"),
        "iou": Column("float64", "intersection over union; null if the class occurs on neither side"),
        "accuracy": Column("float64", "share of the class's pixels found; null if the masks do not contain it"),
        "pixels": Column("int64", "pixels of the class in the masks"),
    },
    Final(
        "score_segmentation",
        "Segmentation",
        "IoU and accuracy of each class for every method.",
        ("segmentation", "masks"),
    ),
)
DIFFERENCES = TableKind(
    "differences",
    "results/segmentation/differences.parquet",
    {
        "dataset": _DATASET,
        "method": _METHOD,
        "k": _K,
        "other_method": Column("text", "method to compare with, on the same images"),
        "other_k": _K,
        "difference": Column("float64", "mIoU of method - mIoU of other_method"),
        "low": Column("float64", "lower end of the jackknife interval over images, which both methods have in common"),
        "high": Column("float64", "upper end"),
    },
    Final(
        "score_segmentation",
        "Segmentation",
        "Differences in mIoU between methods, with intervals over the same images.",
        ("segmentation", "masks"),
    ),
)
REGISTERS = TableKind(
    "registers",
    "results/registers.parquet",
    {
        "kind": Column("text", "token: a spatial token; neuron: effect of zeroing it on the token in column token"),
        "index": Column("int32", "spatial token, row by row from 0, or neuron"),
        "rank": Column(
            "int32",
            "1 for the largest attention (tokens), attention_drop or attention_change (neurons, by registers.rank_by); by "
            "activation - elsewhere if these are null",
        ),
        "attention": Column("float32", "tokens: mean attention over heads and images"),
        "relative_attention": Column("float32", "tokens: attention divided by the median token's"),
        "sink_share": Column(
            "float32",
            "tokens: share of images in which its attention exceeds registers.sink_factor times the median token's and no "
            "neighbour's is larger",
        ),
        "sink": Column("bool", "tokens: true for the attention sink (at most one)"),
        "token": Column(
            "int32", "neurons: token that the next columns refer to: the sink, or else the one of largest mean attention"
        ),
        "attention_drop": Column(
            "float32",
            "neurons: mean decrease of that token's attention if the neuron is zeroed at all tokens; null if attention is "
            "recorded, as in vision transformers",
        ),
        "attention_change": Column("float32", "neurons: mean over images of the absolute change of that token's attention"),
        "embedding_change": Column(
            "float32", "neurons: ‖embedding without the neuron - embedding‖ / ‖embedding‖, mean over images"
        ),
        "activation": Column("float32", "neurons: mean activation at that token"),
        "elsewhere": Column("float32", "neurons: mean activation at the other tokens"),
        "images": Column("int32", "number of images measured"),
    },
    Final(
        "measure_registers",
        "Registers",
        "Mean attention of the spatial tokens, and the neurons without which the strongest token loses most of its attention.",
    ),
)
SEGMENTATION = CsvKind(
    "segmentation",
    "results/segmentation.csv",
    {
        "dataset": "data set",
        "method": "segmentation method",
        "k": "pairs selected per text of a class; empty for methods that select none",
        "miou": "mean intersection over union over classes that occur on either side",
        "miou_low": "lower end of the jackknife interval over images",
        "miou_high": "upper end",
        "pixel_accuracy": "share of labelled pixels that are correct",
        "mean_accuracy": "mean over classes of the share of their pixels found",
        "fw_iou": "IoU weighted by the classes' share of pixels",
        "images": "images with labelled pixels",
        "pixels": "labelled pixels",
        "classes": "classes that occur on either side; the mean is over these",
        "rare_classes": "classes among these that the masks of fewer than 5 images contain; with many of them, mIoU depends on "
        "the size of the data set",
        "temperature": "factor on the logits before the softmax",
        "sink": "spatial token replaced as attention sink, empty for none",
    },
    Final(
        "score_segmentation",
        "Segmentation",
        "Metrics of every method on every data set, with jackknife intervals over images.",
        ("segmentation", "masks"),
    ),
)
IMAGE_SHARES = TableKind(
    "image_shares",
    "results/segmentation/image_shares.parquet",
    {
        "dataset": _DATASET,
        "image_id": Column("int64", "row of images.parquet"),
        "method": _METHOD,
        "k": _K,
        "class": Column("text", "class name; a class without pixels has no row"),
        "pixels": Column("int64", "pixels that the method gives to the class"),
        "share": Column("float64", "share of the image's pixels"),
    },
    Final(
        "measure_shares",
        "Segmentation",
        "Share of each image that every method gives to each class.",
        ("segmentation",),
    ),
)
SHARES = CsvKind(
    "shares",
    "results/shares.csv",
    {
        "dataset": "data set",
        "method": "segmentation method",
        "k": "pairs selected per text of a class; empty for methods that select none",
        "class": "class name",
        "share": "share of an image that the method gives to the class, mean over images",
        "found": "images with at least one pixel of the class",
        "images": "images",
        "mask_share": "share of an image's labelled pixels that the masks give to the class, mean over images; empty without "
        "masks",
        "error": "mean over images of the absolute difference between the method's share of the labelled pixels and the "
        "mask's; empty without masks",
    },
    Final(
        "measure_shares",
        "Segmentation",
        "Mean share of the images that every method gives to each class. Shares are no scores.",
        ("segmentation",),
    ),
    text=("dataset", "class"),
)
SEGMENTED = CsvKind(
    "segmented",
    "<output>/shares.csv",
    {
        "image": "image file",
        "method": "segmentation method",
        "k": "pairs selected per text of a class; empty for methods that select none",
        "class": "class name",
        "pixels": "pixels that the method gives to the class",
        "share": "share of the image's pixels",
    },
    text=("image", "class"),
)
