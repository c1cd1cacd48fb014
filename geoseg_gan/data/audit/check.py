"""The check_data command."""

from pathlib import Path

from geoseg_gan.data.audit.examine import Check, examine
from geoseg_gan.data.audit.report import (
    CONFIGS,
    HTML,
    free_name,
    held_for_report,
    write_report,
)
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
        name = free_name(out, check)
        write_report(out, check, name)
    print_table((finding.severity, finding.line()) for finding in check.findings)
    shown = console(soft_wrap=True)  # so that the command below can be copied
    line = f"{config.data_root}: {check.summary}. See {out / HTML}"
    if check.proposed_config(out, name):
        shown.print(f"Proposed a data config: {out / CONFIGS / name}.yaml")
    for number, command in enumerate(check.next_commands(out, name)):
        first = "Next" if check.is_mended else "Once that is mended"
        shown.print(f"{f'Or, with {UNLABELLED}/' if number else first}: {command}")
    if check.count("error"):
        raise DataError(line)
    print(line)
    return check
