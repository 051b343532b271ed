"""How the chat asks: the system message, the temperature, the longest answer."""

from PySide6.QtCore import Qt, Slot
from PySide6.QtWidgets import QHBoxLayout, QLineEdit, QSlider, QSpinBox, QWidget

from app import theme
from app.widgets import label, plain_tip

_STEPS = 20  # of the slider for a temperature of 1


class ChatSettings(QWidget):
    """One line of fields above the question."""

    def __init__(self) -> None:
        super().__init__()
        self._own_system = False  # the person wrote the system message
        self.system = QLineEdit()
        self.system.setPlaceholderText("none")
        self.system.setAccessibleName("System message")
        self.system.setToolTip(plain_tip("Stands before every conversation. Proposed is the one that the rows have."))
        self.system.textEdited.connect(self._system_edited)
        self.temperature = QSlider(Qt.Orientation.Horizontal)
        self.temperature.setRange(0, 30)
        self.temperature.setFixedWidth(96)
        self.temperature.setAccessibleName("Temperature")
        self.temperature.setToolTip(plain_tip("0: always the most likely word. Higher: more varied, less certain."))
        self._temperature_text = label("", "help")
        self._temperature_text.setFixedWidth(30)
        self.temperature.valueChanged.connect(self._temperature_moved)
        self._temperature_moved(0)
        self.most_tokens = QSpinBox()
        self.most_tokens.setRange(1, 8192)
        self.most_tokens.setValue(256)
        self.most_tokens.setSuffix(" tokens")
        self.most_tokens.setFixedWidth(104)
        self.most_tokens.lineEdit().setTextMargins(8, 0, 0, 0)
        self.most_tokens.setAccessibleName("Longest answer")
        self.most_tokens.setToolTip(plain_tip("An answer is cut off after so many tokens."))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(theme.GRID)
        for caption, fields in (("System message", (self.system,)),
                                ("Temperature", (self.temperature, self._temperature_text)),
                                ("At most", (self.most_tokens,))):
            layout.addWidget(label(caption, "help"))
            for field in fields:
                layout.addWidget(field, 1 if field is self.system else 0)

    @property
    def temperature_value(self) -> float:
        """0 to 1.5."""
        return self.temperature.value() / _STEPS

    def propose_system(self, text: str) -> None:
        """Put this system message in, unless the person wrote one."""
        if not self._own_system:
            self.system.setText(text)

    @Slot()
    def _system_edited(self) -> None:
        self._own_system = bool(self.system.text())

    @Slot(int)
    def _temperature_moved(self, position: int) -> None:
        self._temperature_text.setText(f"{position / _STEPS:.2f}")
