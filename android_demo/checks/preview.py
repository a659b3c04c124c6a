"""Draws the app's layouts in Chromium, for want of Android's own renderer.

python checks/preview.py pictures

Reads the layouts, strings, colours and styles of the app and lays them out with CSS. Widgets look
only roughly as Android's Material theme draws them, fonts are this machine's: what the pictures
show is what stands where, what wraps and what is cut off, in the light and the dark theme, upright
and across, and at double text size.
"""

import html
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

RES = Path(__file__).parent.parent / "app" / "src" / "main" / "res"
ANDROID = "{http://schemas.android.com/apk/res/android}"
THEMES = {
    "light": {"background": "#fafafa", "text": "#000000de", "secondary": "#00000099"},
    "dark": {"background": "#303030", "text": "#ffffff", "secondary": "#ffffffb3"},
}
ROWS = {
    "exchanges": [
        ("exchange", {"asked": "Spell this word backward: PURAQUE", "answered": "EUQARUP",
                      "note": "first token 0.00 s, prefill 0.0 tok/s, decode 0.0 tok/s · "
                              "memory 0 MiB, mapped 0 MiB"}),
        ("exchange", {"asked": "Sort these numbers in ascending order: 75, 4, 40, 96",
                      "answered": "['4', '40', '75', '96']", "note": ""}),
    ],
    "notices": [
        ("notice", {"": "HRM Edge 0.1.0, arm64-v8a. Nothing leaves this device."}),
        ("notice", {"": "What it contains, and under which licences:"}),
        ("notice", {"": "ONNX RUNTIME"}),
        ("notice", {"": "MIT License"}),
    ],
    "models": [
        ("model", {"name": "hrm-tiny, chosen", "facts": "onnx, 4-bit weights, 8-bit cache, 1 MiB",
                   "fit": "Room for 512 of 512 tokens now.", "delete": None}),
        ("model", {"name": "hrm-1b-int4", "facts": "onnx, 4-bit weights, 8-bit cache, 652 MiB",
                   "fit": "Room for 0 of 4,096 tokens now."}),
    ],
}  # fmt: skip
TEXTS = {"empty": None, "status": "Answering…", "send": "Stop", "result":
         "device: Maker Model, Android 16\nmodel: hrm-tiny\npp128: 0.00 tok/s (5 runs)\n"
         "tg64: 0.00 tok/s (5 runs)", "max_tokens": "256", "temperature": "0.7", "top_k": "0",
         "top_p": "0.95", "min_p": "0.0", "seed": "", "context": "2048", "threads": "0",
         "prompt_tokens": "128", "answer_tokens": "64", "repetitions": "5"}  # fmt: skip
TITLES = {"chat": "HRM Edge", "models": "Models", "settings": "Settings", "benchmark": "Benchmark",
          "about": "About"}  # fmt: skip
SHOTS = [(360, 720, "light", 1.0), (360, 720, "dark", 1.0), (360, 720, "light", 2.0),
         (720, 360, "light", 1.0)]  # width, height, theme, font scale  # fmt: skip


@dataclass(frozen=True)
class Page:
    """How a layout is drawn; sizes in dp are CSS pixels."""

    theme: str
    font_scale: float
    layout: str

    def view(self, node: ElementTree.Element, texts: dict[str, str | None], row: bool) -> str:
        """HTML of `node` in a horizontal (`row`) or vertical parent."""
        styles = _inherited(node)
        identifier = node.get(f"{ANDROID}id", "").rpartition("/")[2]
        if identifier in texts and texts[identifier] is None:
            return ""
        css = self._box(styles, row) + self._text(node.tag, styles)
        inner = self._content(node, identifier, texts, styles)
        return f'<div class="{node.tag}" style="{css}">{inner}</div>'

    def _content(
        self, node: ElementTree.Element, identifier: str, texts: dict[str, str | None],
        styles: dict[str, str],
    ) -> str:  # fmt: skip
        if node.tag == "Toolbar":
            return TITLES[self.layout]
        if node.tag == "ListView":
            parts = []
            for layout, row_texts in ROWS[identifier]:
                root = ElementTree.parse(RES / "layout" / f"{layout}.xml").getroot()
                parts.append(self.view(root, row_texts, row=False))
            return "".join(parts)
        if identifier == "conditions" and node.tag == "LinearLayout":
            boxes = ("☑ direct", "☐ cot", "☐ noisy", "☐ synth")
            return "".join(f'<div style="min-height:48px">{box}</div>' for box in boxes)
        across = styles.get("orientation") == "horizontal"
        inside = "".join(self.view(child, texts, across) for child in node)
        text = texts.get(identifier) or _string(styles.get("text", ""))
        if node.tag == "EditText" and not text:
            text = _string(styles.get("hint", "")) or "\u00a0"
        if node.tag == "Switch":
            text += " ◯"
        return html.escape(text).replace("\n", "<br>") + inside

    def _box(self, styles: dict[str, str], row: bool) -> str:
        css = ["display:flex", "box-sizing:border-box"]
        css.append(
            f"flex-direction:{'row' if styles.get('orientation') == 'horizontal' else 'column'}"
        )
        css.append("overflow:hidden" if styles.get("clip") else "min-width:0;min-height:0")
        if "layout_weight" in styles:
            css.append(f"flex:{styles['layout_weight']} 1 0;overflow:hidden")
        else:
            css.append("flex:none")
        main, cross = ("width", "height") if row else ("height", "width")
        if styles.get(f"layout_{cross}") == "match_parent":
            css.append("align-self:stretch")
        elif styles.get("layout_gravity") == "end":
            css.append("align-self:flex-end;max-width:100%")
        else:
            css.append("align-self:flex-start" if not row else "align-self:flex-end")
        if styles.get(f"layout_{main}") == "match_parent" and not row:
            css.append("height:100%")
        for name, sides in (("Horizontal", ("left", "right")), ("Vertical", ("top", "bottom"))):
            for side in sides:
                value = styles.get(f"padding{side.title()}", styles.get(f"padding{name}"))
                css.append(f"padding-{side}:{self._size(value or styles.get('padding', '0'))}")
        for side, name in (("top", "Top"), ("left", "Start")):
            value = styles.get(f"layout_margin{name}", styles.get("layout_margin", "0"))
            css.append(f"margin-{side}:{self._size(value)}")
        if "minHeight" in styles:
            css.append(f"min-height:{self._size(styles['minHeight'])}")
        background = styles.get("background", "")
        if background:
            colour = "bubble" if "bubble" in background else "bar"
            css.append(f"background:{_colour(colour, self.theme)}")
            css.append("border-radius:12px" if colour == "bubble" else "")
        if styles.get("gravity") == "center":
            css.append("justify-content:center;text-align:center")
        return ";".join(css) + ";"

    def _text(self, tag: str, styles: dict[str, str]) -> str:
        secondary = "Secondary" in styles.get("textColor", "")
        colour = THEMES[self.theme]["secondary" if secondary else "text"]
        css = f"color:{colour};font-size:{self._size(styles.get('textSize', '14sp'))};"
        if styles.get("textStyle") == "bold":
            css += "font-weight:bold;"
        if tag == "Button":
            accent = _colour("accent", self.theme)
            css += f"color:{accent};text-transform:uppercase;padding:8px;text-align:center;"
            css += "align-items:center;justify-content:center;font-weight:500;"
        if tag == "EditText":
            css += f"border-bottom:1px solid {colour};justify-content:center;"
        if tag == "Toolbar":
            css += f"font-size:{20 * self.font_scale}px;padding:14px 16px;min-height:56px;"
        return css

    def _size(self, value: str) -> str:
        if value.startswith("?"):
            return "56px"
        number = float(value.rstrip("dsp"))
        return f"{number * (self.font_scale if value.endswith('sp') else 1):g}px"


def _inherited(node: ElementTree.Element) -> dict[str, str]:
    """The node's attributes over those of its style, names without the namespace."""
    found: dict[str, str] = {}
    style = node.get("style", "").rpartition("/")[2]
    for item in ElementTree.parse(RES / "values" / "themes.xml").findall("style"):
        if item.get("name") == style:
            found = {i.get("name", "").split(":")[-1]: i.text or "" for i in item}
    return found | {k.removeprefix(ANDROID): v for k, v in node.attrib.items()}


def _string(value: str) -> str:
    name = value.removeprefix("@string/")
    if name == value:
        return value
    for item in ElementTree.parse(RES / "values" / "strings.xml").getroot():
        if item.get("name") == name:
            return (item.text or "").replace("\\'", "'")
    raise KeyError(value)


def _colour(name: str, theme: str) -> str:
    folder = "values-night" if theme == "dark" else "values"
    for item in ElementTree.parse(RES / folder / "colors.xml").getroot():
        if item.get("name") == name:
            return "#" + (item.text or "")[3:]
    raise KeyError(name)


def draw(layout: str, theme: str, font_scale: float) -> str:
    """A page that shows `layout`."""
    root = ElementTree.parse(RES / "layout" / f"{layout}.xml").getroot()
    body = Page(theme, font_scale, layout).view(root, TEXTS, row=False)
    style = f"background:{THEMES[theme]['background']};font-family:Roboto,'DejaVu Sans',sans-serif"
    return (
        "<!doctype html><meta charset=utf-8><style>html,body{margin:0;height:100%;overflow:hidden}"
        f"body{{{style}}}</style>{body}"
    )


def sheet(layout: str) -> str:
    """All settings of `layout` side by side."""
    frames = [
        f'<iframe width={width} height={height} style="border:0;margin-right:12px" '
        f'srcdoc="{html.escape(draw(layout, theme, font_scale))}"></iframe>'
        for width, height, theme, font_scale in SHOTS
    ]
    flow = "margin:0;background:#888;display:flex;align-items:flex-start"
    return f'<!doctype html><meta charset=utf-8><body style="{flow}">{"".join(frames)}'


def main(out: Path) -> None:
    """Write OUT/LAYOUT.png for each screen."""
    out.mkdir(parents=True, exist_ok=True)
    size = f"{sum(width + 12 for width, *_ in SHOTS) - 12},{max(shot[1] for shot in SHOTS)}"
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        for layout in TITLES:
            page.write_text(sheet(layout), encoding="utf-8")
            command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars"]
            command += [f"--window-size={size}", f"--user-data-dir={scratch}/profile"]
            command += [f"--screenshot={out / layout}.png", page.as_uri()]
            subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
