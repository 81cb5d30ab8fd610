"""Commands on results, one module each. Unlike stages, they write nothing that a stage reads."""
