"""Metadata and dependencies of lingo_ds; pyproject.toml sets the tools, constraints.txt pins the versions."""

from setuptools import find_packages, setup

# Top-level folders of the checkout that travel inside the wheel (lingo_ds/utils/resources.py finds them).
RESOURCES = {"lingo_ds.recipes": ("recipes", "*.yaml"), "lingo_ds.ds_configs": ("ds_configs", "*.json")}

setup(
    name="lingo_ds",
    version="0.1.0",
    description="Fine-tunes frozen language models on genome understanding tasks: "
    "SVD adapters with adaptive rank sampling, the backbone sharded by DeepSpeed ZeRO-3",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["genomics", "DNA", "LLM", "fine-tuning", "LoRA", "AdaLoRA", "DeepSpeed", "ZeRO-3"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
    ],
    python_requires=">=3.11",
    packages=[*find_packages(include=["lingo_ds", "lingo_ds.*"]), *RESOURCES],
    package_dir={package: folder for package, (folder, _) in RESOURCES.items()},
    package_data={
        "lingo_ds": [
            "py.typed",
            "models/backbone/english/*",
            "models/ops/allocator/*",
            "models/ops/kernels/*",
        ],
        "lingo_ds.config": ["known_tasks.yaml"],
        "lingo_ds.export": ["model_card.md.jinja"],
        "lingo_ds.monitor": ["html_report.html.jinja", "html_report.js"],
        **{package: [pattern] for package, (_, pattern) in RESOURCES.items()},
    },
    entry_points={"console_scripts": ["lingo-ds = lingo_ds.commands.cli:main"]},
    install_requires=[
        "datasets>=4.0",
        "deepspeed>=0.19.3",  # before it, recomputing activations over frozen weights raises
        "h5py>=3.10",
        "huggingface_hub>=1.5",  # transformers 5.17 needs it
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "numpy>=1.26",
        "psutil>=5.9",
        "pyarrow>=16",
        "pydantic>=2.10",  # before it, a Literal of words and numbers takes words alone
        "pyyaml>=6.0.1",
        "rich>=13",
        "safetensors>=0.8",
        "scikit-learn>=1.4",
        "scipy>=1.11.3",
        "tensorboard>=2.15",
        "torch>=2.11",  # from there on flash attention of packs takes a window and a scale
        "transformers>=5.17,<6",
    ],
    extras_require={
        "explain": ["logomaker>=0.8.7", "pyBigWig>=0.3.22", "tangermeme>=1.0"],
        "gguf": ["accelerate", "gguf>=0.17"],
        "gpu": ["liger-kernel>=0.5"],
        "mpi": ["mpi4py"],
        "quant": ["bitsandbytes>=0.50"],  # its functions for the CPU
        "dev": [
            "accelerate",
            "biopython>=1.73",
            "bitsandbytes>=0.50",
            "build",
            "captum>=0.8",
            "gguf>=0.17",
            "hypothesis",
            "import-linter",
            "ipykernel",
            "logomaker>=0.8.7",
            "mpi4py",
            "mypy",
            "nbclient",
            "peft",
            "pre-commit",
            "pyBigWig>=0.3.22",
            "pyfaidx>=0.9",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "tangermeme>=1.0",
            "types-PyYAML",
            "types-psutil",
            "wheel",
        ],
    },
)
