"""Schemas of manifests and classes."""

from nadpipe.store.schema import Column, TableKind

IMAGES = TableKind(
    "images",
    "results/artifacts/<dataset>/images.parquet",
    {
        "image_id": Column("int64", "row number from 0; -1 for a skipped image (skipped images come last)"),
        "path": Column("string", "image file, relative to the working directory unless absolute"),
        "width": Column("int32", "pixels, after EXIF rotation"),
        "height": Column("int32", "pixels, after EXIF rotation"),
        "sha256": Column("string", "checksum of the image file; a stage that decodes the file compares it"),
        "label": Column("text", "class label; may be null"),
        "group": Column("text", "year, batch or source of the image; may be null"),
        "mask_path": Column("string", "label map of the image; may be null"),
        "mask_sha256": Column("string", "checksum of the label map; may be null"),
        "problem": Column("string", "reason for skipping the image; null for images that are used"),
    },
)
CLASSES = TableKind(
    "classes",
    "results/artifacts/<dataset>/classes.parquet",
    {
        "dataset": Column("text", "data set"),
        "class": Column("int32", "index of the class in label maps; -1 for ignored pixels"),
        "title": Column("string", "name in tables and legends; null for ignored pixels"),
        "names": Column("list<string>", "texts of the class; the best one counts"),
        "values": Column("list<int64>", "mask values of the class"),
        "colour": Column("list<int16>", "red, green, blue (0 to 255) in pictures and RGB-coded masks; may be empty for -1"),
    },
)
MASKS = TableKind(
    "masks",
    "results/artifacts/<dataset>/masks.parquet",
    {
        "dataset": Column("text", "data set"),
        "class": Column("int32", "index of the class in label maps; -1 for ignored pixels"),
        "title": Column("string", "name in tables and legends; null for ignored pixels"),
        "pixels": Column("int64", "pixels of the class in all masks"),
        "images": Column("int64", "images whose mask contains the class"),
    },
)
