"""The check_data command."""

from pathlib import Path

from geoseg_gan.data.audit.examine import Check, examine
from geoseg_gan.data.audit.report import CONFIGS, HTML, held_for_report, write_report
from geoseg_gan.data.demo.world import write_world
from geoseg_gan.data.pairs import UNLABELLED, DataError
from geoseg_gan.data.settings import CheckDataSettings
from geoseg_gan.utils.files import check_apart
from geoseg_gan.utils.tables import console, print_table


def check_data(config: CheckDataSettings) -> Check:
    """Checks a data folder, and writes report.html, report.md and findings.json to `out_dir`.

    Where the masks do not fit the data settings, nor a data config of the package, it also proposes
    a config for them, as `data/proposed.yaml` in `out_dir`, and prints a command that uses it.

    Raises:
        DataError: If training would be a mistake, once the report is written; or if the folder
            holds no images.
        UserError: If `out_dir` holds anything else than an earlier report.
    """
    root, out = Path(config.data_root), Path(config.out_dir)
    check_apart("out_dir", out, root)
    with held_for_report(out):
        if config.data.demo is not None:
            write_world(root, config.data.classes(), config.data.demo)
        check = examine(config)
        name, commands = write_report(out, check)
    print_table((finding.severity, finding.line()) for finding in check.findings)
    shown = console(soft_wrap=True)  # so that the command below can be copied
    if name:
        shown.print(f"Proposed a data config: {out / CONFIGS / name}.yaml")
    for lead, command in zip((check.lead, f"Or, with {UNLABELLED}/"), commands, strict=False):
        shown.print(f"{lead}: {command}")
    line = f"{config.data_root}: {check.summary}. See {out / HTML}"
    if check.count("error"):
        raise DataError(line)
    print(line)
    return check
