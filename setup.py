"""Packaging of ftjax: `pip install .` for users, `pip install -e .[test]` to work on it."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ftjax/__init__.py").read_text()).group(1)

TPU = ["jax[tpu]>=0.10"]
GPU_AOT = [  # compilers for GPUs that are not there, and what says which cuDNN it would be
    "jax[cuda12-local]>=0.10",
    "nvidia-cuda-nvcc-cu12>=12.6.85",
    "nvidia-cudnn-cu12>=9.8,<10",
]
REMOTE = ["gcsfs>=2026.1"]
TFDS = ["tensorflow-datasets>=4.9.9", "array-record>=0.8"]
EXCEL = ["openpyxl>=3.1"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "jieba>=0.42"]  # that cuts Chinese for search
TEST = [
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff==0.17.6",
    "coverage>=7.4",  # says which tests run a line that scripts/mutants.py changes
    "jsonschema>=4.21",  # of pages in YAML, against which they are checked
    "nbclient>=0.10",  # runs the notebooks, with the next two
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "gcp-storage-emulator>=2026.1",
    *REMOTE,
    *TFDS,
    *EXCEL,
    *TPU,  # steps are compiled for chips that are not there
    # References, of versions that know each other: peft 0.21's prefixes are past_key_values, which
    # transformers 5.24 calls cache. Torch is only ever imported by tests and the benchmarks' peers.
    "torch==2.13.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "sentence-transformers==6.2.0",
    "bitsandbytes>=0.49",
]


class Build(build_py):
    """With the pages of configs/ in the package, where they are found by their names."""

    def run(self) -> None:
        super().run()
        pages = Path(self.build_lib, "ftjax", "configs")
        if not self.editable_mode:  # then they are found in the checkout
            self.mkpath(str(pages))
            for file in sorted(ROOT.glob("configs/*.py")):
                self.copy_file(str(file), str(pages))


setup(
    name="ftjax",
    version=VERSION,
    description="Fine-tuning language models in JAX: a method is a selection of parameters",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ftjax", "ftjax.*"]),
    cmdclass={"build_py": Build},
    package_data={
        "ftjax": ["py.typed"],
        "ftjax.forecast": ["layouts.json"],
        "ftjax.models": ["verified.json"],
    },
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "transformers>=5.0",
        "jinja2>=3.1",  # of chat templates
        "datasets>=4.0",
        "ml-collections>=1.0",
        "pyyaml>=6.0",
        "grain>=0.2.12",
        "safetensors>=0.6",
        # Tokenizers that are published as SentencePiece's files, and Marian's punctuation.
        "sentencepiece>=0.2",
        "protobuf>=4.25",
        "sacremoses>=0.1.1",
        "gguf>=0.17",
        "scikit-learn>=1.5",
        "seqeval>=1.2.2",
        "sacrebleu>=2.5",
        "rouge-score>=0.1.2",
        "regex>=2024.5",
        "nltk>=3.9",
        "matplotlib>=3.9",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
        "ftfy>=6.3",
        "py3langid>=0.4",
        "datasketch>=2.0",
        "python-stdnum>=2.0",
        "phonenumbers>=9.0",
    ],
    extras_require={
        "test": TEST,
        "tpu": TPU,
        "gpu": ["jax[cuda12]>=0.10"],
        "gpu-aot": GPU_AOT,
        "gcs": REMOTE,
        "tfds": TFDS,
        "excel": EXCEL,
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["ftjax=ftjax.commands.entry:console"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
