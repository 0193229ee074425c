"""What the page is built from: sections, tables, plots with captions, thumbnails. Text is escaped here."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.report.style import CSS

LARGEST_THUMBNAIL = 96
"""Side in pixels that larger images are scaled down to."""
_LOSSLESS = 48
"""Side in pixels up to which thumbnails are the images' own pixels."""


@dataclass(frozen=True)
class Section:
    name: str
    """In links to it."""
    title: str
    body: str


def page(title: str, kicker: str, lead: str, beneath: str, sections: Sequence[Section], head: str = "") -> str:
    """The whole document. beneath: what follows the lead, as HTML; head: elements of the document's head."""
    contents = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in sections)
    bodies = "".join(
        f'<section id="{section.name}" aria-labelledby="{section.name}-title">'
        f'<h2 id="{section.name}-title">{escape(section.title)}</h2>{section.body}</section>'
        for section in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}'
        f"<title>{escape(kicker)}: {escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f'<style>{CSS}</style></head><body><header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{text(lead)}</p>{beneath}</header>'
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav><main>{bodies}</main></body></html>\n'
    )


def text(plain: str) -> str:
    """Plain text as HTML, with minus signs before numbers and `code` set as such."""
    marked = re.sub(r"(?<![\w-])-(?=\.?\d)", "−", escape(plain))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", marked)


def figures(entries: Iterable[tuple[str, str, str]]) -> str:
    """The headline: (what, figure, what more there is to say)."""
    cells = "".join(
        f"<div><dt>{text(what)}</dt><dd><b>{text(figure)}</b><span>{text(more)}</span></dd></div>"
        for what, figure, more in entries
    )
    return f'<dl class="figures">{cells}</dl>'


def paragraph(words: str, kind: str = "") -> str:
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def heading(words: str) -> str:
    return f"<h3>{text(words)}</h3>"


def table(label: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and values; it scrolls within itself where it is too wide."""
    cells = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows)
    return _scrolling(label, f'<table class="facts"><tbody>{cells}</tbody></table>')


def grid(label: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with named columns."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in names)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return _scrolling(label, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _scrolling(label: str, content: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def plot(title: str, n: str, svg: str, caption: str) -> str:
    """A plot with its title, what it is of how many of, and how to read it; the title is its text alternative."""
    named = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(f"{title}, {n}. {caption}")}" ', 1)
    return (
        f'<figure class="plot"><h3>{text(title)} <small>{text(n)}</small></h3>{named}'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def plots(found: Iterable[str]) -> str:
    return f'<div class="plots">{"".join(found)}</div>'


def folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def thumbnail(
    image: NDArray[np.uint8], alt: str, lines: Sequence[str], kind: str = "", share: float | None = None
) -> str:
    """An image [H, W, C] over lines of text. share: length of the bar between the two, of its width."""
    bar = "" if share is None else f'<i style="--share:{max(0.0, min(1.0, share)):.2f}"></i>'
    soft = ' class="soft"' if min(image.shape[:2]) > LARGEST_THUMBNAIL else ""
    caption = "".join(f"<span>{text(line)}</span>" for line in lines)
    source = f'src="{data_url(image)}" alt="{escape(alt)}" width="72" height="72"'
    return (
        f'<figure class="thumb {kind}" title="{escape(alt)}"><img{soft} {source}>{bar}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def data_url(image: NDArray[np.uint8]) -> str:
    """An image [H, W, C] as a data URL: its own pixels as PNG, or where it is large a small JPEG.

    Of 1 or 2 channels the first is shown as grey, of more the first 3 as red, green and blue: see `channels_shown`.
    """
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] < 3 else np.ascontiguousarray(image[..., :3]))
    lossless = max(picture.size) <= _LOSSLESS
    if not lossless:
        picture.thumbnail((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL))
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=82)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def channels_shown(channels: int) -> str:
    """What `data_url` leaves out of an image, as a sentence after a space; empty where that is nothing."""
    if channels in (1, 3):
        return ""
    which = "the first is shown, as grey" if channels < 3 else "the first 3 are shown, as red, green and blue"
    return f" Of an image's {channels} channels {which}."
