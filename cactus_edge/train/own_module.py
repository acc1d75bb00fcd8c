"""The user's own torch module as it comes: found, made, and run once, before `own` reads it.

Whatever the user's code does wrong is an InputError that names the function and, where it fails in a part of the module, that part.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path

import torch
from torch import Tensor, nn

from cactus_edge.errors import InputError
from cactus_edge.recipe_model import ModelRecipe


def made(model: ModelRecipe, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """The module in float32 for evaluation, its weights drawn after torch.manual_seed(seed). Raises InputError."""
    name, _, function = model.module.partition(":")
    here = str(Path.cwd())
    with _importable(name.partition(".")[0], [model.folder or here, here]):
        try:
            make = getattr(importlib.import_module(name), function)
        except ModuleNotFoundError as error:
            hint = f"a file {name.replace('.', '/')}.py beside the recipe, or where the command runs"
            raise InputError(f"{model.module}: {error}", hint=hint) from error
        except AttributeError as error:
            raise InputError(f"{model.module}: {error}", hint=f"a function {function}(shape, classes) there") from error
        except (Exception, SystemExit) as error:  # the user's code
            raise InputError(f"{model.module}: {said(error)}", hint="importing it fails") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                made = make(shape, classes)
                if isinstance(made, nn.Module):
                    made.float()
                    made.eval()  # the module's own train() may give anything
            except (Exception, SystemExit) as error:  # the user's code
                text = f"{model.module}{(shape, classes)}: {said(error)}"
                raise InputError(text, hint="it takes (height, width, channels) and the number of classes") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{model.module}: gives {type(made).__name__}", hint="return a torch.nn.Module")
    return made


def said(error: BaseException) -> str:
    """The type and the first line of the text: torch appends stacks of its own."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def check_numbers(where: str, module: nn.Module) -> None:
    """Raises InputError naming a parameter or buffer that is not finite, not real, on a device, or a variance below 0."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            continue  # torch itself draws it at the first input
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_complex():
            text = f"{where}: {name} is {tensor.dtype}, {tensor.layout} on the device {tensor.device}"
            raise InputError(text, hint="real and dense parameters on the CPU")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{where}: {name} holds NaN or infinity", hint="finite parameters and statistics")
        if name.rpartition(".")[2] == "running_var" and bool((tensor < 0).any()):
            raise InputError(f"{where}: {name} holds {float(tensor.min()):g}", hint="a variance is 0 or more")


def outputs(where: str, module: nn.Module, like: Tensor, seed: int) -> Tensor:
    """module(like), finite. Raises InputError that names the part where it fails."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            out = module(like.clone())
        except (Exception, SystemExit) as error:  # the user's code
            names = {id(m): name for name, m in module.named_modules()}
            inside = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
            name = next((names[i] for i in reversed(inside) if names.get(i)), "")
            part = module.get_submodule(name)
            what = type(part).__name__ if next(part.children(), None) is not None else repr(part)
            place = f"{name}, {what}: " if name else ""
            text = f"{where}: fails on an input of shape {tuple(like.shape)}: {place}{said(error)}"
            raise InputError(text, hint="forward(x) takes one float tensor of this shape, samples first") from error
    if not isinstance(out, Tensor):
        raise InputError(f"{where}: forward gives {type(out).__name__}", hint="the logits alone, as one tensor")
    if not torch.isfinite(out).all():
        raise InputError(f"{where}: gives NaN or infinity for inputs in [0, 1]", hint="finite logits")
    return out


@contextmanager
def _importable(top: str, folders: list[str]) -> Iterator[None]:
    """The folders come first where modules are looked for; another `top` that was imported before makes way."""
    found, known = PathFinder.find_spec(top, folders), sys.modules.get(top)
    if found is not None and known is not None and getattr(known, "__file__", None) != found.origin:
        for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
            del sys.modules[name]
    sys.path[:0] = folders
    try:
        importlib.invalidate_caches()
        yield
    finally:
        for folder in folders:
            with suppress(ValueError):  # the user's code may have removed it
                sys.path.remove(folder)
