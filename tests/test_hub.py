"""Pushing to a Hub over HTTP and loading from it in other processes; uploads that break leave nothing half done."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from types import SimpleNamespace
from urllib.error import HTTPError

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError

import hf_clap
from conftest import SMALL_AUDIO, SMALL_TEXT, tone
from hf_clap.hub import checkpoint_files
from loopback_hub import COMMIT, loopback_hub

RESULT = {"dataset_type": "ashraq/esc50", "dataset_name": "ESC-50", "metric_type": "accuracy", "metric_value": 0.25}

# A process of its own, because huggingface_hub reads its settings as it is imported; one for all pushes, because that
# takes seconds. It reads calls and writes what came of them, a line of JSON each.
CLIENT = """
import json, sys, time
import huggingface_hub
import hf_clap

time.sleep = lambda seconds: None  # huggingface_hub waits 23 s between its own six attempts
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    name, arguments, options, endpoint = json.loads(line)
    if endpoint:
        usual, huggingface_hub.constants.ENDPOINT = huggingface_hub.constants.ENDPOINT, endpoint
    try:
        if name == "push_to_hub":
            answer = {"url": hf_clap.push_to_hub(*arguments, **options)}
        elif name == "files":
            answer = huggingface_hub.HfApi().list_repo_files(*arguments, **options)
        else:
            folder, repo_id = arguments
            answer = {"url": str(getattr(hf_clap, name).from_pretrained(folder).push_to_hub(repo_id, **options))}
    except Exception as error:
        causes, cause = [], error
        while cause := cause.__cause__:
            causes.append(type(cause).__name__)
        answer = {"error": type(error).__name__, "message": str(error), "causes": causes}
    if endpoint:
        huggingface_hub.constants.ENDPOINT = usual
    print(json.dumps(answer), file=answers, flush=True)
"""

LOAD = """
import json, re, sys
import hf_clap
import torch
from hf_clap import HfClapModel, HfClapProcessor
from huggingface_hub import ModelCard, hf_hub_download

EMBED

card = ModelCard(open(hf_hub_download("user/model", "README.md")).read())
(code,) = re.findall(r"```python\\n(.*?)```", card.text, re.DOTALL)
exec(code, {})
"""
LOAD_CODE = """
import json, sys
sys.modules["hf_clap"] = None  # as if it were not installed: any import of it fails
import torch
from transformers import AutoModel as HfClapModel, AutoProcessor as HfClapProcessor

EMBED
"""
EMBED = """
import numpy as np
torch.set_num_threads(2)
model = HfClapModel.from_pretrained("user/model", trust_remote_code=True).eval()
processor = HfClapProcessor.from_pretrained("user/model", trust_remote_code=True)
with torch.inference_mode():
    output = model(**processor(text=["a dog"], audio=np.load("tone.npy"), sampling_rate=16000))
np.savez(sys.argv[1], audio=output.audio_embeds, text=output.text_embeds)
print(type(model).__module__)
"""


def environment(url, home):
    """Of a process that has this Hub and no other."""
    return os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # where hf_xet is installed, huggingface_hub 2 sends large files to the xet storage and nowhere else: a Hub
        # without one, as this, answers 404 and the push ends there
        "HF_HUB_DISABLE_XET": "1",
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub, its folder, its requests, what it is to break, and `call`, which has another process push to it."""
    folder = tmp_path_factory.mktemp("hub")
    cut, fail = {}, []
    with loopback_hub(folder / "repositories", cut, fail) as (url, requests), (folder / "log").open("w") as log:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(url, folder / "home"),
            cwd=folder,
            text=True,
        )

        def call(name, *arguments, endpoint=None, **options):
            requests.clear()
            asked = [name, [str(each) for each in arguments], options, endpoint]
            print(json.dumps(asked), file=client.stdin, flush=True)
            return json.loads(client.stdout.readline())

        yield SimpleNamespace(
            url=url, folder=folder / "repositories", requests=requests, cut=cut, fail=fail, call=call
        )
        client.stdin.close()
        client.wait()


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    text = SMALL_TEXT | {"vocab_size": len(processor.tokenizer)}
    return hf_clap.HfClapModel(
        hf_clap.HfClapConfig(text_config=text, audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"]), projection_dim=12)
    ).eval()


@pytest.fixture(scope="module")
def saved(model, processor, tmp_path_factory):
    """A complete checkpoint with its card."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    extractor = processor.feature_extractor
    card = hf_clap.training_card(
        "user/model", model, extractor, results=[RESULT], license="mit", base_model="user/base"
    )
    hf_clap.write_card(folder, card)
    return folder


@pytest.fixture
def sharded(model, saved, tmp_path):
    """The same with its weights in two files."""
    folder = tmp_path / "sharded"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="1500KB")
    assert len(list(folder.glob("model-*.safetensors"))) == 2
    return folder


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sent(requests):
    """The SHA-256 of the large files that were sent."""
    return [path.split("/")[2] for method, path in requests if method == "PUT"]


def commits(requests):
    return [path for method, path in requests if "/commit/" in path]


def load_elsewhere(program, hub, tmp_path):
    np.save(tmp_path / "tone.npy", tone(2.0))
    soundfile.write(tmp_path / "sound.wav", tone(2.0), 16000)
    finished = subprocess.run(
        [sys.executable, "-c", program.replace("EMBED", EMBED), "embeds.npz"],
        capture_output=True,
        text=True,
        env=environment(hub.url, tmp_path / "home"),
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, np.load(tmp_path / "embeds.npz")


@pytest.mark.parametrize(("program", "module"), [(LOAD, "hf_clap."), (LOAD_CODE, "transformers_modules.user.model.")])
def test_what_is_pushed_loads_elsewhere(program, module, hub, saved, processor, tmp_path):
    assert hub.call("push_to_hub", saved, "user/model") == {"url": f"{hub.url}/user/model"}
    printed, embeds = load_elsewhere(program, hub, tmp_path)
    assert printed.startswith(module)
    assert ("score" in printed) == (program == LOAD)  # what the card's own code prints
    # from the file, too: where weights lie in memory decides on torch's kernels and so on the last bit
    model = hf_clap.HfClapModel.from_pretrained(saved).eval()
    with torch.inference_mode():
        output = model(**processor(text=["a dog"], audio=tone(2.0), sampling_rate=16000))
    assert np.array_equal(embeds["audio"], output.audio_embeds)
    assert np.array_equal(embeds["text"], output.text_embeds)


def test_all_files_arrive_in_one_commit_and_training_stays_at_home(hub, saved, tmp_path):
    folder = tmp_path / "trained"
    shutil.copytree(saved, folder)
    leftovers = (
        "checkpoint-10/model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "training_args.bin",
        "trainer_state.json",
        "runs/Nov23/events.out.tfevents.1",
        ".README.md.new",
        ".cache/huggingface/x",
        "__pycache__/losses.pyc",
    )
    for name in leftovers:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left over")
    (folder / "figures").mkdir()
    (folder / "figures" / "recall.txt").write_text("one's own")
    assert "url" in hub.call("push_to_hub", folder, "user/trained")
    assert len(commits(hub.requests)) == 1
    place = hub.folder / "user" / "trained"
    arrived = {file.relative_to(place).as_posix(): file for file in place.rglob("*") if file.is_file()}
    assert set(arrived) == {file.name for file in saved.iterdir()} | {"figures/recall.txt"}
    assert all(file.read_bytes() == (folder / name).read_bytes() for name, file in arrived.items())
    card = ModelCard.load(place / "README.md").data
    assert (card.license, card.base_model, card.eval_results[0].metric_value) == ("mit", "user/base", 0.25)


def test_the_same_again_sends_nothing(hub, saved):
    assert "url" in hub.call("push_to_hub", saved, "user/again")
    assert len(commits(hub.requests)) == 1
    assert "url" in hub.call("push_to_hub", saved, "user/again")
    assert (sent(hub.requests), commits(hub.requests)) == ([], [])


def test_a_cut_upload_is_invisible_and_goes_on_where_it_broke(hub, sharded):
    larger, smaller = sorted(sharded.glob("model-*.safetensors"), key=lambda file: -file.stat().st_size)
    hub.cut[sha256(larger)] = 300_000
    broken = hub.call("push_to_hub", sharded, "user/cut")
    assert broken["error"] == "OSError"
    assert re.fullmatch(
        r"user/cut was not pushed \(.+\); call again, and what has arrived is not sent twice\.", broken["message"]
    )
    assert broken["causes"][0] == "RuntimeError"  # huggingface_hub's, which names the file
    assert sorted(sent(hub.requests)) == sorted([sha256(smaller)] + 6 * [sha256(larger)])  # with its own attempts
    assert commits(hub.requests) == []
    assert hub.call("files", "user/cut") == []
    hub.cut.clear()
    assert "url" in hub.call("push_to_hub", sharded, "user/cut")
    assert sent(hub.requests) == [sha256(larger)]
    assert len(commits(hub.requests)) == 1
    assert set(hub.call("files", "user/cut")) == {file.name for file in sharded.iterdir()}


def test_a_commit_that_fails_is_all_that_is_repeated(hub, sharded):
    with (sharded / "README.md").open("a") as file:
        file.write("One more line.\n")
    hub.fail.append("/commit/")
    broken = hub.call("push_to_hub", sharded, "user/refused")
    assert (broken["error"], hub.fail) == ("OSError", [])
    assert "500" in broken["message"]
    assert hub.call("files", "user/refused") == []
    assert "url" in hub.call("push_to_hub", sharded, "user/refused")
    assert (sent(hub.requests), len(commits(hub.requests))) == ([], 1)


def test_weights_of_an_earlier_push_under_other_names_go(hub, saved, sharded):
    for folder, other in ((saved, sharded), (sharded, saved), (saved, sharded)):
        assert "url" in hub.call("push_to_hub", folder, "user/both")
        names = set(hub.call("files", "user/both"))
        assert names == {file.name for file in folder.iterdir()}
        assert names != {file.name for file in other.iterdir()}
    others = {"notes.txt", "model.fp16.safetensors", "model-old.safetensors", "models/lora/adapter.safetensors"}
    for name in others:
        (hub.folder / "user" / "both" / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.folder / "user" / "both" / name).write_text("someone's own")
    hub.call("push_to_hub", sharded, "user/both")
    assert set(hub.call("files", "user/both")) == {file.name for file in sharded.iterdir()} | others


def test_a_branch_is_made_and_main_stays(hub, saved):
    answer = hub.call("push_to_hub", saved, "user/branched", revision="try/one")
    assert answer == {"url": f"{hub.url}/user/branched/tree/try/one"}
    assert hub.call("files", "user/branched") == []
    assert set(hub.call("files", "user/branched", revision="try/one")) == {file.name for file in saved.iterdir()}


def test_nothing_private_becomes_public(hub, saved):
    assert "url" in hub.call("push_to_hub", saved, "user/secret", private=True)
    request = urllib.request.Request(f"{hub.url}/user/secret/resolve/main/config.json")
    with pytest.raises(HTTPError, match="401"):
        urllib.request.urlopen(request)
    assert "url" in hub.call("push_to_hub", saved, "user/secret")
    assert "url" in hub.call("push_to_hub", saved, "user/public")
    answer = hub.call("push_to_hub", saved, "user/public", private=True)
    assert answer["error"] == "ValueError"
    assert "user/public is there already and is public; change that in its settings" in answer["message"]


@pytest.mark.parametrize(
    ("repo_id", "options", "error", "message"),
    [
        ("user/x", {"token": "hf_wrong"}, "PermissionError", "the Hub does not know the token; log in with `hf auth"),
        ("other/x", {}, "PermissionError", "other/x was not pushed: the token may not write there; check the name"),
        ("user/x", {"endpoint": "http://127.0.0.1:9"}, "OSError", r"user/x was not pushed \(.*refused\); call again"),
        ("user/x y", {}, "HFValidationError", "Repo id must use alphanumeric chars"),
    ],
)
def test_errors_of_the_hub_are_one_sentence(repo_id, options, error, message, hub, saved):
    answer = hub.call("push_to_hub", saved, repo_id, **options)
    assert answer["error"] == error
    assert re.search(message, answer["message"])
    assert answer["causes"] or error == "HFValidationError"
    assert not (hub.folder / repo_id).exists()


def test_offline_is_said(saved):
    with pytest.raises(OSError, match=r"user/x was not pushed .*offline mode") as caught:
        hf_clap.push_to_hub(saved, "user/x")
    assert isinstance(caught.value.__cause__, ConnectionError)
    with pytest.raises(HFValidationError):
        hf_clap.push_to_hub(saved, "user/x/y")


def test_metadata_that_the_hub_refuses(hub, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "bad")
    (tmp_path / "bad" / "README.md").write_text("---\nlicense: [mit\n---\n# Bad\n")
    answer = hub.call("push_to_hub", tmp_path / "bad", "user/bad")
    assert answer["error"] == "ValueError"
    assert "Invalid metadata in README.md" in answer["message"]
    assert (sent(hub.requests), commits(hub.requests)) == ([], [])


def test_methods_of_transformers_work_too(hub, saved):
    for name in ("HfClapModel", "HfClapProcessor"):
        assert "url" in hub.call(name, saved, "user/own")
    names = set(hub.call("files", "user/own"))
    assert names == {file.name for file in saved.iterdir()}
    assert "url" in hub.call("HfClapModel", "user/own", "user/copy")  # loaded from the Hub and pushed elsewhere
    copied = hub.folder / "user" / "copy" / "model.safetensors"
    assert copied.read_bytes() == (saved / "model.safetensors").read_bytes()
    processors = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    code = {"processing_hf_clap.py", "feature_extraction_hf_clap.py", "log_mel.py", "waveform.py"}
    assert names - set(hub.call("files", "user/copy")) == processors | code


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        (["config.json"], "config.json"),
        (["model.safetensors"], "model.safetensors"),
        (["processor_config.json"], "processor_config.json"),
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer_config.json, tokenizer.json"),
        (["modeling_hf_clap.py"], "modeling_hf_clap.py"),
        (["processing_hf_clap.py"], "processing_hf_clap.py"),
    ],
)
def test_an_incomplete_checkpoint_is_not_sent(without, missing, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "half")
    for name in without:
        (tmp_path / "half" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"half lacks {re.escape(missing)}; save them there"):
        hf_clap.push_to_hub(tmp_path / "half", "user/half")


def test_damaged_or_missing_weights_are_not_sent(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{second.name} is damaged or cut short; save the model anew"):
        hf_clap.push_to_hub(sharded, "user/half")
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"sharded lacks {second.name}; save"):
        hf_clap.push_to_hub(sharded, "user/half")
    (sharded / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged; save the model anew"):
        hf_clap.push_to_hub(sharded, "user/half")
    assert first.is_file()


def test_a_text_model_needs_no_feature_extractor(processor, tmp_path):
    config = hf_clap.HfClapConfig(text_config=dict(SMALL_TEXT), audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"]))
    hf_clap.HfClapTextModelWithProjection(config).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks tokenizer_config\.json, tokenizer\.json; save"):
        hf_clap.push_to_hub(tmp_path, "user/text")
    processor.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="offline mode"):
        hf_clap.push_to_hub(tmp_path, "user/text")


def test_a_classifier_needs_no_tokenizer(processor, tmp_path):
    config = hf_clap.HfClapConfig(
        text_config=dict(SMALL_TEXT), audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"]), num_labels=3
    )
    hf_clap.HfClapForAudioClassification(config).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks processor_config\.json; save"):
        hf_clap.push_to_hub(tmp_path, "user/classifier")
    processor.feature_extractor.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="offline mode"):
        hf_clap.push_to_hub(tmp_path, "user/classifier")
    assert "preprocessor_config.json" in checkpoint_files(tmp_path)


def test_the_bundled_checkpoint_is_complete():
    with pytest.raises(OSError, match="offline mode"):
        hf_clap.push_to_hub(hf_clap.TINY, "user/tiny")


def test_the_loopback_hub_takes_nothing_wrong(hub):
    def ask(path, content, method="POST", token="hf_test"):
        headers = {"Authorization": f"Bearer {token}"}
        return urllib.request.urlopen(urllib.request.Request(f"{hub.url}{path}", content, headers, method=method))

    oid = hashlib.sha256(b"content").hexdigest()
    for content, size in ((b"another", 7), (b"content", 8)):
        with pytest.raises(HTTPError, match="400"):
            ask(f"/lfs/{oid}/{size}", content, "PUT")
    ask("/api/repos/create", json.dumps({"name": "strict", "organization": None}).encode())
    with pytest.raises(HTTPError, match="409"):
        ask("/api/repos/create", json.dumps({"name": "strict", "organization": None}).encode())
    header = {"key": "header", "value": {"summary": "", "parentCommit": COMMIT}}
    pointer = {"key": "lfsFile", "value": {"path": "model.bin", "oid": oid, "size": 7}}
    outside = {"key": "file", "value": {"path": "../x", "content": "", "encoding": "base64"}}
    for operation in (pointer, outside):
        lines = "\n".join(map(json.dumps, [header, operation])).encode()
        with pytest.raises(HTTPError, match="400"):
            ask("/api/models/user/strict/commit/main", lines)
    ask(f"/lfs/{oid}/7", b"content", "PUT")
    lines = "\n".join(map(json.dumps, [header, pointer])).encode()
    for token, status in (("", "401"), ("hf_other", "401")):
        with pytest.raises(HTTPError, match=status):
            ask("/api/models/user/strict/commit/main", lines, token=token)
    commit = json.load(ask("/api/models/user/strict/commit/main", lines))["commitOid"]
    with pytest.raises(HTTPError, match="412"):  # a commit has happened since
        ask("/api/models/user/strict/commit/main", lines)
    answer = ask(f"/user/strict/resolve/{commit}/model.bin", None, "GET")
    assert answer.read() == b"content"
    assert (answer.headers["ETag"], answer.headers["X-Repo-Commit"]) == (f'"{oid}"', commit)
    with pytest.raises(HTTPError, match="404"):
        ask("/user/strict/resolve/another/model.bin", None, "GET")
