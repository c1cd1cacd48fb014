"""What is wrong or peculiar with images, masks, classes and places, as findings."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.audit.findings import Finding, Severity, some, those
from geoseg_gan.data.audit.measure import ImageFacts, MaskFacts, PairFacts
from geoseg_gan.data.audit.values import shared_colors
from geoseg_gan.data.georeference import Georeference
from geoseg_gan.data.transplant import rare_classes
from geoseg_gan.utils.errors import plural

MOSTLY_IGNORED = 0.75
"""Share of ignored pixels above which a tile teaches little; tile drops such ones by default."""

_FEW = 20  # training pairs: fewer are too few for a generator
_SAME_PIXEL = 0.01  # relative difference of resolutions that are the same
_OUTLIER = 6.0  # robust standard deviations from the median
_LEAST_SPREAD = 0.02  # of the range of values: closer images are no outliers
_CLIPPED = 0.2  # share of pixels at the end of the range
_BLANK = 0.98  # share of pixels that are 0 or without data, above which a tile is empty
_FILLED = 0.001  # share of pixels of 65,535 above which they are hardly overexposed ones
_SHIFTED_SHARES = 3.0  # ratio of a class's shares in training and validation that is worth a note


def image_facts(facts: Iterable[PairFacts]) -> list[tuple[PairFacts, ImageFacts]]:
    """The pairs whose image decodes, with what it holds."""
    return [(f, f.image) for f in facts if isinstance(f.image, ImageFacts)]


def mask_facts(facts: Iterable[PairFacts]) -> list[tuple[PairFacts, MaskFacts]]:
    """The pairs whose mask decodes, with what it holds."""
    return [(f, f.mask) for f in facts if isinstance(f.mask, MaskFacts)]


def file_findings(
    facts: Sequence[PairFacts], image_size: int, fit: str, is_ready: bool
) -> list[Finding]:
    """Findings on files that do not decode, and on sizes, bands and types.

    Args:
        facts: All pairs.
        image_size: Side of the crops of training in pixels.
        fit: How images are brought to it.
        is_ready: Whether training reads the folder as it is; else pictures are to be cut first.
    """
    findings = []
    for what in ("image", "mask"):
        broken = [f for f in facts if isinstance(getattr(f, what), str)]
        if broken:
            text = f"{those(len(broken), what, 'cannot')} be read"
            examples = some(getattr(f, what) for f in broken)
            advice = "Export them again, or remove the pairs."
            findings.append(
                Finding("error", f"unreadable_{what}s", text, advice, len(broken), examples)
            )
    images = image_facts(facts)
    differing = [
        f
        for f in facts
        if isinstance(f.image, ImageFacts)
        and isinstance(f.mask, MaskFacts)
        and f.image.size != f.mask.size
    ]
    if differing:
        text = f"{those(len(differing), 'mask', 'differ')} in size from their image"
        advice = "Export both from the same window, or remove the pairs."
        examples = some(
            f"{f.entry.name}: image {_size(f.image)}, mask {_size(f.mask)}" for f in differing
        )
        findings.append(Finding("error", "size_mismatch", text, advice, len(differing), examples))
    kinds = Counter((image.bands, image.dtype) for _, image in images)
    if len(kinds) > 1:
        named = "; ".join(
            f"{plural(count, 'image')} of {plural(bands, 'band')} of {dtype}"
            for (bands, dtype), count in kinds.most_common()
        )
        usual = kinds.most_common(1)[0][0]
        others = [f.entry.name for f, image in images if (image.bands, image.dtype) != usual]
        text = f"The images differ in bands or type: {named}"
        advice = "Convert all to the same bands and type."
        findings.append(Finding("error", "mixed_types", text, advice, len(others), some(others)))
    small = [(f, image) for f, image in images if min(image.size) < image_size]
    if small and fit == "crop":
        least = min(min(image.size) for _, image in small)
        text = f"{those(len(small), 'image', 'are')} smaller than image_size={image_size}"
        severity: Severity = "error" if is_ready else "warning"
        advice = f"Train with image_size={least} or less, or data.fit=resize."
        if not is_ready:
            advice = f"Cut tiles of {least} pixels or less: tile_size={least}."
        examples = some(f"{f.entry.name}: {_size(image)}" for f, image in small)
        findings.append(Finding(severity, "small_images", text, advice, len(small), examples))
    training = sum(f.entry.split == "train" for f, _ in images)
    if is_ready and 0 < training < _FEW:
        text = f"{those(training, 'training image', 'are')} few"
        advice = "Expect a generator that repeats them; label more, or cut smaller tiles."
        findings.append(Finding("note", "few_pairs", text, advice, training))
    return findings


def mask_kind_findings(facts: Sequence[PairFacts], mask_format: str) -> list[Finding]:
    """Findings on how masks are stored."""
    masks = mask_facts(facts)
    findings = []
    kinds = Counter(mask.kind for _, mask in masks)
    if len(kinds) > 1:
        named = ", ".join(f"{count:,} x {kind}" for kind, count in kinds.most_common())
        rarest = kinds.most_common()[-1][0]
        examples = some(f.entry.mask_name for f, mask in masks if mask.kind == rarest)
        text = f"The masks are stored in {len(kinds)} ways: {named}"
        advice = "All are read, each as it says of itself; other tools may mix them up."
        findings.append(Finding("note", "mixed_masks", text, advice, len(masks), examples))
    tables = [(f, mask) for f, mask in masks if mask.table]
    if tables:
        agree = shared_colors(mask.table for _, mask in tables) is not None
        text = (
            f"{len(tables):,} of {those(len(masks), 'mask', 'are')} palette-mode: numbers, and a "
            "table of their colours"
        )
        advice = "data.mask_format=rgb reads their colours, which is right where colours are known."
        severity: Severity = "note"
        if not agree:
            text += ", and the same number has different colours in different files"
            advice = "Read them by colour: data.mask_format=rgb."
            severity = "warning" if mask_format == "index" else "note"
        examples = some(f.entry.mask_name for f, _ in tables)
        findings.append(Finding(severity, "palette_masks", text, advice, len(tables), examples))
    lossy = [f.entry.mask_name for f, mask in masks if mask.is_lossy]
    if lossy:
        text = (
            f"{those(len(lossy), 'mask', 'are')} JPEGs, which change the colours around every edge"
        )
        advice = "Export masks as PNG if you can; else data.unknown=nearest repairs them."
        findings.append(Finding("warning", "jpeg_masks", text, advice, len(lossy), some(lossy)))
    fractions = [f.entry.mask_name for f, mask in masks if mask.kind.endswith("not whole")]
    if fractions:
        text = f"{those(len(fractions), 'mask', 'hold')} numbers that are not whole, or NaN"
        advice = "Are they probabilities? Export class numbers instead."
        findings.append(
            Finding("error", "fractions", text, advice, len(fractions), some(fractions))
        )
    return findings


def class_findings(
    facts: Sequence[PairFacts],
    pixels: npt.NDArray[np.int64],
    names: Sequence[str],
    is_ready: bool,
) -> list[Finding]:
    """Findings on classes and on tiles that show little.

    Args:
        facts: N pairs with masks.
        pixels: Pixels of every class and, last, of ignore in each: shape (N, C + 1).
        names: The classes.
        is_ready: Whether the folder is split for training.
    """
    findings = []
    splits = np.array([f.entry.split for f in facts])
    fitted = splits == "train" if is_ready else np.ones(len(facts), bool)
    mine = pixels[fitted]
    where = "training" if is_ready else "all"
    if len(mine):
        totals = mine[:, :-1].sum(0)
        occurring = [name for name, count in zip(names, totals, strict=True) if count]
        absent = [name for name, count in zip(names, totals, strict=True) if not count]
        if len(occurring) < 2:
            found = f"only '{occurring[0]}'" if occurring else "no class at all"
            text = f"The {where} masks show {found}"
            advice = "There is nothing to tell apart: check mask_format, palette and index_map."
            findings.append(Finding("error", "one_class", text, advice))
        elif absent:
            text = f"Never in the {where} masks: {', '.join(absent)}"
            advice = (
                "It cannot be learned. Leave it out of the palette, or move tiles that have it."
            )
            findings.append(
                Finding("warning", "absent_classes", text, advice, len(absent), some(absent))
            )
        if len(occurring) >= 2 and (rare := named_rare_classes(mine, names)):
            text = f"Rare, below half of an even share: {'; '.join(rare)}"
            advice = (
                "Use crops=rare in train, oversample_classes or augment=copy_paste in "
                "train_segmenter."
            )
            findings.append(Finding("note", "rare_classes", text, advice, len(rare)))
    if is_ready and (splits == "val").any() and fitted.any():
        findings += _between_splits(mine, pixels[splits == "val"], names)
    ignored = pixels[:, -1] / np.maximum(1, pixels.sum(1))
    void = mostly_ignored(pixels)
    if len(void):
        entirely = int((ignored[void] == 1).sum())
        text = (
            f"{those(len(void), 'tile', 'are')} ignored for more than {MOSTLY_IGNORED:.0%}"
            f", {entirely:,} of them entirely"
        )
        severity: Severity = "error" if len(void) > len(facts) / 2 else "warning"
        advice = "They teach little: remove them, or check what is read as ignore."
        examples = some(f"{facts[row].entry.name}: {ignored[row]:.0%}" for row in void)
        findings.append(Finding(severity, "mostly_ignored", text, advice, len(void), examples))
    single = int(((pixels[:, :-1] > 0).sum(1) == 1).sum())
    if 2 * single > len(facts):
        text = f"{single:,} of {those(len(facts), 'tile', 'show')} a single class"
        advice = "Larger tiles show how classes lie beside each other."
        findings.append(Finding("note", "single_class", text, advice, single))
    return findings


def named_rare_classes(pixels: npt.NDArray[np.int64], names: Sequence[str]) -> list[str]:
    """The classes with less than half of an even share of the labelled pixels, the rarest first.

    Args:
        pixels: Pixels of every class and, last, of ignore in each tile: shape (N, C + 1).
        names: The classes.
    """
    totals = pixels[:, :-1].sum(0)
    shares = totals / max(1, totals.sum())
    even = 1 / max(1, int(np.count_nonzero(totals)))
    found = [c for c in rare_classes(pixels) if shares[c] < even / 2]
    rare = sorted(found, key=lambda c: float(shares[c]))
    return [
        f"{names[c]} {shares[c]:.2%}, in {plural(int((pixels[:, c] > 0).sum()), 'tile')}"
        for c in rare
    ]


def mostly_ignored(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The rows of tiles that are ignored for more than 75 %; pixels are as above."""
    whole = pixels.sum(1)
    return np.flatnonzero((pixels[:, -1] > MOSTLY_IGNORED * whole) & (whole > 0))


def _between_splits(
    train: npt.NDArray[np.int64], val: npt.NDArray[np.int64], names: Sequence[str]
) -> list[Finding]:
    ours, theirs = (part[:, :-1].sum(0) / max(1, part[:, :-1].sum()) for part in (train, val))
    findings = []
    absent = [n for n, a, b in zip(names, ours, theirs, strict=True) if a and not b]
    if absent:
        text = f"Never in the validation masks: {', '.join(absent)}"
        advice = "How well it is learned cannot be measured. Choose other location groups for val."
        findings.append(Finding("warning", "absent_in_val", text, advice, len(absent)))
    shifted = [
        f"{name}: {a:.1%} of training, {b:.1%} of validation"
        for name, a, b in zip(names, ours, theirs, strict=True)
        if a and b and max(a, b) > 0.01 and max(a / b, b / a) > _SHIFTED_SHARES
    ]
    if shifted:
        text = f"Classes whose shares differ much between the splits: {len(shifted)}"
        advice = "Scores of these depend on few places; choose groups that are more alike."
        findings.append(
            Finding("note", "shifted_classes", text, advice, len(shifted), some(shifted))
        )
    return findings


def image_findings(facts: Sequence[PairFacts]) -> list[Finding]:
    """Findings on exposure, on constant bands, and on pixels without data."""
    images = image_facts(facts)
    if not images:
        return []
    findings = _constant_bands(images)
    findings += _without_data(images)
    blank = [f.entry.name for f, image in images if image.blank + image.missing >= _BLANK]
    if blank:
        text = f"{those(len(blank), 'image', 'are')} empty: 0 or without data all over"
        advice = "Remove the pairs."
        findings.append(Finding("warning", "empty_images", text, advice, len(blank), some(blank)))
    outliers = exposure_outliers(facts)
    if outliers:
        found = those(len(outliers), "image", "are")
        text = f"{found} far darker, brighter or flatter than the others"
        advice = "Look at them: night, snow, haze, or another scaling? Remove what does not belong."
        examples = some(f"{facts[row].entry.name}: {why}" for row, why in outliers)
        findings.append(Finding("warning", "exposure", text, advice, len(outliers), examples))
    return findings


def exposure_outliers(facts: Sequence[PairFacts]) -> list[tuple[int, str]]:
    """Rows of images of unusual brightness, contrast or overexposure, and why; worst first."""
    rows = [row for row, f in enumerate(facts) if isinstance(f.image, ImageFacts)]
    images = [f.image for f in facts if isinstance(f.image, ImageFacts)]
    kept = [n for n, image in enumerate(images) if image.blank + image.missing < _BLANK]
    if not kept:
        return []
    brightness = np.array([images[n].means.mean() for n in kept])
    contrast = np.log(np.maximum([images[n].deviations.mean() for n in kept], 1e-9))
    scale = _range_of(images[kept[0]].dtype, brightness)
    found: dict[int, tuple[float, str]] = {}
    middle = float(np.median(brightness))
    for n, distance in zip(kept, _robust(brightness, _LEAST_SPREAD * scale), strict=True):
        if abs(distance) > _OUTLIER:
            side = "darker" if distance < 0 else "brighter"
            why = f"mean {images[n].means.mean():.4g}, {side} than the median {middle:.4g}"
            found[rows[n]] = abs(distance), why
    for n, distance in zip(kept, _robust(contrast, 0.35), strict=True):
        if distance < -_OUTLIER and rows[n] not in found:
            why = f"flat: standard deviation {images[n].deviations.mean():.3g}"
            found[rows[n]] = abs(distance), why
    for n in kept:
        if images[n].clipped > _CLIPPED and rows[n] not in found:
            found[rows[n]] = 1.0, f"overexposed: {images[n].clipped:.0%} of pixels are white"
    ordered = sorted(found, key=lambda row: -found[row][0])
    return [(row, found[row][1]) for row in ordered]


def _range_of(dtype: str, values: npt.NDArray[np.float64]) -> float:
    if dtype == "uint8":
        return 255.0
    return float(np.ptp(values)) or 1.0


def _robust(values: npt.NDArray[np.float64], least: float) -> npt.NDArray[np.float64]:
    """Distances from the median in standard deviations, which the median distance tells."""
    apart = values - np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(apart))), least, 1e-12)
    distances: npt.NDArray[np.float64] = apart / spread
    return distances


def _constant_bands(images: Sequence[tuple[PairFacts, ImageFacts]]) -> list[Finding]:
    findings = []
    bands = Counter(image.bands for _, image in images).most_common(1)[0][0]
    same = [(f, image) for f, image in images if image.bands == bands]
    constant = np.array([image.deviations < 1e-6 for _, image in same])
    always = np.flatnonzero(constant.all(0))
    if len(always) and len(same) > 1:
        named = ", ".join(str(band + 1) for band in always)
        value = same[0][1].means[always[0]]
        text = (
            f"Of {plural(bands, 'band')}, these are constant in every image: {named} (value "
            f"{value:g})"
        )
        advice = "They teach nothing (alpha, or left empty?). Export the images without them."
        severity: Severity = "error" if len(always) == bands else "warning"
        findings.append(Finding(severity, "constant_bands", text, advice, len(always)))
    constant[:, always] = False
    sometimes = np.flatnonzero(constant.any(1) & ~constant.all(1))
    if len(sometimes):
        text = f"{those(len(sometimes), 'image', 'have')} a band that is constant"
        examples = some(
            f"{same[row][0].entry.name}: band "
            + ", ".join(str(band + 1) for band in np.flatnonzero(constant[row]))
            for row in sometimes
        )
        advice = "A band was lost there. Export them again, or remove the pairs."
        findings.append(Finding("warning", "lost_bands", text, advice, len(sometimes), examples))
    return findings


def _without_data(images: Sequence[tuple[PairFacts, ImageFacts]]) -> list[Finding]:
    findings = []
    holes = [(f, image) for f, image in images if image.missing > 0]
    if holes:
        share = float(np.mean([image.missing for _, image in images]))
        values = sorted({f"{image.nodata:g}" for _, image in holes if image.nodata is not None})
        ways = [f"nodata {', '.join(values)}"] * bool(values)
        ways += ["NaN or infinity"] * any(image.nonfinite for _, image in holes)
        named = f" ({'; '.join(ways)})" if ways else ""
        text = (
            f"{those(len(holes), 'image', 'have')} pixels without data{named}, {share:.2%} of all"
        )
        examples = some(
            f"{f.entry.name}: {image.missing:.1%}"
            for f, image in sorted(holes, key=lambda pair: -pair[1].missing)
        )
        advice = "They are read as ignore, and count neither in scaling nor in losses."
        findings.append(Finding("note", "no_data", text, advice, len(holes), examples))
    by_value: dict[int, list[str]] = defaultdict(list)
    for f, image in images:
        for value, count in image.fillers.items():
            share = count / (image.size[0] * image.size[1])
            if value != 65_535 or share >= _FILLED:
                by_value[value].append(f"{f.entry.name}: {share:.1%} of pixels")
    for value, names in by_value.items():
        severity: Severity = "warning" if value == 65_535 else "error"
        text = (
            f"{those(len(names), 'image', 'hold')} the value {value}, which usually means no data"
        )
        advice = (
            "They would be trained on as ground. Tag it, as in: gdal_edit.py "
            f"-a_nodata {value} FILE."
        )
        findings.append(Finding(severity, "fillers", text, advice, len(names), some(names)))
    return findings


def place_findings(facts: Sequence[PairFacts], gsd: float | None) -> list[Finding]:
    """Findings on coordinate reference systems and resolutions."""
    images = image_facts(facts)
    placed = [(f, image.place) for f, image in images if image.place is not None]
    if not placed:
        return []
    findings = []
    if len(placed) < len(images):
        without = [f.entry.name for f, image in images if image.place is None]
        text = f"{plural(len(without), 'image')} of {len(images):,} have no georeference"
        advice = "Whether these lie beside others cannot be told."
        findings.append(
            Finding("note", "some_georeferenced", text, advice, len(without), some(without))
        )
    findings += _mixed(placed, lambda place: place.name, "coordinate reference system", "mixed_crs",
                       "Reproject all to one, so that north and scale are the same.")  # fmt: skip
    findings += _mixed(placed, resolution_of, "resolution", "mixed_resolution",
                       "Resample all to one: a network learns sizes in pixels.")  # fmt: skip
    known = {meters_of(place) for _, place in placed} - {None}
    if len(known) == 1:
        (found,) = known
        assert found is not None, "None was taken out"
        if gsd is None:
            text = f"A pixel measures {found:g} m"
            advice = f"Set data.gsd={found:g}, so that checkpoints keep it."
            findings.append(Finding("note", "gsd", text, advice))
        elif abs(found / gsd - 1) > _SAME_PIXEL:
            text = f"A pixel measures {found:g} m by the georeference, but data.gsd={gsd:g}"
            findings.append(Finding("warning", "gsd", text, f"Set data.gsd={found:g}."))
    differing = [f for f in facts if f.elsewhere is not None]
    if differing:
        lie = those(len(differing), "mask", "lie")
        text = f"{lie} elsewhere than the image, by the georeference"
        examples = some(f.elsewhere for f in differing)
        findings.append(Finding("error", "elsewhere", text, "", len(differing), examples))
    return findings


def pixel_size(place: Georeference) -> float:
    """The width of a pixel in units of the reference system."""
    return float(np.hypot(place.transform.a, place.transform.d))


def meters_of(place: Georeference) -> float | None:
    """The width of a pixel in metres; None where the system measures degrees, or is not known."""
    if place.crs is None or not place.crs.is_projected:
        return None
    return round(pixel_size(place) * float(place.crs.linear_units_factor[1]), 6)


def resolution_of(place: Georeference) -> str:
    """The size of a pixel in words."""
    meters = meters_of(place)
    if meters is not None:
        return f"{meters:.4g} m"
    return f"{pixel_size(place):.4g} {'units' if place.crs is None else 'degrees'}"


def _mixed(
    placed: Sequence[tuple[PairFacts, Georeference]],
    key: Callable[[Georeference], str],
    what: str,
    kind: str,
    advice: str,
) -> list[Finding]:
    counts = Counter(key(place) for _, place in placed)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    others = [f"{f.entry.name}: {key(place)}" for f, place in placed if key(place) != usual]
    named = ", ".join(f"{name} ({plural(count, 'image')})" for name, count in counts.most_common(6))
    text = f"The images have {len(counts)} {what}s: {named}"
    return [Finding("warning", kind, text, advice, len(others), some(others))]


def _size(facts: Any) -> str:
    height, width = facts.size
    return f"{width}x{height}"
