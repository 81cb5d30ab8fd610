# Where results are in storage: which folders there are whole.
#
# A folder is stored file by file, so that a lost connection leaves a part of it under its name, which Snakemake takes for the
# folder. So every rule that makes a folder also makes a file, <folder>.uploaded, which is stored behind it, and every rule that
# reads the folder asks for that file: a folder without it is made again.
if STORED:
    makers = [
        (maker, written(made))
        for maker in workflow.rules
        for made in maker.output
        if is_flagged(made, "directory")
    ]
    for maker, folder in makers:
        maker.set_output(uploaded=touch(f"{folder}.uploaded"))
    folders = [paths_of(folder) for _, folder in makers]
    for reader in workflow.rules:
        ask_for_uploads(reader, folders)
