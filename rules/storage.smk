# Results and inputs in remote storage such as S3, and local copies of them.
from snakemake.io import is_flagged

# True if results are in remote storage such as S3, not on disk.
STORED = workflow.storage_settings.default_storage_provider is not None
STORED_BELOW = os.path.join(workflow.storage_settings.default_storage_prefix or "", "")


def is_copied(path):
    """Return True if jobs use a staged copy of a path: for URLs, and for generated files when results are remote."""
    return is_url(path) or (STORED and Path(path).is_relative_to(DEMO_FOLDER))


def given(path):
    """Return a path of the config as an input: URLs are fetched, generated files are stored with the results, and all other
    files are on local disk."""
    if is_url(path):
        return storage(path)
    return path if Path(path).is_relative_to(DEMO_FOLDER) else local(path)


def check_apart():
    """Exit if results would be stored in a folder that is fetched as images."""
    for dataset in config["datasets"]:
        folder = source_root(dataset)
        if is_url(folder) and STORED_BELOW.startswith(f"{folder}/"):
            print(
                f"--default-storage-prefix: {STORED_BELOW} is in {folder}, which is fetched as a whole for datasets.{dataset}.path; choose another prefix",
                file=sys.stderr,
            )
            sys.exit(1)


def found_at(path):
    """Return the path at which jobs find a path of the config: the path itself or its staged copy."""
    if is_url(path):
        return str(storage(path))
    if is_copied(path):
        provider = workflow.storage_registry.default_storage_provider
        return str(provider.object(f"{STORED_BELOW}{PREFIX}{path}").local_path())
    return f"{PREFIX}{path}" if Path(path).is_relative_to(DEMO_FOLDER) else path


def written(path):
    """Return a path as the rule states it, without the storage prefix."""
    query = path.storage_object.query if path.is_storage else str(path)
    return query.removeprefix(STORED_BELOW)


def inputs_of(item, wildcards):
    """Return the paths of one input, which is a pattern or a function that returns one path or a list."""
    if not callable(item):
        return [written(item).format(**wildcards)]
    paths = item(wildcards)
    return [paths] if isinstance(paths, str) else list(paths)


def paths_of(pattern):
    """Return a regular expression for the paths that a pattern stands for. Wildcards match neither a slash nor a dot."""
    return re.compile("[^/.]+".join(map(re.escape, re.split(r"{\w+}", pattern))))


def require_markers(reader, folders):
    """Make a rule require the upload markers of the folders that it reads."""
    inputs = list(reader.input)

    def markers(wildcards):
        paths = [path for item in inputs for path in inputs_of(item, wildcards)]
        return [
            f"{path}.uploaded"
            for path in paths
            if any(folder.fullmatch(path) for folder in folders)
        ]

    reader.set_input(uploaded=markers)


def mark_uploads():
    """Add upload markers to all rules, which distinguish complete folders in remote storage from incomplete ones.

    Snakemake uploads a folder file by file, so a lost connection leaves an incomplete folder under its final name, and Snakemake
    considers it complete. Therefore every rule that makes a folder also makes a file, <folder>.uploaded, which is uploaded
    after the folder. Every rule that reads the folder requires this file. A folder without it is made again.
    """
    makers = [
        (maker, written(output))
        for maker in workflow.rules
        for output in maker.output
        if is_flagged(output, "directory")
    ]
    for number, (maker, folder) in enumerate(makers):
        maker.set_output(**{f"uploaded_{number}": touch(f"{folder}.uploaded")})
    folders = [paths_of(folder) for _, folder in makers]
    for reader in workflow.rules:
        require_markers(reader, folders)
