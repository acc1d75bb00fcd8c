"""What a verdict is about: a file, and the runtimes that run it: one profile, several, or "all" that can.

Several are decided as their mixture (`ir.mixture`), which any choice among them stays within, from one element to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from cactus_edge.errors import InputError, ModelError, UnsupportedError
from cactus_edge.ir.arithmetic import PROFILES, profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.mixture import mix
from cactus_edge.ir.profile import Profile
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.read import graph_for, require_format
from cactus_edge.verify.tflite_read import read_tflite

ALL = "all"
"""The name for every profile that can run the file and assumes nothing."""


@dataclass(frozen=True)
class FileFormat:
    """How the bytes of a model become the graph that a profile runs.

    `read` raises ModelError for what it does not read, or what that profile's runtime would not. `confirm` asks the runtime
    itself what the bytes do not tell, such as whether it computes in integers: ModelError where it does not, InstallError where
    it cannot be asked. trusted: whom that takes beside `ir`, `verify` and numpy ("": nobody). image: the bytes that firmware holds
    to run the file under those profiles, None where no firmware of ours does; without it, nothing is said of firmware.
    """

    name: str
    read: Callable[[bytes, Profile], Graph]
    confirm: Callable[[bytes, Profile], None] = lambda data, profile: None
    trusted: str = ""
    image: Callable[[Runtimes], bytes | None] | None = None


def _read_tflite(data: bytes, profile: Profile) -> Graph:
    require_format(data, profile)
    return graph_for(read_tflite(data), profile)


TFLITE = FileFormat("tflite", _read_tflite)
"""The format whose bytes say everything. `formats.c.certified` has it with its image."""


@dataclass(frozen=True, eq=False)
class Runtimes:
    """The named profiles with what each makes of one file; at least one, in the order of their names.

    excluded: for "all", why each of the format's other profiles is not among them.
    """

    name: str
    programs: Sequence[Program]
    excluded: Mapping[str, str]

    @cached_property
    def program(self) -> Program:
        """What any of them may compute."""
        return mix(self.programs)

    @property
    def proved(self) -> Sequence[Program]:
        """What there are verdicts about: any mixture of them, and each of several by itself."""
        return self.programs if len(self.programs) == 1 else [self.program, *self.programs]

    @property
    def several(self) -> bool:
        return len(self.programs) > 1 or self.name == ALL

    @property
    def assumption(self) -> str:
        """What has to be true of a run for verdicts to hold for it; "" for nothing. A conditional profile stands alone."""
        return self.programs[0].profile.assumption

    def under(self, name: str) -> Program | None:
        """The program under that profile, where it is among them."""
        return next((p for p in self.programs if p.profile.name == name), None)


def runtimes(model: bytes, name: str, form: FileFormat, first_maximum: bool = False) -> Runtimes:
    """The profiles that `name` means for the file: one name, several joined by commas, or "all".

    "all": every profile of the file's format that assumes nothing, can run it, and overflows nowhere. first_maximum: as in
    `Program`. Raises InputError for an unknown profile, for a conditional one among several, ModelError for a file that cannot be
    read, and UnsupportedError where a named profile cannot run it, or for "all" none.
    """
    if name == ALL:
        return _all(model, form, first_maximum)
    rows = [profile(part) for part in sorted({part.strip() for part in name.split(",")})]
    for row in rows:
        if row.assumption and len(rows) > 1:
            raise InputError(
                f"profile {row.name!r} is conditional and stands alone", hint="a certificate of its own for it"
            )
    programs = [replace(lower(form.read(model, row), row), first_maximum=first_maximum) for row in rows]
    return Runtimes(",".join(row.name for row in rows), programs, {})


def _all(model: bytes, form: FileFormat, first_maximum: bool) -> Runtimes:
    programs: list[Program] = []
    excluded: dict[str, str] = {}
    for _, row in sorted(PROFILES.items()):
        if row.reads != form.name or row.assumption:
            continue
        try:
            program = replace(lower(form.read(model, row), row), first_maximum=first_maximum)
            prove(program)
        except ModelError as error:
            excluded[row.name] = error.message
        else:
            programs.append(program)
    if not programs:
        raise UnsupportedError(f"no profile runs the file: {'; '.join(dict.fromkeys(excluded.values()))}")
    return Runtimes(ALL, programs, excluded)
