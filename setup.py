"""The native extensions, the library that hmmfs run preloads, and files that shells and man(1) look
for; everything else is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMPLETIONS = "hmmfs/share/completions"
# Beside the extension, and built like one, but no module: any program loads it, also while the
# extension is built for a sanitizer.
PRELOAD = Extension(
    "hmmfs.libhmmfs-run",
    sources=sorted(glob("native/preload/*.c")),
    depends=sorted(glob("native/preload/**/*.h", recursive=True)),
    include_dirs=["native"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=[
        *["-O2", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"],
        "-fno-stack-protector",  # helper.c says why
    ],
)


class BuildExt(build_ext):
    """Python's name for an extension is not ours for the library."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("libhmmfs-run"):
            return fullname.replace(".", "/") + ".so"
        return super().get_ext_filename(fullname)


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=[PRELOAD],
    cffi_modules=["native/build.py:ffi", "native/linux/build.py:ffi"],
    data_files=[
        ("share/bash-completion/completions", [f"{COMPLETIONS}/hmmfs"]),
        ("share/zsh/site-functions", [f"{COMPLETIONS}/_hmmfs"]),
        ("share/fish/vendor_completions.d", [f"{COMPLETIONS}/hmmfs.fish"]),
        ("share/man/man1", sorted(glob("hmmfs/share/man/man1/*"))),
        ("share/man/man5", sorted(glob("hmmfs/share/man/man5/*"))),
    ],
)
