"""The benchmark's rows: what is measured on which data, with which words, and what others have published."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .prompts import DEFAULT_TEMPLATE
from .task_classes import AUDIOSET, FSD50K, VGGSOUND, names

SETTINGS = ("zero-shot", "probe", "finetune", "retrieval")
"""
How a task is done (Elizalde et al. 2022, arXiv 2206.04769, section 4): by the words for its classes alone; by a
classifier on the frozen audio tower; by training both; or, with captions, by looking up one in the other.
"""

TRAIN_AND_TEST = ("train", "test")
"""The folds of a task that is learned on one part and tested on the other."""

METRICS = ("accuracy", "macro F1", "recall", "mAP", "text_to_audio_r@1")
"""Those that count; `hf_clap.metrics` computes others beside them."""


@dataclass(frozen=True)
class HubData:
    """
    Where a task's data are on the Hub.

    Args:
        path: Hub id.
        revision: commit, 40 hexadecimal digits.
        splits: of the Hub, and the fold that each is; None where they are all the clips there are.
        config: of the data set, if it has several.
        audio, label, fold, caption, clip: columns. `clip` is equal for rows of one clip that have a caption each.
        skip_other_labels: whether clips of other classes than the task's are left out.
    """

    path: str
    revision: str
    splits: Mapping[str, str | None]
    config: str | None = None
    audio: str = "audio"
    label: str | None = "label"
    fold: str | None = None
    caption: str | None = None
    clip: str | None = None
    skip_other_labels: bool = False


@dataclass(frozen=True)
class Published:
    """
    A number that others have published for a task.

    Args:
        model: that they measured.
        setting: one of `SETTINGS`.
        metric: as `Task.metric`; for retrieval also `audio_to_text_r@1`.
        value: between 0 and 1.
        source: paper or page.
    """

    model: str
    setting: str
    metric: str
    value: float
    source: str


@dataclass(frozen=True)
class Task:
    """
    One row.

    Args:
        name: that the command line knows it by, and that of its folder.
        title: that people know it by.
        metric: that counts: `accuracy`, `macro F1` or `recall`; `mAP` or `macro F1` where clips may have several
            classes; for captions `text_to_audio_r@1`.
        classes: as a prompt says them, in the order of the data set; none where the task is retrieval.
        multi_label: whether a clip may have several.
        templates: for the classes.
        folds: that the data set prescribes: learn on all but one, test on that one, unless they are `TRAIN_AND_TEST`.
            None are prescribed where it is empty; clips are then dealt out over five.
        folders: that hold a local copy, where it is not one with the task's name.
        hub: the data on the Hub.
        obtain: where else the data are, and under which licence.
        note: on what is particular about these data.
        labels: of the data -> class, where they differ by more than upper case and `_` for space.
        published: what others have measured.

    Raises:
        ValueError: if the metric is not one of those, or two classes differ at most by upper case and `_` for space.
    """

    name: str
    title: str
    metric: str
    classes: tuple[str, ...] = ()
    multi_label: bool = False
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    folds: tuple[str, ...] = TRAIN_AND_TEST
    folders: tuple[str, ...] = ()
    hub: HubData | None = None
    obtain: str = ""
    note: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        metrics: tuple[str, ...] = ("text_to_audio_r@1",)
        if self.classes:
            metrics = ("mAP", "macro F1") if self.multi_label else ("accuracy", "macro F1", "recall")
        if self.metric not in metrics:
            raise ValueError(f"{self.title} cannot have the metric {self.metric!r}; choose {' or '.join(metrics)}.")
        known = set()
        for name in map(plain_label, self.classes):
            if name in known:
                raise ValueError(f"{self.title} has the class {name!r} twice, but for upper case and _; rename one.")
            known.add(name)

    @property
    def settings(self) -> tuple[str, ...]:
        """Of `SETTINGS`, those that the task can be done in; the first is the usual one."""
        return ("zero-shot", "probe", "finetune") if self.classes else ("retrieval",)


def plain_label(label: str) -> str:
    """A label without what may differ between the ways to write it."""
    return label.replace("_", " ").strip().casefold()


def find_task(name: str) -> Task:
    """
    The row of that name.

    Raises:
        ValueError: if there is none.

    Example:

    ```python
    >>> from hf_clap.tasks import find_task

    >>> task = find_task("esc50")
    >>> len(task.classes), task.metric, task.published[0].value
    (50, 'accuracy', 0.826)

    ```
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}; choose all or one of {', '.join(TASKS)}.")
    return TASKS[name]


_CLAP_2022 = "arXiv 2206.04769, results table"
_SOURCES = {
    "CLAP 2023": "arXiv 2309.05767",
    "LAION-CLAP": "arXiv 2211.06687",
    "LAION-CLAP music_speech_audioset": "README of LAION-AI/CLAP",
    "WavCaps": "arXiv 2303.17395",
    "MGA-CLAP": "arXiv 2408.07919",
    "tinyCLAP": "arXiv 2311.14517",
    "WavLink-L": "arXiv 2601.15118",
}


def _clap_2022(
    zero_shot: float, probe: float | None = None, finetune: float | None = None, metric: str = "accuracy"
) -> tuple[Published, ...]:
    values = {"zero-shot": zero_shot, "probe": probe, "finetune": finetune}
    return tuple(
        Published("CLAP 2022", setting, metric, value, _CLAP_2022)
        for setting, value in values.items()
        if value is not None
    )


def _zero_shot(accuracies: Mapping[str, float]) -> tuple[Published, ...]:
    return tuple(
        Published(model, "zero-shot", "accuracy", value, _SOURCES[model]) for model, value in accuracies.items()
    )


def _retrieval(model: str, text_to_audio: float, audio_to_text: float) -> tuple[Published, ...]:
    values = {"text_to_audio_r@1": text_to_audio, "audio_to_text_r@1": audio_to_text}
    return tuple(Published(model, "retrieval", metric, value, _SOURCES[model]) for metric, value in values.items())


_FIVE = ("1", "2", "3", "4", "5")
_TEN = (*_FIVE, "6", "7", "8", "9", "10")
_OWN_FOLDS = "The folds that HEAR made for it are in no copy on the Hub; a column `fold` brings them in. "

_ESC50_HUB = HubData(
    path="mteb/esc50",
    revision="31ea534771aaf92c116698355e5cdc2ffda4bb6d",
    splits={"train": None},
    label="category",
    fold="fold",
    skip_other_labels=True,  # for ESC-10, whose clips are among these
)
_NSYNTH_HUB = HubData(
    path="mteb/nsynth-mini",
    revision="e32dfe9b65e121e64229a821fe1ff177e8962635",
    splits={"train": "train", "test": "test"},
    label="instrument_family_str",
)
_NSYNTH_NOTE = "On the Hub 3,001 notes to learn and 3,002 to test, of the 4,096 that are published. "

_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_OTHER_WORDS = names(
    "zero; one; two; three; four; five; six; seven; eight; nine; bed; bird; cat; dog; happy; house; marvin; "
    "sheila; tree; wow; backward; forward; follow; learn; visual"
)
_PITCHES = ("C", "C sharp", "D", "D sharp", "E", "F", "F sharp", "G", "G sharp", "A", "A sharp", "B")
_NOTES = {str(midi): f"{_PITCHES[midi % 12]} {midi // 12 - 1}" for midi in range(21, 109)}  # those of a piano, as HEAR

_ROWS = (
    # The paper's sixteen
    Task(
        name="esc50",
        title="ESC-50",
        metric="accuracy",
        classes=names(
            "dog; rooster; pig; cow; frog; cat; hen; insects; sheep; crow; rain; sea waves; crackling fire; crickets; "
            "chirping birds; water drops; wind; pouring water; toilet flush; thunderstorm; crying baby; sneezing; "
            "clapping; breathing; coughing; footsteps; laughing; brushing teeth; snoring; drinking sipping; door wood "
            "knock; mouse click; keyboard typing; door wood creaks; can opening; washing machine; vacuum cleaner; "
            "clock alarm; clock tick; glass breaking; helicopter; chainsaw; siren; car horn; engine; train; church "
            "bells; airplane; fireworks; hand saw"
        ),
        folds=_FIVE,
        hub=_ESC50_HUB,
        obtain="https://github.com/karolpiczak/ESC-50 (CC BY-NC 3.0), columns category and fold of meta/esc50.csv.",
        published=(
            *_clap_2022(0.826, 0.931, 0.967),
            *_zero_shot(
                {
                    "CLAP 2023": 0.939,
                    "LAION-CLAP music_speech_audioset": 0.8998,
                    "WavCaps": 0.948,
                    "MGA-CLAP": 0.949,
                    "tinyCLAP": 0.763,
                }
            ),
        ),
    ),
    Task(
        name="fsd50k",
        title="FSD50K",
        metric="mAP",
        classes=FSD50K,
        multi_label=True,
        obtain="https://zenodo.org/record/4060432 (CC BY 4.0; each clip has a licence of its own): labels of dev.csv "
        "(fold train) and eval.csv (fold test).",
        note="Copies on the Hub are parts of it, or plain files.",
        labels={name.replace(", and ", " and ").replace(", ", " and "): name for name in FSD50K if ", " in name},
        published=_clap_2022(0.302, 0.591, 0.586, metric="mAP"),
    ),
    Task(
        name="urbansound8k",
        title="UrbanSound8K",
        metric="accuracy",
        classes=names(
            "air conditioner; car horn; children playing; dog bark; drilling; engine idling; gun shot; jackhammer; "
            "siren; street music"
        ),
        folds=_TEN,
        hub=HubData(
            path="danavery/urbansound8K",
            revision="8aa9177a0c5a6949ee4ee4b7fcabb01dfd4ae466",
            splits={"train": None},
            label="class",
            fold="fold",
        ),
        obtain="https://zenodo.org/record/1203745 (CC BY-NC), columns class and fold of metadata/UrbanSound8K.csv.",
        labels={"enginge idling": "engine idling"},
        published=(
            *_clap_2022(0.732, 0.839, 0.880),
            Published("CLAP 2022", "probe", "accuracy", 0.842, "another run, quoted beside NSynth's 0.682"),
            *_zero_shot({"CLAP 2023": 0.823, "WavCaps": 0.814, "MGA-CLAP": 0.837, "tinyCLAP": 0.694}),
        ),
    ),
    Task(
        name="dcase2017_task4",
        title="DCASE 2017 task 4",
        metric="macro F1",
        classes=names(
            "train horn; air horn, truck horn; car alarm; reversing beeps; ambulance (siren); police car (siren); fire"
            " engine, fire truck (siren); civil defense siren; screaming; bicycle; skateboard; car; car passing by; "
            "bus; truck; motorcycle; train"
        ),
        multi_label=True,
        obtain="https://dcase.community/challenge2017 (lists; the sound is YouTube's): folds train and test.",
        note="The paper says F1 and not how classes are averaged; here each class counts alike. The class that a clip "
        "scores highest in is the one that is predicted.",
        published=_clap_2022(0.300, 0.533, 0.594, metric="macro F1"),
    ),
    Task(
        name="audioset",
        title="AudioSet",
        metric="mAP",
        classes=AUDIOSET,
        multi_label=True,
        hub=HubData(
            path="agkphysics/AudioSet",
            revision="0c609e8302cf139307f639c57652032af0a88041",
            splits={"train": "train", "test": "test"},
            config="balanced",
            label="human_labels",
        ),
        obtain="https://research.google.com/audioset (labels CC BY 4.0; the sound is YouTube's): train and test.",
        note="On the Hub 18,685 balanced clips to learn and 17,141 of 20,371 to test.",
        published=_clap_2022(0.058, metric="mAP"),
    ),
    Task(
        name="tut2017",
        title="TUT Acoustic Scenes 2017",
        metric="accuracy",
        classes=names(
            "beach; bus; cafe/restaurant; car; city center; forest path; grocery store; home; library; metro station; "
            "office; park; residential area; train; tram"
        ),
        obtain="https://zenodo.org/record/400515 (fold train) and https://zenodo.org/record/1040168 (fold test).",
        labels={"cafe restaurant": "cafe/restaurant", "cafe / restaurant": "cafe/restaurant"},
        published=_clap_2022(0.296, 0.710, 0.746),
    ),
    Task(
        name="gtzan_genres",
        title="GTZAN genres",
        metric="accuracy",
        classes=names("blues; classical; country; disco; hiphop; jazz; metal; pop; reggae; rock"),
        folds=(),
        hub=HubData(
            path="sanchit-gandhi/gtzan",
            revision="4bd857132cb0e731bef3ec68558e7acc0a85f144",
            splits={"train": None},
            label="genre",
        ),
        obtain="marsyas/gtzan on the Hub, data/genres.tar.gz (no licence stated).",
        note=_OWN_FOLDS + "On the Hub 999 clips: one of a thousand is damaged.",
        labels={"hip hop": "hiphop", "hip-hop": "hiphop"},
        published=(
            *_clap_2022(0.252, 0.793, 0.913),
            *_zero_shot({"CLAP 2023": 0.584, "LAION-CLAP": 0.472, "LAION-CLAP music_speech_audioset": 0.73}),
        ),
    ),
    Task(
        name="gtzan_music_speech",
        title="GTZAN music/speech",
        metric="accuracy",
        classes=("music", "speech"),
        folds=(),
        obtain="gtzan_music_speech of tensorflow_datasets, 128 clips (no licence stated).",
        note=_OWN_FOLDS.strip(),
        labels={"music wav": "music", "speech wav": "speech"},
        published=_clap_2022(1.0, 1.0, 1.0),
    ),
    Task(
        name="mridangam_stroke",
        title="Mridangam stroke",
        metric="accuracy",
        classes=("bheem", "cha", "dheem", "dhin", "num", "ta", "tha", "tham", "thi", "thom"),
        folds=(),
        obtain="https://zenodo.org/record/4068196 (CC BY 4.0); the stroke is the last part but two of a file's name.",
        note=_OWN_FOLDS + "mteb/mridingham-stroke numbers the classes and does not name them.",
        published=_clap_2022(0.345, 0.775, 0.979),
    ),
    Task(
        name="mridangam_tonic",
        title="Mridangam tonic",
        metric="accuracy",
        classes=("B", "C", "C sharp", "D", "D sharp", "E"),
        folds=(),
        obtain="https://zenodo.org/record/4068196 (CC BY 4.0); the tonic is the last part but one of a file's name.",
        note=_OWN_FOLDS + "mteb/mridingham-tonic numbers the classes and does not name them.",
        labels={"csh": "C sharp", "dsh": "D sharp", "c#": "C sharp", "d#": "D sharp"},
        published=_clap_2022(0.197, 0.639, 0.953),
    ),
    Task(
        name="beijing_opera",
        title="Beijing Opera",
        metric="accuracy",
        classes=("bangu", "naobo", "daluo", "xiaoluo"),
        folds=(),
        obtain="https://zenodo.org/record/1285212 (CC BY); the instrument is the last part but one of a file's name.",
        note=_OWN_FOLDS + "mteb/beijing-opera numbers the classes and does not name them.",
        published=_clap_2022(0.475, 0.775, 0.903),
    ),
    Task(
        name="crema_d",
        title="CREMA-D",
        metric="accuracy",
        classes=("angry", "disgusted", "fearful", "happy", "neutral", "sad"),
        templates=("this person is feeling {}",),
        folds=(),
        hub=HubData(path="mteb/crema-d", revision="a9d0821955c418752248b8310438854e56a1cf34", splits={"train": None}),
        obtain="https://github.com/CheyneyComputerScience/CREMA-D (ODbL).",
        note=_OWN_FOLDS.strip(),
        labels={
            "0": "angry",
            "1": "disgusted",
            "2": "fearful",
            "3": "happy",
            "4": "neutral",
            "5": "sad",
            "anger": "angry",
            "disgust": "disgusted",
            "fear": "fearful",
            "happiness": "happy",
            "sadness": "sad",
            "ang": "angry",
            "dis": "disgusted",
            "fea": "fearful",
            "hap": "happy",
            "neu": "neutral",
        },
        published=_clap_2022(0.178, 0.283, 0.683),
    ),
    Task(
        name="ravdess",
        title="RAVDESS",
        metric="accuracy",
        classes=("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
        templates=("this person is feeling {}",),
        folds=(),
        hub=HubData(
            path="mteb/RavdessZeroshot",
            revision="9ab83d763c01b2dec59d79a6dcb44691d2fb80ee",
            splits={"train": None},
            label="labels",
        ),
        obtain="https://zenodo.org/record/1188976, the speech of it (CC BY-NC-SA 4.0).",
        note="How the paper split it is not known.",
        labels={
            "0": "neutral",
            "1": "calm",
            "2": "happy",
            "3": "sad",
            "4": "angry",
            "5": "fearful",
            "6": "disgust",
            "7": "surprised",
            "fear": "fearful",
            "disgusted": "disgust",
            "surprise": "surprised",
        },
        published=_clap_2022(0.160, 0.452, 0.644),
    ),
    Task(
        name="speech_commands_v2",
        title="Speech Commands V2",
        metric="accuracy",
        classes=(*_WORDS, "unknown", "silence"),
        templates=("{}",),
        hub=HubData(
            path="mteb/speech-commands-mini",
            revision="3ac713aa0829eeadda73182f38bbbd788d21254b",
            splits={"train": "train", "test": "test"},
        ),
        obtain="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz and speech_commands_test_set_v0.02 "
        "(CC BY 4.0): folds train and test.",
        note="On the Hub all 4,890 clips to test, and 50 of each word to learn.",
        labels={
            **{str(number): word for number, word in enumerate(_WORDS)},
            **{str(number): "unknown" for number in range(10, 35)},
            **dict.fromkeys(_OTHER_WORDS, "unknown"),
            "35": "silence",
        },
        published=(*_clap_2022(0.106, 0.371, 0.968), *_zero_shot({"CLAP 2023": 0.164})),
    ),
    Task(
        name="vocal_sound",
        title="Vocal Sound",
        metric="accuracy",
        classes=("laughter", "sigh", "cough", "throat clearing", "sneeze", "sniff"),
        hub=HubData(
            path="mteb/vocalsound",
            revision="426c4f4779901e731f0ba7157de727750325a68b",
            splits={"val": "train", "test": "test"},
            label="answer",
        ),
        obtain="https://github.com/YuanGongND/vocalsound (CC BY-SA 4.0): folds train and test.",
        note="The clips to learn are not on the Hub; those for validation stand in for them.",
        labels={"throatclearing": "throat clearing"},
        published=_clap_2022(0.495, 0.841, 0.980),
    ),
    Task(
        name="libricount10",
        title="LibriCount10",
        metric="accuracy",
        classes=tuple(map(str, range(11))),
        templates=("{} persons speaking",),
        folds=(),
        hub=HubData(
            path="mteb/libricount", revision="cc851c56e30dc5dde80c1823de96d52ca3cb2607", splits={"train": None}
        ),
        obtain="https://zenodo.org/record/1216072 (CC BY 4.0); the count is the first part of a file's name.",
        note=_OWN_FOLDS.strip(),
        published=_clap_2022(0.179, 0.572, 0.778),
    ),
    # What is measured beside them
    Task(
        name="esc10",
        title="ESC-10",
        metric="accuracy",
        classes=names(
            "dog; rooster; rain; sea waves; crackling fire; crying baby; sneezing; clock tick; helicopter; chainsaw"
        ),
        folds=_FIVE,
        hub=_ESC50_HUB,
        obtain="https://github.com/karolpiczak/ESC-50, the clips whose column esc10 is True (CC BY).",
    ),
    Task(
        name="vggsound",
        title="VGGSound",
        metric="accuracy",
        classes=VGGSOUND,
        hub=HubData(
            path="mteb/VGGSound", revision="a994211ca0996558ff6cbd6977b4c1749f49c889", splits={"test": "test"}
        ),
        obtain="https://www.robots.ox.ac.uk/~vgg/data/vggsound (list CC BY 4.0; the sound is YouTube's): folds train "
        "and test.",
        note="On the Hub at most 32 clips of a class to test, at 16 kHz, and none to learn.",
    ),
    Task(
        name="nsynth_instrument",
        title="NSynth instrument",
        metric="accuracy",
        classes=names("bass; brass; flute; guitar; keyboard; mallet; organ; reed; string; synth lead; vocal"),
        hub=_NSYNTH_HUB,
        obtain="https://magenta.tensorflow.org/datasets/nsynth (CC BY 4.0): instrument_family_str, train and test.",
        note=_NSYNTH_NOTE + "No test note is a synth lead.",
        published=(Published("CLAP 2022", "probe", "accuracy", 0.682, "another run, as quoted by later work"),),
    ),
    Task(
        name="nsynth_pitch",
        title="NSynth pitch",
        metric="accuracy",
        classes=tuple(_NOTES.values()),
        templates=("this is a sound of the musical note {}",),
        hub=replace(_NSYNTH_HUB, label="pitch", skip_other_labels=True),
        obtain="https://magenta.tensorflow.org/datasets/nsynth (CC BY 4.0): pitch, train and test.",
        note=_NSYNTH_NOTE + "The 88 pitches of a piano, as in HEAR; others are left out.",
        labels=_NOTES,
    ),
    Task(
        name="audiocaps",
        title="AudioCaps",
        metric="text_to_audio_r@1",
        hub=HubData(
            path="OpenSound/AudioCaps",
            revision="b29b3243d6ce49c2cd0d48d4b5f0701ae7969ded",
            splits={"test": "test"},
            label=None,
            caption="caption",
            clip="youtube_id",
        ),
        obtain="https://audiocaps.github.io (MIT; the sound is YouTube's).",
        note="On the Hub some 883 clips to test of the 957 to 975 that others had: recall is a little easier.",
        published=(
            *_retrieval("LAION-CLAP", 0.361, 0.468),
            *_retrieval("CLAP 2023", 0.356, 0.425),
            *_retrieval("WavLink-L", 0.467, 0.600),
        ),
    ),
    Task(
        name="clotho",
        title="Clotho",
        metric="text_to_audio_r@1",
        hub=HubData(
            path="mteb/Clotho",
            revision="c44521cd4067f134e5f5bace4290b59ed773b451",
            splits={"test": "test"},
            label=None,
            caption="raw_text",
        ),
        obtain="https://zenodo.org/record/4783391, the evaluation set (five captions, with | between them).",
    ),
    # Small sets from public recordings, for development
    Task(
        name="dcase2016_events",
        title="DCASE 2016 task 2 events",
        metric="accuracy",
        classes=names(
            "clearing throat; coughing; door slam; keyboard clicks; keys dropped on a desk; knocking on a door; "
            "laughter; opening a drawer; phone ringing; speech; turning a page"
        ),
        folds=(),
        obtain="the isolated events of DCASE 2016 task 2, 20 of each class.",
    ),
    Task(
        name="kitchen20",
        title="Kitchen20",
        metric="accuracy",
        classes=names(
            "blender; boiling water; book; chopping; clean dishes; cupboard; cutlery; dishwasher; drawer; eat; fridge;"
            " frying pan; juicer; microwave; peel; plates; stove burner; stove fan; sweep; water flowing"
        ),
        folds=(),
        obtain="https://github.com/marc-moreaux/kitchen20.",
    ),
    Task(
        name="instruments",
        title="FSDKaggle2018 instruments",
        metric="accuracy",
        classes=names(
            "acoustic guitar; bass drum; cello; clarinet; double bass; flute; hi hat; saxophone; snare drum; violin or"
            " fiddle"
        ),
        folds=(),
        obtain="https://zenodo.org/record/2552860 (CC BY and CC0, by clip), 30 clips of each.",
    ),
    Task(
        name="speech_commands",
        title="Speech Commands V2, 480 clips",
        metric="accuracy",
        classes=(*_WORDS, "unknown", "silence"),
        templates=("{}",),
        folds=(),
        obtain="the data of speech_commands_v2, 40 clips of each class.",
    ),
    Task(
        name="spoken_digits",
        title="Free Spoken Digits, two speakers",
        metric="accuracy",
        classes=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        templates=("{}",),
        folds=(),
        obtain="https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0), 100 clips of each speaker.",
    ),
    Task(
        name="emodb_emotion",
        title="EmoDB",
        metric="accuracy",
        classes=("angry", "bored", "disgusted", "fearful", "happy", "neutral", "sad"),
        templates=("this person is feeling {}",),
        folds=(),
        obtain="http://emodb.bilderbar.info (free for research), 25 clips of each class, in German.",
    ),
    Task(
        name="speaker_gender",
        title="GRID speakers' gender",
        metric="accuracy",
        classes=("speech, female voice", "speech, male voice"),
        folds=(),
        obtain="https://zenodo.org/record/3625687 (CC BY 4.0), 170 sentences of 34 speakers.",
    ),
    Task(
        name="music_speech",
        title="music/speech, 230 clips",
        metric="accuracy",
        classes=("music", "speech"),
        folds=(),
        folders=("music", "speaker_gender"),
        obtain="the clips of speaker_gender and 60 of music.",
        labels={"speech, female voice": "speech", "speech, male voice": "speech"},
    ),
    Task(
        name="clotho_captions",
        title="Clotho, seven clips",
        metric="text_to_audio_r@1",
        obtain="seven clips of clotho with five captions each: too few to rank models, enough to see that it works.",
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ROWS}
"""Every row by its name."""
