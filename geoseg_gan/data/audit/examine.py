"""What a data folder holds, what is wrong with it, and how its masks are to be read."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from geoseg_gan.config import as_override, script_command
from geoseg_gan.data.audit import checks, relations
from geoseg_gan.data.audit.facts import Facts, ImageFacts, Ints, measure
from geoseg_gan.data.audit.findings import SEVERITIES, Finding, Findings, Severity
from geoseg_gan.data.audit.folders import Folder, find_entries, unlabelled_entries
from geoseg_gan.data.audit.propose import Proposal, propose
from geoseg_gan.data.masks import MaskReader, mask_reader
from geoseg_gan.data.pairs import TILES_CSV, UNLABELLED
from geoseg_gan.data.palette import PaletteClass
from geoseg_gan.data.settings import CheckDataSettings, DataSettings, TileSettings
from geoseg_gan.utils.errors import plural
from geoseg_gan.utils.messages import CONFIGS, choices, knob_texts
from geoseg_gan.utils.yaml_files import load_yaml

_STEP = 32  # what sides of images are multiples of for the networks


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        config: The settings.
        folder: The files.
        facts: What images and masks hold.
        reader: How masks are read: as the proposal says where there is one, else as set.
        pixels: Pixels of every class and, last, of ignore of each mask: shape (N, C + 1).
        proposal: A data config for masks that the set one does not fit.
        copies: Pairs that show the same.
        neighbours: Pairs of different splits beside each other.
        findings: From the gravest to the least.
    """

    config: CheckDataSettings
    folder: Folder
    facts: Facts
    reader: MaskReader
    pixels: Ints
    proposal: Proposal | None
    copies: list[relations.Relation]
    neighbours: list[relations.Relation]
    findings: list[Finding]

    def count(self, severity: Severity) -> int:
        """How many findings are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def is_mended(self) -> bool:
        """Whether the next command is one without errors, by its data config and image size."""
        errors = {finding.kind for finding in self.findings if finding.severity == "error"}
        return errors <= {"small_images", *(checks.VALUE_KINDS if self.proposal else ())}

    @property
    def lead(self) -> str:
        """What stands before the next command."""
        return "Next" if self.is_mended else "Once that is mended"

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        errors, warnings = self.count("error"), self.count("warning")
        pairs, also = plural(len(self.folder.pairs()), "pair"), plural(warnings, "warning")
        if errors:
            more = f" and {also}" * bool(warnings)
            return f"{pairs}: training would be a mistake ({plural(errors, 'error')}{more})"
        can = "can be trained on" if self.folder.can_train else "can be trained on once split"
        return f"{pairs}: {can}" + f", with {also}" * bool(warnings)

    def proposed_config(self, config_dir: Path, config_name: str) -> str:
        """The proposed config as YAML; empty where there is none, or one of the package fits."""
        if self.proposal is None or self.proposal.is_known:
            return ""
        head = [f"Proposed by scripts/check_data.py for {self.config.data_root}."]
        for command in self.next_commands(config_dir, config_name)[:1]:
            head.append(f"Fill in the names, then: {command}")
        return "\n".join([*self.proposal.lines(head), ""])

    def next_commands(self, config_dir: Path, config_name: str) -> list[str]:
        """The commands that use the folder, with the data config that fits; none if none can.

        `config_name` is what the proposed config is called in `config_dir`.
        """
        words, folder = [], None
        if self.proposal is not None:
            words = [f"data={self.proposal.source if self.proposal.is_known else config_name}"]
            folder = None if self.proposal.is_known else config_dir
        root, image_size = self.config.data_root, self.config.image_size
        if self.config.data.fit == "crop":
            image_size = min([image_size, *(min(image.size) for image in self.facts.images)])
            image_size = image_size // _STEP * _STEP or image_size
        places = {"data_root": root}
        if not self.folder.can_train:
            places = {"source": root, "data_root": f"data/{Path(root).resolve().name}"}
            if not self.folder.can_tile:
                return []
        words += [as_override(key, place, TileSettings) for key, place in places.items()]
        name, knob = ("train", "image_size") if self.folder.can_train else ("tile", "tile_size")
        if image_size != int(knob_texts(name)[knob][0]):
            words.append(f"{knob}={image_size}")
        commands = [script_command(name, words, folder)]
        images = Path(root, UNLABELLED)
        if self.folder.can_train and images.is_dir() and self.config.data.fit == "crop":
            words.append(as_override(UNLABELLED, str(images), TileSettings))
            commands.append(script_command("train_segmenter", words, folder))
        return commands


def examine(config: CheckDataSettings) -> Check:
    """Reads a data folder and finds what is wrong with it; nothing is written.

    Raises:
        DataError: If the folder holds no images.
    """
    root, settings = Path(config.data_root), config.data
    folder, reader = find_entries(root), mask_reader(settings)
    entries, findings, is_ready = folder.entries, folder.findings, folder.can_train
    images, masks, _ = facts = measure(entries, reader)
    pixels = np.array([mask.pixels for mask in masks], np.int64)
    pixels = pixels.reshape(len(masks), reader.palette.num_classes + 1)
    # A single class among all masks is a sign of numbers that are read as ignore.
    has_one = np.count_nonzero(pixels[:, :-1].sum(0)) < 2
    found = Findings()
    is_misfit = checks.add_value_findings(found, masks, reader) or has_one
    groups = None
    if settings.group_regex is None and not (root / TILES_CSV).is_file():
        groups = relations.group_pattern(entries)
    proposal, names_groups = None, False
    if masks and (config.propose == "always" or (config.propose == "auto" and is_misfit)):
        known = {"": settings} | _package_settings(settings)
        proposal = propose(masks, known)
    if proposal is not None:
        is_known = proposal.is_known and config.propose != "always"
        source = proposal.source if is_known else None
        names_groups = source is None or known[source].group_regex is not None
        more = _further_settings(settings, groups, images, config)
        proposal = replace(proposal, is_known=is_known, more=more)
        reader = mask_reader(proposal.settings(settings))
        pixels = np.array([mask.counted_by(reader) for mask in masks], np.int64)
        found = Findings(replace(finding, advice=proposal.advice) for finding in found)
        severity: Severity = "error" if is_misfit and not found else "note"
        found.add(severity, "proposal", len(proposal.classes), str(proposal), proposal.advice)
    findings += found
    checks.add_file_findings(findings, facts, config.image_size, settings.fit, is_ready)
    checks.add_mask_findings(findings, masks, settings.mask_format)
    if masks and (proposal is not None or not any(f.severity == "error" for f in found)):
        checks.add_class_findings(findings, masks, pixels, reader.palette.names, is_ready)
    checks.add_ignored_colors(findings, masks, reader)
    checks.add_image_findings(findings, images)
    checks.add_place_findings(findings, images, settings.gsd)
    copies, neighbours = relations.find_copies(images), list[relations.Relation]()
    relations.add_copy_findings(findings, copies)
    if len(folder.splits) > 1:
        neighbours, way = relations.find_neighbours(entries, images, root)
        relations.add_neighbour_findings(findings, entries, neighbours, way)
    relations.add_group_findings(findings, entries, root, settings.group_regex)
    if groups is not None and not names_groups:
        setting = as_override("data.group_regex", groups[0], CheckDataSettings)
        text = (
            f"Each of the {plural(len(entries), 'tile')} is a location group of its own, but by "
            f"their names they are of {plural(groups[1], 'picture')}"
        )
        advice = (
            "Tiles of one picture look alike, which makes intervals too narrow. If that is what "
            f"the names mean, set {shlex.quote(setting)} in all commands."
        )
        findings.add("note", "groups_by_name", groups[1], text, advice)
    unlabelled = measure(unlabelled_entries(root, findings), reader)
    checks.add_unlabelled_findings(findings, images, unlabelled, config.image_size)
    return Check(
        config=config,
        folder=folder,
        facts=facts,
        reader=reader,
        pixels=pixels,
        proposal=proposal,
        copies=copies,
        neighbours=neighbours,
        findings=sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)),
    )


def _package_settings(given: DataSettings) -> dict[str, DataSettings]:
    """What the data configs of the package say of masks of colours and of groups, by their name."""
    found = {}
    for name in choices("data"):  # not composed by Hydra, which takes a second for each
        content = load_yaml(Path(str(files(CONFIGS))) / "data" / f"{name}.yaml")[1]
        content = content.get("data", content)
        if "palette" in content and content.get("mask_format", "rgb") == "rgb":
            found[name] = replace(
                given,
                palette=[PaletteClass(**entry) for entry in content["palette"]],
                ignore=content.get("ignore", [[0, 0, 0]]),
                mask_format="rgb",
                index_map=None,
                unknown=content.get("unknown", "error"),
                group_regex=content.get("group_regex", given.group_regex),
            )
    return found


def _further_settings(
    settings: DataSettings,
    groups: tuple[str, int] | None,
    images: Sequence[ImageFacts],
    config: CheckDataSettings,
) -> dict[str, tuple[Any, str]]:
    """Groups, resolution and fit, and why: as set, or where these are plain to see."""
    more = dict[str, tuple[Any, str]]()
    if settings.group_regex is not None:
        more["group_regex"] = settings.group_regex, "as given"
    elif groups is not None:
        more["group_regex"] = groups[0], f"by the names: {plural(groups[1], 'location group')}"
    if settings.gsd is not None:
        more["gsd"] = settings.gsd, "as given"
    elif (gsd := checks.common_gsd(images)) is not None:
        more["gsd"] = gsd, "metres a pixel, by the georeference"
    sizes = {image.size for image in images}
    if settings.fit != "crop":
        more["fit"] = settings.fit, "as given"
    elif len(sizes) > 1 and (least := min(map(min, sizes))) < config.image_size // 2:
        more["fit"] = "resize", f"sizes differ, and the smallest is {least} pixels"
    return more
