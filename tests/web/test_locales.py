"""The translations: complete, true to the schemas in what can be checked, and given out by the server."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from pathlib import Path

import annealing_guidance_pack as pack
import pytest
from node_texts import english, texts_by_key

LOCALES = Path(pack.__file__).parent / "locales"
LANGUAGES = ("en", "zh", "ja", "ko", "fr", "de", "es", "ru")
NUMBER = r"\d+(?:\.\d+)?"
# Written the same in every language: names in code, file endings, ComfyUI's own nodes, words that are choices of a widget.
VERBATIM = (
    r"\*?\b\w*_\w+|(?<=\s)\.\w+|\b(?!LoRA)[A-Z][a-z]+[A-Z]\w+|\b(?:CFG\+\+|CFG|DDIM|DDPM|CADS|SDXL|SD3|Flux|Shapes|img2img|VAE|CLIP)"
    r"|\b(?:null|folded|auto|constant|linear|cosine|interval|epsilon|flow|ratio|p95)(?=:)"
)


def texts(language: str) -> dict[str, str]:
    return texts_by_key(json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8")))


def chart(language: str) -> dict[str, str]:
    return json.loads((LOCALES / language / "main.json").read_text("utf-8"))["annealing_guidance"]["chart"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_charts_words_are_there_in_every_language(language):
    script = (Path(pack.__file__).parent / "web" / "lib" / "words.js").read_text("utf-8")
    english_words = dict(re.findall(r'^  (\w+): "(.*)",$', script, re.MULTILINE))
    assert chart("en") == english_words
    assert chart(language).keys() == english_words.keys()
    assert [key for key, text in chart(language).items() if not text.strip() or re.search(r"[{}@|]", text)] == []
    same = {key for key, text in chart(language).items() if text == english_words[key]}
    assert language == "en" or same == {"cfg"}


def test_these_are_the_languages():
    assert {path.name for path in LOCALES.iterdir()} == set(LANGUAGES)


def test_english_is_what_the_nodes_say(comfyui):
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    assert texts("en") == texts_by_key(english(nodes)), "run: python tools/dev.py locales"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_texts_that_english_has_and_no_other(language):
    assert texts(language).keys() == texts("en").keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty_or_has_signs_that_the_frontend_takes_for_its_own(language):
    # vue-i18n fills in {names}, follows @:links and splits at |.
    assert [key for key, text in texts(language).items() if not text.strip() or re.search(r"[{}@|]", text)] == []


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_descriptions_and_tooltips_are_translated(language):
    same = [key for key, text in texts(language).items() if text == texts("en")[key] and not key.endswith("name")]
    assert same == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_and_names_of_the_code_are_kept(language):
    for key, text in texts("en").items():
        if key.endswith((".tooltip", ".description")):
            translated = texts(language)[key]
            wanted = set(re.findall(NUMBER, text)) ^ set(re.findall(NUMBER, translated))
            assert not wanted, f"{language} {key}: {wanted}"
            lost = [word for word in re.findall(VERBATIM, text) if word not in translated]
            assert not lost, f"{language} {key}: {lost}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_call_the_nodes_by_their_translated_names(language):
    english_names = {key: name for key, name in texts("en").items() if key.endswith(".display_name")}
    for key, text in texts("en").items():
        if key.endswith((".tooltip", ".description")):
            for name_key, name in english_names.items():
                if short(name) in text:
                    assert short(texts(language)[name_key]) in texts(language)[key], f"{language} {key}: {name}"


def short(name: str) -> str:
    """A node's name as texts use it: without what stands in brackets."""
    return name.split(" (")[0]


@pytest.mark.server
def test_the_server_gives_every_translation_to_the_frontend(server):
    with urllib.request.urlopen(f"{server.address}/i18n", timeout=30) as response:
        offered = json.load(response)
    for language in LANGUAGES:
        ours = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))
        assert {node: offered[language]["nodeDefs"][node] for node in ours} == ours
        assert offered[language]["annealing_guidance"]["chart"] == chart(language)
