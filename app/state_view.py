"""What the side bar and the bars say: which page is ready, why Start is disabled, what the engine does."""

from app.bars import StatusLine, TopBar
from app.draft import Draft
from app.menus import Menus
from app.operations import Operations
from app.run_session import RunSession
from app.sidebar import Sidebar, Sign
from core import words
from core.run_problems import Problem, planned_steps

SECTIONS = {"model": ("model",), "data": ("data",), "method": ("adapter", "training")}
JOB_WORDS = {
    "ListModels": "Listing models", "PrepareStarter": "Preparing the starter", "InspectModel": "Reading the model",
    "ImportGguf": "Importing", "DownloadModel": "Downloading", "ScanData": "Measuring the data",
    "PreviewRows": "Reading rows", "ProbeMemory": "Measuring a step", "Generate": "Answering", "Export": "Exporting",
    "Unload": "Freeing memory",
}
LONG_JOBS = ("ImportGguf", "DownloadModel", "Export", "ProbeMemory")  # the model and the data are looked at after these


class StateView:
    """Puts the state of the draft, the run and the engines on the frame of the window."""

    def __init__(self, draft: Draft, session: RunSession, operations: Operations, *, sidebar: Sidebar, top: TopBar,
                 status: StatusLine, menus: Menus) -> None:
        self._draft, self._session, self._operations = draft, session, operations
        self._sidebar, self._top, self._status, self._menus = sidebar, top, status, menus

    def show(self) -> None:
        """Signs of the pages, Start, the menus and the line below."""
        draft, active = self._draft, self._session.active
        for key, sections in SECTIONS.items():
            found = [problem for section in sections for problem in draft.problems_of(section)]
            self._sidebar.set_sign(key, self._sign(key, found), found[0].message if found else "")
        self._sidebar.set_sign("train", "running" if active else "none")
        reason = self.why_not()
        self._top.set_ready(draft.ready, reason)
        self._menus.show_session(active, draft.ready)
        self._show_hardware()
        if not active:
            self._status.show_idle(reason or self._ready_words())

    def why_not(self) -> str:
        """Why the run can not be started; "" if it can."""
        if self._draft.problems:
            first = self._draft.problems[0]
            return f"{first.message} {first.hint}".strip()
        if self._draft.ready:
            return ""
        current = self._operations.current("work")
        if current is not None and current.label in LONG_JOBS:
            work = JOB_WORDS[current.label].lower()
            return f"Waiting: the engine is {work}, then it looks at the model and the data."
        return "Looking at the model and the data…"

    def _show_hardware(self) -> None:
        hardware = self._operations.client("train").hardware
        self._sidebar.show_machine(hardware.accelerator)
        self._menus.show_gpus(hardware.gpus, self._draft.config.training.device)

    def show_engines(self) -> None:
        """The dot and the words at the foot of the side bar, and what the engine has found."""
        self._show_hardware()
        engine = self._sidebar.engine
        states = {role: self._operations.client(role).state for role in ("train", "work")}
        current = self._operations.current("work")
        if self._session.active:
            engine.show_state("busy", "Engine training")
        elif "crashed" in states.values():
            engine.show_state("crashed", "Engine crashed")
        elif states["work"] == "starting":
            engine.show_state("starting", "Engine starting…")
        elif current is not None:
            engine.show_state("busy", JOB_WORDS.get(current.label, "Engine busy"))
        else:
            engine.show_state("idle", "Engine ready")

    def _sign(self, key: str, found: list[Problem]) -> Sign:
        draft = self._draft
        if found:
            return "problem"
        waiting = {"model": draft.card is None, "data": draft.scan is None, "method": draft.card is None}[key]
        if waiting:
            return "checking" if draft.checking else "none"
        return "ready"

    def _ready_words(self) -> str:
        if self._draft.scan is None:
            return "Ready."
        return f"Ready: {words.plural(planned_steps(self._draft.config, self._draft.scan), 'step')}."


def page_of(problem: Problem) -> str:
    """The key of the page that shows a problem's field."""
    section = problem.field.split(".")[0]
    return next((key for key, sections in SECTIONS.items() if section in sections), "method")
