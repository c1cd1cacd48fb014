"""The page itself, in Gradio: a tab to generate in, and a tab to look through pairs."""

import functools
import itertools
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from geoseg_gan.data.palette import IGNORE, Palette
from geoseg_gan.studio.folder import FILTERS, ORDERS, Entry, PairFolder
from geoseg_gan.studio.workbench import Generated, Label, Workbench, drawn_mask, enlarged
from geoseg_gan.utils.errors import LARGEST_SEED, UserError, plural
from geoseg_gan.utils.tables import percent

TITLE = "Geoseg-GAN studio"

_CANVAS = 512  # pixels: smaller masks are shown and drawn on enlarged
_THUMBNAIL = 128  # pixels of a mask or an image in the gallery
_PAGE = 24  # pairs of the gallery

CSS = """
.gradio-container {max-width: 1500px !important}
.class-color {display: inline-block; width: 1em; height: 1em; margin-right: .4em;
  border-radius: 3px; vertical-align: -.1em; border: 1px solid #8888}
.legend {display: flex; flex-wrap: wrap; gap: .2em 1.2em}
.agreement {font-size: 1.6em; font-weight: 600}
table.iou {width: 100%; border-collapse: collapse}
table.iou, table.iou tr {border: 0 !important}
table.iou td, table.iou th {padding: .15em .5em !important; text-align: left; border: 0 !important}
table.iou td.number {text-align: right; font-variant-numeric: tabular-nums}
.bar {height: .7em; background: #2a9d8f; border-radius: 3px}
#image img, #reading img {image-rendering: pixelated}
"""

Handler = Callable[..., Any]


def build_page(bench: Workbench | None, folder: PairFolder | None, scratch: Path, seed: int) -> Any:
    """The page, as Gradio's Blocks.

    Args:
        bench: What the first tab generates with; None leaves it out.
        folder: What the second tab looks through; None leaves it out.
        scratch: A folder for the files that can be downloaded.
        seed: Noise of the first image.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        if bench is not None:
            with gr.Tab("Generate"):
                _generate_tab(page, bench, scratch, seed)
        if folder is not None:
            with gr.Tab("Pairs"):
                _pairs_tab(page, folder)
    return page


def theme() -> Any:
    """Fonts that every system has: none is fetched from anywhere."""
    return gr.themes.Default(
        font=("ui-sans-serif", "system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )


def _on(event: Any, function: Handler, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Has an event call a function, one at a time; a user's mistake is shown in the page."""

    @functools.wraps(function)
    def told(*values: Any) -> Any:
        try:
            return function(*values)
        except UserError as error:
            raise gr.Error(escape(str(error)), duration=None, print_exception=False) from None

    return event(
        told,
        list(inputs),
        list(outputs),
        concurrency_id="studio",
        concurrency_limit=1,
        api_visibility="private",
    )


def _generate_tab(page: Any, bench: Workbench, scratch: Path, seed: int) -> None:
    zoom = max(1, _CANVAS // bench.size)
    numbers = itertools.count()
    first = bench.mask_of_tile(bench.stems[0]) if bench.stems else bench.blank(0)
    below = gr.State(first)
    with gr.Row():
        with gr.Column(scale=1):
            with gr.Row():
                tile = gr.Dropdown(
                    bench.stems,
                    value=next(iter(bench.stems), None),
                    label="Mask of a training tile",
                    elem_id="tile",
                    visible=bool(bench.stems),
                )
                kind = gr.Dropdown(
                    list(zip(bench.palette.names, itertools.count(), strict=False)),
                    value=0,
                    label="One class",
                    min_width=120,
                )
            with gr.Row():
                upload = gr.UploadButton("Load a mask", size="sm", elem_id="upload")
                fill = gr.Button("Fill with this class", size="sm", elem_id="fill")
            editor = gr.ImageEditor(
                _canvas(first, bench.palette, zoom),
                label="Draw with the colours of the classes",
                type="numpy",
                image_mode="RGBA",
                format="png",
                sources=(),
                transforms=(),
                layers=False,
                buttons=[],
                brush=_brush(bench.palette, bench.size * zoom // 20),
                eraser=gr.Eraser(default_size=bench.size * zoom // 20),
                canvas_size=(bench.size * zoom, bench.size * zoom),
                height=bench.size * zoom + 100,
                elem_id="editor",
            )
            gr.HTML(_legend(bench.palette))
        with gr.Column(scale=1):
            with gr.Row():
                name = gr.Dropdown(
                    bench.generators, value=bench.generators[0], label="Generator", elem_id="name"
                )
                noise = gr.Number(
                    seed,
                    label="Noise",
                    precision=0,
                    minimum=0,
                    maximum=LARGEST_SEED,
                    interactive=bench.takes_noise,
                    elem_id="noise",
                )
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate")
                again = gr.Button("New noise", interactive=bench.takes_noise, elem_id="again")
            with gr.Row():
                image = gr.Image(
                    label="Image", format="png", buttons=["fullscreen"], elem_id="image"
                )
                reading = gr.Image(
                    label="What the segmenter reads",
                    format="png",
                    buttons=["fullscreen"],
                    elem_id="reading",
                    visible=bench.reads,
                )
            with gr.Row():
                image_file = gr.DownloadButton("Download the image", size="sm", elem_id="save_i")
                mask_file = gr.DownloadButton("Download the mask", size="sm", elem_id="save_m")
            table = gr.HTML(elem_id="agreement")

    def make(label: Label, chosen: str, number: float | None) -> tuple[Any, ...]:
        if number is None:
            raise UserError("Noise is empty: give a whole number.")
        made = bench.generate(chosen, label, int(number))
        paths = bench.write_pair(scratch, next(numbers), made)
        read = made.reading and enlarged(bench.palette.color_table[made.reading.label], zoom)
        return enlarged(made.picture, zoom), read, _table(made, bench.palette), *map(str, paths)

    def make_drawn(label: Label, drawing: Any, *knobs: Any) -> tuple[Any, ...]:
        layers = drawing["layers"] if drawing else []
        return make(drawn_mask(label, layers[0], bench.palette) if layers else label, *knobs)

    def load(label: Label) -> tuple[Label, Any]:
        return label, _canvas(label, bench.palette, zoom)

    knobs, results = (name, noise), (image, reading, table, image_file, mask_file)
    sources: list[tuple[Any, Callable[[Any], Label], list[Any]]] = [
        (tile.input, bench.mask_of_tile, [tile]),
        (upload.upload, lambda path: bench.mask_of_file(Path(path)), [upload]),
        (fill.click, bench.blank, [kind]),
        (editor.clear, bench.blank, [kind]),
    ]
    for event, find, inputs in sources:
        loaded = _on(event, lambda value, find=find: load(find(value)), inputs, (below, editor))
        _on(loaded.success, make, (below, *knobs), results)
    _on(start.click, make_drawn, (below, editor, *knobs), results)
    drawn = _on(again.click, lambda: int(np.random.default_rng().integers(2**31)), (), (noise,))
    _on(drawn.success, make_drawn, (below, editor, *knobs), results)
    _on(page.load, make, (below, *knobs), results)


def _canvas(label: Label, palette: Palette, zoom: int) -> dict[str, Any]:
    """The drawing's value: a mask to draw over, and nothing drawn."""
    picture = enlarged(palette.color_table[label], zoom)
    return {"background": picture, "layers": [], "composite": picture}


def _brush(palette: Palette, size: int) -> Any:
    colors = [c.color for c in palette.classes] + [list(color) for color in palette.ignore[:1]]
    return gr.Brush(
        default_size=size,
        colors=[_hex(color) for color in colors],
        default_color=_hex(colors[0]),
        color_mode="fixed",
    )


def _hex(color: Sequence[int]) -> str:
    return "#" + bytes(color).hex()


def _swatch(palette: Palette, label: int) -> str:
    name = "ignore" if label == IGNORE else palette.names[label]
    color = _hex(palette.color_table[label].tolist())
    return f'<span class="class-color" style="background: {color}"></span>{escape(name)}'


def _legend(palette: Palette) -> str:
    labels = [*range(palette.num_classes), *([IGNORE] if palette.ignore else [])]
    entries = "".join(f"<span>{_swatch(palette, label)}</span>" for label in labels)
    return f'<div class="legend">{entries}</div>'


def _table(made: Generated, palette: Palette) -> str:
    """The classes of the mask with their shares and, with a segmenter, their IoU."""
    shares = np.bincount(made.label.ravel(), minlength=IGNORE + 1) / made.label.size
    shown = [label for label in (*range(palette.num_classes), IGNORE) if shares[label]]
    rows, reading = [], made.reading
    for label in shown:
        cells = f"<td>{_swatch(palette, label)}</td><td class=number>{shares[label]:.1%}</td>"
        if reading is not None and label != IGNORE:
            iou = reading.iou[label]
            cells += f'<td class=number>{percent(iou)}</td><td style="width: 40%">'
            cells += f'<div class="bar" style="width: {iou:.0%}"></div></td>'
        rows.append(f"<tr>{cells}</tr>")
    head, more = "", ""
    if reading is not None:
        head = f'<div class="agreement">Agreement {percent(reading.agreement)} % mIoU</div>'
        more = "<th>IoU, %</th><th></th>"
    titles = f"<tr><th>class</th><th>share</th>{more}</tr>"
    return f'{head}<table class="iou">{titles}{"".join(rows)}</table>'


def _pairs_tab(page: Any, folder: PairFolder) -> None:
    chosen = gr.State(None)  # the number of the pair that is shown large
    with gr.Row():
        order = gr.Dropdown(list(ORDERS), value=ORDERS[0], label="Order", elem_id="order")
        shown = gr.Radio(list(FILTERS), value=FILTERS[0], label="Show", elem_id="shown")
        number = gr.Number(1, label="Page", precision=0, minimum=1, elem_id="page")
    summary = gr.Markdown(elem_id="summary")
    with gr.Row():
        gallery = gr.Gallery(
            label="Mask and image",
            columns=3,
            height=720,
            allow_preview=False,
            interactive=False,
            buttons=[],
            format="png",
            object_fit="contain",
            elem_id="gallery",
        )
        with gr.Column():
            large = gr.Image(label="Pair", format="png", buttons=["fullscreen"], elem_id="large")
            about = gr.Markdown(elem_id="about")
            with gr.Row():
                drop = gr.Button(
                    "Drop this pair", variant="stop", interactive=False, elem_id="drop"
                )
                back = gr.Button("Take it back", interactive=False, elem_id="back")

    def look(position: int, *view: Any) -> tuple[Any, ...]:
        """The page of pairs, and large the one at a position of the whole list."""
        chosen_order, chosen_shown, page_number = view
        entries = folder.entries(chosen_order, chosen_shown)
        pages = max(1, -(-len(entries) // _PAGE))
        first = (min(max(int(page_number or 1), 1), pages) - 1) * _PAGE
        listed = entries[first : first + _PAGE]
        pictures = [(folder.picture(entry, _THUMBNAIL), _caption(entry)) for entry in listed]
        kept, dropped = folder.counts
        text = (
            f"{plural(kept, 'pair')} kept, {dropped:,} dropped by hand; page {first // _PAGE + 1} "
        )
        text += f"of {pages} of `{folder.folder}`"
        entry = entries[min(position, len(entries) - 1)] if entries and position >= 0 else None
        return pictures, text, *_shown(folder, entry)

    def refresh(*view: Any) -> tuple[Any, ...]:
        return look(-1, *view)

    def select(event: gr.SelectData, *view: Any) -> tuple[Any, ...]:
        chosen_order, chosen_shown, page_number = view
        entries = folder.entries(chosen_order, chosen_shown)
        position = (max(int(page_number or 1), 1) - 1) * _PAGE + int(event.index)
        return _shown(folder, entries[position] if position < len(entries) else None)

    def change(dropped: bool, index: int | None, *view: Any) -> tuple[Any, ...]:
        if index is None:
            raise UserError("Choose a pair first.")
        before = [entry.index for entry in folder.entries(*view[:2])]
        folder.set_dropped(index, dropped)
        # Where it leaves the list, the next one takes its place.
        return look(before.index(index) if index in before else -1, *view)

    view, one = (order, shown, number), (chosen, large, about, drop, back)
    every = (gallery, summary, *one)
    for event in (order.input, shown.input, number.change, page.load):
        _on(event, refresh, view, every)
    _on(gallery.select, select, view, one)
    _on(drop.click, functools.partial(change, True), (chosen, *view), every)
    _on(back.click, functools.partial(change, False), (chosen, *view), every)


def _caption(entry: Entry) -> str:
    score = "" if entry.score is None else f" · {percent(entry.score)} %"
    return f"{entry.index}{score}" + ("" if entry.is_kept else " · dropped")


def _shown(folder: PairFolder, entry: Entry | None) -> tuple[Any, ...]:
    """A pair large, what is known of it, and which buttons can be pressed."""
    if entry is None:
        return None, None, "", gr.Button(interactive=False), gr.Button(interactive=False)
    picture = folder.picture(entry, _CANVAS)
    facts = [f"**{entry.pair.stem}**", "kept" if entry.is_kept else "dropped by hand"]
    if entry.score is not None:
        facts.append(f"score {percent(entry.score)} %")
    facts.append(f"mask of {entry.line.get('source', 'an unknown tile')}")
    return (
        entry.index,
        enlarged(picture, max(1, _CANVAS // len(picture))),
        ", ".join(facts),
        gr.Button(interactive=entry.is_kept),
        gr.Button(interactive=not entry.is_kept),
    )
