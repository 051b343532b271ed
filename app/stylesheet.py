"""The one stylesheet, laid over Fusion and the palette. Roles are set by `app.theme.set_role`."""

from pathlib import Path

from app.colors import Colors

_ICONS = Path(__file__).resolve().parent.parent / "resources" / "icons"


def stylesheet(c: Colors) -> str:
    """The stylesheet for one scheme's colours."""
    scheme = "dark" if c.dark else "light"
    check, dash = ((_ICONS / f"{name}-{scheme}.svg").as_posix() for name in ("check", "dash"))
    caret = (_ICONS / f"caret-down-{scheme}.svg").as_posix()
    return f"""
QLabel {{ background: transparent; }}
QLabel[role="title"] {{ font-size: 20px; font-weight: 600; }}
QLabel[role="section"] {{ font-size: 14px; font-weight: 600; }}
QLabel[role="strong"] {{ font-weight: 600; }}
QLabel[role="help"] {{ font-size: 12px; color: {c.dim_text}; }}
QLabel[role="error"] {{ font-size: 12px; color: {c.danger_text}; }}
QLabel[role="warning"] {{ font-size: 12px; color: {c.warning_text}; }}
QLabel[role="good"] {{ font-size: 12px; color: {c.good_text}; }}

QFrame[role="card"] {{ background: {c.surface}; border: 1px solid {c.border}; border-radius: 8px; }}
QFrame[role="card-chosen"] {{ background: {c.surface}; border: 2px solid {c.accent}; border-radius: 8px; }}
QFrame[role="card-drop"] {{ background: {c.surface}; border: 2px dashed {c.accent}; border-radius: 8px; }}
QFrame[role="line"] {{ background: {c.border}; border: none; max-height: 1px; min-height: 1px; }}
QWidget[role="sidebar"] {{ background: {c.sidebar}; }}
QWidget[role="bar"] {{ background: {c.surface}; }}
QScrollArea {{ border: none; background: transparent; }}
QScrollArea > QWidget > QWidget[role="scrolled"] {{ background: transparent; }}

QPushButton {{ background: {c.surface}; border: 1px solid {c.border}; border-radius: 6px;
    padding: 5px 12px; min-height: 20px; }}
QPushButton:hover {{ background: {c.hover}; }}
QPushButton:pressed, QPushButton:checked {{ background: {c.accent_soft}; border-color: {c.accent}; }}
QPushButton:focus {{ border-color: {c.accent}; }}
QPushButton:disabled {{ color: {c.disabled_text}; background: {c.window}; }}
QPushButton[role="primary"] {{ background: {c.accent_fill}; border: 1px solid {c.accent_fill}; color: {c.on_accent};
    font-weight: 600; padding: 5px 16px; }}
QPushButton[role="primary"]:hover {{ background: {c.accent}; }}
QPushButton[role="primary"]:focus {{ border: 2px solid {c.text}; padding: 4px 15px; }}
QPushButton[role="primary"]:disabled {{ background: {c.hover}; border-color: {c.border}; color: {c.disabled_text}; }}
QPushButton[role="danger"] {{ color: {c.danger_text}; }}
QPushButton[role="link"] {{ background: transparent; border: none; padding: 2px 0; color: {c.accent_text};
    text-align: left; }}
QPushButton[role="link"]:hover, QPushButton[role="link"]:focus {{ text-decoration: underline; }}
QPushButton[role="chip"] {{ border-radius: 16px; padding: 5px 14px; text-align: left; }}
QPushButton[role="navigation"] {{ background: transparent; border: none; border-radius: 6px; text-align: left;
    padding: 7px 8px; }}
QPushButton[role="navigation"]:hover {{ background: {c.hover}; }}
QPushButton[role="navigation"]:checked {{ background: {c.accent_soft}; font-weight: 600; }}
QPushButton[role="navigation"]:focus {{ border: 1px solid {c.accent}; padding: 6px 7px; }}

QLineEdit, QAbstractSpinBox, QComboBox, QPlainTextEdit, QTextEdit {{ background: {c.surface}; color: {c.text};
    border: 1px solid {c.border}; border-radius: 6px; padding: 4px 8px; min-height: 20px;
    selection-background-color: {c.accent_soft}; selection-color: {c.text}; }}
QAbstractSpinBox {{ padding-left: 0; padding-right: 0; }}
QAbstractSpinBox QLineEdit {{ border: none; padding: 0; min-height: 0; background: transparent; }}
QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {{ width: 0; border: none; }}
QLineEdit:focus, QAbstractSpinBox:focus, QComboBox:focus, QPlainTextEdit:focus, QTextEdit:focus {{
    border-color: {c.accent}; }}
QLineEdit[wrong="true"], QAbstractSpinBox[wrong="true"], QComboBox[wrong="true"] {{ border-color: {c.danger}; }}
QLineEdit:disabled, QAbstractSpinBox:disabled, QComboBox:disabled {{ color: {c.disabled_text};
    background: {c.window}; }}
QComboBox::drop-down {{ border: none; width: 24px; }}
QComboBox::down-arrow {{ image: url("{caret}"); width: 12px; height: 12px; }}
QComboBox QAbstractItemView {{ background: {c.surface}; border: 1px solid {c.border}; outline: none; padding: 4px; }}

QFrame[role="bubble"] {{ background: {c.window}; border: 1px solid {c.border}; border-radius: 10px; }}
QFrame[role="bubble-mine"] {{ background: {c.accent_soft}; border: none; border-radius: 10px; }}
QPlainTextEdit[role="bubble-text"] {{ background: transparent; border: none; padding: 0; min-height: 0; }}

QListView, QTreeView, QTableView {{ background: {c.surface}; border: 1px solid {c.border}; border-radius: 6px;
    outline: none; }}
QListView[role="plain"], QTreeView[role="plain"] {{ border: none; background: transparent; }}
QListView::item, QTreeView::item {{ padding: 4px; border-radius: 4px; }}
QTableView::item {{ padding: 0 6px; border: none; }}
QListView::item:hover, QTreeView::item:hover {{ background: {c.hover}; }}
QListView::item:selected, QTreeView::item:selected, QTableView::item:selected {{ background: {c.accent_soft};
    color: {c.text}; }}
QHeaderView::section {{ background: {c.surface}; color: {c.dim_text}; border: none;
    border-bottom: 1px solid {c.border}; padding: 6px 8px; font-size: 12px; }}

QCheckBox::indicator, QTableView::indicator, QTreeView::indicator, QListView::indicator {{ width: 14px; height: 14px;
    border: 1px solid {c.dim_text}; border-radius: 4px; background: {c.surface}; }}
QCheckBox::indicator:checked, QTableView::indicator:checked, QTreeView::indicator:checked,
QListView::indicator:checked {{ background: {c.accent_fill}; border-color: {c.accent_fill}; image: url("{check}"); }}
QCheckBox::indicator:indeterminate, QTableView::indicator:indeterminate, QTreeView::indicator:indeterminate,
QListView::indicator:indeterminate {{ background: {c.accent_fill};
    border-color: {c.accent_fill}; image: url("{dash}"); }}
QCheckBox::indicator:disabled, QTreeView::indicator:disabled {{ border-color: {c.border}; background: {c.window}; }}
QCheckBox::indicator:checked:disabled, QTreeView::indicator:checked:disabled {{ background: {c.dim_text}; }}
QCheckBox::indicator:focus {{ border-color: {c.accent}; }}
QCheckBox, QRadioButton {{ spacing: 6px; }}
QRadioButton::indicator {{ width: 14px; height: 14px; border: 1px solid {c.dim_text}; border-radius: 8px;
    background: {c.surface}; }}
QRadioButton::indicator:checked {{ width: 6px; height: 6px; border: 5px solid {c.accent_fill}; }}
QRadioButton::indicator:disabled {{ border-color: {c.border}; }}
QRadioButton::indicator:focus {{ border-color: {c.accent}; }}

QTabBar::tab {{ background: transparent; color: {c.dim_text}; padding: 8px 12px; border: none;
    border-bottom: 2px solid transparent; }}
QTabBar::tab:selected {{ color: {c.text}; border-bottom-color: {c.accent}; font-weight: 600; }}
QTabBar::tab:focus {{ color: {c.accent_text}; }}
QTabWidget::pane {{ border: none; }}

QProgressBar {{ background: {c.hover}; border: none; border-radius: 3px; min-height: 6px; max-height: 6px; }}
QProgressBar::chunk {{ background: {c.accent}; border-radius: 3px; }}
QSplitter::handle {{ background: transparent; }}
QToolTip {{ background: {c.surface}; color: {c.text}; border: 1px solid {c.border}; padding: 4px 8px; }}
QMenu {{ background: {c.surface}; border: 1px solid {c.border}; padding: 4px; }}
QMenu::item {{ padding: 5px 24px 5px 12px; border-radius: 4px; }}
QMenu::item:selected {{ background: {c.accent_soft}; }}
QMenu::item:disabled {{ color: {c.disabled_text}; }}
QMenu::separator {{ height: 1px; background: {c.border}; margin: 4px 8px; }}
QMenuBar {{ background: {c.sidebar}; }}
QMenuBar::item {{ background: transparent; padding: 4px 8px; border-radius: 4px; }}
QMenuBar::item:selected {{ background: {c.hover}; }}
QScrollBar:vertical {{ background: transparent; width: 10px; margin: 0; }}
QScrollBar:horizontal {{ background: transparent; height: 10px; margin: 0; }}
QScrollBar::handle {{ background: {c.border}; border-radius: 4px; margin: 1px; min-height: 24px; min-width: 24px; }}
QScrollBar::handle:hover {{ background: {c.disabled_text}; }}
QScrollBar::add-line, QScrollBar::sub-line {{ width: 0; height: 0; }}
QScrollBar::add-page, QScrollBar::sub-page {{ background: transparent; }}
"""
