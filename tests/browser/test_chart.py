"""The live chart in the real interface, classic and Nodes 2.0: it grows while sampling and shows the trace's numbers."""

from __future__ import annotations

import csv
import io
import itertools
import json
import time
import urllib.request

import pytest

pytestmark = [pytest.mark.server, pytest.mark.browser]

CHART = "window.app.graph.getNodeById({node}).widgets.find((widget) => widget.name === 'annealing_scale_chart').chart"
SEEDS = itertools.count(int(time.time()))  # never one that the server still has a picture of


def workflow(batch: int = 2, steps: int = 6) -> dict:
    """Two guiders in one graph: 8 feeds the plot with its numbers, 18 is a patch for KSampler."""
    return {
        "1": {"class_type": "ShapesLoader", "inputs": {"variant": "epsilon"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red circle left of a green cross"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": batch}},
        "5": {"class_type": "RandomNoise", "inputs": {"noise_seed": next(SEEDS)}},
        "6": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["1", 0], "scheduler": "karras", "steps": steps, "denoise": 1.0},
        },
        "7": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "8": {"class_type": "AnnealingGuider", "inputs": _guidance({"positive": ["2", 0], "negative": ["3", 0]})},
        "9": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"noise": ["5", 0], "guider": ["8", 0], "sampler": ["7", 0], "sigmas": ["6", 0], "latent_image": ["4", 0]},
        },
        "10": {
            "class_type": "AnnealingScalePlot",
            "inputs": {"trace": ["8", 1], "samples": ["9", 0], "csv_prefix": "browser/scales"},
        },
        "11": {"class_type": "PreviewImage", "inputs": {"images": ["10", 0]}},
        "18": {"class_type": "AnnealingModelPatch", "inputs": _guidance({})},
        "19": {
            "class_type": "KSampler",
            "inputs": {"model": ["18", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
                       "seed": next(SEEDS), "steps": 5, "cfg": 7.0, "sampler_name": "euler", "scheduler": "karras",
                       "denoise": 1.0},
        },
        "20": {"class_type": "VAEDecode", "inputs": {"samples": ["19", 0], "vae": ["1", 2]}},
        "21": {"class_type": "PreviewImage", "inputs": {"images": ["20", 0]}},
    }  # fmt: skip


def _guidance(more: dict) -> dict:
    settings = {"guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True, "lambda_per_sample": ""}
    return {"model": ["1", 0], **settings, **more}


def run(page, graph: dict) -> None:
    page.evaluate("graph => window.app.loadApiJson(graph, 'test')", graph)
    page.evaluate("() => window.app.queuePrompt(0)")


def calls(page, node: int) -> list[dict]:
    return page.evaluate(f"() => {CHART.format(node=node)}.run?.calls ?? []")


def wait_for_calls(page, node: int, count: int) -> None:
    page.wait_for_function(f"() => ({CHART.format(node=node)}.run?.calls ?? []).length === {count}", timeout=120_000)


def test_each_guider_shows_the_numbers_of_its_own_run(page, server):
    run(page, workflow())
    wait_for_calls(page, 8, 6)
    wait_for_calls(page, 18, 5)
    page.wait_for_function("() => window.app.nodeOutputs?.['11']", timeout=60_000)  # so the table is written
    tables = sorted((server.base / "output" / "browser").glob("scales_*.csv"))
    rows = list(csv.DictReader(io.StringIO(tables[-1].read_text())))
    assert len(rows) == 6 * 2
    for row in rows:
        call, sample = calls(page, 8)[int(row["call"]) - 1], int(row["sample"]) - 1
        assert call["scale"][sample] == pytest.approx(float(row["scale"]), rel=1e-4)
        assert call["cfg_scale"][sample] == pytest.approx(float(row["cfg_scale"]), rel=1e-4)
    assert not page.complaints


def test_one_line_per_picture_is_drawn_and_the_last_run_stays_faint(page):
    run(page, workflow())
    wait_for_calls(page, 8, 6)
    chart = CHART.format(node=8)
    page.evaluate("() => window.app.canvas.centerOnNode(window.app.graph.getNodeById(8))")  # Nodes 2.0 hides what is off screen
    page.evaluate("() => { for (const n of window.app.graph.nodes) if (n.type === 'RandomNoise') n.widgets[0].value += 1; }")
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(f"() => {chart}.previous && {chart}.run.calls.length === 6", timeout=120_000)
    page.wait_for_function(f"() => {chart}.plot.querySelectorAll('path').length === 4", timeout=10_000)
    opacities = page.evaluate(f"() => [...{chart}.plot.querySelectorAll('path')].map((path) => path.getAttribute('opacity'))")
    assert opacities == ["0.3", "0.3", "1", "1"]


def test_a_guider_with_another_lambda_draws_a_run_of_its_own(page):
    run(page, workflow())
    wait_for_calls(page, 8, 6)
    page.evaluate("() => { window.app.graph.getNodeById(8).widgets.find((w) => w.name === 'guidance_lambda').value = 0.8; }")
    page.evaluate("() => window.app.queuePrompt(0)")
    chart = CHART.format(node=8)
    page.wait_for_function(f"() => {chart}.previous && {chart}.run.calls.length === 6", timeout=120_000)
    lambdas = page.evaluate(f"() => [...{chart}.previous.lambdas, ...{chart}.run.lambdas]")
    assert lambdas == pytest.approx([0.4, 0.8])


def test_a_sweep_ends_with_a_line_for_each_picture_of_each_lambda(page):
    graph = {key: node for key, node in workflow().items() if key in "1234567"}
    inputs = {"noise": ["5", 0], "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "sampler": ["7", 0],
              "sigmas": ["6", 0], "latent_image": ["4", 0], "vae": ["1", 2], "lambdas": "0, 0.4, 0.8",
              "cfg_scales": "3"}  # fmt: skip
    graph["8"] = {"class_type": "AnnealingSweep", "inputs": inputs}
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    run(page, graph)
    chart = CHART.format(node=8)
    page.wait_for_function(f"() => {chart}.run?.lambdas.length === 6 && {chart}.run.calls.length === 6", timeout=120_000)
    assert page.evaluate(f"() => {chart}.run.lambdas") == pytest.approx([0, 0, 0.4, 0.4, 0.8, 0.8])
    assert all(len(call["scale"]) == 6 for call in calls(page, 8))


def test_the_keyboard_moves_along_the_steps_and_the_switch_shows_the_scale(page):
    run(page, workflow())
    wait_for_calls(page, 8, 6)
    chart = CHART.format(node=8)

    def says(text: str, of: str) -> None:
        page.wait_for_function(f"text => {chart}.{of}.includes(text)", arg=text, timeout=20_000)

    says("step 6", "plot.getAttribute('aria-label')")
    page.evaluate(f"() => {chart}.plot.focus()")
    page.keyboard.press("ArrowLeft")
    call = calls(page, 8)[4]
    low, high = (f"{choose(call['cfg_scale']):.1f}" for choose in (min, max))
    says(f"step 5: CFG {low}", "readout.textContent")  # folded: it begins with the ordinary CFG
    assert low == high or high in page.evaluate(f"() => {chart}.readout.textContent")
    page.evaluate(f"() => {chart}.buttons.scale.focus()")
    page.keyboard.press("Enter")
    says(f"step 5: scale {min(call['scale']):.2f}", "readout.textContent")
    says("scale. step 5", "plot.getAttribute('aria-label')")
    pressed = (
        f"() => Object.entries({chart}.buttons).filter(([, b]) => b.getAttribute('aria-pressed') === 'true').map(([k]) => k)"
    )
    assert page.evaluate(pressed) == ["scale"]
    page.evaluate(f"() => {chart}.plot.focus()")
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => {chart}.readout.textContent === ''", timeout=20_000)  # the value stands under the node


def test_nothing_of_the_chart_is_saved_and_a_reloaded_page_draws_again(open_page):
    page = open_page()
    run(page, workflow())
    wait_for_calls(page, 8, 6)
    saved = page.evaluate("() => window.app.graph.serialize().nodes.find((node) => node.id === 8).widgets_values")
    assert saved[:4] == [0.4, "auto", True, ""]
    page.close()
    again = open_page()
    run(again, workflow())
    wait_for_calls(again, 8, 6)


def test_before_the_first_run_the_chart_is_one_line_high(page):
    page.evaluate("graph => window.app.loadApiJson(graph, 'test')", workflow())
    chart = CHART.format(node=8)
    page.wait_for_function(f"() => {chart}.element.textContent.includes('Run to see')", timeout=20_000)
    assert page.evaluate(f"() => {chart}.run") is None


def test_an_event_for_a_node_that_is_not_there_is_ignored(page):
    page.evaluate(
        "() => window.app.api?.dispatchCustomEvent?.('annealing_guidance.scale', { node: '999', run: 1, calls: [] })"
        " ?? window.comfyAPI.api.api.dispatchEvent(new CustomEvent('annealing_guidance.scale',"
        " { detail: { node: '7:999', run: 1, first: 0, calls: [] } }))"
    )
    page.wait_for_timeout(300)
    assert not page.complaints


def test_the_hint_is_not_cut_at_the_nodes_default_width(page):
    page.evaluate("() => { window.app.graph.clear(); window.app.graph.add(LiteGraph.createNode('AnnealingGuider')); }")
    readout = "window.app.graph.nodes[0].widgets.find((widget) => widget.name === 'annealing_scale_chart').chart.readout"
    page.wait_for_function(f"() => {readout}.clientWidth > 0", timeout=20_000)
    assert page.evaluate(f"() => {readout}.scrollWidth <= {readout}.clientWidth")


def test_the_panel_of_parameters_has_nothing_of_it(page):
    page.evaluate("() => { window.app.graph.clear(); window.app.graph.add(LiteGraph.createNode('AnnealingGuider')); }")
    options = "window.app.graph.nodes[0].widgets.find((widget) => widget.name === 'annealing_scale_chart').options"
    assert page.evaluate(f"() => {options}.hideInPanel") is True


@pytest.mark.parametrize("interface", ["classic"], indirect=True)
def test_its_words_are_those_of_the_interfaces_language(open_page, server):
    address = f"{server.address}/settings/Comfy.Locale"
    for language, word in (("ja", "実行すると"), ("en", "Run to see")):
        body = json.dumps(language).encode()
        urllib.request.urlopen(urllib.request.Request(address, data=body, method="POST")).close()
        page = open_page()
        page.evaluate("() => { window.app.graph.clear(); window.app.graph.add(LiteGraph.createNode('AnnealingGuider')); }")
        chart = "window.app.graph.nodes[0].widgets.find((widget) => widget.name === 'annealing_scale_chart').chart"
        page.wait_for_function(f"word => {chart}.readout.textContent.includes(word)", arg=word, timeout=20_000)
        page.close()
