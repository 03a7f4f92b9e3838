"""`bitactor graph MODULE:OBJECT`"""

from __future__ import annotations

from bitactor.mermaid import mermaid
from mesh.cli.loading import definitions, load
from mesh.cli.options import Json
from mesh.cli.output import print_lines
from mesh.mesh import Mesh


def graph(place: str, /, *, json: Json = False) -> None:
    """Draw workflows as Mermaid flowcharts: steps, where arguments come from, order, undo, when.

    Paste it into a ```mermaid block (GitHub, GitLab), or into mermaid.live.

    Example: bitactor graph mesh.demo.signup:signup

    Parameters
    ----------
    place
        MODULE:OBJECT, where OBJECT is a Workflow, a consumer, a list of them, or a Mesh.
    """
    found = load(place)
    plans = found.node.plans.values() if isinstance(found, Mesh) else [item.check() for item in definitions(found, place)]
    if json:
        print_lines({"workflow": plan.workflow, "digest": plan.digest, "mermaid": mermaid(plan)} for plan in plans)
    else:
        print("\n".join(mermaid(plan) for plan in plans), end="")
