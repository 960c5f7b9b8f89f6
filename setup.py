"""The native extension, and files that shells and man(1) look for; everything else is in
pyproject.toml."""

from glob import glob

from setuptools import setup

COMPLETIONS = "hmmfs/share/completions"

setup(
    cffi_modules=["native/build.py:ffi"],
    data_files=[
        ("share/bash-completion/completions", [f"{COMPLETIONS}/hmmfs"]),
        ("share/zsh/site-functions", [f"{COMPLETIONS}/_hmmfs"]),
        ("share/fish/vendor_completions.d", [f"{COMPLETIONS}/hmmfs.fish"]),
        ("share/man/man1", sorted(glob("hmmfs/share/man/man1/*"))),
        ("share/man/man5", sorted(glob("hmmfs/share/man/man5/*"))),
    ],
)
