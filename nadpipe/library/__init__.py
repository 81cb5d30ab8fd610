"""The library for notebooks and scripts. `nadpipe` itself exports all of it."""
