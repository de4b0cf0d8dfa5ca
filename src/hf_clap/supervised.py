"""The two settings that learn (Elizalde et al. 2022, section 4): a probe on the frozen tower, and fine-tuning."""

import copy
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from .audio import load_audio
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .modeling_classification import HfClapForAudioClassification
from .modeling_hf_clap import HfClapModel
from .task_data import Clip

EPOCHS = 30  # of the paper
BATCH_SIZE = 32
PROBE_LEARNING_RATE = 1e-3
FINETUNE_LEARNING_RATE = 1e-4
HIDDEN_UNITS = 512  # of each hidden layer of a probe with three; the paper does not say


def probe(
    train_embeds: np.ndarray,
    train_targets: np.ndarray,
    test_embeds: np.ndarray,
    *,
    layers: int,
    epochs: int,
    seed: int,
) -> np.ndarray:
    """
    Train fully connected layers on what the frozen tower gives, with Adam at 1e-3, as the paper does.

    Args:
        train_embeds, test_embeds: `(clips, hidden_size)`.
        train_targets: `(clips, classes)` booleans; where every row has one class, softmax, else a sigmoid for each.
        layers: 1 or 3.
        epochs: passes over the clips.
        seed: of the weights to begin with and of the clips' order.

    Returns:
        np.ndarray: `(test clips, classes)` probabilities; 0 for classes without a clip to learn from.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    if layers not in (1, 3):
        raise ValueError(f"A probe has 1 or 3 layers, not {layers}; choose one of these.")
    classifier = MLPClassifier(
        (HIDDEN_UNITS,) * (layers - 1),
        alpha=0.0,  # no weight decay
        batch_size=min(BATCH_SIZE, len(train_embeds)),
        learning_rate_init=PROBE_LEARNING_RATE,
        max_iter=epochs,
        tol=0.0,
        n_iter_no_change=epochs + 1,  # all of them, whatever the loss does
        random_state=seed,
    )
    one_class = bool((train_targets.sum(axis=1) == 1).all())
    present = np.flatnonzero(train_targets.any(axis=0))
    scores = np.zeros((len(test_embeds), train_targets.shape[1]))
    if len(present) == 1:  # nothing to tell apart
        scores[:, present] = 1.0
        return scores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is the paper's
        classifier.fit(train_embeds, train_targets.argmax(axis=1) if one_class else train_targets[:, present])
    scores[:, present] = classifier.predict_proba(test_embeds)
    return scores


def finetune(
    model: HfClapModel,
    extractor: HfClapFeatureExtractor,
    train_clips: Sequence[Clip],
    train_targets: np.ndarray,
    test_clips: Sequence[Clip],
    *,
    epochs: int,
    seed: int,
) -> np.ndarray:
    """
    Train the audio tower and a linear layer on it, with Adam at 1e-4, as the paper does. The model itself stays as it
    is.

    Args:
        model: whose audio tower is taken.
        extractor: its front end.
        train_clips, test_clips: that can be read.
        train_targets: `(clips, classes)` booleans; where every row has one class, softmax, else a sigmoid for each.
        epochs: passes over the clips.
        seed: of the layer's weights, of dropout and of the clips' order.

    Returns:
        np.ndarray: `(test clips, classes)` logits.
    """
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

    class Steps(ProgressCallback):
        """The bar alone: what it would print besides goes to stdout, where the results are."""

        def on_log(self, *arguments: Any, **options: Any) -> None:
            pass

    one_class = bool((train_targets.sum(axis=1) == 1).all())
    config = copy.deepcopy(model.config)
    config.num_labels = train_targets.shape[1]
    config.problem_type = "single_label_classification" if one_class else "multi_label_classification"
    set_seed(seed)
    classifier: Any = HfClapForAudioClassification(config)
    classifier = classifier.to(model.device)
    classifier.audio_model.load_state_dict(model.audio_model.state_dict())
    labels: Any = train_targets.argmax(axis=1) if one_class else train_targets.astype(np.float32)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=BATCH_SIZE,
            lr_scheduler_type="constant",
            remove_unused_columns=False,  # Trainer would strip the clips of what `_collate` needs
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            use_cpu=model.device.type == "cpu",
        )
        arguments._n_gpu = 1  # else all GPUs would share a batch, windows and clips of which are cut apart
        trainer = Trainer(
            classifier,
            arguments,
            data_collator=partial(_collate, extractor),
            train_dataset=list(zip(train_clips, labels, strict=True)),
            optimizers=(torch.optim.Adam(classifier.parameters(), lr=FINETUNE_LEARNING_RATE), None),
        )
        trainer.remove_callback(PrinterCallback)
        if sys.stderr.isatty():
            trainer.add_callback(Steps())
        trainer.train()
        tested: Any = [(clip, None) for clip in test_clips]
        predictions: Any = trainer.predict(tested).predictions
        return predictions


def _collate(extractor: HfClapFeatureExtractor, rows: list[tuple[Clip, Any]]) -> dict[str, torch.Tensor]:
    """A batch as the classifier takes it; files are read here, in the data loader's workers."""
    clips, labels = zip(*rows, strict=True)
    waveforms = [load_audio(clip.audio(), extractor.sampling_rate) for clip in clips]
    features = dict(extractor(waveforms, sampling_rate=extractor.sampling_rate))
    return features if labels[0] is None else features | {"labels": torch.as_tensor(np.stack(labels))}
