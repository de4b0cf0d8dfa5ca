"""What is said for a class, and what is wrong with templates and descriptions."""

import json
import re

import pytest

from hf_clap.prompts import SWEEP, Prompts, check_templates, read_descriptions

TEMPLATES = ("{}", "the sound of {}", "{} can be heard")


def test_texts_of_a_class():
    assert Prompts(("this is a sound of {}",)).texts_of("dog") == ["this is a sound of dog"]
    assert Prompts(TEMPLATES).texts_of("rain") == ["rain", "the sound of rain", "rain can be heard"]


def test_descriptions_stand_in_place_of_the_name():
    prompts = Prompts(TEMPLATES[:2], {"dog": ("a bark", "a whine")})
    assert prompts.texts_of("dog") == ["a bark", "a whine", "the sound of a bark", "the sound of a whine"]
    assert prompts.texts_of("rain") == ["rain", "the sound of rain"]


def test_braces_of_a_description_stay():
    assert Prompts(("a {} and", "{0} {}"), {"x": ("{}",)}).texts_of("x") == ["a {} and", "{0} {}"]


def test_json_makes_the_same_prompts_again():
    assert Prompts(TEMPLATES).as_json() == {"templates": list(TEMPLATES)}
    prompts = Prompts(TEMPLATES, {"dog": ("a bark", "a whine")})
    written = json.loads(json.dumps(prompts.as_json()))
    assert written == {"templates": list(TEMPLATES), "descriptions": {"dog": ["a bark", "a whine"]}}
    again = Prompts(
        tuple(written["templates"]), {name: tuple(words) for name, words in written["descriptions"].items()}
    )
    assert again == prompts


def test_sweep_has_the_label_alone_and_the_papers():
    assert check_templates(SWEEP) == list(SWEEP)
    assert SWEEP[0] == "{}"
    assert "this is a sound of {}" in SWEEP
    assert len(set(SWEEP)) == len(SWEEP)


def test_no_template():
    with pytest.raises(ValueError, match=r"^There is no template; pass at least one"):
        Prompts(())


@pytest.mark.parametrize("template", ["a sound", "{} and {}", "a sound of { }", "", None])
def test_template_without_one_place_for_the_label(template):
    sentence = f"Template {template!r} does not say where the label goes; write {{}} in its place, once"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Prompts(("{}", template))


def test_descriptions_are_read(tmp_path):
    file = tmp_path / "words.json"
    words = {"dog": ["a bark", "a whine"], "rain": "rain on a roof: tröpfeln"}
    file.write_text("\ufeff" + json.dumps(words, ensure_ascii=False), encoding="utf-8")  # as Windows writes it
    expected = {"dog": ("a bark", "a whine"), "rain": ("rain on a roof: tröpfeln",)}
    assert read_descriptions(file, ["rain", "wind", "dog"]) == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{dog: woof}", "cannot be read as JSON in UTF-8 (Expecting property name"),
        (b'{"dog": "w\xf6f"}', "cannot be read as JSON in UTF-8 ('utf-8' codec"),
        (b'["dog"]', 'is not a JSON object; write {"class": ["description", …], …}.'),
        (b'{"cat": "a meow"}', "describes 'cat', which is not a class; the classes are dog, rain."),
        (b'{"dog": " "}', "does not describe 'dog' by texts; write one, or a list of them."),
        (b'{"rain": []}', "does not describe 'rain' by texts; write one, or a list of them."),
        (b'{"rain": ["drops", ""]}', "does not describe 'rain' by texts; write one, or a list of them."),
        (b'{"rain": [1]}', "does not describe 'rain' by texts; write one, or a list of them."),
        (
            b'{"dog": "a bark", "rain": "drops", "dog": "a whine"}',
            "cannot be read as JSON in UTF-8 ('dog' is there twice",
        ),
        (b"[" * 100_000, "cannot be read as JSON in UTF-8 (maximum recursion depth exceeded"),
        (b'{"rain": null}', "does not describe 'rain' by texts; write one, or a list of them."),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, content, sentence):
    file = tmp_path / "words.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file} {sentence}")):
        read_descriptions(file, ["dog", "rain"])


def test_descriptions_that_no_tokenizer_reads(tmp_path):
    file = tmp_path / "words.json"
    file.write_text('{"dog": ["a bark", "\\ud800"]}')
    with pytest.raises(ValueError, match=re.escape(f"{file}: Description {chr(0xD800)!r} is not valid Unicode;")):
        read_descriptions(file, ["dog"])


def test_descriptions_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"words\.json cannot be read as JSON .*No such file"):
        read_descriptions(tmp_path / "words.json", ["dog"])
