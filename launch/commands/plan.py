"""The command plan."""

import json
from dataclasses import fields

from datamodels.launch.request import Request


def plan(request: Request) -> int:
    """Print what a setting takes before it is started, and what a budget buys."""
    from datamodels.launch.plan import Terms, describe
    from datamodels.launch.plan import plan as plan_of

    given = {field.name: request.options[field.name] for field in fields(Terms)}
    terms = Terms(**{key: value for key, value in given.items() if value is not None})
    found = plan_of(request.setting, request.layout, terms)
    print(json.dumps(found) if request.options["json"] else describe(found))
    return 0
