"""The two schemes of colours, light and dark."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Colors:
    """One scheme's colours as #RRGGBB. The `_text` colours have a contrast of at least 4.5."""

    dark: bool
    window: str
    surface: str  # cards and fields
    sidebar: str
    hover: str
    border: str
    text: str
    dim_text: str  # help
    disabled_text: str
    accent: str  # shapes: bars, focus rings, ticks
    accent_fill: str  # behind `on_accent`: the filled button
    on_accent: str
    accent_text: str
    accent_soft: str  # background of trained tokens and of the chosen row
    good: str
    good_text: str
    warning: str
    warning_text: str
    danger: str
    danger_text: str


LIGHT = Colors(
    dark=False, window="#F5F6F8", surface="#FFFFFF", sidebar="#ECEEF2", hover="#E2E6ED", border="#D9DDE4",
    text="#1B1F27", dim_text="#5A6270", disabled_text="#9AA1AC",
    accent="#4C6FFF", accent_fill="#3F62F2", on_accent="#FFFFFF", accent_text="#3152DB", accent_soft="#DDE4FF",
    good="#2E9E6B", good_text="#1C7049", warning="#B7791F", warning_text="#855511",
    danger="#C93C37", danger_text="#B8322D",
)
DARK = Colors(
    dark=True, window="#15181D", surface="#1D2128", sidebar="#111419", hover="#2A303A", border="#323945",
    text="#E6E9EF", dim_text="#9AA3B2", disabled_text="#626B79",
    accent="#8AA2FF", accent_fill="#8AA2FF", on_accent="#10131A", accent_text="#A3B6FF", accent_soft="#2D3A70",
    good="#4CC38A", good_text="#4CC38A", warning="#E3B341", warning_text="#E3B341",
    danger="#FF7B72", danger_text="#FF7B72",
)
