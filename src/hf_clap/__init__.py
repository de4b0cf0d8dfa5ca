"""hf_clap: contrastive language-audio pretraining, native to Hugging Face."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

from .audio import load_audio
from .configuration_hf_clap import (
    HfClapCaptioningConfig,
    HfClapCnn14Config,
    HfClapConfig,
    HfClapHtsatConfig,
    HfClapPatchCnnConfig,
)
from .conversion import convert_checkpoint
from .conversion_back import convert_back
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .losses import contrastive_loss, sigmoid_loss
from .modeling_captioning import HfClapForAudioCaptioning
from .modeling_cnn14 import HfClapCnn14Model
from .modeling_hf_clap import (
    HfClapAudioModelWithProjection,
    HfClapModel,
    HfClapOutput,
    HfClapTextModelWithProjection,
)
from .modeling_htsat import HfClapHtsatModel
from .modeling_patch_cnn import HfClapPatchCnnModel
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
for _config in (HfClapConfig, HfClapCaptioningConfig):
    AutoFeatureExtractor.register(_config, HfClapFeatureExtractor, exist_ok=True)
    AutoProcessor.register(_config, HfClapProcessor, exist_ok=True)

# A pushed checkpoint carries these classes' files, so that it loads with trust_remote_code=True without hf_clap.
HfClapConfig.register_for_auto_class()
HfClapModel.register_for_auto_class("AutoModel")
HfClapCaptioningConfig.register_for_auto_class()
HfClapForAudioCaptioning.register_for_auto_class("AutoModel")
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
    "HfClapHtsatConfig",
    "HfClapHtsatModel",
    "HfClapModel",
    "HfClapOutput",
    "HfClapPatchCnnConfig",
    "HfClapPatchCnnModel",
    "HfClapPipeline",
    "HfClapProcessor",
    "HfClapTextModelWithProjection",
    "as_waveform",
    "contrastive_loss",
    "convert_back",
    "convert_checkpoint",
    "load_audio",
    "pipeline",
    "sigmoid_loss",
]
