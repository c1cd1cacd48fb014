"""What is wrong or peculiar with files, images, masks and classes."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from geoseg_gan.data.audit.facts import Facts, ImageFacts, Ints, MaskFacts, Values
from geoseg_gan.data.audit.findings import EXAMPLES, Findings, Severity, those
from geoseg_gan.data.audit.propose import shared_colors
from geoseg_gan.data.masks import MaskReader
from geoseg_gan.data.palette import IGNORE, NEAR, color_codes, colors_of
from geoseg_gan.data.transplant import rare_classes
from geoseg_gan.utils.errors import plural

MOSTLY_IGNORED = 0.75
"""Share of ignored pixels above which a tile teaches little; tile drops such ones by default."""

VALUE_KINDS = {"unknown_colors", "unknown_numbers", "refused_masks", "proposal"}
"""Kinds of findings that another data config mends."""

_STRIDE = 32  # what most networks want image sizes to be multiples of
_FEW = 20  # training pairs: fewer are too few for a generator
_SAME_PIXEL = 0.01  # relative difference of resolutions that are the same
_OUTLIER = 6.0  # robust standard deviations from the median
_LEAST_SPREAD = 0.02  # of the range of values: closer images are no outliers
_CLIPPED = 0.2  # share of pixels at the end of the range
_BLANK = 0.98  # share of pixels that are 0 or without data, above which a tile is empty
_FILLED = 0.001  # share of pixels of 65,535 above which they are hardly overexposed ones
_SHIFTED_SHARES = 3.0  # ratio of a class's shares in training and validation that is worth a note
_MANY = 64  # unknown colours that no palette was written for, but damage has made
_FEW_MASKS = 0.2
"""Share of the masks up to which strange values are mistakes in these, not in the data config."""

_MISFIT = {"error": 0.0, "ignore": 0.05, "nearest": 0.5}
"""Share of pixels outside the palette above which another config is proposed, by data.unknown."""


def add_file_findings(
    findings: Findings, facts: Facts, image_size: int, fit: str, can_train: bool
) -> None:
    """Adds findings on files that do not decode, and on sizes, bands, types and numbers of images.

    Args:
        findings: What is added to.
        facts: All pairs.
        image_size: Side of the crops of training in pixels.
        fit: How images are brought to it.
        can_train: Whether training reads the folder as it is; else pictures are to be cut first.
    """
    for what, broken in facts.unreadable.items():
        text = f"{those(broken, what, 'cannot')} be read"
        advice = "Export them again, or remove the pairs."
        findings.add("error", f"unreadable_{what}s", broken, text, advice)
    differing = [
        f"{mask.entry.name}: image {_size(mask.image)}, mask {_size(mask)}"
        for mask in facts.masks
        if mask.image is not None and mask.image.size != mask.size
    ]
    text = f"{those(differing, 'mask', 'differ')} in size from their image"
    advice = "Export both from the same window, or remove the pairs."
    findings.add("error", "size_mismatch", differing, text, advice)
    elsewhere = [mask.elsewhere for mask in facts.masks if mask.elsewhere is not None]
    text = f"{those(elsewhere, 'mask', 'lie')} elsewhere than the image, by the georeference"
    findings.add("error", "elsewhere", elsewhere, text)
    kinds = [(i.entry.name, f"{plural(i.bands, 'band')} of {i.dtype}") for i in facts.images]
    text = "The images differ in bands or type"
    _add_mixed(findings, "error", "mixed_types", kinds, text, "Convert all to the same.")
    small = [i for i in facts.images if fit == "crop" and min(i.size) < image_size]
    names = [f"{image.entry.name}: {_size(image)}" for image in small]
    least = min((min(image.size) for image in small), default=0)
    text = f"{those(small, 'image', 'are')} smaller than image_size={image_size}"
    fitting = least - least % _STRIDE or least
    advice = f"Train with image_size={fitting} or less, or data.fit=resize."
    if not can_train:
        advice = f"Cut tiles of {least} pixels or less: tile_size={least}."
    findings.add("error" if can_train else "warning", "small_images", names, text, advice)
    training = sum(image.entry.split == "train" for image in facts.images)
    if can_train and training < _FEW:
        text = f"{those(training, 'training image', 'are')} few"
        advice = "Expect a generator that repeats them; label more, or cut smaller tiles."
        findings.add("note", "few_pairs", training, text, advice)


def add_mask_findings(findings: Findings, masks: Sequence[MaskFacts], mask_format: str) -> None:
    """Adds findings on how masks are stored, and on masks that several images share."""
    kinds = [(mask.entry.mask_name, mask.kind) for mask in masks]
    text = "The masks are stored in several ways"
    advice = "All are read, each as it says of itself; other tools may mix them up."
    _add_mixed(findings, "note", "mixed_masks", kinds, text, advice)
    tables = [mask.entry.mask_name for mask in masks if mask.table]
    text = (
        f"{len(tables):,} of {those(masks, 'mask', 'are')} palette-mode: numbers, and a table of "
        "their colours"
    )
    advice = "data.mask_format=rgb reads their colours, which is right where colours are known."
    severity: Severity = "note"
    if shared_colors(masks) is None:
        text += ", and the same number has different colours in different files"
        advice = "They are read by colour, as they must be."
        if mask_format != "rgb":
            advice = "Read them by colour: data.mask_format=rgb."
        severity = "warning" if mask_format == "index" else "note"
    findings.add(severity, "palette_masks", tables, text, advice)
    lossy = [mask.entry.mask_name for mask in masks if mask.is_lossy]
    text = f"{those(lossy, 'mask', 'are')} JPEGs, which change the colours around every edge"
    advice = "Export masks as PNG if you can; else data.unknown=nearest repairs them."
    findings.add("warning", "jpeg_masks", lossy, text, advice)
    fractions = [mask.entry.mask_name for mask in masks if mask.kind.endswith("not whole")]
    text = f"{those(fractions, 'mask', 'hold')} numbers that are not whole, or NaN"
    advice = "Are they probabilities? Export class numbers instead."
    findings.add("error", "fractions", fractions, text, advice)
    first: dict[bytes, ImageFacts] = {}
    shared = []
    for mask in masks:
        if mask.image is not None and len(mask.values.values) >= 2:
            other = first.setdefault(mask.digest, mask.image)
            if other.digest != mask.image.digest:
                shared.append(f"{other.entry.name} and {mask.entry.name}")
    text = f"{those(shared, 'mask', 'are')} the same as that of another image"
    advice = "One of each two was probably exported under a wrong name."
    findings.add("warning", "shared_masks", shared, text, advice)


def add_value_findings(findings: Findings, masks: Sequence[MaskFacts], reader: MaskReader) -> bool:
    """Adds findings on masks that the settings cannot read, and on values that they lack.

    Returns:
        Whether another data config is needed.
    """
    refused = [mask.refusal for mask in masks if mask.refusal is not None]
    text = f"{those(refused, 'mask', 'cannot')} be read with these data settings"
    advice = "Correct data.mask_format, or use the proposed config."
    findings.add("error", "refused_masks", refused, text, advice)
    held = sorted((-mask.unknown, mask.entry.mask_name) for mask in masks if mask.unknown)
    if not held:
        return bool(refused)
    pixels, total = -sum(count for count, _ in held), sum(int(m.pixels.sum()) for m in masks)
    in_color, palette = reader.mask_format == "rgb", reader.palette
    values = Values.joined(mask.read_as(in_color) for mask in masks)
    if in_color:
        rgb = colors_of(values.values)
        nearest, distances = palette.nearest(rgb)
    else:
        listed = [value for value, _ in reader.index_map or enumerate(palette.names)]
        distances = np.where(np.isin(values.values, [*listed, IGNORE]), 0, np.inf)
    unknown = np.flatnonzero(distances)
    near = int(values.pixels[(distances > 0) & (distances <= NEAR)].sum())
    is_damage = len(unknown) > _MANY and 2 * near > values.pixels[unknown].sum()
    is_slip = reader.unknown == "error" and not is_damage and len(held) <= _FEW_MASKS * len(masks)
    what = "colours" if in_color else "numbers"
    text = (
        f"{pixels:,} pixels ({pixels / max(1, total):.2%}) in {len(held):,} of "
        f"{those(masks, 'mask', 'have')} {what} that are not in the data config"
    )
    strange = pixels - near if reader.unknown == "nearest" else pixels
    severity: Severity = "error"
    if reader.unknown == "ignore" or (reader.unknown == "nearest" and 2 * strange <= total):
        severity = "warning" if reader.unknown == "ignore" else "note"
        meaning = "ignore" if reader.unknown == "ignore" else "the class of the nearest colour"
        advice = f"data.unknown={reader.unknown} reads them as {meaning}; is that what they mean?"
    elif is_damage and reader.unknown == "error":
        advice = (
            f"{near:,} of them are near to a class's colour, as JPEG and smoothed edges make them: "
            "repair them with data.unknown=nearest."
        )
    elif is_slip:
        this = "this mask" if len(held) == 1 else "these masks"
        knobs = "data.palette or data.ignore" if in_color else "data.index_map"
        advice = (
            f"Look at {this} first ({held[0][1]}): the data config fits all others. Correct or "
            f"remove {this}; if the {what} are meant, add them to {knobs}."
        )
    elif in_color:
        advice = "Add them to data.palette or data.ignore, or choose another data config."
    else:
        advice = "Say in data.index_map what they mean."
    examples = []
    for at in unknown[: EXAMPLES // 2]:
        name, close = values.values[at], ""
        if in_color:
            name, close = tuple(rgb[at].tolist()), palette.describe(int(nearest[at]))
            close = f", nearest is {close}"
        held_by = plural(int(values.masks[at]), "mask")
        examples.append(f"{name}: {values.pixels[at]:,} pixels in {held_by}{close}")
    examples += [f"{name}: {-count:,} pixels" for count, name in held]
    kind = "unknown_colors" if in_color else "unknown_numbers"
    findings.add(severity, kind, examples, text, advice, len(held))
    return bool(refused) or (not is_slip and strange > _MISFIT[reader.unknown] * total)


def add_ignored_colors(findings: Findings, masks: Sequence[MaskFacts], reader: MaskReader) -> None:
    """Adds findings on colours that are read as ignore: each in how many masks."""
    if reader.mask_format != "rgb":
        return
    held = [(mask.entry.mask_name, mask.read_as(in_color=True)) for mask in masks]
    joined = Values.joined(values for _, values in held)
    for color in reader.palette.ignore:
        code = color_codes(np.array([[color]], np.uint8)).item()
        found = [name for name, values in held if code in values.values]
        text = (
            f"The colour {tuple(map(int, color))} is no class, but ignored: in {len(found):,} of "
            f"{plural(len(masks), 'mask')}, {joined.shares[joined.values == code].sum():.2%} of "
            "all pixels"
        )
        advice = "If it stands for something, give it a class."
        findings.add("note", "ignored_color", found, text, advice)


def add_class_findings(
    findings: Findings,
    masks: Sequence[MaskFacts],
    pixels: Ints,
    names: Sequence[str],
    can_train: bool,
) -> None:
    """Adds findings on classes and on tiles that show little.

    Args:
        findings: What is added to.
        masks: N masks.
        pixels: Pixels of every class and, last, of ignore in each: shape (N, C + 1).
        names: The classes.
        can_train: Whether the folder is split for training.
    """
    splits = np.array([mask.entry.split for mask in masks])
    mine = pixels[splits == "train"] if can_train else pixels
    where = "training" if can_train else "all"
    totals = mine[:, :-1].sum(0)
    absent = [name for name, count in zip(names, totals, strict=True) if not count]
    if len(mine) and len(names) - len(absent) < 2:
        occurring = sorted({*names} - {*absent})
        found = f"only '{occurring[0]}'" if occurring else "no class at all"
        advice = "There is nothing to tell apart: check mask_format, palette and index_map."
        findings.add("error", "one_class", 1, f"The {where} masks show {found}", advice)
    elif len(mine):
        text = f"Never in the {where} masks: {', '.join(absent)}"
        advice = "It cannot be learned. Leave it out of the palette, or move tiles that have it."
        findings.add("warning", "absent_classes", absent, text, advice)
        shares = totals / totals.sum()
        even = 1 / np.count_nonzero(totals)
        rare = [
            f"{names[c]} {shares[c]:.2%}, in {plural(int((mine[:, c] > 0).sum()), 'tile')}"
            for c in sorted(rare_classes(mine), key=shares.__getitem__)
            if shares[c] < even / 2
        ]
        text = f"Rare, below half of an even share: {'; '.join(rare)}"
        advice = (
            "Use crops=rare in train, oversample_classes or augment=copy_paste in train_segmenter."
        )
        findings.add("note", "rare_classes", len(rare), text, advice)
    val = pixels[splits == "val"][:, :-1].sum(0)
    if can_train and len(mine) and val.any():
        both = [*zip(names, totals / max(1, totals.sum()), val / val.sum(), strict=True)]
        unseen = [name for name, a, b in both if a and not b]
        text = f"Never in the validation masks: {', '.join(unseen)}"
        advice = "How well it is learned cannot be measured. Choose other location groups for val."
        findings.add("warning", "absent_in_val", unseen, text, advice)
        shifted = [
            f"{name}: {a:.1%} of training, {b:.1%} of validation"
            for name, a, b in both
            if max(a, b) > max(0.01, _SHIFTED_SHARES * min(a, b)) and min(a, b)
        ]
        text = f"Classes whose shares differ much between the splits: {len(shifted)}"
        advice = "Scores of these depend on few places; choose groups that are more alike."
        findings.add("note", "shifted_classes", shifted, text, advice)
    whole = pixels.sum(1)
    ignored = pixels[:, -1] / np.maximum(1, whole)
    void: Ints = np.flatnonzero((pixels[:, -1] > MOSTLY_IGNORED * whole) & (whole > 0))
    text = (
        f"{those(len(void), 'tile', 'are')} ignored for more than {MOSTLY_IGNORED:.0%}"
        f", {int((ignored[void] == 1).sum()):,} of them entirely"
    )
    advice = "They teach little: remove them, or check what is read as ignore."
    severity: Severity = "error" if len(void) > len(masks) / 2 else "warning"
    examples = [f"{masks[row].entry.name}: {ignored[row]:.0%}" for row in void]
    findings.add(severity, "mostly_ignored", examples, text, advice)


def add_image_findings(findings: Findings, images: Sequence[ImageFacts]) -> None:
    """Adds findings on exposure, on constant bands, and on pixels without data."""
    if not images:
        return
    _add_constant_bands(findings, images)
    _add_without_data(findings, images)
    blank = [image.entry.name for image in images if image.empty >= _BLANK]
    text = f"{those(blank, 'image', 'are')} empty: 0 or without data all over"
    findings.add("warning", "empty_images", blank, text, "Remove the pairs.")
    outliers = [f"{image.entry.name}: {why}" for image, why in exposure_outliers(images)]
    text = f"{those(outliers, 'image', 'are')} far darker, brighter or flatter than the others"
    advice = "Look at them: night, snow, haze, or another scaling? Remove what does not belong."
    findings.add("warning", "exposure", outliers, text, advice)


def add_unlabelled_findings(
    findings: Findings, labelled: Sequence[ImageFacts], unlabelled: Facts, image_size: int
) -> None:
    """Adds findings on the images without masks, which source=unlabelled labels."""
    bad, images = unlabelled.unreadable["image"], unlabelled.images
    text = f"{those(bad, 'unlabelled image', 'cannot')} be read"
    findings.add("warning", "unlabelled_unreadable", bad, text, "Replace or remove them.")
    if not labelled or not images:
        return
    kind = labelled[0].bands, labelled[0].dtype
    alike = [image for image in images if (image.bands, image.dtype) == kind]
    other = [image.entry.name for image in images if (image.bands, image.dtype) != kind]
    text = f"{those(other, 'unlabelled image', 'have')} other bands or another type than the pairs"
    advice = "A segmenter of the pairs cannot label them: convert them alike."
    findings.add("warning", "unlabelled_kind", other, text, advice)
    small = [image.entry.name for image in images if min(image.size) < image_size]
    text = f"{those(small, 'unlabelled image', 'are')} smaller than image_size={image_size}"
    findings.add("warning", "unlabelled_small", small, text, "Set a smaller image_size.")
    known = {i.digest: i.entry.name for i in labelled if i.entry.split == "val" and i.empty < 1}
    copies = [f"{i.entry.name} and {known[i.digest]}" for i in images if i.digest in known]
    text = f"{those(copies, 'unlabelled image', 'have')} the pixels of a validation image"
    advice = "Scores on these would prove nothing. Remove one of the two."
    findings.add("warning", "unlabelled_validation", copies, text, advice)
    if alike:
        theirs, ours = (
            ", ".join(f"{mean:.4g}" for mean in np.mean([image.means for image in part], 0))
            for part in (alike, [i for i in labelled if (i.bands, i.dtype) == kind])
        )
        text = f"{plural(len(images), 'unlabelled image')} found"
        advice = f"Means of their bands are {theirs}; of the pairs' images {ours}."
        findings.add("note", "unlabelled", 1, text, advice)


def exposure_outliers(images: Sequence[ImageFacts]) -> list[tuple[ImageFacts, str]]:
    """Images of unusual brightness, contrast or overexposure, and why; worst first."""
    kept = [image for image in images if image.empty < _BLANK]
    if not kept:
        return []
    brightness = np.array([image.means.mean() for image in kept])
    deviations = np.array([image.deviations.mean() for image in kept])
    scale = 255.0 if kept[0].dtype == "uint8" else float(np.ptp(brightness)) or 1.0
    lights = _robust(brightness, _LEAST_SPREAD * scale)
    contrasts = _robust(np.log(np.maximum(deviations, 1e-9)), 0.35)
    found = []
    for n, image in enumerate(kept):
        if abs(lights[n]) > _OUTLIER:
            side = "darker" if lights[n] < 0 else "brighter"
            why = f"mean {brightness[n]:.4g}, {side} than the median {np.median(brightness):.4g}"
            found.append((abs(lights[n]), image, why))
        elif contrasts[n] < -_OUTLIER:
            found.append((-contrasts[n], image, f"flat: standard deviation {deviations[n]:.3g}"))
        elif image.clipped > _CLIPPED:
            found.append((1.0, image, f"overexposed: {image.clipped:.0%} of pixels are white"))
    return [(image, why) for _, image, why in sorted(found, key=lambda entry: -entry[0])]


def _robust(values: npt.NDArray[np.float64], least: float) -> npt.NDArray[np.float64]:
    """Distances from the median in standard deviations, estimated by the median distance."""
    apart = values - np.median(values)
    spread = max(1.4826 * float(np.median(np.abs(apart))), least, 1e-12)
    distances: npt.NDArray[np.float64] = apart / spread
    return distances


def _add_constant_bands(findings: Findings, images: Sequence[ImageFacts]) -> None:
    bands = Counter(image.bands for image in images).most_common(1)[0][0]
    same = [image for image in images if image.bands == bands]
    constant = np.array([image.deviations < 1e-6 for image in same])
    # Of a single image, every constant band is a lost one.
    always = np.all(constant, axis=0, keepdims=True)[0] if len(same) > 1 else np.zeros(bands, bool)
    if always.any():
        text = (
            f"Of {plural(bands, 'band')}, these are constant in every image: {_bands(always)} "
            f"(value {same[0].means[always][0]:g})"
        )
        advice = "They teach nothing (alpha, or left empty?). Export the images without them."
        severity: Severity = "error" if always.all() else "warning"
        findings.add(severity, "constant_bands", int(always.sum()), text, advice)
    lost = [
        f"{image.entry.name}: band {_bands(its)}"
        for image, its in zip(same, constant & ~always, strict=True)
        if its.any() and not its.all()
    ]
    text = f"{those(lost, 'image', 'have')} a band that is constant"
    advice = "A band was lost there. Export them again, or remove the pairs."
    findings.add("warning", "lost_bands", lost, text, advice)


def _bands(flags: npt.NDArray[np.bool_]) -> str:
    return ", ".join(str(band + 1) for band in np.flatnonzero(flags))


def _add_without_data(findings: Findings, images: Sequence[ImageFacts]) -> None:
    holes = sorted((image for image in images if image.missing > 0), key=lambda i: -i.missing)
    values = sorted({f"{image.nodata:g}" for image in holes if image.nodata is not None})
    ways = [f"nodata {', '.join(values)}"] * bool(values)
    ways += ["NaN or infinity"] * any(image.nonfinite for image in images)
    named = f" ({'; '.join(ways)})" if ways else ""
    share = float(np.mean([image.missing for image in images]))
    text = f"{those(holes, 'image', 'have')} pixels without data{named}, {share:.2%} of all"
    advice = "They are read as ignore, and count neither in scaling nor in losses."
    examples = [f"{image.entry.name}: {image.missing:.1%}" for image in holes]
    findings.add("note", "no_data", examples, text, advice)
    by_value: dict[int, list[str]] = defaultdict(list)
    for image in images:
        for value, share in image.fillers.items():
            if value != 65_535 or share >= _FILLED:
                by_value[value].append(f"{image.entry.name}: {share:.1%} of pixels")
    for value, names in by_value.items():
        text = f"{those(names, 'image', 'hold')} the value {value}, which usually means no data"
        advice = (
            f"They would be trained on as ground. Set data.nodata={value}, or tag files, as in: "
            f"gdal_edit.py -a_nodata {value} FILE."
        )
        findings.add("warning" if value == 65_535 else "error", "fillers", names, text, advice)


def add_place_findings(findings: Findings, images: Sequence[ImageFacts], gsd: float | None) -> None:
    """Adds findings on coordinate reference systems and resolutions."""
    placed = [(image.entry.name, image.place) for image in images if image.place is not None]
    systems = [(name, place.name) for name, place in placed]
    text = "The images have several coordinate reference systems"
    advice = "Reproject all to one, so that north and scale are the same."
    _add_mixed(findings, "warning", "mixed_crs", systems, text, advice)
    sizes = [(name, place.resolution) for name, place in placed]
    text = "The images have several resolutions"
    advice = "Networks learn sizes in pixels: resample."
    _add_mixed(findings, "warning", "mixed_resolution", sizes, text, advice)
    if (found := common_gsd(images)) is None:
        return
    if gsd is None:
        advice = f"Set data.gsd={found:g}, so that checkpoints keep it."
        findings.add("note", "gsd", 1, f"A pixel measures {found:g} m", advice)
    elif abs(found / gsd - 1) > _SAME_PIXEL:
        text = f"A pixel measures {found:g} m by the georeference, but data.gsd={gsd:g}"
        findings.add("warning", "gsd", 1, text, f"Set data.gsd={found:g}.")


def _add_mixed(
    findings: Findings,
    severity: Severity,
    kind: str,
    keys: Sequence[tuple[str, str]],
    text: str,
    advice: str,
) -> None:
    """Adds a finding on files that differ from most others: `keys` are names and what differs."""
    counts = Counter(key for _, key in keys).most_common()
    others = [f"{name}: {key}" for name, key in keys if key != counts[0][0]]
    named = ", ".join(f"{key} ({count:,})" for key, count in counts[:6])
    findings.add(severity, kind, others, f"{text}: {named}", advice)


def common_gsd(images: Sequence[ImageFacts]) -> float | None:
    """Metres a pixel, where all georeferences that tell it agree."""
    known = {image.place.meters for image in images if image.place} - {None}
    return known.pop() if len(known) == 1 else None


def _size(facts: ImageFacts | MaskFacts) -> str:
    height, width = facts.size
    return f"{width}x{height}"
