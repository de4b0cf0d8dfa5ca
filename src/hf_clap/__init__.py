"""hf_clap: contrastive language-audio pretraining, native to Hugging Face."""

from typing import Any

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoProcessor

from .audio import load_audio
from .collator import PairCollator
from .configuration_hf_clap import (
    HfClapCaptioningConfig,
    HfClapCnn14Config,
    HfClapConfig,
    HfClapHtsatConfig,
    HfClapPatchCnnConfig,
)
from .contrastive_step import contrastive_step
from .conversion import convert_checkpoint
from .conversion_back import convert_back
from .data import PairStream, interleave_pairs, load_pairs
from .export import export_onnx
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .hub import push_to_hub
from .losses import contrastive_loss, sigmoid_loss
from .model_card import training_card, write_card
from .modeling_captioning import HfClapForAudioCaptioning
from .modeling_classification import HfClapForAudioClassification
from .modeling_cnn14 import HfClapCnn14Model
from .modeling_hf_clap import (
    HfClapAudioModelWithProjection,
    HfClapModel,
    HfClapOutput,
    HfClapTextModelWithProjection,
)
from .modeling_htsat import HfClapHtsatModel
from .modeling_patch_cnn import HfClapPatchCnnModel
from .onnx_model import HfClapOnnxModel
from .pair_columns import Pair, PairError
from .pair_loader import PairLoader
from .pipeline import TINY, HfClapPipeline, pipeline
from .processing_hf_clap import HfClapProcessor
from .waveform import AudioError, as_waveform

__version__ = "0.1.0"

for _config, _model in (
    (HfClapConfig, HfClapModel),
    (HfClapCaptioningConfig, HfClapForAudioCaptioning),
    (HfClapCnn14Config, HfClapCnn14Model),
    (HfClapHtsatConfig, HfClapHtsatModel),
    (HfClapPatchCnnConfig, HfClapPatchCnnModel),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
AutoModelForAudioClassification.register(HfClapConfig, HfClapForAudioClassification, exist_ok=True)
for _config in (HfClapConfig, HfClapCaptioningConfig):
    AutoFeatureExtractor.register(_config, HfClapFeatureExtractor, exist_ok=True)
    AutoProcessor.register(_config, HfClapProcessor, exist_ok=True)

# A pushed checkpoint carries these classes' files, so that it loads with trust_remote_code=True without hf_clap.
HfClapConfig.register_for_auto_class()
HfClapModel.register_for_auto_class("AutoModel")
HfClapCaptioningConfig.register_for_auto_class()
HfClapForAudioCaptioning.register_for_auto_class("AutoModel")
HfClapForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
HfClapFeatureExtractor.register_for_auto_class()
HfClapProcessor.register_for_auto_class()

__all__ = [
    "TINY",
    "AudioError",
    "HfClapAudioModelWithProjection",
    "HfClapCaptioningConfig",
    "HfClapCnn14Config",
    "HfClapCnn14Model",
    "HfClapConfig",
    "HfClapFeatureExtractor",
    "HfClapForAudioCaptioning",
    "HfClapForAudioClassification",
    "HfClapHtsatConfig",
    "HfClapHtsatModel",
    "HfClapModel",
    "HfClapOnnxModel",
    "HfClapOutput",
    "HfClapPatchCnnConfig",
    "HfClapPatchCnnModel",
    "HfClapPipeline",
    "HfClapProcessor",
    "HfClapTextModelWithProjection",
    "HfClapTrainer",
    "HfClapTrainingArguments",
    "Pair",
    "PairCollator",
    "PairError",
    "PairLoader",
    "PairStream",
    "as_waveform",
    "contrastive_loss",
    "contrastive_step",
    "convert_back",
    "convert_checkpoint",
    "export_onnx",
    "interleave_pairs",
    "load_audio",
    "load_pairs",
    "pipeline",
    "push_to_hub",
    "sigmoid_loss",
    "training_card",
    "write_card",
]


def __getattr__(name: str) -> Any:
    # transformers' Trainer takes longer to import than all the rest, and who tags sounds does not need it
    if name in ("HfClapTrainer", "HfClapTrainingArguments"):
        from . import trainer

        return getattr(trainer, name)
    if name == "SoundIndex":  # needs an extra
        from .search import SoundIndex

        return SoundIndex
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
