"""The house rules that a machine can hold: import order, and what the wheel contains."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_clap

PACKAGE = Path(hf_clap.__file__).parent
ROOT = PACKAGE.parents[1]

# DESIGN: data flows one way. A module may import those named here and nothing else of ours.
MAY_IMPORT = {
    "configuration_hf_clap": set(),
    "waveform": set(),
    "log_mel": {"linear", "waveform"},
    "feature_extraction_hf_clap": {"log_mel", "waveform"},
    "losses": set(),
    "processing_hf_clap": set(),
    "whole_file": set(),
    "plot": {"whole_file"},
    "projections": {"configuration_hf_clap"},
    "attention": {"linear"},
    "freed_memory": set(),
    "modeling_audio_tower": {"derived", "freed_memory", "linear"},
    "modeling_cnn14": {"configuration_hf_clap", "folded_conv", "modeling_audio_tower"},
    "derived": set(),
    "linear": {"derived"},
    "folded_conv": {"derived", "linear"},
    "prepared_stage": {"attention", "derived", "linear"},
    "unpadded_encoder": {"derived", "linear"},
    "stretch": {"linear"},
    "modeling_htsat": {
        "attention",
        "configuration_hf_clap",
        "linear",
        "modeling_audio_tower",
        "prepared_stage",
        "stretch",
    },
    "modeling_patch_cnn": {"configuration_hf_clap", "linear", "modeling_audio_tower"},
    "modeling_hf_clap": {
        "configuration_hf_clap",
        "linear",
        "losses",
        "modeling_cnn14",
        "modeling_htsat",
        "modeling_patch_cnn",
        "projections",
        "unpadded_encoder",
    },
    "modeling_captioning": {"attention", "configuration_hf_clap", "modeling_hf_clap"},
    "modeling_classification": {"configuration_hf_clap", "modeling_hf_clap"},
    "checkpoint_names": set(),
    "checkpoint_file": {"checkpoint_names"},
    "checkpoint_config": {"checkpoint_names", "configuration_hf_clap", "feature_extraction_hf_clap"},
    "checkpoint_card": {"checkpoint_file", "checkpoint_names", "feature_extraction_hf_clap", "model_card"},
    "conversion": {
        "checkpoint_card",
        "checkpoint_config",
        "checkpoint_file",
        "checkpoint_names",
        "configuration_hf_clap",
        "feature_extraction_hf_clap",
        "modeling_captioning",
        "modeling_hf_clap",
        "processing_hf_clap",
        "whole_file",
    },
    "conversion_back": {
        "checkpoint_config",
        "checkpoint_names",
        "conversion",
        "feature_extraction_hf_clap",
        "loading",
        "modeling_hf_clap",
        "modeling_htsat",
        "processing_hf_clap",
        "whole_file",
    },
    "model_card": {"feature_extraction_hf_clap", "whole_file"},
    "hub": set(),
    "audio_container": {"waveform"},
    "audio_file": {"audio_container", "waveform"},
    "audio": {"audio_container", "audio_file", "waveform"},
    "corpus": {"pair_columns", "rows"},
    "index_file": {"array_cache", "whole_file"},
    "corpus_embedding": {
        "audio",
        "corpus",
        "embedding",
        "feature_extraction_hf_clap",
        "index_file",
        "pair_columns",
        "waveform",
    },
    "search": {"index_file", "pipeline", "prompts", "whole_file"},
    "demo": {"audio", "pipeline", "plot", "search", "waveform"},
    "embedding": {
        "audio",
        "derived",
        "feature_extraction_hf_clap",
        "freed_memory",
        "modeling_hf_clap",
        "processing_hf_clap",
        "waveform",
    },
    "prompts": set(),
    "loading": {"configuration_hf_clap", "modeling_hf_clap", "onnx_model", "processing_hf_clap"},
    "pipeline": {
        "derived",
        "embedding",
        "linear",
        "loading",
        "modeling_hf_clap",
        "onnx_model",
        "processing_hf_clap",
        "prompts",
        "waveform",
    },
    "onnx_model": {"configuration_hf_clap", "embedding", "feature_extraction_hf_clap", "waveform"},
    "export": {
        "feature_extraction_hf_clap",
        "modeling_hf_clap",
        "onnx_model",
        "processing_hf_clap",
        "whole_file",
    },
    "pair_columns": {"audio", "waveform"},
    "rows": {"pair_columns"},
    "data": {"pair_columns", "prompts", "rows", "waveform"},
    "pair_loader": {"data", "pair_columns"},
    "collator": {"pair_columns"},
    "contrastive_step": {"losses", "modeling_hf_clap"},
    "optimization": {"modeling_hf_clap"},
    "retrieval": set(),
    "training_checkpoint": {"whole_file"},
    "trainer": {
        "collator",
        "contrastive_step",
        "data",
        "losses",
        "model_card",
        "modeling_hf_clap",
        "optimization",
        "pair_loader",
        "retrieval",
        "training_arguments",
        "training_checkpoint",
    },
    "training_arguments": {"data"},
    "task_classes": set(),
    "tasks": {"prompts", "task_classes"},
    "task_data": {"tasks"},
    "array_cache": set(),
    "task_embedding": {"array_cache", "audio", "embedding", "task_data", "tasks"},
    "metrics": set(),
    "supervised": {"audio", "feature_extraction_hf_clap", "modeling_classification", "modeling_hf_clap", "task_data"},
    "task_result": {"tasks", "whole_file"},
    "evaluation": {
        "array_cache",
        "embedding",
        "metrics",
        "prompts",
        "retrieval",
        "supervised",
        "task_embedding",
        "task_result",
        "tasks",
    },
    "comparison": {"task_result"},
    "benchmark_card": {"checkpoint_file", "model_card", "task_result", "tasks"},
    "cli_eval": {
        "array_cache",
        "benchmark_card",
        "cli_options",
        "comparison",
        "embedding",
        "evaluation",
        "loading",
        "model_card",
        "pipeline",
        "plot",
        "prompts",
        "supervised",
        "task_data",
        "task_embedding",
        "task_result",
        "tasks",
    },
    "cli_options": {"pipeline"},
    "cli_export": {"cli_options", "export", "pipeline"},
    "cli_search": {"cli_options", "corpus", "corpus_embedding", "demo", "pipeline", "search"},
    "cli": {
        "audio",
        "checkpoint_file",
        "cli_eval",
        "cli_export",
        "cli_options",
        "cli_search",
        "conversion",
        "conversion_back",
        "corpus",
        "pipeline",
        "plot",
        "prompts",
    },
    "__main__": {"cli"},
}


def with_imports(names):
    """Modules, and all that they import of ours."""
    return names and names | with_imports(set().union(*(MAY_IMPORT[name] for name in names)))


TRAVELS = sorted(
    with_imports({name for name in MAY_IMPORT if name.endswith("_hf_clap") or name.startswith("modeling_")})
)


def imports_of(name):
    """(our modules, top-level names of others') that a module imports, outside try blocks."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    ours, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, name
            assert node.module, f"{name}: `from . import x` does not travel"
            ours.add(node.module)
        elif isinstance(node, ast.ImportFrom) and id(node) not in guarded:
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import) and id(node) not in guarded:
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others


def test_every_module_has_its_place_and_its_test_file():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(MAY_IMPORT)
    covered_together = {
        "__main__": "cli",
        "attention": "modeling_htsat",
        "audio_file": "audio",
        "checkpoint_card": "conversion",
        "checkpoint_config": "conversion",
        "checkpoint_file": "conversion",
        "checkpoint_names": "conversion",
        "cli_export": "export",
        "cli_options": "cli",
        "cli_search": "search",
        "corpus": "corpus_embedding",
        "conversion_back": "conversion",
        "index_file": "corpus_embedding",
        "loading": "pipeline",
        "log_mel": "feature_extraction_hf_clap",
        "modeling_audio_tower": "modeling_hf_clap",
        "onnx_model": "export",
        "pair_columns": "data",
        "rows": "data",
        "supervised": "evaluation",
        "task_classes": "tasks",
        "task_embedding": "evaluation",
        "training_arguments": "trainer",
        "waveform": "feature_extraction_hf_clap",
    }
    for module in modules:
        assert (ROOT / "tests" / f"test_{covered_together.get(module, module)}.py").is_file(), module


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_go_one_way(name):
    ours, others = imports_of(name)
    assert ours <= MAY_IMPORT[name]
    assert "hf_clap" not in others


@pytest.mark.parametrize("name", TRAVELS)
def test_what_travels_needs_transformers_only(name):
    _, others = imports_of(name)
    standard = {"collections", "copy", "dataclasses", "functools", "inspect", "itertools", "math", "typing"}
    standard |= {"contextlib", "numbers", "operator", "os", "threading"}
    assert others - standard <= {"huggingface_hub", "numpy", "torch", "transformers"}


def test_importing_the_package_prints_nothing_and_sets_nothing():
    program = "import logging, sys; level = logging.root.level; import hf_clap; assert logging.root.level == level; "
    program += "assert 'transformers.trainer' not in sys.modules; "  # it takes longer to import than all the rest
    program += "assert not {'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)"  # an extra
    command = [sys.executable, "-W", "error::UserWarning", "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_the_wheel_holds_the_package_and_the_checkpoint(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("hf_clap-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"hf_clap/{path.relative_to(PACKAGE).as_posix()}" for path in PACKAGE.rglob("*") if path.is_file()}
    expected |= {f"hf_clap/example_sounds/{path.name}" for path in (ROOT / "examples" / "audio").iterdir()}
    assert {name for name in expected if "__pycache__" not in name} == {
        name for name in names if "dist-info" not in name
    }
    assert "hf_clap/checkpoints/tiny/model.safetensors" in names
    assert "hf_clap/py.typed" in names


def test_version_is_in_the_changelog():
    assert re.search(rf"^## {re.escape(hf_clap.__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
