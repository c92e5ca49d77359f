"""Whether this ComfyUI still has what the pack overrides and calls, with the signatures that the pack counts on.

When a new ComfyUI breaks these, their sentences name what moved; see tests/support/host_uses.py.
"""

import ast
import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import annealing_guidance_pack as pack
import comfy.cli_args
import comfy.model_patcher
import comfy.samplers
import comfy.sd1_clip
import comfy.taesd.taesd
import pytest
import torch
from annealing_guidance_pack.guidance.patch import AnnealingPatch
from closed_form import closed_form_model, conditioning, sample
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from devkit.host import Host
from devkit.server import Server
from host_uses import misfit, moved_overrides, moved_uses, refused_call

ROOT = Path(pack.__file__).parent
FOLDERS = ("guidance", "nodes", "shapes", "training")
MODULES = [
    importlib.import_module(f"{pack.__name__}.{folder}.{found.name}")
    for folder in FOLDERS
    for found in pkgutil.iter_modules([str(ROOT / folder)])
]

# Classes that take a place in the host without being derived from what stands there.
FOLLOWS = {
    "_Probe": comfy.samplers.KSAMPLER,
    "ShapesTokenizer": comfy.sd1_clip.SD1Tokenizer,
    "ShapesClip": comfy.sd1_clip.SDClipModel,
    "EnlargedAutoEncoder": comfy.taesd.taesd.TAESD,
}


@pytest.fixture(scope="module")
def objects():
    """Real objects of the host, taken from the middle of a run, by the names that the pack's code gives them."""
    seen = {}

    def outer_sample(executor, *args, **kwargs):
        seen["executor"] = executor
        return executor(*args, **kwargs)

    def solver(model, x, sigmas, extra_args=None, callback=None, disable=None):
        # What a guider has during a run only, for as long as this module's tests run
        seen["during"] = (model, dict(vars(model.inner_model)))
        return x

    patcher = closed_form_model()
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test", outer_sample)
    guider, sampler = comfy.samplers.CFGGuider(patcher), comfy.samplers.KSAMPLER(solver)
    mean = torch.zeros(1, 4, 8, 8)
    guider.set_conds(conditioning(mean, 0.5), conditioning(mean, 0.9))
    sample(guider, sampler, torch.tensor([2.0, 0.0]), mean)
    vars(guider).update(seen["during"][1])
    model_sampling = patcher.get_model_object("model_sampling")
    names = {"model_patcher": patcher, "patched": patcher, "guider": guider, "executor": seen["executor"], "sampler": sampler}
    return {**names, "model_sampling": model_sampling, "self.model_sampling": model_sampling, "self.model_patcher": patcher,
            "rest": seen["executor"], "inpaint": seen["during"][0]}  # fmt: skip


def objects_of(module, objects):
    """`model` is spelled alike for several things, and the nodes' `guider` is ours."""
    name = module.__name__.removeprefix(f"{pack.__name__}.")
    if name == "guidance.null_renoising":
        return {**objects, "model": objects["inpaint"]}
    if name.startswith("nodes."):
        return {"model": objects["model_patcher"]}
    if name == "training.command":
        return {}  # its `model` is a group of options
    if name.startswith("training."):
        return {**objects, "model": objects["model_patcher"]}
    if name == "shapes.loader":
        base_model = objects["model_patcher"].model
        return {**objects, "model": base_model, "model.model_sampling": base_model.model_sampling}
    return objects


def nothing_moved(sentences):
    if sentences:
        pytest.fail("\n".join(sentences), pytrace=False)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.partition(".")[2])
def test_the_host_has_what_the_code_uses_and_takes_the_calls_it_makes(module, objects):
    nothing_moved(moved_uses(Path(module.__file__), vars(module), objects_of(module, objects)))


@pytest.mark.parametrize("benchmark", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_the_host_has_what_the_benchmarks_use(benchmark):
    nothing_moved(moved_uses(benchmark, {}, {}))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.partition(".")[2])
def test_every_override_stands_where_the_hosts_method_stood(module):
    nothing_moved(moved_overrides(module, FOLLOWS))


@pytest.mark.parametrize("name", ["outer_sample", "predict_noise"])
def test_the_patchs_wrappers_take_what_the_guiders_methods_are_called_with(name):
    host = inspect.signature(getattr(comfy.samplers.CFGGuider, name))
    guider, *wanted = host.parameters.values()
    with_executor = host.replace(parameters=[guider, guider.replace(name="executor"), *wanted])
    complaint = misfit(with_executor, inspect.signature(getattr(AnnealingPatch, name)))
    assert not complaint, f"comfy.samplers.CFGGuider.{name}: {complaint} (AnnealingPatch)"


def test_wrappers_know_their_place_among_the_others():
    """The patch replaces only the innermost function; that needs the executor's list and position."""
    order = []

    def first(executor, *args):
        assert executor.wrappers[executor.idx] is first
        order.append("first")
        rest = WrapperExecutor.new_class_executor(lambda x: x + 1, executor.class_obj, executor.wrappers, executor.idx + 1)
        return rest.execute(*args)

    def second(executor, *args):
        order.append("second")
        return executor(*args)

    guider = object()
    outermost = WrapperExecutor.new_class_executor(lambda x: x - 1, guider, [first, second])
    assert outermost.execute(1) == 2 and order == ["first", "second"]


def test_the_demo_workflow_names_nodes_and_inputs_that_the_host_has():
    workflow = json.loads((ROOT / "workflows" / "api" / "demo.json").read_text(encoding="utf-8"))
    classes = dict(importlib.import_module("nodes").NODE_CLASS_MAPPINGS)
    own = [node for module in MODULES for node in getattr(module, "NODES", ())]
    custom = vars(importlib.import_module("comfy_extras.nodes_custom_sampler")).values()
    classes |= {node.GET_SCHEMA().node_id: node for node in [*own, *custom] if hasattr(node, "define_schema") and is_node(node)}
    for name, node in workflow.items():
        kind, given = node["class_type"], set(node["inputs"])
        assert kind in classes, f"{kind} ({name}): the host has no such node"
        inputs = classes[kind].INPUT_TYPES()
        known = {*inputs.get("required", {}), *inputs.get("optional", {})}
        assert given <= known, f"{kind} ({name}): the host's node has no input {', '.join(sorted(given - known))}"
        missing = set(inputs.get("required", {})) - given
        assert not missing, f"{kind} ({name}): the host's node also wants {', '.join(sorted(missing))}"


def is_node(cls) -> bool:
    try:
        return bool(cls.GET_SCHEMA().node_id)
    except NotImplementedError:
        return False


def test_the_server_knows_every_option_that_it_is_started_with(comfyui, tmp_path):
    command = Server(Host(comfyui, comfyui), tmp_path, ROOT)._command()
    _, unknown = comfy.cli_args.parser.parse_known_args(command[3:])
    assert not unknown


# --- the checks themselves: a host in which something moved ---

CALLER = """
import comfy.samplers
from comfy.samplers import calc_cond_batch

def predict(guider, x):
    guider.model_patcher.get_model_object("model_sampling")
    return comfy.samplers.calc_cond_batch(model, conds, x, sigma, model_options)
"""


@pytest.fixture
def caller(tmp_path):
    path = tmp_path / "guidance" / "caller.py"
    path.parent.mkdir()
    path.write_text(CALLER)
    return path


def test_nothing_moved_is_no_complaint(caller, objects):
    assert moved_uses(caller, {}, objects) == []


def test_a_moved_signature_is_named_with_ours(caller, monkeypatch):
    def calc_cond_batch(model, conds, x_in, timestep, device, model_options): ...

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", calc_cond_batch)
    (complaint,) = moved_uses(caller, {}, {})
    assert complaint == (
        "comfy.samplers.calc_cond_batch: the host's signature is (model, conds, x_in, timestep, device, model_options), we call "
        "it with (model, conds, x, sigma, model_options) (missing a required argument: 'model_options') in guidance/caller.py:7"
    )


def test_a_missing_function_is_named_where_it_is_used_and_imported(caller, monkeypatch):
    monkeypatch.delattr(comfy.samplers, "calc_cond_batch")
    assert moved_uses(caller, {}, {}) == [
        "comfy.samplers.calc_cond_batch: the host has no such thing, we import it in guidance/caller.py:3",
        "comfy.samplers.calc_cond_batch: the host has no such thing, we use it in guidance/caller.py:7",
    ]


def test_a_missing_method_of_an_object_is_named(caller, objects, monkeypatch):
    monkeypatch.delattr(comfy.model_patcher.ModelPatcher, "get_model_object")
    (complaint,) = moved_uses(caller, {}, objects)
    assert complaint.startswith(
        "comfy.samplers.CFGGuider (our guider).model_patcher.get_model_object: the host has no such thing"
    )


def test_a_renamed_method_that_we_override_is_named(monkeypatch):
    monkeypatch.setattr(comfy.samplers.CFGGuider, "sample_outer", comfy.samplers.CFGGuider.outer_sample, raising=False)
    monkeypatch.delattr(comfy.samplers.CFGGuider, "outer_sample")
    guider = importlib.import_module(f"{pack.__name__}.guidance.guider")
    (complaint,) = moved_overrides(guider, {})
    assert complaint.startswith("comfy.samplers.CFGGuider.outer_sample: the host has no such method")
    (call,) = moved_uses(Path(guider.__file__), vars(guider), {})
    assert call.startswith("super().outer_sample: ")


def test_a_new_argument_of_a_method_that_we_override_is_named(monkeypatch):
    def predict_noise(self, x, timestep, model_options=None, seed=None, guide=None): ...

    monkeypatch.setattr(comfy.samplers.CFGGuider, "predict_noise", predict_noise)
    (complaint,) = moved_overrides(importlib.import_module(f"{pack.__name__}.guidance.guider"), {})
    assert "so its guide has no place in ours" in complaint


def test_a_call_with_unpacked_arguments_is_judged_by_the_rest():
    def schema(node_id, *, display_name=None): ...

    def call(text):
        return ast.parse(text, mode="eval").body

    assert refused_call(schema, call("schema(node_id='x', **where_known(schema, advanced=True))")) is None
    assert "unexpected keyword argument 'category'" in refused_call(schema, call("schema(category='x', **more)"))
