"""The loss of every step against peft's: the same start of the adapter, the same rows in the same order."""

from bench.speed.cases import CASES, config_of
from bench.speed.plan import Plan, scratch
from bench.speed.report import Figure, Found

STEPS, QUICK_STEPS = 50, 3
LIMIT = 1e-4


def curve(plan: Plan) -> Found:
    """peft begins and leaves its untrained adapter, from which our run starts."""
    main = CASES[0]
    steps = QUICK_STEPS if plan.quick else STEPS
    config = config_of(main, plan.model, plan.files[main.data], steps).model_dump(mode="json")
    with scratch() as start:
        theirs = plan.ask("peer:train_once", {}, config=config, recipe="ordinary", start=str(start))
        config["adapter"]["start_from"] = str(start)
        ours = plan.ask("ours:train_once", config=config)
    pairs = [(mine["loss"], other["loss"]) for mine, other in zip(ours["steps"], theirs["steps"], strict=True)]
    largest = max(abs(mine - other) for mine, other in pairs)
    return Found((Figure("loss curve against peft, largest difference", (largest,), LIMIT, "most", "{:.1e}",
                         f"{steps} steps"),), {"curve": [theirs, ours]})
