"""Our nodes inside subgraphs that the real interface made: the same numbers as outside, a live chart there, saved and loaded."""

from __future__ import annotations

import csv
import itertools
import time

import pytest

pytestmark = [pytest.mark.server, pytest.mark.browser]

SEEDS = itertools.count(int(time.time()))  # never one that the server still has a picture of
STEPS = 4
NODE = """
  (() => {
    const find = (graph) => {
      for (const node of graph.nodes) {
        if (node.type === "AnnealingGuider" || node.type === "AnnealingModelPatch") return node;
        const found = node.subgraph && find(node.subgraph);
        if (found) return found;
      }
    };
    return find(window.app.graph);
  })()
"""
CHART = f"{NODE}.widgets.find((widget) => widget.name === 'annealing_scale_chart').chart"
# Else the interface draws another seed after each run.
FIXED = """() => {
  for (const node of window.app.graph.nodes)
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
}"""
# Puts nodes into a subgraph, and where asked the subgraph into another one; gives what stands in the graph for them.
WRAP = """([ids, depth]) => {
  const graph = window.app.graph;
  let node;
  for (let i = 0; i < depth; i++) {
    const inside = i === 0 ? ids.map((id) => graph.getNodeById(id)) : [node];
    node = graph.convertToSubgraph(new Set(inside)).node;
  }
  return node.id;
}"""


def workflow(way: str) -> dict[str, dict]:
    """One picture by the guider or by the patch; a table of its scales is written."""
    seed, prompts = next(SEEDS), {"positive": ["2", 0], "negative": ["3", 0]}
    guidance = {"model": ["1", 0], "guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True}
    nodes = {
        "1": ("ShapesLoader", {"variant": "epsilon"}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a red circle left of a green cross"}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "4": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "10": ("AnnealingScalePlot", {"trace": ["8", 1], "samples": ["9", 0], "csv_prefix": f"subgraphs/{way}{seed}"}),
        "11": ("PreviewImage", {"images": ["10", 0]}),
    }
    if way == "guider":
        parts = {"noise": ["5", 0], "guider": ["8", 0], "sampler": ["7", 0], "sigmas": ["6", 0], "latent_image": ["4", 0]}
        nodes |= {
            "5": ("RandomNoise", {"noise_seed": seed}),
            "6": ("BasicScheduler", {"model": ["1", 0], "scheduler": "karras", "steps": STEPS, "denoise": 1.0}),
            "7": ("KSamplerSelect", {"sampler_name": "euler"}),
            "8": ("AnnealingGuider", guidance | prompts),
            "9": ("SamplerCustomAdvanced", parts),
        }
    else:
        sampling = {"seed": seed, "steps": STEPS, "cfg": 7.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}
        nodes |= {
            "8": ("AnnealingModelPatch", guidance),
            "9": ("KSampler", {"model": ["8", 0], **prompts, **sampling, "latent_image": ["4", 0]}),
        }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def run(page, server, count: int) -> list[dict[str, str]]:
    """Queue what is in the graph and wait for its chart; the rows of the table that it writes, the count-th of this graph."""
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(f"() => {CHART}.run?.calls.length === {STEPS}", timeout=120_000)
    deadline = time.monotonic() + 60  # the table is written after the last step
    while len(tables := sorted((server.base / "output" / "subgraphs").glob("*.csv"))) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    page.wait_for_function("async () => (await (await fetch('/queue')).json()).queue_running.length === 0", timeout=60_000)
    assert len(tables) == count
    with tables[-1].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def charted(page) -> list[list[float]]:
    return [[call["scale"][0], call["cfg_scale"][0]] for call in page.evaluate(f"() => {CHART}.run.calls")]


def close(rows: list[dict[str, str]], others: list[list[float]]) -> bool:
    return [[float(row["scale"]), float(row["cfg_scale"])] for row in rows] == [
        pytest.approx(other, rel=1e-4) for other in others
    ]


@pytest.fixture
def tables(server):
    """The folder of the tables, empty."""
    for path in (server.base / "output" / "subgraphs").glob("*.csv"):
        path.unlink()


@pytest.mark.parametrize(
    "way, inside, depth",
    [("guider", [5, 6, 7, 8, 9], 1), ("patch", [8], 1), ("patch", [8, 9], 2)],
    ids=["guider", "patch", "patch in a subgraph of a subgraph"],
)
def test_inside_it_samples_and_draws_as_outside(page, server, tables, way, inside, depth):
    page.evaluate("graph => window.app.loadApiJson(graph, 'test')", workflow(way))
    page.evaluate(FIXED)
    outside = run(page, server, 1)
    assert len(outside) == STEPS and close(outside, charted(page))
    name = page.evaluate(WRAP, [inside, depth])
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    (ours,) = (key for key, node in prompt.items() if node["class_type"] in ("AnnealingGuider", "AnnealingModelPatch"))
    assert ours.startswith(f"{name}:") and ours.count(":") == depth
    assert prompt["10"]["inputs"]["trace"] == [ours, 1]
    rows = run(page, server, 2)
    assert rows == outside and close(rows, charted(page))
    # As saved and opened again.
    saved = page.evaluate("() => window.app.graph.serialize()")
    page.evaluate("saved => window.app.loadGraphData(saved)", saved)
    assert page.evaluate("async () => (await window.app.graphToPrompt()).output") == prompt
    # As good as the same lambda, and another one to ComfyUI's cache.
    page.evaluate(f"() => {{ {NODE}.widgets.find((widget) => widget.name === 'guidance_lambda').value += 1e-7; }}")
    rows = run(page, server, 3)
    assert close(outside, charted(page)) and close(rows, charted(page))
    assert not page.complaints
