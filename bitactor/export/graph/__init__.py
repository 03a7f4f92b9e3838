"""A workflow's graph as plain data, and back: what `Workflow.to_dict` and `Workflow.from_dict` do.

    {"version": 1, "name": "shop.order", "input": {"fields": {"sku": "str", "amount": "int"}}, "ttl": 8, …,
     "steps": [
         {"kind": "step", "name": "reserve", "function": "shop.stock:reserve", "undo": {"function":
         "shop.stock:release"}}, {"kind": "compose", "name": "billing", "workflow": "billing", "bind": {"amount":
         {"result": "reserve", "path": ["price"]}}}],
     "workflows": [{"name": "billing", …}]}

Functions, classes, and models go by import path, so only what stands at the top level of a module can be written; what
is nested is written once, by its name.  A graph that was written and read again makes an equal plan, with the same
digest.
"""

from bitactor.export.graph.read import from_dict
from bitactor.export.graph.write import to_dict

__all__ = ["from_dict", "to_dict"]
